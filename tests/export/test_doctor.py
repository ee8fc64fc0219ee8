import platform

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tersor.errors import ExportError
from tersor.export.doctor import ADVICE, FEWEST_MACS, diagnose
from tersor.export.runtimes import RUNTIMES, open_session

X86 = platform.machine().lower() in ("x86_64", "amd64")
MANY = 4096  # a batch with which no net below is small
DRAW = np.random.default_rng(0)


class Net:
    """A graph written down from its input to its output, tensor by tensor."""

    def __init__(self, *shape):
        self.shape, self.nodes, self.values, self.last = shape, [], [], "x"

    def value(self, name, array):
        self.values.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind, *inputs, name=None, **attributes):
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def then(self, kind, *more, **attributes):
        self.last = self.node(kind, self.last, *more, **attributes)
        return self

    def pair(self, name, dtype=np.uint8, zero=0):
        """QuantizeLinear and DequantizeLinear of an activation."""
        scale, zero = self.value(f"{name}_s", np.float32(0.05)), self.value(f"{name}_z", dtype(zero))
        self.then("QuantizeLinear", scale, zero, name=f"{name}_q")
        return self.then("DequantizeLinear", scale, zero, name=f"{name}_dq")

    def weights(self, name, *shape, axis=0):
        codes = self.value(f"{name}_codes", DRAW.integers(-127, 127, shape).astype(np.int8))
        scales = self.value(f"{name}_s", np.full(shape[axis], 0.01, np.float32))
        zeros = self.value(f"{name}_z", np.zeros(shape[axis], np.int8))
        return self.node("DequantizeLinear", codes, scales, zeros, axis=axis, name=f"{name}_dq")

    def conv(self, name, read, made, **attributes):
        shape = (made, read // attributes.get("group", 1), 3, 3)
        return self.then("Conv", self.weights(f"{name}_w", *shape), name=name, pads=[1] * 4, **attributes)

    def float_conv(self, name, read, made, **attributes):
        shape = (made, read // attributes.get("group", 1), 3, 3)
        weights = self.value(f"{name}_w", DRAW.normal(size=shape).astype(np.float32))
        return self.then("Conv", weights, name=name, pads=[1] * 4, **attributes)

    def model(self, opset=21):
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.shape])],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)], self.values,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)

    def told(self, batch=MANY):
        """(kind, node) of each finding."""
        return [(one.kind, one.node) for one in diagnose(self.model().SerializeToString(), batch=batch)]


def fused(read=16, made=16, size=8):
    return Net(read, size, size).pair("in").conv("conv", read, made).then("Relu").pair("out")


def test_a_convolution_that_fused_has_nothing_to_be_told():
    assert fused().told() == []
    assert (
        Net(16, 8, 8).pair("in").conv("conv", 16, 16).pair("mid").conv("next", 16, 16).pair("out").told()
        == []
    )


def test_a_convolution_of_floats_with_the_counts_of_the_models_ends_has_nothing_to_be_told():
    net = Net(3, 4, 4)
    net.then("Conv", net.value("w", np.ones((5, 3, 3, 3), np.float32)))
    assert net.told(batch=1) == []


def test_a_convolution_without_a_quantized_output_runs_in_float():
    net = Net(16, 8, 8).pair("in").conv("conv", 16, 16).then("Relu")
    (found,) = diagnose(net.model().SerializeToString(), batch=MANY)
    assert (found.kind, found.node) == ("float node", "conv")
    assert found.detail.endswith("its output is not quantized") and found.advice == ADVICE["float node"]


def test_a_bias_in_float_holds_a_product_in_float():
    net = Net(16).pair("in")
    net.then("MatMul", net.weights("w", 16, 16, axis=1), name="product")
    net.then("Add", net.value("b", np.ones(16, np.float32)), name="bias")
    (found,) = diagnose(net.model().SerializeToString(), batch=MANY)
    assert (found.kind, found.node) == (
        "float node",
        "product",
    )  # ONNX Runtime calls it product/MatMulAddFusion
    assert "its bias and its output are in float" in found.detail
    assert net.pair("out").told() == []


