"""Real images chosen by the judgement of networks that were trained on the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from hmdc_hub import multi_formation
from hmdc_hub.condenser import choice
from hmdc_hub.condenser.choice import confident_crops, difficulty, kept
from hmdc_hub.condenser.data import RealImages
from hmdc_hub.errors import Interrupted
from hmdc_hub.events import Event, ImageStep, StopFlag
from hmdc_hub.schema import CondenseSpec, Recipe
from tests.condenser.running import digest, estimate_cost, networks_of, recipe_of, run
from tests.tiny import RECIPE, tiny_source

MODELS = RECIPE["pool"]


def real_of(**condense: object) -> tuple[RealImages, list]:  # type: ignore[type-arg]
    networks = networks_of(recipe_of(*MODELS, **condense))
    return networks.real, networks.models


def test_difficulty_is_the_mean_distance_of_probabilities_from_the_label() -> None:
    real, models = real_of()
    found = difficulty(real, models)
    images, labels = real.read(torch.arange(len(real.labels))), real.labels
    with torch.no_grad():
        each = [net.logits(net.prepare(images)).double().exp() for net in models]
    wanted = []
    for exponentials in each:
        probabilities = exponentials / exponentials.sum(1, keepdim=True)
        probabilities[torch.arange(len(labels)), labels] -= 1
        wanted.append(probabilities.square().sum(1).sqrt())
    torch.testing.assert_close(found.double(), torch.stack(wanted).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", ["easiest", "hardest"])
def test_a_share_of_every_class_is_kept(of: str) -> None:
    real, _ = real_of(difficulty={"keep": 0.4, "of": of})
    scores = torch.rand(len(real.labels), generator=torch.Generator().manual_seed(1))
    for label, rows in enumerate(kept(real, scores)):
        every = real.of_class(label)
        assert len(rows) == max(1, round(0.4 * len(every)))
        left = every[~torch.isin(every, rows)]
        inside, outside = scores[rows], scores[left]
        assert torch.equal(rows, rows.sort().values)
        assert inside.max() <= outside.min() if of == "easiest" else inside.min() >= outside.max()


def test_a_crop_of_everything_is_the_image_and_of_a_quarter_its_enlargement() -> None:
    real, _ = real_of()
    rows = real.of_class(0)[:2]
    images = real.read(rows)
    whole = choice._crops(real, rows, torch.ones(2), torch.zeros(2, 2))
    torch.testing.assert_close(whole, images)
    half = images.shape[-1] // 2
    corner = choice._crops(real, rows, torch.full((2,), 0.5), torch.full((2, 2), -0.5))
    wanted = F.interpolate(images[..., :half, :half], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(corner[..., :-2, :-2], wanted[..., :-2, :-2])  # at its inner edge a crop sees beyond


def test_crops_are_the_surest_of_each_image_and_of_distinct_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    real, models = real_of()
    seen: list[Tensor] = []
    losses = real.losses

    def noted(model: object, images: Tensor, label: int) -> Tensor:
        seen.append(losses(model, images, label))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(real, "losses", noted)
    crops = confident_crops(real, models[0], 1, 3)
    every = torch.stack(seen)  # crops x images
    assert every.shape == (choice.CROPS, real.spec.cluster.candidates)
    best = every.min(0).values.sort().values[:3]
    torch.testing.assert_close(losses(models[0], crops, 1), best, rtol=1e-4, atol=1e-6)
    assert torch.equal(crops, confident_crops(real, models[0], 1, 3))


def test_a_class_of_few_images_shows_its_crops_repeatedly() -> None:
    real, models = real_of()
    assert len(confident_crops(real, models[0], 0, 10_000)) == len(real.of_class(0)) < 10_000


ON: list[dict[str, Any]] = [
    {"initialisation": "mosaic"},
    {"difficulty": {"keep": 0.5}},
    {"cluster": {"weights": "loss"}},
]


@pytest.mark.parametrize("keys", [*ON, {"initialisation": "mosaic", "difficulty": {"keep": 0.5, "of": "hardest"}}])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes(keys: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of(*MODELS, **keys, **({} if "cluster" in keys else {"observer_epochs": 2}))
    whole = digest(run(tmp_path / "whole", recipe))
    assert whole != digest(run(tmp_path / "plain", recipe_of(*MODELS)))
    stop = StopFlag()

    def after_one(event: Event) -> None:
        if isinstance(event, ImageStep):
            stop.signal_number = 15

    with pytest.raises(Interrupted):
        run(tmp_path / "cut", recipe, after_one, stop)
    assert digest(run(tmp_path / "cut", recipe)) == whole


def test_it_stops_while_observers_are_trained(tmp_path: Path) -> None:
    stop = StopFlag(15)
    with pytest.raises(Interrupted, match="before the first image step"):
        run(tmp_path, recipe_of(*MODELS, initialisation="mosaic"), stop=stop)


def test_matching_sees_kept_images_alone() -> None:
    real, models = real_of(difficulty={"keep": 0.3})
    real.kept = kept(real, torch.arange(len(real.labels)).float())
    for label, rows in enumerate(real.real_batches(models[0], range(real.classes), (0, 0))):
        assert torch.isin(rows, real.kept[label]).all()


def test_off_is_the_same_experiment_and_nonsense_is_refused() -> None:
    plain = Recipe.model_validate(RECIPE)
    off = {
        "difficulty": {"keep": 1.0},
        "observer_epochs": 10,
        "cluster": RECIPE["condense"]["cluster"] | {"weights": "none"},
    }
    assert recipe_of(*MODELS, **off).condense_hash() == plain.condense_hash()
    assert "difficulty" not in recipe_of(*MODELS, **off).model_dump()["condense"]
    for keys in ON:
        assert recipe_of(*MODELS, **keys).condense_hash() != plain.condense_hash()
    with pytest.raises(ValidationError, match="judge real images"):
        CondenseSpec.model_validate({"ipc": 1, "observer_epochs": 3})
    with pytest.raises(ValidationError, match="keep fewer"):
        CondenseSpec.model_validate({"ipc": 1, "difficulty": {"of": "hardest"}})
    with pytest.raises(ValidationError, match=r"cluster\.enabled"):
        CondenseSpec.model_validate({"ipc": 1, "cluster": {"enabled": False, "weights": "loss"}})


def test_the_initialisation_is_made_of_crops() -> None:
    from hmdc_hub.condenser.images import initial_images

    real, models = real_of(initialisation="mosaic")
    found = initial_images(real, models[0], 2, 1)
    crops = confident_crops(real, models[0], 2, real.decoded(1))
    low, high = real.source.bounds()
    torch.testing.assert_close(found, multi_formation.encode(crops, real.spec.factor, real.side).clamp(low, high))


@pytest.mark.parametrize(("keys", "observers"), [({"initialisation": "mosaic"}, 1), ({"difficulty": {"keep": 0.5}}, 2)])
def test_the_plan_counts_the_observers(keys: dict[str, Any], observers: int) -> None:
    plan = estimate_cost(recipe_of(*MODELS[:2], **keys), tiny_source())
    assert plan.observers == observers and plan.parts["observers"] > 0 and plan.seconds == sum(plan.parts.values())
    plain = estimate_cost(recipe_of(*MODELS[:2]), tiny_source())
    assert "observers" not in plain.parts and plain.observers == 0
