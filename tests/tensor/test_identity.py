import pytest
import torch
from torch import nn

from tersor.artifact.io import Reader, save
from tersor.measure.size import dense_bytes
from tersor.model.storage import storages
from tersor.report.model import model_layers
from tersor.tensor.identity import storage_key


def test_views_are_one_tensor_only_in_the_same_layout():
    weight = torch.zeros(3, 3)
    assert storage_key(weight) == storage_key(weight.detach()) == storage_key(weight.view(3, 3))
    others = [weight.T, weight[:2], weight[1:], weight.view(torch.int32), weight.clone(), weight.view(9)]
    assert len({storage_key(weight), *map(storage_key, others)}) == 1 + len(others)
    assert all(storage_key(one)[:2] == storage_key(weight)[:2] for one in others[:2])


def test_lazily_negated_and_conjugated_bits_are_others():
    number = torch.ones(2, dtype=torch.complex64)
    assert storage_key(number) != storage_key(number.conj())
    assert storage_key(number.imag) != storage_key(number.conj().imag)


@pytest.mark.parametrize(
    "one",
    [
        torch.zeros(0, 3),
        torch.zeros(4)[4:],
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
    ],
    ids=["empty", "empty view", "meta", "sparse"],
)
def test_without_memory_a_tensor_is_itself_alone(one):
    assert storage_key(one) == storage_key(one) != storage_key(one.detach().clone())


def test_every_room_ties_the_same_weights(tmp_path):
    def layers():
        return nn.Linear(3, 3, bias=False)

    model = nn.ModuleList([layers() for _ in range(6)])
    model[1].weight = model[0].weight
    model[2].weight.data = model[0].weight.data  # tied by memory alone
    model[3].weight = nn.Parameter(model[0].weight.data.T)  # another layout of the same memory
    model[4].weight = nn.Parameter(torch.zeros(0, 3))
    model[5].weight = nn.Parameter(torch.zeros(0, 3))
    assert [one.aliases for one in storages(model)] == [("1.weight", "2.weight"), (), (), ()]
    save(model, tmp_path / "x")
    with Reader(tmp_path / "x") as reader:
        assert reader.aliases == {"1.weight": "0.weight", "2.weight": "0.weight"}
    assert [layer.tied != () for layer in model_layers(model)] == [False, True, True, False, False, False]
    assert dense_bytes(model) == 2 * 36
