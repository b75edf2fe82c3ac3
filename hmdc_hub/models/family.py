"""What a model family brings along: the network with its feature layers (taps), and the arguments it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.schema.base import Strict
from hmdc_hub.text import close, did_you_mean

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class TapInfo:
    """One layer whose features are read."""

    name: str  # what it is called in its family, such as `block1`
    kind: Literal["map", "tokens"]  # the semantic vector is the average of a map, or a class token beside patch tokens
    channels: int  # length of the semantic vector and channels of the spatial map
    side: int  # side of the spatial map, the shorter one if it is no square
    grid: tuple[int, int] | None = None  # its height and width if it is none, as where patches are not square


class TapOutput(NamedTuple):
    """Features of one tap."""

    semantic: Tensor  # B x channels
    spatial: Tensor  # B x channels x side x side (or the tap's `grid`)


class Pass(NamedTuple):
    """What one pass gives."""

    stages: Sequence[Tensor]  # the features of every tap as the network lays them out
    embedding: Tensor  # what the classifier sees, B x D
    logits: Tensor  # B x classes


class Network(nn.Module):
    """A network with its intermediate features as explicit outputs.

    `taps` are what the stages of a pass are, in their order; `channels` those of its input, 1 or 3; `heads` the dotted
    names of its classifiers, one, or two that are averaged.
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
    """What a network is built for."""

    classes: int
    side: int  # of its input in pixels
    channels: int  # colour channels of the source, or of the pretrained weights
    modules: tuple[str, ...] | None = None  # modules to tap by name, for networks of libraries; None: the default ones


@dataclass(frozen=True)
class Family:
    """One id of a source."""

    # Builds the network from all arguments and the shape, drawing from torch's global CPU generator as its library
    # does; ModelError for a side or a combination of arguments that does not work. It can be pickled, as models are.
    make: Callable[[Mapping[str, Any], Shape], Network]
    args: type[Strict] | None = None  # the arguments whose values and defaults are ours to say
    known: tuple[str, ...] | None = ()  # without `args`: those that the library takes; None if it says itself
    fixed: Mapping[str, str] = field(default_factory=dict)  # those that specs may not set, each with the reason
    # Turns the tensors of a checkpoint, under its library's names, into values for a network that `make` built: every
    # parameter and buffer that the checkpoint has, classifiers left out or not.
    load: Callable[[Network, Mapping[str, Tensor]], dict[str, Tensor]] = lambda net, state: dict(state)

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check the arguments of a spec, all of them at once, and fill in the defaults of `args`."""
        found = [f"args.{name} cannot be set: {self.fixed[name]}" for name in given if name in self.fixed]
        values = {name: value for name, value in given.items() if name not in self.fixed}
        unknown = [name for name in values if self.known is not None and name not in self.known]
        names = self.known or ()
        others = "its configuration has no such field" if names else "this model takes no args"
        if self.args is not None:
            unknown, names = [], tuple(self.args.model_fields)
            others = f"allowed are {', '.join(names)}"
            try:
                values = self.args.model_validate(values).model_dump()
            except ValidationError as error:
                for one in error.errors():
                    name = ".".join(map(str, one["loc"]))
                    if one["type"] == "extra_forbidden":
                        unknown.append(name)
                    else:
                        found.append(f"args.{name} = {one['input']!r}: {one['msg']}")
        for name in unknown:
            meant = did_you_mean(close(name, names, most=1))
            found.append(f"args.{name} is unknown: {f'{meant} ' if meant else ''}{others}")
        if found:
            raise ModelError("; ".join(found))
        return values
