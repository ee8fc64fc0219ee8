"""Gradients that are rounded while a model trains."""

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor.errors import SpecError
from tersor.model.attach import attach_mask
from tersor.model.storage import storages
from tersor.spec import Train
from tersor.train.gradients import quantized_gradients
from tersor.train.loop import fit


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def gradients(model, bits, seed=0):
    torch.manual_seed(seed)
    x = torch.linspace(-1, 1, 24).reshape(4, 6)
    model.zero_grad()
    with quantized_gradients(model, bits):
        model(x).square().sum().backward()
    return [one.grad.clone() for one in model.parameters()]


def test_gradients_are_rounded_and_right_in_the_mean():
    model = net()
    exact = gradients(model, None)
    draws = [gradients(model, 4, seed) for seed in range(400)]
    assert not torch.equal(draws[0][0], draws[1][0])
    for at, wanted in enumerate(exact):
        mean = torch.stack([one[at] for one in draws]).mean(0)
        assert torch.allclose(mean, wanted, atol=0.03 * float(wanted.abs().max()))


def test_what_makes_a_weight_passes_its_gradient_on_as_it_is():
    model = net()
    for storage in storages(model)[::2]:
        attach_mask(model, storage, np.ones(storage.shape, np.bool_))
    with quantized_gradients(model, 2):
        layer = model[2]
        hooked = [name for name, one in model.named_modules() if one._forward_hooks]
        weight = layer.weight
        (weight * torch.linspace(0, 1, weight.numel()).reshape(weight.shape)).sum().backward()
        seen = layer.parametrizations.weight.original.grad
    assert hooked == ["0", "2"]
    assert torch.equal(seen.flatten(), torch.linspace(0, 1, weight.numel()))


def test_no_hook_stays_behind():
    model = net()
    with quantized_gradients(model, 8):
        assert any(one._forward_hooks for one in model.modules())
    assert not any(one._forward_hooks for one in model.modules())


def test_a_phase_trains_with_them_and_the_same_seed_gives_the_same_weights():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    data = [(x[at : at + 16], x[at : at + 16, :3].argmax(1)) for at in range(0, 64, 16)]
    weights = []
    for _ in range(2):
        model = net()
        task = tersor.Task(name="t", build=net, weights=model.state_dict(), train=data, test=data,
                           loss=lambda output, batch: nn.functional.cross_entropy(output, batch[1]),
                           score=lambda output, batch: (output.argmax(1) == batch[1]).float())  # fmt: skip
        records = fit(model, task, Train(epochs=30, lr=1e-2, gradient_bits=8), seed=3)
        weights.append(model.state_dict())
    assert records[-1].loss < 0.5 * records[0].loss
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("bits", [1, 9, 16])
def test_bits_that_cannot_be(bits):
    with pytest.raises(SpecError, match="gradient_bits"):
        Train(gradient_bits=bits)
