"""Checking a package or a run again: every hash, count, class name, score and the card. Asks no network."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hmdc_hub.catalog import read_published_recipe, read_recipe_file
from hmdc_hub.errors import FormatError, HmdcError, NewerFormatError
from hmdc_hub.measures import class_accuracy
from hmdc_hub.publish.card import text_checksum
from hmdc_hub.publish.facts import PARQUET, ConfigFacts, read_config
from hmdc_hub.publish.front_matter import front_matter
from hmdc_hub.publish.verify_scores import check_means, check_parquet_of_scores, check_scores, equal
from hmdc_hub.schema import LOCAL, ArtifactInfo, Manifest, Recipe, Scores, is_intact
from hmdc_hub.store import RunDir
from hmdc_hub.store.configs import read_card_text, split_card
from hmdc_hub.store.files import read_info, read_record, read_scores, sha256_file
from hmdc_hub.store.links import refuse_links

PICTURES = ("preview.png", "scores.png")


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        config: What it was about: a configuration of a package, `evaluations/<name>` of a run; empty: the card, or the
            run itself.
        check: files, provenance, recipe, tensors, images, scores, pictures or card; of a run start and trainings, too.
        ok: Whether all is as it must be.
        detail: What was looked at, or what is wrong.
        step: What mends it; empty if that is not known.
    """

    config: str
    check: str
    ok: bool
    detail: str
    step: str = ""


