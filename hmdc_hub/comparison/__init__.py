"""Several scored sets side by side: differences with their chance, transfer between models, accuracy by budget.

Two kinds of seeds vary. *Evaluation seeds* draw weights and minibatches of the trainings; they are part of the
protocol, so under one protocol they pair: equal seeds start alike whatever is trained on. *Condensing seeds* make other
images by the same recipe; those of different recipes have nothing in common. What is said of a recipe must hold for the
images that it makes next time, so where there are several condensing seeds, means are taken over evaluation seeds first
and the spread is the one between condensing runs. (All of these are trained on with the same evaluation seeds: what the
seeds have in common moves every mean, and shows in no spread.)
"""

from hmdc_hub.comparison.chance import Difference, holm, paired, welch
from hmdc_hub.comparison.compare import Baseline, Comparison, Group, Pair, compare
from hmdc_hub.comparison.sets import ScoredSet

__all__ = [
    "Baseline",
    "Comparison",
    "Difference",
    "Group",
    "Pair",
    "ScoredSet",
    "compare",
    "holm",
    "paired",
    "welch",
]
