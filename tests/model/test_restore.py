from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tersor.errors import TaskError, VerificationError
from tersor.model.attach import Collected, collect
from tersor.model.restore import restore_, trained_model
from tersor.task import Task
from tersor.tensor.compressed import CompressedTensor, raw


class Mixed(nn.Module):
    """Every kind of entry that a ``state_dict`` has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.half = nn.Linear(4, 4).to(torch.bfloat16)
        self.twice = nn.Linear(4, 4, bias=False).double()
        self.again = self.twice
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.none = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("bytes", torch.arange(3, dtype=torch.uint8))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("scratch", torch.ones(2), persistent=False)


def trained() -> Mixed:
    torch.manual_seed(1)
    model = Mixed()
    model.norm.num_batches_tracked.fill_(41)
    model.flags.logical_not_()
    return model


def test_everything_comes_back_and_ties_hold() -> None:
    source, fresh = trained(), Mixed()
    collected = collect(source)
    assert collected.aliases == {"head.weight": "embed.weight", "again.weight": "twice.weight"}
    restore_(fresh, collected.tensors, collected.aliases)
    for name, value in source.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    assert fresh.head.weight is fresh.embed.weight
    with torch.no_grad():
        source.embed.weight.zero_()
    assert fresh.embed.weight.abs().sum() > 0


@pytest.mark.parametrize("name", collect(trained()).tensors)
def test_every_single_tensor_is_missed(name: str) -> None:
    collected = collect(trained())
    tensors = {one: tensor for one, tensor in collected.tensors.items() if one != name}
    fresh = Mixed()
    before = deepcopy(fresh.state_dict())
    with pytest.raises(VerificationError, match=name):
        restore_(fresh, tensors, collected.aliases)
    for one, value in fresh.state_dict().items():
        if value.is_floating_point() or value.is_complex():
            assert torch.isnan(value).all(), one
        elif one != "flags":
            assert not torch.equal(value, before[one]), one
    assert fresh.flags.all()


def test_tensors_are_asked_for_one_at_a_time() -> None:
    collected, asked = collect(trained()), []

    class Watched(dict[str, CompressedTensor]):
        def __getitem__(self, name: str) -> CompressedTensor:
            asked.append(name)
            return super().__getitem__(name)

    restore_(Mixed(), Watched(collected.tensors), collected.aliases)
    assert sorted(asked) == sorted(collected.tensors)


def changed(collected: Collected, **changes: CompressedTensor) -> dict[str, CompressedTensor]:
    return {**collected.tensors, **{name.replace("__", "."): one for name, one in changes.items()}}


def test_what_does_not_fit_is_named() -> None:
    collected = collect(trained())
    double = raw(torch.tensor(1.0).double())
    for tensors, aliases, message in (
        (changed(collected, more=raw(torch.ones(1))), collected.aliases, "no place for more"),
        (changed(collected, scale=raw(torch.ones(1))), collected.aliases, r"scale is \(1,\) torch.float32"),
        (changed(collected, scale=double), collected.aliases, "torch.float64 in the file"),
        (collected.tensors, {"again.weight": "twice.weight"}, "lacks head.weight"),
        (collected.tensors, {**collected.aliases, "head.weight": "scale"}, "one tensor in the model"),
        (changed(collected, head__weight=raw(torch.ones(7, 4))), {"again.weight": "twice.weight"},
         "embed.weight, head.weight are one tensor in the model and several in the file"),
    ):  # fmt: skip
        with pytest.raises(VerificationError, match=message):
            restore_(Mixed(), tensors, aliases)
    short = {name: one for name, one in collected.tensors.items() if name != "embed.weight"}
    with pytest.raises(VerificationError, match="ties a name to x"):
        restore_(Mixed(), short, {**collected.aliases, "embed.weight": "x", "head.weight": "x"})


def task_of(weights: Any, build: Any = Mixed) -> Task:
    return Task(name="toy", build=build, weights=weights, test=[], score=lambda output, batch: output)


@pytest.mark.parametrize("form", ["mapping", "pt", "safetensors"])
def test_trained_model(form: str, tmp_path: Path) -> None:
    source = trained().train()
    state: Any = source.state_dict()
    if form == "pt":
        torch.save(state, tmp_path / "weights.pt")
        state = str(tmp_path / "weights.pt")
    elif form == "safetensors":
        apart = {name: value for name, value in state.items() if name not in ("head.weight", "twice.weight")}
        save_file(apart, tmp_path / "weights.safetensors")
        state = tmp_path / "weights.safetensors"
    model = trained_model(task_of(state))
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert not model.training
    with torch.no_grad():
        model.embed.weight.zero_()
    assert source.embed.weight.abs().sum() > 0
    assert torch.equal(trained_model(task_of(state)).embed.weight, source.embed.weight)


class Opaque:
    """What no state_dict holds."""


def test_weights_that_are_not(tmp_path: Path) -> None:
    good: dict[str, Tensor] = trained().state_dict()
    renamed = {name.replace("norm.w", "nrom.w"): value for name, value in good.items()}
    for name, content in (("nested.pt", {"state_dict": good}), ("list.pt", [1]), ("pickle.pt", Opaque())):
        torch.save(content, tmp_path / name)
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
    (tmp_path / "short.pt").write_bytes((tmp_path / "nested.pt").read_bytes()[:500])
    for weights, message in (
        (tmp_path / "none.pt", "there is no file"),
        (tmp_path / "nested.pt", r"is a (dict|OrderedDict), not a tensor; .* give weights\['state_dict'\]"),
        (tmp_path / "list.pt", "holds a list"),
        (tmp_path / "pickle.pt", "cannot be read as plain tensors"),
        (tmp_path / "text.pt", "cannot be read as plain tensors"),
        (tmp_path / "short.pt", "cannot be read as plain tensors"),
        (tmp_path / "text.safetensors", "cannot be read as plain tensors"),
        (renamed, r"missing norm.weight; unknown nrom.weight. Did you mean 'norm.weight'\?"),
        ({**good, "scale": torch.ones(3)}, "size mismatch for scale"),
    ):  # fmt: skip
        with pytest.raises(TaskError, match=message):
            trained_model(task_of(weights))


def test_build_that_gives_no_module() -> None:
    with pytest.raises(TaskError, match="returned a dict: it has to return"):
        trained_model(replace(task_of({}), build=dict))
