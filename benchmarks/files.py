"""What checkpoints and results take while they are written and read: time, and memory beside the images themselves.

    python benchmarks/files.py [--classes 200] [--ipc 50] [--side 64] [--ranks 8] [--rounds 3]

Each is done in parts, as the condenser does it, and whole: everything put together and handed over at once. Random
images of a run that is one process; `read` is what one of `--ranks` reads on `--resume`. Memory is anonymous memory
(what is backed by no file), looked at every few milliseconds. The ways are timed in turn.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import safetensors.torch
import torch
from scaling import anonymous
from torch import Tensor

from hmdc_hub import multi_formation
from hmdc_hub.condenser import checkpoint
from hmdc_hub.condenser.checkpoint import Position
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.events import silent
from hmdc_hub.schema import SetHeader
from hmdc_hub.store.condensed import Parts, read_classes, read_condensed, write_classes, write_condensed
from hmdc_hub.store.parquet import to_uint8, write_parquet, write_parquet_parts


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Measure seconds and the most memory that a block held beside what was there before."""
    found, done, before = {"grown": 0.0}, threading.Event(), anonymous()

    def look() -> None:
        while not done.wait(0.005):
            found["grown"] = max(found["grown"], anonymous() - before)

    thread = threading.Thread(target=look)
    thread.start()
    began = perf_counter()
    try:
        yield found
    finally:
        found["seconds"] = perf_counter() - began
        done.set()
        thread.join()


def ways(folder: Path, images: Tensor, momentum: Tensor, ranks: int) -> dict[tuple[str, str], Callable[[], Any]]:
    """Say how each thing is done, in parts and whole; in this order, as some read what others wrote."""
    classes, ipc, *shape = images.shape
    both = {"images": images, "momentum": momentum}
    names, own = [f"class {n}" for n in range(classes)], list(range(0, classes, ranks))
    header = SetHeader(
        name="x", ipc=ipc, factor=2, class_names=names, mean=[0.0] * 3, std=[1.0] * 3, condense_hash="0" * 64
    )
    labels = torch.arange(classes)
    tensors, parquet, other = folder / "c.safetensors", folder / "t.parquet", folder / "whole.safetensors"

    def save() -> None:
        rows = {k: Parts(t.dtype, tuple(t.shape), Ranks().gather(t, [0] * classes)) for k, t in both.items()}
        checkpoint.save(folder, rows, Position(1, 0, 0.0), "0", Ranks())

    def read() -> None:
        found = checkpoint.newest(folder, "0", Ranks(), silent)
        assert found is not None
        assert [found.rows(name, own) for name in both]

    def decode() -> None:
        decoded = (to_uint8(multi_formation.decode(one, 2)) for one in read_classes(tensors))
        write_parquet_parts(parquet, ((one, torch.full((len(one),), n)) for n, one in enumerate(decoded)), names)

    def decode_whole() -> None:
        decoded = multi_formation.decode(torch.unflatten(read_condensed(tensors)[0], 0, (classes, ipc)), 2)
        write_parquet(parquet, to_uint8(decoded.flatten(0, 1)), labels.repeat_interleave(4 * ipc), names)

    return {
        ("checkpoint written", "in parts"): save,
        ("checkpoint written", "whole"): lambda: other.write_bytes(safetensors.torch.save(both)),
        ("checkpoint checked and read", "in parts"): read,
        ("checkpoint checked and read", "whole"): lambda: (
            checkpoint.newest(folder, "0", Ranks(), silent),
            {name: t.clone()[own] for name, t in safetensors.torch.load_file(other).items()},
        ),
        ("condensed.safetensors written", "in parts"): lambda: write_classes(tensors, images, shape, header),
        ("condensed.safetensors written", "whole"): lambda: write_condensed(
            # denormalised, which is a copy
            tensors,
            images.flatten(0, 1) * 1.0,
            labels.repeat_interleave(ipc),
            header,
        ),
        ("train.parquet written", "in parts"): decode,
        ("train.parquet written", "whole"): decode_whole,
    }


@click.command()
@click.option("--classes", default=200, show_default=True)
@click.option("--ipc", default=50, show_default=True)
@click.option("--side", default=64, show_default=True, help="In pixels.")
@click.option("--ranks", default=8, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(classes: int, ipc: int, side: int, ranks: int, rounds: int) -> None:
    """Measure and print."""
    images, momentum = torch.rand(2, classes, ipc, 3, side, side)
    found = dict[tuple[str, str], list[dict[str, float]]]()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for way, work in ways(Path(folder), images, momentum, ranks).items():
                with watched() as measured:
                    work()
                found.setdefault(way, []).append(measured)
                click.echo(f"{way}: {measured['seconds']:.1f} s, {measured['grown'] / 2**20:.0f} MiB", err=True)
    print(
        f"{classes} classes x {ipc} images of {side} pixels: {images.nbytes / 2**20:.0f} MiB, momentum as much;",
        end=" ",
    )
    print(f"{rounds} rounds in turn; load {os.getloadavg()[0]:.1f}\n")
    print("| | | seconds | memory grown, MiB |\n|---|---|---:|---:|")
    for (what, how), each in found.items():
        seconds = statistics.median(one["seconds"] for one in each)
        print(f"| {what} | {how} | {seconds:.1f} | {max(one['grown'] for one in each) / 2**20:.0f} |")


if __name__ == "__main__":
    main()
