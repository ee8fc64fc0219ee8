"""Every kind of layer under every attachment: forward, backward, deepcopy, export, bake."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tersor.model.attach import attach_codebook, attach_mask, bake_, collect
from tersor.model.restore import restore_
from tersor.model.storage import storages
from tersor.spec import Cluster
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.masks import magnitude_mask

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class First(nn.Module):
    """A module that returns more than a tensor: keep the first."""

    def __init__(self, inner: nn.Module, copies: int = 1) -> None:
        super().__init__()
        self.inner = inner
        self.copies = copies

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(*[inputs] * self.copies)[0]


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.new_zeros(inputs.shape[0], 5)
        for at in range(inputs.shape[1]):
            hidden = self.cell(inputs[:, at], hidden)
        return hidden


class TiedText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 6, padding_idx=0)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.embed(words))))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(4, 4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs, inputs)


class Listed(nn.Module):
    """Parameters that belong to containers and to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ParameterList([torch.randn(4, 4), torch.randn(4, 3)])
        self.named = nn.ParameterDict({"out": torch.randn(3, 5)})

    def forward(self, inputs: Tensor) -> Tensor:
        for weight in self.many:
            inputs = inputs @ weight
        return inputs @ self.named["out"]


WORDS = torch.tensor([[1, 5, 12], [3, 0, 0]])
LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), torch.randn(2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), torch.randn(2, 2, 4, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 3, 3), torch.randn(2, 4, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), torch.randn(2, 4, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), torch.randn(2, 2, 3, 3, 3)),
    "linear": (lambda: nn.Linear(8, 6), torch.randn(3, 8)),
    "bilinear": (Pair, torch.randn(3, 4)),
    "embedding": (lambda: nn.Embedding(13, 5), WORDS),
    "attention": (lambda: First(nn.MultiheadAttention(8, 2, batch_first=True), 3), torch.randn(2, 5, 8)),
    "attention apart": (
        lambda: First(nn.MultiheadAttention(8, 2, kdim=8, vdim=8, add_bias_kv=True), 3),
        torch.randn(5, 2, 8)),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), torch.randn(2, 5, 8)),
    "lstm": (lambda: First(nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)),
             torch.randn(2, 6, 4)),
    "projected lstm": (lambda: First(nn.LSTM(4, 5, proj_size=3)), torch.randn(6, 2, 4)),
    "gru": (lambda: First(nn.GRU(4, 5)), torch.randn(6, 2, 4)),
    "rnn": (lambda: First(nn.RNN(4, 5)), torch.randn(6, 2, 4)),
    "gru cell": (Cells, torch.randn(2, 4, 4)),
    "tied": (TiedText, WORDS),
    "containers": (Listed, torch.randn(3, 4)),
    "weight norm": (lambda: weight_norm(nn.Linear(8, 6)), torch.randn(3, 8)),
}  # fmt: skip


def mask(model: nn.Module, storage: Any) -> None:
    attach_mask(model, storage, magnitude_mask(storage.dense(), fraction=0.5))


def share(model: nn.Module, storage: Any) -> None:
    attach_codebook(model, storage, cluster_tensor(storage.dense(), Cluster(bits=2), mask=storage.mask()))


def mask_then_share(model: nn.Module, storage: Any) -> None:
    mask(model, storage)
    share(model, storage)


def share_with_latent(model: nn.Module, storage: Any) -> None:
    compressed = cluster_tensor(storage.dense(), Cluster(bits=2, granularity="channel"))
    attach_codebook(model, storage, compressed, latent=True)


def share_by_mean(model: nn.Module, storage: Any) -> None:
    attach_codebook(model, storage, cluster_tensor(storage.dense(), Cluster(bits=2)), update="mean")


CASES = [(name, way) for name in LAYERS for way in (mask, mask_then_share)]
FEW = ("linear", "lstm", "attention", "tied")
CASES += [(name, way) for name in FEW for way in (share, share_with_latent, share_by_mean)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].__name__}")
def case(request: pytest.FixtureRequest) -> tuple[str, Callable[[nn.Module, Any], None]]:
    return request.param


