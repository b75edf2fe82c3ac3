"""`hmdc-hub compare`: scored sets side by side."""

from __future__ import annotations

import shlex
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import ROOT
from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, UsageError

if TYPE_CHECKING:
    from hmdc_hub.publish.facts import ConfigFacts
    from hmdc_hub.report.comparison import Comparison, ScoredSet
    from hmdc_hub.schema import Scores

EPILOG = """\b
hmdc-hub compare digits_ipc1 digits_ipc10
hmdc-hub compare mine someone/cifar10-hmdc:ipc10
hmdc-hub compare mine runs/theirs/evaluations/custom-1a2b3c4d
hmdc-hub compare mine mine-1a2b3c4d other --report comparison
                    two condensing seeds of one recipe against another recipe"""


@click.command(short_help="Put scored sets side by side.", epilog=EPILOG)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@ROOT
@click.option("--config", metavar="NAME", help="Configuration of packages and datasets.  [default: their default]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON document.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write a page, pictures, Markdown and JSON there.",
)
def compare(
    names: tuple[str, ...], root: Path, config: str | None, as_json: bool, markdown: bool, report: Path | None
) -> None:
    """Put scored sets side by side: the first against every other.

    NAME is a run, a directory with scores.json (such as one below `evaluations` in a run), a scores.json, a package
    folder, or a dataset on the Hub, owner/name or owner/name:config. All must have been scored on one source by one
    protocol. Sets of one recipe with several seeds are put together, and stand for their recipe.
    """
    if as_json and markdown:
        raise UsageError("--json and --markdown print the same in two ways.", hint="Give one of them.")
    from hmdc_hub.report.compared import comparison_document, comparison_markdown, comparison_text
    from hmdc_hub.report.comparison import compare as put_side_by_side

    found = put_side_by_side(_find(names, root, config))
    if report is not None:
        _write(report, found)
    if as_json:
        output.document(comparison_document(found))
    else:
        output.data(comparison_markdown(found) if markdown else comparison_text(found))
    if report is not None:
        output.hint(f"open {report / 'compare.html'}")
    elif not as_json:
        output.hint("--report DIR writes a page with pictures")


def _find(names: tuple[str, ...], root: Path, config: str | None) -> list[ScoredSet]:
    """Find what is here first: nothing is downloaded for a command that has a mistake in it."""
    from hmdc_hub.pipeline.adopt import require_hub_id
    from hmdc_hub.publish.facts import read_config
    from hmdc_hub.store.download import download_package

    here = [_local(name, root, config) for name in names]
    for name, one in zip(names, here, strict=True):
        if one is None:
            require_hub_id(name, root)
    found, configured = [], False  # whether --config had a say
    for name, one in zip(names, here, strict=True):
        if one is None:
            repo_id, _, own = name.partition(":")
            got = download_package(repo_id, config=own or config)
            facts = read_config(got.folder / got.configs[0])
            one = _of_config(got.folder, facts, repo_id.rpartition("/")[2], repo_id), not own
        found.append(one[0])
        configured |= one[1]
    if config is not None and not configured:
        raise UsageError("--config is about packages and datasets on the Hub.", hint="Leave it out.")
    return found


def _local(name: str, root: Path, config: str | None) -> tuple[ScoredSet, bool] | None:
    """Find scores on this machine, and say whether `--config` had a say in which; None: nothing of that name is here.

    Raises:
        NotFoundError: Something is, without scores.
        UsageError: A file is no scores.json.
    """
    base, _, own = name.partition(":")
    places = [path for path in (Path(name), root / name) if path.exists()]
    for path in places:
        file = path / "scores.json" if path.is_dir() else path
        if file.is_file():
            return _of_file(file), False
        if any(path.glob("*/manifest.json")):
            return _of_package(path, config), True
    if own and any(Path(base).glob("*/manifest.json")):
        return _of_package(Path(base), own), True
    if not places:
        return None
    path = places[0]
    if others := sorted(str(file.parent) for file in path.glob("evaluations/*/scores.json")):
        hint = f"Name what was scored by other protocols: {', '.join(others)}."
    elif (path / "info.json").is_file():
        hint = _evaluate(_quoted(path))
    else:
        hint = f"`hmdc-hub runs ls --root {root}` lists the runs."
    raise NotFoundError(f"there are no scores in {path}.", hint=hint)


def _of_file(file: Path) -> ScoredSet:
    """Read a scores.json; what was scored is called by its directory."""
    from hmdc_hub.report.comparison import ScoredSet
    from hmdc_hub.store.files import read_scores

    try:
        scores = read_scores(file)
    except FormatError as error:
        if file.name == "scores.json" or isinstance(error, NewerFormatError):
            raise
        raise UsageError(f"{file} is no scores.json.", hint="Name the directory that scores.json is in.") from error
    folder, place = file.parent, file.parent.resolve()
    label, target = place.name if file.name == "scores.json" else file.stem, _quoted(folder)
    if (folder / "manifest.json").is_file():
        label, target = f"{_package_name(folder.parent)}:{label}", f"{_quoted(folder.parent)} --config {label}"
    elif place.parent.name == "evaluations":
        # Its own name says the protocol, which is that of all: called by its run.
        label, target = place.parent.parent.name, _quoted(normpath(folder / ".." / ".."))
    _check_images(folder, scores, target)
    if scores.condense_hash is None:
        target = "FILE --recipe RECIPE"
    return ScoredSet(label, scores, target, _quoted(file))


def _of_package(package: Path, config: str | None) -> ScoredSet:
    from hmdc_hub.pipeline.adopt import chosen_config

    return _of_config(package, chosen_config(package, config), _package_name(package), _quoted(package))


def _of_config(package: Path, facts: ConfigFacts, label: str, target: str) -> ScoredSet:
    from hmdc_hub.report.comparison import ScoredSet

    target = f"{target} --config {facts.name}"
    if facts.scores is None:
        raise NotFoundError(f"{label} has no scores of {facts.name}.", hint=_evaluate(target))
    _check_images(package / facts.name, facts.scores, target)
    return ScoredSet(f"{label}:{facts.name}", facts.scores, target, _quoted(package / facts.name / "scores.json"))


def _check_images(folder: Path, scores: Scores, target: str) -> None:
    """Refuse scores that lie beside other images than they are about."""
    from hmdc_hub.store.files import read_info

    if (folder / "info.json").is_file() and read_info(folder / "info.json").parquet_sha256 != scores.parquet_sha256:
        raise UsageError(f"the scores in {folder} are of other images than those there.", hint=_evaluate(target))


def _package_name(package: Path) -> str:
    place = package.resolve()
    return place.parent.name if place.name == "package" else place.name


def _evaluate(target: str) -> str:
    return f"`hmdc-hub evaluate {target}` scores it."


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def _write(folder: Path, found: Comparison) -> None:
    """Write the report; pictures of an earlier one that this one does not have go away."""
    from hmdc_hub.report.compared import comparison_document, comparison_html, comparison_markdown
    from hmdc_hub.report.plots import pictures
    from hmdc_hub.store.files import write_bytes_atomic, write_json_atomic, write_text_atomic

    drawn = pictures(found, "svg")
    for kind, files in (("svg", drawn), ("png", pictures(found, "png"))):
        for name in ("transfer", "differences", "budget"):
            path = folder / f"{name}.{kind}"
            if name in files:
                write_bytes_atomic(path, files[name])
            else:
                path.unlink(missing_ok=True)
    write_text_atomic(folder / "compare.md", comparison_markdown(found))
    write_json_atomic(folder / "compare.json", comparison_document(found))
    write_text_atomic(folder / "compare.html", comparison_html(found, drawn))
