"""Checking a package or a run again: every hash, count, class name, score and the card. Asks no network."""

from __future__ import annotations

import json
import math
import re
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hmdc_hub import __version__, metrics
from hmdc_hub.catalog import read_published_recipe, read_recipe_file
from hmdc_hub.errors import FormatError, HmdcError, NewerFormatError
from hmdc_hub.publish.card import front_matter, read_config, read_facts, text_checksum
from hmdc_hub.publish.croissant import CROISSANT, croissant
from hmdc_hub.schema import (
    FORMAT_VERSION,
    FORMER_BASELINES,
    LOCAL,
    NEEDED,
    PARQUET,
    TRAINING_SETS,
    ArtifactInfo,
    Budget,
    Estimate,
    Manifest,
    Recipe,
    Scores,
    is_intact,
)
from hmdc_hub.store.configs import SCORES_CONFIG, configs_of, entries_of, read_card_text, refuse_links, split_card
from hmdc_hub.store.files import read_confusion, read_info, read_record, read_scores, sha256_file
from hmdc_hub.store.rundir import RunDir
from hmdc_hub.text import cut

PICTURES = ("preview.png", "formation.png", "scores.png")
_YOUNG_TAGS = re.compile(r"synthetic|ipc-\d+")
ROW = 4096  # most bytes of a training in scores/*.parquet: three names and some numbers


@dataclass(frozen=True)
class Finding:
    """One check."""

    # A configuration of a package; of a run `evaluations/<name>`, or a size `ipc10/`; empty: the card, or the run.
    config: str
    check: str  # what was checked, such as `files`: the names of `_OF_PACKAGES`, `_OF_RUNS`, or `card`
    ok: bool
    detail: str  # what was looked at, or what is wrong
    step: str = ""  # what mends it; empty if that is not known


