"""`hmdc-hub pool check`: whether models can join a pool, each looked at in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hmdc_hub.cli import output
from hmdc_hub.errors import HmdcError, UsageError
from hmdc_hub.processes import begin_worker, interrupts_held_back

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from hmdc_hub.condense.check import Check
    from hmdc_hub.schema import ModelSpec

EPILOG = """\b
hmdc-hub pool check vit_tiny ./mine.yaml
hmdc-hub pool check --all --markdown > pool.md"""


@click.command("check", short_help="Build models and check their gradients.", epilog=EPILOG)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Every model that comes with hmdc-hub.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps or auto.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
@click.option("--markdown", is_flag=True, help="Print the result as a Markdown table.")
def check(names: tuple[str, ...], everything: bool, device: str, as_json: bool, markdown: bool) -> None:
    """Build each model NAME, a pool entry or the path of one, from fresh weights, and check what condensing needs.

    Prints its taps, one forward pass, and one image gradient for 8 real and 8 synthetic images with the time and the
    memory that it takes; ERROR compares the gradient, mutual distillation included, with the plain double backward.
    COSINE is that of the same gradient in bfloat16 to the one in float32: what `precision: bfloat16` would change.
    What is wrong with a model is said in one line, and the exit status is then 1. Pretrained weights are not
    downloaded.
    """
    from hmdc_hub.catalog import list_models, load_model
    from hmdc_hub.cli.device import pick

    if bool(names) == everything:
        rule = "Name models to check, or give --all, not both." if names else "Name models to check, or give --all."
        raise UsageError(rule, hint="hmdc-hub pool ls lists them.")
    if as_json and markdown:
        raise UsageError("--json and --markdown are two forms of the same output.", hint="Leave one out.")
    specs = [load_model(name) for name in (names or [entry.name for entry in list_models()])]
    where = str(pick(device))
    rows = list(_checked(specs, where))
    if as_json:
        output.document([_document(spec, result) for spec, result in rows])
    elif markdown:
        output.data(_markdown(rows))
    else:
        output.data(_table(rows))
        for spec, result in rows if len(rows) == 1 else []:
            output.data(_taps(spec, result))
    for spec, result in rows:
        if not isinstance(result, str) and result.turned_by_bfloat16:
            output.talk(f"{spec.name}: bfloat16 turns its image gradient too far (COSINE); keep precision: float32")
        if not isinstance(result, str) and not result.together:
            output.talk(f"{spec.name}: cannot take several classes at a time; a pool that it is in goes class by class")
    if any(isinstance(result, str) for _, result in rows):
        raise click.exceptions.Exit(1)


Row = tuple["ModelSpec", "Check | str"]
"""A model with what was found, or what is wrong with it."""


def _checked(specs: Sequence[ModelSpec], device: str) -> Iterator[Row]:
    for number, spec in enumerate(specs, 1):
        output.talk(f"{spec.name} ({number} of {len(specs)})")
        yield spec, _in_process(spec, device)


def _in_process(spec: ModelSpec, device: str) -> Check | str:
    """Check one model in a process of its own: its memory is measured, and one that dies takes no other with it."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_check_and_send, args=(theirs, spec, device), daemon=True)
    try:
        with interrupts_held_back():
            child.start()
        theirs.close()
        found: Check | str = ours.recv()
        return found
    except EOFError:
        child.join()
        if child.exitcode == 1:
            raise RuntimeError(f"checking {spec.name} failed in its own process; the traceback is above") from None
        return "the process that built it died; was there too little memory?"
    finally:
        if child.pid is not None:
            child.kill()  # nobody waits for what it is at
            child.join()


def _check_and_send(end: Connection, spec: ModelSpec, device: str) -> None:
    begin_worker()
    end.send(check_one(spec, device))


def check_one(spec: ModelSpec, device: str) -> Check | str:
    """Check one model in this process; gives what is wrong with it as one line."""
    import torch

    from hmdc_hub.condense.check import check_model

    try:
        return check_model(spec, torch.device(device))
    except HmdcError as error:
        return " ".join(f"{error.message} {error.hint or ''}".split())
    # What torch raises while a library's model is differentiated twice is a finding about that model.
    except RuntimeError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return f"it can be built, but not differentiated as condensing does it: {type(error).__name__}: {lines[0]}"


_HEADER = ["NAME", "INPUT", "PARAMETERS", "TAPS", "FORWARD", "GRADIENT", "MEMORY", "ERROR", "COSINE"]


def _cells(spec: ModelSpec, result: Check | str) -> list[str]:
    if isinstance(result, str):
        return [spec.name, "", "", "", "", "", "", result, ""]
    return [
        spec.name,
        f"{result.input_size}",
        f"{result.parameters:,}",
        _summary(result),
        f"{result.forward_ms:.0f} ms",
        f"{result.gradient_ms:.0f} ms",
        output.amount(result.memory_bytes),
        f"{result.error:.0e} {result.dtype}",
        "-" if result.cosine is None else f"{result.cosine:.4f}",
    ]


def _summary(result: Check) -> str:
    """Write taps shortly: `3 maps 64x56 .. 512x7`, channels times side."""
    first, last = result.taps[0], result.taps[-1]
    kinds = {tap.kind for tap in result.taps}
    kind = "tokens" if kinds == {"tokens"} else "maps" if kinds == {"map"} else "taps"
    shapes = list(
        dict.fromkeys(f"{tap.channels}x{'x'.join(map(str, tap.grid or [tap.side]))}" for tap in (first, last))
    )
    return f"{len(result.taps)} {kind} {' .. '.join(shapes)}"


def _table(rows: Sequence[Row]) -> str:
    good = [_cells(spec, result) for spec, result in rows if not isinstance(result, str)]
    lines = [output.columns(_HEADER, good)] if good else []
    return "\n".join([*lines, *(f"{spec.name}: {result}" for spec, result in rows if isinstance(result, str))])


def _markdown(rows: Sequence[Row]) -> str:
    cells = [_cells(spec, result) for spec, result in rows]
    lines = [[title.lower() for title in _HEADER], ["---"] * len(_HEADER), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _taps(spec: ModelSpec, result: Check | str) -> str:
    if isinstance(result, str):
        return ""
    lines = [
        f"{number:>3}  {tap.name}  {tap.kind}, {tap.channels} channels, "
        + " x ".join(map(str, tap.grid or (tap.side, tap.side)))
        for number, tap in enumerate(result.taps)
    ]
    return "\n".join(["", "taps", *lines])


def _document(spec: ModelSpec, result: Check | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {"name": spec.name, "problem": result}
    return {"problem": None, **asdict(result)}
