"""ONNX models quantized without their code: what comes out runs, stays near, and says what was done."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import tersor
from tersor.errors import ExportError, SpecError, TargetError, TaskError, TersorError
from tersor.export.prepare import prepared
from tersor.pipeline import onnx_compress
from tersor.pipeline.onnx_compress import INT8, compress_onnx, plan_onnx
from tersor.spec import Cluster, Code, Fold, Prune, Quantize, Recipe, Rule, Train


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def constant(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def save(path, nodes, initializers, inputs, outputs, opset=21, ir_version=10, listed=()):
    def ports(named):
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in named.items()]

    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()]
    more = [
        helper.make_tensor_value_info(one.name, one.data_type, one.dims)
        for one in tensors
        if one.name in listed
    ]
    graph = helper.make_graph(nodes, "g", [*ports(inputs), *more], ports(outputs), tensors)
    model = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(model, path)
    return path


@pytest.fixture
def keras(tmp_path):
    """As TensorFlow exports it: channels last around a convolution, a batch norm, weights in Constants."""
    nodes = [
        constant("conv/kernel", 0.3 * draw(16, 3, 3, 3)),
        constant("dense/kernel", 0.3 * draw(16, 10, seed=1)),
        constant("dense/bias", draw(10, seed=2)),
        helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "conv/kernel"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "dense/kernel"], ["m"], name="dense"),
        helper.make_node("Add", ["m", "dense/bias"], ["scores"], name="dense/BiasAdd"),
    ]
    norm = {"gamma": 1 + 0.1 * draw(16, seed=3), "beta": draw(16, seed=4), "mean": draw(16, seed=5),
            "var": 1 + np.abs(draw(16, seed=6))}  # fmt: skip
    return save(
        tmp_path / "keras.onnx",
        nodes,
        norm,
        {"image": (1, ["n", 8, 8, 3])},
        {"scores": (1, ["n", 10])},
        opset=13,
    )


IMAGES = {"image": draw(96, 8, 8, 3, seed=7)}


def run(path, **inputs):
    return onnxruntime.InferenceSession(path).run(None, inputs)


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def fused_operators(path, folder):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "fused.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(path, options)
    return operators(folder / "fused.onnx")


def rows(touched):
    return {one.name: (one.applied, one.detail) for one in touched}


RECIPES = {
    "int8": (INT8, 0.999),
    "int4": (Recipe(steps=(Quantize(bits=4),)), 0.98),
    "codebook": (Recipe(steps=(Fold(), Cluster(clusters=16), Quantize(), Code())), 0.98),
    "dynamic": (Recipe(steps=(Quantize(activations="dynamic"),)), 0.999),
    "weights only": (Recipe(steps=(Quantize(activations="none"),)), 0.999),
    "blocks": (
        Recipe(steps=(Quantize(bits=4, activations="none", granularity="block", block_size=16),)),
        0.98,
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_keras_model_is_quantized_in_each_way(tmp_path, keras, name):
    recipe, near = RECIPES[name]
    result = compress_onnx(keras, IMAGES, recipe, out=tmp_path / "out" / "q.onnx")
    onnx.checker.check_model(result.path, full_check=True)
    (scores,) = run(result.path, **IMAGES)
    (wanted,) = run(keras, **IMAGES)
    found, given = scores.ravel().astype(np.float64), wanted.ravel().astype(np.float64)
    cosine = found @ given / np.linalg.norm(found) / np.linalg.norm(given)
    assert near < result.agreement.cosine < 1
    assert result.agreement.cosine == pytest.approx(cosine, abs=1e-4)
    assert result.agreement.samples == 96
    step = np.ptp(wanted) / 255
    assert result.agreement.largest == pytest.approx(np.abs(scores - wanted).max() / step, rel=0.05)
    assert result.size_bytes == result.path.stat().st_size
    assert [one.name for one in onnx.load(result.path).graph.output] == ["scores"]


def test_what_is_integer_is_told_and_written(tmp_path, keras):
    result = compress_onnx(keras, IMAGES, out=tmp_path / "q.onnx")
    told = rows(result.touched)
    assert {name for name, (applied, _) in told.items() if applied} == {
        "ConvBnFusion_W_conv/kernel",
        "dense/kernel",
        "conv (conv)",
        "relu (relu)",
        "pool (avg_pool)",
        "dense/MatMulAddFusion (linear)",
    }
    assert "scale" in told["relu (relu)"][1]
    assert told["dense/bias"] == (False, "one dimension: bias or norm")
    model = onnx.load(result.path)
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    assert kinds["ConvBnFusion_W_conv/kernel"] == kinds["dense/kernel"] == TensorProto.INT8
    assert kinds["dense/bias"] == TensorProto.INT32
    assert "BatchNormalization" not in operators(result.path)
    assert b"value_info" not in result.path.read_bytes() and model.producer_name == "tersor"
    again = compress_onnx(keras, IMAGES, out=tmp_path / "again.onnx")
    assert again.path.read_bytes() == result.path.read_bytes()
    planned = rows(plan_onnx(keras))
    assert {name: applied for name, (applied, _) in planned.items()} == {
        name: applied for name, (applied, _) in told.items()
    }


def test_four_bits_and_sixteen_values_are_small(tmp_path, keras):
    four = compress_onnx(keras, IMAGES, RECIPES["int4"][0], out=tmp_path / "a.onnx")
    assert TensorProto.INT4 in {one.data_type for one in onnx.load(four.path).graph.initializer}
    shared = compress_onnx(keras, IMAGES, RECIPES["codebook"][0], out=tmp_path / "b.onnx")
    kinds = {one.name: one.data_type for one in onnx.load(shared.path).graph.initializer}
    assert kinds["dense/kernel"] == TensorProto.UINT4 and kinds["dense/kernel_codebook"] == TensorProto.INT8
    told = rows(shared.touched)
    assert told["fold"][0] and not told["code"][0] and "tersor pack" in told["code"][1]


def test_weights_alone_leave_what_they_multiply_float(tmp_path, keras):
    told = rows(compress_onnx(keras, IMAGES, RECIPES["blocks"][0], out=tmp_path / "q.onnx").touched)
    assert told["dense/kernel"] == (True, "4 bits, a scale per block")
    assert (
        told["ConvBnFusion_W_conv/kernel"][0] is False and "blocks" in told["ConvBnFusion_W_conv/kernel"][1]
    )
    assert told["dense/MatMulAddFusion (linear)"] == (False, "weights only; what it reads stays float")
    assert "QuantizeLinear" not in operators(tmp_path / "q.onnx")


def test_rules_by_weight_and_by_node(tmp_path, keras):
    skip = Recipe(steps=(Quantize(rules=(Rule("conv", skip=True),)),))
    told = rows(compress_onnx(keras, IMAGES, skip, out=tmp_path / "a.onnx").touched)
    assert told["ConvBnFusion_W_conv/kernel"] == (False, "rule 'conv' skips it")
    assert told["conv (conv)"] == (False, "float; rule 'conv' skips it")
    assert told["dense/MatMulAddFusion (linear)"][0]
    mixed = Recipe(steps=(Quantize(rules=(Rule("dense/kernel", override={"bits": 4}),)),))
    told = rows(compress_onnx(keras, IMAGES, mixed, out=tmp_path / "b.onnx").touched)
    assert told["dense/kernel"][1].startswith("4 bits") and told["ConvBnFusion_W_conv/kernel"][1].startswith(
        "8 bits"
    )
    with pytest.raises(TargetError, match=r"'convv' matches no weight.*Did you mean 'conv'"):
        compress_onnx(
            keras, IMAGES, Recipe(steps=(Quantize(rules=(Rule("convv", skip=True),)),)), out=tmp_path / "c"
        )


@pytest.mark.parametrize("steps, message", [
    ((Prune(fraction=0.5), Quantize()), "step 'prune': .* cluster and quantize steps, not prune"),
    ((Quantize(train=Train(epochs=1)),), "step 'quantize': it trains"),
    ((Cluster(bits=4, train=Train(epochs=1)), Quantize()), "step 'cluster': it trains"),
    ((Cluster(bits=4),), "0 quantize steps"),
    ((Quantize(), Cluster(bits=4)), "comes after a quantize step"),
    ((Quantize(rounding="learned"),), "rounding is 'learned'"),
    ((Quantize(correct_bias=True),), "correct_bias"),
    ((Quantize(bits=16),), "bits is 16"),
    ((Fold(equalize=True), Quantize()), "equalize is True"),
    ((Cluster(bits=4, importance="fisher"), Quantize()), "importance is 'fisher'"),
])  # fmt: skip
def test_recipes_that_need_more_than_a_graph_are_refused(tmp_path, keras, steps, message):
    with pytest.raises(SpecError, match=message):
        compress_onnx(keras, IMAGES, Recipe(steps=steps), out=tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_data_of_another_model_are_refused(tmp_path, keras):
    def compress(data):
        return compress_onnx(keras, data, out=tmp_path / "q.onnx")

    with pytest.raises(TaskError, match=r"no input 'imag'.* Did you mean 'image'"):
        compress({"imag": IMAGES["image"]})
    with pytest.raises(TaskError, match="nothing for the input 'image'"):
        compress([{}])
    with pytest.raises(TaskError, match="hold no batch"):
        compress([])
    with pytest.raises(TaskError, match="a batch is a ndarray"):
        compress(IMAGES["image"])
    with pytest.raises(TaskError, match=r"shape \(4, 3, 8, 8\), and the model takes \(samples, 8, 8, 3\)"):
        compress({"image": draw(4, 3, 8, 8)})
    with pytest.raises(TaskError, match=r"'image' is uint8.*convert it with \.astype\('float32'\)"):
        compress({"image": np.ones((4, 8, 8, 3), np.uint8)})
    spoiled = IMAGES["image"].copy()
    spoiled[3, 0, 0, 0] = np.nan
    with pytest.raises(TaskError, match="'image' holds 1 NaN"):
        compress({"image": spoiled})
    np.savez(tmp_path / "objects.npz", image=np.array([{}], object))
    np.savez(tmp_path / "whole.npz", image=IMAGES["image"])
    np.save(tmp_path / "array.npy", IMAGES["image"])
    cut = (tmp_path / "whole.npz").read_bytes()[:1000]
    for name, content in (
        ("x.npz", b"PK nonsense"),
        ("cut.npz", cut),
        ("empty.npz", b""),
        ("text.npz", b"a,b"),
    ):
        (tmp_path / name).write_bytes(content)
    for name in ("x.npz", "cut.npz", "empty.npz", "text.npz", "objects.npz", "array.npy"):
        with pytest.raises(TaskError, match=rf"{name}: .*np\.savez\(file, image=\.\.\.\)") as caught:
            compress(tmp_path / name)
        assert "pickle" not in str(caught.value)
    with pytest.raises(TaskError, match="the data failed: ZeroDivisionError"):
        compress({"image": 1 / 0} for _ in range(3))
    assert not (tmp_path / "q.onnx").exists()


def test_what_cannot_be_is_told_before_any_work(tmp_path, keras, monkeypatch):
    def never(*_):
        raise AssertionError("the weights were worked on")

    monkeypatch.setattr(onnx_compress, "_planned", never)
    with pytest.raises(TaskError, match="has the shape"):
        compress_onnx(keras, {"image": draw(4, 3, 8, 8)}, out=tmp_path / "q.onnx")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(TersorError, match="cannot write"):
        compress_onnx(keras, IMAGES, out=tmp_path / "file" / "deep" / "q.onnx")


@pytest.mark.parametrize("samples, batches, held, compared", [
    (96, 32, False, 96), (8 * 32, 32, True, 4 * 32), (5 * 32, 2, True, 3 * 32), (7 * 32, 32, False, 4 * 32),
])  # fmt: skip
def test_samples_are_held_out_where_there_are_enough(tmp_path, keras, samples, batches, held, compared):
    recipe = Recipe(steps=(Quantize(batches=batches),))
    result = compress_onnx(keras, {"image": draw(samples, 8, 8, 3)}, recipe, out=tmp_path / "q.onnx")
    assert (result.held_out, result.agreement.samples) == (held, compared)


def test_data_come_as_a_file_and_as_endless_batches(tmp_path, keras):
    np.savez(tmp_path / "data.npz", image=IMAGES["image"].astype(np.float64))
    first = compress_onnx(keras, tmp_path / "data.npz", out=tmp_path / "a.onnx")

    def endless():
        at = 0
        while True:
            yield {"image": IMAGES["image"][at % 96 : at % 96 + 32]}
            at += 32

    second = compress_onnx(keras, endless(), out=tmp_path / "b.onnx")
    assert first.path.read_bytes() == second.path.read_bytes()


def test_models_without_a_weight_to_quantize_are_refused(tmp_path):
    path = save(
        tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, {"x": (1, [2])}, {"y": (1, [2])}
    )
    with pytest.raises(TargetError, match=r"m\.onnx: no weight is left to quantize: no layer has one"):
        compress_onnx(path, {"x": draw(4)}, out=tmp_path / "q.onnx")
    with pytest.raises(SpecError, match="would be lost"):
        compress_onnx(path, {"x": draw(4)}, out=path)
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="not an ONNX file"):
        plan_onnx(tmp_path / "no.onnx")


def test_a_fixed_batch_a_tied_matrix_and_old_inputs(tmp_path):
    """Initializers listed as inputs, one matrix for a table and two products, batches of 4 alone."""
    nodes = [
        helper.make_node("Gather", ["table", "words"], ["e"], name="embed"),
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["m", "square"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "square"], ["i"], name="second"),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["i", "turned"], ["y"], name="head"),
    ]
    tensors = {"table": draw(50, 16), "square": 0.2 * draw(16, 16, seed=1)}
    path = save(
        tmp_path / "m.onnx", nodes, tensors, {"words": (TensorProto.INT32, [4, 5])}, {"y": (1, [4, 50])},
        opset=11, ir_version=3, listed=("table", "square"),
    )  # fmt: skip
    words = {"words": np.random.default_rng(0).integers(0, 50, (22, 5))}
    result = compress_onnx(path, words, out=tmp_path / "q.onnx")
    assert result.agreement.samples == 16 and result.agreement.cosine > 0.998
    assert [one.name for one in onnx.load(result.path).graph.input] == ["words"]
    told = rows(result.touched)
    assert [told[f"{name} (linear)"][0] for name in ("first", "second", "head")] == [True] * 3
    assert told["square"][0] and told["table"][0]
    with pytest.raises(TaskError, match="fixed at batches of 4, and the data have 3"):
        compress_onnx(path, {"words": words["words"][:3]}, out=tmp_path / "q.onnx")


def test_preparing_changes_no_number(tmp_path, keras):
    from tersor.export.prepare import serialized

    model = prepared(keras.read_bytes())
    before, after = (
        run(keras, **IMAGES)[0],
        onnxruntime.InferenceSession(serialized(model)).run(None, IMAGES)[0],
    )
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    """A residual addition, functional activations, a pooling, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 16, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(x + self.again(x))
        x = F.max_pool2d(self.again(x), 2)
        return self.head(x.flatten(1))