class _Set:
    """A run, or one configuration in the folder of a package: each file is read and hashed once."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder, self.name, self.packaged = folder, name or "", name is not None
        self.files = RunDir(folder / self.name)  # called alike in both, but for the parquet
        self.parquet = self.files.path / PARQUET if self.packaged else self.files.parquet
        self._hashes: dict[Path, str] = {}

    def sha256(self, path: Path) -> str:
        return self._hashes.get(path) or self._hashes.setdefault(path, sha256_file(path))

    @cached_property
    def info(self) -> ArtifactInfo:
        return read_info(self.files.info)

    @cached_property
    def recipe(self) -> Recipe:
        return (read_published_recipe if self.packaged else read_recipe_file)(self.files.recipe)

    @cached_property
    def scores(self) -> Scores:
        return read_scores(self.files.scores)

    @cached_property
    def manifest(self) -> Manifest:
        return read_record(self.files.path / "manifest.json", Manifest)

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        from hmdc_hub.store.condensed import training_shape  # late, as below: torch

        return training_shape(self.info, self.files.condensed)


def verify(folder: Path, configs: list[str] | None = None) -> list[Finding]:
    """Check a package, or some of its configurations; at least one finding. What is newer is a NewerFormatError."""
    names = sorted(path.parent.name for path in folder.glob("*/manifest.json")) if configs is None else configs
    try:
        refuse_links(folder, names)
    except FormatError as error:  # nothing is read then: to read is to follow
        return [Finding("", "files", False, error.message.replace(f"{folder}/", ""))]
    if not names:
        return [Finding("", "card", False, f"{folder} has no configuration")]
    findings = list[Finding]()
    for name in names:
        findings += _looked(name, _OF_PACKAGES, _Set(folder, name), folder)
    whole = {"card": partial(_card, names=names)}
    if (folder / CROISSANT).is_file():  # packages of older programs have none
        whole["croissant"] = partial(_croissant, names=names)
    findings += _looked("", whole, folder, folder)
    # What messages advise is for the author, who has the run.
    return [replace(one, step="") for one in findings]


def verify_run(run: RunDir) -> list[Finding]:
    """Check a condensed run: its own files, evaluations by other protocols, its package; what is wrong has a step."""
    found = list[Finding]()
    for size in run.sizes:
        place = "" if size == run else f"{size.path.name}/"
        own = _looked(place, _OF_RUNS, _Set(size.path))
        found += [one if one.ok else replace(one, step=one.step or step_of(size, one.check)) for one in own]
        for folder in sorted(path for path in size.evaluations.glob("*") if path.is_dir()):
            again = f"`rm -r {shlex.quote(str(folder))}`, and evaluate by that protocol again."
            name = f"{place}{size.evaluations.name}/{folder.name}"
            other = _looked(name, _OF_EVALUATIONS, _Set(folder), size.path)
            found += [one if one.ok else replace(one, step=again) for one in other]
    if run.package.is_dir():
        again = f"`hmdc-hub package {shlex.quote(str(run.path))}` builds it again."
        configs = None if run.whole == run else [name for name, one in run.whole.sets().items() if one == run]
        found += [one if one.ok else replace(one, step=again) for one in verify(run.package, configs)]
    return found


def refuse_damaged(run: RunDir, package: Path | None = None) -> None:
    """Refuse a run whose facts do not belong together, or the package that was built of it, with what mends the run."""
    sets = dict[str, RunDir]()
    if package is None:
        # Of the scores only that they can be read: what is packaged of them is checked there.
        read = {"scores": lambda at: at.scores.name if at.files.scores.is_file() else "none"}
        found = _looked("", {"provenance": _provenance, "recipe": _recipe, **read}, _Set(run.path))
    else:
        found, sets = verify(package), run.sets()
    if wrong := [one for one in found if not one.ok]:
        listed = "\n".join(f"  {one.check}: {one.detail}" for one in wrong)
        raise FormatError(
            f"{run.path} is not in order, and was not packaged:\n{listed}",
            hint="\n".join(dict.fromkeys(one.step or step_of(sets.get(one.config, run), one.check) for one in wrong)),
        )


def step_of(run: RunDir, check: str) -> str:
    """Say what mends a run in which a check fails."""
    path = shlex.quote(str(run.path))
    if check == "scores":
        try:
            read_scores(run.scores)
        except FormatError:  # the evaluator finds that out, too, and puts them together from the trainings
            return f"`hmdc-hub evaluate {path}` makes them again."
        return f"`hmdc-hub evaluate {path} --fresh` trains and scores again."
    if check in ("initialisation", "trainings"):
        name = run.initialisation.name if check == "initialisation" else "cells*.jsonl"
        return f"`rm {path}/{name}`: the next evaluation makes again what it needs of it."
    flag = "--resume" if check != "recipe" and not run.finished else "--force"
    return f"`hmdc-hub condense` with its recipe and {flag} makes it again."


def _looked(
    config: str, checks: Mapping[str, Callable[[Any], str]], at: Any, folder: Path | None = None
) -> list[Finding]:
    """Do checks: each says what it looked at, or raises what is wrong; paths are told from `folder` on."""
    found, folder = [], folder or at.folder
    for check, look in checks.items():
        try:
            found.append(Finding(config, check, True, look(at)))
        except NewerFormatError:
            raise
        except HmdcError as error:
            found.append(Finding(config, check, False, error.message.replace(f"{folder}/", ""), error.hint))
    return found


def _equal(facts: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse facts, each as it is and as it must be, of which one is not."""
    for what, (found, due) in facts.items():
        if found != due:
            if isinstance(found, dict) and isinstance(due, dict):  # what is alike hides the rest
                keys = [key for key in due | found if found.get(key) != due.get(key)]
                found, due = ({key: one.get(key) for key in keys} for one in (found, due))
            raise FormatError(f"{what} is {cut(str(found), 80)}, not {cut(str(due), 80)}")


# Files, provenance, recipe


