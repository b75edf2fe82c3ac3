"""A notebook from a recipe to a published set and back, on real digits and a Hub of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import hmdc_hub as hmdc
from hmdc_hub.events import ImageGrid, ImageStep, Stage
from tests.cli import tiny
from tests.hub import LocalHub


@pytest.mark.slow
def test_the_twelve_lines(account: LocalHub, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(here / "tiny.yaml")
    features = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    my_module = nn.Sequential(*features, nn.Linear(4, 10))
    heard: list[Any] = []

    recipe = hmdc.load_recipe("tiny.yaml", condense={"resets": 1}, evaluate={"seeds": 3})
    print(recipe.plan())
    run = hmdc.condense(recipe, device="auto", callbacks=[heard.append], report_to="tensorboard")
    scores = hmdc.evaluate(run, models=["mlp", my_module])
    frame, text = scores.to_pandas(), scores.summary()
    others = hmdc.evaluate((run.condensed.images, run.condensed.labels), like="tiny.yaml")
    rows, picture = run.condensed.to_dataset(), run.preview()
    hmdc.evaluate(run)
    published = run.push_to_hub("ann/tiny-hmdc", private=True)
    train = hmdc.load("ann/tiny-hmdc", "ipc1")

    assert len(frame) == 2 * 3 * 3 and "condensed" in text
    assert {type(event) for event in heard} >= {ImageStep, ImageGrid, Stage}
    assert others.scores.name != scores.scores.name and others.scores.condense_hash is None
    assert rows.features["label"].names == [str(digit) for digit in range(10)] and picture.width > 50
    assert len(train) == len(rows) == 40 and train[0][0].shape == (1, 8, 8) and train[0][1] == 0
    assert len(repr(train)) < 200 and "<img" in train._repr_html_()
    assert published.changed and account.exists("ann/tiny-hmdc") and run.state == "finished"
    assert list((run.path / "trackers").rglob("events.*"))
