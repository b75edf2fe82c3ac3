"""The condenser: HMDC (Moon, Kim and Park, ECCV 2024) from a loaded source to a condensed set."""

from hmdc_hub.condenser.cost import CostEstimate, check_size, estimate_cost_stepwise
from hmdc_hub.condenser.ranks import Ranks
from hmdc_hub.condenser.run import condense, make_initialisation
