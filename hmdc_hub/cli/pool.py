"""`hmdc-hub pool`: list, show, copy and check the entries of model_pool/. Only `check` needs torch, once it runs.

Each model is checked in a process of its own: its memory is measured, and one that dies takes no other with it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import _output as output
from hmdc_hub.cli._options import JSON
from hmdc_hub.cli.recipes import add_ls_and_cp
from hmdc_hub.errors import HmdcError, UsageError
from hmdc_hub.processes import begin_worker, starting_workers
from hmdc_hub.text import amount, first_line

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from hmdc_hub.condenser.check import Check
    from hmdc_hub.schema import ModelSpec

CHECK_EPILOG = """\b
hmdc-hub pool check vit_tiny ./mine.yaml
hmdc-hub pool check --all --markdown > pool.md"""


@click.group(short_help="List, show, copy and check the models that recipes name.")
def pool() -> None:
    """List, show, copy and check the models that recipes name under `pool` and `evaluate.models`.

    A pool entry is a small YAML file: where a model comes from, its size, its learning rates. A recipe names a copy of
    your own by its path, such as ./mine.yaml.
    """


add_ls_and_cp(
    pool,
    "models",
    after_ls="hmdc-hub pool show NAME",
    after_cp=lambda written: f"name it in a recipe: pool: [./{written.name}, ...]",
)


@pool.command("show", short_help="Print a pool entry.")
@click.argument("name")
@JSON
def show(name: str, as_json: bool) -> None:
    """Print pool entry NAME as it was written; with --json with every default filled in."""
    from hmdc_hub.catalog import MODELS, find, load_model

    output.emit(
        as_json,
        lambda: load_model(name).model_dump(mode="json"),
        lambda: find(MODELS, name).read_text(encoding="utf-8"),
    )


@pool.command("check", short_help="Build models and check their gradients.", epilog=CHECK_EPILOG)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Every model that comes with hmdc-hub.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps or auto.")
@JSON
@click.option("--markdown", is_flag=True, help="Print the result as a Markdown table.")
def check(names: tuple[str, ...], everything: bool, device: str, as_json: bool, markdown: bool) -> None:
    """Build each model NAME, a pool entry or the path of one, from fresh weights, and check what condensing needs.

    Prints its taps, one forward pass, and one image gradient for 8 real and 8 synthetic images with the time and the
    memory that it takes; ERROR compares the gradient, mutual distillation included, with the plain double backward.
    COSINE is that of the same gradient in bfloat16 to the one in float32: what `precision: bfloat16` would change.
    What is wrong with a model is said in one line, and the exit status is then 1. Pretrained weights are not
    downloaded.
    """
    from hmdc_hub.catalog import MODELS, list_entries, load_model
    from hmdc_hub.pipeline.device import pick

    if bool(names) == everything:
        rule = "Name models to check, or give --all, not both." if names else "Name models to check, or give --all."
        raise UsageError(rule, hint="hmdc-hub pool ls lists them.")
    if as_json and markdown:
        raise UsageError("--json and --markdown are two forms of the same output.", hint="Leave one out.")
    specs = [load_model(name) for name in (names or [entry.name for entry in list_entries(MODELS)])]
    rows = list(checked(specs, str(pick(device))))
    good = [(spec, result) for spec, result in rows if not isinstance(result, str)]

    def document() -> list[dict[str, Any]]:
        return [
            {"name": spec.name, "problem": found} if isinstance(found, str) else {"problem": None, **asdict(found)}
            for spec, found in rows
        ]

    def text() -> str:
        if markdown:
            titles = [title.lower() for title in _HEADER], ["---"] * len(_HEADER)
            return "\n".join(f"| {' | '.join(line)} |" for line in (*titles, *(_cells(*row) for row in rows)))
        table = [output.columns(_HEADER, [_cells(*row) for row in good])] if good else []
        lines = [*table, *(f"{spec.name}: {found}" for spec, found in rows if isinstance(found, str))]
        return "\n".join(lines + (_taps(good[0][1]) if len(rows) == len(good) == 1 else []))

    output.emit(as_json, document, text)
    for spec, result in good:
        if result.turned_by_bfloat16:
            output.talk(f"{spec.name}: bfloat16 turns its image gradient too far (COSINE); keep precision: float32")
        if not result.together:
            output.talk(f"{spec.name}: cannot take several classes at a time; a pool that it is in goes class by class")
    if len(good) < len(rows):
        raise click.exceptions.Exit(1)


def checked(specs: Sequence[ModelSpec], device: str) -> Iterator[tuple[ModelSpec, Check | str]]:
    """Check models one after another, each in a process of its own; gives what was found, or what is wrong."""
    spawn = multiprocessing.get_context("spawn")
    for number, spec in enumerate(specs, 1):
        output.talk(f"{spec.name} ({number} of {len(specs)})")
        ours, theirs = spawn.Pipe(duplex=False)
        child = spawn.Process(target=_check_and_send, args=(theirs, spec, device), daemon=True)
        found: Check | str
        try:
            with starting_workers():
                child.start()
            theirs.close()
            found = ours.recv()
        except EOFError:
            child.join()
            if child.exitcode == 1:
                raise RuntimeError(f"checking {spec.name} failed in its own process; the traceback is above") from None
            found = "the process that built it died; was there too little memory?"
        finally:
            if child.pid is not None:
                child.kill()  # nobody waits for what it is at
                child.join()
        yield spec, found


def _check_and_send(end: Connection, spec: ModelSpec, device: str) -> None:
    begin_worker()
    end.send(check_one(spec, device))


def check_one(spec: ModelSpec, device: str) -> Check | str:
    """Check one model in this process; gives what is wrong with it as one line."""
    import torch

    from hmdc_hub.condenser.check import check_model

    try:
        return check_model(spec, torch.device(device))
    except HmdcError as error:
        return " ".join(f"{error.message} {error.hint or ''}".split())
    # What torch raises while a library's model is differentiated twice is a finding about that model.
    except RuntimeError as error:
        kind = type(error).__name__
        return f"it can be built, but not differentiated as condensing does it: {kind}: {first_line(error)}"


_HEADER = ["NAME", "INPUT", "PARAMETERS", "TAPS", "FORWARD", "GRADIENT", "MEMORY", "ERROR", "COSINE"]


def _cells(spec: ModelSpec, result: Check | str) -> list[str]:
    if isinstance(result, str):
        return [spec.name, "", "", "", "", "", "", result, ""]
    # Taps shortly: `3 maps 64x56 .. 512x7`, channels times side.
    kinds = {tap.kind for tap in result.taps}
    kind = "tokens" if kinds == {"tokens"} else "maps" if kinds == {"map"} else "taps"
    ends = (result.taps[0], result.taps[-1])
    shapes = dict.fromkeys(f"{tap.channels}x{'x'.join(map(str, tap.grid or [tap.side]))}" for tap in ends)
    return [
        spec.name,
        f"{result.input_size}",
        f"{result.parameters:,}",
        f"{len(result.taps)} {kind} {' .. '.join(shapes)}",
        f"{result.forward_ms:.0f} ms",
        f"{result.gradient_ms:.0f} ms",
        amount(result.memory_bytes),
        f"{result.error:.0e} {result.dtype}",
        "-" if result.cosine is None else f"{result.cosine:.4f}",
    ]


def _taps(result: Check) -> list[str]:
    lines = ["", "taps"]
    for number, tap in enumerate(result.taps):
        sides = " x ".join(map(str, tap.grid or (tap.side, tap.side)))
        lines.append(f"{number:>3}  {tap.name}  {tap.kind}, {tap.channels} channels, {sides}")
    return lines
