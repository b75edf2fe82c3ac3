"""The evaluator: trains several architectures on a condensed set and on what it must beat, and scores them."""

from hmdc_hub.evaluator.array_files import class_folder_lines, find_pairs
from hmdc_hub.evaluator.baselines import TrainingSet, check_counts, hold_out, training_sets
from hmdc_hub.evaluator.cost import EvaluationCost, planned
from hmdc_hub.evaluator.evaluated_set import EvaluatedSet, of_run
from hmdc_hub.evaluator.foreign import evaluated_set, read_set
from hmdc_hub.evaluator.result_log import result_logs
from hmdc_hub.evaluator.run import evaluate
