"""Reads and writes what a run leaves: run directories, condensed.safetensors, train.parquet, packages, Hub datasets.

The formats are described in docs/formats.md. What needs torch or huggingface_hub is imported on first use, so that
listing runs and packaging do not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hmdc_hub.store.configs import (
    SCORES_CONFIG,
    choose,
    configs_of,
    read_card,
    read_card_text,
    refuse_links,
    split_card,
)
from hmdc_hub.store.files import (
    TEMPORARY,
    atomic,
    cache_folder,
    json_text,
    put,
    read_confusion,
    read_info,
    read_record,
    read_scores,
    refuse_newer,
    sha256_file,
    workplace,
    write_bytes_atomic,
    write_confusion,
    write_json_atomic,
    write_text_atomic,
)
from hmdc_hub.store.journal import Journal
from hmdc_hub.store.rundir import RunDir, RunEntry, RunState, is_run, list_runs, remove

if TYPE_CHECKING:
    from hmdc_hub.store.condensed import (
        METADATA_KEY,
        Parts,
        check_header,
        content_digest,
        in_order,
        read_classes,
        read_condensed,
        read_header,
        training_shape,
        write_classes,
        write_condensed,
        write_tensors,
    )
    from hmdc_hub.store.dataset import CondensedDataset, ImageDataset, load
    from hmdc_hub.store.download import Downloaded, download_package
    from hmdc_hub.store.hub_errors import reading, without_network
    from hmdc_hub.store.parquet import (
        iter_sizes,
        measure,
        png_bytes,
        read_parquet,
        to_uint8,
        write_parquet,
        write_parquet_parts,
    )

_LATER = {
    "condensed": "METADATA_KEY Parts check_header content_digest in_order read_classes read_condensed read_header "
    "training_shape write_classes write_condensed write_tensors",
    "dataset": "CondensedDataset ImageDataset load",
    "download": "Downloaded download_package",
    "hub_errors": "reading without_network",
    "parquet": "iter_sizes measure png_bytes read_parquet to_uint8 write_parquet write_parquet_parts",
}
_HOMES = {name: f"hmdc_hub.store.{module}" for module, names in _LATER.items() for name in names.split()}

__all__ = [
    "METADATA_KEY", "SCORES_CONFIG", "TEMPORARY", "CondensedDataset", "Downloaded", "ImageDataset",
    "Journal", "Parts", "RunDir", "RunEntry", "RunState", "atomic", "cache_folder", "check_header", "choose",
    "configs_of", "content_digest", "download_package", "in_order", "is_run", "iter_sizes", "json_text",
    "list_runs", "load", "measure", "png_bytes", "put", "read_card", "read_card_text", "read_classes",
    "read_condensed", "read_confusion", "read_header", "read_info", "read_parquet", "read_record", "read_scores",
    "reading", "refuse_links", "refuse_newer", "remove", "sha256_file", "split_card", "to_uint8", "training_shape",
    "without_network", "workplace", "write_bytes_atomic", "write_classes", "write_condensed", "write_confusion",
    "write_json_atomic", "write_parquet", "write_parquet_parts", "write_tensors", "write_text_atomic",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hmdc_hub.store' has no attribute {name!r}")
