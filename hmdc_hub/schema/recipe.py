"""The schema of recipes/*.yaml and of evaluation protocols; the defaults are the paper's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from hmdc_hub.schema.base import (
    CONDENSED,
    FORMER_BASELINES,
    LOCAL,
    NAME,
    RESERVED,
    Baseline,
    Encoding,
    ModelSpec,
    NotNegative,
    Positive,
    Rate,
    Share,
    Strict,
    is_local_path,
    plain_models,
    present_name,
    sha256_of,
)

if TYPE_CHECKING:
    from hmdc_hub.schema.files import SourceInfo


Distance = Literal["squares", "cosine", "orthogonal"]
# What `encode` is in a recipe that somebody writes and that does not say it. Files of ours, and what is made of them,
# mean antialias by that, as in all of them before there was the key.
NEW_ENCODING: Encoding = "least-squares"


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
        _distinct_names("evaluate.models", self.models)
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


def _distinct_names(where: str, models: list[ModelSpec]) -> None:
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{where} names {', '.join(twice)} twice; give inline mappings names of their own")


class SourceSpec(Strict):
    """The dataset that is condensed."""

    id: str = Field(
        min_length=1,
        description="builtin:digits, torchvision:<Name>, a Hub dataset id, or a folder or parquet file.",
        examples=["uoft-cs/cifar10"],
    )
    revision: str | None = Field(
        None,
        description="Commit of the Hub dataset; null: resolved to a commit when the run starts.",
        examples=["main"],
    )
    config: str | None = Field(None, description="Configuration of the Hub dataset.", examples=["default"])
    train_split: str | None = Field(
        None, description="Split to condense; null: detected. Slices such as train[:80%] work.", examples=["train"]
    )
    test_split: str | None = Field(None, description="Split to score on; null: detected.", examples=["test"])
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="In place of test_split: this share of every class of train_split, one image at least, is drawn to "
        "be scored on and not condensed.",
        examples=[0.2],
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        exclude_if=lambda fraction: fraction is None,
        description="Score on this share of every class of what would be condensed, drawn and not condensed, in place "
        "of the test images, which are left alone: for choosing settings. Such a set is never pushed.",
        examples=[0.2],
    )
    image_column: str | None = Field(None, description="Column with the images; null: detected.", examples=["img"])
    label_column: str | None = Field(None, description="Column with the labels; null: detected.", examples=["label"])
    size: Annotated[int, Field(ge=4, le=1024)] = Field(
        description="Side in pixels of every image; others are resized to it with antialiasing.", examples=[32]
    )
    # pydantic takes true and 3.0 for 1 and 3 in a choice, although it is strict.
    channels: Annotated[Literal[1, 3], BeforeValidator(lambda x: x if type(x) is int else str(x))] = Field(
        3, description="3: colour (grey is repeated); 1: grey."
    )
    fit: Literal["crop", "stretch"] = Field(
        "crop",
        description="Images that are not square: crop resizes the shorter side and cuts the centre; stretch does not "
        "keep proportions.",
    )
    background: Literal["white", "black"] = Field("white", description="What transparent pixels are laid over.")

    @model_validator(mode="after")
    def _one_test_part(self) -> SourceSpec:
        if self.test_fraction is not None and self.test_split is not None:
            raise ValueError("source.test_split and source.test_fraction both say what is scored on; leave one out")
        return self


Distillation = Literal["paper", "standardised", "variance", "cosine"]


class ImagesSpec(Strict):
    """The optimiser of the synthetic images."""

    lr: Rate = Field(5e-3, description="SGD learning rate; made for normalised gradients.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="SGD momentum.")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        exclude_if=lambda schedule: schedule == "constant",
        description="Of the learning rate over the whole run: constant, or cosine to zero (Loshchilov and Hutter, ICLR "
        "2017, without restarts).",
    )
    average: Share = Field(
        0.0,
        exclude_if=lambda average: average == 0,
        description="The condensed set is the average of the synthetic images after every step (Polyak and Juditsky, "
        "1992), each weighing this much of the one after it: 0.99 averages about the last hundred, 1 all alike, 0 is "
        "off.",
        examples=[0.99],
    )
    parametrisation: Literal["pixels", "pyramid"] = Field(
        "pixels",
        exclude_if=lambda parametrisation: parametrisation == "pixels",
        description="What is optimised: pixels, or for every tile a pyramid, a sum of 1, 2, 4, ... pixels a side "
        "enlarged bilinearly (Linear Gradient Matching, Cazenavette et al., NeurIPS 2025).",
    )
    color: Literal["rgb", "decorrelated"] = Field(
        "rgb",
        exclude_if=lambda color: color == "rgb",
        description="Colours that are optimised: rgb, or decorrelated by the covariance of the source's channels "
        "(Olah et al., Feature Visualization, Distill 2017).",
    )


class CondenseCutmix(Strict):
    """CutMix (Yun et al., ICCV 2019) while condensing."""

    match: bool = Field(True, description="In gradient matching, partners from the same class.")
    train: bool = Field(True, description="In network training.")
    probability: Share = Field(0.5, description="Chance that a batch is mixed.")


class ClusterSpec(Strict):
    """Choosing each class's real batch by clustering (DREAM, Liu et al., ICCV 2023)."""

    enabled: bool = Field(True, description="Off: the real batch is drawn at random.")
    every: Positive = Field(10, description="Image steps between refreshes.")
    candidates: Positive | None = Field(
        None, description="Cluster a random subset of this many images per class; null: all.", examples=[1000]
    )
    max_iter: Positive = Field(100, description="Lloyd iterations at most.")
    weights: Literal["none", "loss"] = Field(
        "none",
        exclude_if=lambda weights: weights == "none",
        description="loss: an image counts as much in its clustering as its cross-entropy under the network that "
        "embeds it, so that what the network has not learnt yet is represented more finely.",
    )

    @model_validator(mode="after")
    def _of_a_clustering(self) -> ClusterSpec:
        if self.weights != "none" and not self.enabled:
            raise ValueError("condense.cluster.weights is of the clustering, which cluster.enabled: false turns off")
        return self


