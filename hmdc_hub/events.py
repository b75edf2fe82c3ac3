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
    """A part of the work begins; `name` is source, start, condense, evaluate, package or resume."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class ImageStep:
    """One image step is done.

    Attributes:
        outer: Outer iteration, from 0; `inner` likewise.
        done: Image steps done in the whole run, of `total`.
        losses: Mean over classes of each objective, by name (`match/convnet3`, `distill/convnet3+vit`).
        shares: Each objective's share of the image gradient (mean absolute weighted gradient, normalised to sum 1), by
            name, at steps where the balance is updated; empty otherwise.
        accuracies: Running training accuracy of each network on its real minibatches, in [0, 1], by name.
        clamped: Share of pixels at a bound, in [0, 1].
        images: Real and synthetic images that went through the matching step.
        images_per_second: The same by the time of the whole step.
        seconds_left: Estimate for the rest of condensing.
    """

    outer: int
    inner: int
    done: int
    total: int
    losses: Mapping[str, float]
    shares: Mapping[str, float]
    accuracies: Mapping[str, float]
    clamped: float
    images: int
    images_per_second: float = 0.0
    seconds_left: float = 0.0


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


@dataclass(frozen=True)
class ImageGrid:
    """The synthetic images as they are, at a network reset.

    Attributes:
        png: A contact sheet, one row per class, as a PNG file's bytes.
        caption: What it shows, such as `after 500 of 10000 image steps`.
    """

    png: bytes
    caption: str


Event = Stage | ImageStep | Training | Note | ImageGrid
Callback = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore an event."""


@dataclass
class StopFlag:
    """Set by a signal handler, looked at between steps.

    Attributes:
        signal_number: 0 while nobody asked.
    """

    signal_number: int = 0

    def raise_if_set(self, message: str, *, hint: str = "") -> None:
        """Raise `Interrupted` with this message if a stop was asked for."""
        if self.signal_number:
            raise Interrupted(message, signal_number=self.signal_number, hint=hint)
