"""Scores, classes, confusions, comparisons and condensed sets as pictures. Matplotlib is imported on first use."""

from __future__ import annotations

import io
import statistics
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hmdc_hub.contact_sheet import contact_sheet
from hmdc_hub.errors import HmdcError
from hmdc_hub.metrics import MEAN
from hmdc_hub.report.tables import OVER_MODELS, columns, mark, scored_on, set_label, training_sets
from hmdc_hub.schema import CONDENSED, ArtifactInfo, Estimate, Scores
from hmdc_hub.text import cut, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from hmdc_hub.report.comparison import Comparison
    from hmdc_hub.report.sweep import SweepResult

Kind = Literal["png", "svg"]
Matrix = NDArray[np.integer[Any]]
Style = tuple[str, str]

WIDTH = 6.4  # inches; never wider than a phone can show with readable words: pictures grow downwards
LINES, GREY, DARK = "#e3e6ea", "#888f96", "#5a6570"
# Okabe and Ito's colours, which colour-blind people tell apart, and a mark of its own each; condensed stands out.
SET_STYLES: dict[str, Style] = {
    CONDENSED: ("#d55e00", "o"),
    "random": ("#999999", "s"),
    "random-encoded": ("#56b4e9", "^"),
    "initialisation": ("#0072b2", "D"),
    "k-means": ("#009e73", "v"),
    "herding": ("#cc79a7", "P"),
    "exact": ("#e69f00", "X"),
    "full": ("#000000", "*"),
}
# Of more series than the eye keeps apart, the rest: their marks in light grey behind the few that have a colour.
MANY, PALE = 7, "#c3c9cf"
FEW = {CONDENSED, "random", "random-encoded", "initialisation", "full"}
STYLES = [SET_STYLES[name] for name in (CONDENSED, "initialisation", "k-means", "herding", "exact", "random-encoded")]
FURTHER = "s*<>ph8d"  # marks of series beyond those
LABEL, ROW_NAME = 18, 26  # characters of a class name before an ellipsis, and of a row's name before a line breaks
# Classes up to which a confusion matrix has a number in every cell; class names along an axis of it.
MAX_NUMBERS, MAX_TICKS = 12, 25
MAX_CLASSES = 20  # that are all shown; of more the best and the worst
MAX_TENTHS = 7  # models up to which numbers in cells of a table of colours have a place behind the point
TILE = 64  # pixels that a small image of a contact sheet is enlarged to, about
SHEET_WIDTH = 760  # pixels that a row of images takes at most; four images always fit
MAX_ROWS = 20
GAP, MARGIN, LABEL_GAP = 4, 16, 12
FONT_SIZE, LABEL_WIDTH = 15, 150
INK, FAINT = (40, 40, 40), (120, 120, 120)
FORMED, FORMED_TILES = 4, 4  # classes, and tiles of each, in the picture of how training images come about
ARROW = 34  # pixels between its columns


def pictures(comparison: Comparison, kind: Kind = "png") -> dict[str, bytes]:
    """Draw `transfer`, `differences` between two groups or more, `budget` where budgets differ: by name."""
    drawn = {"transfer": rendered(_transfer, comparison, kind=kind)}
    if comparison.against_first:
        drawn["differences"] = rendered(_differences, comparison, kind=kind)
    if comparison.curves:
        drawn["budget"] = rendered(_budget, comparison, kind=kind)
    return drawn


def class_means(scores: Scores, training_set: str) -> list[float]:
    """Average each class's accuracy over models, by label."""
    return [statistics.fmean(column) for column in zip(*scores.per_class[training_set].values(), strict=True)]


def row_shares(matrix: Matrix) -> NDArray[np.float64]:
    """Divide each row of counts by its sum; a row of zeros stays as it is."""
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return shares


