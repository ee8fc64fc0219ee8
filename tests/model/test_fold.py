"""Folding and equalizing change weights and not what a model computes."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tersor.errors import TensorError
from tersor.model.attach import attach_codebook, attach_mask, collect
from tersor.model.fold import equalize_, fold_batch_norms_
from tersor.model.inputs import Inputs
from tersor.model.restore import restore_
from tersor.model.storage import storages
from tersor.model.trace import trace
from tersor.spec import Cluster
from tersor.structure import Change
from tersor.tensor.cluster import cluster_tensor


def shake(model):
    """Statistics and weights that are not those of a fresh model."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 4)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


def graph(model, x):
    return trace(model, Inputs((x,), {}, ((0,),)))


def kinds(model, x):
    return [one.kind for one in graph(model, x).operations]


def close(one, other):
    return (one - other).abs().max() <= 1e-5 * other.abs().max()


def storage(model, name):
    return next(one for one in storages(model) if one.name == name)


class Net(nn.Module):
    """``run(self, x)`` over named layers."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def straight(self, x):
    return self.norm(self.conv(x))


IMAGE = (4, 6, 9, 9)
FOLDS = {
    "conv1d": (nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), (4, 6, 9)),
    "conv2d": (nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), IMAGE),
    "conv3d": (nn.Conv3d(6, 8, 2), nn.BatchNorm3d(8), (4, 6, 4, 4, 4)),
    "no bias": (nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), IMAGE),
    "padding by name": (nn.Conv2d(6, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8), IMAGE),
    "reflected": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), IMAGE),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8, eps=0.1), IMAGE),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, bias=False), nn.BatchNorm2d(12), IMAGE),
    "linear": (nn.Linear(6, 8), nn.BatchNorm1d(8), (4, 6)),
    "linear without bias": (nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), (4, 6)),
    "not affine": (nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, affine=False), IMAGE),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), IMAGE),
    "transposed in groups": (nn.ConvTranspose1d(6, 9, 3, groups=3, bias=False), nn.BatchNorm1d(9), (4, 6, 9)),
    "double": (nn.Linear(6, 8).double(), nn.BatchNorm1d(8).double(), (4, 6)),
}


@pytest.mark.parametrize("name", FOLDS)
def test_a_norm_goes_into_the_layer_before_it(name):
    conv, norm, shape = deepcopy(FOLDS[name])
    model = shake(Net(straight, conv=conv, norm=norm))
    fresh = Net(straight, conv=deepcopy(conv), norm=deepcopy(norm))
    x = torch.randn(shape, dtype=conv.weight.dtype)
    wanted = model(x)
    had_bias = conv.bias is not None
    folded = fold_batch_norms_(model, graph(model, x))
    assert folded.changes == (Change("conv", "bias", conv.weight.new_zeros(len(model.conv.bias)).numel()),
                              Change("norm", "identity", 1))[had_bias:]  # fmt: skip
    assert not folded.skipped
    assert close(model(x), wanted)
    assert "batch_norm" not in kinds(model, x)
    assert not close(model.conv.bias, torch.zeros_like(model.conv.bias))
    collected = collect(model)
    restore_(fresh, collected.tensors, collected.aliases, folded.changes)
    assert torch.equal(fresh.eval()(x), model(x))


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.conv2, self.norm2 = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


def residual():
    return nn.Sequential(
        nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), Block(8), nn.Dropout(), Block(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 3),
    )  # fmt: skip


def test_a_residual_net_is_left_without_norms():
    model = shake(residual())
    x = torch.randn(IMAGE)
    wanted = model(x)
    folded = fold_batch_norms_(model, graph(model, x))
    assert [one.path for one in folded.changes if one.attribute == "identity"] == [
        "1", "3.norm1", "3.norm2", "5.norm1", "5.norm2", "9",
    ]  # fmt: skip
    assert close(model(x), wanted)
    assert "batch_norm" not in kinds(model, x)
    assert fold_batch_norms_(model, graph(model, x)).changes == ()


def conv():
    return nn.Conv2d(6, 6, 3, padding=1)


def read_by_two(self, x):
    y = self.conv(x)
    return self.norm(y) + y


def conv_twice(self, x):
    return self.norm(self.conv(self.conv(x)))


def norm_twice(self, x):
    return self.norm(self.conv(self.norm(self.other(x))))


def norm_first(self, x):
    return self.conv(self.norm(x))


def relu_between(self, x):
    return self.norm(F.relu(self.conv(x)))


def computed(self, x):
    return self.norm(F.conv2d(x, self.conv.weight * 2, self.conv.bias))


def reaching_in(self, x):
    return self.norm(F.conv2d(x, self.conv.weight, self.conv.bias))


def statistics(self, x):
    return F.batch_norm(self.conv(x), self.norm.running_mean, self.norm.running_var)


def looked_at(self, x):
    return self.norm(self.conv(x)) + self.norm.running_mean.sum()


class WithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Forgets(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, None)


STAYS = {
    "norm read by two": (read_by_two, {}, "read 2 times"),
    "conv called twice": (conv_twice, {}, "conv.weight is used 2 times"),
    "norm called twice": (norm_twice, {"other": conv()}, "norm.weight is used 2 times"),
    "norm before conv": (norm_first, {}, "an input is before it"),
    "relu between": (relu_between, {}, "relu is before it"),
    "weight computed": (computed, {}, "computed or constant"),
    "weight normed": (straight, {"conv": weight_norm(conv())}, "computed or constant"),
    "weight read elsewhere": (reaching_in, {}, "weight of no Conv"),
    "norm of a function": (statistics, {}, "no batch norm module"),
    "norm looked at": (looked_at, {}, "norm.running_mean is used 2 times"),
    "norm of the batch": (
        straight,
        {"norm": nn.BatchNorm2d(6, track_running_stats=False)},
        "from each batch",
    ),
    "norm with activation": (straight, {"norm": WithActivation(6)}, "more than one batch norm"),
    "no place for a bias": (straight, {"conv": Forgets(6, 6, 3, bias=False)}, "forward of its own"),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_norm_that_cannot_go_stays_with_a_reason(name):
    run, layers, reason = STAYS[name]
    model = shake(Net(run, **deepcopy({"conv": conv(), "norm": nn.BatchNorm2d(6)} | layers)))
    x = torch.randn(IMAGE)
    wanted = model(x)
    state = deepcopy(model.state_dict())
    folded = fold_batch_norms_(model, graph(model, x))
    assert folded.changes == ()
    assert reason in folded.skipped[0][1]
    assert torch.equal(model(x), wanted)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in state.items())


def test_tied_weights_stay():
    model = Net(
        lambda self, x: self.norm(self.conv(x)) + self.other(x),
        conv=conv(),
        norm=nn.BatchNorm2d(6),
        other=conv(),
    )
    model.other.weight = model.conv.weight
    shake(model)
    folded = fold_batch_norms_(model, graph(model, torch.randn(IMAGE)))
    assert folded.skipped == (("norm", "conv.weight is tied to other.weight"),)


def test_a_norm_over_another_axis_stays():
    model = shake(Net(straight, conv=nn.Linear(6, 5), norm=nn.BatchNorm1d(5)))
    folded = fold_batch_norms_(model, graph(model, torch.randn(4, 5, 6)))
    assert "more than one axis" in folded.skipped[0][1]


def test_a_weight_that_would_overflow_stays():
    model = shake(Net(straight, conv=nn.Linear(6, 5).half(), norm=nn.BatchNorm1d(5).half()))
    model.norm.weight.data.fill_(60000)
    model.norm.running_var.fill_(1e-4)
    folded = fold_batch_norms_(model, graph(model, torch.randn(4, 6).half()))
    assert "finite in float16" in folded.skipped[0][1]


def test_masks_stay_and_shared_values_are_left_alone():
    model = shake(residual())
    x = torch.randn(IMAGE)
    mask = torch.rand(8, 6, 3, 3).numpy() > 0.7
    attach_mask(model, storage(model, "0.weight"), mask)
    shared = storage(model, "3.conv1.weight")
    attach_codebook(model, shared, cluster_tensor(shared.dense(), Cluster(clusters=4)))
    wanted = model(x)
    folded = fold_batch_norms_(model, graph(model, x))
    assert close(model(x), wanted)
    assert folded.skipped == (("3.norm1", "3.conv1.weight is clustered or quantized already"),)
    held = storage(model, "0.weight")
    assert (held.mask() == mask).all()
    assert ((held.dense() != 0).numpy() == mask).all()
    attach_mask(model, storage(model, "3.conv2.bias"), torch.rand(8).numpy() > 0.5)
    model[3].norm2 = shake(nn.BatchNorm2d(8))
    again = fold_batch_norms_(model, graph(model, x))
    assert ("3.norm2", "3.conv2.bias is pruned or clustered") in again.skipped


# -- equalization ------------------------------------------------------------------------------------


def uneven(model):
    """Channels whose ranges differ by powers of ten."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            axis = 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0
            shape = [1] * module.weight.ndim
            shape[axis] = -1
            size = module.weight.shape[axis]
            module.weight.data *= (10 ** torch.empty(size).uniform_(-2, 2)).reshape(shape)
    return model.eval()


