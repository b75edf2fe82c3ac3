"""What is white in images of more than 8 bits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

import numpy as np
from PIL import Image

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.decode import HALVED, decode, header, is_deep, is_halved, scaled
from hmdc_hub.sources.reader import Encoded

_DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras and scanners use of 16."""

_ROUNDING = 1e-4
"""How far outside [0, 1] floats may lie that are meant to be in it."""


class Levels:
    """What is white where images have more than 8 bits: found once, over a whole source, when the first is met.

    Of 16 bits a camera may use 10, 12 or 14, and no single image tells how many: the brightest of all does. Sources of
    8 bits are never looked through. Several threads may ask at a time.

    Args:
        images: Gives all images of the source, every time it is called.
    """

    def __init__(self, images: Callable[[], Iterable[Encoded]]) -> None:
        self._images = images
        self._lock = threading.Lock()
        self._bits: int | None = None
        self._spans: dict[str, tuple[float, float]] = {}

    @property
    def bits(self) -> int:
        """Bits in use of 16-bit images: the least of 8, 10, 12, 14 and 16 that hold the brightest pixel."""
        with self._lock:
            if self._bits is None:
                brightest = 0
                for value in map(_brightest, self._images()):
                    brightest = max(brightest, value)
                    if brightest >> _DEPTHS[-2]:
                        break  # nothing can change it any more
                self._bits = next(bits for bits in _DEPTHS if brightest < 2**bits)
            return self._bits

    def span(self, mode: str) -> tuple[float, float]:
        """Give the least and the largest value of all images of Pillow's mode I or F."""
        with self._lock:
            if mode not in self._spans:
                lows, highs = zip(*filter(None, map(partial(_span, mode=mode), self._images())), strict=True)
                self._spans[mode] = min(lows), max(highs)
            return self._spans[mode]

    @property
    def in_use(self) -> int | None:
        """Bits in use of the images met so far that have more than eight; None: there were none, or all 16 are."""
        return self._bits if self._bits != _DEPTHS[-1] else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided for the images met so far."""
        notes = []
        if self.in_use:
            notes.append(
                f"no pixel of the 16-bit images is brighter than {2**self.in_use - 1}: they are taken for images of "
                f"{self.in_use} bits, and that is white"
            )
        if "F" in self._spans:
            notes.append("floating-point images lie in [0, 1]: 1.0 is white")
        return tuple(notes)


def _brightest(encoded: Encoded) -> int:
    """Give the largest value of an image of 16 bits; 0 for others, and for those that are refused later."""
    with suppress(SourceError), header(encoded) as image:
        if is_deep(image) or is_halved(image):
            image = decode(image, encoded)
            values = np.asarray(image)
            if HALVED in image.info:
                return 256 * int((values[..., :3] if values.ndim == 3 else values).max(initial=0)) + 255
            return int(values.max(initial=0)) if is_deep(image) else 0
    return 0


def _span(encoded: Encoded, mode: str) -> tuple[float, float] | None:
    """Give the least and the largest number in an image of a mode; None for others."""
    with suppress(SourceError), header(encoded) as image:
        if image.mode == mode and (image := decode(image, encoded)).mode == mode:
            values = np.asarray(image)
            values = values[np.isfinite(values)]
            return (float(values.min()), float(values.max())) if len(values) else None
    return None


def eight_bits(image: Image.Image, levels: Levels | None) -> Image.Image:
    """Bring an image of more than 8 bits to 8; others are given back.

    Args:
        image: As `open_image` gives it.
        levels: What is white in the source; None: 65535, and 1.0 of floats.

    Raises:
        SourceError: It has values for which white is not defined.
    """
    if image.mode == "F":
        _check_floats(image, levels)
        return scaled(image, 1)
    if image.mode == "I":
        _check_sixteen_bits(image, levels)
    bits = levels.bits if levels and (is_deep(image) or HALVED in image.info) else _DEPTHS[-1]
    if is_deep(image):
        return scaled(image, 2**bits - 1)
    _check_upper_bits(bits)
    return image


def _check_upper_bits(bits: int) -> None:
    if bits < _DEPTHS[-1]:
        raise SourceError(
            f"the image has 16 bits per colour, of which the upper 8 are read, but the images of the source use only "
            f"the lower {bits}: nothing is brighter than {2**bits - 1} of 65535, and they would come out black",
            hint="Write them anew with 8 bits. PNG files, in Python:\n"
            f"  values = torchvision.io.decode_image(file, mode='UNCHANGED').int() >> {bits - 8}\n"
            "  torchvision.io.write_png(values.byte(), file)\n"
            f"other files:  magick <file> -evaluate multiply {2 ** (16 - bits)} -depth 8 <file>.png",
        )


def _check_sixteen_bits(image: Image.Image, levels: Levels | None) -> None:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        span = levels.span("I") if levels else (low, high)
        raise _no_white("I, 32-bit integers", "whole numbers from 0 to 65535", span)


def _check_floats(image: Image.Image, levels: Levels | None) -> None:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise SourceError(
            f"the image has {np.count_nonzero(~np.isfinite(values))} values that are no numbers (NaN or infinite)",
            hint="Replace them, for example by numpy.nan_to_num, or remove the row.",
        )
    low, high = levels.span("F") if levels else (float(values.min()), float(values.max()))
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise _no_white("F, 32-bit floats", "floats from 0 to 1", (low, high))


def _no_white(mode: str, rule: str, span: tuple[float, float]) -> SourceError:
    low, high = (f"{value:.6g}" for value in span)
    return SourceError(
        f"the image has the mode {mode}, and such images of the source reach from {low} to {high}; what is white is "
        f"defined for {rule}",
        hint="Choose what is black and what is white, the same for all, and write every one anew in Python, here with "
        "the least and the largest value, in place of the old files:\n"
        f"  values = (numpy.asarray(PIL.Image.open(file)) - ({low})) / ({high} - ({low}))\n"
        "  PIL.Image.fromarray((values.clip(0, 1) * 65535).astype('uint16')).save(file.rsplit('.', 1)[0] + '.png')",
    )