def test_a_range_below_zero_keeps_the_relu_and_so_the_convolution_in_float():
    net = Net(16, 8, 8).pair("in").conv("conv", 16, 16).then("Relu")
    net.pair("out", zero=100)
    (found,) = diagnose(net.model().SerializeToString(), batch=MANY)
    assert (found.kind, found.node) == (
        "float node",
        "conv",
    ) and ": Relu stands before its Quant" in found.detail


def test_what_surrounds_a_float_node_is_not_told_again():
    net = (
        Net(16, 8, 8).pair("in").conv("one", 16, 16).pair("mid").conv("two", 16, 16).then("Exp").pair("late")
    )
    net.conv("three", 16, 16).pair("out")
    assert net.told() == [("float node", "two")]


def test_weights_alone_are_dequantized_in_every_run():
    assert Net(16, 8, 8).conv("conv", 16, 16).told() == [("recomputed weights", "conv")]
    assert Net(16, 8, 8).conv("conv", 16, 16).pair("out").told() == [("recomputed weights", "conv")]


def test_weights_alone_of_a_linear_layer_have_a_kernel():
    net = Net(64)
    net.then("MatMul", net.weights("w", 64, 32, axis=1))
    assert net.told() == []


@pytest.mark.parametrize("way", ["cast", "codebook"])
def test_weights_that_are_floats_after_loading_gain_no_speed(way):
    net = Net(16, 8, 8)
    codes = net.value("codes", DRAW.integers(0, 16, (16, 16, 3, 3)).astype(np.uint8))
    if way == "cast":
        weights = net.node(
            "Mul", net.node("Cast", codes, to=TensorProto.FLOAT), net.value("s", np.float32(0.1))
        )
    else:
        weights = net.node("Gather", net.value("book", np.ones(16, np.float32)),
                           net.node("Cast", codes, to=TensorProto.INT32))  # fmt: skip
    assert net.then("Conv", weights, name="conv").told() == [("stored only", "conv")]


def test_codes_in_a_constant_node_are_seen_too():
    net = Net(16, 8, 8)
    codes = numpy_helper.from_array(np.ones((16, 16, 3, 3), np.int8))
    net.nodes.append(helper.make_node("Constant", [], ["codes"], name="c", value=codes))
    weights = net.node(
        "Mul", net.node("Cast", "codes", to=TensorProto.FLOAT), net.value("s", np.float32(0.1))
    )
    assert net.then("Conv", weights, name="conv").told() == [("stored only", "conv")]


def test_an_integer_codebook_fuses():
    net = Net(16, 8, 8).pair("in")
    book = net.value("book", np.arange(-8, 8, dtype=np.int8))
    codes = net.value("codes", DRAW.integers(0, 16, (16, 16, 3, 3)).astype(np.uint8))
    values = net.node("Gather", book, net.node("Cast", codes, to=TensorProto.INT32))
    scale, zero = net.value("ws", np.float32(0.01)), net.value("wz", np.int8(0))
    weights = net.node("DequantizeLinear", values, scale, zero)
    assert net.then("Conv", weights, name="conv").pair("out").told() == []


def test_a_float_island_between_integers():
    net = Net(16, 8, 8).pair("in").conv("one", 16, 16).pair("mid").then("Exp").pair("late")
    net.conv("two", 16, 16).pair("out")
    (found,) = diagnose(net.model().SerializeToString(), batch=MANY)
    assert (found.kind, found.node) == ("unfused pair", "mid_dq")
    assert found.detail == "makes floats of what QLinearConv one made, for Exp"


def test_a_pair_that_stands_alone():
    net = (
        Net(16, 8, 8)
        .pair("in")
        .conv("one", 16, 16)
        .pair("mid")
        .then("Exp")
        .pair("alone")
        .then("Sin")
        .pair("late")
    )
    net.conv("two", 16, 16).pair("out")
    told = {one.node: one.detail for one in diagnose(net.model().SerializeToString(), batch=MANY)}
    assert told["alone_dq"] == "makes floats of what QuantizeLinear alone_q made, for Sin"


