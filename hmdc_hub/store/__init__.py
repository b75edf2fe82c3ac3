"""Reads and writes what a run leaves: run directories, condensed.safetensors, train.parquet, packages, Hub ids.

The formats are described in docs/formats.md. Names that need torch are imported on first use, so that listing runs and
packaging do not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hmdc_hub.store.files import (
    atomic,
    read_info,
    read_scores,
    sha256_file,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from hmdc_hub.store.rundir import RunDir, RunState
from hmdc_hub.store.runs import RunEntry, list_runs, remove

if TYPE_CHECKING:
    from hmdc_hub.store.condensed import (
        read_classes,
        read_condensed,
        read_header,
        training_shape,
        write_classes,
        write_condensed,
    )
    from hmdc_hub.store.loading import CondensedSet, DecodedSet, load
    from hmdc_hub.store.parquet import read_parquet, to_uint8, write_parquet, write_parquet_parts
    from hmdc_hub.store.tensors import Parts, content_digest, in_order, write_tensors

__all__ = [
    "CondensedSet",
    "DecodedSet",
    "Parts",
    "RunDir",
    "RunEntry",
    "RunState",
    "atomic",
    "content_digest",
    "in_order",
    "list_runs",
    "load",
    "read_classes",
    "read_condensed",
    "read_header",
    "read_info",
    "read_parquet",
    "read_scores",
    "remove",
    "sha256_file",
    "to_uint8",
    "training_shape",
    "write_bytes_atomic",
    "write_classes",
    "write_condensed",
    "write_json_atomic",
    "write_parquet",
    "write_parquet_parts",
    "write_tensors",
    "write_text_atomic",
]

_HOMES = {
    "CondensedSet": "hmdc_hub.store.loading",
    "DecodedSet": "hmdc_hub.store.loading",
    "load": "hmdc_hub.store.loading",
    "read_classes": "hmdc_hub.store.condensed",
    "read_condensed": "hmdc_hub.store.condensed",
    "read_header": "hmdc_hub.store.condensed",
    "training_shape": "hmdc_hub.store.condensed",
    "write_classes": "hmdc_hub.store.condensed",
    "write_condensed": "hmdc_hub.store.condensed",
    "read_parquet": "hmdc_hub.store.parquet",
    "to_uint8": "hmdc_hub.store.parquet",
    "write_parquet": "hmdc_hub.store.parquet",
    "write_parquet_parts": "hmdc_hub.store.parquet",
    "Parts": "hmdc_hub.store.tensors",
    "content_digest": "hmdc_hub.store.tensors",
    "in_order": "hmdc_hub.store.tensors",
    "write_tensors": "hmdc_hub.store.tensors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hmdc_hub.store' has no attribute {name!r}")