def _files(at: _Set) -> str:
    """Every file that the manifest lists, and no other in the folders of this configuration."""
    folder, name = at.folder, at.name
    _equal({"the configuration in manifest.json": (at.manifest.config, name)})
    listed = {file.path: file for file in at.manifest.files}
    for path, file in listed.items():
        place = folder / path
        if not place.is_file():
            raise FormatError(f"{path} is missing")
        _equal({f"the size of {path}": (place.stat().st_size, file.size)})
        _equal({f"the SHA-256 of {path}": (at.sha256(place), file.sha256)})
    own = [*folder.glob(f"{name}/**/*"), *folder.glob(f"assets/{name}/**/*"), *folder.glob(f"scores/{name}.parquet")]
    there = {path.relative_to(folder).as_posix() for path in own if not path.is_dir()}
    if strangers := sorted(there - set(listed) - {f"{name}/manifest.json"}):
        raise FormatError(f"{', '.join(strangers[:3])} is not in the manifest")
    if lacking := [needed for needed in NEEDED if f"{name}/{needed}" not in listed]:
        raise FormatError(f"{name}/{lacking[0]} is not in the manifest")
    return f"{len(listed)} files, every SHA-256"


def _provenance(at: _Set) -> str:
    """info.json names these very files, and its counts follow from one another."""
    info, source = at.info, at.info.source
    classes, training = len(source.class_names), info.ipc * info.factor**2
    _equal(
        {
            "condensed.safetensors": (at.sha256(at.files.condensed), info.tensors_sha256),
            at.parquet.name: (at.sha256(at.parquet), info.parquet_sha256),
            "the number of synthetic images": (info.synthetic_images, classes * info.ipc),
            "the number of training images": (info.training_images, classes * training),
            "the number of class counts": (len(source.train_counts), classes),
            "the number of distinct class names": (len(set(source.class_names)), classes),
        }
    )
    return f"{info.ipc} synthetic = {training} training images per class, {classes} classes"


def _recipe(at: _Set) -> str:
    """The recipe is the one that the hashes are of; a published one is plain data."""
    info, recipe = at.info, at.recipe
    own = {"publish.config": (recipe.publish.config, at.name), "source.id": (recipe.source.id, info.source.id)}
    _equal(
        (own if at.packaged else {})
        | {
            "ipc and factor": ((recipe.condense.ipc, recipe.condense.factor), (info.ipc, info.factor)),
            "the seed": (recipe.seed, info.seed),
            "the name": (recipe.name, info.recipe_name),
            "the models": ([model.name for model in recipe.pool], [model.name for model in info.models]),
            "the protocol hash": (recipe.protocol_hash(), info.protocol_hash),
        }
    )
    if at.packaged and recipe.source.id.startswith(LOCAL):
        fingerprint = recipe.source.id.rpartition("@")[2]
        _equal({"the source's fingerprint": (fingerprint, info.source.fingerprint[:16])})
        return "plain data; its source was local, so the condense hash cannot be computed again"
    _equal({"the condense hash": (recipe.condense_hash(), info.condense_hash)})
    return f"condense hash {info.condense_hash[:12]}, protocol hash {info.protocol_hash[:12]}"


# Images


def _tensors(at: _Set) -> str:
    """The exact floats can be read, and their header says what info.json says."""
    from hmdc_hub.store.condensed import read_classes, read_header

    info, source, (_, *shape) = at.info, at.info.source, at.shape
    header = read_header(at.files.condensed)[0]
    _equal(
        {
            "class names of condensed.safetensors": (header.class_names, source.class_names),
            "ipc and factor of condensed.safetensors": ((header.ipc, header.factor), (info.ipc, info.factor)),
            "mean and std of condensed.safetensors": ((header.mean, header.std), (source.mean, source.std)),
            "condense hash of condensed.safetensors": (header.condense_hash, info.condense_hash),
        }
    )
    for images in read_classes(at.files.condensed):
        _equal({"shape of a class in condensed.safetensors": (list(images.shape), [info.ipc, *shape])})
    return f"{info.synthetic_images} x {' x '.join(map(str, shape))}, in [0, 1]"


