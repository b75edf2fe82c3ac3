"""The evaluator: trains several architectures on a condensed set and on what it must beat, and scores them."""

from hmdc_hub.evaluate.plan import EvaluationPlan, plan
from hmdc_hub.evaluate.run import evaluate

__all__ = ["EvaluationPlan", "evaluate", "plan"]
