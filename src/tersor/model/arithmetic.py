"""How much arithmetic an operation of the graph is, from the shapes of what it reads and makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from torch import Tensor, fx

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def multiply_accumulates(node: fx.Node) -> int:
    """Multiply-accumulates of convolutions, linear and recurrent layers and products of matrices.

    They are those of all samples in the batch that the graph was traced with, whose sizes have to be fixed.
    What only looks at each number once (additions, norms, poolings) counts as 0, and so does an einsum.
    """
    packet = getattr(node.target, "overloadpacket", None)
    count = _COUNTS.get(str(getattr(packet, "__name__", "")))
    return count(node) if count is not None else 0


def _conv(node: fx.Node) -> int:
    return prod(_made(node)) * prod(_read(node, 1)[1:])


def _conv_transpose(node: fx.Node) -> int:
    return prod(_read(node, 0)) * prod(_read(node, 1)[1:])


def _convolution(node: fx.Node) -> int:
    return _conv_transpose(node) if node.args[6] else _conv(node)


def _linear(node: fx.Node) -> int:
    return prod(_made(node)) * _read(node, 1)[-1]


def _matmul(node: fx.Node) -> int:
    return prod(_made(node)) * _read(node, 0)[-1]


def _added_matmul(node: fx.Node) -> int:
    return prod(_made(node)) * _read(node, 1)[-1]


def _attention(node: fx.Node) -> int:
    return (prod(_read(node, 0)) + prod(_made(node))) * _read(node, 1)[-2]


def _recurrent(node: fx.Node) -> int:
    """Every matrix of the layer, at each time of each sample."""
    x, weights = _read(node, 0), _weights(node)
    return prod(x[:-1]) * sum(prod(shape) for shape in weights if len(shape) > 1)


def _weights(node: fx.Node) -> list[tuple[int, ...]]:
    at = next(at for at, one in enumerate(node.target._schema.arguments) if one.name == "params")  # type: ignore[union-attr]
    given: Any = node.args[at]
    return [_shape(one) for one in given]


def _read(node: fx.Node, at: int) -> tuple[int, ...]:
    return _shape(node.args[at])


def _made(node: fx.Node) -> tuple[int, ...]:
    return _shape(node)


def _shape(node: Any) -> tuple[int, ...]:
    value = node.meta["val"] if isinstance(node, fx.Node) else None
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


_COUNTS: Mapping[str, Callable[[fx.Node], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    "convolution": _convolution,
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _added_matmul),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(_RECURRENT, _recurrent),
}
