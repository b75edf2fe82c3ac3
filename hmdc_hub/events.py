"""What long work tells its caller while it runs, and how the caller asks it to stop.

The libraries never print: they call a `Callback` with one of these, and `pipeline.progress` decides what a person sees.
No torch here, every field is plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hmdc_hub.errors import Interrupted


@dataclass(frozen=True)
class Stage:
    """A part of the work begins; `name` is source, initialisation, bank, condense, evaluate, package or resume."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class ImageStep:
    """One image step is done, `done` of `total` in the whole run."""

    outer: int  # outer iteration and image step in it, both from 0
    inner: int
    done: int
    total: int
    # Mean over classes of each objective: `match/convnet3`, `distill/convnet3+vit`; of several sizes
    # `ipc10/match/convnet3`.
    losses: Mapping[str, float]
    # Of each objective in the image gradient (mean absolute weighted gradient, normalised to sum 1 for each size), at
    # steps where the balance is updated; empty otherwise.
    shares: Mapping[str, float]
    accuracies: Mapping[str, float]  # of each network on the step's real minibatches, in [0, 1], by name
    clamped: float  # share of pixels at a bound, in [0, 1]
    images: int  # real and synthetic ones that went through the matching step
    images_per_second: float = 0.0  # the same by the time of the whole step
    seconds_left: float = 0.0  # estimate for the rest of condensing


@dataclass(frozen=True)
class Training:
    """One evaluation training is done, `done` of `total`."""

    done: int
    total: int
    model: str
    training_set: str
    accuracy: float
    seconds_left: float


@dataclass(frozen=True)
class Note:
    """Something worth a line, such as a checkpoint that was skipped because it was damaged."""

    text: str
    detail: bool = False  # of what is as it should be: a person who did not ask for it need not see it


@dataclass(frozen=True)
class ImageGrid:
    """The synthetic images as they are, at a network reset."""

    png: bytes  # a contact sheet, one row per class, as a PNG file
    caption: str  # what it shows, such as `after 500 of 10000 image steps`


Event = Stage | ImageStep | Training | Note | ImageGrid
Callback = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore an event."""


@dataclass
class StopFlag:
    """Set by a signal handler, looked at between steps."""

    signal_number: int = 0  # while nobody asked

    def raise_if_set(self, message: str, *, hint: str = "") -> None:
        """Raise `Interrupted` with this message if a stop was asked for."""
        if self.signal_number:
            raise Interrupted(message, signal_number=self.signal_number, hint=hint)