def rows(layer):
    return layer.weight.abs().flatten(1).amax(1)


def columns(layer):
    return layer.weight.abs().transpose(0, 1).flatten(1).amax(1)


def same(one, other):
    return torch.allclose(one, other, rtol=2e-3, atol=0)


def test_neighbours_get_equal_ranges():
    model = uneven(nn.Sequential(
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 10, 3), nn.LeakyReLU(),
        nn.Conv2d(10, 7, 1), nn.Flatten(), nn.Linear(7, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 5),
    ))  # fmt: skip
    x = torch.randn(IMAGE)
    wanted = model(x)
    done = equalize_(model, graph(model, x))
    assert close(model(x), wanted)
    assert done.layers == ("0", "3", "5", "7", "10")
    assert dict(done.skipped) == {
        "5": "move follows it, which does not scale with its channels",
        "10": "its result leaves the model",
    }
    for first, second in ((0, 3), (3, 5), (7, 10)):
        assert same(rows(model[first]), columns(model[second]))


def test_a_depthwise_triple_ends_with_three_equal_ranges():
    model = uneven(nn.Sequential(
        nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ))  # fmt: skip
    x = torch.randn(IMAGE)
    wanted = model(x)
    product = rows(model[0]) * rows(model[2]) * columns(model[4])
    equalize_(model, graph(model, x))
    assert close(model(x), wanted)
    assert same(rows(model[0]), rows(model[2]))
    assert same(rows(model[2]), columns(model[4]))
    assert same(rows(model[0]), product ** (1 / 3))


