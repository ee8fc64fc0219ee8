"""LiteRT's files: what they compute, in which operators, with which codes; and their sessions."""

import os
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from tests import nets
from tests.pipeline.test_export import MODES, drawn, in_memory

pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")

from tersor.errors import ExportError, VerificationError
from tersor.export import litert
from tersor.export.check import Probe, check_agreement
from tersor.export.litert import drawn_for_litert, write_tflite
from tersor.export.runtimes import open_session
from tersor.export.tflite_nodes import lite_graph
from tersor.model.simulate import simulated
from tersor.spec import Cluster, Fold, Quantize
from tersor.tensor.compressed import Codebook

DRAW = np.random.default_rng(0)


def onnx_bytes(nodes, shape, held=(), dims=None):
    """A model from x to y; ``held`` -- constants by name."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims or ["n", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(one, name) for name, one in dict(held).items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def both(content, shape, batch=3):
    """The outputs of LiteRT and of ONNX Runtime for the same numbers."""
    x = np.random.default_rng(1).standard_normal((batch, *shape)).astype(np.float32)
    made = write_tflite(lite_graph(content))
    return open_session(made, "litert").run([x])[0], open_session(content).run([x])[0]


def node(kind, *inputs, to="y", **attributes):
    return helper.make_node(kind, inputs, [to], **attributes)


def normal(*shape):
    return DRAW.standard_normal(shape).astype(np.float32)


def whole(*numbers):
    return np.array(numbers, np.int64)


IMAGE = (6, 9, 8)
FLOATS = {
    "conv": ([node("Conv", "x", "w", "b", pads=[1, 1, 1, 1])], {"w": normal(4, 6, 3, 3), "b": normal(4)}),
    "conv by 2": ([node("Conv", "x", "w", pads=[1, 1, 1, 1], strides=[2, 2])], {"w": normal(4, 6, 3, 3)}),
    "conv, uneven": ([node("Conv", "x", "w", pads=[0, 2, 1, 0])], {"w": normal(4, 6, 3, 2)}),
    "dilated": ([node("Conv", "x", "w", dilations=[2, 2])], {"w": normal(4, 6, 3, 3)}),
    "grouped": ([node("Conv", "x", "w", group=2)], {"w": normal(4, 3, 3, 3)}),
    "depthwise": ([node("Conv", "x", "w", group=6)], {"w": normal(12, 1, 3, 3)}),
    "relu": ([node("Conv", "x", "w", to="c"), node("Relu", "c")], {"w": normal(4, 6, 3, 3)}),
    "clip": ([node("Clip", "x", "low", "high")], {"low": np.float32(-0.5), "high": np.float32(0.7)}),
    "max pool": ([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}),
    "average pool": ([node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2])], {}),
    "global pool": ([node("GlobalAveragePool", "x")], {}),
    "mean": ([node("ReduceMean", "x", "axes", keepdims=0)], {"axes": whole(1, -1)}),
    "flatten": ([node("Conv", "x", "w", to="c"), node("Flatten", "c")], {"w": normal(4, 6, 3, 3)}),
    "slice": ([node("Slice", "x", "s", "e", "a", "t")],
              {"s": whole(1, -5), "e": whole(5, 2**63 - 1), "a": whole(1, 3), "t": whole(2, 1)}),
    "pad": ([node("Pad", "x", "p", "v")], {"p": whole(0, 1, 2, 0, 0, 3, 0, 1), "v": np.float32(2)}),
    "transpose": ([node("Transpose", "x", perm=[0, 3, 1, 2])], {}),
    "add a bias": ([node("Add", "x", "b")], {"b": normal(6, 1, 1)}),
    "add, after conv": ([node("Conv", "x", "w", to="c"), node("Mul", "c", "b")],
                        {"w": normal(6, 6, 1, 1), "b": normal(8)}),
    "concat": ([node("Conv", "x", "w", to="c"), node("Concat", "x", "c", axis=1)], {"w": normal(2, 6, 1, 1)}),
    "softmax": ([node("Softmax", "x", axis=-1)], {}),
    "batch norm": ([node("BatchNormalization", "x", "g", "b", "m", "v")],
                   {"g": normal(6), "b": normal(6), "m": normal(6), "v": np.abs(normal(6)) + 1}),
    "matmul, bias": ([node("MatMul", "x", "w", to="p"), node("Add", "p", "b")],
                     {"w": normal(8, 5), "b": normal(5)}),
    "matmul of two": ([node("Transpose", "x", to="t", perm=[0, 1, 3, 2]), node("MatMul", "x", "t")], {}),
    "sigmoid": ([node("Sigmoid", "x")], {}),
    "leaky": ([node("LeakyRelu", "x", alpha=0.2)], {}),
    "nothing": ([node("Identity", "x")], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_those_of_onnx_runtime(name):
    nodes, held = FLOATS[name]
    given, wanted = both(onnx_bytes(nodes, IMAGE, held), IMAGE)
    assert given.shape == wanted.shape
    np.testing.assert_allclose(given, wanted, atol=2e-5)


def pair(name, scale, zero, dtype=np.uint8, to=None):
    """QuantizeLinear and DequantizeLinear behind ``name``, and their constants."""
    to = to or f"{name}_back"
    held = {f"{to}_s": np.float32(scale), f"{to}_z": np.array(zero, dtype)}
    nodes = [
        node("QuantizeLinear", name, *held, to=f"{to}_codes"),
        node("DequantizeLinear", f"{to}_codes", *held, to=to),
    ]
    return nodes, held


def between(*nodes, held=(), dtype=np.uint8, scale=0.01, zero=100):
    """The nodes, from ``x_back`` to ``m``, between two points of other scales."""
    before, first = pair("x", 0.03, 120 if dtype == np.uint8 else -7, dtype)
    after, last = pair("m", scale, zero, to="y")
    return [*before, *nodes, *after], {**dict(held), **first, **last}


SECOND, SECOND_HELD = pair("r", 0.02, 5)
CODES = {
    "average": (between(node("AveragePool", "x_back", to="m", kernel_shape=[3, 2], strides=[2, 2])),
                ["QUANTIZE", "TRANSPOSE", "DEPTHWISE_CONV_2D"]),
    "mean": (between(node("GlobalAveragePool", "x_back", to="m")), ["QUANTIZE", "MEAN"]),
    "max": (between(node("MaxPool", "x_back", to="m", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)),
            ["QUANTIZE", "TRANSPOSE", "PADV2", "MAX_POOL_2D", "QUANTIZE"]),
    "relu": (between(node("Relu", "x_back", to="m"), zero=3), ["QUANTIZE", "RELU"]),
    "int8": (between(node("Relu", "x_back", to="m"), dtype=np.int8), ["QUANTIZE", "RELU"]),
    "pad": (between(node("Pad", "x_back", "p", to="m"), held={"p": whole(0, 1, 2, 0, 0, 3, 0, 1)}),
            ["QUANTIZE", "PAD", "QUANTIZE"]),
    "add": (between(node("Relu", "x_back", to="r"), *SECOND, node("Add", "x_back", "r_back", to="m"),
                    held=SECOND_HELD, scale=0.05), ["QUANTIZE", "RELU", "ADD"]),
    "mul": (between(node("Relu", "x_back", to="r"), *SECOND, node("Mul", "x_back", "r_back", to="m"),
                    held=SECOND_HELD, scale=0.05), ["QUANTIZE", "RELU", "MUL"]),
    "concat": (between(node("Relu", "x_back", to="r"), *SECOND,
                       node("Concat", "x_back", "r_back", to="m", axis=1), held=SECOND_HELD, scale=0.021),
               ["QUANTIZE", "RELU", "QUANTIZE", "QUANTIZE", "CONCATENATION"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CODES)
def test_between_points_codes_make_codes(name):
    (nodes, held), wanted_kinds = CODES[name]
    content = onnx_bytes(nodes, IMAGE, held)
    assert kinds(lite_graph(content), np.int8)[: len(wanted_kinds)] == wanted_kinds
    given, wanted = both(content, IMAGE)
    steps = np.abs(given - wanted) / held["y_s"]
    assert steps.max() < 1.001 and steps.mean() < 0.1  # a code and its neighbour, now and then


REFUSED = {
    "Einsum": ([node("Einsum", "x", equation="ncij->nij")], {}, "Einsum .* is not written"),
    "ceil_mode": ([node("MaxPool", "x", kernel_shape=[2, 2], ceil_mode=1)], {}, "MaxPool with dilations or"),
    "reflect": ([node("Pad", "x", "p", mode="reflect")], {"p": whole(0, 0, 1, 1, 0, 0, 1, 1)}, "in mode"),
    "backwards": ([node("Slice", "x", "s", "e", "a", "t")],
                  {"s": whole(-1), "e": whole(-9), "a": whole(2), "t": whole(-1)}, "Slice backwards"),
    "two axes": ([node("Softmax", "x", axis=1)], {}, "another axis"),
    "each batch": ([helper.make_node("DynamicQuantizeLinear", ["x"], ["c", "s", "z"]),
                    node("DequantizeLinear", "c", "s", "z")], {}, "activations: static"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_named(name):
    nodes, held, words = REFUSED[name]
    with pytest.raises(ExportError, match=words):
        lite_graph(onnx_bytes(nodes, IMAGE, held))


def test_a_second_free_axis_is_refused():
    content = onnx_bytes([node("Relu", "x")], (), dims=["n", "m"])
    with pytest.raises(ExportError, match="not fixed"):
        lite_graph(content)


def lite(task, work):
    """The traced graph, and both files with what became floats."""
    traced, made = drawn(task, work)
    return traced, drawn_for_litert(made)


def agreement(task, work):
    traced, made = lite(task, work)
    run = simulated(work.model, traced, work.points) if work.points else work.model
    probe = Probe(open_session(made.probe, "litert"), made.probed) if work.points else None
    return check_agreement(task, run, open_session(made.content, "litert"), probe, task.test), made


STATIC = (
    "weights alone", "1 bit", "4 bits of both", "not narrow", "one scale", "blocks between points",
    "a layer skipped", "a bias too",
)  # fmt: skip


@pytest.mark.parametrize("mode", STATIC)
def test_every_static_mode_agrees_with_the_quantized_model(mode):
    task = nets.small_task()
    work = in_memory(task, MODES[mode])
    found, _ = agreement(task, work)
    few = min((point.bits for point in work.points), default=8)
    assert found.largest <= (1 if few == 8 else 255 / (2**few - 1))


@pytest.mark.parametrize(
    "steps", [(Fold(), Quantize()), (Quantize(),), (Fold(),)], ids=["folded", "norms", "floats"]
)
def test_a_net_of_every_construction_agrees(steps):
    task = nets.vision_task()
    found, made = agreement(task, in_memory(task, *steps))
    assert found.largest <= 1 and not made.floats


class Mixed(torch.nn.Module):
    """Channels weighed by what they hold, a stride under a dilation, poolings with padding, rows as words."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding="same")
        self.far = torch.nn.Conv2d(8, 8, 3, stride=2, dilation=2, padding=2)
        self.squeeze, self.excite = torch.nn.Linear(8, 4), torch.nn.Linear(4, 8)
        self.words, self.head = torch.nn.Linear(8, 16), torch.nn.Linear(16, 5)

    def forward(self, x):
        x = self.far(F.relu(self.first(x)))
        weigh = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = F.leaky_relu(F.avg_pool2d(x * weigh[:, :, None, None], 3, 2, 1))
        x = F.max_pool2d(x, 3, 2, 1).flatten(2).transpose(1, 2)
        return F.softmax(self.head(F.relu(self.words(x))), -1).mean(1)


