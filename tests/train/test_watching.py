import pytest
import torch
from torch import nn

from tersor.errors import TargetError
from tersor.model.attach import attach_mask
from tersor.model.inputs import Inputs
from tersor.model.program import GraphModel
from tersor.model.storage import storages
from tersor.model.trace import trace
from tersor.train.watching import Watched, matched_paths, watch

X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, inward, outward):
        super().__init__()
        self.conv = nn.Conv2d(inward, outward, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x)) * 2


def net():
    torch.manual_seed(0)
    return nn.Sequential(Block(1, 2), Block(2, 3), nn.Flatten(), nn.Linear(108, 3))


def graph(model):
    return GraphModel(model, trace(model, Inputs((X,), {}, ((0,),))))


def test_a_graph_is_read_where_modules_end():
    model = net().eval()
    run, watched = watch(graph(model), ["0", "1.conv", "1", "3"])
    output = run(X)
    first = model[0](X)
    assert torch.allclose(watched.result("0"), first)
    assert torch.allclose(watched.result("1.conv"), model[1].conv(first))
    assert torch.allclose(watched.result("1"), model[1](first))
    assert torch.equal(watched.result("3"), output) and torch.allclose(output, model(X))


def test_gradients_flow_to_what_made_the_result():
    for make in (graph, lambda model: model):
        model = net()
        run, watched = watch(make(model), ["0"])
        run(X)
        watched.result("0").sum().backward()
        assert model[0].conv.weight.grad.abs().sum() > 0 and model[1].conv.weight.grad is None


def test_a_module_of_a_graph_that_computes_nothing_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Identity())
    with pytest.raises(TargetError, match=r"'1' computes nothing in the graph"):
        watch(graph(model), ["1"])


def test_a_module_of_a_graph_that_hands_on_several_values_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu())

    with pytest.raises(TargetError, match=r"'conv' hands on 2 values in the graph"):
        watch(graph(Twice()), ["conv"])


def test_nothing_is_left_on_a_model_that_is_watched_no_more():
    model = net()
    _, watched = watch(model, ["0", "1"])
    model(X)
    watched.close()
    assert not any(one._forward_hooks for one in model.modules())
    with pytest.raises(TargetError, match="'0' is not called by forward"):
        watched.result("0")


def test_patterns_match_the_outermost_modules_in_order_and_no_parametrization():
    model = net()
    for one in storages(model):
        if one.name.endswith("weight"):
            attach_mask(model, one, torch.ones(one.shape, dtype=torch.bool).numpy())
    assert matched_paths(model, "*", "student") == ("0", "1", "2", "3")
    assert matched_paths(model, "*.conv", "student") == ("0.conv", "1.conv")
    assert matched_paths(model, "re:[13]", "student") == ("1", "3")
    with pytest.raises(TargetError, match=r"'block\*' matches no module of the teacher. Known: 0, 0.conv"):
        matched_paths(model, "block*", "teacher")


@pytest.mark.parametrize("wrap", [lambda x: (x, 1), lambda x: {"hidden": x, "other": 1}])
def test_the_first_of_several_results_counts(wrap):
    class Wrapped(nn.Module):
        def forward(self, x):
            return wrap(x)

    module = Wrapped()
    watched = Watched({"0": module})
    module(X)
    assert watched.result("0") is X


def test_the_last_of_several_calls_counts():
    module = nn.ReLU()
    watched = Watched({"0": module})
    module(-X)
    assert torch.equal(watched.result("0") if module(X) is not None else X, X.relu())


def test_results_that_cannot_be_compared_are_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    module = Odd()
    watched = Watched({"odd": module})
    module(X)
    with pytest.raises(TargetError, match=r"'odd' gives torch.int64"):
        watched.result("odd")


def test_a_result_that_is_written_over_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
    _, watched = watch(model, ["0", "1"])
    with torch.no_grad():
        model(X)
    with pytest.raises(TargetError, match="'0' gives is written over in place"):
        watched.result("0")
    assert watched.result("1").min() == 0
