"""The masks of a spec, held against torch.nn.utils.prune."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from tersor.errors import SpecError, TensorError
from tersor.spec import Prune
from tersor.tensor.pruning import Prunable, gradient_score, prune_masks, summed

LAYERS = [nn.Linear(20, 30), nn.Conv2d(6, 8, 3), nn.Linear(5, 7, dtype=torch.float64)]


@pytest.fixture(params=range(len(LAYERS)))
def layer(request):
    torch.manual_seed(request.param)
    one = deepcopy(LAYERS[request.param])
    one.reset_parameters()
    return one


def mask_of(layer, seed=0, **given):
    generator = torch.Generator().manual_seed(seed)
    return prune_masks([Prunable("w", layer.weight)], Prune(**given), generator=generator)[0]


def agrees(layer, mask):
    return np.array_equal(layer.weight_mask.bool().numpy(), mask)


AMOUNTS = [{"fraction": 0.1}, {"fraction": 0.5}, {"fraction": 0.93}, {"count": 1}, {"count": 3}]


@pytest.mark.parametrize("amount", AMOUNTS, ids=str)
@pytest.mark.parametrize("seed", [0, 7])
def test_random_weights_are_those_of_torch(layer, amount, seed):
    mask = mask_of(layer, seed, importance="random", **amount)
    torch.manual_seed(seed)
    prune.random_unstructured(layer, "weight", amount=next(iter(amount.values())))
    assert agrees(layer, mask)


@pytest.mark.parametrize("amount", AMOUNTS[1:], ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_random_slices_are_those_of_torch(layer, amount, axis):
    if amount == {"fraction": 0.93} and layer.weight.shape[axis] < 10:
        return  # all of them: refused here
    if amount == {"count": 3} and layer.weight.shape[axis] == 3:
        return
    mask = mask_of(layer, 5, importance="random", granularity="channel", axis=axis, **amount)
    torch.manual_seed(5)
    prune.random_structured(layer, "weight", amount=next(iter(amount.values())), dim=axis)
    assert agrees(layer, mask)


@pytest.mark.parametrize("norm", [1, 2, 3.5, "inf"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("fraction", [0.3, 0.5])
def test_slices_of_least_norm_are_those_of_torch(layer, norm, axis, fraction):
    mask = mask_of(layer, granularity="channel", axis=axis, norm=norm, fraction=fraction)
    prune.ln_structured(layer, "weight", amount=fraction, n=float(norm), dim=axis)
    assert agrees(layer, mask)


def test_magnitude_alone_and_together_is_that_of_torch():
    model = nn.Sequential(nn.Linear(9, 20), nn.Conv2d(3, 4, 3))
    held = [Prunable(str(at), layer.weight) for at, layer in enumerate(model)]
    step = Prune(fraction=0.6, scope="global")
    masks = prune_masks(held, step)
    alone = [mask_of(layer, fraction=0.6) for layer in model]
    together = deepcopy(model)
    prune.global_unstructured([(one, "weight") for one in together], prune.L1Unstructured, amount=0.6)
    for layer, whole, mask, own in zip(model, together, masks, alone, strict=True):
        assert agrees(whole, mask)
        prune.l1_unstructured(layer, "weight", amount=0.6)
        assert agrees(layer, own)


def test_random_weights_of_all_layers_together_are_those_of_torch():
    model = nn.Sequential(nn.Linear(9, 20), nn.Conv2d(3, 4, 3))
    held = [Prunable(str(at), layer.weight) for at, layer in enumerate(model)]
    step = Prune(fraction=0.6, scope="global", importance="random")
    masks = prune_masks(held, step, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    prune.global_unstructured([(one, "weight") for one in model], prune.RandomUnstructured, amount=0.6)
    assert all(agrees(layer, mask) for layer, mask in zip(model, masks, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.floats(0, 0.9))
def test_blocks_go_as_a_whole_and_the_least_first(rows, columns, high, wide, fraction):
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    step = Prune(fraction=fraction, granularity="block", block_size=(high, wide), norm=1, scope="global")
    (mask,) = prune_masks([Prunable("w", values)], step)
    blocks = [
        (mask[at : at + high, to : to + wide], values[at : at + high, to : to + wide].abs().mean())
        for at in range(0, rows, high) for to in range(0, columns, wide)
    ]  # fmt: skip
    assert all(kept.all() or not kept.any() for kept, _ in blocks)
    gone = [float(mean) for kept, mean in blocks if not kept.any()]
    stay = [float(mean) for kept, mean in blocks if kept.any()]
    assert len(gone) == min(round(fraction * len(blocks)), len(blocks) - 1)
    assert not gone or not stay or max(gone) <= min(stay) + 1e-6


def test_slices_of_layers_of_different_sizes_are_compared_by_their_mean():
    small, large = torch.full((2, 2), 1.0), torch.full((3, 50), 0.5)
    step = Prune(count=2, granularity="channel", scope="global")
    masks = prune_masks([Prunable("small", small), Prunable("large", large)], step)
    assert masks[0].all() and [one.any() for one in masks[1]] == [False, False, True]


def test_of_layers_that_are_ranked_together_each_keeps_its_best_slice_that_was_not_pruned_before():
    step = Prune(count=7, granularity="channel", scope="global", importance="taylor")
    one, other = torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.tensor([4.0, 2.0, 3.0])
    kept = np.array([[False], [True], [True]])
    found = prune_masks([Prunable("a", torch.ones(4, 1), None, one),
                         Prunable("b", torch.ones(3, 1), kept, other)], step)  # fmt: skip
    assert [mask[:, 0].tolist() for mask in found] == [[False, False, False, True], [False, False, True]]
    nothing = np.zeros((3, 1), np.bool_)
    (mask,) = prune_masks([Prunable("b", torch.ones(3, 1), nothing, other)], replace(step, count=3))
    assert not mask.any()


@pytest.mark.parametrize("given", [{"fraction": 0.9}, {"count": 3}, {"threshold": 99.0}])
def test_a_layer_of_which_nothing_would_be_left_is_named(given):
    with pytest.raises(SpecError, match="all 3 channels of fc would be pruned, and nothing would pass"):
        prune_masks([Prunable("fc", torch.ones(3, 4))], Prune(granularity="channel", **given))


def test_more_than_there_is():
    with pytest.raises(SpecError, match="count is 5: there are 3 channels to prune"):
        prune_masks([Prunable("fc", torch.ones(3, 4))], Prune(granularity="channel", count=5))
    with pytest.raises(SpecError, match="13 weights are to be pruned of 12"):
        prune_masks([Prunable("fc", torch.ones(3, 4))], Prune(count=13))


def test_nan_is_named_in_every_granularity():
    bad = torch.full((4, 4), float("nan"))
    for units in ({"granularity": "channel"}, {"granularity": "block", "block_size": (2, 2)}, {}):
        with pytest.raises(TensorError, match="NaN"):
            prune_masks([Prunable("fc", bad)], Prune(fraction=0.5, **units))
    with pytest.raises(TensorError, match=r"^fc: 16 of 16"):
        prune_masks([Prunable("fc", bad)], Prune(pattern="2:4"))


def test_a_slice_without_a_weight_left_goes_first():
    values = torch.tensor([[0.0, 0.0], [5.0, 5.0], [1.0, 0.0]])
    kept = np.array([[True, True], [False, False], [True, True]])
    step = Prune(count=1, granularity="channel")
    assert prune_masks([Prunable("fc", values, kept)], step)[0][:, 0].tolist() == [True, False, True]


def test_scores_of_units_are_taken_together():
    weight, gradient = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([[2.0, -1.0], [1.0, 1.0]])
    element = Prune(fraction=0.5, importance="taylor")
    channel = Prune(fraction=0.5, importance="taylor", granularity="channel")
    assert gradient_score(weight, gradient, element).tolist() == [[2, 2], [3, 1]]
    assert gradient_score(weight, gradient, channel).tolist() == [0, 4]  # their effects cancel out
    for kind, expected in (("movement", [0, -4]), ("fisher", [8, 10])):
        step = Prune(fraction=0.5, importance=kind, granularity="channel")
        assert gradient_score(weight, gradient, step).tolist() == expected
    assert summed(weight, channel).tolist() == [3, 4]