def test_a_tensor_whose_shape_alone_is_read_costs_nothing():
    net = Net(16, 8, 8).pair("in").conv("one", 16, 16).pair("mid")
    kept = net.last
    net.node("Shape", kept, name="shape")
    net.conv("two", 16, 16).pair("out").then("Reshape", "shape_out")
    assert net.told() == []


def test_floats_before_the_first_and_after_the_last_layer_are_no_island():
    net = Net(16, 8, 8).pair("early").then("Exp").pair("in").conv("one", 16, 16).pair("mid").then("Exp")
    assert net.told() == []


def test_int8_activations_on_x86(monkeypatch):
    net = Net(16, 8, 8).pair("in", np.int8).conv("conv", 16, 16).pair("out", np.int8)
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    assert [one for one in net.told() if one[0] == "int8 activations"] == [
        ("int8 activations", "in_q"), ("int8 activations", "out_q")]  # fmt: skip
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert "int8 activations" not in dict(net.told())


def test_int8_activations_named_by_the_attribute(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    net = Net(16, 8, 8)
    scale = net.value("s", np.float32(0.05))
    net.then("QuantizeLinear", scale, name="q", output_dtype=TensorProto.INT8).then("DequantizeLinear", scale)
    assert ("int8 activations", "q") in net.conv("conv", 16, 16).told()


def test_pooling_integers_with_channels_first():
    def pooled(relu_after):
        net = Net(16, 16, 16)
        net.then("Conv", net.value("w", np.ones((16, 16, 3, 3), np.float32)), name="first")
        net.then("MaxPool", kernel_shape=[2, 2], strides=[2, 2], name="pool")
        return (net.then("Relu") if relu_after else net).pair("in").conv("conv", 16, 16).pair("out")

    assert pooled(relu_after=False).told() == [("slow pooling", "pool")]
    assert pooled(relu_after=True).told() == []
    between = Net(16, 16, 16).pair("in").conv("one", 16, 16).pair("mid")
    between.then("MaxPool", kernel_shape=[2, 2]).pair("pooled").conv("two", 16, 16).pair("out")
    assert between.told() == []


@pytest.mark.parametrize(
    ("read", "middle", "made", "told"),
    [
        (16, 20, 10, [("channels", "one"), ("channels", "two")]),
        (3, 16, 10, [("few channels", "one")]),
        (12, 8, 10, []),  # 12 are the model's input and 10 its output
        (16, 4, 16, [("channels", "one"), ("few channels", "two")]),
    ],
)
def test_channels(read, middle, made, told):
    net = (
        Net(read, 8, 8).pair("in").conv("one", read, middle).pair("mid").conv("two", middle, made).pair("out")
    )
    assert net.told() == told


def test_channels_say_which_count_is_odd():
    net = Net(16, 8, 8).pair("in").conv("one", 16, 50).pair("mid").conv("two", 50, 16).pair("out")
    made, read = (one.detail for one in diagnose(net.model().SerializeToString(), batch=MANY))
    assert made == "makes 50 channels, no multiple of 4: up to twice the time of 52"
    assert read.startswith("reads 50 channels")


@pytest.mark.parametrize(
    ("read", "middle", "made", "told"),
    [
        (16, 13, 10, [("channels", "one"), ("channels", "two")]),
        (3, 16, 10, []),
        (16, 8, 16, []),
        (16, 4, 16, [("channels", "one"), ("channels", "two")]),
    ],
)
def test_channels_of_floats(read, middle, made, told):
    net = Net(read, 8, 8).float_conv("one", read, middle).then("Relu").float_conv("two", middle, made)
    assert net.told() == told


@pytest.mark.parametrize("group", [16, 4])
def test_what_groups_of_floats_read_is_not_blamed(group):
    net = Net(16, 8, 8).float_conv("one", 16, 16).float_conv("grouped", 16, 16, group=group)
    assert net.float_conv("point", 16, 16).told() == []


def test_depthwise_convolutions_read_one_channel_each():
    net = Net(16, 8, 8).pair("in").conv("depthwise", 16, 16, group=16).pair("mid").conv("point", 16, 16)
    assert net.pair("out").told() == []


def test_a_dynamic_convolution():
    net = Net(16, 8, 8)
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"))
    codes = net.value("w", np.ones((16, 16, 3, 3), np.int8))
    net.last = net.node("Cast", net.node("ConvInteger", "q", codes, "z", name="conv"), to=TensorProto.FLOAT)
    assert ("dynamic convolution", "conv") in net.told()


def test_a_net_too_small_to_gain():
    net = Net(16).pair("in")
    net.then("Gemm", net.weights("w", 16, 16, axis=1), name="linear").pair("out")
    limit = FEWEST_MACS // 256
    assert net.told(batch=limit) == [("small", "")] and net.told(batch=limit + 1) == []
    (found,) = diagnose(net.model().SerializeToString())
    assert found.detail.startswith("256 multiply-adds at batch 1")


def test_free_axes_that_nobody_sizes_leave_the_size_open():
    net = Net("words", 16).pair("in")
    net.then("MatMul", net.weights("w", 16, 16, axis=1)).pair("out")
    content = net.model().SerializeToString()
    assert diagnose(content) == ()
    assert [one.kind for one in diagnose(content, sizes={"words": 7})] == ["small"]


def test_nodes_without_names_are_told_by_kind_and_place():
    model = Net(16, 8, 8).conv("conv", 16, 16).model()
    for node in model.graph.node:
        node.name = ""
    (found,) = diagnose(model.SerializeToString(), batch=MANY)
    assert found.node == "Conv_1"
    model.graph.node[0].name = "Conv_1"
    (found,) = diagnose(model.SerializeToString(), batch=MANY)
    assert found.node == "Conv_1_1"


def test_what_is_not_onnx_or_does_not_run(tmp_path):
    with pytest.raises(ExportError, match="the model: not an ONNX file"):
        diagnose(b"hello")
    path = tmp_path / "odd.onnx"
    path.write_bytes(Net(4).pair("in").then("Mystery").model().SerializeToString())
    with pytest.raises(ExportError, match=r"odd\.onnx: ONNX Runtime .* does not take it: .*Mystery"):
        diagnose(path)


@pytest.mark.skipif(not X86, reason="the oracle's defaults are judged for x86")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_oracle_quantizes_as_the_doctor_likes_it(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    draw = np.random.default_rng(0)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": draw.standard_normal((64, 16, 8, 8)).astype(np.float32)}]

        def get_next(self):
            return self.left.pop() if self.left else None

    net = Net(16, 8, 8)
    for name in ("one", "two", "three"):
        weights = (draw.standard_normal((16, 16, 3, 3)) / 12).astype(np.float32)
        net.then("Conv", net.value(f"{name}_w", weights), name=name, pads=[1] * 4).then("Relu")
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    source.write_bytes(net.model().SerializeToString())
    options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(source, target, Reader(), **options)
    assert diagnose(target, batch=64) == ()
    ranges = {"extra_options": {"ActivationSymmetric": True}} | options | {"activation_type": QuantType.QInt8}
    quantize_static(source, target, Reader(), **ranges)
    assert {one.kind for one in diagnose(target, batch=64)} == {"unfused pair", "int8 activations"}
    quantize_static(source, target, Reader(), **options)
    x = draw.standard_normal((1, 16, 8, 8)).astype(np.float32)
    for runtime in RUNTIMES:
        pytest.importorskip(runtime)
        exact, coarse = (open_session(path, runtime).run([x])[0] for path in (source, target))
        assert np.abs(exact - coarse).max() < 0.1 * np.abs(exact).max()
