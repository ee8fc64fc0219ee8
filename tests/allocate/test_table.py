import numpy as np
import pytest
import torch
from torch import nn

from tersor.allocate.candidates import FAMILIES, Weighed, candidates_of, held_as
from tersor.allocate.table import chosen_rows, estimate, options_of, weighable
from tersor.artifact.forms import coded_bytes
from tersor.errors import SpecError
from tersor.tensor.compressed import Affine, Codebook, Raw


def weighed(shape=(24, 30), name="w", importance=1.0, mask=None):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=draw)
    if mask is not None:
        weight = weight * torch.from_numpy(mask)
    return Weighed(name, weight, np.full(shape, importance, np.float32), mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_candidate_holds_the_tensor_and_finer_ones_lose_less(family):
    tensor = weighed()
    losses = [tensor.loss(held_as(tensor, one)) for one in candidates_of(family)]
    assert all(held_as(tensor, one).shape == (24, 30) for one in candidates_of(family))
    finer = losses if family not in ("sparsity", "rate") else losses[::-1]
    if family == "rate":
        finer = losses
    assert finer == sorted(finer, reverse=True)


def test_forms_are_what_the_steps_make():
    tensor = weighed()
    by_name = {
        one.name: held_as(tensor, one) for one in candidates_of("fp32", "fp16", "bits", "values", "rate")
    }
    assert isinstance(by_name["fp32"].form, Raw) and tensor.loss(by_name["fp32"]) == 0
    assert isinstance(by_name["bits 4"].form, Affine) and isinstance(by_name["values 16"].form, Codebook)
    assert by_name["fp16"].dtype == torch.float32
    assert len(by_name["values 16"].decode().unique()) <= 16


def test_the_loss_weighs_each_change_by_what_it_matters():
    tensor, matters = weighed(), weighed(importance=3.0)
    candidate = candidates_of("bits 3")[0]
    held = held_as(tensor, candidate)
    moved = (held.decode() - tensor.weight).double()
    assert tensor.loss(held) == pytest.approx(0.5 * float((moved**2).sum()), rel=1e-6)
    assert matters.loss(held) == pytest.approx(3 * tensor.loss(held))


@pytest.mark.parametrize("family", ["bits", "rate", "values", "fp16"])
def test_what_is_pruned_stays_so(family):
    mask = np.random.default_rng(0).random((24, 30)) < 0.3
    tensor = weighed(mask=mask)
    for candidate in candidates_of(family)[:6]:
        if candidate.name != "bits 1":
            assert not held_as(tensor, candidate).decode()[~torch.from_numpy(mask)].any()


def test_rows_have_the_coders_bytes_and_become_options():
    tensors = [weighed(name="a"), weighed((40,), name="b", importance=0.1)]
    rows = estimate(tensors, candidates_of("fp32", "bits"), speed="balanced")
    first = next(row for row in rows if (row.tensor, row.candidate) == ("a", "bits 4"))
    assert first.size_bytes == coded_bytes(held_as(tensors[0], candidates_of("bits 4")[0]), "balanced")
    options = options_of(rows)
    assert [one.name for one in options] == ["a", "b"]
    assert options[0].costs.tolist() == [row.size_bytes for row in rows if row.tensor == "a"]
    assert options[1].losses.tolist() == [row.estimated_loss for row in rows if row.tensor == "b"]
    chosen = chosen_rows(rows, options, (0, 4))
    assert (chosen["a"].candidate, chosen["b"].candidate) == ("fp32", "bits 4")


def test_only_what_can_be_compressed_is_weighed():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.empty = nn.Parameter(torch.zeros(0, 4))
            self.count = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)

    assert [one.name for one in weighable(Odd())] == ["fc.weight", "fc.bias"]


def test_unknown_candidates():
    with pytest.raises(SpecError, match="Did you mean 'bits'"):
        candidates_of("bit")