def _images(at: _Set) -> str:
    """The parquet is the decoded floats rounded to 8 bits, and its footer is what info.json and manifest.json say."""
    import numpy as np
    import torch

    from hmdc_hub import multi_formation
    from hmdc_hub.store.condensed import read_classes
    from hmdc_hub.store.parquet import iter_parquet, read_class_names, rows_and_bytes, to_uint8

    info, names = at.info, at.info.source.class_names
    rows = iter_parquet(at.parquet, at.shape)
    first = next(rows, None)  # nothing else of the file is asked for before its footer was compared with info.json
    _equal({f"the class names of {at.parquet.name}": (read_class_names(at.parquet), names)})
    rows = chain([] if first is None else [first], rows)
    for label, stored in enumerate(read_classes(at.files.condensed)):
        decoded = to_uint8(multi_formation.decode(stored, info.factor))
        shown, labels = zip(*islice(rows, len(decoded)), strict=True)
        if set(labels) != {label}:
            raise FormatError("the labels are not those of the synthetic images")
        # One step of 255 apart is what another processor's rounding can do.
        apart = decoded.short() - torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)
        if int(apart.abs().max()) > 1:
            raise FormatError(f"the pixels are not the decoded tensors: {int(apart.abs().max())} of 255 apart")
    if at.packaged:
        listed = (at.manifest.rows, at.manifest.data_bytes)
        _equal({"rows and bytes in manifest.json": (listed, rows_and_bytes(at.parquet))})
        _equal({"the class names of manifest.json": (at.manifest.class_names, names)})
    return f"{info.training_images} images, the decoded tensors in 8 bits"


def _initialisation(at: _Set) -> str:
    """The images before the first step are as they were written."""
    from hmdc_hub.store.condensed import read_classes, read_header

    path = at.files.initialisation
    if not path.is_file():
        return "none"
    header, checked = read_header(path)
    _equal({f"the condense hash of {path.name}": (header.condense_hash, at.info.condense_hash)})
    count = sum(len(images) for images in read_classes(path))
    return f"{count} images{'' if checked else ', without a checksum: an older program wrote them'}"


def _pictures(at: _Set) -> str:
    from PIL import Image

    folder = at.folder / "assets" / at.name
    shown = [path for path in (folder / picture for picture in PICTURES) if path.is_file()]
    for path in shown:
        try:
            with warnings.catch_warnings(), Image.open(path, formats=["PNG"]) as picture:
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture.verify()  # reads it, and decodes nothing
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise FormatError(f"assets/{at.name}/{path.name} is no PNG picture") from error
    if not shown:
        raise FormatError(f"assets/{at.name}/preview.png is missing")
    return ", ".join(path.name for path in shown)


# Scores


def _scores(at: _Set) -> str:
    """The scores are of these images and this recipe, and follow from the single trainings."""
    if not at.files.scores.is_file():
        return "none"
    scores, info, recipe, source = at.scores, at.info, at.recipe, at.info.source
    _equal(
        {
            "the images that were scored": (scores.parquet_sha256, info.parquet_sha256),
            "the condense hash of scores.json": (scores.condense_hash, info.condense_hash),
            "the protocol hash of scores.json": (scores.protocol_hash, recipe.protocol_hash()),
            "the protocol of scores.json": (scores.protocol, recipe.evaluate.settled()),
            "the source of scores.json": (scores.fingerprint, source.fingerprint),
            "the class names of scores.json": (scores.class_names, source.class_names),
            "the models that condensed": (scores.condensed_by, [model.name for model in info.models]),
            "the name of scores.json": (scores.name, recipe.name),
            "the seed of scores.json": (scores.condense_seed, recipe.seed),
        }
    )
    # The published recipe says of a local source what it holds, not where it was. Older programs, whose files have no
    # checksum, hashed the path.
    if source.kind != "local" or b'"checksum"' in at.files.scores.read_bytes():
        due = recipe.without_paths(source).family_hash()
        _equal({"the family hash of scores.json": (scores.family_hash, due)})
    if scores.protocol.holdout is None:  # otherwise they are of other images, and no package takes them
        _equal({"the number of test images": (scores.test_count, source.test_count)})
        _equal({"the budgets": (scores.budgets, _budgets(scores, info))})
    said = _check_means(scores)
    if not at.packaged:
        _confusion(at)
        return said
    if scores.protocol.holdout is not None:
        raise FormatError("the scores are of held-out images of the train split, which are not for publishing")
    # The trainings that the Hub's viewer shows are those of scores.json.
    from hmdc_hub.store.parquet import iter_rows

    keys, cells = ["training_set", "model", "draw", "seed", "accuracy"], scores.cells
    path = at.folder / "scores" / f"{at.name}.parquet"
    for row, cell in zip(iter_rows(path, ["config", *keys], len(cells), ROW), cells, strict=True):
        there = row | {"training_set": FORMER_BASELINES.get(row["training_set"], row["training_set"])}
        if there != {"config": at.name} | {key: getattr(cell, key) for key in keys}:
            raise FormatError(f"scores/{at.name}.parquet does not have the trainings of scores.json")
    return said


