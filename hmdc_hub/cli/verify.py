"""`hmdc-hub verify`: check a published set, a package or a run again, down to the last byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import ROOT
from hmdc_hub.errors import FormatError, NotFoundError, UsageError

if TYPE_CHECKING:
    from hmdc_hub.publish.verify import Finding

AUTHOR = "Do not train on it; its author can push the run it came from again."
EPILOG = """\b
hmdc-hub verify someone/cifar10-hmdc
hmdc-hub verify someone/cifar10-hmdc --revision ipc10-1a2b3c4d
hmdc-hub verify cifar10-hmdc       a folder, as `hmdc-hub pull` leaves it
hmdc-hub verify digits_ipc1        a run: its own files, and its package"""


@click.command(short_help="Check a published set, a package or a run again.", epilog=EPILOG)
@click.argument("target")
@ROOT
@click.option("--config", metavar="NAME", help="Only this configuration.  [default: all]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a published set.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as one JSON document.")
def verify(target: str, root: Path, config: str | None, revision: str | None, as_json: bool) -> None:
    """Check TARGET again: a dataset on the Hub, a package folder, or a run.

    Every hash, count and class name; that pixels, tensors and scores belong together; that the means follow from the
    single trainings; that the card says what the files say. Of a run also the images it began with and its finished
    trainings. Exit status 1 if anything is not as it must be.
    """
    from hmdc_hub.publish.verify import verify as check
    from hmdc_hub.publish.verify import verify_run
    from hmdc_hub.store.rundir import RunDir

    place = _place(target, root)
    if place is not None and revision is not None:
        raise UsageError(f"{place} is a folder here: --revision belongs to datasets on the Hub.", hint="Leave it out.")
    if place is not None and _is_run(place):
        if config is not None:
            raise UsageError(f"{place} is a run: --config belongs to packages.", hint="Leave it out.")
        if not (place / "info.json").is_file():
            raise NotFoundError(
                f"{place} is not completely condensed.",
                hint="`hmdc-hub condense` with its recipe and --resume does that.",
            )
        findings = verify_run(RunDir(place))
    elif place is not None:
        if config is not None and not (place / config / "manifest.json").is_file():
            names = ", ".join(sorted(path.parent.name for path in place.glob("*/manifest.json")))
            raise NotFoundError(f"{place} has no configuration {config!r}; it has {names or 'none'}.")
        findings = check(place, None if config is None else [config])
    else:
        from hmdc_hub.pipeline.adopt import require_hub_id
        from hmdc_hub.store.download import download_package
        from hmdc_hub.temporary import TemporaryFolder

        require_hub_id(target, root)
        # A cache of its own: what counts is what the Hub serves now, not what was right once.
        with TemporaryFolder() as temporary:
            got = download_package(
                target, config=config, revision=revision, everything=True, cache=temporary, check=False
            )
            output.talk(f"{target} at commit {got.commit}")
            findings = check(got.folder, list(got.configs))
    _report(target, findings, as_json)


def _place(target: str, root: Path) -> Path | None:
    """Find the run or the folder that a path or the name of a run means; None: it can only be a dataset on the Hub."""
    return next((path for path in (Path(target), root / target) if path.is_dir()), None)


def _is_run(path: Path) -> bool:
    from hmdc_hub.store.rundir import is_run

    # The folder of a configuration has a recipe and an info.json, too, and a manifest.
    return (is_run(path) or (path / "info.json").is_file()) and not (path / "manifest.json").is_file()


def _report(target: str, findings: list[Finding], as_json: bool) -> None:
    wrong = [finding for finding in findings if not finding.ok]
    if as_json:
        checks = [vars(finding) for finding in findings]
        output.document({"target": target, "ok": not wrong, "checks": checks})
    else:
        rows = [[f.config or "-", f.check, "ok" if f.ok else "FAIL", f.detail] for f in findings]
        output.data(output.columns(["CONFIG", "CHECK", "", "WHAT"], rows))
    if wrong:
        count = "1 check" if len(wrong) == 1 else f"{len(wrong)} checks"
        raise FormatError(
            f"{target} is not in order: {count} of {len(findings)} failed.",
            hint="\n".join(dict.fromkeys(finding.step for finding in wrong if finding.step)) or AUTHOR,
        )
    if not as_json:
        output.talk(f"all {len(findings)} checks passed")
