"""The evaluator: trains several architectures on a condensed set and on what it must beat, and scores them."""

from hmdc_hub.evaluate.plan import EvaluationPlan, plan
from hmdc_hub.evaluate.run import evaluate
from hmdc_hub.evaluate.subject import Subject, of_run

__all__ = ["EvaluationPlan", "Subject", "evaluate", "of_run", "plan"]
