import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tersor.artifact.io import Reader, load, save
from tersor.artifact.writer import write
from tersor.errors import ExportError, FormatError, SpecError, TargetError, TersorError
from tersor.pipeline.onnx_pack import ATTACHMENT
from tersor.pipeline.pack import pack, unpack
from tersor.tensor.compressed import raw


def constant(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(nodes, initializers=(), inputs=(("x", [None, 8]),), outputs=(("y", None),), **more):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        initializers,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)], **more)


@pytest.fixture
def mlp():
    """As TensorFlow exports them: MatMul with Constant weights; and one Gemm with initializers."""
    return model_of(
        [
            constant("dense/kernel:0", draw(8, 64)),
            constant("dense/bias:0", draw(64, seed=1)),
            helper.make_node("MatMul", ["x", "dense/kernel:0"], ["product"]),
            helper.make_node("Add", ["product", "dense/bias:0"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["hidden"]),
            helper.make_node("Gemm", ["hidden", "../w", "b"], ["z"], transB=1),
            helper.make_node("Reshape", ["z", "shape"], ["y"]),
        ],
        [
            numpy_helper.from_array(draw(70, 64, seed=2), "../w"),
            helper.make_tensor("b", TensorProto.FLOAT, [70], draw(70, seed=3)),  # in float_data, not raw
            numpy_helper.from_array(np.array([-1, 2, 35]), "shape"),
        ],
        outputs=[("y", [None, 2, 35])],
    )


def run(path, **inputs):
    return onnxruntime.InferenceSession(path).run(None, inputs)


def saved(model, path):
    onnx.save(model, path)
    return path


def test_a_lossless_pack_gives_the_same_model_back(tmp_path, mlp):
    source = saved(mlp, tmp_path / "in.onnx")
    report = pack(source, tmp_path / "m.tersor")
    assert [row.name for row in report.rows] == ["../w", "b", "dense/kernel:0", "dense/bias:0"]
    assert report.ledger.file_bytes < report.source_bytes == source.stat().st_size
    size = unpack(tmp_path / "m.tersor", tmp_path / "out.onnx")
    assert size == (tmp_path / "out.onnx").stat().st_size
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    x = draw(5, 8, seed=9)
    assert np.array_equal(run(source, x=x)[0], run(tmp_path / "out.onnx", x=x)[0])
    assert np.array_equal(load(tmp_path / "m.tersor")["../w"].numpy(), draw(70, 64, seed=2))
    again = pack(tmp_path / "out.onnx", tmp_path / "again.tersor")
    assert again.ledger.file_bytes == report.ledger.file_bytes
    assert (tmp_path / "again.tersor").read_bytes() == (tmp_path / "m.tersor").read_bytes()


@pytest.mark.parametrize("options, clustered", [({"bits": 3}, 8), ({"clusters": 5}, 5)])
def test_clustered_weights_reach_the_graph(tmp_path, mlp, options, clustered):
    source = saved(mlp, tmp_path / "in.onnx")
    report = pack(source, tmp_path / "m.tersor", include="dense/kernel*", **options)
    assert {row.name: row.action for row in report.rows} == {
        "../w": "lossless",
        "b": "lossless",
        "dense/kernel:0": "clustered",
        "dense/bias:0": "lossless",
    }
    unpack(tmp_path / "m.tersor", tmp_path / "out.onnx")
    kernel = numpy_helper.to_array(onnx.load(tmp_path / "out.onnx").graph.node[0].attribute[0].t)
    assert len(np.unique(kernel)) <= clustered
    assert run(tmp_path / "out.onnx", x=draw(5, 8))[0].shape == (5, 2, 35)


def test_an_error_bound_holds_in_the_graph(tmp_path, mlp):
    pack(saved(mlp, tmp_path / "in.onnx"), tmp_path / "m.tersor", max_error=1e-2)
    unpack(tmp_path / "m.tersor", tmp_path / "out.onnx")
    restored = {
        one.name: numpy_helper.to_array(one) for one in onnx.load(tmp_path / "out.onnx").graph.initializer
    }
    assert 0 < np.abs(restored["../w"] - draw(70, 64, seed=2)).max() <= 1e-2
    assert np.array_equal(restored["b"], draw(70, seed=3))


@pytest.mark.parametrize(
    "dtype",
    [
        "float16",
        "float64",
        "int8",
        "uint16",
        "int64",
        "uint64",
        "bool",
        "complex64",
        "bfloat16",
        "float8_e4m3fn",
    ],
)
def test_every_dtype_comes_back_bit_by_bit(tmp_path, dtype):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    words = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, 100 * kind.itemsize, np.uint8)
    tensor = numpy_helper.from_array(words.view(kind).reshape(10, 10), "w")
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [tensor])
    pack(saved(model, tmp_path / "in.onnx"), tmp_path / "m.tersor")
    with Reader(tmp_path / "m.tersor") as reader:
        assert reader.names == ("w",)
        assert b"w" in reader.attachments[ATTACHMENT]
        assert len(reader.attachments[ATTACHMENT]) < 200
    unpack(tmp_path / "m.tersor", tmp_path / "out.onnx")
    back = onnx.load(tmp_path / "out.onnx").graph.initializer[0]
    assert (back.raw_data, back.data_type, list(back.dims)) == (words.tobytes(), tensor.data_type, [10, 10])


