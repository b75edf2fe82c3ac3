"""Models of the pool: networks of several libraries behind one interface, `PoolModel`."""

from hmdc_hub.models.family import BATCH_NORMS, TapInfo, TapOutput
from hmdc_hub.models.pool_model import Features, PoolModel, build_for, build_model, forward_flops, parameter_count
from hmdc_hub.models.user_modules import register_module
from hmdc_hub.models.weights import settle
