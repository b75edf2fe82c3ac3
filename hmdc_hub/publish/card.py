"""The card (README.md): a pure function of the package's small files. No network, no torch, no datasets.

Its YAML block is what the Hub and `datasets` read, with our own facts under `hmdc` and what others put there. It is
written with a dumper of our own and not by huggingface_hub's DatasetCardData, which folds lines, leaves out keys that
are null, writes Python's tags for what `!!omap` gives, and cannot quote: readers of YAML 1.1 and 1.2 disagree about
which names are numbers.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from hmdc_hub.catalog import dump_recipe, read_recipe_file
from hmdc_hub.errors import FormatError, NotFoundError
from hmdc_hub.report import soft_labels
from hmdc_hub.report.document import Section, escape_markdown, to_markdown
from hmdc_hub.report.headline import headline
from hmdc_hub.report.tables import table_markdown
from hmdc_hub.schema import (
    CONDENSED,
    FORMAT_VERSION,
    HUB_DATASET,
    LOCAL,
    PARQUET,
    ArtifactInfo,
    Manifest,
    PackagedFile,
    Recipe,
    Scores,
    SourceInfo,
    sha256_of,
)
from hmdc_hub.store.configs import SCORES_CONFIG, configs_of, entries_of, split_card
from hmdc_hub.store.files import read_info, read_record, read_scores
from hmdc_hub.text import one_line

BEGIN = "<!-- Yours: what you write between this line and the next comment is kept by every push. -->"
END = "<!-- End of yours. -->"

HMDC_BIBTEX = """\
@inproceedings{moon2024hmdc,
  title     = {Towards Model-Agnostic Dataset Condensation by Heterogeneous Models},
  author    = {Moon, Jun-Yeong and Kim, Jung Uk and Park, Gyeong-Moon},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2024},
  note      = {arXiv:2409.14538}
}"""
LONGEST = 300  # epochs of the card's loop at most: on few images without augmentation more change little

_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
_TAGS = ["synthetic", "dataset-condensation", "dataset-distillation", "hmdc", "hmdc-hub", "arxiv:2409.14538"]
IPC_TAG = re.compile(r"ipc-\d+")
# Names of a set that a card of ours had: one that somebody gave it is another.
_FORMER_NAME = re.compile(r".* condensed( with HMDC|, [\d, and]+ images? per class)?")
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|0o[0-7]+")  # to readers of YAML 1.2
_JOINED = ("task_categories", "task_ids", "source_datasets", "tags")  # lists of ours that others may add to


# What the card is made of


@dataclass(frozen=True)
class ConfigFacts:
    """One configuration of a package: its name, which is its folder's, and its small files; `scores` may be None."""

    name: str
    info: ArtifactInfo
    recipe: Recipe
    scores: Scores | None
    manifest: Manifest

    def file(self, name: str) -> PackagedFile | None:
        """Find a file of this configuration by its path in the package."""
        return next((file for file in self.manifest.files if file.path == name), None)


def read_facts(package: Path) -> list[ConfigFacts]:
    """Read every configuration of a package, smallest first; needs none of the large files."""
    facts = [read_config(path.parent) for path in package.glob("*/manifest.json")]
    if not facts:
        raise NotFoundError(f"{package} is no package: no folder in it has a manifest.json.")
    return sorted(facts, key=lambda config: (config.info.ipc, config.name))


def read_config(folder: Path) -> ConfigFacts:
    """Read one configuration by its folder."""
    scores = folder / "scores.json"
    return ConfigFacts(
        name=folder.name,
        info=read_info(folder / "info.json"),
        recipe=read_recipe_file(folder / "recipe.yaml"),
        scores=read_scores(scores) if scores.is_file() else None,
        manifest=read_record(folder / "manifest.json", Manifest),
    )


# The text


