"""What each operation does to the labels of channels: one function a kind, joined by a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from tersor.model import coupling_layers as layers
from tersor.model import coupling_moves as moves
from tersor.model.coupling import Coupling, Value, nothing
from tersor.model.coupling_nodes import Rule, Values, arguments, inputs_of, keep, op_name
from tersor.model.inputs import Inputs
from tersor.model.trace import trace

_MOVES = (
    "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "contiguous", "clone",
    "detach", "alias", "movedim", "swapaxes", "repeat", "cat", "concat", "stack", "pixel_shuffle",
    "repeat_interleave",
)  # fmt: skip
_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten")
_PARTS = ("chunk", "split", "split_with_sizes", "unbind", "tensor_split")
_CUTS = ("slice", "narrow", "select", "index_select", "roll", "flip")
_SAME = (
    "relu", "gelu", "silu", "tanh", "leaky_relu", "elu", "selu", "celu", "mish", "hardswish", "hardtanh",
    "relu6", "dropout", "feature_dropout", "alpha_dropout", "abs", "neg", "sqrt", "square", "sign", "to",
    "_to_copy", "type_as", "sin", "erf", "softsign", "hardshrink", "softshrink", "clamp", "float", "expm1",
    "log1p",
)  # fmt: skip
_SHIFTED = ("sigmoid", "hardsigmoid", "exp", "cos", "softplus", "rsqrt", "reciprocal", "log_sigmoid", "log")
_CHOICES = ("where", "masked_fill", "pow", "eq", "ne", "lt", "gt", "le", "ge")
_CHANNELWISE = (
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_linear1d", "upsample_bicubic2d", "upsample_trilinear3d",
)  # fmt: skip
OUTPUT = "output of the model"
_CONVS = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def couple(model: nn.Module, inputs: Inputs) -> Coupling:
    """The units of ``model``, from one call with its example inputs; what is attached counts as baked.

    Raises :class:`TaskError` where :func:`torch.export.export` cannot follow the model, with the place.
    """
    small, samples = few_samples(inputs)
    traced = trace(model, small)
    coupling = Coupling(model, traced, samples=samples)
    values: dict[str, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "output":
            for one in node.all_input_nodes:
                for value in _as_list(values[one.name]):
                    coupling.units.fix(value.labels, OUTPUT)
        else:
            values[node.name] = label(coupling, node, values)
    return coupling


def few_samples(inputs: Inputs) -> tuple[Inputs, int]:
    """(two of the samples, their sizes fixed; how many there are): enough to tell a batch from a channel."""
    leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
    batches = [leaf for leaf, dims in zip(leaves, inputs.dynamic, strict=True) if 0 in dims]
    samples = min([2, *(len(leaf) for leaf in batches)]) if batches else 1
    return inputs.of_size(samples), samples


def label(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """The value of a node in labels: one :class:`Value`, or a list where the node makes several."""
    if node.op != "call_function":
        return nothing(node)
    name = op_name(node)
    if name == "getitem":
        source = values[arguments(node)[0].name]
        return source[arguments(node)[1]] if isinstance(source, list) else source
    rule = _RULES.get(name, keep)
    if rule not in _LAYERS and not any(bool(one.labels.any()) for one in inputs_of(node, values)):
        return nothing(node)
    return rule(coupling, node, values)


def _as_list(value: Any) -> list[Value]:
    return value if isinstance(value, list) else [value]


_LAYERS: tuple[Rule, ...] = (
    layers.conv,
    layers.conv_transpose,
    layers.linear,
    layers.embedding,
    layers.norm,
    layers.matmul,
    layers.attention,
)
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_MOVES, moves.move),
    **dict.fromkeys(_RESHAPES, moves.reshape),
    **dict.fromkeys(_PARTS, moves.parts),
    **dict.fromkeys(_CUTS, moves.cut),
    **dict.fromkeys(_SAME, moves.same),
    **dict.fromkeys(_SHIFTED, moves.shifted),
    **dict.fromkeys((*moves.ADDITIONS, *moves.PRODUCTS, *_CHOICES), moves.elementwise),
    **dict.fromkeys(("sum", "mean", "amax", "amin"), moves.reduce),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax"), moves.softmax),
    **dict.fromkeys(("matmul", "bmm"), layers.matmul),
    **dict.fromkeys(("batch_norm", "instance_norm", "native_batch_norm"), layers.norm),
    **dict.fromkeys(_CONVS, layers.conv),
    **dict.fromkeys(_TRANSPOSED, layers.conv_transpose),
    **dict.fromkeys(_CHANNELWISE, moves.channelwise),
    "linear": layers.linear,
    "embedding": layers.embedding,
    "group_norm": layers.group_norm,
    "layer_norm": layers.layer_norm,
    "prelu": layers.prelu,
    "pad": moves.pad,
    "scaled_dot_product_attention": layers.attention,
}
