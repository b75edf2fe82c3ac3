"""Tables, plots, pages and contact sheets are pure functions of facts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from hmdc_hub.report import plots, tables
from hmdc_hub.report.document import Block, Items, Picture, Section, Table, Text, render_page, to_markdown, to_text
from hmdc_hub.report.plots import MAX_ROWS, preview, preview_of, rendered
from hmdc_hub.schema import Scores
from hmdc_hub.store import parquet
from hmdc_hub.store.files import read_scores
from hmdc_hub.store.parquet import write_parquet
from tests.builders import make_run

PNG = b"\x89PNG\r\n\x1a\nrest"


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


def noise() -> torch.Tensor:
    gen = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 4, 3, 16, 16), generator=gen, dtype=torch.uint8)


def confusion(counts: plots.Matrix, class_names: Sequence[str]) -> bytes:
    return rendered(plots.confusion_figure, counts, class_names)


PLOTS: dict[str, Callable[[Scores, plots.Kind], bytes]] = {
    "scores": lambda scores, kind: rendered(plots.scores_figure, scores, kind=kind),
    "classes": lambda scores, kind: rendered(plots.classes_figure, scores, kind=kind),
    "confusion": lambda _, kind: rendered(plots.confusion_figure, np.eye(3, dtype=int), ["a", "b", "c"], kind=kind),
}
PICTURES: dict[str, Callable[[Scores], bytes]] = {
    "preview": lambda _: preview(noise(), ["a", "b", "c"]),
    **{name: lambda scores, plot=plot: plot(scores, "png") for name, plot in PLOTS.items()},  # type: ignore[misc]
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_deterministic_and_readable(name: str, scores: Scores) -> None:
    data = PICTURES[name](scores)
    assert data == PICTURES[name](scores)
    width, height = Image.open(io.BytesIO(data)).size
    assert width >= 200 and height >= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_svgs_are_deterministic_pictures_of_nothing_but_the_scores(name: str, scores: Scores) -> None:
    data = PLOTS[name](scores, "svg")
    assert data == PLOTS[name](scores, "svg") and data.startswith(b"<?xml")
    assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"<dc:date>" not in data and b"matplotlib.org" not in data and b"<text" not in data


def test_confusions_are_shares_of_their_row() -> None:
    counts = np.array([[1, 3], [0, 0]])
    assert plots.row_shares(counts).tolist() == [[0.25, 0.75], [0, 0]]
    assert confusion(counts, ["a", "b"]) == confusion(10 * counts, ["a", "b"])
    assert confusion(counts, ["a", "b"]) != confusion(counts[:, ::-1], ["a", "b"])


def test_few_classes_have_numbers_and_many_few_names() -> None:
    def words(classes: int) -> tuple[int, int]:
        figure = plots.confusion_figure(np.eye(classes, dtype=np.int64), [f"n{label}" for label in range(classes)])
        axes = figure.axes[0]
        return len(axes.texts), len(axes.get_yticklabels())

    assert words(12) == (144, 12)
    assert words(13) == (0, 13)
    assert words(100) == (0, 25)


def test_names_in_plots_are_written_as_they_are_or_numbered() -> None:
    counts = np.eye(2, dtype=np.int64)
    # A formula that TeX would choke on is a name like any other; the font has no Chinese.
    assert confusion(counts, [r"$\frac{$", "\u4e2d"]) == confusion(counts, [" $\\frac{$\u202e", "class 1"])
    assert confusion(counts, ["a" * 30, ""]) == confusion(counts, ["a" * 17 + "…", "class 1"])


def test_of_many_classes_the_best_and_the_worst_are_shown(scores: Scores) -> None:
    names = [rf"$\frac{{{label}$" for label in range(30)]
    rows = {"a": [label / 40 for label in range(30)], "b": [label / 20 for label in range(30)]}
    many = scores.model_copy(update={"class_names": names, "per_class": {"condensed": rows}})
    axes = plots.classes_figure(many).axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == [*names[:-11:-1], *names[9::-1]]
    assert rendered(plots.classes_figure, many)  # names that look like formulas are not read as such
    assert [text.get_text() for text in axes.texts] == ["… 10 more …"]
    assert plots.class_means(many, "condensed")[20] == pytest.approx((0.5 + 1) / 2)


def test_plots_say_which_images_were_scored_on(scores: Scores) -> None:
    held_out = scores.model_copy(update={"protocol": scores.protocol.model_copy(update={"holdout": 0.2})})
    for draw in (plots.scores_figure, plots.classes_figure):
        assert draw(scores).axes[0].get_xlabel().startswith("test accuracy")
        assert draw(held_out).axes[0].get_xlabel().startswith("held-out train accuracy")


def test_names_that_the_font_lacks_become_numbers() -> None:
    images = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    assert preview(images, ["\u4e2d\u6587", "b"]) == preview(images, ["class 0", "b"])
    assert preview(images, ["\u00c5", "b"]) != preview(images, ["class 0", "b"])
    assert preview(images, ["", "b"]) == preview(images, ["class 0", "b"])


def test_preview_of_a_file_reads_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"c{n}" for n in range(MAX_ROWS + 5)]
    images = torch.randint(0, 256, (len(names), 2, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(len(names)).repeat_interleave(2)
    write_parquet(tmp_path / "a.parquet", images.flatten(0, 1), labels, names)
    decode, read = mock.Mock(wraps=parquet._pixels), 2 * MAX_ROWS
    monkeypatch.setattr(parquet, "_pixels", decode)
    assert preview_of(tmp_path / "a.parquet", (2 * len(names), 1, 8, 8), names) == preview(images, names)
    assert decode.call_count == read


def test_preview_shows_the_pixels() -> None:
    images = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    images[0, 0, 0] = 255  # red
    shown = Image.open(io.BytesIO(preview(images, ["red", "black"]))).convert("RGB")
    colours = {colour for _, colour in shown.getcolors(1 << 20) or []}
    assert (255, 0, 0) in colours and (0, 0, 0) in colours


def to_html(title: str, sections: Sequence[Section]) -> str:
    return render_page("document.html.jinja", title, sections=sections)


RUDE = "<b>x</b> | *y* \x1b[31m\u202e"


def test_the_formation_shows_the_synthetic_images_and_what_is_cut_out_of_them() -> None:
    stored = torch.zeros(2, 3, 8, 8)
    stored[0, 0, :4, :4], stored[0, 1, 4:, :4] = 1, 1  # red above, green below it; the rest black
    before = torch.ones(2, 3, 8, 8)
    shown = Image.open(io.BytesIO(plots.formation(stored, before, 2, ["a", "b"]))).convert("RGB")
    alone = Image.open(io.BytesIO(plots.formation(stored, None, 2, ["a", "b"]))).convert("RGB")
    whole = Image.open(io.BytesIO(plots.formation(stored, None, 1, ["a", "b"]))).convert("RGB")
    assert shown.width > alone.width > whole.width and shown.height == alone.height

    def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
        return sum(n for n, found in picture.getcolors(2**20) or [] if found == colour)

    side = 64  # each image on the sheet
    for colour in ((255, 0, 0), (0, 255, 0)):  # a quarter of the synthetic image, and one tile
        assert count(whole, colour) == side**2 // 4 and count(alone, colour) == side**2 // 4 + side**2
    assert plots.formation(stored, before, 2, ["a", "b"]) == plots.formation(stored, before, 2, ["a", "b"])


def test_of_many_training_sets_a_few_have_colours(scores: Scores) -> None:
    styles = [plots.SET_STYLES[name] for name in plots.SET_STYLES]
    pale = plots._thinned(styles, [name in plots.FEW for name in plots.SET_STYLES])
    assert [mark for _, mark in pale] == [mark for _, mark in styles]
    assert {colour for (colour, _), name in zip(pale, plots.SET_STYLES, strict=True) if name not in plots.FEW} == {
        plots.PALE
    }
    assert plots._thinned(styles[: plots.MANY - 1], [False] * (plots.MANY - 1)) == styles[: plots.MANY - 1]
    many = plots._styles(14)
    assert len(set(many)) == 14 and many[:6] == plots.STYLES


def test_every_link_of_a_page_leads_somewhere() -> None:
    document = to_html("a", [Section("b", [Text("c")]), Section("d & e", [Text("f")])])
    assert re.findall(r'href="#(\w+)"', document) == re.findall(r'id="(\w+)"', document) == ["s1", "s2"]
    assert "d &amp; e" in document


def test_tables_align_scroll_and_stand_out() -> None:
    table = Table(["a", "b", "c"], [["x", "1", "w"], ["y", "2", "v"]], strong="y", words=[2], note="d<e")
    text = to_html("", [Section("", [table])])
    assert '<tr><th scope="row">x</th><td>1</td><td class="words"><div>w</div></td></tr>' in text
    assert '<tr class="strong"><th scope="row">y</th>' in text and "<figcaption>d&lt;e</figcaption>" in text
    assert '<div class="scroll" role="region" tabindex="0"' in text
    assert to_markdown("", [Section("", [table])]) == (
        "| a | b | c |\n| --- | ---: | ---: |\n| x | 1 | w |\n| **y** | **2** | **v** |\n\nd&lt;e\n"
    )
    assert to_text([Section("", [table])], 6) == "a  b\nx  1\ny  2\n\na  c\nx  w\ny  v\n\nd<e\n"
    with pytest.raises(ValueError, match="2 cells under a header of 3"):
        Table(["a", "b", "c"], [["x", "1"]])


def test_every_block_escapes_what_strangers_wrote() -> None:
    blocks: list[Block] = [
        Text(RUDE),
        Items([RUDE]),
        Table([RUDE], [[RUDE]], title=RUDE, note=RUDE),
        Picture(b"<svg/>", RUDE),
    ]
    sections = [Section(RUDE, blocks)]
    page, markdown, text = to_html(RUDE, sections), to_markdown(RUDE, sections), to_text(sections)
    for shown in (page, markdown, text):
        assert "\x1b" not in shown and "\u202e" not in shown
    assert "<b>" not in page and page.count("&lt;b&gt;x&lt;/b&gt; | *y* [31m") == 2 + 2 + 8
    assert "<b>" not in markdown and markdown.count(r"&lt;b&gt;x&lt;/b&gt; \| \*y\* \[31m") == 2 + 2 + 4
    assert max(map(len, text.splitlines())) <= 80


def test_pictures_need_a_known_kind() -> None:
    def shown(data: bytes) -> str:
        return to_html("", [Section("", [Picture(data, 'a "b"')])])

    assert '<img src="data:image/svg+xml;base64,PHN2Zy8+" alt="a &#34;b&#34;">' in shown(b"<svg/>")
    assert '<img src="data:image/png;base64,' in shown(PNG)
    with pytest.raises(ValueError, match="neither PNG nor SVG"):
        shown(b"GIF89a")
