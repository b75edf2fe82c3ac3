from __future__ import annotations

import struct
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hmdc_hub.errors import SourceError
from hmdc_hub.sources.pixels import Levels, fill, open_image, to_pixels
from tests.sources.files import encoded, picture, png


def grey(image: Image.Image, size: int = 8) -> int:
    """Convert an image of one colour both ways and return its grey value."""
    colour = to_pixels(image, size=size, channels=3, fit="crop")
    flat = to_pixels(image, size=size, channels=1, fit="crop")
    assert colour.shape == (3, size, size)
    assert flat.shape == (1, size, size)
    assert colour.dtype == flat.dtype == np.uint8
    assert len(np.unique(flat)) == 1
    assert (colour == flat).all()
    return int(flat[0, 0, 0])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "PA", "HSV", "LAB"])
def test_every_mode_keeps_its_grey(mode: str) -> None:
    image = Image.new("LAB", (8, 8), (108, 128, 128)) if mode == "LAB" else picture(100, mode=mode)
    assert abs(grey(image) - 100) <= 1


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "1"), ("PNG", "P"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "P")]
)
def test_modes_survive_their_file_formats(kind: str, mode: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert grey(open_image(encoded(picture(255, mode=mode), kind, **options))) == 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.full((8, 8), 0x8080, np.uint16)
    image = open_image(encoded(Image.fromarray(values), kind))
    assert image.mode == "I;16"
    assert grey(image) == 0x80


def test_bilevel_is_black_and_white() -> None:
    assert grey(Image.new("1", (8, 8), 1)) == 255
    assert grey(Image.new("1", (8, 8), 0)) == 0


def test_grey_is_luma() -> None:
    for colour, luma in (("red", 76), ("lime", 150), ("blue", 29)):
        assert to_pixels(Image.new("RGB", (4, 4), colour), size=4, channels=1, fit="crop")[0, 0, 0] == luma


def test_channels_come_first_and_in_order() -> None:
    pixels = to_pixels(Image.new("RGB", (4, 4), (1, 2, 3)), size=4, channels=3, fit="crop")
    assert pixels[:, 0, 0].tolist() == [1, 2, 3]
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_the_background(mode: str) -> None:
    image = picture(0, mode=mode)
    image.putalpha(0)
    assert grey(image) == 255
    image.putalpha(128)
    assert abs(grey(image) - 127) <= 1
    image = picture(255, mode=mode)
    for alpha, shade in ((0, 0), (128, 128), (255, 255)):
        image.putalpha(alpha)
        assert (to_pixels(image, size=8, channels=1, fit="crop", background="black") == shade).all()


def test_transparent_palette_colour_lies_over_white() -> None:
    image = picture(10).quantize(2)
    assert grey(open_image(encoded(image))) == 10
    assert grey(open_image(encoded(image, transparency=image.getpixel((0, 0))))) == 255


def test_orientation_of_the_camera_is_applied() -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise: left becomes top
    upright = open_image(encoded(image, exif=exif))
    assert upright.size == (4, 8)
    pixels = to_pixels(upright, size=4, channels=1, fit="stretch")[0]
    assert pixels[0].min() > 200
    assert pixels[-1].max() < 50


def test_the_right_size_keeps_pixels_exactly() -> None:
    values = np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    assert (to_pixels(Image.fromarray(values), size=8, channels=3, fit="crop").transpose(1, 2, 0) == values).all()


def test_reduction_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    pixels = to_pixels(Image.fromarray(stripes), size=8, channels=1, fit="crop")
    assert np.abs(pixels.astype(int) - 127).max() <= 12  # sampled without a filter they would all be 0 or all 255


def test_crop_takes_the_centre_and_stretch_takes_all() -> None:
    image = Image.new("L", (24, 8), 0)
    image.paste(255, (8, 0, 16, 8))  # a white square between two black ones
    assert to_pixels(image, size=8, channels=1, fit="crop").min() == 255
    assert to_pixels(image, size=16, channels=1, fit="crop")[0, :, 1:-1].min() == 255
    stretched = to_pixels(image, size=12, channels=1, fit="stretch")[0]
    assert stretched[:, :2].max() < 10
    assert stretched[:, 6].min() > 245


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (300, 7)])
def test_any_shape_becomes_the_square_asked_for(size: tuple[int, int], fit: str) -> None:
    pixels = to_pixels(picture(77, size), size=12, channels=1, fit="crop" if fit == "crop" else "stretch")
    assert pixels.shape == (1, 12, 12)
    assert (pixels == 77).all()


