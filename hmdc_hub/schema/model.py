"""One model of the pool: the schema of model_pool/*.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hmdc_hub.schema.base import NAME, NotNegative, Positive, Rate, Strict


class LearningRates(Strict):
    """SGD learning rates of one model."""

    condense: Rate = Field(0.01, description="Network training between image steps (no momentum).", examples=[0.01])
    evaluate: Rate = Field(0.01, description="Training on the condensed set (momentum 0.9).", examples=[0.01])


class ModelSpec(Strict):
    """One entry of model_pool/, or the same mapping inline in a recipe."""

    name: str = Field(
        description="Short name, unique in a recipe; in a file it is the file's name and may be left out.",
        pattern=NAME,
        max_length=64,
        examples=["convnet3"],
    )
    source: Literal["builtin", "torchvision", "transformers"] = Field(
        description="Which library builds it.", examples=["builtin"]
    )
    id: str = Field(
        description="builtin: convnet | mlp | resnet; torchvision: resnet18; transformers: vit.", examples=["convnet"]
    )
    args: dict[str, int | float | bool | str | list[int]] = Field(
        default_factory=dict,
        description="Arguments of the builder, such as depth and width (builtin) or fields of the configuration "
        "(transformers).",
        examples=["{depth: 3, width: 128}"],
    )
    weights: Literal["none"] = Field("none", description="none: trained from scratch.", examples=["none"])
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
        examples=["source"],
    )
    mean: list[float] | None = Field(
        None, description="Channel means of pixels in [0, 1] for normalize: own.", examples=["[0.5, 0.5, 0.5]"]
    )
    std: list[Rate] | None = Field(
        None, description="Channel standard deviations for normalize: own.", examples=["[0.5, 0.5, 0.5]"]
    )
    taps: list[NotNegative] | None = Field(
        None,
        description="Which feature taps mutual distillation reads, as indices into the family's taps; null: all. An "
        "index may stand twice.",
        examples=["[0, 1, 2]"],
    )
    batch_norm: Literal["train", "frozen"] = Field(
        "train", description="Whether network training updates running statistics.", examples=["train"]
    )
    train: Literal["all", "head"] = Field(
        "all", description="Which parameters are trained, and therefore matched.", examples=["all"]
    )
    reset: Literal["all", "body"] = Field(
        "all",
        description="What becomes fresh at a reset; body keeps the classifier, as the method's first program did.",
        examples=["all"],
    )
    lr: LearningRates = Field(default_factory=LearningRates, description="SGD learning rates.")
    cutmix: bool = Field(
        True,
        description="Whether evaluation trains this model with CutMix where the protocol has it on.",
        examples=[True],
    )
    license: str | None = Field(None, description="Licence of the weights or code, as an SPDX id.", examples=["mit"])
    description: str = Field("", description="One sentence for `pool ls` and the card.")

    @model_validator(mode="after")
    def _own_statistics(self) -> ModelSpec:
        if self.normalize == "own" and (self.mean is None or self.std is None):
            raise ValueError("normalize: own needs mean and std")
        if self.normalize == "source" and (self.mean is not None or self.std is not None):
            raise ValueError("mean and std belong to normalize: own")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("mean and std must have one number per channel each")
        return self
