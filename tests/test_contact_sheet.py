"""Images in rows: where each lies, in which colours."""

from __future__ import annotations

import numpy as np
import torch

from hmdc_hub.contact_sheet import contact_sheet


def test_images_stand_in_rows_enlarged_with_white_between_and_after() -> None:
    images = torch.arange(5 * 3 * 2 * 4, dtype=torch.uint8).reshape(5, 3, 2, 4)
    sheet = np.asarray(contact_sheet(images, columns=3, scale=2, gap=1))
    assert sheet.shape == (2 * 4 + 1, 3 * 8 + 2, 3)
    for n, image in enumerate(images.numpy()):
        top, left = n // 3 * 5, n % 3 * 9
        shown = sheet[top : top + 4, left : left + 8]
        assert np.array_equal(shown, image.transpose(1, 2, 0).repeat(2, 0).repeat(2, 1))
    assert (sheet[4] == 255).all() and (sheet[:, 8] == 255).all() and (sheet[5:, 18:] == 255).all()


def test_grey_images_and_fewer_than_a_row() -> None:
    sheet = contact_sheet(np.full((2, 1, 3, 3), 7, dtype=np.uint8), columns=10, gap=0)
    assert (sheet.mode, sheet.size) == ("RGB", (6, 3)) and sheet.getcolors() == [(18, (7, 7, 7))]
