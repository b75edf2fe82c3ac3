"""The YAML block of a card: what the Hub and `datasets` read, our own facts under `hmdc`, and what others put there.

Written with a dumper of our own and not by huggingface_hub's DatasetCardData, which folds lines, leaves out keys that
are null, writes Python's tags for what `!!omap` gives, and cannot quote: readers of YAML 1.1 and 1.2 disagree about
which names are numbers.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml

from hmdc_hub.errors import NotFoundError
from hmdc_hub.publish.facts import PARQUET, ConfigFacts
from hmdc_hub.schema import FORMAT_VERSION, HUB_DATASET
from hmdc_hub.store.configs import SCORES_CONFIG, configs_of
from hmdc_hub.text import one_line

_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
_TAGS = ["dataset-condensation", "dataset-distillation", "hmdc", "hmdc-hub", "arxiv:2409.14538"]
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|0o[0-7]+")  # to readers of YAML 1.2
_JOINED = ("task_categories", "task_ids", "source_datasets", "tags")  # lists of ours that others may add to


class Quoted(str):
    """Text that the block always quotes."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write equal parts out: a card is read by people and by strict readers."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if isinstance(text, Quoted) or _NUMBER.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _kind in (str, Quoted):
    _Dumper.add_representer(_kind, _text)


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
    names = [config.name for config in configs]
    if default is not None and default not in names:
        raise NotFoundError(f"The package has no configuration {default!r}; it has {', '.join(names)}.")
    entries, default = _data_files(configs, default, previous)
    rows, name = sum(config.manifest.rows for config in configs), previous.get("pretty_name")
    if not isinstance(name, str) or not name.strip():  # one that somebody gave it stays
        name = f"{source_names(configs, default)} condensed with HMDC"
    hub_ids = dict.fromkeys(config.info.source.id for config in configs if config.info.source.kind == "hub")
    versions = [config.info.hmdc_hub_version for config in configs]
    block = {
        "pretty_name": Quoted(one_line(name)),
        **_license(configs, previous),
        "task_categories": ["image-classification"],
        "task_ids": ["multi-class-image-classification"],
        "size_categories": [next((name for bound, name in _SIZES if rows < bound), "n>10M")],
        "source_datasets": [Quoted(one_line(id)) for id in hub_ids],
        "tags": _TAGS,
        "configs": entries,
        "dataset_info": [*map(_dataset_info, configs), *_foreign(previous, "dataset_info", configs)],
        "hmdc": {
            "format_version": FORMAT_VERSION,
            "hmdc_hub_version": Quoted(max(versions, key=lambda text: [int(n) for n in re.findall(r"\d+", text)[:4]])),
            "configs": {config.name: _summary(config) for config in configs},
        },
    }
    for key in _JOINED:
        extra = previous.get(key)
        extra = extra if isinstance(extra, list) else [extra]
        block[key] = [*block[key], *(one for one in extra if isinstance(one, str) and one not in block[key])]
        if not block[key]:
            del block[key]
    ours = {*block, "license_name", "license_link"}
    return {key: value for key, value in previous.items() if key not in ours} | block


def _data_files(
    configs: Sequence[ConfigFacts], default: str | None, previous: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str]:
    """Say which files make a configuration, and which one is the default."""
    paths = {config.name: f"{config.name}/{PARQUET}" for config in configs}
    if any(config.scores for config in configs):
        paths[SCORES_CONFIG] = f"{SCORES_CONFIG}/*.parquet"
    entries: list[dict[str, Any]]
    entries = [{"config_name": name, "data_files": [{"split": "train", "path": path}]} for name, path in paths.items()]
    entries += _foreign(previous, "configs", configs)
    before = [
        entry.get("config_name", "default") for entry in _entries(previous, "configs") if entry.get("default") is True
    ]
    there = [entry.get("config_name", "default") for entry in entries]
    default = default or next((name for name in before[:1] if name in there and name != SCORES_CONFIG), configs[0].name)
    for entry in entries:
        entry.pop("default", None)
    entries[there.index(default)]["default"] = True
    return entries, default


def _entries(block: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """List what a card, which may be anybody's, has under `configs` or `dataset_info`."""
    found = block.get(key)
    if key == "dataset_info" and isinstance(found, Mapping):
        found = [{"config_name": "default"} | dict(found)]
    return [dict(entry) for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _foreign(previous: Mapping[str, Any], key: str, configs: Sequence[ConfigFacts]) -> list[dict[str, Any]]:
    """List the entries of a previous card that are not about configurations of ours."""
    ours = {config.name for config in configs} | set(configs_of(previous))
    if any(config.scores for config in configs) or isinstance(previous.get("hmdc"), Mapping):
        ours.add(SCORES_CONFIG)
    return [entry for entry in _entries(previous, key) if entry.get("config_name", "default") not in ours]


@cache
def _known() -> dict[str, Any]:
    return tomllib.loads((resources.files("hmdc_hub.publish") / "templates" / "known.toml").read_text("utf-8"))


def known_source(source_id: str) -> dict[str, str]:
    """Look a well-known source up by its id in recipes: its `name` and `bibtex`; empty if it is not one of them."""
    return next((source for source in _known()["source"] if source_id in source["ids"]), {})


def source_names(configs: Sequence[ConfigFacts], default: str) -> str:
    """Name the sources for a title, that of the default configuration first."""
    ordered = sorted(configs, key=lambda config: config.name != default)
    return " and ".join(dict.fromkeys(source_name(config) for config in ordered))


def source_name(config: ConfigFacts) -> str:
    """Name a source as its authors do if it is well known, else by its id."""
    return known_source(config.info.source.id).get("name") or one_line(config.info.source.id)


def license_of(config: ConfigFacts) -> str:
    """Say under which licence the source is: as the recipe says, else as the source says, else `unknown`."""
    return one_line(config.recipe.publish.license or config.info.source.license or "") or "unknown"


def _license(configs: Sequence[ConfigFacts], previous: Mapping[str, Any]) -> dict[str, Any]:
    """Carry the licences of the sources over, and those that somebody gave to other parts of the repository.

    One that the Hub has no id for goes under `other` with its own name, and a link to a source that can be looked up.
    """
    hub_licenses = set(_known()["licenses"].split())
    given = previous.get("license")
    before = {one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)}
    summaries = configs_of(previous).values()
    from_us = {str(one.get("license", "unknown")) for one in summaries if isinstance(one, Mapping)}
    foreign = before - from_us - ({"other"} if from_us - hub_licenses else set())
    named = {license_of(config) for config in configs}
    strange = sorted(named - hub_licenses)
    ids = sorted((named & hub_licenses) | foreign | ({"other"} if strange else set()))
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


def is_hub_id(text: str) -> bool:
    """Tell whether text can stand in an address as the id of a Hub dataset."""
    return re.fullmatch(HUB_DATASET, text, re.ASCII) is not None


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
    texts = {
        "license": license_of(config),
        "source_fingerprint": info.source.fingerprint,
        "condense_hash": info.condense_hash,
    } | ({"protocol_hash": config.scores.protocol_hash} if config.scores else {})
    numbers = ("ipc", "factor", "synthetic_images", "training_images")
    return {key: getattr(info, key) for key in numbers} | {key: Quoted(one_line(text)) for key, text in texts.items()}
