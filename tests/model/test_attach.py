from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.errors import TargetError, TensorError
from tersor.model.attach import attach_codebook, attach_collected_, attach_mask, bake_, collect
from tersor.model.storage import Storage, storages
from tersor.spec import Cluster
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.compressed import Codebook, CompressedTensor, Raw
from tersor.tensor.groups import Granularity
from tersor.tensor.masks import magnitude_mask


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(9, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 12), nn.Linear(12, 5)
    model = nn.Sequential(*layers).to(dtype)
    model[3].bias = model[1].bias
    return model


def weight(model: nn.Module, name: str = "0.weight") -> Storage:
    return next(one for one in storages(model) if one.name == name)


def prune(model: nn.Module, storage: Storage, fraction: float = 0.6) -> None:
    attach_mask(model, storage, magnitude_mask(storage.dense(), fraction=fraction))


def cluster(model: nn.Module, storage: Storage, step: Cluster, latent: bool = False) -> CompressedTensor:
    compressed = cluster_tensor(storage.dense(), step, mask=storage.mask())
    attach_codebook(model, storage, compressed, update=step.update, latent=latent)
    return compressed


def train(model: nn.Module, steps: int, optimizer: str = "AdamW", seed: int = 1) -> None:
    torch.manual_seed(seed)
    model.train()
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    learner = getattr(torch.optim, optimizer)(model.parameters(), lr=3e-3, weight_decay=0.1, **options)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        learner.zero_grad()
        model(torch.randn(16, 9, dtype=dtype)).square().mean().backward()
        learner.step()


VARIANTS = [("gradient", False), ("gradient", True), ("mean", False), ("mean", True)]


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize(("update", "latent"), VARIANTS)
def test_zeros_and_levels_hold_over_1000_steps(update: str, latent: bool, optimizer: str) -> None:
    model = net()
    zeros, compressed = {}, {}
    for storage in storages(model):
        if storage.kind == "weight":
            prune(model, storage)
            zeros[storage.name] = storage.dense() == 0
    first, second, third = (weight(model, name) for name in zeros)
    compressed[second.name] = cluster(model, second, Cluster(bits=2, update=update), latent)
    compressed[third.name] = cluster(
        model, third, Cluster(bits=2, update=update, granularity="channel", axis=0), latent
    )
    start = {name: weight(model, name).dense().clone() for name in zeros}
    for block in range(4):
        train(model, 250, optimizer, seed=block)
        for storage in (first, second, third):
            dense = storage.dense()
            assert torch.isfinite(dense).all()
            assert (dense[zeros[storage.name]] == 0).all()
            assert not torch.equal(dense, start[storage.name])
        assert len(second.dense().unique()) <= 4
        assert all(len(row.unique()) <= 4 for row in third.dense())
        if latent:
            for storage in (second, third):
                held = storage.parametrization
                held[0].assign_(*held.parameters(recurse=False))
    assert (first.dense() == 0).sum() == zeros[first.name].sum()


def test_the_gradient_of_a_centroid_is_the_sum_over_its_members() -> None:
    model = net(torch.float64)
    storage = weight(model)
    step = Cluster(bits=3, granularity="block", block_size=4, keep_zero=True)
    compressed = cluster(model, storage, step)
    inputs = torch.randn(7, 9, dtype=torch.float64)
    (model[0](inputs) ** 3).sum().backward()
    dense = compressed.decode().double().requires_grad_()
    (nn.functional.linear(inputs, dense, model[0].bias) ** 3).sum().backward()
    form = compressed.form
    expected = np.zeros(form.codebook.shape)
    for row in range(12):
        for column in range(9):
            group = row * 3 + column // 4
            expected[group, form.codes[row, column]] += dense.grad[row, column]
    expected[form.codebook == 0] = 0
    torch.testing.assert_close(storage.parametrization.original.grad, torch.from_numpy(expected))


def test_gradcheck_of_the_gather() -> None:
    model = net(torch.float64)
    storage = weight(model)
    prune(model, storage, 0.4)
    cluster(model, storage, Cluster(bits=3))
    shared, book = storage.parametrization[0], storage.parametrization.original
    grad = torch.randn(12, 9, dtype=torch.float64)
    shared(book).backward(grad)
    by_indexing = torch.zeros(book.numel(), dtype=torch.float64)
    by_indexing.index_put_((shared.index.long(),), grad.reshape(-1)[shared.where], accumulate=True)
    torch.testing.assert_close(book.grad.reshape(-1), by_indexing)


