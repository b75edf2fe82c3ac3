"""From image files of any kind to uint8 pixels of one size, in memory or in a file that is mapped into it.

In this order: the EXIF orientation is applied; more than 8 bits become 8, by a white that holds for the whole source
(`Levels`); transparent pixels are laid over a background, by default white, the paper that drawings, logos and digits
with an alpha channel are made for; colour becomes grey by ITU-R 601 luma, or grey becomes colour by repetition; the
image is resized with Pillow's bicubic filter, whose support grows with the reduction (antialiasing). An image that has
the right size already keeps its pixels exactly.
"""

from __future__ import annotations

import errno
import io
import math
import mmap
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from hmdc_hub.errors import RunError, SourceError
from hmdc_hub.sources.reader import Encoded

Fit = Literal["crop", "stretch"]
Background = Literal["white", "black"]

MAPPED_FROM = 2**30  # most bytes of the decoded images of a source that are kept in memory
CHUNK, THREADS = 256, 4
LARGE = 2**14  # bytes of a file from which threads pay: Pillow decodes outside the lock, but small files are all lock
HUGE = 2**25  # pixels from which images are decoded one at a time, in one thread: each keeps what it has allocated
ROUNDING = 1e-4  # how far outside [0, 1] floats may lie that are meant to be in it

_HALVED = "hmdc_halved"  # key in `Image.info`: the file has 16 bits per colour, and Pillow gives the upper eight
_PHOTOMETRIC = 262  # TIFF's tag for what the value 0 means
_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners use of 16


def open_image(encoded: Encoded) -> Image.Image:
    """Decode the bytes of an image file, or the path of one, and turn it upright; an open image stays as it is.

    Nothing is decoded of a file so large that Pillow takes it for an attack (`Image.MAX_IMAGE_PIXELS`).
    """
    with open_header(encoded) as image:
        return _decode(image, encoded)


def open_header(encoded: Encoded) -> AbstractContextManager[Image.Image]:
    """Open an image file, of which only the header is read, until the block ends; as `open_image`."""
    if isinstance(encoded, Image.Image):
        return nullcontext(encoded)
    if encoded is None:
        raise SourceError("the image is empty (null)", hint="Remove the row from the dataset, or choose other rows.")
    if isinstance(encoded, str) and not Path(encoded).is_file():
        raise SourceError(f"the image file {encoded!r} does not exist", hint="Put it back, or remove the row.")
    with _named_errors(encoded):
        return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


def _decode(image: Image.Image, encoded: Encoded) -> Image.Image:
    if image is encoded:
        return image
    if _is_deep(image) and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
        raise SourceError(
            f"{_name(encoded)} is a 16-bit TIFF in which 0 is white, and Pillow reads it as if 0 were black",
            hint="Write it anew with 0 as black, for example by  magick <file> <file>.png",
        )
    with _named_errors(encoded):
        halved = _is_halved(image)
        # PGM files say what is white, and Pillow has scaled to it. 65535 says nothing: many write it with 12 bits.
        named = (codec.startswith("ppm") and args[1:] != (65535,) for codec, args in _tiles(image))
        declared = image.mode == "I" and any(named)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        image = _to_white(image, 65535) if declared else image
    if halved:
        image.info[_HALVED] = True
    return image


def _tiles(image: Image.Image) -> list[tuple[str, tuple[Any, ...]]]:
    """List how Pillow will decode the parts of a file: codec and arguments."""
    return [(tile[0], tile[3] if isinstance(tile[3], tuple) else (tile[3],)) for tile in getattr(image, "tile", [])]


def _is_halved(image: Image.Image) -> bool:
    """Tell from the header whether Pillow will give the upper eight bits of sixteen."""
    return not _is_deep(image) and any(
        args[1:] == (65535,) if codec.startswith("ppm") else codec == "SGI16" or re.search(r";16[BLN]$", str(args[0]))
        for codec, args in _tiles(image)
    )


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


@contextmanager
def _named_errors(encoded: Encoded) -> Iterator[None]:
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


# More than eight bits


