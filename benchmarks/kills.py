"""Kill the adopting of a package, fill its disk, damage logs, and look at what the next try says.

    python -m benchmarks.kills [--no-adopt] [--logs 60] [--seed 0]

`hmdc-hub evaluate PACKAGE --run-dir D` is killed, or finds a full disk, at each file operation of adopting;
log.jsonl of a killed run is damaged before `condense --resume`. Real commands, in forks of this process, on the tiny
recipe of the tests. The exit status says whether everything is right at the end of the next try.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

import hmdc_hub.condenser
import hmdc_hub.evaluator
import hmdc_hub.pipeline.estimate
import hmdc_hub.pipeline.evaluation
import hmdc_hub.pipeline.target
import hmdc_hub.publish
import hmdc_hub.report.scored  # noqa: F401  (imported once, here, for all forks)
from hmdc_hub.cli.main import run
from hmdc_hub.store.rundir import RunDir
from tests.cli.tiny import TEXT
from tests.killing import KILLED, Ended, Fault, forked

WRONG = ("Traceback", "This is a bug")


def evaluate(package: Path, place: Path, fault: Fault = "none", at: int = 0) -> Ended:
    command = ["evaluate", str(package), "--run-dir", str(place), "--workers", "1", "--device", "cpu"]
    return forked(lambda: run(command), place, fault, at)


def adopted(package: Path, place: Path) -> bool:
    made = next(package.glob("*/info.json")).parent
    names = ("info.json", "condensed.safetensors", "scores.json")
    return RunDir(place).state() == "finished" and all(
        (place / name).read_bytes() == (made / name).read_bytes() for name in names
    )


def told(ended: Ended) -> str:
    """Give the line that counts: an error with its next step, or the comparison with the published scores."""
    lines = ended.said.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("error:")), None)
    if start is not None:
        return " ".join(lines[start : start + 2])
    return next((line for line in lines if line.startswith("All ")), lines[-1] if lines else "")


def adopting(package: Path, folder: Path) -> bool:
    """Print a row for every operation and fault; says whether all is right."""
    operations = evaluate(package, folder / "d").operations
    last = next(i for i, name in enumerate(operations, 1) if re.fullmatch(r"rename .*\.info\.json\.\d+\.\S+", name))
    shutil.rmtree(folder / "d")
    click.echo(f"adopting: {last} file operations\n\noperation | fault | that try | the next try | right at its end")
    good = True
    for fault in ("kill", "full"):
        for at in range(1, last + 1):
            place = folder / "d"
            first, then = evaluate(package, place, fault, at), evaluate(package, place)
            right = then.status == 0 and adopted(package, place) and not any(w in first.said + then.said for w in WRONG)
            right = right and first.status == (KILLED if fault == "kill" else first.status)
            what = re.sub(r"\.\d+\.hmdc-tmp", ".hmdc-tmp", operations[at - 1])
            said = "killed" if fault == "kill" else f"{first.status}: {told(first)}".replace(str(folder), "")
            click.echo(f"{what} | {fault} | {said} | {then.status}: {told(then)} | {'yes' if right else 'NO'}")
            good = good and right
            shutil.rmtree(place)
    return good


def damages(chance: random.Random) -> dict[str, Callable[[bytes], bytes]]:
    def spot(log: bytes) -> int:
        return chance.randrange(len(log))

    def changed(log: bytes, new: bytes) -> bytes:
        lines = log.splitlines(keepends=True)
        lines.insert(chance.randrange(len(lines) + 1), new)
        return b"".join(lines)

    def flipped(log: bytes) -> bytes:
        data = bytearray(log)
        data[spot(log)] ^= 1 << chance.randrange(8)
        return bytes(data)

    return {
        "a bit flipped": flipped,
        "cut off": lambda log: log[: spot(log)],
        "its beginning gone": lambda log: log[spot(log) :],
        "random bytes": lambda log: chance.randbytes(chance.randrange(1, 5000)),
        "random bytes put in": lambda log: log[: (at := spot(log))] + chance.randbytes(50) + log[at:],
        "zeros": lambda log: log[: (at := spot(log))] + bytes(len(log) - at),
        "no object": lambda log: changed(log, chance.choice([b"[1, 2]\n", b"7\n", b"null\n", b'"done"\n'])),
        "no number": lambda log: changed(
            log, chance.choice([b'{"done": "2"}\n', b'{"done": null}\n', b'{"done": {}}\n'])
        ),
        "deeply nested": lambda log: changed(log, b"[" * 200_000 + b"\n"),
        "a number of 10,000 digits": lambda log: changed(log, b'{"done": ' + b"9" * 10_000 + b"}\n"),
        "a line of 5 MB": lambda log: changed(log, b"x" * 5_000_000 + b"\n"),
        "a folder": lambda log: b"",
    }


def resuming(recipe: Path, folder: Path, trials: int, seed: int) -> bool:
    """Print a row for every kind of damage; says whether all is right."""
    command = ["condense", str(recipe), "--no-evaluate", "--workers", "1", "--device", "cpu", "--resume", "--run-dir"]
    whole = forked(lambda: run([*command, str(folder / "whole")]), folder / "whole")
    at = next(i for i, name in enumerate(whole.operations, 1) if "000002-" in name)
    forked(lambda: run([*command, str(folder / "half")]), folder / "half", "kill", at)
    wanted, chance = (folder / "whole" / "condensed.safetensors").read_bytes(), random.Random(seed)
    kinds, rows, good = damages(chance), dict[str, list[int]](), True
    said: dict[str, set[str]] = {}
    for trial in range(trials):
        kind = list(kinds)[trial % len(kinds)]
        place = RunDir(shutil.copytree(folder / "half", folder / "trial"))
        before = place.log.read_bytes()
        if kind == "a folder":
            place.log.unlink()
            place.log.mkdir()
        else:
            place.log.write_bytes(kinds[kind](before))
        ended = forked(lambda: run([*command, str(folder / "trial")]), place.path)
        lines = [json.loads(line) for line in place.log.read_bytes().splitlines()]
        steps = [line["done"] for line in lines]
        notes = [line for line in ended.said.splitlines() if "log.jsonl" in line]
        missing = {1, 2} - set(steps)  # those of before the checkpoint
        right = ended.status == 0 and place.condensed.read_bytes() == wanted and steps[-2:] == [3, 4]
        clean = not any(word in ended.said for word in WRONG)
        row = rows.setdefault(kind, [0, 0, 0, 0])
        for column, one in enumerate((True, right and clean, bool(notes), bool(missing) and not notes)):
            row[column] += one
        said.setdefault(kind, set()).update(re.sub(r"\d+ damaged lines?|-\d{9,}", "N", note) for note in notes)
        good = good and right and clean
        shutil.rmtree(place.path)
    click.echo("\ndamage to log.jsonl | trials | same bytes, status 0 | noted | steps lost without a note | note")
    for kind, (count, fine, noted, silent) in rows.items():
        click.echo(f"{kind} | {count} | {fine} | {noted} | {silent} | {'; '.join(sorted(said[kind]))}")
    return good


@click.command()
@click.option("--adopt/--no-adopt", default=True, show_default=True, help="The first table.")
@click.option("--logs", default=60, show_default=True, help="Damaged logs, for the second table; 0: without it.")
@click.option("--seed", default=0, show_default=True, help="Of the damage.")
def main(adopt: bool, logs: int, seed: int) -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "tiny.yaml"
        recipe.write_text(TEXT)
        good = True
        if adopt:
            options = ["--run-dir", str(folder / "run"), "--workers", "1", "--device", "cpu"]
            subprocess.run(
                [sys.executable, "-m", "hmdc_hub", "condense", str(recipe), *options], check=True, capture_output=True
            )
            good = adopting(folder / "run" / "package", folder)
        if logs:
            good = resuming(recipe, folder, logs, seed) and good
    sys.exit(not good)


if __name__ == "__main__":
    main()