def render(
    package: Path, *, repo_id: str | None = None, default: str | None = None, previous: str | None = None
) -> str:
    """Write the card of a package from the small files of its configurations.

    Of the card that is there now, `previous`, what others wrote is kept: the text between the two markers, keys and
    configurations that are not ours; of a card that is not ours, the whole text. With the result as `previous`, the
    card is the same. `default` is the configuration that `load_dataset(repo)` gives; None: that of `previous` if it is
    still there, else the smallest. A FormatError if a fact is lacking or the markers of `previous` are damaged.
    """
    configs = read_facts(package)
    block, body = split_card(previous or "")
    top = front_matter(configs, default, block)
    chosen = next(entry.get("config_name") for entry in top["configs"] if entry.get("default"))
    main = next((config for config in configs if config.name == chosen), configs[0])
    template = _environment().get_template("card.md.jinja")
    try:
        text = template.render(
            title=card_title(configs, main.name),
            main=_view(main),
            configs=[_view(config) for config in configs],
            sources=_sources(configs),
            repo_id=repo_id,
            where=repo_id or ".",
            folder=f'"{repo_id}"' if repo_id else "os.getcwd()",  # `datasets` asks a path for its last part
            hmdc_bibtex=HMDC_BIBTEX,
            version=top["hmdc"]["hmdc_hub_version"],
            begin=BEGIN,
            yours=_hand_written(body, ours=isinstance(block.get("hmdc"), dict)),
            end=END,
        )
    except jinja2.UndefinedError as error:
        raise FormatError(f"The card of {package} lacks a fact that it must state: {error}.") from error
    top["hmdc"]["text_sha256"] = Quoted(text_checksum(text))
    return f"---\n{dump(top)}---\n\n{text}"


def text_checksum(body: str) -> str:
    """SHA-256 (hex) of a card's text without what people wrote between the two markers; line ends do not matter."""
    before, begin, rest = body.partition(BEGIN)
    _, end, after = rest.partition(END)
    lines = [line.rstrip(" \t\r") for line in [*before.split("\n"), begin, end, *after.split("\n")]]
    return sha256_of([line for line in lines if line])


def _hand_written(body: str, *, ours: bool) -> str:
    """Cut out what people wrote into a card: text between the markers, with the line ends at both sides.

    A FormatError if one of the markers is gone or there twice: nobody can tell what is theirs.
    """
    if not ours:
        kept = body.replace(BEGIN, "").replace(END, "").strip()
        return f"\n{kept}\n" if kept else "\n"
    counts = body.count(BEGIN), body.count(END)
    if counts == (0, 0):
        return "\n"
    if counts != (1, 1) or body.index(BEGIN) > body.index(END):
        raise FormatError(
            f"The card's two markers are damaged ({counts[0]} times the first, {counts[1]} times the second).",
            hint=f"Edit README.md on the Hub so that it has each of these lines once, in this order:\n{BEGIN}\n{END}",
        )
    return body[body.index(BEGIN) + len(BEGIN) : body.index(END)]


@cache  # it keeps the template that it compiled
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hmdc_hub.publish"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown, not HTML: what strangers wrote goes through the filters `md`, `code`, `word`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escape_markdown
    environment.filters["code"] = lambda text: f"`{one_line(text).replace('`', '')}`"
    environment.filters["word"] = lambda text: re.sub(r"[^A-Za-z0-9.+-]", "", text)
    environment.filters["duration"] = duration
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment


