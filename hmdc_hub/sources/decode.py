"""Open image files: the header alone, or the whole image, upright."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.reader import Encoded

_PHOTOMETRIC = 262
"""TIFF's tag for what the value 0 means."""

HALVED = "hmdc_halved"
"""Key in `Image.info`: the file has 16 bits per colour, and Pillow gives the upper eight."""


def open_image(encoded: Encoded) -> Image.Image:
    """Decode one image and turn it upright.

    Args:
        encoded: The bytes of an image file, the path of one, or an image that is open already.

    Raises:
        SourceError: There is no image, the file is missing, it cannot be decoded, or it is so large that Pillow takes
            it for an attack (`Image.MAX_IMAGE_PIXELS`); nothing of such a file is decoded.
    """
    return encoded if isinstance(encoded, Image.Image) else decode(_open(encoded), encoded)


@contextmanager
def header(encoded: Encoded) -> Iterator[Image.Image]:
    """Read the header of an image file, which is closed afterwards; arguments and errors as `open_image`."""
    image = _open(encoded)
    try:
        yield image
    finally:
        if image is not encoded:
            image.close()


def _open(encoded: Encoded) -> Image.Image:
    if encoded is None:
        raise SourceError("the image is empty (null)", hint="Remove the row from the dataset, or choose other rows.")
    if isinstance(encoded, Image.Image):
        return encoded
    if isinstance(encoded, str) and not Path(encoded).is_file():
        raise SourceError(f"the image file {encoded!r} does not exist", hint="Put it back, or remove the row.")
    with _refusing(encoded):
        return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


def decode(image: Image.Image, encoded: Encoded) -> Image.Image:
    """Decode an image whose header was read, and turn it upright."""
    if image is encoded:
        return image
    if is_deep(image) and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
        raise SourceError(
            f"{_name(encoded)} is a 16-bit TIFF in which 0 is white, and Pillow reads it as if 0 were black",
            hint="Write it anew with 0 as black, for example by  magick <file> <file>.png",
        )
    with _refusing(encoded):
        halved = is_halved(image)
        # PGM files say what is white, and Pillow has scaled to it. 65535 says nothing: many write it with 12 bits.
        declared = image.mode == "I" and any(
            codec.startswith("ppm") and args[1:] != (65535,) for codec, args in _tiles(image)
        )
        image.load()
        image = ImageOps.exif_transpose(scaled(image, 65535) if declared else image)
    if halved:
        image.info[HALVED] = True
    return image


def _tiles(image: Image.Image) -> list[tuple[str, tuple[Any, ...]]]:
    """List how Pillow will decode the parts of a file: codec and arguments."""
    return [(tile[0], tile[3] if isinstance(tile[3], tuple) else (tile[3],)) for tile in getattr(image, "tile", [])]


def is_halved(image: Image.Image) -> bool:
    """Tell from the header of a file whether Pillow will give the upper eight bits of sixteen."""
    if is_deep(image):
        return False
    return any(
        args[1:] == (65535,) if codec.startswith("ppm") else codec == "SGI16" or re.search(r";16[BLN]$", str(args[0]))
        for codec, args in _tiles(image)
    )


@contextmanager
def _refusing(encoded: Encoded) -> Iterator[None]:
    """Name the file in whatever Pillow raises."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise SourceError(
            f"{_name(encoded)} is larger than what is decoded: {str(error).partition(',')[0]}",
            hint="Resize it first, or remove it.",
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them into
        text = str(error).split(" <_io")[0] or type(error).__name__
        raise SourceError(
            f"{_name(encoded)} cannot be decoded: {text}", hint="Replace the damaged image, or remove the row."
        ) from error


def _name(encoded: Encoded) -> str:
    if isinstance(encoded, str):
        return f"the image file {encoded!r}"
    return f"the image ({len(encoded)} bytes)" if isinstance(encoded, bytes) else "the image"


def is_deep(image: Image.Image) -> bool:
    """Tell whether an image has one band of 16 bits, which Pillow gives as I;16 or I."""
    return image.mode == "I" or image.mode.startswith("I;16")


def scaled(image: Image.Image, white: int) -> Image.Image:
    """Bring an image of one band to 8 bits, 0 black and `white` white; one value that is transparent stays so."""
    values = np.asarray(image)
    if image.mode == "F":
        pixels = np.rint(values.clip(0, white) * (255 / white))
    else:
        pixels = (values.astype(np.uint32).clip(0, white) * 255 + white // 2) // white
    grey = Image.fromarray(pixels.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey
