"""What a model family brings along: the network with its feature layers (taps), and the arguments it takes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.schema.base import Strict

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class TapInfo:
    """One layer whose features are read.

    Attributes:
        name: What it is called in its family, such as `block1`.
        kind: Where the semantic vector comes from: the average of a map, or a class token beside patch tokens.
        channels: Length of the semantic vector and channels of the spatial map.
        side: Side of the spatial map, the shorter one if it is no square.
        grid: Its height and width if it is none, as where patches are not square.
    """

    name: str
    kind: Literal["map", "tokens"]
    channels: int
    side: int
    grid: tuple[int, int] | None = None


class TapOutput(NamedTuple):
    """Features of one tap: `semantic` B x channels, `spatial` B x channels x side x side (or the tap's `grid`)."""

    semantic: Tensor
    spatial: Tensor


class Pass(NamedTuple):
    """What one pass gives: `stages`, the features of every tap as the network lays them out, and the rest.

    `embedding` is what the classifier sees, B x D; `logits` are B x classes.
    """

    stages: Sequence[Tensor]
    embedding: Tensor
    logits: Tensor


class Network(nn.Module):
    """A network with its intermediate features as explicit outputs.

    Args:
        taps: What the stages of a pass are, in their order.
        channels: Colour channels of its input, 1 or 3.
        heads: Dotted names of the classifiers: one, or two that are averaged.
    """

    def __init__(self, *, taps: tuple[TapInfo, ...], channels: int, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.taps, self.channels, self.heads = taps, channels, heads

    def run(self, x: Tensor) -> Pass:
        """Run images B x channels x side x side through everything."""
        raise NotImplementedError

    def tap(self, index: int, stage: Tensor) -> TapOutput:
        """Split one entry of a pass's stages: here a map, its global average the semantic part."""
        return TapOutput(stage.mean((2, 3)), stage)

    def logits(self, x: Tensor) -> Tensor:
        """Compute the logits alone, B x classes."""
        return self.run(x).logits


@dataclass(frozen=True)
class Shape:
    """What a network is built for.

    Attributes:
        classes: Number of classes.
        side: Side of its input in pixels.
        channels: Colour channels of the source, or of the pretrained weights.
        modules: Modules to tap by name, for networks of libraries; None: the default ones.
    """

    classes: int
    side: int
    channels: int
    modules: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Family:
    """One id of a source.

    Attributes:
        make: Builds the network from all arguments and the shape, drawing from torch's global CPU generator as its
            library does. Raises ModelError for a side or a combination of arguments that does not work. A module-level
            function, so that models can be copied and pickled.
        args: The arguments whose values and defaults are ours to say.
        known: Without `args`: the names that the library takes; None if it says itself what it does not take.
        fixed: Arguments of the library that are not for specs to set, each with the reason.
        load: Turns the tensors of a checkpoint, under its library's names, into values for a network that `make` built:
            every parameter and buffer that the checkpoint has, classifiers left out or not. Raises ModelError.
    """

    make: Callable[[Mapping[str, Any], Shape], Network]
    args: type[Strict] | None = None
    known: tuple[str, ...] | None = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    load: Callable[[Network, Mapping[str, Tensor]], dict[str, Tensor]] = lambda net, state: dict(state)

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check the arguments of a spec, and fill in the defaults of `args`.

        Raises:
            ModelError: They are wrong, all of them at once.
        """
        found = [f"args.{name} cannot be set: {self.fixed[name]}" for name in given if name in self.fixed]
        values = {name: value for name, value in given.items() if name not in self.fixed}
        unknown = [name for name in values if self.known is not None and name not in self.known]
        if self.args is not None:
            unknown = []
            try:
                values = self.args.model_validate(values).model_dump()
            except ValidationError as error:
                for one in error.errors():
                    name = ".".join(map(str, one["loc"]))
                    if one["type"] == "extra_forbidden":
                        unknown.append(name)
                    else:
                        found.append(f"args.{name} = {one['input']!r}: {one['msg']}")
        found += [f"args.{name} is unknown: {self._alternatives(name)}" for name in unknown]
        if found:
            raise ModelError("; ".join(found))
        return values

    def _alternatives(self, name: str) -> str:
        if self.known:
            return f"{did_you_mean(name, self.known)}its configuration has no such field"
        names = list(self.args.model_fields) if self.args else []
        return f"{did_you_mean(name, names)}allowed are {', '.join(names)}" if names else "this model takes no args"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is closest, as the start of a sentence; empty if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""
