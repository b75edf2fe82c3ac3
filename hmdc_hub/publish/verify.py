"""Checking a package again: every hash, count, class name, score and the card. Reads a folder, asks no network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hmdc_hub.catalog import read_published_recipe
from hmdc_hub.errors import FormatError, HmdcError, NewerFormatError
from hmdc_hub.publish.facts import PARQUET, ConfigFacts, read_config
from hmdc_hub.publish.front_matter import front_matter
from hmdc_hub.publish.verify_scores import check_scores, equal
from hmdc_hub.schema import Manifest
from hmdc_hub.store.configs import read_card_text, split_card
from hmdc_hub.store.files import read_info, read_record, sha256_file
from hmdc_hub.store.links import refuse_links

PICTURES = ("preview.png", "scores.png")


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        config: What it was about; empty: the card.
        check: files, provenance, recipe, tensors, images, scores, pictures or card.
        ok: Whether all is as it must be.
        detail: What was looked at, or what is wrong.
    """

    config: str
    check: str
    ok: bool
    detail: str


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
        findings += [_run(name, check, look, folder) for check, look in _CHECKS.items()]
    return [*findings, _run("", "card", lambda where, _: _card(where, names), folder)]


def _run(name: str, check: str, look: Callable[[Path, str], str], folder: Path) -> Finding:
    try:
        return Finding(name, check, True, look(folder, name))
    except NewerFormatError:
        raise
    except HmdcError as error:
        return Finding(name, check, False, error.message.replace(f"{folder}/", ""))


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


def _provenance(folder: Path, name: str) -> str:
    """info.json names these very files, and its counts follow from one another."""
    info = read_info(folder / name / "info.json")
    equal("condensed.safetensors", sha256_file(folder / name / "condensed.safetensors"), info.tensors_sha256)
    equal(PARQUET, sha256_file(folder / name / PARQUET), info.parquet_sha256)
    classes = len(info.source.class_names)
    equal("the number of stored images", info.stored_images, classes * info.ipc)
    equal("the number of training images", info.training_images, classes * info.ipc * info.factor**2)
    equal("the number of class counts", len(info.source.train_counts), classes)
    equal("the number of distinct class names", len(set(info.source.class_names)), classes)
    return f"{info.ipc} stored per class = {info.ipc * info.factor**2} training images, {classes} classes"


def _recipe(folder: Path, name: str) -> str:
    """The recipe is plain data, and the one that the hashes are of."""
    recipe, info = read_published_recipe(folder / name / "recipe.yaml"), read_info(folder / name / "info.json")
    equal("publish.config", recipe.publish.config, name)
    equal("ipc and factor", (recipe.condense.ipc, recipe.condense.factor), (info.ipc, info.factor))
    equal("source.id", recipe.source.id, info.source.id)
    equal("the protocol hash", recipe.protocol_hash(), info.protocol_hash)
    if recipe.source.id.startswith("local:"):
        return "plain data; its source was local, so the condense hash cannot be computed again"
    equal("the condense hash", recipe.condense_hash(), info.condense_hash)
    return f"condense hash {info.condense_hash[:12]}, protocol hash {info.protocol_hash[:12]}"


def _tensors(folder: Path, name: str) -> str:
    """The exact floats can be read, and their header says what info.json says."""
    from hmdc_hub.store.condensed import read_condensed, training_shape  # late: torch

    info = read_info(folder / name / "info.json")
    training_shape(info, folder / name / "condensed.safetensors")
    images, _, header = read_condensed(folder / name / "condensed.safetensors")
    source = info.source
    pairs = {
        "class names": (header.class_names, source.class_names),
        "ipc and factor": ((header.ipc, header.factor), (info.ipc, info.factor)),
        "mean and std": ((header.mean, header.std), (source.mean, source.std)),
        "condense hash": (header.condense_hash, info.condense_hash),
        "shape": (tuple(images.shape), (info.stored_images, source.channels, source.size, source.size)),
    }
    for what, (found, wanted) in pairs.items():
        equal(f"{what} of condensed.safetensors", found, wanted)
    return f"{' x '.join(map(str, images.shape))}, in [0, 1]"


def _images(folder: Path, name: str) -> str:
    """The parquet is the decoded floats rounded to 8 bits, with the class names of the provenance."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from hmdc_hub import pack
    from hmdc_hub.store.condensed import read_classes, training_shape
    from hmdc_hub.store.parquet import iter_parquet, read_class_names, to_uint8

    path, info = folder / name / PARQUET, read_info(folder / name / "info.json")
    manifest = read_record(folder / name / "manifest.json", Manifest)
    tensors = folder / name / "condensed.safetensors"
    rows = iter_parquet(path, training_shape(info, tensors))
    first = next(rows, None)  # nothing else of the file is asked for before its footer was compared with info.json
    footer = pq.read_metadata(path)
    size = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    equal("rows and bytes in manifest.json", (manifest.rows, manifest.data_bytes), (footer.num_rows, size))
    equal("the class names of the parquet", read_class_names(path), info.source.class_names)
    equal("the class names of manifest.json", manifest.class_names, info.source.class_names)
    rows = chain([] if first is None else [first], rows)
    for label, stored in enumerate(read_classes(tensors)):
        decoded = to_uint8(pack.decode(stored, info.factor))
        shown, labels = zip(*islice(rows, len(decoded)), strict=True)
        if set(labels) != {label}:
            raise FormatError("the labels are not those of the stored images")
        # One step of 255 apart is what another processor's rounding can do.
        apart = decoded.short() - torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)
        if int(apart.abs().max()) > 1:
            raise FormatError(f"the pixels are not the decoded tensors: {int(apart.abs().max())} of 255 apart")
    return f"{info.training_images} images, the decoded tensors in 8 bits"


def _pictures(folder: Path, name: str) -> str:
    from PIL import Image

    shown = [path for path in (folder / "assets" / name / picture for picture in PICTURES) if path.is_file()]
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


_CHECKS: Mapping[str, Callable[[Path, str], str]] = {
    "files": _files,
    "provenance": _provenance,
    "recipe": _recipe,
    "tensors": _tensors,
    "images": _images,
    "scores": check_scores,
    "pictures": _pictures,
}


def _card(folder: Path, names: list[str]) -> str:
    """The card's YAML block says of these configurations what their files say, and one configuration is the default."""
    path = folder / "README.md"
    if not path.is_file():
        raise FormatError("README.md is missing")
    block, _ = split_card(read_card_text(path))
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
    return f"{len(entries)} configurations, default {defaults[0]}"


def _due(facts: list[ConfigFacts], key: str) -> Iterator[str]:
    yield from (config.name for config in facts)
    if key == "configs" and any(config.scores for config in facts):
        yield "scores"


def _by_name(entries: Any, key: str) -> dict[str, Any]:
    found = entries if isinstance(entries, list) else []
    return {str(entry.get(key)): entry for entry in found if isinstance(entry, dict)}


def _bare(entry: Any) -> Any:
    return {key: value for key, value in entry.items() if key != "default"} if isinstance(entry, dict) else entry
