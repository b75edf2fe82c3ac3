"""What a worker process of the condenser does: it has networks of its own and answers questions about them."""

from __future__ import annotations

import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmdc_hub.condense.batches import RealImages
from hmdc_hub.condense.class_gradient import plain_attention
from hmdc_hub.condense.hand import Hand
from hmdc_hub.condense.members import Members
from hmdc_hub.condense.meter import peak_resident_bytes
from hmdc_hub.condense.team import one_thread
from hmdc_hub.errors import HmdcError
from hmdc_hub.models import build_for
from hmdc_hub.processes import begin_worker
from hmdc_hub.schema import Recipe, SourceInfo
from hmdc_hub.sources import ClassBank, Source

TASKS = {"class_part", "real_batches", "training_part", "projection_part"}
"""Methods of `Hand` that a worker may be asked for."""


@dataclass(frozen=True)
class Traceback:
    """What a worker sends in place of a result when something of ours is wrong."""

    text: str


@dataclass(frozen=True)
class Said:
    """What a worker sends when what went wrong is no bug."""

    message: str
    hint: str


def serve(end: Connection, recipe: str, info: str, offsets: tuple[int, ...], bank: str) -> None:
    """Be a worker: answer until nobody asks any more."""
    begin_worker()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to a whole group, it is the parent's to act on
    one_thread()
    hand = _hand(Recipe.model_validate_json(recipe), SourceInfo.model_validate_json(info), offsets, bank)
    end.send("ready")
    while True:
        try:
            task, *rest = as_tensors(end.recv())
        except EOFError:
            return
        try:
            answer = _answer(hand, task, rest)
        except HmdcError as error:
            answer = Said(error.message, error.hint)
        except Exception:  # whatever it is, it is told where somebody waits for it
            answer = Traceback(traceback.format_exc())
        end.send(as_arrays(answer))


def _answer(hand: Hand, task: str, rest: list[Any]) -> Any:
    if task == "peak":
        return peak_resident_bytes()
    if task == "values":
        hand.members.at_once, outer, tensors = rest
        hand.members.load_values(outer, tensors)
        return None
    if task not in TASKS:
        raise ValueError(f"no task is called {task!r}")
    arguments, plain = rest
    if task == "training_part":
        for net in hand.members.networks:
            net.train()
    if task == "class_part":
        hand.prepare()
    try:
        if not plain:
            return getattr(hand, task)(*arguments)
        with plain_attention():
            return getattr(hand, task)(*arguments)
    finally:
        hand.members.hold()


def _hand(recipe: Recipe, info: SourceInfo, offsets: tuple[int, ...], bank: str) -> Hand:
    shape = (offsets[-1], info.channels, info.size, info.size)
    images = torch.from_file(bank, shared=True, size=int(np.prod(shape)), dtype=torch.uint8).view(shape)
    nothing = torch.empty(0, *shape[1:], dtype=torch.uint8)
    source = Source(ClassBank(images, offsets), nothing, torch.empty(0, dtype=torch.int64), info)
    networks = [build_for(model, source) for model in recipe.pool]
    members = Members(networks, recipe.condense, recipe.seed)
    return Hand(
        recipe.condense, recipe.seed, RealImages(source, recipe.condense, recipe.seed, torch.device("cpu")), members
    )


def as_arrays(value: Any) -> Any:
    """Turn tensors into arrays, which are sent as bytes; torch would send its own through shared memory."""
    if isinstance(value, Tensor):
        return value.detach().numpy()
    if isinstance(value, tuple | list):
        return tuple(as_arrays(part) for part in value)
    return {key: as_arrays(part) for key, part in value.items()} if isinstance(value, dict) else value


def as_tensors(value: Any) -> Any:
    """Turn arrays into tensors of torch's own memory: how numbers are aligned may decide their last bits."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).clone()
    if isinstance(value, tuple):
        return tuple(as_tensors(part) for part in value)
    return {key: as_tensors(part) for key, part in value.items()} if isinstance(value, dict) else value