def duration(seconds: float) -> str:
    """Write a time for people: `42 s`, `12 min`, `3 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _view(config: ConfigFacts) -> dict[str, Any]:
    """Gather what the template says about one configuration."""
    # Late: what draws is imported with it, and nothing else of the card needs that.
    from hmdc_hub.report.scored import means_table

    scores = config.scores
    info, recipe = config.info, dump_recipe(config.recipe).rstrip()
    versions = {"hmdc-hub": info.hmdc_hub_version, **info.versions}
    return vars(config) | {
        "classes": len(info.source.class_names),
        "source_text": _linked(info.source),
        "training_per_class": info.training_images // len(info.source.class_names),
        "train_count": sum(info.source.train_counts),
        "mean": [round(value, 4) for value in info.source.mean],
        "std": [round(value, 4) for value in info.source.std],
        "stored_size": _bytes(config, "condensed.safetensors"),
        "parquet_size": _bytes(config, PARQUET),
        "formation": config.file(f"assets/{config.name}/formation.png") is not None,  # of younger programs
        "head": headline(scores) if scores else None,
        "means": to_markdown("", [Section("", [means_table(scores)])]).rstrip() if scores else "",
        "table": table_markdown(scores).rstrip() if scores else "",
        "soft_labels": soft_labels.markdown(scores).rstrip() if scores else "",
        "loop": _loop(config),
        "recipe_text": recipe,
        # A longer fence than any in the text, so that a description with one stays inside.
        "fence": "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", recipe)), default=0)),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "memory": f"{info.peak_memory_bytes / 2**30:.1f} GiB",
    }


def _loop(config: ConfigFacts) -> dict[str, Any]:
    """Choose what the card's loop trains: a ConvNet of the protocol, if it has one, and what that came to."""
    info, protocol, names = config.info, config.recipe.evaluate.settled(), ("depth", "width", "norm", "pooling")
    usual: dict[str, Any] = {"depth": 3, "width": 128, "norm": "instance", "pooling": "avg"}
    found = None
    for model in protocol.models:
        args = usual | {key: model.args[key] for key in names if key in model.args}
        plain = (model.source, model.id, args["norm"], args["pooling"]) == ("builtin", "convnet", "instance", "avg")
        if found is None and plain and model.input_size in (None, info.source.size):
            found, usual = model, args
    deepest = info.source.size.bit_length() - 1
    depth, width = min(int(usual["depth"]), deepest), int(usual["width"])
    expected = "not evaluated: no number to expect"
    if config.scores is not None:
        expected = "no network of the table below is like this one: no number to expect"
        if found is not None:
            mean = config.scores.table[CONDENSED][found.name]
            expected = (
                f"{found.name} came to {100 * mean.mean:.1f} below (n = {mean.n}), trained on augmented images for "
            )
            expected += protocol.length
    keys = config.recipe.source.model_dump(exclude_defaults=True)
    if info.source.kind == "local":
        keys["id"] = f"path/to/{readable_source(info.source)}"
    return {
        "width": width,
        "inputs": [info.source.channels, *[width] * (depth - 1)],
        "lr": found.lr.evaluate if found is not None else 0.01,
        "epochs": min(protocol.epochs, LONGEST),
        "expected": expected,
        # As Python writes it; no text of a stranger ends the string, the line or the block.
        "source": ",\n    ".join(f"{key}={ascii(value)}" for key, value in keys.items()).replace("`", "\\x60"),
    }


def page_of(source: SourceInfo) -> str:
    """Give the address of a source that is on the Hub; empty if it is not, or cannot stand in an address."""
    has_one = source.kind == "hub" and re.fullmatch(HUB_DATASET, source.id, re.ASCII)
    return f"https://huggingface.co/datasets/{source.id}" if has_one else ""


def _linked(source: SourceInfo) -> str:
    """Name a source with a link where it has a page."""
    if page := page_of(source):
        return f"[{escape_markdown(source.id)}]({page})"
    if source.kind == "local":
        return f"data on its author's disk ({escape_markdown(readable_source(source))})"
    return escape_markdown(source.id)


def _sources(configs: Sequence[ConfigFacts]) -> list[dict[str, Any]]:
    """List every source once, with its licence and citation and the configurations made from it."""
    found: dict[tuple[str, str, bool, bool], dict[str, Any]] = {}
    for config in configs:
        source, license = config.info.source, license_of(config)
        view = {
            "text": _linked(source),
            "license": license,
            "gated": source.gated,
            "private": source.private,
            "bibtex": known_source(source.id).get("bibtex", ""),
            "configs": [],
        }
        found.setdefault((source.id, license, source.gated, source.private), view)["configs"].append(config.name)
    return list(found.values())


def _bytes(config: ConfigFacts, name: str) -> str:
    file = config.file(f"{config.name}/{name}")
    if file is None:
        raise FormatError(f"The manifest of {config.name} does not list {name}.")
    return f"{file.size / 1e6:.1f} MB" if file.size >= 1e5 else f"{file.size / 1e3:.1f} kB"


