"""`torchrun ... -m hmdc_hub condense`: several processes do one job, and speak with one voice.

The first does what it would do alone and tells the others what is to be done; all that they need to know stands in the
run directory, which all of them see.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from hmdc_hub.errors import HmdcError
from hmdc_hub.processes import Launched

if TYPE_CHECKING:
    import torch

    from hmdc_hub.condense import Ranks
    from hmdc_hub.events import StopFlag
    from hmdc_hub.store import RunDir

PARTS = ("condense", "evaluate", "package")


@contextmanager
def one_voice(launched: Launched) -> Iterator[None]:
    """Let the first process in which something goes wrong say so, and the others end quietly with the same status."""
    try:
        yield
    except (HmdcError, click.ClickException) as error:
        from hmdc_hub.cli.failures import shown

        if first_to_say(launched):
            raise
        found = shown(error)
        # Not by way of the interpreter's end: torch waits there for peers that are gone.
        sys.stdout.flush()
        os._exit(1 if found is None else found.status)


def first_to_say(launched: Launched) -> bool:
    """Say whether this process is the first to ask; where that cannot be known, it may speak."""
    if launched.store is None:
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(*launched.store, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        return bool(store.add(f"hmdc-hub/said/{launched.attempt}", 1) == 1)
    except RuntimeError:  # torchrun itself is gone
        return True


def tell(ranks: Ranks, parts: Sequence[str]) -> None:
    """Tell the other processes what is to be done; the first one calls this."""
    import torch

    ranks.together(torch.tensor([float(part in parts) for part in PARTS]))


def assist(run: RunDir, ranks: Ranks, device: torch.device, workers: int | None, stop: StopFlag) -> None:
    """Do a share of what the first process tells."""
    import torch

    from hmdc_hub.catalog import read_recipe_file
    from hmdc_hub.condense import condense
    from hmdc_hub.evaluate import assist as assist_evaluation
    from hmdc_hub.evaluate import of_run
    from hmdc_hub.evaluate.share import share_of_torchrun
    from hmdc_hub.events import silent
    from hmdc_hub.sources import load_source

    wanted = ranks.together(torch.zeros(len(PARTS)))
    parts = [part for part, number in zip(PARTS, wanted.tolist(), strict=True) if number]
    if not {"condense", "evaluate"} & set(parts):
        return
    recipe = read_recipe_file(run.recipe)
    source = load_source(recipe.source)
    if "condense" in parts:
        condense(recipe, source, run, device=device, ranks=ranks, stop=stop)
    share = share_of_torchrun()
    if "evaluate" in parts and share is not None:
        tell(ranks, ())  # the first process has made what else the scores need
        assist_evaluation(
            of_run(recipe, run),
            recipe.evaluate,
            source,
            run,
            share,
            device=device,
            workers=workers,
            listener=silent,
            stop=stop,
        )
