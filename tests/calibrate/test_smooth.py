"""The ranges that smoothing takes from data and from weights."""

import numpy as np
import pytest
import torch
from tests import nets
from torch import nn

from tersor.calibrate.smooth import _FeatureRange
from tersor.model.attach import attach_mask
from tersor.model.restore import trained_model
from tersor.model.storage import storages
from tersor.pipeline.context import Context
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import Work
from tersor.spec import Smooth


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


def rows(seed):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 8, generator=draw), torch.zeros(16, dtype=torch.long))]


def factors(pruned_weight):
    """What the first layer's features are divided by, where its first weight is pruned."""
    task = nets.make_task(Net, rows)
    work = Work(trained_model(task))
    storage = next(one for one in storages(work.model) if one.name == "first.weight")
    storage.dense()[0, 0] = pruned_weight
    kept = np.ones((8, 8), np.bool_)
    kept[0, 0] = False
    attach_mask(work.model, storage, kept)
    apply_step(work, Smooth(), Context(task))
    return work.model.first.input_scale


def test_weights_that_were_pruned_have_no_part_in_the_factors():
    assert torch.equal(factors(0.0), factors(50.0))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
def test_ranges_of_features_in_any_number_of_dimensions(shape):
    tap = _FeatureRange()
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tap(value)
    tap(value[..., :0, :] if value.ndim > 1 else value)
    assert torch.equal(tap.largest, value.abs().reshape(-1, 3).amax(0))
