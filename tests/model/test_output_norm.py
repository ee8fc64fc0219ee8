"""Norms on what quantized layers make: nothing at the start, themselves in training, gone without a trace."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import nets
from torch import nn

from tersor.errors import TensorError
from tersor.model.attach import attach_grid, attach_mask, collect_one
from tersor.model.channels import Layers
from tersor.model.fold import fold_batch_norms_
from tersor.model.inputs import Inputs, model_inputs
from tersor.model.output_norm import OutputNorm, fold_output_norm_, folded_into, normalizable
from tersor.model.program import GraphModel
from tersor.model.simulate import scales_that_learn
from tersor.model.storage import storages
from tersor.model.trace import trace
from tersor.tensor.affine import Grid
from tersor.tensor.groups import Granularity
from tersor.tensor.scales import quantize_tensor

CHANNELS = Granularity("channel", 0)
COLUMNS = Granularity("channel", 1)
DRAW = torch.Generator().manual_seed(0)


def norm_of(value, **state):
    channels = value.movedim(1, 0).flatten(1)
    norm = OutputNorm(channels.mean(1), channels.var(1, unbiased=False))
    norm.load_state_dict(norm.state_dict() | state)
    return norm


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5), st.floats(1e-4, 1e4), st.floats(-10, 10), st.sampled_from([(7,), (7, 3), (7, 3, 3)])
)
def test_at_the_start_it_is_the_identity_bit_for_bit(channels, spread, middle, shape):
    value = torch.randn(shape[0], channels, *shape[1:], generator=DRAW) * spread + middle
    norm = norm_of(value)
    assert torch.equal(norm.eval()(value), value)
    assert torch.allclose(norm.train()(value), value, rtol=1e-3, atol=1e-3 * spread)


def test_a_channel_that_is_dead_stays_finite():
    value = torch.randn(6, 2, 4, generator=DRAW) * torch.tensor([1.0, 0.0])[:, None]
    norm = norm_of(value).train()
    norm(value).square().sum().backward()
    assert torch.isfinite(norm.shift.grad).all() and torch.equal(norm.eval()(value)[:, 1], value[:, 1])
    nothing = norm_of(torch.zeros(4, 3))
    assert torch.equal(nothing.train()(torch.zeros(4, 3)), torch.zeros(4, 3))


def test_in_training_it_is_a_batch_norm_and_moves_its_statistics_until_it_is_frozen():
    start, value = torch.randn(50, 3, generator=DRAW), torch.randn(50, 3, generator=DRAW) * 3 + 1
    norm = norm_of(start).train()
    twin = nn.BatchNorm1d(3, eps=norm.eps)
    with torch.no_grad():
        twin.running_mean.copy_(norm.mean)
        twin.running_var.copy_(norm.variance)
        twin.weight.copy_(norm.start)
        twin.bias.copy_(norm.beta)
    torch.testing.assert_close(norm(value), twin(value))
    torch.testing.assert_close(norm.mean, twin.running_mean)
    torch.testing.assert_close(norm.variance, twin.running_var)
    norm.frozen = True
    before = norm.mean.clone(), norm.variance.clone()
    torch.testing.assert_close(norm(value), twin.eval()(value))
    assert torch.equal(norm.mean, before[0]) and torch.equal(norm.variance, before[1])


def test_one_value_a_channel_has_no_variance_and_is_normalized_by_the_running_ones():
    norm = norm_of(torch.randn(50, 3, generator=DRAW)).train()
    value = torch.randn(1, 3, generator=DRAW)
    assert torch.equal(norm(value), value)


def test_gamma_stays_above_zero_and_counts_as_a_scale_that_does_not_decay():
    norm = norm_of(torch.randn(50, 3, generator=DRAW)).train()
    value, optimizer = torch.randn(50, 3, generator=DRAW), torch.optim.Adam(norm.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        (norm(value) + 3 * value).square().sum().backward()  # would have gamma at -3
        optimizer.step()
    assert (norm.affine()[0] > 0).all() and (norm.affine()[0] < 0.5).all()
    assert scales_that_learn(nn.Sequential(norm)) == {norm.shift}


LAYERS = {
    "convolution": (lambda: nn.Conv2d(3, 4, 3), (5, 3, 6, 6), Grid(4, narrow=True, granularity=CHANNELS)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (5, 4, 6, 6), Grid(2, granularity=CHANNELS)),
    "transposed": (lambda: nn.ConvTranspose1d(3, 4, 3), (5, 3, 6), Grid(4, granularity=COLUMNS)),
    "linear": (lambda: nn.Linear(6, 4), (5, 6), Grid(8, symmetric=False, granularity=CHANNELS)),
    "unsigned": (lambda: nn.Linear(6, 4), (5, 6), Grid(3, False, False, granularity=CHANNELS)),
    "blocks": (lambda: nn.Linear(6, 4), (5, 6), Grid(4, granularity=Granularity("block", 0, 4))),
    "one bit": (lambda: nn.Linear(6, 4), (5, 6), Grid(1, granularity=CHANNELS)),
    "half": (lambda: nn.Linear(6, 4).bfloat16(), (5, 6), Grid(8, granularity=CHANNELS)),
}  # fmt: skip


def on_grid(build, shape, grid, *, fraction=0.0):
    """A layer whose weight is on a grid, traced; what it reads."""
    torch.manual_seed(1)
    model = nn.Sequential(build())
    weight = storages(model)[0]
    if fraction:
        mask = np.random.default_rng(0).random(weight.shape) >= fraction
        attach_mask(model, weight, mask)
    compressed = quantize_tensor(weight.dense(), grid, mask=weight.mask())
    attach_grid(model, weight, compressed, grid, latent=True, learn=True)
    x = torch.randn(shape, generator=DRAW).to(weight.dtype)
    return model.eval(), trace(model, Inputs((x,), {}, ((0,),))), x


def layer_of(model, traced):
    layers = Layers(model, traced)
    return normalizable(layers, next(filter(layers.is_layer, traced.graph.nodes)))


@pytest.mark.parametrize("fraction", [0.0, 0.5], ids=["dense", "pruned"])
@pytest.mark.parametrize("name", LAYERS)
def test_folded_it_leaves_the_result_and_the_codes_as_they_were(name, fraction):
    model, traced, x = on_grid(*LAYERS[name], fraction=fraction)
    layer = layer_of(model, traced)
    weight = layer.weight
    with torch.no_grad():  # as if it had trained
        weight.originals()[0].add_(0.1 * torch.randn(weight.shape, generator=DRAW))
        weight.originals()[1].add_(0.2 * torch.randn(weight.originals()[1].shape, generator=DRAW))
    norm = norm_of(model(x).detach())
    with torch.no_grad():
        norm.shift.normal_(0, 0.5, generator=DRAW)
        norm.beta.normal_(generator=DRAW)
        norm.mean.add_(torch.randn(norm.mean.shape, generator=DRAW))
    run = GraphModel(model, traced, {layer.node.name: norm}).eval()
    before, codes = run(x).detach(), collect_one(weight).form.codes
    least, greatest = fold_output_norm_(model, layer, norm)
    assert least < greatest and least > 0
    after = model(x).detach()
    torch.testing.assert_close(after, before, **({"atol": 0.1, "rtol": 0.05} if name == "half" else {
        "rtol": 1e-5, "atol": 1e-5 * float(before.abs().max())}))  # fmt: skip
    assert not torch.allclose(run(x), after, rtol=0.01)  # the norm was not idle: a second time it would show
    assert np.array_equal(collect_one(weight).form.codes, codes)
    if fraction:
        assert float((collect_one(weight).decode() == 0).float().mean()) > 0.2


def test_a_norm_that_takes_the_scales_out_of_range_is_told():
    model, traced, x = on_grid(*LAYERS["linear"])
    norm = norm_of(model(x).detach())
    with torch.no_grad():
        norm.shift.fill_(85.0)
        model[0].bias.fill_(1e5)
    before = collect_one(storages(model)[0]).decode()
    with pytest.raises(TensorError, match="with its norm folded, 0 would not be finite in float32"):
        fold_output_norm_(model, layer_of(model, traced), norm)
    assert torch.equal(collect_one(storages(model)[0]).decode(), before)


@pytest.mark.parametrize(
    ("build", "shape", "grid", "reason"),
    [
        (lambda: nn.Linear(6, 4), (5, 6), Grid(4), "one scale for all channels"),
        (lambda: nn.Linear(6, 4), (5, 6), Grid(4, granularity=COLUMNS), "no scales for each"),
        (lambda: nn.ConvTranspose1d(4, 4, 3, groups=2), (5, 4, 6), Grid(4, granularity=COLUMNS),
         "no scales for each"),
        (lambda: nn.Linear(6, 4), (5, 6), Grid(4, power_of_two=True, granularity=CHANNELS), "powers of two"),
        (lambda: nn.Linear(6, 4, bias=False), (5, 6), Grid(4, granularity=CHANNELS), "has no bias"),
        (lambda: nn.Linear(6, 4), (5, 2, 6), Grid(4, granularity=CHANNELS), "on another axis"),
    ],
)  # fmt: skip
def test_layers_that_cannot_take_a_norm_say_why(build, shape, grid, reason):
    model, traced, _ = on_grid(build, shape, grid)
    assert reason in layer_of(model, traced)


def test_weights_on_no_grid_and_layers_called_twice_say_why():
    task = nets.vision_task()
    model = task.build()
    traced = trace(model, model_inputs(task, model))
    layers = Layers(model, traced)
    found = {layers.operations[node.name].path: normalizable(layers, node)
             for node in filter(layers.is_layer, traced.graph.nodes)}  # fmt: skip
    assert found["first"] == "first.weight is not on an integer grid"
    assert found["again"] == "again.weight is used 2 times"


def test_the_layer_of_a_folded_norm_is_found():
    class Net(nn.Module):
        """Norms in another order than their layers, one of them after an addition."""

        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
            self.right, self.left = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = F.relu(self.norms[1](self.right(x)))
            return self.norms[2](x + self.norms[0](input=self.left(x)))

    model = Net().eval()
    inputs = Inputs((torch.randn(2, 3, 4, 4),), {}, ((0,),))
    folded = fold_batch_norms_(model, trace(model, inputs))
    norms = [one.path for one in folded.changes if one.attribute == "identity"]
    assert folded_into(model, norms, inputs) == {"norms.1": "right", "norms.0": "left"}
    model.norms[2] = nn.Identity()
    assert "norms.2" not in folded_into(model, [*norms, "norms.2"], inputs)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
