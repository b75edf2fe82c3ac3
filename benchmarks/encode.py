"""How real images are best shrunk into tiles: the three ways of `condense.encode`, compared on held-out real data.

    python benchmarks/encode.py digits --factor 2 --factor 3 --ipc 1 --ipc 10 --out encode-digits.json

Random real images: the same ones, encoded each way, clamped, rounded to 8 bits and decoded, are what networks train on;
`--draws` draws, `--seeds` trainings of each model on each. Everything is scored on a fifth of the train split, which no
image is taken from; the test split is not read. What is left of it after condensing, `hmdc-hub sweep` says:
`-o condense.encode=antialias,bilinear,least-squares`.

Differences are paired by draw; the intervals are 95 % of Student's t over draws, each the mean over models and training
seeds. `error` is the root mean square error of decoded images, pixels in [0, 1]. Everything finished is in the JSON
file; the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import torch

from hmdc_hub import multi_formation, rng
from hmdc_hub.catalog import load_recipe
from hmdc_hub.evaluator import EvaluatedSet, TrainingSet, training_sets
from hmdc_hub.evaluator.trainer import Trainer, TrainingJob, training_tensors
from hmdc_hub.metrics import estimate
from hmdc_hub.schema import Encoding, EvaluateSpec, Recipe
from hmdc_hub.sources import Source, load_source, resolve_source
from hmdc_hub.store.parquet import to_uint8

CPU = torch.device("cpu")
METHODS: tuple[Encoding, ...] = get_args(Encoding)
MODELS = "convnet3_narrow,resnet_narrow,vit_micro"


def recipe_of(data: str, factor: int, ipc: int, models: str, steps: int) -> Recipe:
    """Write the recipe of one case; where the factor does not divide the size, the next one that it divides."""
    base, size = ("digits_ipc1", 16) if data == "digits" else ("cifar10_ipc1", 32)
    overrides = [
        f"condense.ipc={ipc}", f"condense.factor={factor}", f"source.size={size + -size % factor}",
        "source.train_split=train", "source.test_fraction=0.2", "source.test_split=null",
        f"evaluate.models=[{models}]", f"evaluate.steps={steps}", "evaluate.full=never", "evaluate.batch=64",
        "evaluate.schedule=cosine",
    ]  # fmt: skip
    if data != "digits":
        overrides += ["source.revision=null", "source.config=null", f"source.id={Path(data).resolve()}"]
    return load_recipe(base, overrides)


def encoded(recipe: Recipe, source: Source, draws: int) -> Iterator[tuple[str, int, TrainingSet]]:
    """Make the same random images into training sets, each way."""
    n, classes = recipe.condense.size, source.train.num_classes
    shape = source.train.images.shape[1:]
    subject = EvaluatedSet(
        "random", torch.zeros(classes, *shape, dtype=torch.uint8), torch.arange(classes), (n,) * classes, "0" * 64,
        recipe.condense.factor,
    )  # fmt: skip
    for method in METHODS:
        changes = {"baselines": ["random-encoded"], "random_draws": draws, "encode": method}
        protocol = EvaluateSpec.model_validate(recipe.evaluate.model_dump(mode="json") | changes)
        for made in training_sets(protocol, source, subject, CPU)[1:]:
            yield method, made.draw, made


def errors(recipe: Recipe, source: Source) -> dict[str, float]:
    """Measure how far decoded images are from what was encoded, root mean square over a thousand of them or so."""
    factor = recipe.condense.factor
    count = min(1000, len(source.train.images)) // factor**2 * factor**2
    rows = torch.randperm(len(source.train.images), generator=rng.generator(0, "benchmark"))[:count]
    real, found = source.train.images[rows].float() / 255, dict[str, float]()
    for method in METHODS:
        stored = to_uint8(multi_formation.encode(real, factor, source.train.side, method))
        decoded = to_uint8(multi_formation.decode(stored.float() / 255, factor)).float() / 255
        found[method] = float((decoded - real).square().mean().sqrt())
    return found


class Results:
    """Accuracies in percent and errors by a name with slashes, in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, dict[str, float]()
        if path.is_file():
            self.found = json.loads(path.read_text())

    def __setitem__(self, key: str, value: float) -> None:
        self.found[key] = round(value, 4)
        self.path.write_text(json.dumps(self.found, indent=0))

    def of(self, case: str, method: str, model: str) -> dict[str, float]:
        """Give the means over training seeds of the draws; `model` may be `mean`."""
        values = dict[str, list[float]]()
        for key, value in self.found.items():
            where, used, name, draw, _ = (key.split("|") + [""] * 5)[:5]
            if (where, used) == (case, method) and (model in ("mean", name)) and name != "error":
                values.setdefault(draw, []).append(value)
        return {draw: statistics.fmean(of_draw) for draw, of_draw in values.items()}

    def table(self, cases: list[str], models: list[str]) -> str:
        """Lay out everything: means, and differences to antialias paired by draw."""
        lines = ["| case | encoded | n | error | " + " | ".join([*models, "mean", "- antialias (95 %)"]) + " |"]
        lines.append("|---" * (len(models) + 6) + "|")
        for case in cases:
            before = self.of(case, METHODS[0], "mean")
            for method in METHODS:
                means = [list(self.of(case, method, model).values()) for model in [*models, "mean"]]
                after = self.of(case, method, "mean")
                if not after:
                    continue
                gain = estimate([after[draw] - before[draw] for draw in after if draw in before])
                interval = "" if gain.low is None else f" ({gain.low:+.1f} to {gain.high:+.1f})"
                error = self.found.get(f"{case}|{method}|error")
                cells = [case, method, str(len(after)), "" if error is None else f"{error:.3f}"]
                cells += [f"{statistics.fmean(values):.1f}" for values in means]
                cells.append("" if method == METHODS[0] else f"{gain.mean:+.1f}{interval}")
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def compare_random(results: Results, case: str, recipe: Recipe, seeds: int, draws: int) -> None:
    """Train on random images, encoded each way."""
    source = load_source(resolve_source(recipe.source))
    for method, error in errors(recipe, source).items():
        results[f"{case}|{method}|error"] = error
    made = [*encoded(recipe, source, draws)]
    protocol = recipe.evaluate.settled()
    trainer = Trainer(protocol, training_tensors(source, [one for _, _, one in made]), CPU)
    for seed in range(seeds):
        for model, spec in enumerate(protocol.models):
            for index, (method, draw, _) in enumerate(made):
                key = f"{case}|{method}|{spec.name}|{draw}|{seed}"
                if key not in results.found:
                    results[key] = 100 * trainer.run(TrainingJob(model, index, seed)).accuracy