def _other_scores(at: _Set) -> str:
    """Scores by another protocol follow from their trainings."""
    if not at.files.scores.is_file():
        return "none"
    said = _check_means(at.scores)
    _confusion(at)
    return said


def _check_means(scores: Scores) -> str:
    """Every training of the protocol is there once, its numbers can be, and the means follow from them."""
    metrics.check_trainings(scores)
    _check_shares(scores, [cell.accuracy for cell in scores.cells])
    for cell in scores.cells:
        if (cell.best is not None) != (scores.protocol.best_every is not None) or (cell.best or 1) < cell.accuracy:
            raise FormatError(f"a best look of {cell.best} beside an accuracy of {cell.accuracy}")
    classes, models = len(scores.class_names), [model.name for model in scores.protocol.models]
    shape = {name: {model: classes for model in row if model != metrics.MEAN} for name, row in scores.table.items()}
    found = {name: {model: len(values) for model, values in row.items()} for name, row in scores.per_class.items()}
    _equal({"the accuracies of single classes": (found, shape)})
    for name, row in scores.per_class.items():
        for model, values in row.items():
            mean = scores.table[name][model].mean
            if not 0 <= min(values) <= mean + 1e-9 or not mean - 1e-9 <= max(values) <= 1:
                raise FormatError(f"the accuracies of single classes of {model} on {name} do not have the mean {mean}")
    sets = list(scores.table)
    _equal({"the training sets": (sorted({cell.training_set for cell in scores.cells}), sorted(sets))})
    for what, summary in metrics.summarise(scores.cells, sets, models, scores.condensed_by).items():
        _follows(what, getattr(scores, what), summary)
    return f"{len(scores.cells)} trainings{_check_soft_labels(scores)}, every mean and interval computed again"


def _check_soft_labels(scores: Scores) -> str:
    """The same for trainings on soft labels, which are there if the protocol asks for them."""
    protocol, soft, models = scores.protocol, scores.soft_labels, [model.name for model in scores.protocol.models]
    _equal({"whether there are soft labels": (soft is not None, protocol.soft_labels.teacher != "none")})
    if soft is None:
        return ""
    sets = [(name, draw) for name, draw in protocol.training_sets() if name in metrics.SOFT_SETS]
    due = [(name, draw, model, seed) for name, draw in sets for model in models for seed in range(protocol.seeds)]
    for cells in (soft.cells, soft.unaugmented):
        there = [(cell.training_set, cell.draw, cell.model, cell.seed) for cell in cells]
        _equal({"the trainings on soft labels": (sorted(there), sorted(due))})
        _check_shares(scores, [cell.accuracy for cell in cells])
    _equal({"the students of teachers": (sorted(soft.teachers), sorted(models))})
    _check_shares(scores, list(soft.teachers.values()))
    again = metrics.summarise_soft_labels(scores.cells, soft.cells, soft.unaugmented, models)
    for what, summary in again.items():
        _follows(what, getattr(soft, what), summary)
    return f" and {2 * len(due)} on soft labels"


def _check_shares(scores: Scores, accuracies: Sequence[float]) -> None:
    """Accuracies are whole counts of the images that were scored on."""
    for accuracy in accuracies:
        right = accuracy * scores.test_count
        if abs(right - round(right)) > 1e-6 * scores.test_count:
            raise FormatError(f"an accuracy of {accuracy} is no share of {scores.test_count} images")


