"""Three libraries of networks: every image classifier of torchvision, transformers and timm, by its name there."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib import resources
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hmdc_hub import rng
from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import Family, Network, Shape
from hmdc_hub.models.feature_layers import Hints, LibraryNetwork, wrap
from hmdc_hub.schema.base import Positive, Rate, Strict

# The stem after max-pooling and the four stages.
RESNET_TAPS: tuple[str, ...] = ("maxpool", "layer1", "layer2", "layer3", "layer4")

_TABLES = tomllib.loads((resources.files("hmdc_hub.models") / "libraries.toml").read_text("utf-8"))
# What a DeiT with a second classifier on a distillation token is called: transformers has two classes for one type.
DISTILLED = "deit_distilled"


class Library:
    """What is asked of a library; without state, so that models can be pickled."""

    name: str
    colour = True  # networks take three channels, as their weights do: grey images are repeated
    hub_ids = False  # whether ids can be repositories or folders with a config.json

    def names(self) -> list[str]:
        """List the ids that are not of the Hub."""
        raise NotImplementedError

    def family(self, id_: str) -> Family | None:
        """Describe such an id; None if there is no network of that name."""
        return self.describe(id_, {}) if id_ in self.names() else None

    def family_of_config(self, id_: str, config: Mapping[str, Any]) -> Family:
        """Describe what the config.json of a repository or folder stands for."""
        raise NotImplementedError

    def construct(self, id_: str, fields: Mapping[str, Any], shape: Shape) -> nn.Module:
        """Build the library's own network."""
        raise NotImplementedError

    def hints(self, shape: Shape, model: Any) -> Hints:
        """Name its classifiers, and customary taps that running it does not show."""
        raise NotImplementedError

    def load(self, net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do what `Family.load` does."""
        raise NotImplementedError

    def describe(self, id_: str, base: Mapping[str, Any], known: tuple[str, ...] | None = ()) -> Family:
        """Describe a network to which its config.json, if it has one, gives the fields `base`."""
        return Family(partial(self.make, id_, base), None, known, self.reasons("fixed"), self.load)

    def make(self, id_: str, base: Mapping[str, Any], args: Mapping[str, Any], shape: Shape) -> LibraryNetwork:
        """Build a network from the fields of a config.json and, over them, those of a pool entry."""
        fields = {**base, **args}
        shape = replace(shape, channels=3) if self.colour else shape
        key = (self.name, id_, tuple(sorted((name, str(value)) for name, value in fields.items())))
        return wrap(partial(self.construct, id_, fields, shape), partial(self.hints, shape), shape, key)

    def reasons(self, table: str) -> dict[str, str]:
        """Read a table of libraries.toml: name to reason."""
        return {name: reason for reason, names in _TABLES[self.name][table].items() for name in names}


def _prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a library's names into those of a `LibraryNetwork`."""
    return {f"model.{name}": value for name, value in state.items()}


class _Torchvision(Library):
    """By the names of its builders."""

    name = "torchvision"

    def names(self) -> list[str]:
        import torchvision

        return list(torchvision.models.list_models(module=torchvision.models))

    def construct(self, id_: str, fields: Mapping[str, Any], shape: Shape) -> nn.Module:
        import torchvision

        sized = {"image_size": shape.side} if id_.startswith("vit_") else {}
        more = {"aux_logits": False, "init_weights": True} if id_ in ("googlenet", "inception_v3") else {}
        model: nn.Module = torchvision.models.get_model(id_, weights=None, num_classes=shape.classes, **sized, **more)
        return model

    def hints(self, shape: Shape, model: Any) -> Hints:
        patch: Any = getattr(model, "patch_size", None)
        kind, parts = type(model).__name__, list(model.named_modules())
        linear = [n for n, part in parts if isinstance(part, nn.Linear) and part.out_features == shape.classes]
        convolutions = [n for n, part in parts if isinstance(part, nn.Conv2d) and part.out_channels == shape.classes]
        return Hints(
            heads=tuple((linear or convolutions)[-1:]),
            modules=RESNET_TAPS if kind == "ResNet" else None,
            nhwc=kind == "SwinTransformer",
            patch=(patch, patch) if kind == "VisionTransformer" else None,
        )

    def load(self, net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model: Any = net.get_submodule("model")
        if hasattr(model, "transform_input"):  # of GoogLeNet and Inception: their weights expect other statistics
            model.transform_input = True
        # Files of DenseNets have a dot more in some names.
        return _prefixed({re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", k): v for k, v in state.items()})


class _Timm(Library):
    """By the names of its architectures; it comes with `pip install timm`."""

    name, hub_ids = "timm", True

    @property
    def module(self) -> Any:
        try:
            return importlib.import_module("timm")
        except ImportError as error:
            hint = "pip install timm"
            raise ModelError("models of timm need timm, which is not installed", hint=hint) from error

    def names(self) -> list[str]:
        return list(self.module.list_models())

    def family(self, id_: str) -> Family | None:
        return self.describe(id_, {}, known=None) if self.module.is_model(id_) else None

    def family_of_config(self, id_: str, config: Mapping[str, Any]) -> Family:
        architecture, given = config.get("architecture"), config.get("model_args")
        if not isinstance(architecture, str) or not self.module.is_model(architecture):
            raise ModelError(f"{id_} cannot be built: timm has no architecture {architecture!r}")
        # A stranger's file: nothing but plain settings of the architecture is taken from it.
        fixed = self.reasons("fixed")
        base = {k: v for k, v in given.items() if k not in fixed} if isinstance(given, dict) else {}
        return self.describe(architecture, base, known=None)

    def construct(self, id_: str, fields: Mapping[str, Any], shape: Shape) -> nn.Module:
        timm = self.module
        sized = {"img_size": shape.side} if timm.get_pretrained_cfg(id_).fixed_input_size else {}
        try:
            model: nn.Module = timm.create_model(id_, pretrained=False, num_classes=shape.classes, **fields, **sized)
        except TypeError as error:
            unknown = [name for name in fields if f"'{name}'" in str(error)]
            if not unknown:
                raise
            raise ModelError(f"args.{unknown[0]} is unknown: timm's {id_} does not take it") from error
        return model

    def hints(self, shape: Shape, model: Any) -> Hints:
        classifiers = model.get_classifier()
        heads = [
            part
            for classifier in (classifiers if isinstance(classifiers, tuple) else (classifiers,))
            for part in (classifier if isinstance(classifier, nn.ModuleList) else (classifier,))
        ]
        named, kind = {id(module): name for name, module in model.named_modules()}, type(model).__name__
        modules = RESNET_TAPS if kind == "ResNet" else None
        if kind in (
            "Xcit",
            "VisionTransformerSAM",
        ):  # their blocks work at one resolution, beside a stem or neck of others
            modules = tuple(f"blocks.{number}" for number in range(len(model.blocks)))
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
        isotropic = isinstance(patch, tuple | list) and bool(getattr(model, "blocks", None))
        return Hints(
            heads=tuple(named[id(head)] for head in heads),
            modules=modules,
            nhwc=getattr(model, "output_fmt", "NCHW") == "NHWC" or kind == "VisionTransformerSAM",
            patch=(int(patch[0]), int(patch[1])) if isotropic and patch else None,
            class_token=getattr(model, "cls_token", None) is not None,
        )

    def load(self, net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The architecture's own filter renames a checkpoint, as timm does for weights of other projects.
        model = net.get_submodule("model")
        change = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
        return _prefixed(change(dict(state), model) if change is not None else state)


class _Transformers(Library):
    """By the types of its configurations."""

    name, colour, hub_ids = "transformers", False, True

    def names(self) -> list[str]:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

        return sorted({*KNOWN, DISTILLED} - set(self.reasons("left_out")))

    def family(self, id_: str) -> Family | None:
        if id_ == "vit":
            return VIT
        if (why := self.reasons("left_out").get(id_)) is not None:
            raise ModelError(f"transformers' {id_} cannot join a pool: {why}")
        return self.describe(id_, {}, _fields_of(id_)) if id_ in self.names() else None

    def family_of_config(self, id_: str, config: Mapping[str, Any]) -> Family:
        kind = str(config.get("model_type", ""))
        if kind not in self.names():
            why = self.reasons("left_out").get(kind) or (
                "it needs code from its repository, and remote code is never run here"
                if config.get("auto_map")
                else f"transformers has no image classifier of type {kind!r}"
            )
            raise ModelError(f"{id_} cannot be built: {why}", hint="Name a model of a type in `hmdc-hub pool ls`.")
        if "DeiTForImageClassificationWithTeacher" in str(config.get("architectures")):
            kind = DISTILLED
        fixed = self.reasons("fixed")
        fields = {name: value for name, value in config.items() if name not in fixed}
        return self.describe(kind, fields, tuple({*_fields_of(kind), *config}))

    def construct(self, id_: str, fields: Mapping[str, Any], shape: Shape) -> nn.Module:
        from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig

        with _quiet():
            config = AutoConfig.for_model(id_.removesuffix("_distilled"), **fields, num_labels=shape.classes)
            config.num_channels = shape.channels
            if hasattr(config, "image_size"):
                config.image_size = [shape.side] * 2 if isinstance(config.image_size, list | tuple) else shape.side
            found: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
            if isinstance(found, tuple):  # which `AutoModel.from_config` cannot choose from
                found = found[-1] if id_ == DISTILLED else found[0]
            model: nn.Module = found(config)
        return model

    def hints(self, shape: Shape, model: Any) -> Hints:
        config, base = model.config, f"{model.base_model_prefix}."
        heads = [
            name
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear) and part.out_features == shape.classes and not name.startswith(base)
        ]
        patch = getattr(config, "patch_size", None)
        pair = (patch, patch) if isinstance(patch, int) else tuple(patch or ())
        isotropic = len(pair) == 2 and not hasattr(config, "depths")
        taps: list[str] | None = None
        if config.model_type == "resnet":
            taps = ["embedder", *(f"encoder.stages.{i}" for i in range(len(config.depths)))]
        elif config.model_type in ("swin", "swinv2", "donut-swin"):  # a stage of these ends by halving
            taps = [f"encoder.layers.{i}.blocks.{depth - 1}" for i, depth in enumerate(config.depths)]
        elif config.model_type == "focalnet":
            taps = [f"encoder.stages.{i}.layers.{depth - 1}" for i, depth in enumerate(config.depths)]
        modules = None if taps is None else tuple(base + tap for tap in taps)
        return Hints(heads=tuple(heads), modules=modules, patch=pair if isotropic else None)

    def load(self, net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Transformers reads a checkpoint into a model of the same configuration: it knows names of old versions.
        model: Any = net.get_submodule("model")
        with _quiet(), rng.global_seed(rng.generator(0, "weights")):
            loaded, info = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=dict(state),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        absent = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
        values = {name: value for name, value in loaded.state_dict().items() if name not in absent}
        for name, shape, _ in info["mismatched_keys"]:
            # Position embeddings are given as they are, to be resized; of the rest only the shape matters, to tell it.
            last = name.rpartition(".")[2]
            same = [value for key, value in state.items() if key.endswith(last) and value.shape == shape]
            exact = state.get(name)
            if exact is None or exact.shape != shape:
                exact = same[0] if len(same) == 1 else torch.empty(shape, device="meta")
            values[name] = exact
        return _prefixed(values)


@cache
def _fields_of(kind: str) -> tuple[str, ...]:
    """List the fields of a type's configuration, whose values transformers checks itself."""
    from transformers import AutoConfig

    return tuple(AutoConfig.for_model(kind.removesuffix("_distilled")).to_dict())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and tables of missing keys off the terminal: what matters of them we say ourselves."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


TRANSFORMERS = _Transformers()


class ViTArgs(Strict):
    """The defaults are those of ViTConfig, spelt out so that no version of the library changes a recipe."""

    hidden_size: Positive = 768
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    patch_size: Positive = 16
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh"] = "gelu"
    layer_norm_eps: Rate = 1e-12
    initializer_range: Rate = 0.02
    qkv_bias: bool = True


def _make_vit(args: Mapping[str, Any], shape: Shape) -> LibraryNetwork:
    hidden, heads = args["hidden_size"], args["num_attention_heads"]
    if hidden % heads:  # which transformers takes
        hint = f"Set hidden_size: {hidden - hidden % heads + heads}, or a number of heads that divides {hidden}."
        raise ModelError(f"args.hidden_size = {hidden} cannot be shared among num_attention_heads = {heads}", hint=hint)
    return TRANSFORMERS.make("vit", {}, args, shape)


_VIT_FIXED = TRANSFORMERS.reasons("fixed") | TRANSFORMERS.reasons("vit")
VIT = Family(_make_vit, ViTArgs, fixed=_VIT_FIXED, load=TRANSFORMERS.load)

LIBRARIES: Mapping[str, Library] = {one.name: one for one in (_Torchvision(), TRANSFORMERS, _Timm())}