def test_groups_and_transposed_layers():
    model = uneven(nn.Sequential(
        nn.Conv1d(6, 8, 1, groups=2), nn.ConvTranspose1d(8, 6, 3, groups=2), nn.ReLU(),
        nn.Conv1d(6, 9, 3, groups=3),
    ))  # fmt: skip
    x = torch.randn(4, 6, 9)
    wanted = model(x)
    done = equalize_(model, graph(model, x))
    assert len(done.layers) == 3
    assert close(model(x), wanted)
    assert same(rows(model[0]), rows(model[1]))
    made = model[1].weight.reshape(2, 4, 3, 3).abs().amax((1, 3)).flatten()
    read = model[3].weight.reshape(3, 3, 2, 3).abs().amax((1, 3)).flatten()
    assert same(made, read)


def twice(self, x):
    y = F.relu(self.first(x))
    return self.second(y) + y


@pytest.mark.parametrize(
    "model, reason",
    [
        (nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU6(), nn.Conv2d(6, 6, 3)), "clip follows it"),
        (nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)), "batch_norm follows it"),
        (nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Linear(7, 6)), "not those that 2 reads"),
        (nn.Sequential(nn.Linear(9, 8), nn.MaxPool1d(2), nn.Linear(4, 6)), "not those that 2 reads"),
        (Net(twice, first=conv(), second=conv()), "read 2 times"),
        (Net(conv_twice, conv=conv(), norm=nn.Identity()), "used 2 times"),
    ],
)
def test_what_cannot_be_equalized_is_left_with_a_reason(model, reason):
    model = deepcopy(model)
    x = torch.randn(4, 6, 9) if isinstance(getattr(model, "0", None), nn.Linear) else torch.randn(IMAGE)
    state = deepcopy(model.state_dict())
    done = equalize_(model, graph(model, x))
    assert done.layers == ()
    assert any(reason in why for _, why in done.skipped)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in state.items())


def test_dead_channels_and_masks_are_kept():
    model = uneven(nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)))
    model[0].weight.data[2] = 0
    model[0].weight.data[3] *= 1e-12
    model[2].weight.data[:, 4] = 0
    before = model[0].bias.detach().clone()
    mask = torch.rand(8, 6, 3, 3).numpy() > 0.3
    attach_mask(model, storage(model, "0.weight"), mask)
    x = torch.randn(IMAGE)
    wanted = model(x)
    equalize_(model, graph(model, x))
    assert close(model(x), wanted)
    assert torch.equal(model[0].bias[2:5], before[2:5])
    assert (storage(model, "0.weight").mask() == mask).all()
    alive = [0, 1, 5, 6, 7]
    assert same(rows(model[0])[alive], columns(model[2])[alive])


def test_what_does_not_fit_changes_nothing():
    model = uneven(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))).half()
    model[0].weight.data.fill_(0.1)
    model[1].weight.data.fill_(6e4)
    model[0].bias.data.fill_(6e4)
    state = deepcopy(model.state_dict())
    with pytest.raises(TensorError, match="finite in float16"):
        equalize_(model, graph(model, torch.randn(2, 4).half()))
    assert all(torch.equal(model.state_dict()[name], one) for name, one in state.items())
