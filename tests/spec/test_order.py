"""Orders that no model can follow are refused with the recipe; whatever depends on the model is not."""

from dataclasses import replace

import pytest

from tersor.errors import SpecError
from tersor.recipe import apply_sets, load_recipe, preset_names
from tersor.spec import Cluster, Code, Fold, Prune, Quantize, Recipe, Rule, Shrink, Smooth, Train, check_order

TRAIN = Train(epochs=1)
GRADUAL = Prune(fraction=0.5, schedule="gradual", train=TRAIN)
ROUNDS = Prune(fraction=0.5, schedule="iterative", train=TRAIN)
REGROWN = Prune(fraction=0.5, regrow=0.3, train=TRAIN)
BLOCKS = {"granularity": "block", "block_size": 4}
WEIGHTS = Quantize(activations="none", bits=4)
NORMED = Quantize(freeze_norms=0.5, train=TRAIN)

REFUSED = [
    ((Quantize(), Fold()), "fold' comes after 'quantize': activations are quantized already.*fold before"),
    ((Quantize(activations="dynamic"), Shrink(fraction=0.5)), "shrink before you quantize"),
    ((Quantize(), Code(), Shrink(dead=True)), "shrink' comes after 'quantize'"),
    ((Quantize(), ROUNDS), "prune in rounds before the step"),
    ((Quantize(bits=16, rules=(Rule("a", override={"bits": 8}),)), Fold()), "fold before you quantize"),
    ((Cluster(bits=4), GRADUAL), "prune' comes after 'cluster': what it prunes shares its weights already"),
    ((Cluster(bits=4), ROUNDS), "or in one shot"),
    ((Cluster(bits=4, targets=("a", "b")), replace(REGROWN, targets=("b",))), "shares its weights"),
    ((WEIGHTS, REGROWN), "prune with regrow before the step that quantizes it"),
    ((Cluster(bits=4, **BLOCKS), Shrink(fraction=0.5)), "codes lie in blocks of 4"),
    ((replace(WEIGHTS, **BLOCKS), Shrink(macs=0.5)), "remove channels before that step"),
    ((NORMED,), "has freeze_norms and no fold step before it"),
    ((NORMED, Fold()), "no fold step before it"),
    ((Fold(), Cluster(bits=4), NORMED), "quantize without it"),
]
ALLOWED = [
    (Fold(), Smooth(), Quantize()),
    (Quantize(bits=16), Fold()),
    (WEIGHTS, Fold(), Shrink(fraction=0.5), GRADUAL),
    (Quantize(), Prune(fraction=0.5), GRADUAL.__class__(name="again", fraction=0.5, train=TRAIN)),
    (Cluster(bits=4), Prune(fraction=0.5), Shrink(fraction=0.5)),
    (Cluster(bits=4, targets=("a",)), replace(GRADUAL, targets=("b",))),
    (Cluster(bits=4, rules=(Rule("b", skip=True),)), GRADUAL),
    (Cluster(bits=4), replace(GRADUAL, rules=(Rule("b", skip=True),))),
    (replace(WEIGHTS, bits=16), REGROWN),
    (Cluster(bits=4, **BLOCKS), Shrink(dead=True)),
    (Cluster(bits=4, **BLOCKS, targets=("a",)), Shrink(fraction=0.5)),
    (replace(WEIGHTS, **BLOCKS), Cluster(bits=4), Shrink(fraction=0.5)),
    (Fold(), Cluster(bits=4, targets=("a",)), NORMED),
    (Fold(), NORMED),
]


@pytest.mark.parametrize(("steps", "message"), REFUSED)
def test_an_order_that_cannot_be_followed(steps, message):
    with pytest.raises(SpecError, match=message):
        check_order(steps)
    with pytest.raises(SpecError, match=message):
        Recipe(steps=steps)


@pytest.mark.parametrize("steps", ALLOWED)
def test_what_some_model_can_follow_is_allowed(steps):
    check_order(steps)
    assert load_recipe(Recipe(steps=steps)).steps == steps


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_in_order(name):
    check_order(load_recipe(name).steps)


def test_a_change_from_the_command_line_is_checked_too():
    recipe = Recipe(steps=(WEIGHTS, Shrink(fraction=0.5)))
    with pytest.raises(SpecError, match=r"with --set quantize.activations=static: step 'shrink' comes after"):
        apply_sets(recipe, ["quantize.activations=static"])
    with pytest.raises(SpecError, match="comes after"):
        recipe.with_fields("quantize", activations="dynamic")