def _budgets(scores: Scores, info: ArtifactInfo) -> dict[str, Budget]:
    """Say what budgets follow from what is in the package: images as many as it has, or as the source has."""
    pixels, counts = info.source.channels * info.source.size**2, info.source.train_counts
    chosen = sum(min(info.ipc, count) for count in counts)
    decoded = Budget(stored=info.synthetic_images, images=info.training_images, bytes=info.synthetic_images * pixels)
    real = Budget(stored=chosen, images=chosen, bytes=chosen * pixels)
    whole = Budget(stored=sum(counts), images=sum(counts), bytes=sum(counts) * pixels)
    sizes = {"decoded": decoded, "chosen": real, "all": whole}
    due = {name: sizes[TRAINING_SETS[name].size] for name in (metrics.CONDENSED, *scores.protocol.baselines)}
    if metrics.adds_full(scores.protocol) and metrics.FULL in scores.table:
        due[metrics.FULL] = sizes["all"]
    if "exact" in due:
        due["exact"] = decoded.model_copy(update={"bytes": 4 * decoded.bytes})
    return due


def _follows(what: str, found: Any, wanted: Any) -> None:
    """Check every estimate in nested mappings."""
    if found is None or wanted is None:
        _equal({what: (found, wanted)})
    elif isinstance(wanted, Estimate):
        for key, value in wanted.model_dump().items():
            other = getattr(found, key)
            same = other is value if None in (other, value) else math.isclose(other, value, abs_tol=1e-9)
            if not same:
                raise FormatError(f"{what}: {key} is {other}, its trainings give {value}")
    else:
        found, wanted = dict(found), dict(wanted)  # mappings, or models with fields
        _equal({f"the keys of {what}": (sorted(found), sorted(wanted))})
        for key, value in wanted.items():
            _follows(f"{what}.{key}", found[key], value)


def _confusion(at: _Set) -> None:
    """Accuracies of single classes are those of the confusion matrices, where there are any."""
    if not at.files.confusion.is_file():
        return  # the next evaluation makes it
    counted, classes = read_confusion(at.files.confusion), len(at.scores.class_names)
    wanted = {(name, model): values for name, row in at.scores.per_class.items() for model, values in row.items()}
    _equal({"the matrices of confusion.safetensors": (sorted(counted), sorted(wanted))})
    for (name, model), values in wanted.items():
        what, matrix = f"of {name}/{model} in confusion.safetensors", counted[name, model]
        _equal({f"the shape {what}": (matrix.shape, (classes, classes))})
        _equal({f"the classes {what}": (metrics.class_accuracy(matrix), values)})


def _trainings(at: _Set) -> str:
    """Every line of finished trainings is as it was written."""
    lines = [line for path in sorted(at.folder.glob("cells*.jsonl")) for line in path.read_bytes().splitlines()]
    old, broken = 0, 0
    for line in lines:
        try:
            plain = json.loads(line)
            old += isinstance(plain, dict) and "checksum" not in plain
            broken += not isinstance(plain, dict) or ("checksum" in plain and not is_intact(plain))
        except (ValueError, RecursionError):
            broken += 1
    if broken:
        raise FormatError(f"{broken} of {len(lines)} lines of finished trainings are damaged; no evaluation uses them")
    return f"{len(lines)} lines{f', {old} without a checksum, which no evaluation uses' if old else ''}"


_OF_SETS = {"provenance": _provenance, "recipe": _recipe, "tensors": _tensors, "images": _images, "scores": _scores}
_OF_PACKAGES = {"files": _files, **_OF_SETS, "pictures": _pictures}
_OF_RUNS = {**_OF_SETS, "initialisation": _initialisation, "trainings": _trainings}
_OF_EVALUATIONS = {"scores": _other_scores, "trainings": _trainings}


# The card


