"""Turn image files of any kind into uint8 pixels of one size.

In this order: the EXIF orientation is applied; 16-bit grey becomes 8-bit; transparent pixels are laid over white, the
paper that drawings, logos and digits with an alpha channel are made for; colour becomes grey by ITU-R 601 luma, or grey
becomes colour by repetition; the image is resized with Pillow's bicubic filter, whose support grows with the reduction
(antialiasing). An image that has the right size already keeps its pixels exactly.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.reader import Encoded, Part, locate

_CHUNK = 256
_THREADS = 4
_LARGE = 16 * 1024
"""Bytes of a file from which threads pay: Pillow decodes outside the interpreter lock, but small files are all lock."""


def open_image(encoded: Encoded) -> Image.Image:
    """Decode one image and turn it upright.

    Args:
        encoded: The bytes of an image file, the path of one, or an image that is open already.

    Raises:
        SourceError: There is no image, the file is missing, or it cannot be decoded.
    """
    if encoded is None:
        raise SourceError("the image is empty (null)", hint="Remove the row from the dataset, or choose other rows.")
    if isinstance(encoded, Image.Image):
        return encoded
    if isinstance(encoded, str) and not Path(encoded).is_file():
        raise SourceError(f"the image file {encoded!r} does not exist", hint="Put it back, or remove the row.")
    try:
        image = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them into
        name = f"the image file {encoded!r}" if isinstance(encoded, str) else f"the image ({len(encoded)} bytes)"
        text = str(error).split(" <_io")[0] or type(error).__name__
        raise SourceError(
            f"{name} cannot be decoded: {text}", hint="Replace the damaged image, or remove the row."
        ) from error


def to_pixels(image: Image.Image, *, size: int, channels: int, fit: Literal["crop", "stretch"]) -> NDArray[np.uint8]:
    """Convert an upright image to uint8 pixels, channels x size x size.

    Args:
        image: Any mode but 32-bit integers and floats, whose white is not defined.
        size: Side in pixels of the result.
        channels: 3: colour; 1: grey.
        fit: crop: the largest centred square is resized; stretch: the whole image is, and proportions change.

    Raises:
        SourceError: The image has no pixels, or a mode without a defined white.
    """
    if 0 in image.size:
        raise SourceError(
            f"the image is {image.width} x {image.height} pixels, so it has none",
            hint="Replace the image, or remove the row.",
        )
    image = _eight_bits(image)
    try:
        image = _opaque(image)
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
    parts: tuple[Part, ...],
    column: str,
    fit: Literal["crop", "stretch"],
) -> None:
    """Decode images into an array.

    Args:
        out: N x channels x size x size, written to.
        images: N images in the order of the rows.
        positions: int64 N; image k goes to `out[positions[k]]`.
        parts: Where the rows come from, for errors.
        column: Likewise the image column.
        fit: As `to_pixels`.

    Raises:
        SourceError: An image cannot be used; names the first such row.
    """
    convert = partial(_convert, size=out.shape[-1], channels=out.shape[1], fit=fit)
    rows = iter(images)
    done = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(rows, _CHUNK)):
            results = pool.map(convert, chunk) if _is_large(chunk[0]) else map(convert, chunk)
            for _ in chunk:
                try:
                    out[positions[done]] = next(results)
                except SourceError as error:
                    split, row = locate(parts, done)
                    message = f"split {split!r}, column {column!r}, row {row} (counted from 0): {error.message}"
                    raise SourceError(message, hint=error.hint) from error
                done += 1


def _is_large(encoded: Encoded) -> bool:
    if isinstance(encoded, str):
        path = Path(encoded)
        return path.is_file() and path.stat().st_size >= _LARGE
    return isinstance(encoded, bytes) and len(encoded) >= _LARGE


def _convert(encoded: Encoded, size: int, channels: int, fit: Literal["crop", "stretch"]) -> NDArray[np.uint8]:
    return to_pixels(open_image(encoded), size=size, channels=channels, fit=fit)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise SourceError(
            f"the image has the mode {image.mode}, 32-bit {'integers' if image.mode == 'I' else 'floats'}, where white "
            "has no defined value",
            hint="Save the images with 8 or 16 bits per channel.",
        )
    if not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _fitted(image: Image.Image, size: int, fit: Literal["crop", "stretch"]) -> Image.Image:
    if image.size == (size, size):
        return image
    width, height = image.size
    if fit == "stretch":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
