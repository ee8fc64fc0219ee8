"""Which channels go together: what is known of small nets, and what another library finds."""

import pytest
import torch
import torch.nn.functional as F
from tests.narrow_nets import NETS, inputs_of, trained
from torch import nn

from tersor.errors import TaskError
from tersor.model.coupling_rules import couple
from tersor.model.inputs import Inputs
from tersor.model.shrink import check_same, groups_of, masked, remove, shrunk
from tersor.model.units import Units


def coupled(model, x):
    return couple(model.eval(), Inputs((x,), {}, ((0,),), ((),)))


def units(found, name, axis=0):
    return found.units.find(found.axes[name, axis]).tolist()


def test_units_are_joined_and_fixed_once_for_all():
    units = Units()
    a, b, c = (units.fresh(2) for _ in range(3))
    units.join(a, b)
    units.fix(b[:1], "first")
    units.join(b, c)
    units.fix(a[:1], "second")
    assert units.find(c).tolist() == units.find(a).tolist()
    assert units.reason(int(c[0])) == "first" and units.reason(int(c[1])) == ""
    assert units.free(torch.cat((a, b, c))).tolist() == [False, True] * 3
    assert units.find(torch.tensor(0)) == 0


def test_channels_that_the_models_own_code_pads_go_with_those_that_they_meet():
    found = coupled(trained(NETS["resnet20"][0]), inputs_of("resnet20"))
    first = units(found, "0.weight")
    assert units(found, "6.conv2.weight")[8:24] == first and units(found, "9.conv2.weight")[24:40] == first
    assert units(found, "9.conv2.weight")[16:48] == units(found, "8.conv2.weight")
    free = found.units.free(found.axes["11.conv2.weight", 0])
    assert free.tolist() == [24 <= at < 40 for at in range(64)]
    residual, *inner, last = groups_of(found)
    assert len(residual.layers) == 10 and len(residual.units) == 16
    assert [len(one.units) for one in inner] == [16] * 3 + [32] * 3 + [64] * 3
    assert (last.layers, last.reason) == (("14.weight",), "output of the model")


def test_groups_of_convolutions_lose_the_same_of_each():
    found = coupled(trained(NETS["grouped"][0]), inputs_of("grouped"))
    assert units(found, "first.weight") == units(found, "first.weight")[:4] * 4
    assert len(set(units(found, "grouped.weight"))) == 3  # 4 groups, and 2 parts of what is shuffled
    assert units(found, "wide.weight", 1) == units(found, "slope.weight") == units(found, "head.weight", 1)


def test_depthwise_convolutions_make_what_they_read():
    found = coupled(trained(NETS["separable"][0]), inputs_of("separable"))
    assert units(found, "first.weight") == units(found, "deep.weight") == units(found, "norm2.running_var")
    twice = units(found, "twice.weight")
    assert twice[::2] == twice[1::2] == units(found, "point.bias")


def test_concatenation_keeps_places_and_parts_go_together():
    found = coupled(trained(NETS["dense"][0]), inputs_of("dense"))
    a, b, c = (units(found, f"{name}.weight") for name in "abc")
    norm = units(found, "norm.weight")
    assert norm == a + b + c == units(found, "gate.weight") and units(found, "c.weight", 1) == a + b
    assert norm[:10] == norm[10:]
    assert units(found, "head.weight", 1)[160::16] == norm[10:]  # (2, 2) pixels from 4 x 4


def test_heads_are_units_of_queries_keys_and_values():
    found = coupled(trained(NETS["transformer"][0]), inputs_of("transformer"))
    for path, makers in (("attend.0", ("query", "key", "value")), ("attend.1", ("qkv",))):
        heads = found.units.find(found.heads[path]).tolist()
        assert len(set(heads)) == 4
        expected = [one for one in heads for _ in range(4)]
        for name in makers:
            rows = units(found, f"{path}.{name}.weight")
            assert rows == expected * (3 if name == "qkv" else 1)
        assert units(found, f"{path}.out.weight", 1) == expected
    reasons = {one.layers[0]: one.reason for one in groups_of(found) if one.reason}
    assert set(reasons) == {"embed.weight", "head.weight"}