# The YAML block


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
    """Make the block of all configurations of ours, the smallest first; arguments as those of `render`."""
    names = [config.name for config in configs]
    if default is not None and default not in names:
        raise NotFoundError(f"The package has no configuration {default!r}; it has {', '.join(names)}.")
    entries, default = _data_files(configs, default, previous)
    rows, name = sum(config.manifest.rows for config in configs), str(previous.get("pretty_name") or "")
    chosen = next((config for config in configs if config.name == default), configs[0])
    given = name.strip() and not _FORMER_NAME.fullmatch(name)
    if chosen.recipe.publish.title or not given:  # one that somebody gave it on the Hub stays
        name = card_title(configs, default)
    hub_ids = dict.fromkeys(config.info.source.id for config in configs if config.info.source.kind == "hub")
    versions = [config.info.hmdc_hub_version for config in configs]
    block = {
        "pretty_name": Quoted(one_line(name)),
        **_license(configs, previous),
        "task_categories": ["image-classification"],
        "task_ids": ["multi-class-image-classification"],
        "size_categories": [next((name for bound, name in _SIZES if rows < bound), "n>10M")],
        "source_datasets": [Quoted(one_line(id)) for id in hub_ids],
        "tags": [*_TAGS, *(f"ipc-{ipc}" for ipc in sorted({config.info.ipc for config in configs}))],
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
        others = (one for one in extra if isinstance(one, str) and not (key == "tags" and IPC_TAG.fullmatch(one)))
        block[key] = [*block[key], *(one for one in others if one not in block[key])]
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
        entry.get("config_name", "default") for entry in entries_of(previous, "configs") if entry.get("default") is True
    ]
    there = [entry.get("config_name", "default") for entry in entries]
    default = default or next((name for name in before[:1] if name in there and name != SCORES_CONFIG), configs[0].name)
    for entry in entries:
        entry.pop("default", None)
    entries[there.index(default)]["default"] = True
    return entries, default


def _foreign(previous: Mapping[str, Any], key: str, configs: Sequence[ConfigFacts]) -> list[dict[str, Any]]:
    """List the entries of a previous card that are not about configurations of ours."""
    ours = {config.name for config in configs} | set(configs_of(previous))
    if any(config.scores for config in configs) or isinstance(previous.get("hmdc"), Mapping):
        ours.add(SCORES_CONFIG)
    return [entry for entry in entries_of(previous, key) if str(entry.get("config_name", "default")) not in ours]


@cache
def _known() -> dict[str, Any]:
    return tomllib.loads((resources.files("hmdc_hub.publish") / "templates" / "known.toml").read_text("utf-8"))


def known_source(source_id: str) -> dict[str, str]:
    """Look a well-known source up by its id in recipes: its `name` and `bibtex`; empty if it is not one of them."""
    return next((source for source in _known()["source"] if source_id in source["ids"]), {})


def readable_source(source: SourceInfo) -> str:
    """Name a source as its authors do, or by what people read in its id."""
    if source.id.startswith(LOCAL):
        return one_line(source.id.removeprefix(LOCAL).rpartition("@")[0]) or "local data"
    return known_source(source.id).get("name") or one_line(source.id).rpartition(":")[2]


def card_title(configs: Sequence[ConfigFacts], default: str) -> str:
    """Say what a set is called: as the default configuration's recipe says, else by source and images per class."""
    first = sorted(configs, key=lambda config: config.name != default)
    if first[0].recipe.publish.title:
        return one_line(first[0].recipe.publish.title)
    names = dict.fromkeys(readable_source(config.info.source) for config in first)
    numbers = sorted({config.info.ipc for config in configs})
    listed = " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
    return f"{' and '.join(names)} condensed, {listed} image{'s' if numbers[-1] > 1 else ''} per class"


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
        if page := page_of(next(config.info.source for config in configs if license_of(config) in strange)):
            block["license_link"] = Quoted(page)
    elif "other" in ids:
        block |= {key: previous[key] for key in ("license_name", "license_link") if key in previous}
    return block


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
