"""Experiment trackers: callbacks that pass a run's numbers and pictures on to trackio, Weights & Biases or TensorBoard.

log.jsonl is written whether or not there is one. `trackers/` in the run directory has the id of the tracker's run, in
which a resumed run goes on, and what TensorBoard and wandb write.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import textwrap
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from hmdc_hub.errors import RunError, UsageError
from hmdc_hub.events import Event, ImageGrid, ImageStep, Training
from hmdc_hub.schema import LOCAL, Recipe

_REMEDY = "Mend that (wandb: `wandb login`, or WANDB_MODE=offline), or leave it out of report_to; --resume goes on."


def make_callbacks(report_to: str | Sequence[str], run_dir: Path, recipe: Recipe) -> list[Tracker]:
    """Make a callback for each tracker (a text has commas between them); none, if `report_to` is empty or `none`.

    Nothing is opened or written before the first number. Trackers show the recipe as the configuration, without paths.
    """
    names = report_to.split(",") if isinstance(report_to, str) else report_to
    names = [name for name in dict.fromkeys(name.strip() for name in names) if name not in ("", "none")]
    for name in names:
        if name not in _TRACKERS:
            raise UsageError(f"report_to: {name} is no tracker", hint=f"There are {', '.join(_TRACKERS)}, and none.")
    return [Tracker(name, run_dir, recipe) for name in names]


class Tracker:
    """A callback that logs to one tracker; one that fails while it logs gets nothing more, and stops no run.

    The step is the number of image steps done; for what evaluation logs, of trainings done.
    """

    def __init__(self, name: str, run_dir: Path, recipe: Recipe) -> None:
        self.name, self.folder, self.recipe = name, run_dir / "trackers", recipe
        self._state: Literal["new", "open", "closed"] = "new"
        self._step = 0
        self._grid: ImageGrid | None = None
        try:
            self._library: Any = importlib.import_module(name)
        except ImportError as error:
            raise UsageError(
                f"report_to: {name} is not installed ({error})",
                hint=f"`pip install {name}`, or leave {name} out of report_to.",
            ) from error

    def __call__(self, event: Event) -> None:
        """Log an event, if it is one with numbers or a picture; RunError if the tracker does not start."""
        match event:
            case ImageStep():
                self._open(event.done)
                self._log_grid(event.done - 1)
                self._step = event.done
                numbers = {"clamped": event.clamped, "images_per_second": event.images_per_second}
                for group, values in (("loss", event.losses), ("share", event.shares), ("accuracy", event.accuracies)):
                    numbers |= {f"{group}/{name}": value for name, value in values.items()}
                self._try(self._log, numbers, event.done)
            case Training():
                self._open(None)
                self._try(self._log, {f"evaluate/{event.training_set}/{event.model}": event.accuracy}, event.done)
            case ImageGrid():
                self._grid = event  # the next image step tells which it is of

    def close(self) -> None:
        """Write what is left, and end the tracker's run; further calls do nothing."""
        if self._state == "open":
            self._log_grid(self._step)
            self._try(self._finish)
        self._state = "closed"

    def _open(self, first: int | None) -> None:
        """Open the tracker's run; `first` is the image step about to be logged, None when evaluating."""
        if self._state == "new":
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._log, self._finish = _TRACKERS[self.name](self._library, self.folder, self.recipe, first)
            except Exception as error:  # of whatever type a tracker's library raises, here and below
                raise RunError(f"report_to: {self.name} did not start: {error}", hint=_REMEDY) from error
            self._state = "open"

    def _log_grid(self, step: int) -> None:
        if self._grid is not None:
            image = Image.open(BytesIO(self._grid.png)).convert("RGB")
            wrapped = self._library.Image(image, caption=self._grid.caption) if self.name != "tensorboard" else image
            self._grid = None
            self._try(self._log, {"synthetic_images": wrapped}, step)

    def _try(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            if self._state == "open":
                work(*arguments)
        except Exception as error:
            self._state = "closed"
            what = f"{self.name} gets nothing more of this run: {error}; log.jsonl goes on"
            warnings.warn(what, RuntimeWarning, stacklevel=3)


_Opened = tuple[Callable[[dict[str, Any], int], None], Callable[[], None]]  # to log values at a step, to finish


def _open_trackio(trackio: Any, folder: Path, recipe: Recipe, first: int | None) -> _Opened:
    project, name = os.environ.get("TRACKIO_PROJECT", "hmdc-hub"), f"{recipe.name}-{_run_id(folder)}"
    own = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}  # no server, no threads that measure
    with redirect_stdout(sys.stderr):  # it prints, and stdout is for data
        run = trackio.init(project, name=name, config=_configuration(recipe), resume="allow", **own)

    def finish() -> None:
        with redirect_stdout(sys.stderr):
            trackio.finish()

    return run.log, finish


