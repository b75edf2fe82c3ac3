"""Plausible files for tests: run directories with random tensors, written through the real writers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from hmdc_hub import metrics, multi_formation
from hmdc_hub.catalog import dump_recipe
from hmdc_hub.report.plots import preview
from hmdc_hub.rng import generator
from hmdc_hub.schema import (
    BASELINES,
    TRAINING_SETS,
    ArtifactInfo,
    Budget,
    Cell,
    Recipe,
    Scores,
    SetHeader,
    SoftLabelScores,
    SourceInfo,
    sealed,
)
from hmdc_hub.store.condensed import write_condensed
from hmdc_hub.store.files import read_info, sha256_file, write_bytes_atomic, write_json_atomic, write_text_atomic
from hmdc_hub.store.parquet import to_uint8, write_parquet
from hmdc_hub.store.rundir import RunDir

CONVNET = {"name": "convnet_tiny", "source": "builtin", "id": "convnet", "args": {"depth": 2, "width": 4}}
MLP = {"name": "mlp_tiny", "source": "builtin", "id": "mlp", "args": {"depth": 2, "width": 8}}
RESNET = {"name": "resnet_tiny", "source": "builtin", "id": "resnet", "args": {"width": 4, "blocks": [1, 1]}}


def make_recipe(
    *,
    name: str = "tiny_ipc2",
    source_id: str = "someone/tiny",
    ipc: int = 2,
    factor: int = 2,
    size: int = 8,
    channels: int = 3,
    license: str | None = None,
    dataset: str = "tiny-hmdc",
    config: str | None = None,
    **sections: Any,
) -> Recipe:
    """Make a resolved recipe; `sections` replaces whole sections."""
    plain: dict[str, Any] = {
        "name": name,
        "description": "Made-up images for tests",
        "source": {"id": source_id, "size": size, "channels": channels},
        "pool": [CONVNET, MLP],
        "condense": {"ipc": ipc, "factor": factor, "resets": 1},
        "evaluate": {"models": [CONVNET, MLP, RESNET], "seeds": 5, "random_draws": 3, "epochs": 30},
        "publish": {"name": dataset, "config": config or f"ipc{ipc}", "license": license},
    }
    return Recipe.model_validate(plain | sections)


def make_source_info(
    recipe: Recipe,
    *,
    class_names: Sequence[str] = ("cat", "dog", "ship"),
    kind: Literal["builtin", "torchvision", "hub", "local"] = "hub",
    license: str | None = "cc-by-4.0",
    gated: bool = False,
) -> SourceInfo:
    """Make what a source says about itself."""
    channels = recipe.source.channels
    return SourceInfo(
        id=Path(recipe.source.id).name if kind == "local" else recipe.source.id,
        kind=kind,
        revision="1f3a" * 10 if kind == "hub" else None,
        fingerprint="ab12" * 16,
        config=None,
        train_split="train",
        test_split="test",
        image_column="img",
        label_column="label",
        class_names=list(class_names),
        train_counts=[500] * len(class_names),
        test_count=100 * len(class_names),
        size=recipe.source.size,
        channels=channels,
        mean=[0.4914, 0.4822, 0.4465][:channels],
        std=[0.247, 0.2435, 0.2616][:channels],
        license=license,
        gated=gated,
    )


def make_run(
    path: Path,
    *,
    recipe: Recipe | None = None,
    source: SourceInfo | None = None,
    images: torch.Tensor | None = None,
    scored: bool = True,
    seed: int = 0,
) -> RunDir:
    """Write a run whose condensing is complete, with random images.

    Args:
        path: The run directory.
        recipe: From `make_recipe`.
        source: From `make_source_info`.
        images: float32 N x ch x H x W in [0, 1], stored form; None: random.
        scored: Also write scores.json and cells.jsonl.
        seed: Of the random images and scores.
    """
    recipe = recipe or make_recipe()
    source = source or make_source_info(recipe)
    run, classes, ipc = RunDir(path), len(source.class_names), recipe.condense.size
    shape = (classes * ipc, source.channels, source.size, source.size)
    gen = generator(seed, "test images")
    images = torch.rand(shape, generator=gen) if images is None else images
    labels = torch.arange(classes).repeat_interleave(ipc)
    header = SetHeader(
        name=recipe.name,
        ipc=ipc,
        factor=recipe.condense.factor,
        class_names=source.class_names,
        mean=source.mean,
        std=source.std,
        condense_hash=recipe.condense_hash(),
    )
    run.checkpoints.mkdir(parents=True)
    write_text_atomic(run.recipe, dump_recipe(recipe))
    write_text_atomic(run.log, '{"done": 1}\n')
    write_condensed(run.initialisation, torch.rand(shape, generator=gen), labels, header)
    write_condensed(run.condensed, images, labels, header)
    decoded = multi_formation.decode(images.reshape(classes, ipc, *shape[1:]), header.factor)
    decoded_labels = torch.arange(classes).repeat_interleave(decoded.shape[1])
    write_parquet(run.parquet, to_uint8(decoded.flatten(0, 1)), decoded_labels, source.class_names)
    write_bytes_atomic(run.preview, preview(to_uint8(decoded), source.class_names))
    write_json_atomic(run.info, _info(run, recipe, source, classes * ipc, len(decoded_labels)))
    if scored:
        scores = make_scores(recipe, read_info(run.info), seed=seed)
        write_text_atomic(run.cells, "".join(cell.model_dump_json() + "\n" for cell in scores.cells))
        write_json_atomic(run.scores, scores)
    return run


def _info(run: RunDir, recipe: Recipe, source: SourceInfo, stored: int, training: int) -> ArtifactInfo:
    return ArtifactInfo(
        hmdc_hub_version="0.1.0",
        recipe_name=recipe.name,
        condense_hash=recipe.condense_hash(),
        protocol_hash=recipe.protocol_hash(),
        seed=recipe.seed,
        source=source,
        models=recipe.pool,
        parameters={model.name: 1234 * (1 + place) for place, model in enumerate(recipe.pool)},
        versions={"python": "3.12.1", "torch": "2.15.0"},
        device="cpu",
        threads=1,
        seconds=754.3,
        image_steps=100,
        peak_memory_bytes=3 * 2**29,
        clamped_share=0.031,
        ipc=recipe.condense.size,
        factor=recipe.condense.factor,
        synthetic_images=stored,
        training_images=training,
        tensors_sha256=sha256_file(run.condensed),
        parquet_sha256=sha256_file(run.parquet),
    )


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file of ours, and its checksum with it; `change` returns what it becomes or changes it in place."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps(sealed(change(value) or value)))


def make_scores(recipe: Recipe, info: ArtifactInfo, *, seed: int = 0) -> Scores:
    """Make scores of every training set of the protocol: condensed best, then start, encoded, k-means, random."""
    gen = generator(seed, "test scores")
    models = [model.name for model in recipe.evaluate.models]
    sets = ["condensed", *recipe.evaluate.baselines]
    level = {"condensed": 0.55, "exact": 0.551, "initialisation": 0.5, "random-encoded": 0.46, "k-means": 0.42}
    level = dict.fromkeys(BASELINES, 0.4) | level | {"random": 0.36, "full": 0.8}
    count = info.source.test_count
    cells = [
        Cell(
            model=model,
            training_set=name,
            draw=draw,
            seed=number,
            accuracy=round((level[name] + 0.05 * place + 0.02 * float(torch.rand((), generator=gen))) * count) / count,
            ece=0.1 + 0.02 * float(torch.rand((), generator=gen)),
        )
        for place, model in enumerate(models)
        for name in sets
        for draw in range(recipe.evaluate.draws(name))
        for number in range(recipe.evaluate.seeds)
    ]
    soft_labels = None
    if recipe.evaluate.soft_labels.teacher != "none":
        soft = [cell for cell in cells if cell.training_set in metrics.SOFT_SETS]
        soft_labels = SoftLabelScores(
            teachers=dict.fromkeys(models, 0.75),
            cells=soft,
            unaugmented=soft,
            **metrics.summarise_soft_labels(cells, soft, soft, models),
        )
    condensed_by, classes = [model.name for model in recipe.pool], len(info.source.class_names)
    summary = metrics.summarise(cells, sets, models, condensed_by)
    pixels = info.source.channels * info.source.size**2
    return Scores(
        hmdc_hub_version="0.1.0",
        versions=info.versions,
        device="cpu",
        name=recipe.name,
        family_hash=recipe.family_hash(),
        condense_seed=recipe.seed,
        fingerprint=info.source.fingerprint,
        class_names=info.source.class_names,
        condense_hash=info.condense_hash,
        protocol_hash=info.protocol_hash,
        protocol=recipe.evaluate,
        parquet_sha256=info.parquet_sha256,
        condensed_by=condensed_by,
        test_count=info.source.test_count,
        budgets={name: _budget(name, info, pixels) for name in sets},
        cells=cells,
        per_class={name: {model: [summary["table"][name][model].mean] * classes for model in models} for name in sets},
        soft_labels=soft_labels,
        **summary,
    )


def _budget(name: str, info: ArtifactInfo, pixels: int) -> Budget:
    if name == "full":
        count = sum(info.source.train_counts)
        return Budget(stored=count, images=count, bytes=count * pixels)
    few = TRAINING_SETS[name].size == "chosen"
    images = info.synthetic_images if few else info.training_images
    depth = 4 if name == "exact" else 1
    return Budget(stored=info.synthetic_images, images=images, bytes=depth * info.synthetic_images * pixels)
