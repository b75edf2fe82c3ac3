"""What all our pydantic models share: names, hashes, and one model of the pool, the schema of model_pool/*.yaml."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# Version of every file format of ours; readers refuse a larger one. 3 has the names of today, `initialisation` and
# `synthetic_images`, which programs that wrote 1 and 2 would take for damage; those are read.
FORMAT_VERSION = 3
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_REPOSITORY = r"[A-Za-z0-9][\w.-]*"
HUB_ID = rf"{_REPOSITORY}/{_REPOSITORY}"  # a repository on the Hub, `owner/name`, as a regular expression; ASCII
HUB_DATASET = rf"({_REPOSITORY}/)?{_REPOSITORY}"  # the same of a dataset, of which old ones have no owner
RESERVED = frozenset({"data", "scores", "assets"})  # no configuration's name: a package uses these folders itself
LOCAL = "local:"  # what a published recipe has in place of a path, followed by its base name


def is_hub_id(text: str) -> bool:
    """Tell whether a text is written like `owner/name` on the Hub."""
    return re.fullmatch(HUB_ID, text, re.ASCII) is not None


def is_local_path(name: str) -> bool:
    """Tell whether weights or an id of a model are a path here: by how they are written, not by what lies there."""
    if name.startswith(LOCAL):
        return False
    return bool(re.match(r"\.{0,2}[/\\]|~|[A-Za-z]:[/\\]", name)) or name.lower().endswith(".safetensors")


class Strict(BaseModel):
    """Base: unknown keys refused, no silent conversion of types, values fixed once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    renamed: ClassVar[Mapping[str, str]] = {}  # former names of keys, which are still read: old name to new

    @classmethod
    def former_keys(cls, prefix: str = "") -> dict[str, str]:
        """Map the former names of all keys, those of sections within included, to today's: dotted keys."""
        found = {prefix + old: prefix + new for old, new in cls.renamed.items()}
        for name, field in cls.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
                found |= field.annotation.former_keys(f"{prefix}{name}.")
        return found

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and any(old in data and new not in data for old, new in cls.renamed.items()):
            return {cls.renamed.get(key, key): value for key, value in data.items()}
        return data


class SetKind(NamedTuple):
    """What is known of a training set by its name."""

    label: str  # its name where people read
    what: str
    size: Literal["decoded", "chosen", "all"]  # images: those of the condensed set, as many as it stores, the source's
    real: bool  # only real images, so the same for every condensed set of one source, protocol and budget