@pytest.mark.parametrize(
    "operation, reason",
    [
        (lambda x: F.layer_norm(x, x.shape[1:]), "mean and variance"),
        (lambda x: F.normalize(x, dim=1), "linalg_vector_norm"),
        (lambda x: x[:, :4], "fixed number"),
        (lambda x: x.cumsum(1), "read by cumsum"),
        (lambda x: x.softmax(1), "read by softmax"),
        (lambda x: x.mean(1), "read by mean"),
        (lambda x: x + torch.ones(8, 1, 1), "as many that cannot be removed"),
        (lambda x: x.sigmoid().sum(1), "read by sum"),
    ],
)
def test_what_cannot_be_followed_keeps_the_channels_and_says_why(operation, reason):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3)

        def forward(self, x):
            return operation(F.relu(self.conv(x))).flatten(1).sum(1)

    (group,) = groups_of(coupled(Net(), torch.randn(2, 1, 4, 4)))
    assert reason in group.reason and not len(group.units)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.pad(x, (1, 1, 1, 1)),
        lambda x: F.pad(x, (1, 0, 0, 2), value=3.0),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: x[:, :, 1:, ::2],
        lambda x: x.clamp(min=0.5),
        lambda x: (x + 1) * 2 - x.amax((2, 3), keepdim=True),
        lambda x: torch.where(x > 0, x, torch.zeros(())),
        lambda x: x.flatten(2).transpose(1, 2).unflatten(1, (4, 4)).permute(0, 3, 1, 2),
        lambda x: torch.stack((x, x.flip(3)), 2).flatten(2, 3),
        lambda x: F.pixel_shuffle(
            x.repeat(1, 4, 1, 1).unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2
        ),
    ],
)
def test_what_happens_inside_a_channel_lets_it_go(operation):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3)
            self.next = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.next(operation(F.relu(self.conv(x))))

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 1, 4, 4)
    model.conv.padding = (1, 1)
    found = coupled(model, x)
    group = groups_of(found)[0]
    assert len(group.units) == 8 and not group.reason
    removal = remove(found, group.units[[0, 3, 4]])
    inputs = Inputs((x,), {}, ((0,),), ((),))
    assert check_same(masked(model, removal), shrunk(model, removal), inputs) < 1e-5


def test_a_sum_over_channels_lets_them_go():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3)

        def forward(self, x):
            return F.relu(self.conv(x)).sum(1)

    (group,) = groups_of(coupled(Net(), torch.randn(2, 1, 4, 4)))
    assert len(group.units) == 8 and not group.reason


def test_multi_head_attention_of_torch_says_why_it_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(8, 16)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x):
            x = self.up(x)
            return self.attention(x, x, x, need_weights=False)[0]

    reasons = {one.layers: one.reason for one in groups_of(coupled(Net(), torch.randn(2, 3, 8)))}
    assert "nn.MultiheadAttention has no number of channels" in reasons[("up.weight",)]


def test_a_model_without_a_graph_is_refused_by_its_line():
    class Net(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(TaskError, match=r"x\.sum\(\) > 0"):
        coupled(Net(), torch.randn(2, 3))


class Mixed(nn.Module):
    """A residual addition, a depthwise convolution, a concatenation: what torch-pruning's graph knows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 12, 1)
        self.outer = nn.Conv2d(12, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(14)
        self.head = nn.Linear(14 * 784, 5)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        x = self.norm(torch.cat((x, self.point(F.relu(self.deep(x)))), 1))
        return self.head(x.flatten(1))


@pytest.mark.parametrize("build", [NETS["lenet5"][0], Mixed])
def test_the_dependency_graph_of_torch_pruning_couples_the_same_layers(build):
    pruning = pytest.importorskip("torch_pruning")
    model, x = trained(build), inputs_of("lenet5")
    graph = pruning.DependencyGraph().build_dependency(model, (x,), verbose=False)
    theirs = set()
    for group in graph.get_all_groups():
        root = group[0].dep.target.name.split()[0]
        if graph.is_out_channel_pruning_fn(group[0].dep.handler):
            made = {
                one.dep.target.name.split()[0]
                for one in group
                if "out" in one.dep.handler.__name__
                and isinstance(one.dep.target.module, nn.Conv2d | nn.Linear)
            }
            theirs.add(frozenset(made | {root}))
    found = coupled(model, x)
    ours = set()
    for group in groups_of(found):
        labels = {one for axis in group.axes for one in found.units.find(found.axes[axis]).tolist()}
        made = {
            weight.removesuffix(".weight")
            for (weight, axis), held in found.axes.items()
            if (weight, axis) not in found.readers
            and found.storages[weight].kind == "weight"
            and labels & set(found.units.find(held).tolist())
        }
        ours.add(frozenset(made))
    assert ours == theirs