@pytest.mark.filterwarnings("ignore")
def test_a_net_from_torch_is_integer_from_end_to_end(tmp_path):
    torch.manual_seed(0)
    net = Net().eval()
    batch = torch.export.Dim("batch")
    torch.onnx.export(net, (torch.randn(2, 3, 8, 8),), tmp_path / "m.onnx", dynamo=True, external_data=False,
                      verbose=False, dynamic_shapes=({0: batch},))  # fmt: skip
    data = {"x": draw(64, 3, 8, 8)}
    result = tersor.compress_onnx(tmp_path / "m.onnx", data, out=tmp_path / "q.onnx")
    assert result.agreement.cosine > 0.999
    integer = [one.name for one in result.touched if "(" in one.name and one.applied]
    assert len(integer) == 7  # 3 convolutions, 2 ReLUs, 1 addition, 1 linear layer
    assert not [one for one in result.touched if "(" in one.name and not one.applied]
    fused = fused_operators(result.path, tmp_path)
    assert (fused.count("QLinearConv"), fused.count("QLinearAdd"), fused.count("QGemm")) == (3, 1, 1)
    assert (fused.count("QuantizeLinear"), fused.count("DequantizeLinear")) == (1, 0)  # the input alone


def test_layers_that_an_int32_bias_keeps_in_floats_are_told(tmp_path, keras):
    recipe = Recipe(steps=(Quantize(bits=2, activation_bits=4, scale="mse"),))
    found = rows(compress_onnx(keras, IMAGES, recipe, out=tmp_path / "few.onnx").touched)
    told = {name for name, (_, detail) in found.items() if "the layer is computed in floats" in detail}
    names = {node.name for node in onnx.load(tmp_path / "few.onnx").graph.node}
    weights = {name for name in found if name.endswith("kernel")}
    assert told and told == {name for name in weights if f"{name}_DequantizeLinear" not in names}
    whole = compress_onnx(keras, IMAGES, out=tmp_path / "eight.onnx").path
    names = {node.name for node in onnx.load(whole).graph.node}
    assert {f"{name}_DequantizeLinear" for name in weights} <= names