class Packaged:
    """The files of one configuration of a package, called as those of a run.

    Args:
        folder: The package.
        name: The configuration.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, own = folder, name, folder / name
        self.recipe, self.condensed, self.parquet = own / "recipe.yaml", own / "condensed.safetensors", own / PARQUET
        self.info, self.scores, self.manifest = own / "info.json", own / "scores.json", own / "manifest.json"


SetFiles = RunDir | Packaged
"""What a run directory and a configuration of a package both have is found under the same names."""


def verify(folder: Path, configs: list[str] | None = None) -> list[Finding]:
    """Check a package.

    Args:
        folder: The package.
        configs: Which configurations; None: every one there is.

    Returns:
        All checks, those that failed included; at least one.

    Raises:
        NewerFormatError: A file is of a newer format version.
    """
    names = sorted(path.parent.name for path in folder.glob("*/manifest.json")) if configs is None else configs
    try:
        refuse_links(folder, names)
    except FormatError as error:  # nothing is read then: to read is to follow
        return [Finding("", "files", False, error.message.replace(f"{folder}/", ""))]
    findings = [Finding("", "card", False, f"{folder} has no configuration")] if not names else []
    for name in names:
        at = Packaged(folder, name)
        findings += [_looked(name, check, partial(look, at), folder) for check, look in _OF_PACKAGES.items()]
    findings.append(_looked("", "card", lambda: _card(folder, names), folder))
    # What messages advise is for the author, who has the run.
    return [replace(one, step="") for one in findings]


def verify_run(run: RunDir) -> list[Finding]:
    """Check a run: its own files, evaluations by other protocols, and its package if it has one.

    Args:
        run: Whose condensing is complete.

    Returns:
        All checks, those that failed included, each with a step that mends it.

    Raises:
        NewerFormatError: A file is of a newer format version.
    """
    found = [_looked("", check, partial(look, run), run.path) for check, look in _OF_RUNS.items()]
    found = [one if one.ok else replace(one, step=one.step or step_of(run, one.check)) for one in found]
    for folder in sorted(path for path in run.evaluations.glob("*") if path.is_dir()):
        at, name = RunDir(folder), f"{run.evaluations.name}/{folder.name}"
        again = f"`rm -r {shlex.quote(str(folder))}`, and evaluate by that protocol again."
        for check, look in (("scores", _other_scores), ("trainings", _trainings)):
            one = _looked(name, check, partial(look, at), run.path)
            found.append(one if one.ok else replace(one, step=again))
    if run.package.is_dir():
        again = f"`hmdc-hub package {shlex.quote(str(run.path))}` builds it again."
        found += [one if one.ok else replace(one, step=again) for one in verify(run.package)]
    return found


def step_of(run: RunDir, check: str) -> str:
    """Say what mends a run in which a check fails."""
    path = shlex.quote(str(run.path))
    if check == "scores":
        try:
            read_scores(run.scores)
        except FormatError:  # the evaluator finds that out, too, and puts them together from the trainings
            return f"`hmdc-hub evaluate {path}` makes them again."
        return f"`hmdc-hub evaluate {path} --fresh` trains and scores again."
    if check in ("start", "trainings"):
        name = run.start.name if check == "start" else "cells*.jsonl"
        return f"`rm {path}/{name}`: the next evaluation makes again what it needs of it."
    return (
        "`hmdc-hub condense` with its recipe and --resume makes it again."
        if check != "recipe" and not run.finished
        else "`hmdc-hub condense` with its recipe and --force makes it again."
    )


def _looked(config: str, check: str, look: Callable[[], str], folder: Path) -> Finding:
    try:
        return Finding(config, check, True, look())
    except NewerFormatError:
        raise
    except HmdcError as error:
        return Finding(config, check, False, error.message.replace(f"{folder}/", ""), error.hint)


def _files(folder: Path, name: str) -> str:
    """Every file that the manifest lists, and no other in the folders of this configuration."""
    manifest = read_record(folder / name / "manifest.json", Manifest)
    equal("the configuration in manifest.json", manifest.config, name)
    listed = {file.path: file for file in manifest.files}
    for path, file in listed.items():
        place = folder / path
        if not place.is_file():
            raise FormatError(f"{path} is missing")
        equal(f"the size of {path}", place.stat().st_size, file.size)
        equal(f"the SHA-256 of {path}", sha256_file(place), file.sha256)
    own = [*folder.glob(f"{name}/**/*"), *folder.glob(f"assets/{name}/**/*"), *folder.glob(f"scores/{name}.parquet")]
    there = {path.relative_to(folder).as_posix() for path in own if not path.is_dir()}
    strangers = sorted(there - set(listed) - {f"{name}/manifest.json"})
    if strangers:
        raise FormatError(f"{', '.join(strangers[:3])} is not in the manifest")
    for needed in (PARQUET, "condensed.safetensors", "recipe.yaml", "info.json"):
        if f"{name}/{needed}" not in listed:
            raise FormatError(f"{name}/{needed} is not in the manifest")
    return f"{len(listed)} files, every SHA-256"


def _provenance(at: SetFiles) -> str:
    """info.json names these very files, and its counts follow from one another."""
    info = read_info(at.info)
    equal("condensed.safetensors", sha256_file(at.condensed), info.tensors_sha256)
    equal(at.parquet.name, sha256_file(at.parquet), info.parquet_sha256)
    classes = len(info.source.class_names)
    equal("the number of stored images", info.stored_images, classes * info.ipc)
    equal("the number of training images", info.training_images, classes * info.ipc * info.factor**2)
    equal("the number of class counts", len(info.source.train_counts), classes)
    equal("the number of distinct class names", len(set(info.source.class_names)), classes)
    return f"{info.ipc} stored per class = {info.ipc * info.factor**2} training images, {classes} classes"


def _agree(recipe: Recipe, info: ArtifactInfo) -> None:
    """The recipe is the one that the set was made by, as far as the two say the same things."""
    equal("ipc and factor", (recipe.condense.ipc, recipe.condense.factor), (info.ipc, info.factor))
    equal("the seed", recipe.seed, info.seed)
    equal("the name", recipe.name, info.recipe_name)
    equal("the models", [model.name for model in recipe.pool], [model.name for model in info.models])
    equal("the protocol hash", recipe.protocol_hash(), info.protocol_hash)


def _hashes(info: ArtifactInfo) -> str:
    return f"condense hash {info.condense_hash[:12]}, protocol hash {info.protocol_hash[:12]}"


def _published_recipe(at: Packaged) -> str:
    """The recipe is plain data, and the one that the hashes are of."""
    recipe, info = read_published_recipe(at.recipe), read_info(at.info)
    equal("publish.config", recipe.publish.config, at.name)
    equal("source.id", recipe.source.id, info.source.id)
    _agree(recipe, info)
    if recipe.source.id.startswith(LOCAL):
        equal("the source's fingerprint", recipe.source.id.rpartition("@")[2], info.source.fingerprint[:16])
        return "plain data; its source was local, so the condense hash cannot be computed again"
    equal("the condense hash", recipe.condense_hash(), info.condense_hash)
    return _hashes(info)


def _own_recipe(run: RunDir) -> str:
    """The recipe of a run is the one that the hashes are of."""
    recipe, info = read_recipe_file(run.recipe), read_info(run.info)
    _agree(recipe, info)
    equal("the condense hash", recipe.condense_hash(), info.condense_hash)
    return _hashes(info)


def _tensors(at: SetFiles) -> str:
    """The exact floats can be read, and their header says what info.json says."""
    from hmdc_hub.store.condensed import read_classes, read_header, training_shape  # late: torch

    info = read_info(at.info)
    training_shape(info, at.condensed)
    header, _ = read_header(at.condensed)
    source = info.source
    pairs = {
        "class names": (header.class_names, source.class_names),
        "ipc and factor": ((header.ipc, header.factor), (info.ipc, info.factor)),
        "mean and std": ((header.mean, header.std), (source.mean, source.std)),
        "condense hash": (header.condense_hash, info.condense_hash),
    }
    for what, (found, wanted) in pairs.items():
        equal(f"{what} of condensed.safetensors", found, wanted)
    shape = (info.ipc, source.channels, source.size, source.size)
    for images in read_classes(at.condensed):
        equal("shape of a class in condensed.safetensors", tuple(images.shape), shape)
    return f"{info.stored_images} x {' x '.join(map(str, shape[1:]))}, in [0, 1]"


def _images(at: SetFiles) -> str:
    """The parquet is the decoded floats rounded to 8 bits, with the class names of the provenance."""
    import numpy as np
    import torch

    from hmdc_hub import pack
    from hmdc_hub.store.condensed import read_classes, training_shape
    from hmdc_hub.store.parquet import iter_parquet, read_class_names, to_uint8

    info = read_info(at.info)
    rows = iter_parquet(at.parquet, training_shape(info, at.condensed))
    first = next(rows, None)  # nothing else of the file is asked for before its footer was compared with info.json
    equal(f"the class names of {at.parquet.name}", read_class_names(at.parquet), info.source.class_names)
    rows = chain([] if first is None else [first], rows)
    for label, stored in enumerate(read_classes(at.condensed)):
        decoded = to_uint8(pack.decode(stored, info.factor))
        shown, labels = zip(*islice(rows, len(decoded)), strict=True)
        if set(labels) != {label}:
            raise FormatError("the labels are not those of the stored images")
        # One step of 255 apart is what another processor's rounding can do.
        apart = decoded.short() - torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)
        if int(apart.abs().max()) > 1:
            raise FormatError(f"the pixels are not the decoded tensors: {int(apart.abs().max())} of 255 apart")
    return f"{info.training_images} images, the decoded tensors in 8 bits"


def _published_images(at: Packaged) -> str:
    """The parquet is the decoded tensors, and manifest.json says of it what its footer says."""
    import pyarrow.parquet as pq

    looked = _images(at)
    manifest, footer = read_record(at.manifest, Manifest), pq.read_metadata(at.parquet)
    size = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    equal("rows and bytes in manifest.json", (manifest.rows, manifest.data_bytes), (footer.num_rows, size))
    equal("the class names of manifest.json", manifest.class_names, read_info(at.info).source.class_names)
    return looked


def _published_scores(at: Packaged) -> str:
    """The scores belong to these images, and their means follow from the single trainings."""
    if not at.scores.is_file():
        return "none"
    scores = check_scores(at.scores, read_info(at.info), read_published_recipe(at.recipe))
    if scores.protocol.holdout is not None:
        raise FormatError("the scores are of held-out images of the train split, which are not for publishing")
    check_parquet_of_scores(at.folder / "scores" / f"{at.name}.parquet", scores, at.name)
    return _SCORED.format(len(scores.cells))


_SCORED = "{} trainings, every mean and interval computed again"


def _own_scores(run: RunDir) -> str:
    """The scores of a run belong to its images, and accuracies of classes are those of the confusion matrices."""
    if not run.scores.is_file():
        return "none"
    scores = check_scores(run.scores, read_info(run.info), read_recipe_file(run.recipe))
    _confusion(run, scores)
    return _SCORED.format(len(scores.cells))


def _other_scores(where: RunDir) -> str:
    """Scores by another protocol follow from their trainings."""
    if not where.scores.is_file():
        return "none"
    scores = read_scores(where.scores)
    check_means(scores)
    _confusion(where, scores)
    return _SCORED.format(len(scores.cells))


def _confusion(where: RunDir, scores: Scores) -> None:
    from hmdc_hub.store.confusion import read_confusion

    if not where.confusion.is_file():
        return  # the next evaluation makes it
    counted, classes = read_confusion(where.confusion), len(scores.class_names)
    wanted = {(name, model): values for name, row in scores.per_class.items() for model, values in row.items()}
    equal("the matrices of confusion.safetensors", sorted(counted), sorted(wanted))
    for (name, model), values in wanted.items():
        equal(f"the shape of {name}/{model} in confusion.safetensors", counted[name, model].shape, (classes, classes))
        equal(f"the classes of {name}/{model} in confusion.safetensors", class_accuracy(counted[name, model]), values)


def _start(run: RunDir) -> str:
    """The starting images are as they were written."""
    from hmdc_hub.store.condensed import read_classes, read_header

    if not run.start.is_file():
        return "none"
    header, checked = read_header(run.start)
    equal("the condense hash of start.safetensors", header.condense_hash, read_info(run.info).condense_hash)
    count = sum(len(images) for images in read_classes(run.start))
    return f"{count} images{'' if checked else ', without a checksum: an older program wrote them'}"


def _trainings(where: RunDir) -> str:
    """Every line of finished trainings is as it was written."""
    lines = [line for path in sorted(where.path.glob("cells*.jsonl")) for line in path.read_bytes().splitlines()]
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


def _pictures(at: Packaged) -> str:
    from PIL import Image

    name, folder = at.name, at.folder / "assets" / at.name
    shown = [path for path in (folder / picture for picture in PICTURES) if path.is_file()]
    for path in shown:
        try:
            with warnings.catch_warnings(), Image.open(path, formats=["PNG"]) as picture:
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture.verify()  # reads it, and decodes nothing
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise FormatError(f"assets/{name}/{path.name} is no PNG picture") from error
    if not shown:
        raise FormatError(f"assets/{name}/preview.png is missing")
    return ", ".join(path.name for path in shown)


_OF_PACKAGES: Mapping[str, Callable[[Packaged], str]] = {
    "files": lambda at: _files(at.folder, at.name),
    "provenance": _provenance,
    "recipe": _published_recipe,
    "tensors": _tensors,
    "images": _published_images,
    "scores": _published_scores,
    "pictures": _pictures,
}

_OF_RUNS: Mapping[str, Callable[[RunDir], str]] = {
    "provenance": _provenance,
    "recipe": _own_recipe,
    "tensors": _tensors,
    "images": _images,
    "scores": _own_scores,
    "start": _start,
    "trainings": _trainings,
}


def _card(folder: Path, names: list[str]) -> str:
    """The card's YAML block says of these configurations what their files say, and one configuration is the default."""
    path = folder / "README.md"
    if not path.is_file():
        raise FormatError("README.md is missing")
    block, body = split_card(read_card_text(path))
    if not block:
        raise FormatError("README.md has no YAML block that can be read")
    listed = block.get("configs")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    defaults = [entry.get("config_name") for entry in entries if entry.get("default") is True]
    if len(defaults) != 1:
        raise FormatError(f"the card names {len(defaults)} default configurations, not one")
    facts = [read_config(folder / name) for name in names]
    wanted = front_matter(facts, None, block)
    for key, by in (("configs", "config_name"), ("dataset_info", "config_name")):
        there, due = _by_name(block.get(key), by), _by_name(wanted[key], by)
        for name in _due(facts, key):
            equal(f"{key} of {name} in the card", _bare(there.get(name)), _bare(due.get(name)))
    hmdc = block.get("hmdc")
    shown = hmdc.get("configs") if isinstance(hmdc, dict) else None
    for name in names:
        found = shown.get(name) if isinstance(shown, dict) else None
        equal(f"hmdc.configs.{name} in the card", found, wanted["hmdc"]["configs"][name])
    checksum = hmdc.pop("text_sha256", None) if isinstance(hmdc, dict) else None
    if checksum is not None:  # a card of an older program has none
        equal("the SHA-256 of the card's text but for what is yours", text_checksum(body), checksum)
    if isinstance(shown, dict) and set(shown) == set(names):
        # Of some configurations alone nobody can tell what the rest of the card is to say. The first two were compared
        # above, the third is whatever somebody calls the set.
        for key in sorted(set(wanted) - {"configs", "dataset_info", "pretty_name"}):
            equal(f"{key} in the card", _in_any_order(block.get(key)), _in_any_order(wanted[key]))
    return f"{len(entries)} configurations, default {defaults[0]}"


def _due(facts: list[ConfigFacts], key: str) -> Iterator[str]:
    yield from (config.name for config in facts)
    if key == "configs" and any(config.scores for config in facts):
        yield "scores"


def _by_name(entries: Any, key: str) -> dict[str, Any]:
    found = entries if isinstance(entries, list) else []
    return {str(entry.get(key)): entry for entry in found if isinstance(entry, dict)}


def _in_any_order(value: Any) -> Any:
    """Sort lists of texts: people reorder them. A single text is a list of one, as the Hub reads it."""
    texts = [value] if isinstance(value, str) else value
    return sorted(texts) if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else value


def _bare(entry: Any) -> Any:
    return {key: value for key, value in entry.items() if key != "default"} if isinstance(entry, dict) else entry
