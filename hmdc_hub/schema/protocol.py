"""The schema of evaluation protocols; the defaults are the paper's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from hmdc_hub.schema.base import (
    CONDENSED,
    FORMER_BASELINES,
    NAME,
    NEW_ENCODING,
    Baseline,
    Encoding,
    ModelSpec,
    NotNegative,
    Positive,
    Rate,
    Share,
    Strict,
    distinct_names,
    is_local_path,
    plain_models,
    present_name,
    sha256_of,
)


class AugmentSpec(Strict):
    """Differentiable Siamese augmentation (Zhao and Bilen, ICML 2021), in the order of IDC."""

    flip: bool = Field(True, description="Mirror left to right; off for digits and the like.")
    color: list[Literal["brightness", "saturation", "contrast"]] = Field(
        ["brightness", "saturation", "contrast"],
        description="Colour operations, always applied in this order.",
        examples=["[brightness, contrast]"],
    )
    crop: bool = Field(True, description="One of three: shift by up to an eighth of the side.")
    scale: bool = Field(True, description="One of three: stretch each axis by up to 1.2.")
    rotate: bool = Field(True, description="One of three: turn by up to 15 degrees.")
    cutout: bool = Field(True, description="Blank a square of half the side.")


class EvaluateCutmix(Strict):
    """CutMix while evaluating."""

    evaluate: bool = Field(True, description="In training on the condensed set.")
    probability: Share = Field(0.5, description="Chance that a batch is mixed.")


class SoftLabelsSpec(Strict):
    """Soft labels: what a teacher trained on the full set says of each training image, learnt in place of its label."""

    teacher: str = Field(
        "none",
        pattern=NAME,
        max_length=64,
        description="none: off; same: every model learns from one of its own architecture; or the name of one of "
        "evaluate.models, the teacher of all. It is trained on the full set for full_epochs.",
        examples=["same"],
    )
    temperature: Rate = Field(1.0, description="The teacher's logits are divided by it before the softmax.")

    @model_validator(mode="after")
    def _of_a_teacher(self) -> SoftLabelsSpec:
        if self.teacher == "none" and self.temperature != 1:
            raise ValueError("evaluate.soft_labels.temperature is a teacher's; name one: evaluate.soft_labels.teacher")
        return self


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
        # Part of the hashes of protocols that name none, so that a new baseline is not among them.
        ["exact", "random", "random-encoded", "initialisation", "k-means", "herding"],
        description="Training sets that stand beside the condensed one: exact (its floats before rounding to 8 bits), "
        "random, random-encoded (random images at the storage of the condensed set), initialisation (it before the "
        "first image step), k-means, herding, full (the whole source).",
        examples=["[random, initialisation]"],
    )
    encode: Encoding = Field(
        "antialias",
        exclude_if=lambda method: method == "antialias",
        json_schema_extra={"default": NEW_ENCODING},
        description="How random-encoded shrinks its images; the ways of condense.encode.",
    )
    epochs: Positive = Field(2000, description="Passes over the training images; the last one counts.")
    steps: Positive | None = Field(
        None,
        description="Optimiser steps of every training, in place of epochs; the full set keeps full_epochs.",
        examples=[2000],
    )
    # Keys that are younger than the first protocols are left out at their defaults (`exclude_if`), here and below:
    # hashes and files that say none of them stay as they are, and an older program reads them.
    full: Literal["auto", "never"] = Field(
        "auto",
        exclude_if=lambda full: full == "auto",
        description="auto: one training per architecture on the full set stands beside the others where all of these "
        "take no longer than the rest of the evaluation; full among baselines: always, with every seed.",
    )
    full_epochs: Positive = Field(100, description="Passes over the full set.")
    batch: Positive = Field(128, description="Training images per step; the last partial batch is kept.")
    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        "sgd",
        description="AdamW ignores momentum. Muon (Jordan et al., 2024) trains hidden weights, AdamW the rest at the "
        "same rate.",
    )
    lr: Rate | None = Field(
        None, description="Learning rate of every model; null: each one's lr.evaluate.", examples=[0.01]
    )
    model_lr: dict[str, Rate] = Field(
        {},
        exclude_if=lambda rates: not rates,
        description="Learning rates of single models, by their name or their id (all of that kind); they go before lr.",
        examples=["{vit: 0.001, resnet18: 0.01}"],
    )
    schedule: Literal["constant", "cosine", "step"] = Field(
        "constant",
        description="Of the learning rate over a training: constant, cosine to zero, or step: multiplied by gamma at "
        "each milestone.",
    )
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.5],
        exclude_if=lambda shares: shares == [0.5],
        min_length=1,
        description="For schedule: step, after which shares of a training the rate falls.",
        examples=["[0.666, 0.833]"],
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1,
        exclude_if=lambda gamma: gamma == 0.1,
        description="For schedule: step, what the rate is multiplied by at each milestone.",
        examples=[0.2],
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of SGD and Muon.")
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
    soft_labels: SoftLabelsSpec = Field(
        default_factory=SoftLabelsSpec,
        description="Train on soft labels as well; in a table of its own, since such scores stand beside no others.",
        exclude_if=lambda spec: spec.teacher == "none",
    )

    @model_validator(mode="after")
    def _distinct(self) -> EvaluateSpec:
        distinct_names("evaluate.models", self.models)
        if any(model.name == "mean" for model in self.models):
            raise ValueError("evaluate.models: mean is what scores call the mean over models; choose another name")
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError("evaluate.baselines names a training set twice")
        teacher, names = self.soft_labels.teacher, [model.name for model in self.models]
        if teacher not in ("none", "same", *names):
            raise ValueError(
                f"evaluate.soft_labels.teacher is {teacher!r}; it is none, same or one of evaluate.models: "
                f"{', '.join(names)}"
            )
        return self

    def settled(self) -> EvaluateSpec:
        """Return the protocol with what it says of every model written into the models: what is done, and scored.

        A recipe keeps its models as they were written, so that the next protocol may say something else of them.
        """
        models = []
        for model in self.models:
            changes: dict[str, Any] = {}
            if model.reset != "all":  # a training that kept a classifier would depend on the one before it
                changes["reset"] = "all"
            if model.precision != "float32":  # that is for condensing; here the protocol's own goes for all
                changes["precision"] = "float32"
            if self.resolution is not None:
                changes["input_size"] = self.resolution
            if self.batch_norm is not None:
                changes["batch_norm"] = self.batch_norm
            if (rate := self._rate(model)) is not None:
                changes["lr"] = model.lr.model_copy(update={"evaluate": rate})
            if not self.pretrained and model.weights != "none":
                # A revision may stay if it is about a configuration on the Hub; otherwise it was about the weights.
                hub = "/" in model.id and not is_local_path(model.id) and model.weights == model.id
                changes |= {"weights": "none", "revision": model.revision if hub else None}
            models.append(model.model_copy(update=changes))
        return self.model_copy(update={"models": models})

    def _rate(self, model: ModelSpec) -> float | None:
        return next((self.model_lr[key] for key in (model.name, model.id) if key in self.model_lr), self.lr)

    def without_paths(self) -> EvaluateSpec:
        """Return the protocol with base names in place of the paths of local weights."""
        return self.model_copy(update={"models": [model.without_paths() for model in self.models]})

    def draws(self, training_set: str) -> int:
        """How many sets of this name are scored: several of a random baseline, else one."""
        return self.random_draws if training_set.startswith("random") else 1

    def training_sets(self) -> list[tuple[str, int]]:
        """List what every model is trained on with every seed, in its order: names of sets, each with the draw."""
        return [(name, draw) for name in (CONDENSED, *self.baselines) for draw in range(self.draws(name))]

    @property
    def length(self) -> str:
        """How long a training is, in words."""
        return f"{self.epochs} epochs" if self.steps is None else f"{self.steps} steps"

    def protocol_hash(self) -> str:
        """SHA-256 (hex) of everything that decides scores of given images, however it was written."""
        plain = self.settled().model_dump(mode="json")
        without = {"lr", "model_lr", "batch_norm", "resolution", "pretrained"}  # which are in the models
        if self.schedule != "step":
            without |= {"milestones", "gamma"}
        plain = {key: value for key, value in plain.items() if key not in without}
        # The hashes of the first scores have the former names.
        former = {new: old for old, new in FORMER_BASELINES.items()}
        plain["against"] = [former.get(name, name) for name in plain.pop("baselines")]
        return sha256_of({"evaluate": plain | {"models": plain_models(plain["models"])}})