def test_mean_update_is_each_weight_alone_then_the_mean() -> None:
    model, oracle = net(), net()
    storage = weight(model)
    compressed = cluster(model, storage, Cluster(bits=2, update="mean"))
    codes = torch.from_numpy(compressed.form.codes.astype(np.int64)).reshape(-1)
    with torch.no_grad():
        oracle[0].weight.copy_(compressed.decode())
    learners = [torch.optim.SGD(one[0].parameters(), lr=0.1, momentum=0.9) for one in (model, oracle)]
    for step in range(20):
        torch.manual_seed(step)
        inputs = torch.randn(16, 9)
        for one, learner in zip((model, oracle), learners, strict=True):
            learner.zero_grad()
            one[0](inputs).square().mean().backward()
            learner.step()
        flat = oracle[0].weight.data.reshape(-1)
        for code in range(4):
            flat[codes == code] = flat[codes == code].mean()
    torch.testing.assert_close(storage.dense(), oracle[0].weight.data)


def test_codes_follow_the_latents() -> None:
    model = net()
    storage = weight(model)
    prune(model, storage, 0.3)
    cluster(model, storage, Cluster(bits=3), latent=True)
    held = storage.parametrization
    book, latent = held.original0, held.original1
    with torch.no_grad():
        latent.copy_(torch.randn_like(latent))
    held[0].assign_(book, latent)
    kept = torch.from_numpy(storage.mask())
    assert (storage.dense()[~kept] == 0).all()
    levels = book.data[~held[0].zero]
    nearest = levels[(latent.data[kept][:, None] - levels).abs().argmin(dim=1)]
    assert torch.equal(storage.dense()[kept], nearest)


def test_pruned_weights_are_not_in_the_code_of_a_value_that_became_zero() -> None:
    model = net()
    storage = weight(model)
    prune(model, storage, 0.3)
    cluster(model, storage, Cluster(bits=3), latent=True)
    held = storage.parametrization
    with torch.no_grad():
        held.original0[0, 0] = 0.0
        held[0].assign_(held.original0, held.original1)
        held.original0[0, 0] = 9.0
    assert (storage.dense()[~torch.from_numpy(storage.mask())] == 0).all()


@pytest.mark.parametrize(("update", "latent"), VARIANTS)
def test_pruned_weights_have_no_part_in_the_gradient(update: str, latent: bool) -> None:
    model = net()
    storage = weight(model)
    prune(model, storage, 0.5)
    model[0](torch.randn(3, 9)).sum().backward()
    pruned = ~torch.from_numpy(storage.mask())
    assert (storage.originals()[0].grad[pruned] == 0).all()
    cluster(model, storage, Cluster(bits=3, update=update), latent)
    model[0](torch.randn(3, 9)).sum().backward()
    if latent or update == "mean":
        grad = storage.originals()[-1].grad
        assert (grad[pruned] == 0).all()
        assert (grad[~pruned] != 0).any()
    else:
        assert (storage.originals()[0].grad[held_zero(storage)] == 0).all()


def held_zero(storage: Storage) -> Tensor:
    zero = storage.parametrization[0].zero
    assert zero.sum() == 1
    return zero


def test_a_zero_that_was_not_pruned_may_be_left_and_taken() -> None:
    model = net()
    storage = weight(model)
    cluster(model, storage, Cluster(bits=2, keep_zero=True), latent=True)
    held = storage.parametrization
    with torch.no_grad():
        held.original1.copy_(torch.where(storage.dense() == 0, held.original0.max(), 0.0))
    was_zero = storage.dense() == 0
    assert was_zero.any()
    held[0].assign_(held.original0, held.original1)
    assert torch.equal(storage.dense() == 0, ~was_zero)


