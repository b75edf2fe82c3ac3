"""What is white in images of more than 8 bits, over a whole source."""

from __future__ import annotations

import importlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL import Image

from hmdc_hub.errors import SourceError
from hmdc_hub.events import Callback, silent
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources import Source, load_source
from hmdc_hub.sources.pixels import Levels, fill, open_image, to_pixels
from hmdc_hub.sources.reader import Encoded
from tests.sources.files import cells, encoded, parquet_folder, png

Values = NDArray[np.float64]


def png16(x: Values, white: int = 65535) -> bytes:
    return encoded(Image.fromarray((x * white).astype(np.uint16)))


def pgm(x: Values, white: int = 65535, declared: int = 65535) -> bytes:
    return b"P5\n%d %d\n%d\n" % (*x.shape[::-1], declared) + (x * white).astype(">u2").tobytes()


def plain_pgm(x: Values, white: int = 4095, declared: int = 4095) -> bytes:
    return b"P2\n%d %d\n%d\n" % (*x.shape[::-1], declared) + " ".join(map(str, (x * white).astype(int).flat)).encode()


def big_endian(x: Values, white: int = 65535) -> bytes:
    values = (x * white).astype(">u2")
    return encoded(Image.frombytes("I;16B", x.shape[::-1], values.tobytes()), "TIFF")


def thirty_two(x: Values, white: int = 65535) -> bytes:
    return encoded(Image.fromarray((x * white).astype(np.int32)), "TIFF")


def floats(x: Values, white: float = 1.0) -> bytes:
    return encoded(Image.fromarray((x * white).astype(np.float32)), "TIFF")


def colour16(x: Values, white: int = 65535, channels: int = 3) -> bytes:
    """Write an opaque PNG of 16 bits per colour, which Pillow cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = np.repeat((x * white).astype(">u2")[..., None], channels, 2)
    if channels in (2, 4):
        values[..., -1] = 65535
    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def ppm(x: Values, white: int = 65535, declared: int = 65535) -> bytes:
    values = np.repeat((x * white).astype(">u2")[..., None], 3, 2)
    return b"P6\n%d %d\n%d\n" % (*x.shape[::-1], declared) + values.tobytes()


def dataset(
    root: Path,
    write: Callable[[Values], bytes],
    others: Callable[[Values], bytes] | None = None,
    callback: Callback = silent,
) -> Source:
    """Write classes of 0.2 and 0.8 of white, 4 train and 2 test images each, and load them."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[list[object], list[int]]:
        labels = [k % 2 for k in range(2 * count)]
        images = [np.clip((0.2, 0.8)[label] + rng.normal(0, 0.05, (16, 16)), 0, 1) for label in labels]
        files = [(others if others and k % 4 < 2 else write)(image) for k, image in enumerate(images)]
        return list(cells(files)), labels

    folder = parquet_folder(root, part(4), part(2), datasets.ClassLabel(names=["dark", "bright"]))
    return load_source(SourceSpec(id=str(folder), size=16, channels=1), callback=callback)


def means(source: Source) -> list[float]:
    every = [source.train.of_class(c) for c in (0, 1)] + [source.test_images[source.test_labels == c] for c in (0, 1)]
    return [float(images.float().mean()) for images in every]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "bits"),
    [
        (png16, None),
        (pgm, None),
        (big_endian, None),
        (thirty_two, None),
        (lambda x: png16(x, 4095), 12),
        (lambda x: png16(x, 1023), 10),
        (lambda x: png16(x, 16383), 14),
        (lambda x: png16(x, 255), 8),
        (lambda x: pgm(x, 4095), 12),
        (lambda x: big_endian(x, 4095), 12),
        (lambda x: thirty_two(x, 1023), 10),
        (lambda x: pgm(x, 4095, 4095), None),
        (plain_pgm, None),
        (lambda x: plain_pgm(x, 4095, 65535), 12),
        (floats, None),
        (colour16, None),
        (lambda x: ppm(x, 1023, 1023), None),
        (lambda x: encoded(Image.fromarray((x * 255).astype(np.uint8)), "BMP"), None),
    ],
)
def test_classes_are_as_bright_as_they_were_written(
    tmp_path: Path, write: Callable[[Values], bytes], bits: int | None
) -> None:
    said: list[str] = []
    source = dataset(tmp_path, write, callback=lambda event: said.append(getattr(event, "text", "")))
    assert means(source) == pytest.approx([51, 204, 51, 204], abs=2)
    assert source.info.bits == bits
    if bits:
        assert said[2:] == [
            f"no pixel of the 16-bit images is brighter than {2**bits - 1}: they are taken for images of {bits} bits, "
            "and that is white"
        ]
    else:
        assert said[2:] == (["floating-point images lie in [0, 1]: 1.0 is white"] if write is floats else [])