@click.command()
@click.argument("data", default="digits")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file with everything finished.")
@click.option("--factor", "factors", multiple=True, default=(2,), show_default=True)
@click.option("--ipc", "ipcs", multiple=True, default=(1,), show_default=True)
@click.option("--models", default=MODELS, show_default=True)
@click.option("--steps", default=300, show_default=True, help="Optimiser steps of every training.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of a model on each draw.")
@click.option("--draws", default=3, show_default=True, help="Draws of the random images.")
def main(
    data: str,
    out: Path,
    factors: tuple[int, ...],
    ipcs: tuple[int, ...],
    models: str,
    steps: int,
    seeds: int,
    draws: int,
) -> None:
    """Do what is missing and print the table."""
    torch.set_num_threads(1)
    results, cases, name = Results(out), list[str](), Path(data).name
    for ipc in ipcs:
        for factor in factors:
            recipe, case = recipe_of(data, factor, ipc, models, steps), f"{name} f{factor} ipc{ipc}"
            compare_random(results, case, recipe, seeds, draws)
            cases.append(case)
            click.echo(results.table([case], models.split(",")), err=True)
    settings: dict[str, Any] = {"torch": torch.__version__, "threads": 1, "steps": steps}
    click.echo(f"{settings}\n\n{results.table(cases, models.split(','))}")


if __name__ == "__main__":
    main()