def test_rate_makes_codes_cheaper() -> None:
    model = net()
    storage = weight(model)
    cluster(model, storage, Cluster(bits=4), latent=True)
    held = storage.parametrization
    held[0].assign_(held.original0, held.original1)
    nearest = len(storage.dense().unique())
    held[0].assign_(held.original0, held.original1, rate=0.3)
    assert len(storage.dense().unique()) < nearest


def test_rate_weighs_the_present_codes_against_the_kept_weights() -> None:
    model = net()
    storage = weight(model)
    prune(model, storage, 0.6)
    cluster(model, storage, Cluster(bits=3), latent=True)
    held = storage.parametrization
    book, latent = held.original0, held.original1
    with torch.no_grad():
        latent.copy_(torch.randn_like(latent) * 0.3)
    now, kept = storage.dense(), torch.from_numpy(storage.mask())
    levels, count = now.unique(return_counts=True)
    cost = 0.2 * latent.data[kept].square().mean() * (np.log2(now.numel()) - count.log2())
    distance = (latent.data[..., None] - levels).square()
    held[0].assign_(book, latent, rate=0.2)
    best = levels[(distance + cost).argmin(dim=-1)]
    assert torch.equal(storage.dense(), torch.where(kept, best, 0.0))
    assert not torch.equal(best, levels[distance.argmin(dim=-1)])


@pytest.mark.parametrize(("update", "latent"), VARIANTS)
def test_few_distinct_doubles_stay_exact_in_a_model_and_back(update: str, latent: bool) -> None:
    model = net(torch.float64)
    values = torch.tensor([0.1, 0.1 + 1e-9, -1 / 3, 0.0], dtype=torch.float64)
    wanted = values[torch.arange(12 * 9) % 4].reshape(12, 9)
    model[0].weight.data = wanted.clone()
    cluster(model, weight(model), Cluster(bits=2, update=update), latent)
    assert torch.equal(weight(model).dense(), wanted)
    found = collect(model)
    assert torch.equal(found.tensors["0.weight"].decode(), wanted)
    again = net(torch.float64)
    attach_collected_(again, found, update=update)
    assert torch.equal(weight(again).dense(), wanted)
    bake_(again)
    assert torch.equal(again[0].weight, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("update", "latent"), VARIANTS)
def test_collect_gives_back_what_the_model_holds(update: str, latent: bool, dtype: torch.dtype) -> None:
    model = net(dtype)
    prune(model, weight(model))
    prune(model, weight(model, "3.weight"))
    cluster(model, weight(model, "3.weight"), Cluster(bits=2, update=update), latent)
    cluster(model, weight(model, "4.weight"), Cluster(clusters=5, update=update), latent)
    train(model, 3, "SGD")
    if latent:
        held = weight(model, "4.weight").parametrization
        held[0].assign_(*held.parameters(recurse=False))
    found = collect(model)
    reference = net(dtype).state_dict()
    assert {*found.tensors, *found.aliases} == set(reference)
    assert found.aliases == {"3.bias": "1.bias"}
    assert isinstance(found.tensors["0.weight"].form, Raw)
    assert found.tensors["0.weight"].form.mask is not None
    assert found.tensors["3.weight"].form.codebook.shape[1] <= 4
    assert found.tensors["4.weight"].form.codebook.shape[1] <= 5
    assert found.tensors["1.num_batches_tracked"].decode().dtype == torch.int64
    for storage in storages(model):
        assert torch.equal(found.tensors[storage.name].decode(), storage.dense())
    inputs = torch.randn(4, 9, dtype=dtype)
    before = model.eval()(inputs)
    bake_(model)
    assert set(model.state_dict()) == set(reference)
    assert torch.equal(model(inputs), before)
    assert model[3].bias is model[1].bias
    assert not any("Parametrized" in type(one).__name__ for one in model.modules())
    again = net(dtype)
    attach_collected_(again, found, update=update)
    assert torch.equal(again.eval()(inputs), before)
    assert (again[0].weight == 0).sum() == (model[0].weight == 0).sum()
    second = collect(again)
    for name, tensor in found.tensors.items():
        assert type(second.tensors[name].form) is type(tensor.form)
        assert torch.equal(second.tensors[name].decode(), tensor.decode())
    train(again, 3, "SGD")
    assert torch.equal(again[3].weight == 0, model[3].weight == 0)


