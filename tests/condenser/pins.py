"""ModelPool, projections and images with values of our own, and short runs: what the pinned results are results of.

Every value behind a pinned gradient is drawn here, by the shape of the parameter and its turn among those of that
shape, so that nothing depends on how a version of a library initialises a network, what it calls its parts, or in which
order it lists a token and an embedding. Nothing here knows how image gradients are computed.

    python -m tests.condenser.pins           compares what the code gives now with what is pinned
    python -m tests.condenser.pins --write   pins what the code gives now
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hmdc_hub import rng
from hmdc_hub.catalog import load_model, load_recipe
from hmdc_hub.condenser.distillation import MutualDistillation, Pair
from hmdc_hub.models import PoolModel, build_model
from hmdc_hub.schema import ModelSpec, Recipe
from tests.builders import RESNET
from tests.tiny import CONVNET, MLP, RECIPE, VIT

FOLDER = Path(__file__).parent / "pinned"
GRADIENTS, RUNS = FOLDER / "gradients.safetensors", FOLDER / "runs.safetensors"

SIDE, CLASSES, LABEL = 32, 10, 1
PARTNER = ModelSpec(name="partner", source="builtin", id="convnet", args={"depth": 2, "width": 8}, input_size=16)
NARROW = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}


def entry(name: str, **changes: Any) -> ModelSpec:
    """Read a pool entry, without weights and at 32 pixels."""
    fixed = {"weights": "none", "revision": None, "input_size": SIDE}
    return ModelSpec.model_validate(load_model(name).model_dump() | fixed | changes)


@dataclass(frozen=True)
class Pool:
    """Entries of a pool, and which objectives are on."""

    specs: Sequence[ModelSpec]
    match: bool = True
    distill: bool = True


ENTRIES = (
    "convnet3", "convnet3_narrow", "convnet4", "convnext_micro", "deit_tiny", "deit_tiny_distilled", "densenet121",
    "efficientnet_b0", "mlp", "mobilenet_v3_small", "mobilevit_s", "regnet_y_400mf", "resnet18", "resnet18_imagenet",
    "resnet18_narrow", "resnet_narrow", "swin_micro", "swin_t", "vit_micro", "vit_tiny", "vit_tiny_augreg",
    "vit_tiny_imagenet",
)  # fmt: skip
"""The rest takes seconds, except efficientvit_b0, which computes its attention in float32 whatever it is given."""

POOLS = {
    **{name: Pool([entry(name), PARTNER]) for name in ENTRIES},
    "beit, narrow": Pool(
        [entry("beit_base_imagenet", args=NARROW | {"use_relative_position_bias": True, "patch_size": 8}), PARTNER]
    ),
    "dinov2 with registers, narrow": Pool(
        [entry("dinov2_small_registers", args=NARROW | {"patch_size": 8, "num_register_tokens": 4}), PARTNER]
    ),
    # The first of a pair has fewer taps than the second, and more.
    "three models": Pool([PARTNER, entry("vit_micro"), entry("resnet_narrow")]),
    "match off": Pool([entry("convnet3_narrow"), entry("vit_micro"), entry("mlp")], match=False),
    "distill off": Pool([entry("resnet18_narrow"), entry("swin_micro")], distill=False),
    "train head": Pool([entry("resnet18_narrow", train="head"), PARTNER]),
    "train last_1": Pool([entry("vit_micro", train="last_1"), PARTNER]),
    "normalize own": Pool(
        [entry("resnet_narrow", normalize="own", mean=[0.48, 0.45, 0.4], std=[0.23, 0.22, 0.25]), PARTNER]
    ),
}


@dataclass(frozen=True)
class Case:
    """What an image gradient is taken of, all in float64.

    Attributes:
        models: In evaluation mode, with running statistics of their own.
        pairs: Every two models, none with mutual distillation off; Q is not zero.
        match: Whether every model has an objective of its own.
        real: 3 x 3 x 32 x 32, of class `LABEL`.
        synthetic: 2 x 3 x 32 x 32, likewise.
    """

    models: list[PoolModel]
    pairs: list[Pair]
    match: bool
    real: Tensor
    synthetic: Tensor


def case(name: str) -> Case:
    """Build what `POOLS` names."""
    pool = POOLS[name]
    models = [_model(spec, name, place) for place, spec in enumerate(pool.specs)]
    pairs = itertools.combinations(range(len(models)), 2) if pool.distill else ()
    real, synthetic = (
        torch.randn(count, 3, SIDE, SIDE, generator=rng.generator(0, "pinned", name, kind), dtype=torch.float64)
        for count, kind in ((3, "real"), (2, "synthetic"))
    )
    return Case(models, [_pair(models, *pair, name) for pair in pairs], pool.match, real, synthetic)


def _model(spec: ModelSpec, name: str, place: int) -> PoolModel:
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    model = build_model(spec, num_classes=CLASSES, source_size=SIDE, channels=3, mean=mean, std=std).double()
    _fill(model, name, "model", place)
    return model.eval()


def _pair(models: Sequence[PoolModel], first: int, second: int, name: str) -> Pair:
    distillation = MutualDistillation((models[first].taps, models[second].taps)).double()
    _fill(distillation, name, "alignment", first, second)
    with torch.no_grad():
        distillation.layer_matching.mul_(sqrt(distillation.layer_matching.shape[1]))  # a softmax's logits, not weights
    return Pair(first, second, distillation)


@torch.no_grad()
def _fill(module: nn.Module, *key: int | str) -> None:
    """Draw all parameters and running statistics so that values keep their size on the way through a network."""
    turns: Counter[torch.Size] = Counter()

    def drawn(tensor: Tensor) -> Tensor:
        turns[tensor.shape] += 1
        gen = rng.generator(0, "pinned", *key, *tensor.shape, turns[tensor.shape])
        return torch.randn(tensor.shape, generator=gen, dtype=torch.float64)

    for name, parameter in module.named_parameters():
        values = drawn(parameter)
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.1 * values if name.endswith("weight") else 0.1 * values)
        elif len(parameter) == 1:  # tokens and embeddings of positions
            parameter.copy_(0.2 * values)
        else:
            # Networks with depthwise convolutions are deep and their gates shut: without a gain their gradients vanish.
            gain = 8 if parameter.ndim == 4 and parameter.shape[1] == 1 else 1
            parameter.copy_(values * sqrt(gain / parameter[0].numel()))
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
            mean.copy_(0.2 * drawn(mean))
            variance.copy_((0.3 * drawn(variance)).exp())


def _run(pool: Sequence[dict[str, Any]] = (CONVNET, MLP), **condense: Any) -> Recipe:
    spec = RECIPE["condense"]
    spec = spec | {"cluster": spec["cluster"] | {"every": 100}} | condense
    return Recipe.model_validate(RECIPE | {"pool": list(pool), "condense": spec})


RECIPES = {
    "batch norm": _run([CONVNET, RESNET]),
    "pair": _run([CONVNET, MLP, RESNET], pool_strategy="pair"),
    "three models": _run([CONVNET, MLP, RESNET]),
    "vit": _run([CONVNET, VIT]),
    "three classes a step": _run(classes_per_step=3, cluster={"enabled": False}),
    "balance off": _run(balance=False),
    "distill off": _run(distill=False),
    "every augmentation": _run(augment={}, cutmix={"match": True, "train": True, "probability": 1.0}),
    "memory low": _run(memory="low"),
    "digits_ipc1, short": load_recipe(
        "digits_ipc1",
        [
            "condense.encode=antialias",
            "condense.resets=1",
            "condense.networks.reset_every=3",
            "condense.cluster.every=100",
        ],
    ),
}
"""Of two resets and three image steps each, the last of one. Real batches are those of fresh networks."""


def beginnings(recipe: Recipe) -> Tensor:
    """Draw the first values of each network of a library in a pool, weighed up to one number."""
    found = []
    for spec in recipe.pool:
        if spec.source != "builtin":
            size, channels = recipe.source.size, recipe.source.channels
            mean, std = torch.zeros(channels), torch.ones(channels)
            model = build_model(
                spec, num_classes=CLASSES, source_size=size, channels=channels, mean=mean, std=std
            ).double()
            model.reset(rng.generator(0, "pinned"))
            values = torch.cat([p.detach().flatten() for p in model.parameters()])
            found.append(values @ torch.linspace(0, 1, len(values), dtype=values.dtype))
    return torch.stack(found) if found else torch.zeros(0)


def apart(found: Tensor, pinned: Tensor) -> float:
    """Return the norm of the difference over that of what is pinned."""
    return float((found - pinned).norm() / pinned.norm())


def digest(pixels: Tensor) -> str:
    """SHA-256 (hex) of float32 pixels in the order of memory."""
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()


def main() -> None:
    """Compare what the code gives now with what is pinned, or pin it."""
    from tests.condenser.test_pinned import condensed, image_gradient

    parser = argparse.ArgumentParser(prog="python -m tests.condenser.pins", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="pin what the code gives now")
    write = parser.parse_args().write
    torch.set_num_threads(1)  # as the tests have it
    gradients: dict[str, Tensor] = {}
    for name in POOLS:
        gradients[f"{name}/gradient"], gradients[f"{name}/targets"] = image_gradient(case(name))
    runs: dict[str, Tensor] = {}
    for name, recipe in RECIPES.items():
        with TemporaryDirectory() as folder:
            runs[f"{name}/pixels"] = condensed(recipe, Path(folder))
        runs[f"{name}/beginnings"] = beginnings(recipe)
    if write:
        facts = {name: version(name) for name in ("torch", "torchvision", "transformers", "timm")}
        save_file(gradients, GRADIENTS, facts)
        save_file(runs, RUNS, facts | {name: digest(runs[f"{name}/pixels"]) for name in RECIPES})
        return
    pinned = load_file(GRADIENTS) | load_file(RUNS)
    with safe_open(RUNS, framework="pt") as file:
        digests = file.metadata()
    for name in POOLS:
        far = [apart(gradients[f"{name}/{kind}"], pinned[f"{name}/{kind}"]) for kind in ("gradient", "targets")]
        print(f"{name:32} gradient {far[0]:.1e}, targets {far[1]:.1e}")
    for name in RECIPES:
        pixels = runs[f"{name}/pixels"]
        same = "same bits" if digest(pixels) == digests[name] else "other bits"
        print(f"{name:32} pixels {float((pixels - pinned[f'{name}/pixels']).abs().max()):.1e}, {same}")


if __name__ == "__main__":
    main()