def test_integers_and_floats_stand_side_by_side():
    task = nets.make_task(Mixed, lambda seed: nets.images(3, 16, 5, seed=seed))
    found, made = agreement(task, in_memory(task, Quantize()))
    assert found.largest <= 1 and not made.floats


def kinds(graph, dtype):
    return [one.kind for one in graph.operators if graph.tensors[one.output].dtype == dtype]


def test_layers_between_points_are_integer_and_hold_our_codes():
    task = nets.small_task()
    work = in_memory(task, Quantize())
    graph = lite_graph(drawn(task, work)[1].content)
    assert kinds(graph, np.int8) == [
        "QUANTIZE", "RESHAPE", "CONV_2D", "TRANSPOSE", "RESHAPE", "FULLY_CONNECTED",
    ]  # fmt: skip
    held = {one.name: one for one in graph.tensors}
    for name, order in (("conv.weight", (0, 2, 3, 1)), ("hidden.weight", (0, 1)), ("head.weight", (0, 1))):
        form = work.collected().tensors[name].form
        assert np.array_equal(held[name].data, form.codes.transpose(order)), name
        assert np.array_equal(held[name].scales.scale, form.scale.reshape(-1)), name
        assert held[name].data.dtype == np.int8
    (point,) = (one for one in work.points if one.operation == "input")
    (first,) = (graph.tensors[one.output] for one in graph.operators if one.kind == "QUANTIZE")
    assert float(first.scales.scale[0]) == np.float32(point.scale)
    assert first.scales.zero_point == point.zero_point - 128
    assert held["conv.bias"].data.dtype == held["hidden.bias"].data.dtype == np.int32


