"""Scoring on a part of the train split, for whoever chooses settings: the test split is then never looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hmdc_hub import rng
from hmdc_hub.errors import UsageError
from hmdc_hub.sources import ClassBank, Source


def hold_out(source: Source, share: float, seed: int) -> Source:
    """Put a random share of each class of the train split in the place of the test split.

    The images that are left are those that baselines are drawn from. A set that was condensed before has seen all of
    them: settings of condensing itself are chosen with slices of the split (`train[:80%]`) in the recipe's source.

    Args:
        source: On the CPU.
        share: Of each class, rounded, at least one image; in (0, 1).
        seed: Of the draw.

    Raises:
        UsageError: A class has too few images to give one and keep one.
    """
    bank = source.train
    taken = []
    check_counts(bank.counts, source.info.class_names)
    for label, count in enumerate(bank.counts):
        size = min(max(round(share * count), 1), count - 1)
        order = torch.randperm(count, generator=rng.generator(seed, "holdout", label))
        taken.append(bank.offsets[label] + order[:size].sort().values)
    held = torch.cat(taken)
    left = torch.ones(len(bank.images), dtype=torch.bool)
    left[held] = False
    train = ClassBank.from_unsorted(bank.images[left], bank.labels[left], bank.num_classes)
    return replace(source, train=train, test_images=bank.images[held], test_labels=bank.labels[held])


def check_counts(counts: Sequence[int], class_names: Sequence[str]) -> None:
    """Refuse classes that cannot give an image and keep one.

    Args:
        counts: Train images of each class.
        class_names: As many names.

    Raises:
        UsageError: A class has too few images.
    """
    for name, count in zip(class_names, counts, strict=True):
        if count < 2:
            raise UsageError(f"evaluate.holdout needs two train images of every class; {name} has {count}.")
