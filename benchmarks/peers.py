"""Other quantizers on the same float ONNX file and the same calibration images.

ONNX Runtime's ``quantize_static``, and NNCF's post-training quantization of the ONNX file and of OpenVINO's
own form of it (IR). NNCF runs in a process of its own, from the folder that ``make bench-integer`` installs
it into; without it its rows are left out, and the result file says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from tersor.errors import TersorError
from tersor.export.runtimes import open_session

ROOT = Path(__file__).resolve().parent.parent
NNCF_FOLDER = ROOT / ".venv" / "nncf"

Images = NDArray[np.float32]


def quantize_static(source: Path, out: Path, images: Images, batch_size: int = 128) -> None:
    """ONNX Runtime's own static quantization, as its guide for x86 with VNNI has it.

    Preprocessed with shape inference and graph optimization; Q/DQ, uint8 activations, int8 weights per
    channel, ranges by the least and greatest value seen.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.batches = ({name: images[at : at + batch_size]} for at in range(0, len(images), batch_size))

        def get_next(self) -> dict[str, Images] | None:
            return next(self.batches, None)

    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # leaves files in the current folder
        quantization.quantize_static(
            prepared, out, Reader(open_session(source).inputs[0].name),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )  # fmt: skip


def nncf_missing(folder: Path = NNCF_FOLDER) -> str:
    """Why NNCF cannot be run, or ""."""
    if find_spec("nncf") is None and not (folder / "nncf").is_dir():
        return "nncf is not installed: make bench-integer installs it"
    return ""


def run_nncf(source: Path, out: Path, images: Images, folder: Path = NNCF_FOLDER) -> str:
    """NNCF's ``quantize`` with its default settings, image by image; returns NNCF's version.

    out -- ``.onnx``: of the ONNX model; ``.xml``: of OpenVINO's form of it, beside a ``.bin``.
    """
    path = os.pathsep.join([str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    with TemporaryDirectory() as scratch:
        given = Path(scratch) / "images.npy"
        np.save(given, images)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers", str(source), str(out), str(given)],
            env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise TersorError(f"nncf failed: {lines[-1] if lines else done.returncode}")
    return done.stdout.strip().splitlines()[-1]


def file_bytes(path: Path) -> int:
    """What the file takes, with the weights of an IR."""
    return sum(one.stat().st_size for one in {path, path.with_suffix(".bin")} if one.is_file())


def _nncf_onnx(source: Path, out: Path, images: Images) -> None:
    import nncf
    import onnx

    model = onnx.load(source)
    name = model.graph.input[0].name
    data = nncf.Dataset(images[:, None], lambda image: {name: image})
    onnx.save(nncf.quantize(model, data, subset_size=len(images)), out)


def _nncf_ir(source: Path, out: Path, images: Images) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    quantized = nncf.quantize(model, nncf.Dataset(images[:, None]), subset_size=len(images))
    openvino.save_model(quantized, out, compress_to_fp16=False)


_NNCF: Mapping[str, Callable[[Path, Path, Images], None]] = {".onnx": _nncf_onnx, ".xml": _nncf_ir}


def main(arguments: Sequence[str]) -> None:
    """In the process of its own: SOURCE.onnx OUT IMAGES.npy."""
    source, out, images = map(Path, arguments)
    _NNCF[out.suffix](source, out, np.load(images))
    import nncf

    print(nncf.__version__)


if __name__ == "__main__":
    main(sys.argv[1:])
