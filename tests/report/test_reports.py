"""Tables, plots and contact sheets are pure functions of facts."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hmdc_hub.report import plots, tables
from hmdc_hub.report.preview import before_after, preview
from hmdc_hub.schema import Scores
from hmdc_hub.store import read_scores
from tests.builders import make_run


@pytest.fixture
def scores(tmp_path: Path) -> Scores:
    return read_scores(make_run(tmp_path / "run").scores)


def test_the_condensed_row_comes_first(scores: Scores) -> None:
    assert tables.training_sets(scores)[0] == "condensed"


def test_markdown_table_holds_every_number(scores: Scores) -> None:
    text = tables.table_markdown(scores)
    for row in scores.table.values():
        for cell in row.values():
            assert f"{100 * cell.mean:.1f}" in text
    assert "last" in text or "epoch" in text


def test_terminal_table_fits_eighty_columns(scores: Scores) -> None:
    assert max(len(line) for line in tables.table_text(scores).splitlines()) <= 80


def test_pictures_are_deterministic_and_readable(scores: Scores) -> None:
    gen = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 4, 3, 16, 16), generator=gen, dtype=torch.uint8)
    makers: list[Callable[[], bytes]] = [
        lambda: preview(images, ["a", "b", "c"]),
        lambda: before_after(images, images, ["a", "b", "c"]),
        lambda: plots.plot_scores(scores),
    ]
    for make in makers:
        data = make()
        assert data == make()
        width, height = Image.open(io.BytesIO(data)).size
        assert width >= 200 and height >= 100


def test_names_that_the_font_lacks_become_numbers() -> None:
    images = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    assert preview(images, ["\u4e2d\u6587", "b"]) == preview(images, ["class 0", "b"])
    assert preview(images, ["\u00c5", "b"]) != preview(images, ["class 0", "b"])
    assert preview(images, ["", "b"]) == preview(images, ["class 0", "b"])


def test_preview_shows_the_pixels() -> None:
    images = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    images[0, 0, 0] = 255  # red
    shown = Image.open(io.BytesIO(preview(images, ["red", "black"]))).convert("RGB")
    colours = {colour for _, colour in shown.getcolors(1 << 20) or []}
    assert (255, 0, 0) in colours and (0, 0, 0) in colours