def test_what_torch_cannot_hold_and_what_is_small_stays_in_the_graph(tmp_path):
    model = model_of(
        [helper.make_node("Identity", ["x"], ["y"])],
        [
            helper.make_tensor("text", TensorProto.STRING, [2], [b"a", b"b"]),
            helper.make_tensor("nibbles", TensorProto.INT4, [100], [1] * 100),
            numpy_helper.from_array(np.arange(64), "axes"),
            numpy_helper.from_array(np.arange(65), "ids"),
            numpy_helper.from_array(np.float32(0.5), "scalar"),
            numpy_helper.from_array(np.zeros((0, 3), np.float32), "nothing"),
        ],
    )
    report = pack(saved(model, tmp_path / "in.onnx"), tmp_path / "m.tersor")
    assert [row.name for row in report.rows] == ["ids"]
    unpack(tmp_path / "m.tersor", tmp_path / "out.onnx")
    back = onnx.load(tmp_path / "out.onnx")
    for one, other in zip(model.graph.initializer, back.graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other)), one.name


def test_branches_and_functions_keep_what_shares_a_name(tmp_path):
    def branch(seed):
        nodes = [constant("w", draw(8, 8, seed=seed)), helper.make_node("MatMul", ["x", "w"], ["out"])]
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 8])
        return helper.make_graph(nodes, f"b{seed}", [], [out])

    twice = helper.make_function(
        "mine", "Shift", ["a"], ["c"],
        [constant("w", draw(8, seed=7)), helper.make_node("Add", ["a", "w"], ["c"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    model = model_of(
        [
            constant("yes", np.array(True)),
            helper.make_node("If", ["yes"], ["z"], then_branch=branch(1), else_branch=branch(2)),
            helper.make_node("Shift", ["z"], ["y"], domain="mine"),
        ],
        functions=[twice],
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    source = saved(model, tmp_path / "in.onnx")
    assert [row.name for row in pack(source, tmp_path / "m.tersor").rows] == ["w"]
    unpack(tmp_path / "m.tersor", tmp_path / "out.onnx")
    x = draw(3, 8)
    assert np.array_equal(run(source, x=x)[0], run(tmp_path / "out.onnx", x=x)[0])
    for one, other in zip(
        onnx.load(source).graph.node, onnx.load(tmp_path / "out.onnx").graph.node, strict=True
    ):
        assert one == other


def test_tensors_in_other_files_are_refused(tmp_path, mlp):
    onnx.save(mlp, tmp_path / "in.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ExportError, match=r"in\.onnx: .* lie in other files"):
        pack(tmp_path / "in.onnx", tmp_path / "m.tersor")
    function = helper.make_function(
        "mine", "F", [], ["w"], [constant("w", draw(9))], [helper.make_opsetid("", 21)]
    )
    hidden = function.node[0].attribute[0].t
    hidden.ClearField("raw_data")
    hidden.data_location = TensorProto.EXTERNAL
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], functions=[function])
    with pytest.raises(TersorError, match="other file"):
        pack(saved(model, tmp_path / "f.onnx"), tmp_path / "m.tersor")
    assert not (tmp_path / "m.tersor").exists()


def test_damaged_models_are_one_clear_error(tmp_path, mlp):
    (tmp_path / "no.onnx").write_bytes(b"\xff\xfe not a graph")
    with pytest.raises(ExportError, match=r"no\.onnx: not an ONNX file"):
        pack(tmp_path / "no.onnx", tmp_path / "m.tersor")
    mlp.graph.initializer[0].raw_data = b"123"
    with pytest.raises(FormatError, match=r"\.\./w: its data do not fit its shape"):
        pack(saved(mlp, tmp_path / "in.onnx"), tmp_path / "m.tersor")
    mlp.graph.initializer[0].ClearField("raw_data")
    with pytest.raises(FormatError, match=r"\.\./w: it has no data"):
        pack(saved(mlp, tmp_path / "in.onnx"), tmp_path / "m.tersor")
    with pytest.raises(ExportError, match="no such file"):
        pack(tmp_path / "none.onnx", tmp_path / "m.tersor")


def test_the_wrong_ending_is_one_clear_error(tmp_path, mlp):
    pack(saved(mlp, tmp_path / "in.onnx"), tmp_path / "m.tersor")
    with pytest.raises(
        SpecError, match=r"holds an ONNX graph, and .*out\.safetensors does not end in \.onnx"
    ):
        unpack(tmp_path / "m.tersor", tmp_path / "out.safetensors")
    save({"w": torch.zeros(3)}, tmp_path / "plain.tersor")
    with pytest.raises(SpecError, match="holds no graph"):
        unpack(tmp_path / "plain.tersor", tmp_path / "out.onnx")
    with pytest.raises(TargetError, match="'nothing' matches no tensor"):
        pack(tmp_path / "in.onnx", tmp_path / "m.tersor", bits=4, include="nothing")
    with pytest.raises(SpecError, match="would be lost"):
        pack(tmp_path / "in.onnx", tmp_path / "in.onnx")
    assert not list(tmp_path.glob("out.*"))


def stripped(mlp, tmp_path):
    pack(saved(mlp, tmp_path / "in.onnx"), tmp_path / "m.tersor")
    with Reader(tmp_path / "m.tersor") as reader:
        graph = onnx.load_model_from_string(reader.attachments[ATTACHMENT])
        return graph, {name: reader.read(name) for name in reader.names}


def external(graph, tensors):
    graph.graph.initializer[0].data_location = TensorProto.EXTERNAL
    graph.graph.initializer[0].external_data.add(key="location", value="../../secret")


def other_shape(graph, tensors):
    graph.graph.initializer[0].dims[0] = 71


def other_dtype(graph, tensors):
    graph.graph.initializer[0].data_type = TensorProto.INT32


def negative(graph, tensors):
    graph.graph.initializer[0].dims[:] = [-70, -64]


def missing(graph, tensors):
    del tensors["b"]


def twice(graph, tensors):
    graph.graph.initializer.append(graph.graph.initializer[0])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (external, "another file"),
        (other_shape, "in the graph"),
        (other_dtype, "in the graph"),
        (negative, "shape"),
        (missing, "do not agree about the tensor 'b'"),
        (twice, "do not agree"),
    ],
)
def test_a_graph_that_does_not_fit_its_tensors_is_refused(tmp_path, mlp, spoil, message):
    graph, tensors = stripped(mlp, tmp_path)
    spoil(graph, tensors)
    content = graph.SerializeToString()
    write(tmp_path / "bad.tersor", ((name, raw(one.decode())) for name, one in tensors.items()),
          attachments={ATTACHMENT: content})  # fmt: skip
    with pytest.raises(FormatError, match=f"bad.tersor: graph.onnx: .*{message}"):
        unpack(tmp_path / "bad.tersor", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_an_attachment_that_is_no_graph_is_refused(tmp_path):
    write(tmp_path / "bad.tersor", [], attachments={ATTACHMENT: b"\xff\xff"})
    with pytest.raises(FormatError, match="not an ONNX graph"):
        unpack(tmp_path / "bad.tersor", tmp_path / "out.onnx")
