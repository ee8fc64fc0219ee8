"""OpenVINO: sessions, and files of its own; the one module that imports it (the extra ``openvino``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tersor.errors import ExportError
from tersor.export.runtimes import Array, Port, Precision, Session, first_line


def open_openvino(
    content: bytes,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    *,
    threads: int,
    precision: Precision,
) -> Session:
    """A session of the ONNX model in ``content`` on the CPU, tuned for latency: one stream, threads unpinned.

    The session says the precision that OpenVINO chose. Inputs are copied: OpenVINO would else take the
    caller's array for its own buffer.
    """
    openvino = _library()
    with _refusals(openvino):
        model = _core().read_model(content)
    return _session(openvino, model, (inputs, outputs), threads, precision)


def open_openvino_file(path: Path, *, threads: int, precision: Precision) -> Session:
    """A session of an ``.xml`` file with its ``.bin`` beside it, as :func:`save_openvino` writes them."""
    openvino = _library()
    if not path.with_suffix(".bin").is_file():
        raise ExportError(f"{path.with_suffix('.bin').name} is missing beside it: the weights are there")
    with _refusals(openvino):
        model = _core().read_model(path)
    ports = tuple(tuple(_port(one) for one in side) for side in (model.inputs, model.outputs))
    return _session(openvino, model, (ports[0], ports[1]), threads, precision)


def save_openvino(content: bytes, path: Path) -> None:
    """Write an ONNX model in OpenVINO's own format: ``path`` (.xml) and its weights beside it (.bin).

    Weights keep the precision that they have. Raises :class:`ExportError` where OpenVINO does not take it.
    """
    openvino = _library()
    with _refusals(openvino):
        model = _core().read_model(content)
        model.set_rt_info("tersor", ["written_by"])  # the mark by which a later export may replace it
        openvino.save_model(model, path, compress_to_fp16=False)


@cache
def _core() -> Any:
    """OpenVINO's one core in this process, never dropped.

    Its CPU plugin gives the thread that loads it an alternate signal stack, and frees the stack with the last
    core, in use or not: the next signal, a Ctrl-C too, would write into memory of someone else.
    """
    return _library().Core()


def _session(
    openvino: Any,
    model: Any,
    ports: tuple[tuple[Port, ...], tuple[Port, ...]],
    threads: int,
    precision: Precision,
) -> Session:
    inputs, outputs = ports
    settings: dict[str, str | int | bool] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # a pinned thread cannot leave a core that others use
    }
    if precision == "f32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    with _refusals(openvino):
        compiled = _core().compile_model(model, "CPU", settings)
        chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        places = {name: at for at, port in enumerate(compiled.inputs) for name in port.names}
        results = [compiled.output(one.name) for one in outputs]
    request = compiled.create_infer_request()
    names = [one.name for one in inputs]

    def call(arrays: Sequence[Array]) -> list[Array]:
        given = {places[name]: one for name, one in zip(names, arrays, strict=True) if name in places}
        found = request.infer(given, share_inputs=False, share_outputs=False)
        return [found[port] for port in results]

    return Session("openvino", _version(openvino), threads, chosen, inputs, outputs, call)


def _port(node: Any) -> Port:
    shape = node.get_partial_shape()
    name = node.get_any_name()
    if shape.rank.is_dynamic:
        return Port(name, node.get_element_type().to_dtype().name, None)
    sizes = (f"{name}.{axis}" if one.is_dynamic else one.get_length() for axis, one in enumerate(shape))
    return Port(name, node.get_element_type().to_dtype().name, tuple(sizes))


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ExportError("OpenVINO is not installed: pip install 'tersor[openvino]'") from error
    return openvino


def _version(openvino: Any) -> str:
    return str(openvino.__version__).partition("-")[0]


@contextmanager
def _refusals(openvino: Any) -> Iterator[None]:
    """What OpenVINO raises, as one line of ours."""
    try:
        yield
    except Exception as error:
        raise ExportError(f"OpenVINO {_version(openvino)} does not take it: {first_line(error)}") from error
