"""Several seeds of one network trained as one: parameters stacked, minibatches side by side.

A small network leaves most of a GPU idle: a step of five networks takes hardly longer than a step of one. On a CPU it
is the other way round, and seeds train in processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hmdc_hub import rng
from hmdc_hub.evaluate.train import (
    Images,
    Normalisation,
    Outcome,
    augmented,
    calibrated,
    make_optimizer,
    outcome_of,
    precision_of,
    share_of_rate,
    steps_of,
    test_parts,
)
from hmdc_hub.events import StopFlag
from hmdc_hub.models import PoolModel
from hmdc_hub.schema import EvaluateSpec


class _Logits(nn.Module):
    """A model as one function from source-normalised images to logits, which `functional_call` can call."""

    def __init__(self, model: PoolModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(self.model.prepare(images))


def train_and_score_stacked(
    model: PoolModel,
    train: Images,
    test: Images,
    normalise: Normalisation,
    protocol: EvaluateSpec,
    seeds: Sequence[int],
    *,
    full: bool = False,
    stop: StopFlag | None = None,
) -> list[Outcome]:
    """Train a model once for each seed, all at once; up to rounding what `train_and_score` does one after another.

    Arguments and errors as there; looks before the end (`protocol.best_every`) are not made.
    """
    whole, total = _Logits(model), steps_of(protocol, len(train.labels), full=full)
    trained, fixed = _stacked(whole, train, normalise, protocol, seeds)
    optimizer = make_optimizer(list(trained.values()), model.spec.lr.evaluate, protocol)
    gens = [rng.generator(protocol.seed, "evaluate-batches", model.spec.name, seed) for seed in seeds]
    one_hot = F.one_hot(train.labels, model.num_classes).float()
    forward = _forward(whole, trained, fixed)
    whole.train()
    done = 0
    while done < total:
        orders = [torch.randperm(len(train.labels), generator=gen).to(train.labels.device) for gen in gens]
        parts = [torch.split(order, protocol.batch)[: total - done] for order in orders]
        for rows in zip(*parts, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = model.spec.lr.evaluate * share_of_rate(protocol, done / total)
            pairs = [
                augmented(normalise(train.pixels[part]), one_hot[part], protocol, model, gen)
                for part, gen in zip(rows, gens, strict=True)
            ]
            images, targets = (torch.stack(column) for column in zip(*pairs, strict=True))
            optimizer.zero_grad()
            with precision_of(protocol, images.device):
                logits = forward(images, 0)
            # The mean over a seed's own images, summed over seeds: no seed feels another.
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(0, 1)) * len(seeds)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
        if stop is not None:
            stop.raise_if_set("stopped within a training")
    whole.eval()
    with torch.no_grad(), precision_of(protocol, test.pixels.device):
        found = torch.cat([forward(normalise(pixels), None).float() for pixels in test_parts(test)], dim=1)
    return [outcome_of(logits, test, None) for logits in found]


def _stacked(
    whole: _Logits, train: Images, normalise: Normalisation, protocol: EvaluateSpec, seeds: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stack what is trained and everything else, each value S x its shape, from the fresh network of every seed."""
    model, states = whole.model, []
    for seed in seeds:
        model.reset(rng.generator(protocol.seed, "evaluate-weights", model.spec.name, seed))
        calibrated(model, train, normalise, protocol)
        values = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
        states.append({name: value.detach().clone() for name, value in values.items()})
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    names = {name for name, value in whole.named_parameters() if value.requires_grad}
    trained = {name: stacked.pop(name).requires_grad_() for name in sorted(names)}
    return trained, stacked


def _forward(
    whole: _Logits, trained: dict[str, Tensor], fixed: dict[str, Tensor]
) -> Callable[[Tensor, int | None], Tensor]:
    """Give the function of S x B x ... images, or of B x ... that all seeds see, to S x B x classes logits."""

    def one(values: dict[str, Tensor], others: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(whole, {**values, **others}, (images,))
        return logits

    def forward(images: Tensor, dim: int | None) -> Tensor:
        logits: Tensor = vmap(one, in_dims=(0, 0, dim), randomness="different")(trained, fixed, images)
        return logits

    return forward
