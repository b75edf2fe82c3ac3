"""The schema of recipes/*.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from hmdc_hub.schema.base import (
    LOCAL,
    NAME,
    RESERVED,
    ModelSpec,
    NotNegative,
    Strict,
    distinct_names,
    plain_models,
    sha256_of,
)
from hmdc_hub.schema.condense import CondenseSpec
from hmdc_hub.schema.protocol import EvaluateSpec

if TYPE_CHECKING:
    from hmdc_hub.schema.files import SourceInfo


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
        distinct_names("pool", self.pool)
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
