"""One model of the pool, as condensing and evaluation use it, and how a pool entry becomes one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hmdc_hub import rng
from hmdc_hub.errors import ModelError
from hmdc_hub.models import user_modules, weights
from hmdc_hub.models.builtin import BUILTIN
from hmdc_hub.models.family import BATCH_NORMS, Family, Network, Shape, TapInfo, TapOutput
from hmdc_hub.models.libraries import LIBRARIES
from hmdc_hub.multi_formation import resize
from hmdc_hub.schema import ModelSpec
from hmdc_hub.text import close, did_you_mean

if TYPE_CHECKING:
    from hmdc_hub.sources import Source


class Features(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor  # B x classes
    taps: tuple[TapOutput, ...]  # one for each selected tap


class PoolModel(nn.Module):
    """A network of the pool with its input pipeline, its reset and its training rules; made by `build_model`.

    Forward passes in evaluation mode change nothing, so the model works in `torch.func.functional_call` and under
    double backward; attention then needs `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around it. It starts in
    evaluation mode.

    Args:
        spec, num_classes: As for `build_model`.
        make: Builds the network, drawing from torch's global CPU generator, as it built `net`.
        taps: Indices into the network's taps; one may stand twice.
        input_size: Side in pixels of what the network sees.
        affine: Scale and shift, each 1 x channels x 1 x 1, from source-normalised pixels to the network's own; None if
            it takes source-normalised ones.
        pretrained: Values of everything but the classifiers, by the network's names; none: from scratch.
    """

    def __init__(
        self,
        spec: ModelSpec,
        make: Callable[[], Network],
        net: Network,
        *,
        taps: tuple[int, ...],
        num_classes: int,
        input_size: int,
        affine: tuple[Tensor, Tensor] | None,
        pretrained: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.net, self.num_classes, self.input_size = spec, net, num_classes, input_size
        self.taps: tuple[TapInfo, ...] = tuple(net.taps[i] for i in taps)  # the selected ones
        self._make, self._pretrained, self._tap_indices = make, dict(pretrained or {}), taps
        self._batch_norms = [m for m in net.modules() if isinstance(m, BATCH_NORMS)]
        self.scale: Tensor | None
        self.shift: Tensor | None
        for name, value in zip(("scale", "shift"), affine or (None, None), strict=True):
            self.register_buffer(name, value, persistent=False)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(spec.train == "all" or self._in_head(name))
        self.eval()
        if spec.train.startswith("last_"):
            self._train_last(int(spec.train.removeprefix("last_")))

    def prepare(self, x: Tensor) -> Tensor:
        """Turn source-normalised images into what the network sees; differentiable, and linear up to a constant.

        B x channels x side x side become B x network channels x input_size x input_size: resized, grey repeated if the
        network takes colour, in the network's own normalisation.
        """
        x = resize(x, self.input_size)
        if x.shape[1] != self.net.channels:
            x = x.expand(-1, self.net.channels, -1, -1)
        if self.scale is not None and self.shift is not None:
            x = x * self.scale + self.shift
        return x

    def forward(self, x: Tensor) -> Features:
        """Compute logits and the selected taps of prepared images, B x channels x input_size x input_size.

        It computes in the type of its parameters; what comes out is at least float32.
        """
        with self._single(x):
            done = self.net.run(self._cast(x))
        taps = {i: TapOutput(*map(_wide, self.net.tap(i, done.stages[i]))) for i in set(self._tap_indices)}
        return Features(_wide(done.logits), tuple(taps[i] for i in self._tap_indices))

    def run_with(self, parameters: Mapping[str, Tensor], x: Tensor) -> Features:
        """Do the same in the entry's `precision`, with other values of some parameters; works in `torch.func.vmap`.

        `x` are prepared images, `parameters` by name, maybe none. In bfloat16 all parameters and buffers are cast once
        for the pass, but those of batch normalisation that learns its statistics.
        """
        values = dict(parameters)
        if self.spec.precision == "bfloat16":
            own = dict(_parameters_and_buffers(self)) | values
            kept = tuple(f"{name}." for name, m in self.named_modules() if isinstance(m, BATCH_NORMS) and m.training)
            values |= {
                name: value.bfloat16()
                for name, value in own.items()
                if value.is_floating_point() and not name.startswith(kept) and name not in ("scale", "shift")
            }
        done: Features = functional_call(self, values, (x,))
        return done

    def logits(self, x: Tensor) -> Tensor:
        """Compute the logits of prepared images alone, B x classes."""
        with self._single(x):
            return self.net.logits(x)

    def embed(self, x: Tensor) -> Tensor:
        """Compute the embedding of prepared images that clustering uses, B x D: what the classifier sees."""
        with self._single(x):
            return self.net.run(self._cast(x)).embedding

    def _single(self, x: Tensor) -> AbstractContextManager[None]:
        # A single image has no batch statistics where a map has one pixel: the last partial batch of an epoch then goes
        # by the running statistics, and leaves them alone.
        if self.training and self._batch_norms and x.shape[0] == 1:
            return self._normalising(training=False)
        return nullcontext()

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(next(self.net.parameters()).dtype)  # which `run_with` may replace

    def reset(self, gen: torch.Generator) -> None:
        """Give the network fresh values, in place: its library's own initialisation, drawn from `gen`.

        Pretrained networks get their weights back, and a fresh classifier. The same generator state gives the same
        bits. Parameter objects stay the same, buffers are renewed too. With `reset: body` the classifier keeps its
        values. Torch's global generator is as before afterwards.
        """
        with rng.global_seed(gen), torch.device("cpu"):
            fresh = self._make()
        values = dict(_parameters_and_buffers(fresh)) | self._pretrained
        with torch.no_grad():
            for name, tensor in _parameters_and_buffers(self.net):
                if self.spec.reset == "all" or not self._in_head(name):
                    tensor.copy_(values[name])

    def train(self, mode: bool = True) -> PoolModel:
        """Switch the mode: only batch normalisation (`batch_norm: train`) ever leaves evaluation mode.

        Dropout and stochastic depth stay off. In training a batch of one image uses the running statistics.
        """
        super().train(False)
        self.training = mode
        if self.spec.batch_norm == "train":
            for norm in self._batch_norms:
                norm.train(mode)
        return self

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set running statistics to the average over those of batches of prepared images, each of more than one.

        With no batch at all they become those of a new layer, mean 0 and variance 1. Pretrained networks keep theirs,
        which belong to their weights.
        """
        if not self._batch_norms or self._pretrained:
            return
        momenta = [norm.momentum for norm in self._batch_norms]
        try:
            for norm in self._batch_norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's way to ask for the cumulative average
            with torch.no_grad(), self._normalising(training=True):
                for batch in batches:
                    self.net.logits(batch)
        finally:
            for norm, momentum in zip(self._batch_norms, momenta, strict=True):
                norm.momentum = momentum

    def trained(self) -> dict[str, nn.Parameter]:
        """List the parameters that are trained and matched (`train`) under their names, ordered by name."""
        return {name: p for name, p in sorted(self.named_parameters()) if p.requires_grad}

    def _train_last(self, count: int) -> None:
        """Train the classifiers and what lies behind the last tap but `count`: that many blocks, and a final norm."""
        stages = len(self.net.taps)
        if count >= stages:
            hint = f"Set train: last_{stages - 1} or less, or train: all." if stages > 1 else "Set train: all or head."
            raise ModelError(f"train: last_{count} is not less than it has: {stages} taps", hint=hint)
        parameters = dict(self.net.named_parameters())
        for parameter in parameters.values():
            parameter.requires_grad_()
        # Asked of the network itself: what the tap before them depends on lies before them.
        done = self.net.run(torch.zeros(2, self.net.channels, self.input_size, self.input_size))
        values = list(parameters.values())
        upstream = [torch.autograd.grad(s.sum(), values, retain_graph=True, allow_unused=True) for s in done.stages]
        # In the order in which they come in the network, however `taps` lists them.
        upstream.sort(key=lambda gradients: sum(gradient is not None for gradient in gradients))
        before = upstream[-1 - count]
        reached = torch.autograd.grad(done.logits.sum(), values, allow_unused=True)
        for parameter, early, used in zip(values, before, reached, strict=True):
            parameter.requires_grad_(early is None and used is not None)

    def _in_head(self, name: str) -> bool:
        return name.startswith(tuple(f"{head}." for head in self.net.heads))

    @contextmanager
    def _normalising(self, *, training: bool) -> Iterator[None]:
        modes = [norm.training for norm in self._batch_norms]
        try:
            for norm in self._batch_norms:
                norm.train(training)
            yield
        finally:
            for norm, mode in zip(self._batch_norms, modes, strict=True):
                norm.train(mode)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _parameters_and_buffers(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(net.named_parameters(), net.named_buffers())


def build_for(spec: ModelSpec, source: Source) -> PoolModel:
    """Build a model of the pool for a loaded source; everything else as `build_model`."""
    train = source.train
    return build_model(
        spec,
        num_classes=train.num_classes,
        source_size=train.side,
        channels=train.channels,
        mean=source.mean,
        std=source.std,
    )


def build_model(
    spec: ModelSpec, *, num_classes: int, source_size: int, channels: int, mean: Tensor, std: Tensor
) -> PoolModel:
    """Build a model of the pool, on the CPU and in evaluation mode.

    Its values come from a fixed generator, whatever the recipe's seed: call `reset` before using them. Torch's global
    generator is left alone.

    Args:
        spec: The pool entry.
        num_classes: Number of classes of the source.
        source_size: Side of the source's images in pixels, and of the network's input unless the spec says otherwise.
        channels: Colour channels of the source, 1 or 3.
        mean: Channel means that source-normalised images were shifted by, `channels` numbers.
        std: Channel standard deviations that they were divided by.

    A ModelError says what of the entry is unknown or wrong, or does not fit the source; NetworkError: the Hub cannot be
    reached, or the cache does not hold a file while offline; AccessError: this account may not read a repository.
    """
    input_size = spec.input_size or source_size
    try:
        family = _family(spec)
        args = family.complete(spec.args)
        modules = tuple(tap for tap in spec.taps or () if isinstance(tap, str)) or None
        # The other libraries build for colour images whatever the source has.
        colour = spec.source == "transformers" and spec.weights != "none"
        shape = Shape(num_classes, input_size, 3 if colour else channels, modules)
        make = partial(family.make, args, shape)
        with rng.global_seed(rng.generator(0, "build")), torch.device("cpu"):
            net = make()
            pretrained = weights.pretrained(spec, family, net)
        return PoolModel(
            spec,
            make,
            net,
            taps=_tap_indices(spec, net),
            num_classes=num_classes,
            input_size=input_size,
            affine=_affine(spec, net.channels, mean, std),
            pretrained=pretrained,
        )
    except ModelError as error:
        raise ModelError(f"Pool entry {spec.name}: {error.message.rstrip('.')}.", hint=error.hint) from error.__cause__


def parameter_count(model: nn.Module) -> int:
    """Count the numbers in all parameters, trained or not."""
    return sum(p.numel() for p in model.parameters())


def forward_flops(model: PoolModel) -> int:
    """Count the operations of convolutions, matrix products and attention in one image's forward pass.

    A multiplication with addition counts two, as in `torch.utils.flop_counter`.
    """
    image = next(model.parameters()).new_zeros(1, model.net.channels, model.input_size, model.input_size)
    counter = FlopCounterMode(display=False)
    # Plain attention: torch 2.11 does not count the fused kernel of the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.logits(image)
    return int(counter.get_total_flops())


def _family(spec: ModelSpec) -> Family:
    source, found = spec.source, None
    if source == "python":
        return user_modules.family(spec)
    if source == "builtin":
        found = BUILTIN.get(spec.id)
    elif LIBRARIES[source].hub_ids and re.search(r"[/:]", spec.id):
        found = LIBRARIES[source].family_of_config(spec.id, weights.config_of(spec))
    else:
        found = LIBRARIES[source].family(spec.id)
    if found is not None:
        return found
    known = _known(source)
    here = ", ".join(known) if len(known) < 10 else f"{len(known)}, such as {', '.join(known[:3])}"
    elsewhere = [other for other in ("builtin", *LIBRARIES) if other != source and spec.id in _known(other)]
    alike = [name for name in known if name.startswith(spec.id)]
    hint = did_you_mean(close(spec.id, known, most=1)).capitalize()
    if elsewhere:
        hint = f"Set source: {elsewhere[0]} for {spec.id}."
    elif alike:
        hint = f"Names that begin like it: {', '.join(alike[:5])}."
    raise ModelError(f"{source} has no model with id {spec.id!r}; it has {here}", hint=hint)


def _known(source: str) -> list[str]:
    try:
        return list(BUILTIN if source == "builtin" else LIBRARIES[source].names())
    except ModelError:  # timm is not installed
        return []


def _tap_indices(spec: ModelSpec, net: Network) -> tuple[int, ...]:
    if spec.taps is None:
        return tuple(range(len(net.taps)))
    known = {tap.name: index for index, tap in enumerate(net.taps)}
    indices = [known.get(tap, len(net.taps)) if isinstance(tap, str) else tap for tap in spec.taps]
    if not indices or max(indices) >= len(net.taps):
        hint = f"Its taps are {', '.join(f'{i} ({tap.name})' for i, tap in enumerate(net.taps))}."
        raise ModelError(f"taps = {spec.taps} must be at least one index from 0 to {len(net.taps) - 1}", hint=hint)
    return tuple(indices)


def _affine(spec: ModelSpec, channels: int, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor] | None:
    """Fold `x * std + mean` and `(. - own mean) / own std` into one scale and shift, each 1 x channels x 1 x 1."""
    if spec.mean is None or spec.std is None:
        return None
    if len(spec.mean) != channels:
        hint = f"Give {channels} of each, or set normalize: source."
        raise ModelError(f"mean and std hold {len(spec.mean)}, the network's channels number {channels}.", hint=hint)
    source_mean, source_std = (t.detach().to("cpu", torch.float64).expand(channels) for t in (mean, std))
    own_mean, own_std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
    scale, shift = source_std / own_std, (source_mean - own_mean) / own_std
    return scale.float().view(1, -1, 1, 1), shift.float().view(1, -1, 1, 1)
