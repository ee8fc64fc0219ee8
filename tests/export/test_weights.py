"""Codes as runtimes take them: they stand for the weights, exactly, or a reason is given."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.export.runtimes import open_session
from tersor.export.weights import Integers, integers, write_weight_
from tersor.tensor.affine import Grid
from tersor.tensor.codebook import snap_to_int8
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, raw
from tersor.tensor.groups import Granularity
from tersor.tensor.scales import quantize_tensor

CHANNEL = Granularity("channel", 0)


def weight(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.3


def values(held):
    """What the integers stand for, by the definition."""
    codes = held.codes.astype(np.int64)
    if held.codebook is not None:
        codes = held.codebook[codes].astype(np.int64)
    scale, zero = held.scale, held.zero_point
    if held.blocks:
        return ((codes.reshape(held.blocks) - zero).astype(np.float32) * scale).reshape(codes.shape)
    if held.block:
        width = codes.shape[held.axis]
        scale, zero = (np.repeat(one, held.block, axis=held.axis) for one in (scale, zero))
        scale, zero = (one.take(range(width), axis=held.axis) for one in (scale, zero))
    elif scale.ndim:
        wide = [1] * codes.ndim
        wide[held.axis] = -1
        scale, zero = scale.reshape(wide), zero.reshape(wide)
    return (codes - zero).astype(np.float32) * scale


GRIDS = st.builds(
    Grid,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    signed=st.booleans(),
    granularity=st.sampled_from([Granularity(), CHANNEL, Granularity("block", 0, 4)]),
).filter(lambda grid: grid.signed or not grid.symmetric) | st.just(Grid(bits=1, granularity=CHANNEL))


@settings(deadline=None)
@given(GRIDS, st.integers(0, 3))
def test_integers_stand_for_the_weights(grid, seed):
    compressed = quantize_tensor(weight((6, 10), seed), grid)
    held = integers(compressed, {"linear"})
    assert isinstance(held, Integers)
    assert np.array_equal(values(held), compressed.decode().numpy())
    assert np.array_equal(values(held.transposed()), compressed.decode().numpy().T)
    assert grid.bits > 4 or held.codes.dtype in (ml_dtypes.int4, ml_dtypes.uint4)


def graph_of(compressed, readers, integer, turned=False):
    """A graph whose outputs are the weight, and its transpose, behind the nodes that are written for it."""
    held = integers(compressed, readers)
    dense = ir.Value(
        name="w", const_value=ir.tensor(compressed.decode().numpy(), name="w"),
        shape=ir.Shape(compressed.shape), type=ir.TensorType(ir.DataType.FLOAT),
    )  # fmt: skip
    point = ir.node("Point", [dense], domain="tersor")
    nodes, outputs = [point], []
    for op, attributes in [("Abs", {}), *([("Transpose", {"perm": [1, 0]})] * turned)]:
        node = ir.node(op, [point.outputs[0]], attributes=attributes)
        last = ir.node("Neg", [ir.node("Neg", [node.outputs[0]]).outputs[0]])
        nodes += [node, last.inputs[0].producer(), last]
        last.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        outputs.append(last.outputs[0])
    for at, value in enumerate(outputs):
        value.name = f"y{at}"
    graph = ir.Graph([], outputs, nodes=nodes, initializers=[dense], opset_imports={"": 21})
    write_weight_(graph, point, "w", held, integer)
    content = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return open_session(content).run([]), held, graph


CASES = {
    "4 bits": quantize_tensor(weight((6, 10)), Grid(bits=4, granularity=CHANNEL)),
    "8 bits, zero points": quantize_tensor(weight((6, 10)), Grid(symmetric=False, granularity=CHANNEL)),
    "unsigned": quantize_tensor(weight((6, 10)), Grid(symmetric=False, signed=False)),
    "shared": CompressedTensor(
        (6, 10), torch.float32,
        Codebook(np.arange(60, dtype=np.uint8).reshape(6, 10) % 5,
                 snap_to_int8(np.array([[-1.0, -0.3, 0.0, 0.4, 0.9]], np.float32))),
    ),
    "blocks": quantize_tensor(weight((6, 32)), Grid(bits=4, granularity=Granularity("block", 0, 16))),
}  # fmt: skip


@pytest.mark.parametrize("readers", [{"embedding"}, {"embedding", "linear"}, {"conv"}])
@pytest.mark.parametrize("symmetric", [False, True])
def test_blocks_without_a_kernel_fold_into_floats(readers, symmetric):
    grid = Grid(bits=4, symmetric=symmetric, granularity=Granularity("block", 0, 8))
    for shape in ((6, 16),) if "linear" in readers else ((6, 16), (4, 2, 2, 4)):
        compressed = quantize_tensor(weight(shape), grid)
        outputs, held, graph = graph_of(compressed, readers, True, turned="linear" in readers)
        dense = compressed.decode().numpy()
        assert np.array_equal(outputs[0], np.abs(dense))
        assert len(outputs) == 1 or np.array_equal(outputs[1], dense.T)
        assert held.codes.dtype in (ml_dtypes.int4, ml_dtypes.uint4) and held.blocks and not held.fuses
        assert "DequantizeLinear" not in {node.op_type for node in graph}


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_runtime_reads_the_nodes_as_the_weights(case, integer):
    compressed = CASES[case]
    (straight, turned), _, graph = graph_of(compressed, {"linear"}, integer, turned=True)
    dense = compressed.decode().numpy()
    assert np.array_equal(straight, np.abs(dense)) and np.array_equal(turned, dense.T)
    operators = {node.op_type for node in graph}
    assert ("DequantizeLinear" in operators) == (integer or case == "blocks")


def test_a_weight_without_codes_keeps_its_name_and_values():
    dense = weight((3, 4))
    value = ir.Value(
        name="val_7", const_value=ir.tensor(dense.numpy(), name="val_7"), shape=ir.Shape((3, 4)),
        type=ir.TensorType(ir.DataType.FLOAT),
    )  # fmt: skip
    point = ir.node("Point", [value], domain="tersor")
    last = ir.node("Neg", [point.outputs[0]])
    last.outputs[0].name = "y"
    graph = ir.Graph([], last.outputs, nodes=[point, last], initializers=[value], opset_imports={"": 21})
    write_weight_(graph, point, "fc.weight", None, False)
    assert list(graph.initializers) == ["fc.weight"]
    assert [node.op_type for node in graph] == ["Neg"]


def shared(books):
    codes = np.zeros((4, 3), np.uint8)
    kind = Granularity() if len(books) == 1 else CHANNEL
    return CompressedTensor((4, 3), torch.float32, Codebook(codes, np.array(books, np.float32), kind))


def affine(codes, zero_point=0, shape=(2, 2), **granularity):
    form = Affine(
        np.array(codes, np.int32).reshape(shape), np.ones(1, np.float32), np.array([zero_point], np.int32),
        Granularity(**granularity),
    )  # fmt: skip
    return CompressedTensor(shape, torch.float32, form)


REASONS = [
    (raw(weight((2, 2))), {"linear"}, "no codes"),
    (quantize_tensor(weight(8), Grid()), {"conv"}, "one dimension"),
    (quantize_tensor(weight((2, 2)).double(), Grid()), {"linear"}, "float64"),
    (shared([[0.1, 0.27]] * 4), {"linear"}, "4 codebooks"),
    (shared([[0.1, 0.2718281]]), {"linear"}, "no int8 grid"),
    (affine([0, 1, 2, 300]), {"linear"}, "0 to 300"),
    (affine([-1, 1, 2, 3], 200), {"linear"}, "-1 to 200"),
    (quantize_tensor(weight((4, 5)), Grid(granularity=Granularity("block", 0, 2))), {"embedding"}, "divide"),
    (quantize_tensor(weight((4, 3, 3)), Grid(granularity=Granularity("block", 0, 2))), {"conv"}, "divide"),
    (quantize_tensor(weight((4, 4)), Grid(granularity=Granularity("block", 1, 2))), {"linear"}, "axis 1"),
    (quantize_tensor(weight((4, 4)), Grid(granularity=Granularity("channel", 1))), {"linear"}, "each output"),
    (quantize_tensor(weight((4, 4)), Grid(symmetric=False)), {"lstm"}, "zero points"),
]


@pytest.mark.parametrize(("compressed", "readers", "reason"), REASONS)
def test_what_runtimes_cannot_take_has_a_reason(compressed, readers, reason):
    assert reason in str(integers(compressed, readers))


def test_a_zero_point_far_from_the_codes_does_not_wrap_around():
    # All weights near -1: the codes are small, the zero point is 255.
    compressed = quantize_tensor(-1 + weight((4, 8)) / 1000, Grid(symmetric=False, signed=False))
    assert compressed.form.codes.max() < 16 < compressed.form.zero_point.max()
    (straight,), held, _ = graph_of(compressed, {"linear"}, True)
    assert held.codes.dtype == np.uint8
    assert np.array_equal(straight, np.abs(compressed.decode().numpy()))


@pytest.mark.parametrize("grid", [Grid(granularity=CHANNEL), Grid(symmetric=False, granularity=CHANNEL)])
def test_a_channel_of_zeros_takes_a_scale_that_its_bias_fits(grid):
    dense = weight((3, 4))
    dense[1] = 0
    compressed = quantize_tensor(dense, grid)
    held = integers(compressed, {"linear"})
    assert held.scale[1] == held.scale[[0, 2]].max() < compressed.form.scale[1]
    assert held.scale[[0, 2]].tolist() == compressed.form.scale[[0, 2]].tolist()
    assert np.array_equal(values(held), compressed.decode().numpy())


def test_a_weight_without_elements_is_taken():
    for shape in ((0, 4), (4, 0)):
        for kind in (CHANNEL, Granularity()):
            form = Affine(np.zeros(shape, np.int32), np.ones(shape[0] if kind is CHANNEL else 1, np.float32),
                          np.zeros(shape[0] if kind is CHANNEL else 1, np.int32), kind)  # fmt: skip
            assert isinstance(integers(CompressedTensor(shape, torch.float32, form), {"linear"}), Integers)


@pytest.mark.parametrize("kind", [CHANNEL, Granularity()])
def test_a_weight_of_zeros_takes_a_scale_that_biases_fit(kind):
    held = integers(quantize_tensor(torch.zeros(3, 4), Grid(granularity=kind)), {"linear"})
    step = 0.02 * held.scale  # behind values up to 2.55
    assert (100 / step < 2**31).all() and (step < 1e-5).all() and not values(held).any()