def test_few_shared_values_stay_few():
    task = nets.small_task()
    work = in_memory(task, Cluster(bits=3), Quantize())
    assert isinstance(work.collected().tensors["hidden.weight"].form, Codebook)
    graph = lite_graph(drawn(task, work)[1].content)
    held = {one.name: one.data for one in graph.tensors}
    for name in ("conv.weight", "hidden.weight", "head.weight"):
        assert held[name].dtype == np.int8 and len(np.unique(held[name])) <= 8
    assert agreement(task, work)[0].largest <= 1


def test_weights_that_integer_kernels_do_not_take_are_floats_and_told():
    task = nets.small_task()
    _, made = lite(task, in_memory(task, Quantize(symmetric=False)))
    assert set(made.floats) == {"conv.weight", "hidden.weight", "head.weight"}
    assert "from -127 to 127 around 0" in made.floats["conv.weight"]


@pytest.fixture(scope="module")
def content():
    task = nets.small_task()
    return lite(task, in_memory(task, Quantize()))[1].content


def test_the_same_model_gives_the_same_bytes(content):
    task = nets.small_task()
    assert lite(task, in_memory(task, Quantize()))[1].content == content


def test_constants_lie_at_multiples_of_16(content):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    start = np.frombuffer(content, np.uint8).ctypes.data
    held = [model.Buffers(at).DataAsNumpy() for at in range(model.BuffersLength())]
    places = [one.ctypes.data - start for one in held if isinstance(one, np.ndarray) and one.size]
    assert len(places) > 8 and not any(place % litert.ALIGNMENT for place in places)


