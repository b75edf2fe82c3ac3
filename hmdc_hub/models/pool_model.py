"""One model of the pool, as condensing and evaluation use it, whatever family its network is of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hmdc_hub import rng
from hmdc_hub.errors import ModelError
from hmdc_hub.models.family import BATCH_NORMS, Network, TapInfo, TapOutput
from hmdc_hub.multi_formation import resize
from hmdc_hub.schema import ModelSpec


class Features(NamedTuple):
    """What a forward pass gives: `logits` B x classes, and one `TapOutput` per selected tap."""

    logits: Tensor
    taps: tuple[TapOutput, ...]


class PoolModel(nn.Module):
    """A network of the pool with its input pipeline, its reset and its training rules; made by `build_model`.

    Forward passes in evaluation mode change nothing, so the model works in `torch.func.functional_call` and under
    double backward; attention then needs `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around it. It starts in
    evaluation mode.

    Args:
        spec: The pool entry.
        make: Builds the network, drawing from torch's global CPU generator.
        net: A network that `make` built.
        taps: Indices into the network's taps; one may stand twice.
        num_classes: Number of classes.
        input_size: Side in pixels of what the network sees.
        affine: Scale and shift, each 1 x channels x 1 x 1, from source-normalised pixels to the network's own; None if
            it takes source-normalised ones.
        pretrained: Values of everything but the classifiers, by the network's names; None: from scratch.

    Attributes:
        taps: The selected taps.
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
        self.taps: tuple[TapInfo, ...] = tuple(net.taps[i] for i in taps)
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

        Args:
            x: B x channels x side x side of any side, float, source-normalised.

        Returns:
            B x network channels x input_size x input_size: resized, grey repeated if the network takes colour, in the
            network's own normalisation.
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

        In bfloat16 all parameters and buffers are cast once for the pass, but those of batch normalisation that learns
        its statistics.

        Args:
            parameters: By name; may be empty.
            x: Prepared images.
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
