from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from tersor.errors import SpecError, TensorError
from tersor.tensor.masks import lowest_masks, magnitude_mask, magnitude_masks

shapes = st.lists(st.integers(1, 6), min_size=0, max_size=3).map(tuple)


def weights(shape: tuple[int, ...], seed: int, levels: int = 0) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (made * levels).round() / levels if levels else made


@settings(max_examples=60, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=3), st.floats(0, 0.999), st.integers(0, 99), st.integers(0, 2))
def test_a_fraction_is_met_exactly_and_the_least_go(
    sizes: list[tuple[int, ...]], fraction: float, seed: int, levels: int
) -> None:
    values = [weights(shape, seed + at, levels) for at, shape in enumerate(sizes)]
    masks = magnitude_masks(values, fraction=fraction)
    magnitude = np.concatenate([one.abs().numpy().reshape(-1) for one in values])
    kept = np.concatenate([mask.reshape(-1) for mask in masks])
    assert [mask.shape for mask in masks] == [tuple(one.shape) for one in values]
    assert (~kept).sum() == round(fraction * kept.size)
    if 0 < kept.sum() < kept.size:
        assert magnitude[~kept].max() <= magnitude[kept].min()


@pytest.mark.parametrize("amount", [{"fraction": 0.5}, {"threshold": 0.1}, {"percentile": 50.0}])
def test_scalars_are_ranked_with_the_others(amount: dict[str, float]) -> None:
    values = [torch.tensor(0.0), torch.zeros(3), torch.tensor(2.0)]
    masks = magnitude_masks(values, **amount)
    assert [type(mask) for mask in masks] == [np.ndarray] * 3
    pruned = sum(int((~mask).sum()) for mask in masks)
    assert pruned == {"fraction": 2, "threshold": 4, "percentile": 0}[next(iter(amount))]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(0, 99), st.data())
def test_a_count_prunes_the_first_of_equals(n: int, seed: int, data: st.DataObject) -> None:
    values = weights((n,), seed, levels=1)
    count = data.draw(st.integers(0, n))
    order = np.argsort(values.abs().numpy(), kind="stable")
    expected = np.ones(n, np.bool_)
    expected[order[:count]] = False
    assert np.array_equal(magnitude_mask(values, count=count), expected)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.93])
def test_agrees_with_torch_per_layer_and_globally(fraction: float) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 7))
    together = deepcopy(model)
    parameters = [(layer, "weight") for layer in together]
    prune.global_unstructured(parameters, prune.L1Unstructured, amount=fraction)
    masks = magnitude_masks([layer.weight for layer in model], fraction=fraction)
    for layer, mask in zip(together, masks, strict=True):
        assert np.array_equal(layer.weight_mask.bool().numpy(), mask)
    for layer in model:
        mask = magnitude_mask(layer.weight, fraction=fraction)
        prune.l1_unstructured(layer, "weight", amount=fraction)
        assert np.array_equal(layer.weight_mask.bool().numpy(), mask)


def test_threshold_and_percentile_prune_what_lies_below() -> None:
    values = torch.tensor([[0.5, -0.1], [0.3, -0.7]])
    assert magnitude_mask(values, threshold=0.3).tolist() == [[True, False], [True, True]]
    assert magnitude_mask(values, threshold=0.0).all()
    border = np.percentile([0.5, 0.1, 0.3, 0.7], 40)
    assert np.array_equal(magnitude_mask(values, percentile=40), values.abs().numpy() >= border)
    assert magnitude_mask(values, percentile=0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_dtype_and_memory_layout(dtype: torch.dtype) -> None:
    values = weights((8, 6), 0).to(dtype).t()
    mask = magnitude_mask(values, fraction=0.5)
    assert mask.shape == (6, 8)
    assert (~mask).sum() == 24


@pytest.mark.parametrize("shape", [(0,), (3, 0), (), (1,)])
def test_empty_and_single(shape: tuple[int, ...]) -> None:
    values = torch.full(shape, 2.0)
    assert magnitude_mask(values, fraction=0.4).shape == shape
    assert magnitude_mask(values, percentile=50).all()


def test_refuses_what_has_no_rank() -> None:
    bad = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    with pytest.raises(TensorError, match="2 of 4 values are NaN or Inf"):
        magnitude_mask(bad, fraction=0.5)
    with pytest.raises(TensorError, match="2 of 4 values in tensor 1 are NaN"):
        magnitude_masks([torch.ones(2), bad], threshold=0.1)
    with pytest.raises(TensorError, match=r"2 of 4 values in fc\.weight are NaN"):
        magnitude_masks([torch.ones(2), bad], names=["conv.weight", "fc.weight"], threshold=0.1)


def test_takes_exactly_one_amount_that_is_there() -> None:
    with pytest.raises(SpecError, match="given: none"):
        magnitude_mask(torch.ones(3))
    with pytest.raises(SpecError, match="fraction, count"):
        magnitude_mask(torch.ones(3), fraction=0.5, count=1)
    with pytest.raises(SpecError, match="4 weights are to be pruned of 3"):
        magnitude_mask(torch.ones(3), count=4)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.floats(0, 0.99), st.integers(0, 99))
def test_what_was_pruned_before_goes_first_and_counts(n: int, fraction: float, seed: int) -> None:
    values = weights((n,), seed, levels=1)
    before = np.random.default_rng(seed).random(n) < 0.6
    (mask,) = magnitude_masks([values], kept=[before], fraction=fraction)
    pruned = round(fraction * n)
    assert (~(mask & before)).sum() == max(pruned, (~before).sum())
    (mask,) = lowest_masks([-values.abs() - 1], kept=[before], fraction=fraction)
    assert (~(mask & before)).sum() == max(pruned, (~before).sum())


def test_signed_scores_are_ranked_as_they_are() -> None:
    scores = [torch.tensor([1.0, -3.0, 0.0]), torch.tensor([-1.0])]
    assert [one.tolist() for one in lowest_masks(scores, count=2)] == [[True, False, True], [False]]
    assert lowest_masks(scores, threshold=0.5)[0].tolist() == [True, False, False]
    assert lowest_masks(scores, percentile=50)[0].tolist() == [True, False, True]
    held = lowest_masks(scores, kept=[np.array([True, True, False]), None], percentile=50)
    assert held[0].tolist() == [True, False, False]
