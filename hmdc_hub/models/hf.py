"""Models of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Arg, Family, Network, Shape, TapInfo, TapOutput

DROPOUT = "dropout is always off here, in condensing and in evaluation"


class VisionTransformer(Network):
    """transformers' ViTForImageClassification, run layer by layer; taps: each layer's output before the final norm.

    Running the layers is both quicker and steadier than `output_hidden_states`, whose last entry has been before as
    well as after the final norm in different models and versions of the library.

    Args:
        model: As the library built it.
        taps: One per layer.
        channels: Colour channels of its input.
    """

    def __init__(self, model: nn.Module, taps: tuple[TapInfo, ...], channels: int) -> None:
        super().__init__(taps=taps, channels=channels, head="model.classifier")
        self.model = model
        self.side = taps[0].side

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute the tokens after each layer, B x (1 + side * side) x channels, the class token first."""
        vit: Any = self.model.vit
        tokens = vit.embeddings(x)
        outputs = []
        for layer in vit.layers:
            tokens = layer(tokens)
            outputs.append(tokens)
        return outputs

    def tap(self, stage: Tensor) -> TapOutput:
        """Split off the class token and fold the patch tokens to a square."""
        patches = stage[:, 1:].transpose(1, 2)
        return TapOutput(stage[:, 0], patches.reshape(*patches.shape[:2], self.side, self.side))

    def embed(self, stage: Tensor) -> Tensor:
        """Give the class token after the final norm; the norm acts per token, so the others are not needed."""
        vit: Any = self.model.vit
        embedding: Tensor = vit.layernorm(stage[:, 0])
        return embedding


def make_vit(args: Mapping[str, Any], shape: Shape) -> VisionTransformer:
    """Build a ViT from a ViTConfig; raises ModelError if heads or patches do not divide their size."""
    hidden, heads, patch = args["hidden_size"], args["num_attention_heads"], args["patch_size"]
    if hidden % heads:
        raise ModelError(
            f"args.hidden_size = {hidden} cannot be shared among num_attention_heads = {heads}",
            hint=f"Set hidden_size: {hidden - hidden % heads + heads}, or a number of heads that divides {hidden}.",
        )
    if shape.side % patch:
        down = shape.side - shape.side % patch
        sizes = f"{down} or {down + patch}" if down else f"{patch}"
        patches = ", ".join(str(p) for p in range(2, shape.side + 1) if shape.side % p == 0)
        raise ModelError(
            f"args.patch_size = {patch} does not divide the side of {shape.side} pixels",
            hint=f"Set input_size: {sizes}, or a patch_size of {patches or 1}.",
        )
    from transformers import ViTConfig, ViTForImageClassification

    fields: dict[str, Any] = {
        **args,
        "image_size": shape.side,
        "num_channels": shape.channels,
        "num_labels": shape.classes,
        # Its plain form (SDPBackend.MATH) differentiates twice, its fused ones are for everything else.
        "attn_implementation": "sdpa",
    }
    count: int = args["num_hidden_layers"]
    taps = tuple(TapInfo(f"layer{i}", "tokens", hidden, shape.side // patch) for i in range(1, count + 1))
    return VisionTransformer(ViTForImageClassification(ViTConfig(**fields)), taps, shape.channels)


VIT = Family(
    # The defaults are those of ViTConfig, spelt out so that no version of the library changes a recipe.
    args={
        "hidden_size": Arg(768),
        "num_hidden_layers": Arg(12),
        "num_attention_heads": Arg(12),
        "intermediate_size": Arg(3072),
        "patch_size": Arg(16),
        "hidden_act": Arg("gelu", ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh")),
        "layer_norm_eps": Arg(1e-12),
        "initializer_range": Arg(0.02),
        "qkv_bias": Arg(True),
    },
    make=make_vit,
    fixed={
        "image_size": "it is the pool entry's input_size",
        "num_channels": "it is the source's number of channels",
        "num_labels": "it is the source's number of classes",
        "hidden_dropout_prob": DROPOUT,
        "attention_probs_dropout_prob": DROPOUT,
        "pooler_output_size": "the model is built without a pooler",
        "pooler_act": "the model is built without a pooler",
    },
)