class Levels:
    """What is white where images have more than 8 bits: found once, over a whole source, when the first is met.

    Of 16 bits a camera may use 10, 12 or 14, and no single image tells how many: the brightest of all does. Sources of
    8 bits are never looked through. Several threads may ask at a time. `images` gives all images at every call.
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
                for image in _decoded(self._images(), lambda image: _is_deep(image) or _is_halved(image)):
                    values = np.asarray(image)
                    if _HALVED in image.info:
                        top = int((values[..., :3] if values.ndim == 3 else values).max(initial=0))
                        brightest = max(brightest, 256 * top + 255)
                    elif _is_deep(image):
                        brightest = max(brightest, int(values.max(initial=0)))
                    if brightest >> _DEPTHS[-2]:
                        break  # nothing can change it any more
                self._bits = next(bits for bits in _DEPTHS if brightest < 2**bits)
            return self._bits

    def span(self, mode: str) -> tuple[float, float]:
        """Give the least and the largest value of all images of Pillow's mode I or F."""
        with self._lock:
            if mode not in self._spans:
                arrays = (np.asarray(one) for one in _decoded(self._images(), lambda image: image.mode == mode))
                finite = (values[np.isfinite(values)] for values in arrays if values.dtype != np.uint8)
                spans = [(float(values.min()), float(values.max())) for values in finite if len(values)]
                self._spans[mode] = min(low for low, _ in spans), max(high for _, high in spans)
            return self._spans[mode]

    @property
    def in_use(self) -> int | None:
        """Bits in use of the images met so far that have more than eight; None: there were none, or all 16 are."""
        return self._bits if self._bits != _DEPTHS[-1] else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided for the images met so far, as lines for the user."""
        notes = []
        if self.in_use:
            notes.append(
                f"no pixel of the 16-bit images is brighter than {2**self.in_use - 1}: they are taken for images of "
                f"{self.in_use} bits, and that is white"
            )
        if "F" in self._spans:
            notes.append("floating-point images lie in [0, 1]: 1.0 is white")
        return tuple(notes)


def _decoded(images: Iterable[Encoded], wanted: Callable[[Image.Image], bool]) -> Iterator[Image.Image]:
    """Decode the images whose header is wanted; those that cannot be are refused later."""
    for encoded in images:
        with suppress(SourceError), open_header(encoded) as image:
            if wanted(image):
                yield _decode(image, encoded)


def _eight_bits(image: Image.Image, levels: Levels | None) -> Image.Image:
    if image.mode in ("F", "I"):
        _check_range(image, levels)
    if image.mode == "F":
        return _to_white(image, 1)
    deep = _is_deep(image)
    bits = levels.bits if levels and (deep or _HALVED in image.info) else _DEPTHS[-1]
    if deep:
        return _to_white(image, 2**bits - 1)
    if bits < _DEPTHS[-1]:
        raise SourceError(
            f"the image has 16 bits per colour, of which the upper 8 are read, but the images of the source use only "
            f"the lower {bits}: nothing is brighter than {2**bits - 1} of 65535, and they would come out black",
            hint="Write them anew with 8 bits. PNG files, in Python:\n"
            f"  values = torchvision.io.decode_image(file, mode='UNCHANGED').int() >> {bits - 8}\n"
            "  torchvision.io.write_png(values.byte(), file)\n"
            f"other files:  magick <file> -evaluate multiply {2 ** (16 - bits)} -depth 8 <file>.png",
        )
    return image


def _check_range(image: Image.Image, levels: Levels | None) -> None:
    """Refuse values for which white is not defined, of images of Pillow's mode I or F."""
    values, mode = np.asarray(image), image.mode
    if mode == "F" and not np.isfinite(values).all():
        raise SourceError(
            f"the image has {np.count_nonzero(~np.isfinite(values))} values that are no numbers (NaN or infinite)",
            hint="Replace them, for example by numpy.nan_to_num, or remove the row.",
        )
    least, most = (-ROUNDING, 1 + ROUNDING) if mode == "F" else (0, 65535)
    low, high = float(values.min()), float(values.max())
    if levels and (mode == "F" or low < least or high > most):
        low, high = levels.span(mode)
    if low < least or high > most:
        type_, rule = ("floats", "floats from 0 to 1") if mode == "F" else ("integers", "whole numbers from 0 to 65535")
        raise SourceError(
            f"the image has the mode {mode}, 32-bit {type_}, and such images of the source reach from {low:.6g} to "
            f"{high:.6g}; what is white is defined for {rule}",
            hint="Choose what is black and what is white, the same for all, and write every one anew in Python, here "
            "with the least and the largest value, in place of the old files:\n"
            f"  values = (numpy.asarray(PIL.Image.open(file)) - ({low:.6g})) / ({high:.6g} - ({low:.6g}))\n"
            "  PIL.Image.fromarray((values.clip(0, 1) * 65535).astype('uint16')).save(file.rsplit('.', 1)[0] + '.png')",
        )


def _to_white(image: Image.Image, white: int) -> Image.Image:
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


# Pixels of one size


