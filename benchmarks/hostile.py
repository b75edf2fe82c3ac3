"""What strangers' files cost: peak memory, seconds and what is said; and pulls that are killed at every file operation.

    python benchmarks/hostile.py [--limit 2048] [--only pull]

Each bomb is read by the real command in a process of its own, which is killed if it takes more than `--limit` MiB;
memory is the most that was resident, beside that of the same command on an honest file. Pulls come from a Hub on this
machine; each is killed (SIGKILL) as it is about to do its n-th operation on files, for every n until it ends.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)
with socket.socket() as _probe:
    _probe.bind(("127.0.0.1", 0))
    PORT = int(os.environ.get("HMDC_BENCHMARK_PORT") or _probe.getsockname()[1])
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{PORT}", "HF_HUB_DISABLE_XET": "1", "HMDC_BENCHMARK_PORT": str(PORT),
               "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip

import click  # noqa: E402

from tests import bombs  # noqa: E402

DATA = "ipc2/train-00000-of-00001.parquet"
REPO, SET = "ann/tiny-hmdc", "tiny-hmdc"
LOAD = "import sys, hmdc_hub; print(hmdc_hub.load(sys.argv[1]).images.shape)"

EVERYWHERE = {"80 PNGs of 9,000 x 9,000", "3,000,000 rows", "info.json: ipc 10^9, size 10^6", "a link to /dev/zero"}
"""Bombs that every command is tried on; the others are in files that `verify` alone reads, or are read alike."""

Make = Callable[[Path], object]


def package_bombs() -> dict[str, Make]:
    """Say how an honest package becomes a bomb; hashes are made to follow, as a careful forger would."""
    names, labels = [str(n) for n in range(10)], [label for label in range(10) for _ in range(8)]
    large = bombs.png(9000, 9000)

    def info(folder: Path, **change: Any) -> None:
        path = folder / "ipc2/info.json"
        found = json.loads(path.read_text())
        found["source"] |= change.pop("source", {})
        path.write_text(json.dumps(found | change))

    def lists(name: str, key: str) -> Make:
        def make(folder: Path) -> None:
            found = json.loads((folder / "ipc2" / name).read_text())
            found[key] = "@"
            text = json.dumps(found).replace('"@"', "[" + "[]," * 5_000_000 + "[]]")
            (folder / "ipc2" / name).write_text(text)

        return make

    def huge(folder: Path) -> None:
        info(folder, ipc=10**9, synthetic_images=3 * 10**9, training_images=12 * 10**9, source={"size": 10**6})

    def tensors(folder: Path) -> None:
        bombs.safetensors(folder / "ipc2/condensed.safetensors", b'{"a":' * 10_000_000 + b"0" + b"}" * 10_000_000)

    def text(folder: Path) -> None:
        cell = bombs.png(8, 8, color=0)
        for _ in range(60):
            cell = bombs.with_chunk(cell, b"zTXt", b"a\0\0" + bombs.zeros(1 << 20))
        bombs.parquet(folder / DATA, [cell] * 80, labels, names)

    def link(folder: Path) -> None:
        (folder / "ipc2/scores.json").unlink()
        (folder / "ipc2/scores.json").symlink_to("/dev/zero")

    return {
        "80 PNGs of 9,000 x 9,000": lambda f: bombs.parquet(f / DATA, [large] * 80, labels, names),
        "3,000,000 rows": lambda f: bombs.repeated(f / DATA, bombs.png(8, 8, color=0), 3_000_000, names),
        "a page of 1 GB, zstd": lambda f: bombs.parquet(f / DATA, [bytes(2**30)], [0], names, compression="zstd"),
        "80 PNGs with 60 MB of zTXt": text,
        "schema of 1,000,000 levels": lambda f: bombs.nested(f / DATA, 1_000_000),
        "scores/*.parquet of 3,000,000 rows": lambda f: bombs.repeated(
            f / "scores/ipc2.parquet", b"x", 3_000_000, names
        ),
        "info.json: ipc 10^9, size 10^6": huge,
        "info.json: 5,000,000 wrong counts": lambda f: lists("info.json", "models")(f),
        "scores.json: 5,000,000 wrong trainings": lambda f: lists("scores.json", "cells")(f),
        "manifest.json: 5,000,000 wrong files": lambda f: lists("manifest.json", "files")(f),
        "safetensors: a table of 60 MB": tensors,
        "README.md: 5,000,000 lists": lambda f: (f / "README.md").write_text(
            "---\na: [" + "[]," * 5_000_000 + "]\n---\n"
        ),
        "a link to /dev/zero": link,
    }


def foreign_bombs() -> dict[str, Make]:
    """Say how what other programs write becomes a bomb."""
    names, large = [str(n) for n in range(10)], bombs.png(9000, 9000)

    def folder(where: Path) -> None:
        for name in names:
            (where / name).mkdir(parents=True)
            for number in range(4):
                (where / name / f"{number}.png").write_bytes(large)

    def claims(where: Path) -> None:
        size = 10**9 * 64
        images = {"dtype": "U8", "shape": [10**9, 1, 8, 8], "data_offsets": [0, size]}
        labels = {"dtype": "U8", "shape": [10**9], "data_offsets": [size, size + 10**9]}
        bombs.safetensors(where, json.dumps({"images": images, "labels": labels}).encode())
        with where.open("r+b") as file:
            file.seek(size + 10**9 + where.stat().st_size - 1)
            file.write(b"\0")  # a sparse file

    return {
        "theirs.parquet: 40 PNGs of 9,000 x 9,000": lambda p: bombs.parquet(p, [large] * 40, [0] * 40, names),
        "theirs.parquet: 3,000,000 rows": lambda p: bombs.repeated(p, bombs.png(8, 8, color=0), 3_000_000, names),
        "theirs.parquet: a page of 1 GB, zstd": lambda p: bombs.parquet(
            p, [bytes(2**30)], [0], names, compression="zstd"
        ),
        "theirs.parquet: 300 rows share 5 MB": lambda p: bombs.repeated(p, os.urandom(5 << 20), 300, names),
        "theirs/: 40 PNGs of 9,000 x 9,000": folder,
        "theirs.safetensors: 65 GB, sparse": claims,
    }


def measured(command: list[str], where: Path, limit: int) -> tuple[int | str, float, float, str]:
    """Run a command: exit status, peak MiB, seconds, and what it said first."""
    with tempfile.TemporaryFile("w+") as said:
        began, over = perf_counter(), False
        child = subprocess.Popen([sys.executable, *command], cwd=where, stdout=subprocess.DEVNULL, stderr=said)
        peak = 0.0
        while True:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                break
            with contextlib.suppress(OSError, ValueError, IndexError):  # it may have just ended
                lines = Path(f"/proc/{child.pid}/status").read_text().split("VmHWM:")
                peak = max(peak, int(lines[1].split()[0]) / 1024)
            if peak > limit and not over:
                over = True
                child.kill()
            sleep(0.02)
        seconds = perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    lines = [line for line in text.splitlines() if line.startswith(("error:", "hmdc_hub.errors"))] or text.splitlines()[
        -1:
    ]
    first = "over the limit" if over else "TRACEBACK" if "Traceback" in text and command[0] == "-m" else ""
    return child.returncode, peak, seconds, first or (lines[0] if lines else "")


def table(rows: list[tuple[str, str, int | str, float, float, str]]) -> None:
    """Print a table."""
    print("\n| input | command | exit status | memory grown, MiB | seconds | said |\n|---|---|---:|---:|---:|---|")
    for what, command, status, grown, seconds, said in rows:
        text = said.replace("|", "\\|").replace(tempfile.gettempdir(), "")
        print(f"| {what} | {command} | {status} | {grown:.0f} | {seconds:.1f} | {text[:110]} |")


def packages(work: Path, limit: int, match: str) -> None:
    """Read bombs in packages."""
    from hmdc_hub.publish.build import package
    from hmdc_hub.sources import load_source
    from tests.builders import MLP, make_recipe, make_run
    from tests.publish.test_verify import settle

    few = {"models": [MLP], "seeds": 1, "epochs": 1, "baselines": []}
    recipe = make_recipe(source_id="builtin:digits", channels=1, evaluate=few)
    source = load_source(recipe.source).info
    made = make_run(work / "run", recipe=recipe, source=source)
    sound = Path(shutil.copytree(package(made), work / "sound"))
    shutil.rmtree(work / "run")
    commands = {
        "verify": ["-m", "hmdc_hub", "verify"],
        "hmdc_hub.load": ["-c", LOAD],
        "evaluate": ["-m", "hmdc_hub", "evaluate", "--run-dir", "again"],
    }
    rows, honest = [], dict[str, float]()
    for what, make in ((what, make) for what, make in package_bombs().items() if match in what):
        shutil.rmtree(work / "bomb", ignore_errors=True)
        make(Path(shutil.copytree(sound, work / "bomb")))
        if "link" not in what and "README" not in what:  # to settle is to read the one, and to write the other
            with contextlib.suppress(Exception):  # what cannot be read cannot be settled
                settle(work / "bomb")
        for name in commands if what in EVERYWHERE else ["verify"]:
            shutil.rmtree(work / "again", ignore_errors=True)
            if name not in honest:
                honest[name] = measured([*commands[name], "sound"], work, limit)[1]
                shutil.rmtree(work / "again", ignore_errors=True)
            status, peak, seconds, said = measured([*commands[name], "bomb"], work, limit)
            rows.append((what, name, status, peak - honest[name], seconds, said))
            click.echo(rows[-1], err=True)
    table(rows)


def foreign(work: Path, limit: int, match: str) -> None:
    """Read bombs in sets of other programs."""
    rows, line = [], ["-m", "hmdc_hub", "evaluate"]
    options = ["--recipe", "digits_ipc1"]
    # An honest one is read to its end, and then refused for its classes: to score it takes minutes.
    pictures, labels = [bombs.png(8, 8, color=0)] * 40, [n % 10 for n in range(40)]
    bombs.parquet(work / "honest.parquet", pictures, labels, [f"none{n}" for n in range(10)])
    honest = measured([*line, "honest.parquet", *options], work, limit)
    click.echo(honest, err=True)
    for what, make in ((what, make) for what, make in foreign_bombs().items() if match in what):
        path = work / what.partition(":")[0].rstrip("/")
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path)
        status, peak, seconds, said = measured([*line, path.name, *options], work, limit)
        rows.append((what, "evaluate", status, peak - honest[1], seconds, said))
        click.echo(rows[-1], err=True)
    table(rows)


def pull_killed(folder: str, left: int, token: str, options: list[str]) -> None:
    """Pull in this process, which is killed at its operation `left`."""
    os.chdir(folder)
    os.environ["HF_TOKEN"] = token
    from hmdc_hub.cli.main import main

    changing = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in changing or opened:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sys.argv = ["hmdc-hub", "pull", REPO, *options]
    with (
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        main()


def content(place: Path) -> dict[str, bytes]:
    """Read a folder."""
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def pulls(work: Path) -> None:
    """Kill pulls at every operation, of a new folder and of one that takes the place of another."""
    from tests.hub import LocalHub
    from tests.publish.pushing import made_run, prepare, push

    hub = LocalHub(PORT)
    token = os.environ["HF_TOKEN"] = prepare(hub)
    for ipc in (2, 5):
        push(made_run(work / f"run{ipc}", ipc))
    whole = {path: data for path, data in hub.files(REPO).items() if path != ".gitattributes"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["__main__", "hmdc_hub.publish", "torch", "hmdc_hub.cli.pull", "hmdc_hub.store.hub", "hmdc_hub.publish.card"]
    )

    def run(place: Path, left: int, options: list[str]) -> int | None:
        child = context.Process(target=pull_killed, args=(str(place), left, token, options))
        child.start()
        child.join()
        return child.exitcode

    print("\n| pull | killed | target afterwards: nothing, the old set, the new one, a part | next pull right |")
    print("|---|---:|---|---:|")
    for what, options in (("new folder", []), ("--force, over another set", ["--force"])):
        place, old, right, number = work / what.split()[0].strip("-"), dict[str, bytes](), 0, 0
        place.mkdir()
        seen = {"nothing": 0, "old": 0, "new": 0, "part": 0}
        run(place, 0, ["--config", "ipc5"])
        kept = Path(shutil.move(place / SET, work / f"old-{place.name}"))
        if options:
            old = content(kept)
        while True:
            number += 1
            shutil.rmtree(place)
            place.mkdir()
            if options:
                shutil.copytree(kept, place / SET)
            status = run(place, number, options)
            if status != -signal.SIGKILL:
                break
            found = content(place / SET)
            seen["new" if found == whole else "nothing" if not found else "old" if found == old else "part"] += 1
            again = run(place, 0, ["--force"])
            click.echo(f"{number} {seen} {right}", err=True)
            right += again == 0 and content(place / SET) == whole and [p.name for p in place.iterdir()] == [SET]
        print(f"| {what} | {number - 1} | {', '.join(map(str, seen.values()))} | {right} |", flush=True)


@click.command()
@click.option("--limit", default=2048, show_default=True, help="MiB that a process may take.")
@click.option("--only", type=click.Choice(["packages", "foreign", "pull"]), multiple=True)
@click.option("--match", default="", help="Only inputs whose names hold this.")
def main(limit: int, only: tuple[str, ...], match: str) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="hmdc-hostile-") as folder:
        os.environ["HF_HOME"] = f"{folder}/home"
        for name, work in (("packages", packages), ("foreign", foreign)):
            if not only or name in only:
                (Path(folder) / name).mkdir()
                work(Path(folder) / name, limit, match)
        if not only or "pull" in only:
            pulls(Path(folder))


if __name__ == "__main__":
    main()
