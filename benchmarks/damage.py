"""Damage the files of a tiny run and of its package at random, and count what notices it.

    python -m benchmarks.damage [--trials 50] [--seed 0]

A digit of a text file becomes another, or a bit of any file is flipped; then the real command runs in this process. Of
every trial one of four things is said: `noticed` (refused, or said in a note, and nothing of it used), `harmless` (what
the file says is the same: white space, padding, a digit too many), `silent`, `traceback`. The exit status says whether
there was one of the last two.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from tests.cli.tiny import TEXT

RUN, PACKAGE, OWN = Path("runs/tiny"), Path("runs/tiny/package"), Path("runs/tiny/package/ipc1")


def command(*arguments: str) -> tuple[int, str]:
    """Run the program; gives exit status and everything that it said."""
    from hmdc_hub.cli.main import run

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = run(arguments)
    return status, said.getvalue()


def digit(data: bytes, chance: random.Random) -> bytes:
    """Make one digit another."""
    place = chance.choice([k for k, byte in enumerate(data) if 48 <= byte <= 57])
    other = chance.choice([d for d in b"0123456789" if d != data[place]])
    return data[:place] + bytes([other]) + data[place + 1 :]


def bit(data: bytes, chance: random.Random) -> bytes:
    """Flip one bit."""
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def meaning(path: Path) -> Any:
    """Read a file as its readers do, however it is written; None: nobody can."""
    from safetensors import safe_open

    from hmdc_hub.catalog import read_recipe_file
    from hmdc_hub.store.configs import read_card_text, split_card

    try:
        if path.suffix == ".json":
            return json.loads(path.read_bytes())
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_bytes().splitlines()]
        if path.suffix == ".yaml":
            text = path.read_text().splitlines()
            plain = Path("plain.yaml")  # without the comments, of which the checksum is one
            plain.write_text("\n".join(line for line in text if not line.startswith("#")))
            return read_recipe_file(plain)
        if path.suffix == ".md":
            block, body = split_card(read_card_text(path))
            return block | {"pretty_name": "whatever somebody calls it"}, body
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    except Exception:  # noqa: BLE001  (whatever a reader raises: nobody can read it)
        return None
    return path.read_bytes()


def refused(path: Path, good: Any, status: int, said: str) -> str:
    """Judge a command that is to refuse."""
    if "Traceback" in said:
        return "traceback"
    if status != 0:
        return "noticed"
    return "harmless" if good is not None and meaning(path) == good else "silent"


def scored_again(path: Path, good: Any, status: int, said: str, scores: bytes) -> str:
    """Judge an evaluation that is to come to the same scores, whatever it was given."""
    if "Traceback" in said:
        return "traceback"
    if status != 0:
        return "noticed"
    if (RUN / "scores.json").read_bytes() != scores:
        return "silent"
    return "noticed" if "checksum" in said or "damaged" in said else "harmless"


Damage = Callable[[bytes, random.Random], bytes]
CASES: list[tuple[str, Path, Damage, tuple[str, ...]]] = [
    *(
        (f"run: {name}", RUN / name, damage, arguments)
        for name, damage in (
            ("scores.json", digit), ("info.json", digit), ("recipe.yaml", digit), ("scores.json", bit),
            ("info.json", bit), ("recipe.yaml", bit), ("condensed.safetensors", bit), ("train.parquet", bit),
        )
        for arguments in (("package", "tiny"), ("verify", "tiny"))
    ),
    *(
        (f"run: {name}", RUN / name, damage, arguments)
        for name, damage in (("initialisation.safetensors", bit), ("cells.jsonl", bit), ("cells.jsonl", digit))
        for arguments in (("condense", "tiny.yaml", "--workers", "1"), ("verify", "tiny"))
    ),
    *(
        (f"package: {path.name}", path, damage, ("verify", str(PACKAGE)))
        for path, damage in (
            (OWN / "scores.json", digit), (OWN / "info.json", digit), (OWN / "recipe.yaml", digit),
            (OWN / "manifest.json", digit), (OWN / "manifest.json", bit), (PACKAGE / "README.md", digit),
            (PACKAGE / "README.md", bit), (OWN / "condensed.safetensors", bit),
            (OWN / "train-00000-of-00001.parquet", bit), (PACKAGE / "scores" / "ipc1.parquet", bit),
        )
    ),
]  # fmt: skip


def trial(
    path: Path, damage: Damage, arguments: tuple[str, ...], good: Mapping[Path, bytes], chance: random.Random
) -> tuple[str, str]:
    """Damage a file, run a command, judge it, and put everything back; gives the verdict and what shows it."""
    wanted, scores = meaning(path), good[RUN / "scores.json"]
    path.write_bytes(damage(good[path], chance))
    if arguments[0] == "condense":
        (RUN / "scores.json").unlink()
    status, said = command(*arguments)
    if arguments[0] == "condense":
        verdict = scored_again(path, wanted, status, said, scores)
    else:
        verdict = refused(path, wanted, status, said)
    changed = [k for k, (a, b) in enumerate(zip(good[path], path.read_bytes(), strict=False)) if a != b]
    for old, data in good.items():
        if not old.is_file() or old.read_bytes() != data:
            old.parent.mkdir(parents=True, exist_ok=True)
            old.write_bytes(data)
    return verdict, f"{path} at {changed[:1]}: {said}"


@click.command()
@click.option("--trials", default=50, show_default=True, help="Of each kind.")
@click.option("--seed", default=0, show_default=True)
def main(trials: int, seed: int) -> None:
    """Count what notices damage."""
    chance, shown, wrong = random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HMDC_HUB_CACHE"] = f"{folder}/cache"
        os.chdir(folder)
        Path("tiny.yaml").write_text(TEXT)
        status, said = command("condense", "tiny.yaml", "--workers", "1")
        assert status == 0, said
        shutil.rmtree("cache")  # a training that was paid once would hide a damaged one
        os.environ["HMDC_HUB_CACHE"] = "/dev/null/none"
        good = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file() and path.name != ".lock"}
        click.echo("| file | damage | command | n | noticed | harmless | silent | traceback |")
        click.echo("|---|---|---|---|---|---|---|---|")
        for name, path, damage, arguments in CASES:
            verdicts = Counter[str]()
            for _ in range(trials):
                verdict, what = trial(path, damage, arguments, good, chance)
                verdicts[verdict] += 1
                if verdict in ("silent", "traceback"):
                    wrong, shown[name] = wrong + 1, shown[name] + 1
                    if shown[name] <= 3:
                        click.echo(f"{verdict}: {what}", err=True)
            counts = [str(verdicts[key]) for key in ("noticed", "harmless", "silent", "traceback")]
            line = [name, damage.__name__, f"`{arguments[0]}`", str(trials), *counts]
            click.echo("| " + " | ".join(line) + " |")
        os.chdir("/")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
