"""The YAML block of a card: what the Hub and `datasets` read, our own facts under `hmdc`, and what others put there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hmdc_hub.errors import NotFoundError
from hmdc_hub.publish.citations import known
from hmdc_hub.publish.facts import PARQUET, ConfigFacts
from hmdc_hub.publish.licenses import HUB_LICENSES
from hmdc_hub.report.text import one_line
from hmdc_hub.schema import FORMAT_VERSION
from hmdc_hub.store.configs import SCORES_CONFIG

_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
_TAGS = ["dataset-condensation", "dataset-distillation", "hmdc", "hmdc-hub", "arxiv:2409.14538"]
_JOINED = ("task_categories", "task_ids", "source_datasets", "tags")
"""Lists of ours that others may add to."""


class Quoted(str):
    """Text that the block always quotes: readers of YAML 1.1 and 1.2 disagree about what is a number."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write equal parts out: a card is read by people and by strict readers."""
        return True


_Dumper.add_representer(Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def dump(block: Mapping[str, Any]) -> str:
    """Write the block as YAML, keys in their order, one line per text."""
    return yaml.dump(dict(block), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20, indent=2)


def front_matter(configs: Sequence[ConfigFacts], default: str | None, previous: Mapping[str, Any]) -> dict[str, Any]:
    """Make the block.

    Args:
        configs: Every configuration of ours, the smallest first.
        default: The default one; None: what the previous card says if that is still there, else the smallest.
        previous: Block of the card that is replaced; empty if there is none. What is not ours is carried over.

    Returns:
        Keys in the order of the card.

    Raises:
        NotFoundError: There is no configuration called `default`.
    """
    foreign = _foreign(previous, "configs", configs)
    names = [config.name for config in configs]
    if default is not None and default not in names:
        raise NotFoundError(f"The package has no configuration {default!r}; it has {', '.join(names)}.")
    before = next(
        (str(c.get("config_name", "default")) for c in _entries(previous, "configs") if c.get("default") is True), None
    )
    still = {*names, *(str(entry.get("config_name", "default")) for entry in foreign)}
    default = default or (before if before in still else names[0])
    block = {
        "pretty_name": _pretty_name(configs, default, previous),
        **_license(configs, previous),
        "task_categories": ["image-classification"],
        "task_ids": ["multi-class-image-classification"],
        "size_categories": [_size(sum(config.manifest.rows for config in configs))],
        "source_datasets": _hub_sources(configs),
        "tags": _TAGS,
        "configs": _data_files(configs, foreign, default),
        "dataset_info": [*map(_dataset_info, configs), *_foreign(previous, "dataset_info", configs)],
        "hmdc": {
            "format_version": FORMAT_VERSION,
            "hmdc_hub_version": Quoted(max((c.info.hmdc_hub_version for c in configs), key=_version)),
            "configs": {config.name: _summary(config) for config in configs},
        },
    }
    for key in _JOINED:
        block[key] = _joined(block[key], previous.get(key))
        if not block[key]:
            del block[key]
    ours = {*block, "license_name", "license_link"}
    return {key: value for key, value in previous.items() if key not in ours} | block


def _entries(block: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """List what a card, which may be anybody's, has under `configs` or `dataset_info`."""
    found = block.get(key)
    if key == "dataset_info" and isinstance(found, Mapping):
        found = [{"config_name": "default"} | dict(found)]
    return [dict(entry) for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _foreign(previous: Mapping[str, Any], key: str, configs: Sequence[ConfigFacts]) -> list[dict[str, Any]]:
    """List the entries of a previous card that are not about configurations of ours."""
    hmdc = previous.get("hmdc")
    earlier = hmdc.get("configs") if isinstance(hmdc, Mapping) else None
    ours = {config.name for config in configs} | set(earlier if isinstance(earlier, Mapping) else {})
    ours |= {SCORES_CONFIG} if any(config.scores for config in configs) or isinstance(hmdc, Mapping) else set()
    return [entry for entry in _entries(previous, key) if entry.get("config_name", "default") not in ours]


def _data_files(
    configs: Sequence[ConfigFacts], foreign: Sequence[dict[str, Any]], default: str
) -> list[dict[str, Any]]:
    """Say which files make a configuration; exactly one is the default."""
    entries: list[dict[str, Any]] = [
        {"config_name": config.name, "data_files": [{"split": "train", "path": f"{config.name}/{PARQUET}"}]}
        for config in configs
    ]
    if any(config.scores for config in configs):
        entries.append(
            {"config_name": SCORES_CONFIG, "data_files": [{"split": "train", "path": f"{SCORES_CONFIG}/*.parquet"}]}
        )
    entries += [{key: value for key, value in entry.items() if key != "default"} for entry in foreign]
    for entry in entries:
        if entry.get("config_name", "default") == default:
            entry["default"] = True
            break
    return entries


def _pretty_name(configs: Sequence[ConfigFacts], default: str, previous: Mapping[str, Any]) -> str:
    """Name the dataset; a name that somebody gave it stays."""
    given = previous.get("pretty_name")
    if isinstance(given, str) and given.strip():
        return Quoted(one_line(given))
    return Quoted(f"{source_names(configs, default)} condensed with HMDC")


def source_names(configs: Sequence[ConfigFacts], default: str) -> str:
    """Name the sources for a title, that of the default configuration first."""
    ordered = sorted(configs, key=lambda config: config.name != default)
    return " and ".join(dict.fromkeys(source_name(config) for config in ordered))


def source_name(config: ConfigFacts) -> str:
    """Name a source as its authors do if it is well known, else by its id."""
    entry = known(config.info.source.id)
    return entry.name if entry else one_line(config.info.source.id)


def license_of(config: ConfigFacts) -> str:
    """Say under which licence the source is: as the recipe says, else as the source says, else `unknown`."""
    return one_line(config.recipe.publish.license or config.info.source.license or "") or "unknown"


def _license(configs: Sequence[ConfigFacts], previous: Mapping[str, Any]) -> dict[str, Any]:
    """Carry the licences of the sources over, and those that somebody gave to other parts of the repository.

    One that the Hub has no id for goes under `other` with its own name, and a link to a source that can be looked up.
    """
    named = {license_of(config) for config in configs}
    strange = sorted(named - HUB_LICENSES)
    ids = sorted((named & HUB_LICENSES) | _foreign_licenses(previous) | ({"other"} if strange else set()))
    block: dict[str, Any] = {"license": ids[0] if len(ids) == 1 else ids}
    if strange:
        slug = re.sub(r"[^a-z0-9.+-]+", "-", " ".join(strange).lower()).strip("-")
        block["license_name"] = Quoted(slug or "see-source")
        source = next(c.info.source for c in configs if license_of(c) in strange)
        if source.kind == "hub" and is_hub_id(source.id):
            block["license_link"] = Quoted(f"https://huggingface.co/datasets/{source.id}")
    elif "other" in ids:
        block |= {key: previous[key] for key in ("license_name", "license_link") if key in previous}
    return block


def _foreign_licenses(previous: Mapping[str, Any]) -> set[str]:
    """Find the licences in a previous card that no configuration of ours brought there."""
    given = previous.get("license")
    listed = {one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)}
    hmdc = previous.get("hmdc")
    earlier = hmdc.get("configs") if isinstance(hmdc, Mapping) else None
    summaries = earlier.values() if isinstance(earlier, Mapping) else []
    ours = {str(one.get("license", "unknown")) for one in summaries if isinstance(one, Mapping)}
    return listed - ours - ({"other"} if ours - HUB_LICENSES else set())


def is_hub_id(text: str) -> bool:
    """Tell whether text can stand in an address as the id of a Hub dataset."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text, re.ASCII) is not None


def _hub_sources(configs: Sequence[ConfigFacts]) -> list[str]:
    sources = [config.info.source for config in configs]
    return [Quoted(one_line(id)) for id in dict.fromkeys(source.id for source in sources if source.kind == "hub")]


def _joined(ours: list[str], theirs: Any) -> list[str]:
    """Add what others put into a list of ours, behind it."""
    extra = theirs if isinstance(theirs, list) else [theirs]
    return [*ours, *(one for one in extra if isinstance(one, str) and one not in ours)]


def _size(rows: int) -> str:
    return next((name for bound, name in _SIZES if rows < bound), "n>10M")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:4])


def _dataset_info(config: ConfigFacts) -> dict[str, Any]:
    """Repeat what the parquet's footer says; anything else here would silently override the data."""
    names = {Quoted(label): Quoted(name) for label, name in enumerate(config.manifest.class_names)}
    parquet = config.file(f"{config.name}/{PARQUET}")
    rows, size = config.manifest.rows, config.manifest.data_bytes
    return {
        "config_name": config.name,
        "features": [
            {"name": "image", "dtype": "image"},
            {"name": "label", "dtype": {"class_label": {"names": names}}},
        ],
        "splits": [{"name": "train", "num_bytes": size, "num_examples": rows}],
        "download_size": parquet.size if parquet else size,
        "dataset_size": size,
    }


def _summary(config: ConfigFacts) -> dict[str, Any]:
    info = config.info
    summary: dict[str, Any] = {
        "ipc": info.ipc,
        "factor": info.factor,
        "stored_images": info.stored_images,
        "training_images": info.training_images,
        "license": Quoted(license_of(config)),
        "source_fingerprint": Quoted(one_line(info.source.fingerprint)),
        "condense_hash": Quoted(one_line(info.condense_hash)),
    }
    if config.scores:
        summary["protocol_hash"] = Quoted(one_line(config.scores.protocol_hash))
    return summary
