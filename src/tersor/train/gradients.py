"""Gradients in few bits while a model trains: what hardware that computes backwards in integers would see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from tersor.model.output_norm import OutputNorm
from tersor.model.simulate import FakePoint, FollowingPoint
from tersor.tensor.fake import quantize_gradient

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, OutputNorm)


@contextmanager
def quantized_gradients(model: nn.Module, bits: int | None) -> Iterator[None]:
    """Round the gradient of what each layer with parameters gives to ``bits`` bits, stochastically, inside.

    In a model that runs through its graph it is that of its points. Norms are left out, and so is what makes
    a weight: gradients of weights stay as they are. The random numbers
    are torch's own, which a seeded phase draws anew each time (Zhou et al. 2016, DoReFa-Net, section 2.5).
    Nothing happens where ``bits`` is None.
    """
    handles = []
    if bits is not None:

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, Tensor) and output.requires_grad:
                return quantize_gradient(output, bits)
            return output

        points = (FakePoint, FollowingPoint)
        of_weights = {
            inner
            for one in model.modules()
            if isinstance(one, ParametrizationList)
            for inner in one.modules()
        }
        layers = [
            one
            for one in model.modules()
            if isinstance(one, points) or (_is_layer(one) and one not in of_weights)
        ]
        handles = [one.register_forward_hook(hook) for one in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_layer(module: nn.Module) -> bool:
    attached = getattr(module, "parametrizations", {})
    return bool(module._parameters or len(attached)) and not isinstance(module, NORMS)
