"""Contact sheets: what a condensed set looks like, one row per class. Drawn with Pillow in matplotlib's font."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from hmdc_hub.report.text import one_line

if TYPE_CHECKING:
    from torch import Tensor

TILE = 64
"""Pixels that a small image is enlarged to, about."""
WIDTH = 760
"""Pixels that a row of images takes at most; four images always fit."""
MAX_ROWS = 20
GAP = 4
MARGIN = 16
BETWEEN = 28
"""Space between the two halves of a before-and-after sheet."""
FONT_SIZE = 15
LABEL_WIDTH = 150
INK = (40, 40, 40)
FAINT = (120, 120, 120)
PAPER = (255, 255, 255)


def preview(images: Tensor, class_names: Sequence[str]) -> bytes:
    """Draw a contact sheet.

    Args:
        images: uint8 C x n x ch x H x W, stored or decoded; the first of each class that fit are shown.
        class_names: One name per class.

    Returns:
        PNG bytes, the same for the same arguments (with the same Pillow and matplotlib).
    """
    return _sheet([("", images)], class_names)


def preview_of(parquet: Path, shape: tuple[int, int, int, int], class_names: Sequence[str]) -> bytes:
    """Draw the contact sheet of a train.parquet; reads the classes that are shown alone.

    Args:
        parquet: The file.
        shape: M, ch, H, W of the images it holds, as many of each class, class after class.
        class_names: One name per class.

    Raises:
        FormatError, NotFoundError: It cannot be read.
    """
    from hmdc_hub.store import read_parquet  # late: torch

    of_each = shape[0] // len(class_names)
    shown, _ = read_parquet(parquet, of_each * min(MAX_ROWS, len(class_names)), shape=shape)
    return preview(shown.reshape(-1, of_each, *shown.shape[1:]), class_names)


def before_after(start: Tensor, condensed: Tensor, class_names: Sequence[str]) -> bytes:
    """Draw the images before the first image step beside the same ones after the last.

    Args:
        start: uint8 C x n x ch x H x W.
        condensed: As `start`, of the same shape.
        class_names: One name per class.

    Returns:
        PNG bytes, as `preview`.
    """
    return _sheet([("start", start), ("condensed", condensed)], class_names)


def _sheet(halves: Sequence[tuple[str, Tensor]], class_names: Sequence[str]) -> bytes:
    """Draw rows of classes with their labels, each half under its heading."""
    images = halves[0][1]
    side = images.shape[-1]
    tile = side * max(1, round(TILE / side))
    columns = min(images.shape[1], max(4 // len(halves), WIDTH // len(halves) // (tile + GAP)))
    rows = min(len(class_names), MAX_ROWS)
    font, known = _font()
    labels = [_shorten(_drawable(name, number, known), font) for number, name in enumerate(class_names[:rows])]
    left = MARGIN + max(round(font.getlength(label)) for label in labels) + 12
    half_width = columns * (tile + GAP) - GAP
    top = MARGIN + (FONT_SIZE + 10 if len(halves) > 1 else 0)
    bottom = FONT_SIZE + 10 if rows < len(class_names) else 0
    width = left + len(halves) * half_width + (len(halves) - 1) * BETWEEN + MARGIN
    sheet = Image.new("RGB", (width, top + rows * (tile + GAP) - GAP + bottom + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        middle = top + row * (tile + GAP) + tile // 2
        draw.text((left - 12, middle), label, fill=INK, font=font, anchor="rm")
    for number, (heading, pictures) in enumerate(halves):
        x = left + number * (half_width + BETWEEN)
        draw.text((x, MARGIN), heading, fill=FAINT, font=font)
        for row in range(rows):
            for column in range(columns):
                at = (x + column * (tile + GAP), top + row * (tile + GAP))
                sheet.paste(_picture(pictures[row, column], tile), at)
    if bottom:
        note = f"the first {rows} of {len(class_names)} classes"
        draw.text((left, sheet.height - MARGIN), note, fill=FAINT, font=font, anchor="ls")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _picture(image: Tensor, tile: int) -> Image.Image:
    """Enlarge one image, uint8 ch x H x W, without blurring its pixels."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels.copy()).convert("RGB")
    return picture.resize((tile, tile), Image.Resampling.NEAREST)


@cache
def _font() -> tuple[ImageFont.FreeTypeFont, frozenset[int]]:
    """Load DejaVu Sans and the characters it has; Pillow's own font stops short of accents."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    path = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, FONT_SIZE), frozenset(FT2Font(path).get_charmap())


def _drawable(name: str, number: int, known: frozenset[int]) -> str:
    """Give a class name on one line, or its number if the font cannot write it: boxes say less."""
    text = one_line(name)
    return text if text and all(ord(character) in known for character in text) else f"class {number}"


def _shorten(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Cut a class name to the width of the label column."""
    if font.getlength(text) <= LABEL_WIDTH:
        return text
    while text and font.getlength(text + "…") > LABEL_WIDTH:
        text = text[:-1]
    return text.rstrip() + "…"