class DifficultySpec(Strict):
    """Leaving out real images by their EL2N score (Paul et al., NeurIPS 2021), as BiLP does (Xu et al., ECCV 2024)."""

    keep: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of each class that is matched, and begun with; 1: all."
    )
    of: Literal["easiest", "hardest"] = Field("easiest", description="Which of them are kept.")

    @model_validator(mode="after")
    def _of_some(self) -> DifficultySpec:
        if self.keep == 1 and self.of != "easiest":
            raise ValueError("condense.difficulty.of chooses among images; keep fewer: condense.difficulty.keep: 0.5")
        return self


class BankSpec(Strict):
    """A bank of early training stages, with weight noise (Acc-DD: Zhang et al., CVPR 2023)."""

    num_models: NotNegative = Field(
        0,
        description="Networks of every pool entry that are trained on the source and kept in the user's cache, for all "
        "recipes that train them alike. A reset then begins with a stage of one of them; 0: off, with fresh weights.",
        examples=[5],
    )
    pretrain_epochs: Positive = Field(2, description="Passes over the source that each is trained for.", examples=[2])
    stages: Positive = Field(
        4, description="Stages of each that are kept, after equal parts of these epochs; the last one is its end."
    )
    noise: Annotated[float, Field(ge=0)] = Field(
        0.08,
        description="Weight noise at a reset: the length of what is added to each filter, as a share of the filter's.",
    )
    seed: NotNegative = Field(
        0, description="Of the networks in the bank; not the recipe's, so that runs with several seeds share them."
    )

    @model_validator(mode="after")
    def _of_a_bank(self) -> BankSpec:
        if self.model_fields_set and "num_models" not in self.model_fields_set:  # 0 turns a bank off
            raise ValueError(
                "condense.networks.bank describes a bank of no networks; say of how many: "
                "condense.networks.bank.num_models"
            )
        return self


