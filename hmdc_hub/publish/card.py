"""The card (README.md): a pure function of the package's small files. No network, no torch, no datasets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from hmdc_hub.catalog import dump_recipe
from hmdc_hub.errors import FormatError
from hmdc_hub.publish.facts import PARQUET, ConfigFacts, read_facts
from hmdc_hub.publish.front_matter import Quoted, dump, front_matter, is_hub_id, known_source, license_of, source_names
from hmdc_hub.report.document import escape_markdown
from hmdc_hub.report.tables import table_markdown
from hmdc_hub.schema import LOCAL, SourceInfo, sha256_of
from hmdc_hub.store.configs import split_card
from hmdc_hub.text import one_line

BEGIN = "<!-- Yours: what you write between this line and the next comment is kept by every push. -->"
END = "<!-- End of yours. -->"


def render(
    package: Path, *, repo_id: str | None = None, default: str | None = None, previous: str | None = None
) -> str:
    """Write the card of a package; rendering again with the result as `previous` gives the same card.

    Args:
        package: The folder; only the small files of each configuration are read (`read_facts`).
        repo_id: Where it is published, such as `someone/cifar10-hmdc`; None: `your-name/<publish.name>`.
        default: Configuration that `load_dataset(repo)` gives; None: the one of `previous` if it is still there, else
            the smallest.
        previous: The card that is there now. What others wrote is kept: the text between the two markers, keys and
            configurations that are not ours; of a card that is not ours, the whole text.

    Returns:
        README.md: YAML block and Markdown, ending in a newline.

    Raises:
        NotFoundError: There is no configuration in the package, or none called `default`.
        FormatError: A file is damaged or of a newer format version, lacks a fact, or the markers of `previous` are.
    """
    configs = read_facts(package)
    block, body = split_card(previous or "")
    top = front_matter(configs, default, block)
    chosen = next(entry.get("config_name") for entry in top["configs"] if entry.get("default"))
    main = next((config for config in configs if config.name == chosen), configs[0])
    template = _environment().get_template("card.md.jinja")
    try:
        text = template.render(
            title=source_names(configs, main.name),
            main=_view(main),
            configs=[_view(config) for config in configs],
            sources=_sources(configs),
            repo_id=repo_id or f"your-name/{main.recipe.publish.name}",
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

    Raises:
        FormatError: One of the markers is gone or there twice, so nobody can tell what is theirs.
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
    info, recipe = config.info, dump_recipe(config.recipe).rstrip()
    versions = {"hmdc-hub": info.hmdc_hub_version, **info.versions}
    return {
        "name": config.name,
        "info": info,
        "recipe": config.recipe,
        "scores": config.scores,
        "classes": len(info.source.class_names),
        "source_text": _linked(info.source),
        "training_per_class": info.training_images // len(info.source.class_names),
        "train_count": sum(info.source.train_counts),
        "mean": [round(value, 4) for value in info.source.mean],
        "std": [round(value, 4) for value in info.source.std],
        "stored_size": _bytes(config, "condensed.safetensors"),
        "parquet_size": _bytes(config, PARQUET),
        "table": table_markdown(config.scores).rstrip() if config.scores else "",
        "recipe_text": recipe,
        # A longer fence than any in the text, so that a description with one stays inside.
        "fence": "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", recipe)), default=0)),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "memory": f"{info.peak_memory_bytes / 2**30:.1f} GiB",
        "blocks": 3 if info.source.size >= 8 else 2,
    }


def _linked(source: SourceInfo) -> str:
    """Name a source with a link where it has a page."""
    if source.kind == "hub" and is_hub_id(source.id):
        return f"[{escape_markdown(source.id)}](https://huggingface.co/datasets/{source.id})"
    if source.kind == "local":
        return f"data on its author's disk ({escape_markdown(source.id.removeprefix(LOCAL))})"
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
