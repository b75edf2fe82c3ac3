"""One model of the pool: the schema of model_pool/*.yaml."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from hmdc_hub.schema.base import NAME, NotNegative, Positive, Rate, Strict

LOCAL = "local:"
"""What a published recipe has in place of a path, followed by its base name."""


def is_local_path(name: str) -> bool:
    """Tell whether weights or an id of a model are a path here: by how they are written, not by what lies there."""
    if name.startswith(LOCAL):
        return False
    return bool(re.match(r"\.{0,2}[/\\]|~|[A-Za-z]:[/\\]", name)) or name.lower().endswith(".safetensors")


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
        description="Which library builds it; timm is the extra hmdc-hub[timm]. python: a module of the session that "
        "made the set, which no file can name.",
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
    def _weights(self) -> ModelSpec:
        named = any("/" in name or name.startswith(LOCAL) or is_local_path(name) for name in (self.id, self.weights))
        if self.revision is not None and not named:
            raise ValueError("revision belongs to a Hub id or a file under weights, or to a Hub id under id")
        if self.revision is not None and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)*", self.revision, re.ASCII):
            raise ValueError(f"revision {self.revision!r} can be no commit, branch or tag")
        return self

    @model_validator(mode="after")
    def _plain_args(self) -> ModelSpec:
        for name, value in self.args.items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and re.search(r"[/\\~]", text):
                    raise ValueError(f"args.{name} = {text!r}: args hold settings of the architecture, no paths")
        return self

    @model_validator(mode="after")
    def _taps(self) -> ModelSpec:
        if len({type(tap) for tap in self.taps or ()}) > 1:
            raise ValueError("taps are indices or names of modules, not both")
        return self

    @model_validator(mode="after")
    def _own_statistics(self) -> ModelSpec:
        if self.normalize == "own" and (self.mean is None or self.std is None):
            raise ValueError("normalize: own needs mean and std")
        if self.normalize == "source" and (self.mean is not None or self.std is not None):
            raise ValueError("mean and std belong to normalize: own")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("mean and std must have one number per channel each")
        return self


def plain_models(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return models, given as plain data, as they are hashed: without what is only there to be read, and paths.

    Where a file lies is no part of what it is; its revision says that.
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