class NetworksSpec(Strict):
    """Training of the pool's networks between image steps."""

    renamed: ClassVar[dict[str, str]] = {"parts": "accumulation_steps"}

    reset_every: Positive = Field(
        100, description="Image steps on one set of networks (O in the paper), then fresh ones."
    )
    batches_per_step: NotNegative = Field(
        17, description="Minibatches of real images each network trains on after every image step."
    )
    batch: Positive = Field(128, description="Real images per minibatch, over all classes.")
    accumulation_steps: Positive | None = Field(
        None,
        description="Parts that a minibatch is differentiated in; null: one, the whole of it. More are shared among "
        "ranks, or hold less memory; networks whose batch norm learns its statistics take a whole one. Another number "
        "gives the same up to rounding.",
        examples=[8],
    )
    bank: BankSpec = Field(
        default_factory=BankSpec,
        exclude_if=lambda bank: bank.num_models == 0,
        description="Early stages of trained networks in place of fresh ones; batches_per_step may then be small, or "
        "0.",
    )


class ProjectionSpec(Strict):
    """Training of the projections P and the layer matching Q of mutual distillation."""

    lr: Rate = Field(1e-2, description="Adam learning rate.")
    batches_per_step: NotNegative = Field(17, description="Minibatches after every image step.")


# One number or several: pydantic tells of what is wrong with the one that was meant.
_Sizes = Annotated[
    Annotated[Positive, Tag("one")] | Annotated[list[Positive], Field(min_length=1), Tag("several")],
    Discriminator(lambda ipc: "several" if isinstance(ipc, list) else "one"),
]


