"""The condenser: HMDC (Moon, Kim and Park, ECCV 2024) from a loaded source to a condensed set."""

from hmdc_hub.condense.plan import Plan, check_size, plan, planned
from hmdc_hub.condense.ranks import Ranks
from hmdc_hub.condense.run import condense, make_start

__all__ = ["Plan", "Ranks", "check_size", "condense", "make_start", "plan", "planned"]
