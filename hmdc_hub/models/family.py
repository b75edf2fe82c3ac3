"""What a model family brings along: the network with its taps, and the arguments it takes.

A family is one small file with a `Network` and a `Family`, and one line in `hmdc_hub.models.build.FAMILIES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

Value = int | float | bool | str | list[int]


@dataclass(frozen=True)
class TapInfo:
    """One place where features are read.

    Attributes:
        name: What the place is called in its family, such as `block1`.
        kind: Where the semantic vector comes from: the average of a map, or a class token beside patch tokens.
        channels: Length of the semantic vector and channels of the spatial map.
        side: Side of the spatial map.
    """

    name: str
    kind: Literal["map", "tokens"]
    channels: int
    side: int


class TapOutput(NamedTuple):
    """Features of one tap: `semantic` B x channels, `spatial` B x channels x side x side."""

    semantic: Tensor
    spatial: Tensor


class Network(nn.Module):
    """A network with its intermediate features as explicit outputs (hooks would break `torch.func`).

    A family gives `stages`, `embed`, and `tap` where its features are no B x channels x side x side maps.

    Args:
        taps: What `stages` returns, in its order.
        channels: Colour channels of its input, 1 or 3.
        head: Dotted name of the classifier, which maps what `embed` returns to logits.
    """

    def __init__(self, *, taps: tuple[TapInfo, ...], channels: int, head: str) -> None:
        super().__init__()
        self.taps = taps
        self.channels = channels
        self.head = head

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute the features of all taps from images B x channels x side x side, as the network lays them out."""
        raise NotImplementedError

    def tap(self, stage: Tensor) -> TapOutput:
        """Split one entry of `stages`: here a map B x channels x side x side, its global average the semantic part."""
        return TapOutput(stage.mean((2, 3)), stage)

    def embed(self, stage: Tensor) -> Tensor:
        """Turn the last entry of `stages` into what the classifier sees, B x D."""
        raise NotImplementedError

    def classify(self, embedding: Tensor) -> Tensor:
        """Map B x D to logits B x classes."""
        logits: Tensor = self.get_submodule(self.head)(embedding)
        return logits


@dataclass(frozen=True)
class Shape:
    """What a network is built for: number of classes, side of its input in pixels, colour channels of the source."""

    classes: int
    side: int
    channels: int


@dataclass(frozen=True)
class Arg:
    """One argument of a family.

    Attributes:
        default: Its value if the spec does not give it; its type is the argument's type. Numbers must be above 0.
        choices: The texts that are allowed; empty for other types.
    """

    default: Value
    choices: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        """What is allowed, as a clause after the argument's name."""
        if self.choices:
            return f"must be {' or '.join(self.choices)}"
        if isinstance(self.default, bool):
            return "must be true or false"
        if isinstance(self.default, int):
            return "must be a whole number of at least 1"
        if isinstance(self.default, float):
            return "must be a number above 0"
        return "must be a list of whole numbers of at least 1"

    def allows(self, value: object) -> bool:
        """Whether a value keeps the rule; true and false are no numbers."""
        if self.choices:
            return value in self.choices
        if isinstance(self.default, bool):
            return isinstance(value, bool)
        if isinstance(self.default, list):
            return isinstance(value, list) and len(value) > 0 and all(map(_is_count, value))
        if isinstance(self.default, int):
            return _is_count(value)
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Family:
    """One id of a source.

    Attributes:
        args: The arguments it takes.
        make: Builds the network from all arguments and the shape, drawing from torch's global CPU generator as its
            library does. Raises ModelError for a side or a combination of arguments that does not work. A module-level
            function, so that models can be copied and pickled.
        fixed: Arguments of the library that are not for specs to set, each with the reason.
    """

    args: Mapping[str, Arg]
    make: Callable[[Mapping[str, Any], Shape], Network]
    fixed: Mapping[str, str]

    def problems(self, given: Mapping[str, object]) -> list[str]:
        """Say what is wrong with the arguments of a spec, one sentence each."""
        found = []
        for name, value in given.items():
            if name in self.fixed:
                found.append(f"args.{name} cannot be set: {self.fixed[name]}")
            elif name not in self.args:
                found.append(f"args.{name} is unknown: {self._alternatives(name)}")
            elif not self.args[name].allows(value):
                found.append(f"args.{name} = {value!r}: {self.args[name].rule}")
        return found

    def _alternatives(self, name: str) -> str:
        if not self.args:
            return "this model takes no args"
        return f"{did_you_mean(name, self.args)}allowed are {', '.join(self.args)}"

    def complete(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """Fill in the defaults of the arguments that are not given; whole numbers become floats where due."""
        values: dict[str, Value] = {}
        for name, arg in self.args.items():
            value = given.get(name, arg.default)
            values[name] = float(value) if isinstance(arg.default, float) and isinstance(value, int) else value
        return values


def did_you_mean(name: str, known: Mapping[str, object]) -> str:
    """Suggest the known name that is closest, as the start of a sentence; empty if none is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}? " if close else ""