@pytest.fixture
def layer(case: Any) -> tuple[Callable[[], nn.Module], Tensor]:
    return LAYERS[case[0]]


@pytest.fixture
def attached(case: Any, layer: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = layer[0]()
    for storage in storages(model):
        if storage.kind == "weight":
            case[1](model, storage)
    return model


def values(model: nn.Module) -> dict[str, Tensor]:
    return {one.name: one.dense().clone() for one in storages(model)}


def test_forward_is_that_of_a_plain_model(attached: nn.Module, layer: Any) -> None:
    build, inputs = layer
    plain = build()
    collected = collect(attached)
    assert {*collected.tensors, *collected.aliases} == set(plain.state_dict())
    restore_(plain, collected.tensors, collected.aliases)
    for training in (True, False):
        expected = plain.train(training)(inputs)
        torch.testing.assert_close(attached.train(training)(inputs), expected)
        with torch.no_grad():  # where attention and the encoder take their fast paths
            torch.testing.assert_close(attached(inputs), plain(inputs))
    copy = deepcopy(attached)
    bake_(copy)
    torch.testing.assert_close(copy(inputs), expected)
    assert [one.name for one in storages(copy)] != []
    assert not any(one.parametrization for one in storages(copy))


def test_backward_reaches_every_parameter_and_a_step_keeps_zeros_and_levels(
    attached: nn.Module, layer: Any
) -> None:
    _, inputs = layer
    before = values(attached)
    learner = torch.optim.AdamW(attached.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        learner.zero_grad()
        attached(inputs).square().sum().backward()
        assert all(one.grad is not None for one in attached.parameters())
        learner.step()
    for storage in storages(attached):
        dense, held = storage.dense(), storage.parametrization
        assert not torch.equal(dense, before[storage.name])
        if held is not None and (kept := storage.mask()) is not None:
            assert (dense[~torch.from_numpy(kept)] == 0).all()
        if held is not None and hasattr(held[0], "zero"):
            assert len(dense.unique()) <= held[0].zero.numel()


def test_a_deepcopy_is_whole_and_apart(attached: nn.Module, layer: Any) -> None:
    _, inputs = layer
    attached(inputs).sum()
    copy = deepcopy(attached)
    assert [(one.name, one.aliases) for one in storages(copy)] == [
        (one.name, one.aliases) for one in storages(attached)
    ]
    torch.testing.assert_close(copy(inputs), attached(inputs))
    before = values(attached)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    bake_(copy)
    for name, value in values(attached).items():
        assert torch.equal(value, before[name])
    assert not torch.equal(copy(inputs), attached(inputs))


def test_beside_a_parametrization_of_someone_elses() -> None:
    model = weight_norm(nn.Linear(8, 6))
    names = [one.name for one in storages(model)]
    assert names == ["bias", "parametrizations.weight.original0", "parametrizations.weight.original1"]
    for storage in storages(model):
        mask(model, storage)
    assert sorted(one.name for one in storages(model)) == sorted(names)
    plain = weight_norm(nn.Linear(8, 6))
    collected = collect(model)
    restore_(plain, collected.tensors, collected.aliases)
    torch.testing.assert_close(model(torch.ones(8)), plain(torch.ones(8)), equal_nan=True)
    bake_(model)
    torch.testing.assert_close(model(torch.ones(8)), plain(torch.ones(8)), equal_nan=True)


def test_state_dict_round_trip(attached: nn.Module, layer: Any) -> None:
    _, inputs = layer
    copy = deepcopy(attached)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    copy.load_state_dict(attached.state_dict())
    torch.testing.assert_close(copy(inputs), attached(inputs))


def test_export(attached: nn.Module, layer: Any) -> None:
    _, inputs = layer
    attached.eval()
    program = torch.export.export(attached, (inputs,))
    torch.testing.assert_close(program.module()(inputs), attached(inputs))
    deepcopy(attached)
