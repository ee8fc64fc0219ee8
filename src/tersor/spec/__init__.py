"""The frozen words of a plan: what to do, never how.

A :class:`Recipe` is a tuple of steps that run in order. A step that touches tensors has ``targets``
(patterns, any of which may match) and ``rules`` that change its fields for some of them: the last
matching rule wins. A pattern is a glob, or a regular expression after ``re:``; it is held against
the parameter"s name (``fc1.weight``) and against its module"s path (``fc1``).

Recipes in YAML are these same classes, field by field (:mod:`tersor.recipe`).
"""

from tersor.spec.budget import LIMITS, Budget
from tersor.spec.clustering import WEIGHED_BY, Cluster, Init
from tersor.spec.order import AFTER_ACTIVATIONS, NOT_FROM_BLOCKS, NOT_ON_CODES, NOT_ON_GRIDS, check_order
from tersor.spec.pruning import AMOUNTS, FROM_GRADIENTS, FROM_OUTPUTS, WAYS, Importance, Prune
from tersor.spec.quantizing import Fold, Quantize, Smooth
from tersor.spec.recipe import FAMILIES, STEPS, Code, Recipe, Speed, Step, StepT, replace_fields
from tersor.spec.rule import Rule
from tersor.spec.shrinking import SHRINK_AMOUNTS, Shrink
from tersor.spec.training import Distill, Match, Train

__all__ = [
    "AFTER_ACTIVATIONS",
    "AMOUNTS",
    "FAMILIES",
    "FROM_GRADIENTS",
    "FROM_OUTPUTS",
    "LIMITS",
    "NOT_FROM_BLOCKS",
    "NOT_ON_CODES",
    "NOT_ON_GRIDS",
    "SHRINK_AMOUNTS",
    "STEPS",
    "WAYS",
    "WEIGHED_BY",
    "Budget",
    "Cluster",
    "Code",
    "Distill",
    "Fold",
    "Importance",
    "Init",
    "Match",
    "Prune",
    "Quantize",
    "Recipe",
    "Rule",
    "Shrink",
    "Smooth",
    "Speed",
    "Step",
    "StepT",
    "Train",
    "check_order",
    "replace_fields",
]
