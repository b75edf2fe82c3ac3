"""The optimisers of trainings, and the learning rate over a training.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) is for the hidden weights of a network: matrices,
and convolutions as matrices with one row per output channel. As its authors say, the first layer, classifiers,
embeddings, gains and biases are trained by AdamW. Both have one rate: a step of Muon is scaled to the size of AdamW's
(Liu et al., 2025, arXiv 2502.16982, section 2.2). `torch.optim.Muon` does the same (`match_rms_adamw`), and a
test holds ours to it; but it takes no convolutions, and reads a learning rate that is a tensor back from the device,
which no captured step may do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hmdc_hub.models import PoolModel
from hmdc_hub.newton_schulz import MUON, orthogonalise
from hmdc_hub.schema import EvaluateSpec


def make_optimizer(model: PoolModel, protocol: EvaluateSpec, device: torch.device) -> torch.optim.Optimizer:
    """Make the optimiser of a training of what is trained of a model.

    On a GPU the rate of every group is a tensor there, so that a step can be captured as a CUDA graph once it was
    taken; change it with `set_rate`. Elsewhere it is a number.
    """
    trained, on_gpu = model.trained(), device.type == "cuda"
    parameters = [*trained.values()]
    rate: float | Tensor = model.spec.lr.evaluate
    if on_gpu:
        rate = torch.tensor(rate, device=device)
    decay = protocol.weight_decay
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=protocol.momentum, weight_decay=decay, fused=True)
    hidden = hidden_weights(model) if protocol.optimizer == "muon" else frozenset()
    others = [tensor for name, tensor in trained.items() if name not in hidden]
    adamw = torch.optim.AdamW(others, lr=rate, weight_decay=decay, fused=True, capturable=on_gpu) if others else None
    matrices = [tensor for name, tensor in trained.items() if name in hidden]
    if not matrices:
        assert adamw is not None
        return adamw
    return Muon(matrices, adamw, lr=rate, momentum=protocol.momentum, weight_decay=decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, share: Tensor) -> None:
    """Set the learning rate of all groups to a share, float64 without dimensions, of a rate: in place on a GPU."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].copy_(rate * share)
        else:
            group["lr"] = rate * share.item()


def share_of_rate(protocol: EvaluateSpec, progress: float) -> float:
    """Give the share of the learning rate after a share of the steps, both in [0, 1]."""
    if protocol.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if protocol.schedule == "step":
        return math.prod(protocol.gamma for milestone in protocol.milestones if progress >= milestone)
    return 1.0


def hidden_weights(model: PoolModel) -> frozenset[str]:
    """Name the parameters that Muon is for, as `PoolModel.trained` names them.

    Those are the weights of two dimensions and more, but for classifiers, embeddings, the first layer, and grouped
    convolutions, each of whose channels has a map of its own.
    """
    found = []
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.dim() >= 2 and name.endswith("weight") and not isinstance(module, nn.Embedding):
                found.append((name, getattr(module, "groups", 1) == 1))
    heads = tuple(f"net.{head}." for head in model.net.heads)
    return frozenset(name for name, whole in found[1:] if whole and not name.startswith(heads))


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for matrices, AdamW for the rest, in one optimiser.

    Args:
        matrices: Each A x B x ..., taken as a matrix of A rows.
        rest: The optimiser of everything else; its groups are also groups of this one.
        lr: The rate of a step as AdamW takes it: a matrix moves by 0.2 sqrt(max(A, B)) times it in spectral norm.
        momentum: Of the moving average of gradients.
        weight_decay: Decoupled, as AdamW's.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        rest: torch.optim.Optimizer | None,
        *,
        lr: float | Tensor,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._rest = rest
        for matrix in matrices:
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        self.param_groups += rest.param_groups if rest is not None else []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        group = self.param_groups[0]
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            average = self.state[matrix]["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
            update = matrix.grad.lerp(average, group["momentum"]).flatten(1)
            scale = 0.2 * math.sqrt(max(update.shape[-2:]))
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.sub_((orthogonalise(update, MUON) * (group["lr"] * scale)).reshape(matrix.shape))
        if self._rest is not None:
            self._rest.step()
        return loss
