"""The schema of how a set is condensed; the defaults are the paper's."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from hmdc_hub.schema.base import NEW_ENCODING, Encoding, NotNegative, Positive, Rate, Share, Strict
from hmdc_hub.schema.protocol import AugmentSpec

Distance = Literal["squares", "cosine", "orthogonal"]
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
