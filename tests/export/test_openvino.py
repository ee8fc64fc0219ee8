"""OpenVINO's own files."""

import signal

import numpy as np
import pytest
from onnx import TensorProto, helper

pytest.importorskip("openvino", reason="the extra openvino is not installed")

from tersor.errors import ExportError
from tersor.export.openvino import save_openvino
from tersor.export.runtimes import open_session


def doubling():
    node = helper.make_node("Add", ["x", "x"], ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def test_a_file_of_its_own_runs_and_tells_its_ports(tmp_path):
    path = tmp_path / "model.xml"
    save_openvino(doubling(), path)
    session = open_session(path, "openvino")
    assert [(one.name, one.dtype, one.shape) for one in session.inputs] == [("x", "float32", ("x.0", 3))]
    x = np.ones((2, 3), np.float32)
    assert np.array_equal(session.run([x])[0], 2 * x)


def test_it_is_for_openvino_and_in_two_parts(tmp_path):
    path = tmp_path / "model.xml"
    save_openvino(doubling(), path)
    with pytest.raises(ExportError, match=r"OpenVINO's own"):
        open_session(path, "onnxruntime")
    path.with_suffix(".bin").unlink()
    with pytest.raises(ExportError, match=r"model.bin is missing"):
        open_session(path, "openvino")
    with pytest.raises(ExportError, match="no such file"):
        open_session(tmp_path / "none.xml", "openvino")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ExportError, match="does not take it"):
        save_openvino(b"nothing", tmp_path / "model.xml")


def test_an_interrupt_after_a_run_is_an_interrupt(tmp_path):
    open_session(doubling(), "openvino").run([np.ones((2, 3), np.float32)])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
