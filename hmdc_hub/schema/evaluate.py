"""The evaluation protocol as data; the defaults are the paper's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from hmdc_hub.schema.base import FORMER_BASELINES, NotNegative, Positive, Rate, Share, Strict, present_name, sha256_of
from hmdc_hub.schema.model import ModelSpec, is_local_path, plain_models

ColorOperation = Literal["brightness", "saturation", "contrast"]


class AugmentSpec(Strict):
    """Differentiable Siamese augmentation (Zhao and Bilen, ICML 2021), in the order of IDC."""

    flip: bool = Field(True, description="Mirror left to right; off for digits and the like.")
    color: list[ColorOperation] = Field(
        ["brightness", "saturation", "contrast"],
        description="Colour operations, always applied in this order.",
        examples=["[brightness, contrast]"],
    )
    crop: bool = Field(True, description="One of three: shift by up to an eighth of the side.")
    scale: bool = Field(True, description="One of three: stretch each axis by up to 1.2.")
    rotate: bool = Field(True, description="One of three: turn by up to 15 degrees.")
    cutout: bool = Field(True, description="Blank a square of half the side.")


Baseline = Literal["exact", "random", "random-encoded", "initialisation", "k-means", "herding", "full"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
"""In the order of tables."""
CHOSEN: tuple[Baseline, ...] = ("random", "k-means", "herding")
"""Baselines of real images as they are, as many of them as there are synthetic ones."""
USUAL: tuple[Baseline, ...] = ("exact", "random", "random-encoded", "initialisation", "k-means", "herding")
"""Those of a protocol that names none: part of the hashes of such protocols, so a new baseline is not among them."""


class EvaluateCutmix(Strict):
    """CutMix while evaluating."""

    evaluate: bool = Field(True, description="In training on the condensed set.")
    probability: Share = Field(0.5, description="Chance that a batch is mixed.")


class EvaluateSpec(Strict):
    """The evaluation protocol: all of it, as data."""

    renamed: ClassVar[dict[str, str]] = {"against": "baselines"}

    models: list[ModelSpec] = Field(
        min_length=1,
        description="Architectures to train, as names in model_pool/ or inline mappings; include some that took no "
        "part in condensing.",
        examples=["[convnet3, resnet18]"],
    )
    seed: NotNegative = Field(
        0,
        description="Seed of weights, minibatches and baselines; not the recipe's, so that sets condensed with several "
        "seeds are scored alike.",
    )
    seeds: Positive = Field(5, description="Trainings per architecture and training set.")
    random_draws: Positive = Field(3, description="Independent draws of each random baseline.")
    baselines: list[Annotated[Baseline, BeforeValidator(present_name)]] = Field(
        list(USUAL),
        description="Training sets that stand beside the condensed one: exact (its floats before rounding to 8 bits), "
        "random, random-encoded (random images at the storage of the condensed set), initialisation (it before the "
        "first image step), k-means, herding, full (the whole source).",
        examples=["[random, initialisation]"],
    )
    epochs: Positive = Field(2000, description="Passes over the training images; the last one counts.")
    steps: Positive | None = Field(
        None,
        description="Optimiser steps of every training, in place of epochs; the full set keeps full_epochs.",
        examples=[2000],
    )
    full_epochs: Positive = Field(100, description="Passes over the full set.")
    batch: Positive = Field(128, description="Training images per step; the last partial batch is kept.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="AdamW ignores momentum.")
    lr: Rate | None = Field(
        None, description="Learning rate of every model; null: each one's lr.evaluate.", examples=[0.01]
    )
    schedule: Literal["constant", "cosine", "step"] = Field(
        "constant",
        description="Of the learning rate over a training: constant, cosine to zero, or a tenth from half way on.",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="SGD momentum.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="Weight decay.")
    augment: AugmentSpec = Field(default_factory=AugmentSpec, description="Augmentation.")
    cutmix: EvaluateCutmix = Field(default_factory=EvaluateCutmix, description="CutMix.")
    resolution: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="Side in pixels that every model sees; null: as its entry says.", examples=[32]
    )
    batch_norm: Literal["train", "frozen"] | None = Field(
        None,
        description="Batch norm of every model: statistics of training, or frozen at those of the fresh network; null: "
        "as its entry says.",
        examples=["train"],
    )
    pretrained: bool = Field(
        True, description="false: every model starts from scratch, whatever weights its entry names."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of forward passes; bfloat16 (autocast) is for GPUs, and rounds enough to change single answers.",
    )
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Score on this share of each class of the train split, which no real images are then drawn from, "
        "in place of the test split; for choosing settings.",
        examples=[0.2],
    )
    best_every: Positive | None = Field(
        None,
        description="Look at the test split every so many epochs, too, and report the best look beside the last epoch, "
        "labelled.",
        examples=[10],
    )

    @model_validator(mode="after")
    def _distinct(self) -> EvaluateSpec:
        distinct_names("evaluate.models", self.models)
        if any(model.name == "mean" for model in self.models):
            raise ValueError("evaluate.models: mean is what scores call the mean over models; choose another name")
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError("evaluate.baselines names a training set twice")
        return self

    def settled(self) -> EvaluateSpec:
        """Return the protocol with what it says of every model written into the models: what is done, and scored.

        A recipe keeps its models as they were written, so that the next protocol may say something else of them.
        """
        return self.model_copy(update={"models": [self._settled(model) for model in self.models]})

    def _settled(self, model: ModelSpec) -> ModelSpec:
        changes: dict[str, Any] = {}
        if model.reset != "all":  # a training that kept a classifier would depend on the one before it
            changes["reset"] = "all"
        if model.precision != "float32":  # that is for condensing; here the protocol's own goes for all
            changes["precision"] = "float32"
        if self.resolution is not None:
            changes["input_size"] = self.resolution
        if self.batch_norm is not None:
            changes["batch_norm"] = self.batch_norm
        if self.lr is not None:
            changes["lr"] = model.lr.model_copy(update={"evaluate": self.lr})
        if not self.pretrained and model.weights != "none":
            # A revision may stay if it is about a configuration on the Hub; otherwise it was about the weights.
            hub = "/" in model.id and not is_local_path(model.id) and model.weights == model.id
            changes |= {"weights": "none", "revision": model.revision if hub else None}
        return model.model_copy(update=changes)

    def without_paths(self) -> EvaluateSpec:
        """Return the protocol with base names in place of the paths of local weights."""
        return self.model_copy(update={"models": [model.without_paths() for model in self.models]})

    def draws(self, training_set: str) -> int:
        """How many sets of this name are scored: several of a random baseline, else one."""
        return self.random_draws if training_set.startswith("random") else 1

    @property
    def length(self) -> str:
        """How long a training is, in words."""
        return f"{self.epochs} epochs" if self.steps is None else f"{self.steps} steps"

    def protocol_hash(self) -> str:
        """SHA-256 (hex) of everything that decides scores of given images, however it was written."""
        plain = self.settled().model_dump(mode="json")
        for key in ("lr", "batch_norm", "resolution", "pretrained"):  # which are in the models
            del plain[key]
        # The hashes of the first scores have the former names.
        former = {new: old for old, new in FORMER_BASELINES.items()}
        plain["against"] = [former.get(name, name) for name in plain.pop("baselines")]
        return sha256_of({"evaluate": plain | {"models": plain_models(plain["models"])}})


def distinct_names(where: str, models: list[ModelSpec]) -> None:
    """Raise ValueError if two models have one name."""
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where} names {', '.join(twice)} twice; give inline mappings names of their own")
