import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tersor.errors import ExportError, SpecError
from tersor.export.runtimes import RUNTIMES, Port, example_arrays, first_line, open_session, parse_onnx

X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2) - 2


def product(rows="n", **fields):
    """y = x @ WEIGHTS, z = -y."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, 2]) for name in "yz"]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(WEIGHTS, "w")], **fields)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module", params=RUNTIMES)
def session(request):
    pytest.importorskip(request.param)
    return open_session(product().SerializeToString(), request.param)


def test_the_outputs_are_right_and_in_their_order(session):
    y, z = session.run([X])
    assert np.allclose(y, X @ WEIGHTS, atol=1e-5) and np.allclose(z, -y)
    assert [one.name for one in session.outputs] == ["y", "z"]
    assert session.inputs == (Port("x", "float32", ("n", 3)),)


def test_arrays_stay_their_owners(session):
    given = X.copy()
    y, _ = session.run([given])
    given[:] = 7
    before = y.copy()
    session.run([np.zeros((1, 3), np.float32)])
    assert np.array_equal(y, before) and (given == 7).all()


def test_arrays_of_any_layout_are_taken(session):
    upside = np.asfortranarray(X)
    upside.flags.writeable = False
    assert np.allclose(session.run([upside[::-1]])[0], X[::-1] @ WEIGHTS, atol=1e-5)


def test_a_session_says_how_it_runs(session):
    assert session.description.startswith(f"{session.runtime} {session.version}, 1 thread, floats ")
    assert (session.precision == "f32") == (session.runtime == "openvino")


WRONG = [[], [X, X], [X.astype(np.float64)], [X.astype(np.int32)], [X[0]], [X[:, :2]], [X[None]]]


@pytest.mark.parametrize("wrong", WRONG)
def test_other_inputs_are_refused_by_name_dtype_and_shape(session, wrong):
    with pytest.raises(ExportError, match=r"takes \(x float32\[n, 3\]\), not \("):
        session.run(wrong)


def test_what_a_runtime_refuses_is_one_error(session):
    def fail(arrays):
        raise RuntimeError("Exception from core.cpp:1:\nout of luck\n\n")

    with pytest.raises(ExportError, match=f"^{session.runtime} failed: out of luck$"):
        replace(session, call=fail).run([X])


def test_openvino_computes_floats_as_told():
    pytest.importorskip("openvino")
    content = product().SerializeToString()
    exact, free = (open_session(content, "openvino", precision=one) for one in ("f32", "default"))
    assert exact.precision == "f32" and free.precision in ("f32", "bf16", "f16")


def test_onnx_runtime_rounds_what_blocks_of_four_bits_multiply_only_by_default():
    draw = np.random.default_rng(1)
    codes, scales = draw.integers(-8, 8, (64, 32)), draw.uniform(0.01, 0.1, (2, 32)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    held = [
        helper.make_tensor("codes", TensorProto.INT4, codes.shape, codes.ravel().tolist()),
        numpy_helper.from_array(scales, "scales"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    content = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    x = draw.standard_normal((3, 64)).astype(np.float32)
    wanted = x @ (codes * np.repeat(scales, 32, axis=0))
    exact, free = (open_session(content, precision=one) for one in ("f32", "default"))
    assert np.allclose(exact.run([x])[0], wanted, atol=1e-4)
    assert 1e-4 < np.abs(free.run([x])[0] - wanted).max() < 0.2
    assert exact.precision != free.precision


def test_an_input_that_nothing_reads_is_no_trouble():
    model = product()
    model.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.INT64, [1]))
    for runtime in RUNTIMES:
        pytest.importorskip(runtime)
        y, _ = open_session(model.SerializeToString(), runtime).run([X, np.ones(1, np.int64)])
        assert np.allclose(y, X @ WEIGHTS, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_no_runtime_knows_is_one_line(runtime):
    pytest.importorskip(runtime)
    model = product()
    model.graph.node[0].op_type = "MatMulled"
    with pytest.raises(ExportError, match=r"^the model: .* does not take it: .*MatMulled") as raised:
        open_session(model.SerializeToString(), runtime)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 zip", b"hello, world", b"\x08\x0a", bytes(40)])
def test_what_is_not_onnx_is_refused(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx: not an ONNX file"):
        open_session(path)


@given(st.binary(max_size=200))
def test_bytes_are_parsed_or_refused(content):
    try:
        parse_onnx(content)
    except ExportError as error:
        assert "ONNX" in str(error) or "other files" in str(error)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ExportError, match=r"gone\.onnx: no such file"):
        open_session(tmp_path / "gone.onnx")


def test_tensors_in_other_files_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(product(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ExportError, match="1 tensors lie in other files \\('w'"):
        open_session(path)


def test_tensors_in_other_files_are_found_in_constants_and_branches():
    tensor = numpy_helper.from_array(WEIGHTS, "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "then", [], [])
    model = product()
    model.graph.node.append(helper.make_node("If", ["x"], ["never"], then_branch=inner, else_branch=inner))
    with pytest.raises(ExportError, match="'hidden'"):
        parse_onnx(model.SerializeToString())


def test_words_that_mean_nothing():
    content = product().SerializeToString()
    with pytest.raises(SpecError, match="Did you mean 'openvino'"):
        open_session(content, "openvin")
    with pytest.raises(SpecError, match="precision is 'bf16'"):
        open_session(content, precision="bf16")
    with pytest.raises(SpecError, match="threads is 0"):
        open_session(content, threads=0)


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match=r"pip install 'tersor\[openvino\]'"):
        open_session(product().SerializeToString(), "openvino")


def test_a_sequence_is_not_a_tensor():
    model = product()
    model.graph.input.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None))
    with pytest.raises(ExportError, match="many is not a tensor"):
        open_session(model.SerializeToString())


def test_an_unnamed_free_size_is_named_after_its_place():
    model = product(rows=None)
    assert open_session(model.SerializeToString()).inputs[0].shape == ("x.0", 3)


def test_example_arrays_fit_every_kind_of_input():
    ports = [Port("x", "float32", ("n", 3)), Port("ids", "int64", ("n", "words")), Port("m", "bool", (2, 2)),
             Port("image", "uint8", ("n", 4))]  # fmt: skip
    x, ids, mask, image = example_arrays(ports, batch=2, sizes={"words": 5})
    assert (x.shape, ids.shape, mask.shape, image.shape) == ((2, 3), (2, 5), (2, 2), (2, 4))
    assert (x.dtype, ids.dtype, mask.dtype, image.dtype) == (np.float32, np.int64, np.bool_, np.uint8)
    assert (ids == 1).all() and mask.all() and x.std() > 0
    again = example_arrays(ports, batch=2, sizes={"words": 5})
    assert np.array_equal(x, again[0]) and not np.array_equal(
        x, example_arrays(ports[:1], batch=2, seed=1)[0]
    )


def test_a_number_of_axes_may_be_open():
    model = product()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    session = open_session(model.SerializeToString())
    assert session.inputs[0].shape is None and len(session.run([X])[0]) == 4
    with pytest.raises(SpecError, match="x has a free number of axes"):
        example_arrays(session.inputs)


def test_sizes_that_cannot_be():
    port = Port("x", "float32", (1, "words"))
    with pytest.raises(SpecError, match="x is fixed at batch 1, not 4"):
        example_arrays([port], batch=4, sizes={"words": 1})
    with pytest.raises(SpecError, match="x is free in 'words'"):
        example_arrays([port])
    assert example_arrays([port], batch=1, sizes={"words": 2})[0].shape == (1, 2)


def test_the_first_line_leaves_the_stack_out():
    assert first_line(RuntimeError("Exception from a.cpp:1:\nException from b.cpp:2:\nno\n\nstack")) == "no"
    assert first_line(ValueError()) == "ValueError"
