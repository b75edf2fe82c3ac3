"""Reading caches alone, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_network() -> Iterator[None]:
    """Let nothing in this block ask the Hub, as if HF_HUB_OFFLINE were set: what is in no cache is a NetworkError."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