def test_white_is_that_of_the_whole_source_and_not_of_an_image() -> None:
    """Dark images first, and the only bright pixel in the test split: then 16 bits are in use."""
    dark, bright = np.full((8, 8), 0.05), np.eye(8)
    for files, expected in (([png16(dark), png16(dark)], 204), ([png16(dark), png16(bright)], 13)):
        levels = Levels(lambda files=files: iter(files))  # type: ignore[misc]
        out = np.zeros((1, 1, 8, 8), np.uint8)
        fill(out, files[:1], np.arange(1), "row {}".format, "crop", levels=levels)
        assert (out == expected).all()
        assert levels.bits == (12 if expected == 204 else 16)
        assert levels.in_use == (12 if expected == 204 else None)


def test_a_slice_does_not_change_white(tmp_path: Path) -> None:
    bright, dark = np.full((8, 8), 0.9), [np.full((8, 8), 0.05 + k / 1000) for k in range(4)]
    images = [png16(x) for x in (*dark, bright)]
    # the bright one is in no row that is read
    test = [png16(np.full((8, 8), 0.01 * k)) for k in range(3)]
    folder = parquet_folder(tmp_path, (cells(images), [0, 1, 2, 1, 2]), (cells(test), [0, 1, 2]))
    spec = SourceSpec(id=str(folder), size=8, channels=1, train_split="train[:4]", test_split="test")
    assert load_source(spec).train.images.max() == 14


def test_files_of_8_and_16_bits_side_by_side(tmp_path: Path) -> None:
    for k, (deep, bits) in enumerate([(lambda x: png16(x, 4095), 12), (png16, None), (floats, None)]):
        source = dataset(tmp_path / str(k), deep, lambda x: encoded(Image.fromarray((x * 255).astype(np.uint8))))
        assert means(source) == pytest.approx([51, 204, 51, 204], abs=2)
        assert source.info.bits == bits


@pytest.mark.parametrize("white", [4095, 300])
def test_a_file_that_says_what_is_white_is_believed(white: int) -> None:
    dark = np.full((8, 8), 0.1)
    for file in (pgm(dark, white, white), plain_pgm(dark, white, white)):
        levels = Levels(lambda file=file: [file])  # type: ignore[misc]
        pixels = to_pixels(open_image(file), size=8, channels=1, fit="crop", levels=levels)
        assert np.abs(pixels.astype(int) - 25).max() <= 1 and levels.notes == ()


def test_ordinary_images_are_read_once() -> None:
    asked = 0

    def images() -> list[Encoded]:
        nonlocal asked
        asked += 1
        return [png(5)]

    levels = Levels(images)
    out = np.zeros((3, 1, 8, 8), np.uint8)
    bilevel, palette = encoded(Image.new("1", (8, 8))), encoded(Image.new("P", (8, 8)))
    fill(out, [png(5), bilevel, palette], np.arange(3), "row {}".format, "crop", levels=levels)
    assert asked == 0 and levels.in_use is None and levels.notes == ()


def test_the_search_ends_with_the_first_bright_image_and_is_made_once() -> None:
    seen = []

    def images() -> Iterator[Encoded]:
        for file in (png(5), png16(np.eye(8)), b"never looked at"):
            seen.append(file)
            yield file

    levels = Levels(images)
    assert (levels.bits, levels.bits, len(seen)) == (16, 16, 2)


def test_several_threads_ask_at_a_time() -> None:
    noise = np.random.default_rng(0).random((200, 200))
    files = [png16(np.roll(noise, k, 0), 4095) for k in range(12)]
    assert len(files[0]) > 16 * 1024
    asked = []

    def images() -> list[Encoded]:
        asked.append(1)
        return list(files)

    levels = Levels(images)
    out = np.zeros((12, 1, 200, 200), np.uint8)
    fill(out, files, np.arange(12), "row {}".format, "crop", levels=levels)
    expected = ((noise * 4095).astype(int) * 255 + 2047) // 4095
    assert len(asked) == 1 and all((out[k, 0] == np.roll(expected, k, 0)).all() for k in range(12))