def rendered(figure: Callable[..., Figure], *facts: Any, kind: Kind = "png") -> bytes:
    """Draw the figure of some facts into a file; the same bytes for the same facts (with the same matplotlib)."""
    import matplotlib

    # No date, no version of matplotlib: nothing that differs between two pictures of one thing.
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    # A name is never read as mathematics: somebody's class may be called $x$, or half of it.
    look: Any = {"font.size": 12, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False,
                 "axes.axisbelow": True, "grid.color": LINES, "grid.linewidth": 0.8, "legend.frameon": False,
                 "legend.handletextpad": 0.3, "legend.columnspacing": 1.2, "svg.fonttype": "path",
                 "svg.hashsalt": "hmdc-hub"}  # fmt: skip
    # Letters of an SVG are drawn, not named: metrics differ between fonts, few machines have DejaVu Sans, and words
    # that run into each other are worse than words that cannot be searched for; the tables beside a picture have all.
    with matplotlib.rc_context(look):
        buffer = io.BytesIO()
        figure(*facts).savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _axes(height: float) -> tuple[Figure, Axes]:
    """Make an empty figure of `WIDTH` and this height in inches."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDTH, height), dpi=125, layout="constrained")
    return made, made.add_subplot()


@cache
def font() -> tuple[str, frozenset[int]]:
    """Give the path of DejaVu Sans, matplotlib's own font, and the characters it has."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    path = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    return path, frozenset(FT2Font(path).get_charmap())


def drawable(name: str) -> str:
    """Give a name on one line, with a question mark for what the font cannot write."""
    return "".join(character if ord(character) in font()[1] else "?" for character in one_line(name))


def class_label(name: str, number: int) -> str:
    """Give a class name on one line, or its number if the font cannot write it: boxes say less."""
    text = one_line(name)
    return text if text and drawable(text) == text else f"class {number}"


def _folded(name: str, width: int = ROW_NAME) -> str:
    """Break a name into lines, between models behind the plus."""
    tied = drawable(name).replace(" + ", "\u00a0+ ")
    return "\n".join(textwrap.wrap(tied, width, break_on_hyphens=False)).replace("\u00a0", " ")


def _bars(axes: Axes, at: Sequence[float], found: Sequence[Estimate], upright: bool = False, **look: Any) -> None:
    """Draw means with their intervals, where they have one: points on horizontal lines, or a curve."""
    means = [100 * e.mean for e in found]
    bars = [
        [0.0 if e.low is None else 100 * (e.mean - e.low) for e in found],
        [0.0 if e.high is None else 100 * (e.high - e.mean) for e in found],
    ]
    where: Any = {"x": at, "y": means, "yerr": bars} if upright else {"x": means, "y": at, "xerr": bars}
    axes.errorbar(**where, markersize=7, elinewidth=1.6, capsize=2.5, linestyle="-" if upright else "", **look)


def _thinned(styles: Sequence[Style], few: Sequence[bool]) -> list[Style]:
    """Make styles pale, but for those of a few, where there are too many to tell apart; their marks stay."""
    every = len(styles) < MANY
    return [(colour if every or one else PALE, mark) for (colour, mark), one in zip(styles, few, strict=True)]


