"""The evaluator: trains several architectures on a condensed set and on what it must beat, and scores them."""

from hmdc_hub.evaluate.plan import EvaluationPlan, planned
from hmdc_hub.evaluate.run import assist, evaluate
from hmdc_hub.evaluate.share import Share, parse_share, share_of_torchrun
from hmdc_hub.evaluate.subject import Subject, of_run

__all__ = [
    "EvaluationPlan",
    "Share",
    "Subject",
    "assist",
    "evaluate",
    "of_run",
    "parse_share",
    "planned",
    "share_of_torchrun",
]