def _open_wandb(wandb: Any, folder: Path, recipe: Recipe, first: int | None) -> _Opened:
    own = {"console": "off", "disable_git": True, "disable_code": True, "x_disable_meta": True, "host": "hmdc-hub"}
    names = {"project": os.environ.get("WANDB_PROJECT", "hmdc-hub"), "id": _run_id(folder), "name": recipe.name}
    where = {"dir": str(folder), "settings": wandb.Settings(**own), "resume": "allow"}
    run = wandb.init(config=_configuration(recipe), **names, **where)
    # Its own steps may not go back, as they do where steps after a checkpoint are made again.
    run.define_metric("*", step_metric="image_step")
    run.define_metric("evaluate/*", step_metric="training")

    def log(values: dict[str, Any], step: int) -> None:
        kind = "training" if any(name.startswith("evaluate/") for name in values) else "image_step"
        run.log({**values, kind: step})

    return log, run.finish


def _open_tensorboard(_: Any, folder: Path, recipe: Recipe, first: int | None) -> _Opened:
    from torch.utils.tensorboard import SummaryWriter

    # What an interrupted run logged of steps that are made again gives way.
    writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=first, flush_secs=30)
    writer.add_text("recipe", textwrap.indent(json.dumps(_configuration(recipe), indent=2), " " * 4), first)

    def log(values: dict[str, Any], step: int) -> None:
        for name, value in values.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, step)
            else:
                writer.add_image(name, np.asarray(value), step, dataformats="HWC")

    return log, writer.close


_TRACKERS = {"trackio": _open_trackio, "wandb": _open_wandb, "tensorboard": _open_tensorboard}


def _run_id(folder: Path) -> str:
    """Read the id that the tracker's run has, or draw one for a new run."""
    from hmdc_hub.store.files import write_text_atomic

    path = folder / "id"
    known = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if not re.fullmatch("[0-9a-f]{8}", known):
        write_text_atomic(path, known := uuid.uuid4().hex[:8])
    return known


def _configuration(recipe: Recipe) -> dict[str, Any]:
    """Give what a tracker shows as the configuration: the recipe as it is published, hashes and versions."""
    from hmdc_hub import __version__
    from hmdc_hub.provenance import versions

    name, source = recipe.source.id, recipe.source
    if not re.fullmatch(r"(builtin|torchvision|python|local):.*|[\w.-]+(/[\w.-]+)?", name) or Path(name).exists():
        source = source.model_copy(update={"id": f"{LOCAL}{PureWindowsPath(name).name or 'data'}"})
    pool, evaluate = [model.without_paths() for model in recipe.pool], recipe.evaluate.without_paths()
    plain = recipe.model_copy(update={"source": source, "pool": pool, "evaluate": evaluate}).model_dump(mode="json")
    plain["versions"] = versions({model.source for model in pool}) | {"hmdc-hub": __version__}
    return plain | {"condense_hash": recipe.condense_hash(), "protocol_hash": recipe.protocol_hash()}
