"""Refuse sources that show nothing: images all alike, as white drawings laid over white are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hmdc_hub.errors import SourceError
from hmdc_hub.schema import SourceSpec
from hmdc_hub.sources.bank import ClassBank
from hmdc_hub.sources.convert import Ground, to_pixels
from hmdc_hub.sources.decode import open_image
from hmdc_hub.sources.reader import Encoded

_CHUNK = 256

_SAMPLE = 64
"""Images of a class that are looked at again, to see whether another background shows something."""


def check_varied(bank: ClassBank, names: Sequence[str], spec: SourceSpec, image: Callable[[int], Encoded]) -> None:
    """Refuse images to condense that are all equal, or all equal in a class of two or more.

    Args:
        bank: Decoded images.
        names: Of its classes.
        spec: How they were decoded.
        image: Gives image k of the bank as it was before.

    Raises:
        SourceError: They are; says whether another background would show them.
    """
    images = bank.images.numpy()
    if len(images) > 1 and all_equal(images):
        what, rows = f"all {len(images)} images of the source", range(len(images))
    elif flat := equal_classes(images, bank.offsets):
        rows = range(bank.offsets[flat[0]], bank.offsets[flat[0] + 1])
        others = f", and those of each of {len(flat) - 1} other classes," if len(flat) > 1 else ""
        what = f"all {len(rows)} images of class {names[flat[0]]!r}{others}"
    else:
        return
    what += " are blank, of one colour" if is_blank(images[rows[0]]) else " are equal"
    other: Ground = "black" if spec.background == "white" else "white"
    sample = [open_image(image(row)) for row in rows[:: -(-len(rows) // _SAMPLE)]]
    convert = partial(to_pixels, size=spec.size, channels=spec.channels, fit=spec.fit, background=other)
    if not all_equal(np.stack([convert(one) for one in sample])):
        raise SourceError(
            f"{what}: what they show lies on transparent ground and vanishes on {spec.background}",
            hint=f"Lay them over the other colour:  source.background: {other}",
        )
    raise SourceError(
        f"{what}, at {spec.size} x {spec.size} pixels; there is nothing in them to learn from",
        hint="Look at these files, and whether the image column is the right one; put others in their place, or leave "
        "the class out.",
    )


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Tell whether an image, uint8 channels x side x side, has one colour."""
    return bool((pixels == pixels[:, :1, :1]).all())


def all_equal(images: NDArray[np.uint8]) -> bool:
    """Tell whether N images, uint8 N x channels x side x side, are all equal; stops at the first that is not."""
    return all(bool((images[k : k + _CHUNK] == images[0]).all()) for k in range(0, len(images), _CHUNK))


def equal_classes(images: NDArray[np.uint8], offsets: Sequence[int]) -> list[int]:
    """List the classes of two images or more that are all equal.

    Args:
        images: uint8 N x channels x side x side, class after class.
        offsets: C + 1 numbers; class c is rows `offsets[c]` to `offsets[c + 1]`.
    """
    spans = enumerate(pairwise(offsets))
    return [c for c, (start, stop) in spans if stop - start > 1 and all_equal(images[start:stop])]