def _styles(count: int) -> list[Style]:
    """Give so many series, which have no styles of their own, one each: when colours repeat, marks do not."""
    further = [(colour, FURTHER[n % len(FURTHER)]) for n, (colour, _) in enumerate(STYLES * (count // len(STYLES)))]
    return [*STYLES, *further][:count]


def _best(values: Sequence[float]) -> list[bool]:
    """Say of each value whether it is one of the highest, as many as have a colour of their own."""
    least = sorted(values, reverse=True)[: len(FEW)][-1]
    return [value >= least for value in values]


def _rows_of_bars(
    axes: Axes, rows: Sequence[str], series: Sequence[tuple[str, Sequence[Estimate | None], Style]]
) -> None:
    """Draw a line for each name with one mean and interval of each series on it, the first series above the others."""
    apart = 0.72 / len(series)
    for place, (name, found, style) in enumerate(series):
        shown = [(y + (place - (len(series) - 1) / 2) * apart, e) for y, e in enumerate(found) if e is not None]
        _bars(axes, [y for y, _ in shown], [e for _, e in shown], color=style[0], marker=style[1], label=name,
              zorder=3 - place / len(series))  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.grid(True)
    for y in range(1, len(rows)):
        axes.axhline(y - 0.5, color=LINES, linewidth=0.8)


def _colours(
    made: Figure, axes: Axes, shares: Any, label: str, ticks: Any = None, bar: bool = True, **keys: Any
) -> None:
    """Draw a table of colours. Not pcolormesh: ten thousand cells as paths make a slow picture of a megabyte."""
    image = axes.imshow(shares, cmap="Blues", aspect="auto", interpolation="nearest", **keys)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if bar:
        made.colorbar(image, ax=axes, pad=0.02, ticks=ticks, label=label).outline.set_visible(False)


def scores_figure(scores: Scores) -> Figure:
    """Show mean last-epoch accuracy per model and training set, with 95 % intervals."""
    models, sets = columns(scores), training_sets(scores)
    made, axes = _axes(1.3 + 0.62 * len(models))
    styles = [SET_STYLES.get(name) or STYLES[place % len(STYLES)] for place, name in enumerate(sets)]
    styles = _thinned(styles, [name in FEW for name in sets])
    series = [
        (set_label(name), [scores.table[name].get(model) for model in models], style)
        for name, style in zip(sets, styles, strict=True)
    ]
    _rows_of_bars(axes, [*models.values()], series)
    top = max(e.high or e.mean for row in scores.table.values() for e in row.values())
    axes.set_xlim(0, min(101, 106 * max(top, 0.05)))
    axes.set_xlabel(f"{scored_on(scores)} accuracy at the last epoch (%), 95 % interval")
    made.legend(loc="outside upper left", ncols=3)
    return made


def confusion_figure(matrix: Matrix, class_names: Sequence[str]) -> Figure:
    """Show a confusion matrix, each row as shares of its sum, in percent for up to 12 classes.

    Args:
        matrix: Counts C x C: row the true class, column the predicted one. A row of zeros stays empty.
        class_names: C; a name that the font cannot write becomes its number, of very many only some are written.
    """
    from matplotlib.colors import PowerNorm

    classes, shares = len(class_names), 100 * row_shares(matrix)
    numbers = classes <= MAX_NUMBERS
    made, axes = _axes(5.9 if numbers else 5.3)
    # Many classes share the errors out: on a linear scale a few percent look like none.
    norm = PowerNorm(1 if numbers else 0.5, vmin=0, vmax=100)
    ticks = [0, 1, 5, 10, 25, 50, 75, 100]
    _colours(made, axes, shares, "% of the true class", ticks, bar=not numbers, norm=norm)
    every = range(0, classes, -(-classes // MAX_TICKS))
    names = [cut(class_label(class_names[label], label), LABEL) for label in every]
    axes.set_xticks(every, names, rotation=90, fontsize=10 if numbers else 8)
    axes.set_yticks(every, names, fontsize=10 if numbers else 8)
    axes.tick_params(length=0 if classes <= MAX_TICKS else 2)
    axes.set_xlabel("predicted" + (", % of the true class" if numbers else ""))
    axes.set_ylabel("true class")
    for (true, predicted), share in np.ndenumerate(shares if numbers else np.empty((0, 0))):
        ink = "white" if share > 70 else "black" if share >= 0.5 else "#b0b6bd"
        axes.text(predicted, true, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=10)
    return made


def classes_figure(scores: Scores) -> Figure:
    """Show each class's accuracy, averaged over models, of the condensed set and of random images if there are any.

    Of more than 20 classes only the 10 that the condensed set does best and the 10 worst.
    """
    means = {name: class_means(scores, name) for name in (CONDENSED, "random") if name in scores.per_class}
    labels = sorted(range(len(scores.class_names)), key=lambda label: -means[CONDENSED][label])
    places, half, left_out = [*range(len(labels))], MAX_CLASSES // 2, len(labels) - MAX_CLASSES
    if left_out > 0:
        labels = [*labels[:half], *labels[-half:]]
        places = [*range(half), *range(half + 1, MAX_CLASSES + 1)]
    made, axes = _axes(1.6 + 0.3 * places[-1])
    for name, row in means.items():
        colour, mark = SET_STYLES[name]
        shown = [100 * row[label] for label in labels]
        axes.scatter(shown, places, color=colour, marker=mark, s=55 if name == CONDENSED else 36, label=set_label(name),
                     zorder=3 if name == CONDENSED else 2)  # fmt: skip
    if "random" in means:
        left, right = ([100 * means[name][label] for label in labels] for name in ("random", CONDENSED))
        axes.hlines(places, left, right, color="#c3c9cf", linewidth=1.6, zorder=1)
    if left_out > 0:
        axes.text(0.5, half, f"… {left_out} more …", ha="center", va="center", color=DARK,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_yticks(places, [cut(class_label(scores.class_names[label], label), LABEL) for label in labels])
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlim(-2, 102)
    axes.set_xlabel(f"{scored_on(scores)} accuracy of the class (%), mean over models")
    axes.xaxis.grid(True)
    made.legend(loc="outside upper left", ncols=2)
    return made


def _transfer(comparison: Comparison) -> Figure:
    rows, models = comparison.transfer, comparison.models
    names = [_folded(name) for name, _ in rows]
    shares = np.array([[100 * group.table[model].mean for model in models] for _, group in rows])
    lines = sum(max(2, 1 + name.count("\n")) for name in names)
    made, axes = _axes(1.6 + 0.27 * lines + 0.09 * max(map(len, models)))
    # A scale of at least ten points: less is not made to look like much.
    least, most = shares.min(), shares.max()
    low = max(0.0, min(least, (least + most) / 2 - 5))
    high = max(most, low + 10)
    _colours(made, axes, shares, "accuracy (%)", vmin=low, vmax=high)
    axes.set_xticks(range(len(models)), map(drawable, models), rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), names, fontsize=10)
    axes.set_ylabel("condensed by")
    axes.set_xlabel("trained")
    wide = len(models) <= MAX_TENTHS
    for (y, x), share in np.ndenumerate(shares):
        text = (f"{share:.1f}" if wide else f"{share:.0f}") + mark(models[x], rows[y][1].condensed_by)
        axes.text(x, y, text if wide else text.replace(" ", "\n"), ha="center", va="center", fontsize=11 if wide else 9,
                  color="white" if (share - low) / (high - low) > 0.6 else "black")  # fmt: skip
    return made


def _differences(comparison: Comparison) -> Figure:
    contrasts, names = comparison.against_first, comparison.columns
    made, axes = _axes(1.3 + 0.3 * len(contrasts) + len(names) * max(0.42, 0.2 + 0.17 * len(contrasts)))
    # A difference is the first set less another: the strongest of the others have the least.
    strength = [-one.differences[comparison.main].mean for one in contrasts]
    styles = _thinned(_styles(len(contrasts)), _best(strength))
    series = [
        (drawable(one.name), [one.differences[name] for name in names], style)
        for one, style in zip(contrasts, styles, strict=True)
    ]
    _rows_of_bars(axes, [OVER_MODELS if name == MEAN else drawable(name) for name in names], series)
    axes.axvline(0, color=DARK, linewidth=1.2, zorder=1)
    if comparison.main == MEAN:
        axes.axhline(0.5, color=GREY, linewidth=0.8)
    low, high = axes.get_xlim()
    least = max(1.0, 0.1 * (high - low))  # zero is seen, and half a point does not look like much
    axes.set_xlim(min(low, -least), max(high, least))
    axes.set_xlabel("difference of accuracy (points), 95 % interval")
    made.legend(loc="outside upper left", ncols=1, fontsize=10)
    return made


def _budget(comparison: Comparison) -> Figure:
    styles = _styles(len(comparison.curves))
    if styles:
        highest = [max(found.mean for found in points.values()) for _, points in comparison.curves]
        styles = _thinned(styles, _best(highest))
    curves = [(name, points, style) for (name, points), style in zip(comparison.curves, styles, strict=True)]
    for name, points in comparison.random.items():
        curves.append((f"{set_label(name)} (real images)", points, (GREY, SET_STYLES[name][1])))
    names = [_folded(name, 2 * ROW_NAME) for name, *_ in curves]
    made, axes = _axes(3.8 + 0.22 * sum(1 + name.count("\n") for name in names))
    stored = sorted({group.budget.stored for group in comparison.groups})
    for place, (_, points, style) in enumerate(curves):
        # Side by side: sets of one budget would hide one another.
        aside = (stored[-1] / stored[0]) ** (0.012 * (place - (len(curves) - 1) / 2))
        _bars(axes, [x * aside for x in points], [*points.values()], upright=True, color=style[0],
              marker=style[1], label=names[place])  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(stored, map(str, stored))
    axes.minorticks_off()
    axes.set_xlabel("stored images (bars: 95 % interval)")
    what = OVER_MODELS if comparison.main == MEAN else drawable(comparison.main)
    axes.set_ylabel(f"accuracy (%), {what}", fontsize=11)
    axes.grid(True)
    made.legend(loc="outside upper left", ncols=1, fontsize=10)
    return made


def sweep_figure(result: SweepResult) -> Figure:
    """Show the accuracy of every variant of a sweep, best first: every condensing seed, and means with intervals.

    A line goes down from the mean of the recipe as it is.
    """
    rows = [row for row in result.rows if row.accuracy is not None]
    base, runs = result.variants[0].name, {variant.name: variant.scored for variant in result.variants}
    names = [_folded(cut(row.name, 2 * ROW_NAME)) for row in rows]
    made, axes = _axes(1.2 + sum(0.42 + 0.2 * name.count("\n") for name in names))
    styles = {True: SET_STYLES["initialisation"], False: SET_STYLES[CONDENSED]}
    for place, row in enumerate(rows):
        colour, mark = styles[row.name == base]
        dots = [100 * accuracy for accuracy in runs[row.name].values()]
        axes.scatter(dots, [place + 0.22] * len(dots), s=16, color=PALE, edgecolors=GREY, linewidths=0.6, zorder=2)
        found = [row.accuracy] if row.accuracy is not None else []
        _bars(axes, [place - 0.12], found, color=colour, marker=mark, zorder=3)
        if row.name == base and row.accuracy is not None:
            axes.axvline(100 * row.accuracy.mean, color=colour, linewidth=1, linestyle="--", zorder=1)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.grid(True)
    low, high = axes.get_xlim()
    if high - low < 2:  # tenths of a point are not made to look like much
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    axes.set_xlabel("accuracy (%), mean and 95 % interval;\nsmall dots: condensing seeds")
    return made


def preview(images: Tensor, class_names: Sequence[str]) -> bytes:
    """Draw a contact sheet of a condensed set, a row per class, named in matplotlib's font.

    Args:
        images: uint8 C x n x ch x H x W on the CPU, stored or decoded; the first of each class that fit are shown.
        class_names: One name per class.

    Returns:
        PNG bytes, the same for the same arguments (with the same Pillow and matplotlib).
    """
    rows, side = min(len(class_names), MAX_ROWS), images.shape[-1]
    scale = max(1, round(TILE / side))
    pitch = side * scale + GAP
    across = min(images.shape[1], max(4, SHEET_WIDTH // pitch))
    shown = contact_sheet(images[:rows, :across].flatten(0, 1), across, scale, GAP)
    typeface = ImageFont.truetype(font()[0], FONT_SIZE)
    labels = [_fitting(class_label(name, number), typeface) for number, name in enumerate(class_names[:rows])]
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
    return _png(sheet)


def _fitting(label: str, typeface: ImageFont.FreeTypeFont) -> str:
    """Cut a name that is wider than its place."""
    text = label
    while text and typeface.getlength(text + "…" * (text != label)) > LABEL_WIDTH:
        text = text[:-1]
    return text if text == label else text.rstrip() + "…"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def preview_of(parquet: Path, shape: tuple[int, int, int, int], class_names: Sequence[str]) -> bytes:
    """Draw the contact sheet of a train.parquet; reads the classes that are shown alone.

    It holds `shape` = M x ch x H x W images, as many of each class, class after class.
    """
    from hmdc_hub.store.parquet import read_parquet

    of_each = shape[0] // len(class_names)
    shown, _ = read_parquet(parquet, of_each * min(MAX_ROWS, len(class_names)), shape=shape)
    return preview(shown.reshape(-1, of_each, *shown.shape[1:]), class_names)


def formation(condensed: Tensor, initialisation: Tensor | None, factor: int, class_names: Sequence[str]) -> bytes:
    """Draw how training images come about, a row for each of a few classes.

    From left to right: a synthetic image before the first image step, the same one condensed, and training images that
    are cut out of it.

    Args:
        condensed: float32 n x ch x H x W in [0, 1] on the CPU: one stored image of each of the first n classes.
        initialisation: The same before the first image step; None: not known, and left out.
        factor: f, tiles per row and per column of a stored image.
        class_names: One name per class, n or more.

    Returns:
        PNG bytes, the same for the same arguments (with the same Pillow and matplotlib).
    """
    from hmdc_hub.multi_formation import decode
    from hmdc_hub.store.parquet import to_uint8

    tiles, every = decode(condensed[:, None], factor)[:, :FORMED_TILES], factor**2
    columns = [("condensed", condensed[:, None])]
    if initialisation is not None:
        columns.insert(0, ("initialisation", initialisation[:, None]))
    if every > 1:
        what = f"its {every}" if every <= FORMED_TILES else f"{FORMED_TILES} of its {every}"
        columns.append((f"{what} training images", tiles))
    scale, typeface = max(1, round(TILE / condensed.shape[-1])), ImageFont.truetype(font()[0], FONT_SIZE)
    pitch, names = condensed.shape[-1] * scale + GAP, class_names[: len(condensed)]
    labels = [_fitting(class_label(name, number), typeface) for number, name in enumerate(names)]
    left, top = MARGIN + max(round(typeface.getlength(label)) for label in labels), MARGIN + FONT_SIZE + GAP
    middles = [top + row * pitch + (pitch - GAP) // 2 for row in range(len(labels))]
    sheets = [contact_sheet(to_uint8(of.flatten(0, 1)), of.shape[1], scale, GAP) for _, of in columns]
    places, x = list[int](), left + LABEL_GAP
    for (title, _), sheet in zip(columns, sheets, strict=True):
        places.append(x)
        x += max(sheet.width, round(typeface.getlength(title))) + ARROW
    drawn = Image.new("RGB", (x - ARROW + MARGIN, top + sheets[0].height + MARGIN), "white")
    draw = ImageDraw.Draw(drawn)
    for label, middle in zip(labels, middles, strict=True):
        draw.text((left, middle), label, fill=INK, font=typeface, anchor="rm")
        for place in places[1:]:
            draw.text((place - ARROW // 2, middle), "→", fill=FAINT, font=typeface, anchor="mm")
    for place, sheet, (title, _) in zip(places, sheets, columns, strict=True):
        drawn.paste(sheet, (place, top))
        draw.text((place, MARGIN), title, fill=INK, font=typeface, anchor="lt")
    return _png(drawn)


class SetPictures(NamedTuple):
    """A condensed set, as PNG."""

    preview: bytes  # training images, a row per class
    formation: bytes  # how they come about


def set_pictures(info: ArtifactInfo, parquet: Path, condensed: Path, initialisation: Path) -> SetPictures:
    """Draw both of a set's files; an initialisation that is not there, or cannot be read, is left out."""
    import torch

    from hmdc_hub.store.condensed import read_classes, training_shape

    def first(path: Path) -> Tensor:
        return torch.stack([images[0] for images in islice(read_classes(path), FORMED)])

    names, shape = info.source.class_names, training_shape(info, condensed)
    try:
        before = first(initialisation) if initialisation.is_file() else None
    except HmdcError:  # evaluating would make it again; a picture does not
        before = None
    return SetPictures(preview_of(parquet, shape, names), formation(first(condensed), before, info.factor, names))
