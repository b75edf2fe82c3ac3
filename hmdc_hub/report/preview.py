"""What a condensed set looks like: a contact sheet of one row per class, named in matplotlib's font."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from hmdc_hub.contact_sheet import contact_sheet
from hmdc_hub.report.plots import class_label, font

if TYPE_CHECKING:
    from torch import Tensor

TILE = 64
"""Pixels that a small image is enlarged to, about."""
WIDTH = 760
"""Pixels that a row of images takes at most; four images always fit."""
MAX_ROWS = 20
GAP, MARGIN, LABEL_GAP = 4, 16, 12
FONT_SIZE, LABEL_WIDTH = 15, 150
INK, FAINT = (40, 40, 40), (120, 120, 120)


def preview(images: Tensor, class_names: Sequence[str]) -> bytes:
    """Draw a contact sheet.

    Args:
        images: uint8 C x n x ch x H x W on the CPU, stored or decoded; the first of each class that fit are shown.
        class_names: One name per class.

    Returns:
        PNG bytes, the same for the same arguments (with the same Pillow and matplotlib).
    """
    rows, side = min(len(class_names), MAX_ROWS), images.shape[-1]
    scale = max(1, round(TILE / side))
    pitch = side * scale + GAP
    columns = min(images.shape[1], max(4, WIDTH // pitch))
    shown = contact_sheet(images[:rows, :columns].flatten(0, 1), columns, scale, GAP)
    typeface = ImageFont.truetype(font()[0], FONT_SIZE)
    labels = [_shorten(class_label(name, number), typeface) for number, name in enumerate(class_names[:rows])]
    left = MARGIN + max(round(typeface.getlength(label)) for label in labels) + LABEL_GAP
    height = MARGIN + shown.height + (FONT_SIZE + 10 if rows < len(class_names) else 0) + MARGIN
    sheet = Image.new("RGB", (left + shown.width + MARGIN, height), "white")
    sheet.paste(shown, (left, MARGIN))
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        middle = MARGIN + row * pitch + (pitch - GAP) // 2
        draw.text((left - LABEL_GAP, middle), label, fill=INK, font=typeface, anchor="rm")
    if rows < len(class_names):
        note = f"the first {rows} of {len(class_names)} classes"
        draw.text((left, height - MARGIN), note, fill=FAINT, font=typeface, anchor="ls")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def preview_of(parquet: Path, shape: tuple[int, int, int, int], class_names: Sequence[str]) -> bytes:
    """Draw the contact sheet of a train.parquet; reads the classes that are shown alone.

    Args:
        parquet: The file.
        shape: M, ch, H, W of the images it holds, as many of each class, class after class.
        class_names: One name per class.

    Raises:
        FormatError, NotFoundError: It cannot be read.
    """
    from hmdc_hub.store.parquet import read_parquet

    of_each = shape[0] // len(class_names)
    shown, _ = read_parquet(parquet, of_each * min(MAX_ROWS, len(class_names)), shape=shape)
    return preview(shown.reshape(-1, of_each, *shown.shape[1:]), class_names)


def _shorten(text: str, typeface: ImageFont.FreeTypeFont) -> str:
    """Cut a class name to the width of the label column."""
    if typeface.getlength(text) <= LABEL_WIDTH:
        return text
    while text and typeface.getlength(text + "…") > LABEL_WIDTH:
        text = text[:-1]
    return text.rstrip() + "…"