def _card(folder: Path, names: list[str]) -> str:
    """The card's YAML block says of these configurations what their files say, and one configuration is the default."""
    path = folder / "README.md"
    if not path.is_file():
        raise FormatError("README.md is missing")
    block, body = split_card(read_card_text(path))
    if not block:
        raise FormatError("README.md has no YAML block that can be read")
    entries = entries_of(block, "configs")
    defaults = [entry.get("config_name") for entry in entries if entry.get("default") is True]
    if len(defaults) != 1:
        raise FormatError(f"the card names {len(defaults)} default configurations, not one")
    facts = [read_config(folder / name) for name in names]
    wanted = front_matter(facts, None, block)
    due = {"dataset_info": names, "configs": [*names, *([SCORES_CONFIG] if any(c.scores for c in facts) else [])]}
    for key, configs in due.items():
        there, by_name = _by_name(block, key), _by_name(wanted, key)
        for name in configs:
            _equal({f"{key} of {name} in the card": (there.get(name), by_name.get(name))})
    hmdc = block["hmdc"] = dict(block["hmdc"]) if isinstance(block.get("hmdc"), dict) else {}
    # What an older program wrote has other names.
    hmdc["configs"] = shown = {
        name: {ArtifactInfo.renamed.get(key, key): value for key, value in one.items()} if one else one
        for name, one in configs_of(block).items()
    }
    for name in names:
        _equal({f"hmdc.configs.{name} in the card": (shown.get(name), wanted["hmdc"]["configs"][name])})
    checksum, version = hmdc.pop("text_sha256", None), hmdc.get("format_version")
    if checksum is not None:  # a card of an older program has none
        _equal({"the SHA-256 of the card's text but for what is yours": (text_checksum(body), checksum)})
    if isinstance(version, int) and max((c.info.format_version for c in facts), default=1) <= version:
        hmdc["format_version"] = max(version, FORMAT_VERSION)  # what an older program wrote is in order
    if set(shown) == set(names):
        # Of some configurations alone nobody can tell what the rest of the card is to say. The first two were compared
        # above, the third is whatever somebody calls the set.
        for key in sorted(set(wanted) - {"configs", "dataset_info", "pretty_name"}):
            pair: list[Any] = [_in_any_order(one.get(key)) for one in (block, wanted)]
            if key == "tags":  # that a card of an older program does not have
                pair = [[tag for tag in tags or () if not _YOUNG_TAGS.fullmatch(tag)] for tags in pair]
            _equal({f"{key} in the card": (pair[0], pair[1])})
    return f"{len(entries)} configurations, default {defaults[0]}"


def _croissant(folder: Path, names: list[str]) -> str:
    """croissant.json names the images of these configurations with their hashes, and is as this program writes it."""
    try:
        plain = json.loads(read_card_text(folder / CROISSANT))
        listed = {file["@id"]: file["sha256"] for file in plain["distribution"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise FormatError(f"{CROISSANT} cannot be read") from error
    for name in names:
        path = f"{name}/{PARQUET}"
        due = next((file.sha256 for file in read_config(folder / name).manifest.files if file.path == path), None)
        _equal({f"the SHA-256 of {path} in {CROISSANT}": (listed.get(path), due)})
    every = read_facts(folder)
    if {one.info.hmdc_hub_version for one in every} == {__version__} and {one.name for one in every} == set(names):
        repo_id = str(plain.get("url") or "").removeprefix("https://huggingface.co/datasets/") or None
        due = json.loads(croissant(every, names[0], repo_id))
        for key in {*plain, *due} - {"name"}:  # which follows what somebody made the default on the Hub
            _equal({f"{key} in {CROISSANT}": (plain.get(key), due.get(key))})
    return f"{len(listed)} files, by the hashes of the manifests"


def _by_name(block: Mapping[str, Any], key: str) -> dict[str, Any]:
    listed = entries_of(block, key) if isinstance(block.get(key), list) else []
    return {str(one.get("config_name")): {k: v for k, v in one.items() if k != "default"} for one in listed}


def _in_any_order(value: Any) -> Any:
    """Sort lists of texts: people reorder them. A single text is a list of one, as the Hub reads it."""
    texts = [value] if isinstance(value, str) else value
    return sorted(texts) if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else value