def test_collected_tensors_stay_as_they_were() -> None:
    model = net()
    found = collect(model)
    before = found.tensors["0.weight"].decode()
    train(model, 2)
    assert torch.equal(found.tensors["0.weight"].decode(), before)


def test_one_parametrization_a_storage_in_any_order() -> None:
    model = net()
    storage = weight(model)
    cluster(model, storage, Cluster(bits=4))
    clustered = storage.dense().clone()
    prune(model, storage, 0.5)
    kept = torch.from_numpy(storage.mask())
    assert torch.equal(storage.dense(), torch.where(kept, clustered, 0.0))
    assert len(storage.parametrization) == 1
    assert sum(one.numel() for one in model[0].parameters()) <= 12 + 17
    prune(model, storage, 0.7)
    cluster(model, storage, Cluster(bits=2))
    assert len(storage.dense().unique()) <= 4
    assert (storage.dense() == 0).sum() >= round(0.7 * 108)
    train(model, 5)
    assert (storage.dense()[~kept] == 0).all()


def test_pruned_weights_do_not_come_back_with_a_weaker_mask() -> None:
    model = net()
    storage = weight(model)
    prune(model, storage, 0.8)
    prune(model, storage, 0.3)
    assert (storage.dense() == 0).sum() == round(0.8 * 108)


def test_what_does_not_fit_is_refused() -> None:
    model = net()
    storage = weight(model)
    with pytest.raises(TensorError, match=r"0.weight has shape \(12, 9\), its mask \(2, 2\)"):
        attach_mask(model, storage, np.ones((2, 2), np.bool_))
    with pytest.raises(TargetError, match=r"0.weight belongs to another model"):
        attach_mask(deepcopy(model), storage, np.ones((12, 9), np.bool_))
    unaware = cluster_tensor(storage.dense(), Cluster(bits=4))
    prune(model, storage)
    with pytest.raises(TensorError, match="pruned weights would get a value"):
        attach_codebook(model, storage, unaware)
    with pytest.raises(TensorError, match=r"0.weight: the codebook is for"):
        attach_codebook(model, storage, cluster_tensor(weight(model, "4.weight").dense(), Cluster(bits=2)))
    with pytest.raises(TensorError, match="a codebook is asked for"):
        attach_codebook(model, storage, collect(model).tensors["0.weight"])


def test_a_diverged_codebook_is_named() -> None:
    model = net()
    storage = weight(model)
    cluster(model, storage, Cluster(bits=2))
    with torch.no_grad():
        storage.parametrization.original[0, 1] = torch.nan
    with pytest.raises(TensorError, match=r"0.weight: 1 of 4 shared values are NaN or Inf"):
        collect(model)


def test_parameters_that_do_not_train_stay_so() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    storage = weight(model)
    prune(model, storage)
    assert not storage.parametrization.original.requires_grad
    cluster(model, storage, Cluster(bits=2), latent=True)
    assert not any(one.requires_grad for one in storage.parametrization.parameters())
    bake_(model)
    assert not model[0].weight.requires_grad


def test_groups_that_need_fewer_values() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, 2, 3, 4], [0, 0, 5, 5]]))
    storage = weight(model)
    compressed = cluster(model, storage, Cluster(bits=2, granularity="channel"), latent=True)
    assert compressed.form.granularity == Granularity("channel")
    learner = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    for _ in range(30):
        learner.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        learner.step()
        held = storage.parametrization
        held[0].assign_(held.original0, held.original1)
    assert [len(row.unique()) for row in storage.dense()] <= [1, 4, 2]
    assert isinstance(collect(model).tensors["0.weight"].form, Codebook)


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {one.name: one.dense().clone() for one in storages(model)}


def test_copies_are_independent() -> None:
    model = net()
    prune(model, weight(model))
    cluster(model, weight(model, "3.weight"), Cluster(bits=2))
    copy = deepcopy(model)
    before = values_of(model)
    prune(copy, weight(copy, "4.weight"))
    bake_(copy)
    train(copy, 2)
    cluster(copy, weight(copy), Cluster(bits=1))
    for name, value in values_of(model).items():
        assert torch.equal(value, before[name])
    assert weight(model).parametrization is not None
    train(model, 1)
