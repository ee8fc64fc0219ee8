"""Training or evaluation, module by module; where a model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter of a model is; the CPU for one without any."""
    return next((one.device for one in model.parameters()), torch.device("cpu"))


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, afterwards each module is in training or evaluation as it was before.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with modes_restored(model):
    ...     _ = model.eval()
    >>> [one.training for one in model]
    [True, False]
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
