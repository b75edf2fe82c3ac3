"""What all pictures of matplotlib share: size, look, and bytes that are the same every time."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Literal

from hmdc_hub.report.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["png", "svg"]

WIDTH = 6.4
"""Inches; never wider than a phone can show with readable words: pictures grow downwards."""
LINES = "#e3e6ea"
"""Colour of grids."""


def figure(height: float) -> Figure:
    """Make an empty figure of `WIDTH` and this height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDTH, height), dpi=125, layout="constrained")
    FigureCanvasAgg(made)
    return made


def rendered(draw: Callable[[], Figure], kind: Kind) -> bytes:
    """Draw a figure into a file; the same bytes for the same picture (with the same matplotlib).

    Args:
        draw: Makes the figure; called while the look is in force.
        kind: The file's format.
    """
    import matplotlib

    # No date, no version of matplotlib: nothing that differs between two pictures of one thing.
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    # Letters of an SVG are drawn, not named: metrics differ between fonts, few machines have DejaVu Sans, and words
    # that run into each other are worse than words that cannot be searched for; the tables beside a picture have all.
    with matplotlib.rc_context(
        {
            "font.size": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "path",
            "svg.hashsalt": "hmdc-hub",
        }
    ):
        buffer = io.BytesIO()
        draw().savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def drawable(name: str) -> str:
    """Give a name on one line, with a question mark for what the font cannot write."""
    return "".join(character if ord(character) in _known() else "?" for character in one_line(name))


@cache
def _known() -> frozenset[int]:
    """List the characters of DejaVu Sans, matplotlib's own font."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap())
