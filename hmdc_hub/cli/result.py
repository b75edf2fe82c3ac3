"""What a run directory holds once its parts are done, as text and as JSON. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hmdc_hub.cli.output import duration
from hmdc_hub.schema import ArtifactInfo, Scores
from hmdc_hub.store import RunDir, read_info, read_scores

Part = Literal["condense", "evaluate", "package"]


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        run: The directory.
        info: Provenance of the condensed set.
        scores: None if the run was not evaluated.
        package: The folder to publish or load; None if there is none.
        seconds: Wall time by part: condensing over all resumes, the others as far as they ran now.
        done: The parts that ran now; empty if everything was there.
    """

    run: RunDir
    info: ArtifactInfo
    scores: Scores | None
    package: Path | None
    seconds: dict[str, float] = field(default_factory=dict)
    done: tuple[Part, ...] = ()


def read_result(run: RunDir, seconds: dict[str, float] | None = None, done: tuple[Part, ...] = ()) -> Result:
    """Read what a run directory holds; condensing must be complete.

    Args:
        run: The directory.
        seconds: Wall time of the parts that ran now.
        done: Those parts.
    """
    info = read_info(run.info)
    state = run.state(verify=False)
    scores = read_scores(run.scores) if state in ("scored", "finished") else None
    packaged = state == "finished" or (scores is None and (run.package / "README.md").is_file())
    return Result(
        run=run,
        info=info,
        scores=scores,
        package=run.package if packaged else None,
        seconds={"condense": info.seconds} | {k: v for k, v in (seconds or {}).items() if k != "condense"},
        done=done,
    )


def result_text(result: Result) -> str:
    """Write what a run came to: directory, score table, gains, time."""
    from hmdc_hub.report.tables import table_text

    info = result.info
    lines = [
        f"run        {result.run.path}",
        f"condensed  {info.source.id}, {info.ipc} per class: {info.stored_images} stored images that hold "
        f"{info.training_images}",
    ]
    if result.scores is not None:
        lines += ["", table_text(result.scores)]
    spent = ", ".join(f"{part} {duration(seconds)}" for part, seconds in result.seconds.items())
    return "\n".join([*lines, f"time       {spent}"])


def result_document(result: Result) -> dict[str, Any]:
    """Write the same as plain data for `--json`."""
    scores = None
    if result.scores is not None:
        plain = result.scores.model_dump(mode="json")
        scores = {"table": plain["table"], "gain": plain["gain"]}
    return {
        "run": str(result.run.path),
        "condense_hash": result.info.condense_hash,
        "protocol_hash": result.info.protocol_hash,
        "scores": scores,
        "package": None if result.package is None else str(result.package),
        "seconds": result.seconds,
    }