def test_nothing_in_the_file_tells_of_this_machine(content):
    for word in (b"site-packages", b".py", sys.prefix.encode()):
        assert word not in content


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_is_free(content, batch):
    session = open_session(content, "litert")
    x = nets.small_task().test[0][0].numpy()
    every, part = (session.run([one])[0] for one in (x, x[:batch]))
    np.testing.assert_allclose(every[:batch], part, atol=1e-5)


def test_a_fixed_batch_stays_fixed():
    made = write_tflite(lite_graph(onnx_bytes([node("Relu", "x")], (), dims=[2, 3])))
    session = open_session(made, "litert")
    assert session.inputs[0].shape == (2, 3)
    with pytest.raises(ExportError, match=r"takes \(x float32\[2, 3\]\), not"):
        session.run([normal(3, 3)])


def test_a_session_tells_its_ports_and_how_it_runs_and_arrays_stay_their_owners(content):
    session = open_session(content, "litert")
    (port,) = session.inputs
    x = nets.small_task().test[0][0].numpy().copy()
    assert (port.dtype, port.shape) == ("float32", (f"{port.name}.0", *x.shape[1:]))
    assert session.description.startswith(f"litert {session.version}, 1 thread, floats as in the file")
    y = session.run([x])[0]
    before = y.copy()
    given = x.copy()
    x[:] = 7
    assert np.array_equal(session.run([given])[0], before)
    session.run([x])
    assert np.array_equal(y, before) and (x == 7).all()


@pytest.mark.parametrize(
    "bad", [b"", b"hello, world", b"\x1c\x00\x00\x00TFL3", b"\x00\x00\x00\x00TFL3" + bytes(40)]
)
def test_what_is_no_such_file_is_one_line(bad):
    with pytest.raises(ExportError, match=r"not a \.tflite file|does not take it") as raised:
        open_session(bad, "litert")
    assert "\n" not in str(raised.value)


def test_each_runtime_has_its_own_files(content, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="for litert alone: onnxruntime takes"):
        open_session(path, "onnxruntime")
    with pytest.raises(ExportError, match=r"not a \.tflite file"):
        open_session(onnx_bytes([node("Relu", "x")], (3,)), "litert")
    with pytest.raises(ExportError, match="no such file"):
        open_session(tmp_path / "none.tflite", "litert")


def test_a_library_that_is_missing_is_told(content, monkeypatch):
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "flatbuffers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=r"pip install 'tersor\[litert\]'"):
        open_session(content, "litert")
    with pytest.raises(ExportError, match=r"pip install 'tersor\[litert\]'"):
        write_tflite(lite_graph(onnx_bytes([node("Relu", "x")], (3,))))


def test_a_wrong_scale_is_found_and_named(monkeypatch):
    task = nets.small_task()
    work = in_memory(task, Quantize())
    traced, made = drawn(task, work)
    run = simulated(work.model, traced, work.points)

    def spoiled(graph):
        for one in graph.tensors:
            if one.name == "hidden.weight":
                one.scales.scale[:] *= 3
        return write_tflite(graph)

    monkeypatch.setattr(litert, "write_tflite", spoiled)
    wrong = drawn_for_litert(made)
    probe = Probe(open_session(wrong.probe, "litert"), wrong.probed)
    with pytest.raises(VerificationError, match=r"litert differs from the model.*relu, call 2"):
        check_agreement(task, run, open_session(wrong.content, "litert"), probe, task.test)


def test_remarks_of_the_runtime_are_left_out_and_errors_are_not(capfd):
    with litert._without_remarks():
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: no memory\n")
    os.write(2, b"INFO: of the user\n")
    assert capfd.readouterr().err == "ERROR: no memory\nINFO: of the user\n"
