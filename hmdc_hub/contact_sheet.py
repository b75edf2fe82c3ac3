"""Small images side by side in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

PAPER = 255


def contact_sheet(images: Tensor | NDArray[np.uint8], columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """Lay images out in rows, from left to right and from top to bottom, on white.

    Args:
        images: uint8 N x ch x H x W on the CPU, N at least 1, ch 1 or 3.
        columns: Images in a row.
        scale: Times that each pixel is repeated, not blurred, in both directions.
        gap: White pixels between two images.

    Returns:
        RGB; rows of `columns` images (or N, if that is less), the last one filled up with white.
    """
    pixels = np.asarray(images).transpose(0, 2, 3, 1).repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = pixels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height + gap, width + gap, 3), PAPER, dtype=np.uint8)
    sheet[:count, :height, :width] = pixels
    rows_of = sheet.reshape(rows, columns, height + gap, width + gap, 3).swapaxes(1, 2)
    whole = rows_of.reshape(rows * (height + gap), columns * (width + gap), 3)
    return Image.fromarray(whole[: len(whole) - gap, : whole.shape[1] - gap])
