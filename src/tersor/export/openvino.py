"""OpenVINO sessions; the one module that imports OpenVINO (the extra ``openvino``)."""

from __future__ import annotations

from collections.abc import Sequence

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
    try:
        import openvino
    except ImportError as error:
        raise ExportError("OpenVINO is not installed: pip install 'tersor[openvino]'") from error

    settings: dict[str, str | int | bool] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # a pinned thread cannot leave a core that others use
    }
    if precision == "f32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    version = openvino.__version__.partition("-")[0]
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(content), "CPU", settings)
        chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        places = {name: at for at, port in enumerate(compiled.inputs) for name in port.names}
        results = [compiled.output(one.name) for one in outputs]
    except Exception as error:
        raise ExportError(f"OpenVINO {version} does not take it: {first_line(error)}") from error
    request = compiled.create_infer_request()
    names = [one.name for one in inputs]

    def call(arrays: Sequence[Array]) -> list[Array]:
        given = {places[name]: one for name, one in zip(names, arrays, strict=True) if name in places}
        found = request.infer(given, share_inputs=False, share_outputs=False)
        return [found[port] for port in results]

    return Session("openvino", version, threads, chosen, inputs, outputs, call)