@pytest.mark.parametrize(
    ("image", "words"), [(Image.new("RGB", (0, 5)), "0 x 5 pixels"), (Image.new("La", (4, 4)), "mode La")]
)
def test_refused_images(image: Image.Image, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        to_pixels(image, size=4, channels=3, fit="crop")


@pytest.mark.parametrize(
    "data", [b"", b"no image", png(1)[:50], png(1)[:20] + b"\0" * 40, encoded(picture(9, (64, 64)), "JPEG")[:500]]
)
def test_damaged_files(data: bytes) -> None:
    with pytest.raises(SourceError, match="cannot be decoded") as caught:
        open_image(data)
    assert caught.value.hint
    assert "0x" not in caught.value.message  # no addresses of objects


def bomb(width: int, height: int) -> bytes:
    """Write the header of a PNG, and next to nothing of the image."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, body, b"IEND")
    )


def test_an_image_too_large_to_decode_is_refused_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "huge.png"
    file.write_bytes(bomb(20000, 20000))
    for given in (str(file), file.read_bytes()):
        tracemalloc.start()
        with pytest.raises(SourceError, match="larger than what is decoded: .*400000000 pixels") as caught:
            open_image(given)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
        assert caught.value.hint == "Resize it first, or remove it."
        assert isinstance(given, bytes) or f"image file {str(file)!r} is larger" in caught.value.message


def test_large_photographs_pass_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    """From half of what Pillow refuses it warns of an attack."""
    files = [bomb(12000, 8000)]
    out = np.zeros((1, 1, 8, 8), np.uint8)
    with pytest.raises(SourceError, match="row 0.*cannot be decoded: image file is truncated"):
        fill(out, files, np.arange(1), "row {}".format, "crop", levels=Levels(lambda: files))
    assert not recwarn.list


def test_huge_images_are_decoded_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmdc_hub.sources.pixels.HUGE", 100 * 100)
    noise = np.random.RandomState(0).randint(0, 256, (200, 200)).astype(np.uint8)
    files = [encoded(Image.fromarray(noise))] * 8
    threads = set()

    def counted(image: Image.Image, **options: Any) -> NDArray[np.uint8]:
        threads.add(threading.get_ident())
        return to_pixels(image, **options)

    monkeypatch.setattr("hmdc_hub.sources.pixels.to_pixels", counted)
    out = np.zeros((8, 1, 8, 8), np.uint8)
    fill(out, files, np.arange(8), "row {}".format, "crop", levels=Levels(lambda: files))
    assert len(threads) == 1 and out.any(axis=(1, 2, 3)).all()
    broken = encoded(Image.fromarray(noise))[:9000]
    with pytest.raises(SourceError, match="row 0.*cannot be decoded"):
        fill(out, [broken], np.arange(1), "row {}".format, "crop", levels=Levels(lambda: []))


def test_the_first_image_of_several_is_the_image() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], quality=100)
        pixels = to_pixels(open_image(file), size=8, channels=3, fit="crop")
        assert pixels[0].min() > 250 and pixels[1:].max() < 5, kind


def test_missing_file_and_missing_image(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.png' does not exist"):
        open_image(str(tmp_path / "gone.png"))
    with pytest.raises(SourceError, match="empty"):
        open_image(None)


@pytest.mark.parametrize("size", [(8, 8), (200, 200)])  # on one thread and on several
def test_fill_puts_images_where_they_belong_and_names_the_first_bad_one(size: tuple[int, int]) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)
    files = [encoded(Image.fromarray(np.roll(noise, k, 0))) for k in range(10)]
    order = np.random.RandomState(1).permutation(10)
    out = np.zeros((10, 3, *size), np.uint8)
    fill(out, files, order, "row {}".format, "crop", levels=Levels(lambda: files))
    for k in range(10):
        assert (out[order[k]].transpose(1, 2, 0) == np.roll(noise, k, 0)).all()
    files[7] = files[9] = b"broken"
    with pytest.raises(SourceError, match="row 7: the image"):
        fill(out, files, order, "row {}".format, "crop", levels=Levels(lambda: files))
