"""Models of the pool: networks of several libraries behind one interface, `PoolModel`."""

from hmdc_hub.models.build import build_for, build_model, forward_flops, known_args, parameter_count
from hmdc_hub.models.family import TapInfo, TapOutput
from hmdc_hub.models.pool_model import Features, PoolModel
from hmdc_hub.models.weights import settle

__all__ = [
    "Features",
    "PoolModel",
    "TapInfo",
    "TapOutput",
    "build_for",
    "build_model",
    "forward_flops",
    "known_args",
    "parameter_count",
    "settle",
]