def to_pixels(
    image: Image.Image,
    *,
    size: int,
    channels: int,
    fit: Fit,
    background: Background = "white",
    levels: Levels | None = None,
) -> NDArray[np.uint8]:
    """Convert an image, as `open_image` gives it, to uint8 pixels, channels x size x size.

    `fit` crop resizes the largest centred square, stretch the whole image. Transparent pixels are laid over
    `background`. `levels` None: white is 65535, and 1.0 of floats.
    """
    if 0 in image.size:
        raise SourceError(
            f"the image is {image.width} x {image.height} pixels, so it has none",
            hint="Replace the image, or remove the row.",
        )
    image = _eight_bits(image, levels)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
        # By way of RGB, since some modes (LAB) have no conversion to grey of their own.
        for mode in ("L" if image.mode in ("1", "L") else "RGB", "RGB" if channels == 3 else "L"):
            image = image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise SourceError(
            f"the image has the mode {image.mode}, which has no conversion to RGB", hint="Save it as PNG or JPEG."
        ) from error
    if image.size != (size, size):
        (width, height), side = image.size, min(image.size)
        left, top = (width - side) / 2, (height - side) / 2
        box = None if fit == "stretch" else (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == 3 else pixels[None]


def fill(
    out: NDArray[np.uint8],
    images: Iterable[Encoded],
    positions: NDArray[np.int64],
    where: Callable[[int], str],
    fit: Fit,
    *,
    background: Background = "white",
    levels: Levels,
) -> None:
    """Decode image k into `out[positions[k]]`, uint8 N x channels x size x size; the rest as `to_pixels`.

    `where` names the first image that cannot be used.
    """
    options: dict[str, Any] = {"fit": fit, "background": background, "levels": levels}

    def converted(encoded: Encoded) -> NDArray[np.uint8] | SourceError:
        def work() -> NDArray[np.uint8]:
            return to_pixels(_decode(image, encoded), size=out.shape[-1], channels=out.shape[1], **options)

        try:
            with open_header(encoded) as image:
                return alone.submit(work).result() if image.width * image.height > HUGE else work()
        except SourceError as error:
            return error

    rows, done = iter(images), 0
    # Pillow warns of half of what it refuses.
    quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
    with quiet, ThreadPoolExecutor(1) as alone, ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(islice(rows, CHUNK)):
            first = chunk[0]
            if isinstance(first, str):
                large = Path(first).is_file() and Path(first).stat().st_size >= LARGE
            else:
                large = isinstance(first, bytes) and len(first) >= LARGE
            for pixels in pool.map(converted, chunk) if large else map(converted, chunk):
                if isinstance(pixels, SourceError):
                    raise SourceError(f"{where(done)}: {pixels.message}", hint=pixels.hint) from pixels
                out[positions[done]] = pixels
                done += 1


# Room for them


def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make an array to decode images into; its values are not set.

    It is in memory up to `MAPPED_FROM` bytes, else in a temporary file that has no name and is gone with the array,
    however the process ends. Such a file costs address space, not memory: the system writes pages that nobody uses to
    the disk and reads them back when they are asked for, unless the folder of temporary files (TMPDIR) is itself kept
    in memory. RunError if it cannot be made, as on a full disk.
    """
    size = math.prod(shape)
    if size <= MAPPED_FROM:
        return np.empty(shape, dtype=np.uint8)
    try:
        # On POSIX the file has no name from here on, and on Windows it is deleted with its last handle.
        with tempfile.TemporaryFile() as file:
            _reserve(file, size)
            # Writable, since torch warns of arrays that are not. The mapping keeps the file when it is closed here.
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.uint8).reshape(shape)
    except OSError as error:
        raise RunError(
            f"{tempfile.tempdir or 'TMPDIR'}: cannot make a temporary file for {size:,} bytes of decoded images, which "
            f"are too many to keep in memory: {error.strerror or error}",
            hint="Free some space there, or name a folder on a larger disk:  export TMPDIR=<folder>",
        ) from error


def _reserve(file: IO[bytes], size: int) -> None:
    """Give a file its space now: a disk that is full later would kill the process (SIGBUS) at a write to the map."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):  # those can reserve no space at all
                raise
    block = bytes(2**20)
    for start in range(0, size, len(block)):
        file.write(block[: size - start])
    file.flush()


def take(images: Tensor, rows: Tensor) -> Tensor:
    """Copy rows of images, uint8 N x channels x side x side, on their device; into `allocate`d room on a CPU."""
    if images.device.type != "cpu":
        return images[rows]
    out = torch.from_numpy(allocate((len(rows), *images.shape[1:])))
    torch.index_select(images, 0, rows, out=out)
    return out
