"""Random numbers without state: every draw has a generator keyed by what it is for.

`generator(seed, "augment", t, o, c)` gives the same stream in every process and at every resume, so nothing about
random numbers is ever saved, and the order in which classes or models are worked on cannot change a result. Generators
live on the CPU: the same draw on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(seed: int, purpose: str, *key: int | str) -> int:
    """Hash the recipe's seed, what the numbers are for (every caller has a word of its own) and a key to 63 bits."""
    text = "\x1f".join([str(seed), purpose, *(str(part) for part in key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, purpose: str, *key: int | str) -> torch.Generator:
    """Make the CPU generator of one draw, keyed as for `derived_seed` by outer iteration, image step and class, say."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *key))


@contextmanager
def global_seed(gen: torch.Generator) -> Iterator[None]:
    """Run library code that draws from torch's global CPU generator as if it drew from `gen`.

    Model constructors of torchvision and transformers take no generator. The global state is put back afterwards, so
    nothing outside the block notices.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the generators of every GPU too, which nobody puts back.
        torch.default_generator.manual_seed(int(torch.randint(2**62, (1,), generator=gen).item()))
        yield
