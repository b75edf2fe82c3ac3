"""`hmdc-hub verify`: check a published set, a package or a run again, down to the last byte."""

from __future__ import annotations

from pathlib import Path

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON, ROOT
from hmdc_hub.errors import FormatError, NotFoundError, UsageError
from hmdc_hub.text import count

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
@JSON
def verify(target: str, root: Path, config: str | None, revision: str | None, as_json: bool) -> None:
    """Check TARGET again: a dataset on the Hub, a package folder, or a run.

    Every hash, count and class name; that pixels, tensors and scores belong together; that the means follow from the
    single trainings; that the card says what the files say. Of a run also the images it began with and its finished
    trainings. Exit status 1 if anything is not as it must be.
    """
    from hmdc_hub.pipeline.target import find_target
    from hmdc_hub.publish.verify import verify as check
    from hmdc_hub.publish.verify import verify_run

    found = find_target(target, root)
    found.refuse(config=config, revision=revision)
    place, config = found.path, found.config or config
    if found.kind == "file":
        raise UsageError(f"{place} is a file.", hint="Name the run or the package folder that it is in.")
    if found.kind == "run":
        findings = verify_run(found.run("info.json"))
    elif found.kind == "hub":
        from hmdc_hub.store.hub import download_package
        from hmdc_hub.temporary import TemporaryFolder

        # A cache of its own: what counts is what the Hub serves now, not what was right once.
        with TemporaryFolder() as cache:
            got = download_package(
                str(place), config=config, revision=revision, everything=True, cache=cache, check=False
            )
            output.talk(f"{place.as_posix()} at commit {got.commit}")
            findings = check(got.folder, list(got.configs))
    else:
        if config is not None and not (place / config / "manifest.json").is_file():
            names = ", ".join(sorted(path.parent.name for path in place.glob("*/manifest.json")))
            raise NotFoundError(f"{place} has no configuration {config!r}; it has {names or 'none'}.")
        findings = check(place, None if config is None else [config])
    wrong = [finding for finding in findings if not finding.ok]
    rows = [[f.config or "-", f.check, "ok" if f.ok else "FAIL", f.detail] for f in findings]
    output.emit(
        as_json,
        lambda: {"target": target, "ok": not wrong, "checks": [vars(finding) for finding in findings]},
        lambda: output.columns(["CONFIG", "CHECK", "", "WHAT"], rows),
    )
    if wrong:
        raise FormatError(
            f"{target} is not in order: {count(len(wrong), 'check')} of {len(findings)} failed.",
            hint="\n".join(dict.fromkeys(finding.step for finding in wrong if finding.step)) or AUTHOR,
        )
    if not as_json:
        output.talk(f"all {len(findings)} checks passed")