class CondenseSpec(Strict):
    """HMDC (Moon, Kim and Park, ECCV 2024)."""

    renamed: ClassVar[dict[str, str]] = {"start": "initialisation"}

    ipc: _Sizes = Field(
        description="Synthetic images per class. A list makes a set of each size in one run, which shares networks and "
        "real images: each has the bytes that it has alone, and a configuration of its own.",
        examples=[10],
    )
    factor: Positive = Field(
        2,
        description="f: one synthetic image holds f x f training images, so ipc 10 gives 40 per class; must divide the "
        "size.",
    )
    resets: Positive = Field(100, description="Sets of fresh networks (T in the paper).")
    batch: Positive = Field(128, description="B: real images per class and image step; also the most decoded ones.")
    initialisation: Literal["kmeans", "random", "mosaic"] = Field(
        "kmeans",
        description="Which real images the synthetic ones begin as; mosaic: the crops that a network trained on the "
        "source is surest of, one of an image (RDED, Sun et al., CVPR 2024).",
    )
    difficulty: DifficultySpec = Field(
        default_factory=DifficultySpec,
        exclude_if=lambda spec: spec.keep == 1,
        description="Leave out real images that networks trained on the source find hard, or easy.",
    )
    observer_epochs: Positive = Field(
        10,
        exclude_if=lambda epochs: epochs == 10,
        description="Passes over the source that networks are trained for before they judge real images, for mosaic "
        "and difficulty.",
    )
    encode: Encoding = Field(
        "antialias",
        exclude_if=lambda method: method == "antialias",
        json_schema_extra={"default": NEW_ENCODING},
        description="How real images are shrunk into synthetic ones at the start: antialias; bilinear, with aligned "
        "corners as they are enlarged again; or least-squares, to the tile whose enlargement is nearest to the image. "
        "Without effect at factor 1.",
    )
    match: bool = Field(True, description="Gradient matching, one objective per model.")
    distance: Distance = Field(
        "squares",
        exclude_if=lambda distance: distance == "squares",
        description="Between the gradients of real and synthetic images, of every objective. squares: the sum of "
        "squared differences; cosine: 1 minus the cosine of each row of a weight, summed (DC, Zhao et al., ICLR 2021); "
        "orthogonal: squared differences of U V^T of each weight (OGM, CVPR 2026). The last two leave out biases and "
        "gains.",
    )
    views: Positive = Field(
        1,
        exclude_if=lambda views: views == 1,
        description="V: differently augmented views of every synthetic image in an image step, whose gradients are "
        "averaged (Linear Gradient Matching, Cazenavette et al., NeurIPS 2025); the real batch is dealt out among "
        "them. Time and memory of the synthetic images grow by V.",
        examples=[4],
    )
    distill: bool = Field(True, description="Mutual distillation, one objective per pair of models.")
    distillation: Distillation = Field(
        "paper",
        exclude_if=lambda form: form == "paper",
        description="What mutual distillation compares of projected features. paper: their mean squared difference, "
        "which trained projections bring to nothing by giving a constant. standardised: the same of features "
        "standardised over the batch (Barlow Twins, ICML 2021). variance: as paper, with VICReg's variance term (ICLR "
        "2022) in the training of projections. cosine: 1 - cosine of features centred over the batch. standardised and "
        "cosine take batches whole.",
        examples=["standardised"],
    )
    balance: bool = Field(True, description="Gradient Balance Module.")
    balance_every: Positive = Field(10, description="Image steps between updates of the weights.")
    normalise: bool = Field(
        True,
        description="Divide the gradient per synthetic image and channel by its largest absolute value; images.lr "
        "means something else without.",
    )
    pool_strategy: Literal["all", "pair"] = Field(
        "all",
        description="all: every model condenses all the time; pair: two of them, drawn anew at every network reset, "
        "which costs as much as a pool of two.",
    )
    classes_per_step: Positive | None = Field(
        None,
        description="Classes that take part in an image step, drawn so that all have their turn; null: all of them. "
        "balance_every and cluster.every count the steps of each class.",
        examples=[100],
    )
    memory: Literal["auto", "low", "fast"] = Field(
        "auto",
        description="fast: matching holds the graphs of whole classes, of as many together as fit; low: of a tenth of "
        "one class's images, and a minibatch is trained on in ten parts; auto: as fast where one class fits, otherwise "
        "of as many of its images as do. The result is the same up to rounding.",
    )
    derivative: Literal["eager", "compiled"] = Field(
        "eager",
        description="eager: as torch does it, on a GPU captured as CUDA graphs; compiled: the derivative of matching "
        "goes through torch.compile first, which takes minutes at the start and on a CPU needs a C++ compiler; steps "
        "that update the balance stay eager. The result is the same up to rounding.",
    )
    images: ImagesSpec = Field(default_factory=ImagesSpec, description="Optimiser of the synthetic images.")
    cluster: ClusterSpec = Field(default_factory=ClusterSpec, description="Choice of the real batch.")
    networks: NetworksSpec = Field(default_factory=NetworksSpec, description="Network training.")
    projection: ProjectionSpec = Field(default_factory=ProjectionSpec, description="Projection training.")
    augment: AugmentSpec = Field(default_factory=AugmentSpec, description="Augmentation.")
    cutmix: CondenseCutmix = Field(default_factory=CondenseCutmix, description="CutMix.")

    @property
    def observes(self) -> bool:
        """Whether networks that are trained on the source judge its images before condensing begins."""
        return self.initialisation == "mosaic" or self.difficulty.keep < 1

    @model_validator(mode="after")
    def _some_objective(self) -> CondenseSpec:
        if not self.match and not self.distill:
            raise ValueError("match and distill are both off: nothing is left to minimise")
        if self.observer_epochs != 10 and not self.observes:
            raise ValueError(
                "condense.observer_epochs is for networks that judge real images; initialisation: mosaic or "
                "difficulty.keep below 1 ask for them"
            )
        return self

    @model_validator(mode="after")
    def _form_of_distillation(self) -> CondenseSpec:
        form = f"condense.distillation is {self.distillation}"
        if self.distillation != "paper" and not self.distill:
            raise ValueError(f"{form}, a form of mutual distillation, which distill: false switches off; leave one out")
        if self.distillation == "variance" and self.projection.batches_per_step == 0:
            raise ValueError(
                f"{form}, a term in the training of projections, which projection.batches_per_step: 0 leaves out; "
                "projections that are never trained need no such term: leave distillation out"
            )
        if self.distils_batches and (self.memory == "low" or (self.networks.accumulation_steps or 1) > 1):
            few = "memory: low" if self.memory == "low" else f"accumulation_steps: {self.networks.accumulation_steps}"
            raise ValueError(
                f"{form}, which goes by the statistics of whole batches, and {few} takes them in parts; take smaller "
                "ones (condense.batch, condense.networks.batch), or distillation: variance"
            )
        return self

    @property
    def distils_batches(self) -> bool:
        """Say whether mutual distillation goes by the statistics of batches, which must then stay whole."""
        return self.distillation in ("standardised", "cosine")

    @model_validator(mode="after")
    def _different_views(self) -> CondenseSpec:
        if self.views > self.batch:
            raise ValueError(
                f"views: {self.views} is more than batch: {self.batch}, and every view needs real images of its own; "
                "lower views or raise batch"
            )
        mixed = self.cutmix.match and self.cutmix.probability > 0
        if self.views > 1 and not mixed and not any(self.augment.model_dump().values()):
            raise ValueError(
                f"views: {self.views} would all be the same, since augment and cutmix.match are off; turn one of them "
                "on or leave views out"
            )
        return self

    @model_validator(mode="after")
    def _distinct_sizes(self) -> CondenseSpec:
        if twice := sorted({str(size) for size in self.sizes if self.sizes.count(size) > 1}):
            raise ValueError(f"condense.ipc names {', '.join(twice)} twice; a run makes one set of each size")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Images per class of every set that is made, in the order in which they were written."""
        return (self.ipc,) if isinstance(self.ipc, int) else tuple(self.ipc)

    @property
    def size(self) -> int:
        """Images per class of the one set that is made; where `ipc` is a list, `Recipe.of_sizes` has those recipes."""
        if not isinstance(self.ipc, int):
            raise ValueError(f"condense.ipc is a list, {self.ipc}; take the recipe of one size")
        return self.ipc


class PublishSpec(Strict):
    """What the package is called; no namespace, that is whoever publishes."""

    name: str = Field(description="Name of the Hub dataset.", pattern=NAME, max_length=96, examples=["cifar10-hmdc"])
    config: str = Field(
        description="Configuration of it that this recipe fills.", pattern=NAME, max_length=64, examples=["ipc10"]
    )
    license: str | None = Field(
        None, description="Licence of the source as a Hub id; null: unknown, and said so.", examples=["cc-by-4.0"]
    )
    title: Annotated[str, Field(min_length=1, max_length=120)] | None = Field(
        None,
        exclude_if=lambda title: title is None,  # an older program reads a recipe that says none
        description="Title of the card; null: the source's name and the images per class.",
        examples=["Pets in ten images per class"],
    )

    @model_validator(mode="after")
    def _not_reserved(self) -> PublishSpec:
        if self.config in RESERVED:
            raise ValueError(f"publish.config may not be {self.config!r}: the package uses that folder itself")
        return self


class Recipe(Strict):
    """One experiment: what is condensed, how, how it is scored, what it is called."""

    name: str = Field(
        description="Name of the run; in a file it is the file's name and may be left out.",
        pattern=NAME,
        max_length=64,
        examples=["cifar10_ipc10"],
    )
    description: str = Field("", description="One sentence for `recipes ls` and the card.")
    seed: NotNegative = Field(0, description="Seed of condensing.")
    source: SourceSpec = Field(description="The dataset that is condensed.")
    pool: list[ModelSpec] = Field(
        min_length=1,
        description="Models that condense together, as names in model_pool/ or inline mappings.",
        examples=["[convnet3, vit_tiny]"],
    )
    condense: CondenseSpec = Field(description="The condenser.")
    evaluate: EvaluateSpec = Field(description="The evaluation protocol.")
    publish: PublishSpec = Field(description="The package.")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        _distinct_names("pool", self.pool)
        if self.source.size % self.condense.factor:
            raise ValueError(
                f"source.size {self.source.size} is not divisible by condense.factor {self.condense.factor}"
            )
        images = self.condense.images
        if images.color == "decorrelated" and self.source.channels == 1:
            raise ValueError(
                "condense.images.color is decorrelated, but source.channels is 1: grey has nothing to decorrelate; "
                "leave the key out"
            )
        if images.parametrisation == "pyramid" and self.source.size == self.condense.factor:
            raise ValueError(
                "condense.images.parametrisation is pyramid, but condense.factor "
                f"{self.condense.factor} leaves tiles of one pixel; take a smaller factor"
            )
        if not self.condense.match and len(self.pool) < 2:
            raise ValueError("condense.match: false needs two models or more in the pool, for mutual distillation")
        if self.condense.distillation != "paper" and len(self.pool) < 2:
            raise ValueError(
                f"condense.distillation is {self.condense.distillation}, and a pool of one model has nobody to distil "
                "with; add a model, or leave it out"
            )
        if isinstance(self.condense.ipc, list):
            longest = len(str(max(self.condense.ipc)))
            for key, text, most in (("name", f"{self.name}_ipc", 64), ("publish.config", self.publish.config, 64)):
                if len(text) + longest > most:
                    raise ValueError(
                        f"{key} is {text!r} followed by the images per class, more than {most} characters; shorten it"
                    )
        kept = [model.name for model in self.pool if model.reset == "body"]
        if kept and self.condense.networks.bank.num_models:
            raise ValueError(
                f"pool entry {kept[0]} has reset: body, which keeps its classifier over resets, and a reset from "
                "condense.networks.bank replaces all of it; set reset: all, or leave the bank out"
            )
        return self

    def of_sizes(self) -> list[Recipe]:
        """List the recipes that make the same sets one by one; this one alone where `condense.ipc` is a number."""
        if isinstance(self.condense.ipc, int):
            return [self]
        return [
            self.model_copy(
                update={
                    "name": f"{self.name}_ipc{size}",
                    "condense": self.condense.model_copy(update={"ipc": size}),
                    "publish": self.publish.model_copy(update={"config": f"{self.publish.config}{size}"}),
                }
            )
            for size in self.condense.ipc
        ]

    def without_paths(self, source: SourceInfo) -> Recipe:
        """Return the recipe as it is published, with base names in place of paths; `source` is what it names."""
        changes: dict[str, Any] = {
            "pool": [model.without_paths() for model in self.pool],
            "evaluate": self.evaluate.without_paths(),
        }
        if source.kind == "local":
            changes["source"] = self.source.model_copy(update={"id": source.without_paths().id})
        return self.model_copy(update=changes)

    def condense_hash(self) -> str:
        """SHA-256 (hex) of what decides the condensed images: source, pool, condense, seed."""
        return sha256_of({key: self._plain(key) for key in ("source", "pool", "condense", "seed")})

    def family_hash(self) -> str:
        """SHA-256 (hex) of the same without the seed: sets that share it are repetitions of one experiment."""
        return sha256_of({key: self._plain(key) for key in ("source", "pool", "condense")})

    def protocol_hash(self) -> str:
        """SHA-256 (hex) of the evaluation protocol."""
        return self.evaluate.protocol_hash()

    def _plain(self, key: str) -> Any:
        """Return a section as plain data, without what is only there to be read."""
        section = self.model_dump(mode="json")[key]
        if key == "pool":
            return plain_models(section)
        if key == "source" and section["id"].startswith(LOCAL):
            # What a folder is called is no part of the data; the fingerprint says which they are.
            section["id"] = LOCAL + section["id"].rpartition("@")[2]
        if key == "condense":
            # How it is computed, not what.
            del section["memory"], section["derivative"], section["networks"]["accumulation_steps"]
            section["start"] = section.pop("initialisation")  # the hashes of the first sets have its former name
        if key in ("source", "condense"):
            # Younger than the first sets, whose hashes stay as they are.
            for name, usual in (("test_fraction", None), ("background", "white"), ("classes_per_step", None)):
                if name in section and section[name] == usual:
                    del section[name]
        return section
