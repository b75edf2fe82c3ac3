"""Reads and writes what a run leaves: run directories, condensed.safetensors, train.parquet, packages, Hub datasets.

The formats are described in docs/formats.md. What needs torch or huggingface_hub is imported on first use, so that
listing runs and packaging do not wait for it.
"""
