from dataclasses import replace

import pytest
import torch
from torch import nn

from tersor.errors import SpecError, TargetError, TaskError
from tersor.model.attach import attach_mask
from tersor.model.select import select, storages
from tersor.spec import Cluster, Prune, Rule

HALF = Prune(fraction=0.5)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.norm = nn.LayerNorm(4)
        self.block = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        self.head = nn.Linear(4, 11)
        self.head.weight = self.embed.weight
        self.steps = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


def reasons(model: nn.Module, step: Prune | Cluster) -> dict[str, str]:
    return {one.storage.name: one.reason if one.step is None else "taken" for one in select(model, step)}


def test_weights_are_taken_and_the_rest_says_why() -> None:
    assert reasons(Tied(), HALF) == {
        "steps": "not floating (int64)",
        "embed.weight": "taken",
        "norm.weight": "1-D: norm or bias (name it to include it)",
        "norm.bias": "bias",
        "block.0.weight": "taken",
        "block.0.bias": "bias",
        "block.2.weight": "taken",
        "block.2.bias": "bias",
        "head.bias": "bias",
    }


def test_tied_weights_are_one_storage_under_the_first_name() -> None:
    embed = storages(Tied())[1]
    assert (embed.name, embed.aliases) == ("embed.weight", ("head.weight",))
    assert [site.path for site in embed.sites] == ["embed", "head"]


def test_tied_by_memory_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    assert storages(model)[0].aliases == ("1.weight",)


def test_a_shared_module_has_all_its_paths() -> None:
    layer = nn.Linear(2, 2)
    assert storages(nn.Sequential(layer, layer))[1].aliases == ("1.bias",)


def test_another_layout_of_the_same_memory_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    model[1].weight.data = model[0].weight.data.t()
    assert reasons(model, HALF) == {
        "0.weight": "shares its memory with 1.weight in another layout",
        "1.weight": "shares its memory with 0.weight in another layout",
    }
    with pytest.raises(TargetError, match="shares its memory"):
        select(model, replace(HALF, targets=("0.weight",)))


def test_names_are_the_same_on_a_parametrized_model() -> None:
    model = Tied()
    before = {one.name: one.aliases for one in storages(model)}
    for storage in storages(model):
        if storage.kind == "weight":
            attach_mask(model, storage, torch.ones(storage.shape).bool().numpy())
    assert {one.name: one.aliases for one in storages(model)} == before
    assert reasons(model, HALF).keys() == before.keys()


@pytest.mark.parametrize(
    ("targets", "taken"),
    [
        (("block",), {"block.0.weight", "block.2.weight"}),
        (("block.*",), {"block.0.weight", "block.2.weight"}),
        (("head",), {"embed.weight"}),
        (("head.weight",), {"embed.weight"}),
        (("re:block\\.[02]\\.bias",), {"block.0.bias", "block.2.bias"}),
        (("*.bias",), {"norm.bias", "block.0.bias", "block.2.bias", "head.bias"}),
        (("norm.weight", "embed"), {"norm.weight", "embed.weight"}),
        (("norm",), set()),
    ],
)
def test_targets(targets: tuple[str, ...], taken: set[str]) -> None:
    found = reasons(Tied(), replace(HALF, targets=targets))
    assert {name for name, reason in found.items() if reason == "taken"} == taken


def test_the_last_matching_rule_wins() -> None:
    rules = (
        Rule("block", override={"fraction": 0.9}),
        Rule("block.2", skip=True),
        Rule("head", override={"count": 3}),
        Rule("block.0.bias", override={"fraction": 0.1}),
    )
    found = {one.storage.name: one for one in select(Tied(), replace(HALF, rules=rules))}
    assert found["block.0.weight"].step == replace(HALF, rules=rules, fraction=0.9)
    assert found["block.2.weight"].reason == "rule 'block.2' skips it"
    assert (found["embed.weight"].step.count, found["embed.weight"].step.fraction) == (3, None)
    assert found["block.0.bias"].step.fraction == 0.1


def test_biases_of_a_clustering() -> None:
    found = reasons(Tied(), Cluster(bits=2, biases=True))
    assert found["block.0.bias"] == found["norm.bias"] == "taken"
    assert found["norm.weight"].startswith("1-D")


@pytest.mark.parametrize("pattern", ["blok", "re:blo", "embed.wieght", "block.0.Weight", "block.1"])
def test_a_pattern_that_matches_nothing(pattern: str) -> None:
    with pytest.raises(
        TargetError, match=r"matches no parameter and no module that has any. (Did you mean|Known)"
    ):
        select(Tied(), replace(HALF, targets=(pattern,)))
    with pytest.raises(TargetError, match="matches no parameter"):
        select(Tied(), replace(HALF, rules=(Rule(pattern, skip=True),)))


def test_named_and_impossible() -> None:
    with pytest.raises(TargetError, match="steps is named and cannot be compressed: not floating"):
        select(Tied(), replace(HALF, targets=("steps",)))
    with pytest.raises(TargetError, match="no regular expression"):
        select(Tied(), replace(HALF, targets=("re:(",)))
    with pytest.raises(SpecError, match="rule 'head': prune has no field 'bits'"):
        select(Tied(), replace(HALF, rules=(Rule("head", override={"bits": 3}),)))


def test_a_dtype_that_the_file_has_no_codes_for_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    model[1].weight = nn.Parameter(torch.zeros(2, 2).to(torch.float8_e4m3fn), requires_grad=False)
    found = reasons(model, HALF)
    assert found["0.weight"] == "taken"
    assert found["1.weight"] == "float8_e4m3fn, which the file can only hold as it is"
    with pytest.raises(TargetError, match=r"1.weight is named and cannot be compressed: float8_e4m3fn"):
        select(model, replace(HALF, targets=("1.weight",)))


def test_lazy_and_empty() -> None:
    with pytest.raises(TaskError, match="has no shape yet"):
        storages(nn.LazyLinear(3))
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.empty(0, 2))
    assert reasons(model, HALF)["0.weight"] == "empty"


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> object:
        return {"any": "thing"}


def test_extra_state_is_refused() -> None:
    with pytest.raises(TaskError, match="module '0' has extra state"):
        storages(nn.Sequential(WithExtraState(1, 1)))
