"""The evaluator: trains several architectures on a condensed set and on what it must beat, and scores them."""

from hmdc_hub.evaluator.baselines import EvaluatedSet, TrainingSet, check_counts, hold_out, of_run, training_sets
from hmdc_hub.evaluator.foreign import evaluated_set, refuse_arrays
from hmdc_hub.evaluator.result_log import result_logs
from hmdc_hub.evaluator.run import EvaluationCost, evaluate, planned
