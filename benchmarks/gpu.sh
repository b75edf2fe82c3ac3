#!/usr/bin/env bash
# Everything that is to be known on one GPU, in at most eight minutes; one Markdown table at the end. Needs no network.
#
#   benchmarks/gpu.sh FOLDER [--seconds 480] [--only evaluation] [--old FOLDER] [--out table.json]
#   benchmarks/gpu.sh "" --device cpu --tiny        # the same items on a CPU, in seconds
#
# FOLDER   CIFAR-10 as parquet files (train and test split)
# --old    the files of commit 2922b06, whose engine is then timed too
#
# Needs Python 3.11 or later (PYTHON names another than python3), torch 2.11 or later with CUDA, torchvision,
# transformers, timm, scikit-learn, scipy, matplotlib, pyarrow and pandas, pytest, and on PYTHONPATH, where pip did not
# install them, what is in these wheels: datasets, multiprocess, dill, pydantic, pydantic-core, typing-inspection,
# annotated-types, typing-extensions, click.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" benchmarks/gpu.py --source "$@"
