"""One class's part of an image step: from its stored and real images to the gradient of the stored ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hmdc_hub.condense.balance import Balance
from hmdc_hub.condense.match import Objectives, image_derivatives
from hmdc_hub.condense.views import View


def class_gradient(
    objectives: Objectives,
    balance: Balance,
    stored: Tensor,
    real: Tensor,
    label: int,
    view: View,
    *,
    factor: int,
    update: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute one class's part of the image gradient, before normalisation; call it within `plain_attention`.

    Args:
        objectives: Models in evaluation mode and which targets are on.
        balance: Weighs the targets; changed in place when `update`, after everything else has gone well.
        stored: n x ch x H x W, the class's part of S.
        real: B x ch x H x W, the real batch, source-normalised.
        label: The class.
        view: What is drawn for this class and step.
        factor: f.
        update: Whether the balance is updated.

    Returns:
        The gradient, shaped like `stored`; the K targets; each target's mean absolute share (see `Balance.combine`).
    """
    leaf = stored.detach().requires_grad_()
    synthetic = view.synthetic(leaf, factor)
    weights = None if update else balance.weights(label).tolist()
    found = image_derivatives(objectives, view.real(real), synthetic, label, weights)
    # Decoding and augmentation are linear up to a constant: a product with their derivative does the rest.
    gradients = [torch.autograd.grad(synthetic, leaf, g, retain_graph=True)[0] for g in found.gradients]
    losses = torch.stack(found.losses)
    if not update:
        return gradients[0], losses, torch.zeros(len(losses))
    gradient, share = balance.combine(gradients, label)  # last: nothing after it may run out of memory
    return gradient, losses, share


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention plainly: fused kernels have no second derivative.

    The switch is one for the whole process, so it is set around all threads and not in each.
    """
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield
