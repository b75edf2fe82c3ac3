"""The schema of recipes/*.yaml; the defaults are the paper's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from hmdc_hub.schema.base import NAME, RESERVED, NotNegative, Positive, Rate, Share, Strict, sha256_of
from hmdc_hub.schema.evaluate import AugmentSpec, EvaluateSpec, distinct_names
from hmdc_hub.schema.files import SourceInfo
from hmdc_hub.schema.model import LOCAL, ModelSpec, plain_models


def _no_number_in_disguise(value: Any) -> Any:
    """Refuse true and 3.0, which pydantic takes for 1 and 3 in a choice although it is strict."""
    return value if type(value) is int else str(value)


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
    image_column: str | None = Field(None, description="Column with the images; null: detected.", examples=["img"])
    label_column: str | None = Field(None, description="Column with the labels; null: detected.", examples=["label"])
    size: Annotated[int, Field(ge=4, le=1024)] = Field(
        description="Side in pixels of every image; others are resized to it with antialiasing.", examples=[32]
    )
    channels: Annotated[Literal[1, 3], BeforeValidator(_no_number_in_disguise)] = Field(
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


class ImagesSpec(Strict):
    """The optimiser of the synthetic images."""

    lr: Rate = Field(5e-3, description="SGD learning rate; made for normalised gradients.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="SGD momentum.")


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


class ProjectionSpec(Strict):
    """Training of the projections P and the layer matching Q of mutual distillation."""

    lr: Rate = Field(1e-2, description="Adam learning rate.")
    batches_per_step: NotNegative = Field(17, description="Minibatches after every image step.")


class CondenseSpec(Strict):
    """HMDC (Moon, Kim and Park, ECCV 2024)."""

    renamed: ClassVar[dict[str, str]] = {"start": "initialisation"}

    ipc: Positive = Field(description="Synthetic images per class.", examples=[10])
    factor: Positive = Field(
        2,
        description="f: one synthetic image holds f x f training images, so ipc 10 gives 40 per class; must divide the "
        "size.",
    )
    resets: Positive = Field(100, description="Sets of fresh networks (T in the paper).")
    batch: Positive = Field(128, description="B: real images per class and image step; also the most decoded ones.")
    initialisation: Literal["kmeans", "random"] = Field(
        "kmeans", description="Which real images the synthetic ones begin as."
    )
    match: bool = Field(True, description="Gradient matching, one objective per model.")
    distill: bool = Field(True, description="Mutual distillation, one objective per pair of models.")
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

    @model_validator(mode="after")
    def _some_objective(self) -> CondenseSpec:
        if not self.match and not self.distill:
            raise ValueError("match and distill are both off: nothing is left to minimise")
        return self


class PublishSpec(Strict):
    """What the package is called; no namespace, that is whoever publishes."""

    name: str = Field(description="Name of the Hub dataset.", pattern=NAME, max_length=96, examples=["cifar10-hmdc"])
    config: str = Field(
        description="Configuration of it that this recipe fills.", pattern=NAME, max_length=64, examples=["ipc10"]
    )
    license: str | None = Field(
        None, description="Licence of the source as a Hub id; null: unknown, and said so.", examples=["cc-by-4.0"]
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
        distinct_names("pool", self.pool)
        if self.source.size % self.condense.factor:
            raise ValueError(
                f"source.size {self.source.size} is not divisible by condense.factor {self.condense.factor}"
            )
        if not self.condense.match and len(self.pool) < 2:
            raise ValueError("condense.match: false needs two models or more in the pool, for mutual distillation")
        return self

    def without_paths(self, source: SourceInfo) -> Recipe:
        """Return the recipe as it is published, with base names in place of paths.

        Args:
            source: What is known about the source that it names.
        """
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
        if key == "source":
            if section["id"].startswith(LOCAL):
                # What a folder is called is no part of the data; the fingerprint says which they are.
                section["id"] = LOCAL + section["id"].rpartition("@")[2]
            # Younger than the first sets, whose hashes stay as they are.
            if section["test_fraction"] is None:
                del section["test_fraction"]
            if section["background"] == "white":
                del section["background"]
        if key == "condense":
            # How it is computed, not what.
            del section["memory"], section["derivative"], section["networks"]["accumulation_steps"]
            section["start"] = section.pop("initialisation")  # the hashes of the first sets have its former name
            if section["classes_per_step"] is None:
                del section["classes_per_step"]  # younger than the first sets, whose hashes stay as they are
        return section
