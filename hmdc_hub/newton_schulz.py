"""Newton and Schulz's iteration: matrices brought near the orthogonal ones with the same singular vectors.

One round takes every singular value s to the odd polynomial a s + b s^3 + c s^5 and leaves the singular vectors, by
products of matrices alone: no decomposition, so it runs on stacks of matrices, is captured in a CUDA graph like any
other product, and is differentiable everywhere but at zero, also where singular values meet.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Coefficients = tuple[float, float, float]

# As Muon's authors tuned it (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/): fast for small singular
# values; they end in about [0.7, 1.2] and move up and down within.
MUON: Sequence[Coefficients] = 5 * [(3.4445, -4.7750, 2.0315)]
# The one of degree 5 with value 1 and two derivatives of 0 at 1 (Bjorck and Bowie, 1971): it converges to 1, and rises
# everywhere on the way. Singular values from 1/256 of the norm on end above 0.99. Those that are smaller grow by
# 1.875^10 = 537 at most, so that what is rounding in a matrix of low rank stays small, and so does the derivative.
CONVERGENT: Sequence[Coefficients] = 10 * [(15 / 8, -10 / 8, 3 / 8)]

EPSILON = 1e-7  # what a norm is taken for at least


def orthogonalise(matrices: Tensor, rounds: Sequence[Coefficients]) -> Tensor:
    """Bring the singular values of matrices near 1: U S V^T becomes about U V^T.

    Args:
        matrices: float32 or float64, ... x A x B; divided by their Frobenius norms first, so that their size is of no
            matter. Zeros stay zero. Muon's authors iterate in bfloat16; ours are too small for that to be faster.
        rounds: The coefficients a, b and c of each, `MUON` or `CONVERGENT`.

    Returns:
        Shaped like `matrices`.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    for a, b, c in rounds:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = x.mT if tall else x
    return found
