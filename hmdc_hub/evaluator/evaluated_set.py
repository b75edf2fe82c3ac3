"""What is scored: a condensed set of ours or of any other program, and what is known about it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hmdc_hub import multi_formation
from hmdc_hub.errors import FormatError, UsageError
from hmdc_hub.evaluator.pixels import pixels_of
from hmdc_hub.schema import Recipe, canonical_json
from hmdc_hub.store.condensed import read_condensed, training_shape
from hmdc_hub.store.files import read_info, sha256_file
from hmdc_hub.store.parquet import read_parquet
from hmdc_hub.store.rundir import RunDir


@dataclass(frozen=True, eq=False)
class EvaluatedSet:
    """A condensed set as the evaluator sees it.

    Attributes:
        name: What reports call it.
        images: uint8 M x ch x H x W, what is trained on.
        labels: int64 M.
        stored: Synthetic images of each class.
        sha256: Of the file that holds the images, or of the images.
        factor: Side of the grid of training images that one synthetic image holds.
        exact: The images before they were rounded to 8 bits, float32 in [0, 1]; None: there are none.
        initialisation: The synthetic images before the first image step, float32 in [0, 1] C x n x ch x H x W; None:
            unknown.
        condensed_by: Names of the models that condensed it, as pool entries are called.
        condense_hash: Of its recipe; None like the two next for a set of another program.
        family_hash: Of its recipe without the seed, as published.
        seed: Of its recipe.
        notes: What reading it changed or found that a person should know, such as a resize; a clause each.
    """

    name: str
    images: Tensor
    labels: Tensor
    stored: tuple[int, ...]
    sha256: str
    factor: int = 1
    exact: Tensor | None = None
    initialisation: Tensor | None = None
    condensed_by: tuple[str, ...] = ()
    condense_hash: str | None = None
    family_hash: str | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of_images(
        cls, images: Any, labels: Any, name: str = "images", ipc: int | None = None, num_classes: int | None = None
    ) -> EvaluatedSet:
        """Take anybody's training images from memory.

        Args:
            images: M x ch x H x W or M x H x W x ch, uint8 or floats in [0, 1]; a tensor or an array.
            labels: M whole numbers, 0 to C - 1.
            name: What reports call it.
            ipc: Synthetic images per class, of which each holds factor x factor of these; None: each of these is one.
            num_classes: C; None: as many as the labels name.

        Raises:
            UsageError: They are not that.
        """
        images, labels = images_and_labels(name, torch.as_tensor(images), torch.as_tensor(labels))
        if (low := int(labels.min())) < 0:
            raise UsageError(f"{name}: labels reach down to {low}; classes are numbered from 0.")
        pixels, exact, _ = pixels_of(name, images)
        counts = torch.bincount(labels, minlength=num_classes or 0).tolist()
        factor = 1 if ipc is None else max(math.isqrt(max(counts) // ipc), 1)
        if ipc is not None and any(count not in (0, ipc * factor**2) for count in counts):
            raise UsageError(
                f"{name}: classes have {min(counts)} to {max(counts)} images; with ipc {ipc} each has {ipc} x f x f, "
                "where f x f of them are kept in one synthetic image.",
                hint="Leave ipc out where images are kept as they are trained on.",
            )
        stored = tuple(count // factor**2 for count in counts)
        return cls(name, pixels, labels, stored, content_hash(pixels, labels, exact), factor, exact)

    def lacks(self, baseline: str) -> bool:
        """Tell whether a baseline needs something of the set that is not there, or says nothing about it."""
        return (
            (baseline == "exact" and self.exact is None)
            or (baseline == "initialisation" and self.initialisation is None)
            or (baseline == "random-encoded" and self.factor == 1)
        )


def of_run(recipe: Recipe, run: RunDir) -> EvaluatedSet:
    """Read what a run condensed, and of exact and initial images what its protocol compares with.

    Args:
        recipe: Resolved.
        run: Holds info.json and train.parquet; condensed.safetensors and initialisation.safetensors if they are needed.

    Raises:
        NotFoundError: One of the files is not there.
        FormatError: One is damaged, or they do not belong together.
    """
    info, n, factor = read_info(run.info), recipe.condense.ipc, recipe.condense.factor
    if (n, factor) != (info.ipc, info.factor):
        raise FormatError(
            f"{run.path}: info.json says ipc {info.ipc}, factor {info.factor}; recipe.yaml ipc {n}, factor {factor}."
        )
    images, labels = read_parquet(run.parquet, shape=training_shape(info, run.condensed))
    exact = initialisation = None
    if "exact" in recipe.evaluate.baselines:
        stored, _, _ = read_condensed(run.condensed)
        exact = multi_formation.decode(_by_class(stored, n), factor).flatten(0, 1)
    if "initialisation" in recipe.evaluate.baselines:
        initialisation = _by_class(read_condensed(run.initialisation)[0], n)
    return EvaluatedSet(
        name=recipe.name,
        images=images,
        labels=labels,
        stored=(n,) * len(torch.unique(labels)),
        sha256=sha256_file(run.parquet),
        factor=factor,
        exact=exact,
        initialisation=initialisation,
        condensed_by=tuple(spec.name for spec in recipe.pool),
        condense_hash=recipe.condense_hash(),
        family_hash=recipe.without_paths(info.source).family_hash(),
        seed=recipe.seed,
    )


def _by_class(synthetic: Tensor, n: int) -> Tensor:
    return synthetic.reshape(-1, n, *synthetic.shape[1:])


def images_and_labels(what: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return images with channels first, and labels as int64.

    Raises:
        UsageError: They are no images, or not one whole number for each; `check_shapes` says which.
    """
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    check_shapes(what, "images", tuple(images.shape), "labels", tuple(labels.shape), whole)
    if images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    # They may lie on a GPU, and be what an optimiser has just changed.
    return images.detach().cpu().contiguous(), labels.detach().cpu().long()


def check_shapes(
    what: str, images: str, shape: Sequence[int], labels: str, labels_shape: Sequence[int], whole: bool
) -> None:
    """Refuse tensors that are not images and labels by their shapes.

    Args:
        what: Whose, for errors.
        images: Name of the images, of this `shape`.
        shape: Wanted is N x ch x H x W or N x H x W x ch, with 1 or 3 channels.
        labels: Name of the labels, of `labels_shape`.
        labels_shape: Wanted is N.
        whole: Whether the labels are whole numbers.

    Raises:
        UsageError: They are of other shapes.
    """
    if len(shape) != 4:
        raise UsageError(
            f"{what}: images are {times(shape)}, not N x channels x height x width.",
            hint="Grey images without channels become that by images[:, None], grouped ones by images.flatten(0, 1).",
        )
    count = shape[0]
    if count == 0:
        raise UsageError(f"{what} has no images: {images} is {times(shape)}.")
    if not whole and len(labels_shape) == 2 and labels_shape[0] == count:
        raise UsageError(
            f"{what}: {labels} holds {times(labels_shape)} floats, soft labels, and the protocols here train on hard "
            "ones. To take the largest of each silently would be to score another set.",
            hint=f"To score that other set, save {labels}.argmax(1) as labels, and say so wherever you give the score.",
        )
    if not whole or tuple(labels_shape) != (count,):
        kind = "whole numbers" if whole else "values that are no whole numbers"
        raise UsageError(
            f"{what}: {labels} holds {times(labels_shape)} {kind} instead of {count} class numbers, one per image.",
            hint="Save the class number of every image as int64, in the order of the images.",
        )
    if shape[1] not in (1, 3) and shape[3] not in (1, 3):
        raise UsageError(
            f"{what}: images are {times(shape)}; neither the second nor the last number is 1 (grey) or 3 (colour).",
            hint="Save them as N x channels x height x width.",
        )


def times(shape: Sequence[int]) -> str:
    """Write a shape: `5 x 3 x 8 x 8`."""
    return " x ".join(map(str, shape)) or "a single number"


def content_hash(images: Tensor, labels: Tensor, exact: Tensor | None = None) -> str:
    """Hash pixels, class indices and, if there are any, exact floats with SHA-256 (hex)."""
    digest = hashlib.sha256(canonical_json({"images": list(images.shape)}).encode())
    digest.update(images.contiguous().numpy().data)
    digest.update(labels.numpy().astype("<i8").data)
    if exact is not None:
        digest.update(exact.contiguous().numpy().astype("<f4").data)
    return digest.hexdigest()
