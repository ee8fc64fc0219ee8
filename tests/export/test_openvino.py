"""OpenVINO's own files."""

import subprocess
import sys

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
    with pytest.raises(ExportError, match="for openvino alone"):
        open_session(path, "onnxruntime")
    path.with_suffix(".bin").unlink()
    with pytest.raises(ExportError, match=r"model.bin is missing"):
        open_session(path, "openvino")
    with pytest.raises(ExportError, match="no such file"):
        open_session(tmp_path / "none.xml", "openvino")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ExportError, match="does not take it"):
        save_openvino(b"nothing", tmp_path / "model.xml")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_signals_have_a_stack_after_the_last_session():
    # OpenVINO sets an alternate signal stack for the thread, which must outlive sessions; in a fresh process,
    # so that none opened elsewhere keeps it.
    found = subprocess.run(
        [sys.executable, "-c", STACK], input=doubling(), capture_output=True, timeout=120, check=False
    )
    assert (found.returncode, found.stdout.decode().strip()) == (0, "mapped"), found.stderr.decode()[-2000:]


STACK = """
import ctypes, gc, signal, sys
from tersor.export.runtimes import open_session

class Stack(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

content = sys.stdin.buffer.read()
for _ in range(2):
    sessions = [open_session(content, "openvino") for _ in range(2)]
    while sessions:
        sessions.pop(0)
        gc.collect()
stack = Stack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in open("/proc/self/maps")]
held = not stack.pointer or any(first <= stack.pointer < last for first, last in spans)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("mapped" if held else "unmapped")
"""
