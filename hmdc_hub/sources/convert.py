"""Turn image files of any kind into uint8 pixels of one size.

In this order: the EXIF orientation is applied; more than 8 bits become 8, by a white that holds for the whole source
(`Levels`); transparent pixels are laid over a ground, by default white, the paper that drawings, logos and digits with
an alpha channel are made for; colour becomes grey by ITU-R 601 luma, or grey becomes colour by repetition; the image is
resized with Pillow's bicubic filter, whose support grows with the reduction (antialiasing). An image that has the right
size already keeps its pixels exactly.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.decode import decode, header
from hmdc_hub.sources.levels import Levels, eight_bits
from hmdc_hub.sources.reader import Encoded

Ground = Literal["white", "black"]

_CHUNK = 256
_THREADS = 4
_LARGE = 16 * 1024
"""Bytes of a file from which threads pay: Pillow decodes outside the interpreter lock, but small files are all lock."""

_HUGE = 2**25
"""Pixels from which images are decoded one at a time: a few copies of four bytes each take half a gigabyte."""

_ALONE = threading.Lock()

_Result = TypeVar("_Result")


def to_pixels(
    image: Image.Image,
    *,
    size: int,
    channels: int,
    fit: Literal["crop", "stretch"],
    background: Ground = "white",
    levels: Levels | None = None,
) -> NDArray[np.uint8]:
    """Convert an upright image to uint8 pixels, channels x size x size.

    Args:
        image: As `open_image` gives it.
        size: Side in pixels of the result.
        channels: 3: colour; 1: grey.
        fit: crop: the largest centred square is resized; stretch: the whole image is, and proportions change.
        background: What transparent pixels are laid over.
        levels: White of images of more than 8 bits; None: 65535, and 1.0 of floats.

    Raises:
        SourceError: The image has no pixels, values without a defined white, or a mode without a conversion.
    """
    if 0 in image.size:
        raise SourceError(
            f"the image is {image.width} x {image.height} pixels, so it has none",
            hint="Replace the image, or remove the row.",
        )
    image = eight_bits(image, levels)
    try:
        image = _opaque(image, background)
        # By way of RGB, since some modes (LAB) have no conversion to grey of their own.
        image = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
        image = image.convert("RGB" if channels == 3 else "L")
    except ValueError as error:
        raise SourceError(
            f"the image has the mode {image.mode}, which has no conversion to RGB", hint="Save it as PNG or JPEG."
        ) from error
    pixels = np.asarray(_fitted(image, size, fit))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == 3 else pixels[None]


def fill(
    out: NDArray[np.uint8],
    images: Iterable[Encoded],
    positions: NDArray[np.int64],
    where: Callable[[int], str],
    fit: Literal["crop", "stretch"],
    *,
    background: Ground = "white",
    levels: Levels,
) -> None:
    """Decode images into an array.

    Args:
        out: N x channels x size x size, written to.
        images: N images in the order of the rows.
        positions: int64 N; image k goes to `out[positions[k]]`.
        where: Names row k of the images, for errors.
        fit: As `to_pixels`.
        background: Likewise.
        levels: Likewise.

    Raises:
        SourceError: An image cannot be used; names the first such row.
    """
    convert = partial(
        _convert, size=out.shape[-1], channels=out.shape[1], fit=fit, background=background, levels=levels
    )
    # Pillow warns of half of what it refuses.
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        for done, pixels in enumerate(_each(convert, images)):
            if isinstance(pixels, SourceError):
                raise SourceError(f"{where(done)}: {pixels.message}", hint=pixels.hint) from pixels
            out[positions[done]] = pixels


def _each(function: Callable[[Encoded], _Result], images: Iterable[Encoded]) -> Iterator[_Result]:
    """Map images in their order, on several threads if they are large."""
    rows = iter(images)
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(rows, _CHUNK)):
            yield from pool.map(function, chunk) if _is_large(chunk[0]) else map(function, chunk)


def _is_large(encoded: Encoded) -> bool:
    if isinstance(encoded, str):
        path = Path(encoded)
        return path.is_file() and path.stat().st_size >= _LARGE
    return isinstance(encoded, bytes) and len(encoded) >= _LARGE


def _convert(encoded: Encoded, **options: Any) -> NDArray[np.uint8] | SourceError:
    """Decode and convert one image, the huge ones one at a time."""
    try:
        with header(encoded) as image, _ALONE if image.width * image.height > _HUGE else nullcontext():
            return to_pixels(decode(image, encoded), **options)
    except SourceError as error:
        return error


def _opaque(image: Image.Image, background: Ground) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def _fitted(image: Image.Image, size: int, fit: Literal["crop", "stretch"]) -> Image.Image:
    if image.size == (size, size):
        return image
    width, height = image.size
    if fit == "stretch":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
