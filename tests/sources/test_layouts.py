from __future__ import annotations

import pytest

from tests.sources.files import PAGE
from tests.sources.layouts import BEGIN, END, LAYOUTS, row

WRITTEN = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()


@pytest.mark.parametrize("title", LAYOUTS)
def test_the_page_says_what_is_read(title: str) -> None:
    assert row(title, LAYOUTS[title]) in WRITTEN, "python -m tests.sources.layouts writes the table anew"


def test_the_page_has_no_other_rows() -> None:
    assert len(WRITTEN) == 2 + len(LAYOUTS) >= 17