def rewritten(hint: str, file: Path, ending: str = ".png") -> Image.Image:
    """Do what a hint says, with one file, and open what comes of it."""
    names: dict[str, Any] = {"numpy": np, "PIL": PIL, "file": str(file)}
    if "torchvision" in hint:
        names["torchvision"] = importlib.import_module("torchvision")
    lines = [line.strip() for line in hint.splitlines() if line.startswith("  ")]
    exec("\n".join(lines), names)
    return open_image(str(file.with_suffix(ending)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[0.0, 3000.5]], np.float32), "mode F, 32-bit floats, and such images of the source reach from 0 to"),
        (np.array([[-1.0, 1.0]], np.float32), "reach from -1 to 9000; what is white is defined for floats from 0 to 1"),
        (np.array([[0, 70000]], np.int32), "mode I, 32-bit integers, and such images of the source reach from 0 to 70"),
        (np.array([[-5, 4095]], np.int32), "from -5 to 9000; what is white is defined for whole numbers from 0 to 65"),
    ],
)
def test_numbers_without_a_white(tmp_path: Path, values: NDArray[np.float32], words: str) -> None:
    """The range is that of the whole source, and the lines of the hint make files that are read."""
    brighter = encoded(Image.fromarray(np.full_like(values, 9000)), "TIFF")
    files = [encoded(Image.fromarray(values), "TIFF"), brighter, png(9)]
    out = np.zeros((3, 1, 4, 4), np.uint8)
    with pytest.raises(SourceError, match="row 0.*" + words) as caught:
        fill(out, files, np.arange(3), "row {}".format, "crop", levels=Levels(lambda: iter(files)))
    file = tmp_path / "one.tif"
    file.write_bytes(files[0])
    new = np.asarray(rewritten(caught.value.hint, file)).astype(int)
    low, high = float(min(values.min(), 9000)), float(max(values.max(), 9000))
    assert new.dtype == int and np.abs(new - (values - low) / (high - low) * 65535).max() <= 1


def test_floats_that_are_no_numbers() -> None:
    file = encoded(Image.fromarray(np.array([[0.5, np.nan], [np.inf, 1]], np.float32)), "TIFF")
    with pytest.raises(SourceError, match="has 2 values that are no numbers"):
        to_pixels(open_image(file), size=2, channels=1, fit="crop", levels=Levels(lambda: [file]))


@pytest.mark.parametrize(("white", "bits"), [(4095, 12), (16383, 14), (200, 8)])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_which_the_lower_bits_alone_are_in_use(tmp_path: Path, white: int, bits: int, channels: int) -> None:
    values = np.linspace(0, 1, 64).reshape(8, 8)
    file = tmp_path / "one.png"
    deep = colour16(values, white, channels)
    file.write_bytes(deep)
    levels = Levels(lambda: [png(200), deep])
    with pytest.raises(SourceError, match=f"only the lower {bits}: nothing is brighter than") as caught:
        to_pixels(open_image(str(file)), size=8, channels=1, fit="crop", levels=levels)
    hint = caught.value.hint
    assert f"multiply {2 ** (16 - bits)} -depth 8" in hint
    if channels == 3:
        new = np.asarray(rewritten(hint, file))[..., 0]
        assert np.abs(new - values * white / 2 ** (bits - 8)).max() <= 1
        bright = Levels(lambda: [deep, colour16(np.ones((2, 2)))])
        assert to_pixels(open_image(deep), size=8, channels=1, fit="crop", levels=bright).max() == white >> 8


def test_a_tiff_in_which_0_is_white_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 9, np.uint16)).save(out, "TIFF", tiffinfo={262: 0})
    data = out.getvalue()
    photometric = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    file = tmp_path / "negative.tif"
    file.write_bytes(data[:photometric] + b"\0\0" + data[photometric + 2 :])
    with pytest.raises(SourceError, match="negative.tif' is a 16-bit TIFF in which 0 is white"):
        open_image(str(file))


@pytest.mark.parametrize("background", ["white", "black"])
def test_one_transparent_value_of_16_bits_stays_transparent(background: str) -> None:
    file = encoded(Image.fromarray(np.array([[700, 30000]], np.uint16)), transparency=30000)
    options = {"size": 2, "channels": 1, "fit": "stretch", "background": background}
    pixels = to_pixels(open_image(file), **options)  # type: ignore[arg-type]
    assert pixels[0, 0].tolist()[1] > 200 if background == "white" else pixels.max() < 10
