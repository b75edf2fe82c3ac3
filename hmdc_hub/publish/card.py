"""The card (README.md): a pure function of the package's small files. No network, no torch, no datasets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from hmdc_hub import __version__
from hmdc_hub.catalog import dump_recipe
from hmdc_hub.errors import NotFoundError
from hmdc_hub.publish.facts import PARQUET, ConfigFacts, read_facts
from hmdc_hub.publish.licenses import HUB_LICENSES
from hmdc_hub.report.tables import table_markdown
from hmdc_hub.report.text import escape_markdown, one_line
from hmdc_hub.schema import FORMAT_VERSION

_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]


class _Quoted(str):
    """Text that the YAML block always quotes: readers of YAML 1.1 and 1.2 disagree about what is a number."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def render(
    package: Path, *, repo_id: str | None = None, default: str | None = None, previous: str | None = None
) -> str:
    """Write the card of a package.

    Args:
        package: The folder; only the small files of each configuration are read (`read_facts`).
        repo_id: Where it is published, such as `someone/cifar10-hmdc`; None: `your-name/<publish.name>`.
        default: Configuration that `load_dataset(repo)` gives; None: the smallest.

    Returns:
        README.md: YAML block and Markdown, ending in a newline.

    Raises:
        NotFoundError: There is no configuration in the package, or none called `default`.
        FormatError: A file is damaged or of a newer format version.
    """
    configs = read_facts(package)
    names = [config.name for config in configs]
    default = names[0] if default is None else default
    if default not in names:
        raise NotFoundError(f"The package has no configuration {default!r}; it has {', '.join(names)}.")
    main = configs[names.index(default)]
    block = yaml.dump(
        front_matter(configs, main), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20, indent=2
    )
    text = (
        _environment()
        .get_template("card.md.jinja")
        .render(
            main=_view(main),
            configs=[_view(config) for config in configs],
            repo_id=repo_id or f"your-name/{main.recipe.publish.name}",
            version=__version__,
            **_source_view(main),
        )
    )
    return f"---\n{block}---\n\n{text}"


def front_matter(configs: Sequence[ConfigFacts], main: ConfigFacts) -> dict[str, Any]:
    """Make the YAML block: what the Hub reads, and our own facts under `hmdc`.

    Args:
        configs: All configurations.
        main: The default one of them.
    """
    sources = dict.fromkeys(config.info.source.id for config in configs if config.info.source.kind == "hub")
    data_files: list[dict[str, Any]] = [
        {
            "config_name": config.name,
            "data_files": [{"split": "train", "path": f"{config.name}/{PARQUET}"}],
            **({"default": True} if config is main else {}),
        }
        for config in configs
    ]
    if any(config.scores for config in configs):
        scores = {"config_name": "scores", "data_files": [{"split": "train", "path": "scores/*.parquet"}]}
        data_files.append(scores)
    return {
        "pretty_name": _Quoted(f"{one_line(main.info.source.id)} condensed with HMDC"),
        **_license(configs),
        "task_categories": ["image-classification"],
        "task_ids": ["multi-class-image-classification"],
        "size_categories": [_size(sum(config.manifest.rows for config in configs))],
        **({"source_datasets": [_Quoted(one_line(source)) for source in sources]} if sources else {}),
        "tags": ["dataset-condensation", "dataset-distillation", "hmdc", "hmdc-hub", "arxiv:2409.14538"],
        "configs": data_files,
        "dataset_info": [_dataset_info(config) for config in configs],
        "hmdc": {
            "format_version": FORMAT_VERSION,
            "hmdc_hub_version": main.info.hmdc_hub_version,
            "configs": {config.name: _summary(config) for config in configs},
        },
    }


def _license(configs: Sequence[ConfigFacts]) -> dict[str, Any]:
    """Carry the source's licence over; a licence the Hub has no id for goes under its own name."""
    names = sorted({license_of(config) for config in configs})
    if all(name in HUB_LICENSES for name in names):
        return {"license": names[0] if len(names) == 1 else names}
    slug = re.sub(r"[^a-z0-9.+-]+", "-", " ".join(names).lower()).strip("-")
    return {"license": "other", "license_name": _Quoted(slug or "see-source")}


def license_of(config: ConfigFacts) -> str:
    """Say under which licence the source is: as the recipe says, else as the source says, else `unknown`."""
    return config.recipe.publish.license or config.info.source.license or "unknown"


def _size(rows: int) -> str:
    return next((name for bound, name in _SIZES if rows < bound), "n>10M")


def _dataset_info(config: ConfigFacts) -> dict[str, Any]:
    """Repeat what the parquet's footer says; anything else here would silently override the data."""
    names = {_Quoted(label): _Quoted(name) for label, name in enumerate(config.manifest.class_names)}
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
        "source_fingerprint": info.source.fingerprint,
        "condense_hash": info.condense_hash,
    }
    if config.scores:
        summary["protocol_hash"] = config.scores.protocol_hash
    return summary


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hmdc_hub.publish"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown, not HTML: what strangers wrote goes through the filter `md`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escape_markdown
    environment.filters["code"] = lambda text: f"`{one_line(text).replace('`', '')}`"
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
    info = config.info
    recipe = dump_recipe(config.recipe).rstrip()
    return {
        "name": config.name,
        "info": info,
        "recipe": config.recipe,
        "scores": config.scores,
        "classes": len(info.source.class_names),
        "stored_per_class": info.ipc,
        "training_per_class": info.training_images // len(info.source.class_names),
        "stored_size": _bytes(config, "condensed.safetensors"),
        "parquet_size": _bytes(config, PARQUET),
        "table": table_markdown(config.scores).rstrip() if config.scores else "",
        "recipe_text": recipe,
        # A longer fence than any in the text, so that a description with one stays inside.
        "fence": "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", recipe)), default=0)),
        "memory": f"{info.peak_memory_bytes / 2**30:.1f} GiB",
        "blocks": 3 if info.source.size >= 8 else 2,
    }


def _bytes(config: ConfigFacts, name: str) -> str:
    file = config.file(f"{config.name}/{name}")
    size = file.size if file else 0
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _source_view(main: ConfigFacts) -> dict[str, Any]:
    """Gather what the template says about the source."""
    source = main.info.source
    kinds = {
        "hub": f"[{escape_markdown(source.id)}](https://huggingface.co/datasets/{source.id})",
        "local": f"a local dataset ({escape_markdown(source.id)})",
    }
    return {
        "source": source,
        "source_text": kinds.get(source.kind, escape_markdown(source.id)),
        "license": license_of(main),
        "train_count": sum(source.train_counts),
        "mean": [round(value, 4) for value in source.mean],
        "std": [round(value, 4) for value in source.std],
    }
