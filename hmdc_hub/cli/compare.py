"""`hmdc-hub compare`: scored sets side by side."""

from __future__ import annotations

import shlex
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON, ROOT
from hmdc_hub.errors import FormatError, NewerFormatError, NotFoundError, UsageError

if TYPE_CHECKING:
    from hmdc_hub.pipeline.target import Target
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
@JSON
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

    NAME is a run (of several sizes each is a set), a directory with scores.json (such as one below `evaluations` in a
    run), a scores.json, a package folder, or a dataset on the Hub, owner/name or owner/name:config. All must have been
    scored on one source by one protocol. Sets of one recipe with several seeds are put together, and stand for their
    recipe.
    """
    if as_json and markdown:
        raise UsageError("--json and --markdown print the same in two ways.", hint="Give one of them.")
    from hmdc_hub.pipeline.target import find_target
    from hmdc_hub.report.compared import comparison_document, comparison_markdown, comparison_text
    from hmdc_hub.report.comparison import compare as put_side_by_side

    targets = [find_target(name, root) for name in names]
    if config is not None and not any(one.kind in ("package", "hub") and not one.config for one in targets):
        raise UsageError("--config is about packages and datasets on the Hub.", hint="Leave it out.")
    # What is here goes first: nothing is downloaded for a command that has a mistake in it.
    order = sorted(range(len(targets)), key=lambda place: targets[place].kind == "hub")
    sets = {place: [_scored(one, config, root) for one in _sizes(targets[place])] for place in order}
    found = put_side_by_side([one for place in range(len(targets)) for one in sets[place]])
    if report is not None:
        _write(report, found)
    text = comparison_markdown if markdown else comparison_text
    output.emit(as_json, lambda: comparison_document(found), lambda: text(found))
    if report is not None:
        output.hint(f"open {report / 'compare.html'}")
    elif not as_json:
        output.hint("--report DIR writes a page with pictures")


def _sizes(found: Target) -> list[Target]:
    """List a target for each size of a run of several."""
    from hmdc_hub.store.rundir import RunDir

    return [found._replace(path=size.path) for size in RunDir(found.path).sizes] if found.kind == "run" else [found]


def _scored(found: Target, config: str | None, root: Path) -> ScoredSet:
    """Read the scores of a target, with the command that scores it again; there may be none: a NotFoundError."""
    from hmdc_hub.report.comparison import ScoredSet
    from hmdc_hub.store.files import read_scores
    from hmdc_hub.store.rundir import RunDir

    if found.kind in ("package", "hub"):
        package, facts = found.open(config)
        place = package.resolve()
        name = found.path.name if found.kind == "hub" else (place.parent if place.name == "package" else place).name
        label, target = f"{name}:{facts.name}", f"{_quoted(found.path)} --config {facts.name}"
        if facts.scores is None:
            raise NotFoundError(f"{name} has no scores of {facts.name}.", hint=_evaluate(target))
        _check_images(package / facts.name, facts.scores, target)
        return ScoredSet(label, facts.scores, target, _quoted(package / facts.name / "scores.json"))
    folder = found.path if found.kind != "file" else found.path.parent
    file = found.path if found.kind == "file" else folder / "scores.json"
    if not file.is_file():
        hint = f"`hmdc-hub runs ls --root {root}` lists the runs."
        if others := sorted(str(other.parent) for other in folder.glob("evaluations/*/scores.json")):
            hint = f"Name what was scored by other protocols: {', '.join(others)}."
        elif found.kind == "run":
            hint = _evaluate(_quoted(folder))
        raise NotFoundError(f"there are no scores in {folder}.", hint=hint)
    try:
        scores = read_scores(file)
    except FormatError as error:
        if found.kind != "file" or isinstance(error, NewerFormatError):
            raise
        raise UsageError(f"{file} is no scores.json.", hint="Name the directory that scores.json is in.") from error
    place, target = folder.resolve(), _quoted(folder)
    label = file.stem if found.kind == "file" else RunDir(place).name
    if place.parent.name == "evaluations" and found.kind != "file":
        # Its own name says the protocol, which is that of all: called by its run.
        label, target = RunDir(place.parent.parent).name, _quoted(normpath(folder / ".." / ".."))
    _check_images(folder, scores, target)
    if scores.condense_hash is None:
        target = "FILE --recipe RECIPE"
    return ScoredSet(label, scores, target, _quoted(file))


def _check_images(folder: Path, scores: Scores, target: str) -> None:
    """Refuse scores that lie beside other images than they are about."""
    from hmdc_hub.store.files import read_info

    if (folder / "info.json").is_file() and read_info(folder / "info.json").parquet_sha256 != scores.parquet_sha256:
        raise UsageError(f"the scores in {folder} are of other images than those there.", hint=_evaluate(target))


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