Encoding = Literal["antialias", "bilinear", "least-squares"]
# What `encode` is in a recipe that somebody writes and that does not say it. Files of ours, and what is made of them,
# mean antialias by that, as in all of them before there was the key.
NEW_ENCODING: Encoding = "least-squares"
Baseline = Literal["exact", "random", "random-encoded", "initialisation", "k-means", "herding", "full"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
CONDENSED, RANDOM, RANDOM_ENCODED, FULL = "condensed", "random", "random-encoded", "full"
# By the names that recipes and files have, in the order of tables.
TRAINING_SETS = {
    CONDENSED: SetKind("condensed", "the set that is scored, in 8 bits", "decoded", False),
    "exact": SetKind("exact floats", "the same before it was rounded to 8 bits", "decoded", False),
    RANDOM: SetKind("random", "real images drawn at random, as many as the condensed set stores", "chosen", True),
    RANDOM_ENCODED: SetKind(
        "random, same storage",
        "real images drawn at random, stored as the condensed ones are: the same bytes",
        "decoded",
        True,
    ),
    "initialisation": SetKind("initialisation", "the condensed set before the first image step", "decoded", False),
    "k-means": SetKind("k-means", "real images in the middle of clusters of their class", "chosen", True),
    "herding": SetKind(
        "herding", "real images whose mean is that of their class, as a network sees them", "chosen", True
    ),
    FULL: SetKind("full", "every training image of the source", "all", True),
}
FORMER_BASELINES = {"start": "initialisation"}  # former names of training sets, which are still read: old name to new


def present_name(name: Any) -> Any:
    """Give a training set the name it has today."""
    return FORMER_BASELINES.get(name, name) if isinstance(name, str) else name


# Letters, digits, dots, dashes, underscores: safe in file names, tables and addresses.
Name = Annotated[str, Field(pattern=NAME)]
TrainingSet = Annotated[Name, BeforeValidator(present_name)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def canonical_json(value: Any) -> str:
    """Serialise plain data to the one JSON text that hashes and headers use: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """SHA-256 (hex) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


CHECKSUM = "checksum"  # key of plain data that check themselves; data of an older program have none


def sealed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data with a checksum over all of them as the last key."""
    rest = unsealed(plain)
    return rest | {CHECKSUM: sha256_of(rest)}


def unsealed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data without their checksum."""
    return {key: value for key, value in plain.items() if key != CHECKSUM}


def is_intact(plain: Mapping[str, Any]) -> bool:
    """Tell whether plain data have a checksum and are what it was made of."""
    try:
        return CHECKSUM in plain and plain[CHECKSUM] == sha256_of(unsealed(plain))
    except (ValueError, RecursionError):  # text that is no Unicode, numbers that JSON does not have
        return False


class LearningRates(Strict):
    """SGD learning rates of one model."""

    condense: Rate = Field(0.01, description="Network training between image steps (no momentum).")
    evaluate: Rate = Field(0.01, description="Training on the condensed set (momentum 0.9).")


class ModelSpec(Strict):
    """One entry of model_pool/, or the same mapping inline in a recipe."""

    name: str = Field(
        description="Short name, unique in a recipe; in a file it is the file's name and may be left out.",
        pattern=NAME,
        max_length=64,
        examples=["convnet3"],
    )
    source: Literal["builtin", "torchvision", "transformers", "timm", "python"] = Field(
        description="Which library builds it; timm has to be installed (pip install timm). python: a module of the "
        "session that made the set, which no file can name.",
        examples=["builtin"],
    )
    id: str = Field(
        min_length=1,
        description="builtin: convnet | mlp | resnet; torchvision: a builder, such as resnet50; transformers: a type "
        "of configuration with an image classifier, such as vit, or a Hub id whose config.json says so; timm: an "
        "architecture, or a Hub id; for both also a folder with a config.json (./folder).",
        examples=["convnet"],
    )
    args: dict[str, int | float | bool | str | list[int | float | str]] = Field(
        {},
        description="Arguments of the builder, such as depth and width (builtin), fields of the configuration "
        "(transformers), or arguments of the model's class (timm).",
        examples=["{depth: 3, width: 128}"],
    )
    weights: str = Field(
        "none",
        min_length=1,
        description="none: trained from scratch. Otherwise what every reset goes back to, with a new classifier: "
        "torchvision's name of weights (IMAGENET1K_V1), a Hub id with safetensors (owner/name), or a path here "
        "(./model.safetensors, or ./folder as save_pretrained writes it).",
    )
    revision: str | None = Field(
        None,
        description="Commit of the Hub id under weights or id; null: resolved to a commit when the run starts. Of a "
        "local file the first digits of its SHA-256, filled in likewise.",
        examples=["7d3afdd0cf93ad84d986eb2d6bcc5812ebd0b106"],
    )
    input_size: Positive | None = Field(
        None,
        description="Side in pixels that the model sees; images are resized to it (bilinear, corners aligned). null: "
        "the size of the source.",
        examples=[224],
    )
    normalize: Literal["source", "own"] = Field(
        "source",
        description="source: the model sees images normalised by the statistics of the source; own: by mean and std "
        "below.",
    )
    mean: list[float] | None = Field(
        None, description="Channel means of pixels in [0, 1] for normalize: own.", examples=["[0.5, 0.5, 0.5]"]
    )
    std: list[Rate] | None = Field(
        None, description="Channel standard deviations for normalize: own.", examples=["[0.5, 0.5, 0.5]"]
    )
    taps: list[NotNegative | str] | None = Field(
        None,
        description="Which features mutual distillation reads: indices into the default taps, which `pool check` "
        "prints, or names of modules; null: all default taps. One may stand twice.",
        examples=["[0, 1, 2]"],
    )
    batch_norm: Literal["train", "frozen"] = Field(
        "train", description="Whether network training updates running statistics."
    )
    train: str = Field(
        "all",
        pattern=r"^(all|head|last_[1-9][0-9]?)$",
        description="Which parameters are trained, and therefore matched: all, head (the classifier), or last_2, the "
        "classifier and whatever lies behind the last tap but two.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="In which the network computes while condensing; float32 is TF32 on a GPU. bfloat16: weights are "
        "cast once per pass, while the weights that learn, features and losses stay float32; `pool check` says how far "
        "it turns the image gradient. For scores see evaluate.precision.",
    )
    reset: Literal["all", "body"] = Field(
        "all",
        description="What becomes fresh at a reset while condensing; body keeps the classifier, as the method's first "
        "program did. Evaluating begins every training with fresh weights.",
    )
    lr: LearningRates = Field(default_factory=LearningRates, description="SGD learning rates.")
    cutmix: bool = Field(
        True, description="Whether evaluation trains this model with CutMix where the protocol has it on."
    )
    license: str | None = Field(None, description="Licence of the weights or code, as an SPDX id.", examples=["mit"])
    description: str = Field("", description="One sentence for `pool ls` and the card.")

    @property
    def reproducible(self) -> bool:
        """Whether another session can build the model by its id; a module of a Python session is there alone."""
        return self.source != "python"

    def local_names(self) -> dict[str, str]:
        """Give the keys of this entry that name a path here, with their values."""
        return {key: value for key in ("id", "weights") if is_local_path(value := str(getattr(self, key)))}

    def without_paths(self) -> ModelSpec:
        """Return the entry with base names in place of paths: what is published; `revision` says what was there."""
        # Both kinds of slash, wherever this runs.
        names = {key: re.split(r"[/\\]", path.rstrip("/\\"))[-1] for key, path in self.local_names().items()}
        names = {key: LOCAL + (name if re.match(r"[^~.:]", name) else "file") for key, name in names.items()}
        return self.model_copy(update=names) if names else self

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        named = any("/" in name or name.startswith(LOCAL) or is_local_path(name) for name in (self.id, self.weights))
        if self.revision is not None and not named:
            raise ValueError("revision belongs to a Hub id or a file under weights, or to a Hub id under id")
        if self.revision is not None and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)*", self.revision, re.ASCII):
            raise ValueError(f"revision {self.revision!r} can be no commit, branch or tag")
        for name, value in self.args.items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and re.search(r"[/\\~]", text):
                    raise ValueError(f"args.{name} = {text!r}: args hold settings of the architecture, no paths")
        if len({type(tap) for tap in self.taps or ()}) > 1:
            raise ValueError("taps are indices or names of modules, not both")
        if self.normalize == "own" and (self.mean is None or self.std is None):
            raise ValueError("normalize: own needs mean and std")
        if self.normalize == "source" and (self.mean is not None or self.std is not None):
            raise ValueError("mean and std belong to normalize: own")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("mean and std must have one number per channel each")
        return self


def plain_models(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return models, given as plain data, as they are hashed: without what is only there to be read, and paths.

    Where a file lies is no part of what it is: its revision says that.
    """
    hashed = []
    for model in models:
        plain = {key: value for key, value in model.items() if key not in ("description", "license")}
        if plain["precision"] == "float32":
            del plain["precision"]  # younger than the first sets, whose hashes stay as they are
        for name in ("id", "weights"):
            if is_local_path(plain[name]) or plain[name].startswith(LOCAL):
                plain[name] = LOCAL
        hashed.append(plain)
    return hashed


def distinct_names(where: str, models: list[ModelSpec]) -> None:
    """Refuse models of one name, with a ValueError."""
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{where} names {', '.join(twice)} twice; give inline mappings names of their own")
