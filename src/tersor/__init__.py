"""tersor: trained PyTorch models made small and fast, measured on the files themselves.

    >>> import tersor
    >>> sorted(tersor.__all__)[:3]
    ['Budget', 'BudgetError', 'Cluster']

The names below are the public ones, in order of use. They are imported when first touched, so that the
command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tersor.artifact.io import Reader, save
    from tersor.errors import (
        BudgetError,
        ExportError,
        FormatError,
        SpecError,
        TargetError,
        TaskError,
        TensorError,
        TersorError,
        VerificationError,
    )
    from tersor.pipeline.blame import blame
    from tersor.pipeline.budgeted import search
    from tersor.pipeline.compare import compare_files
    from tersor.pipeline.export import evaluate_onnx, export_model
    from tersor.pipeline.load import evaluate, load
    from tersor.pipeline.memory import memory
    from tersor.pipeline.onnx_compress import compress_onnx
    from tersor.pipeline.pack import pack, unpack
    from tersor.pipeline.pictures import plot
    from tersor.pipeline.plan import plan
    from tersor.pipeline.result import Result
    from tersor.pipeline.run import compress
    from tersor.pipeline.search import Effort
    from tersor.pipeline.sensitivity import Survey, sensitivity
    from tersor.pipeline.strategies import strategies
    from tersor.pipeline.timing import Timing
    from tersor.recipe.load import load_recipe
    from tersor.spec import (
        Budget,
        Cluster,
        Code,
        Distill,
        Fold,
        Match,
        Prune,
        Quantize,
        Recipe,
        Rule,
        Shrink,
        Smooth,
        Train,
    )
    from tersor.task import Task
    from tersor.tensor.compressed import CompressedTensor

__version__ = "0.1.0"

_HOME = {
    "Task": "task",
    "compress": "pipeline.run",
    "search": "pipeline.budgeted",
    "Budget": "spec",
    "Effort": "pipeline.search",
    "compress_onnx": "pipeline.onnx_compress",
    "plan": "pipeline.plan",
    "blame": "pipeline.blame",
    "plot": "pipeline.pictures",
    "Result": "pipeline.result",
    "evaluate": "pipeline.load",
    "export_model": "pipeline.export",
    "evaluate_onnx": "pipeline.export",
    "memory": "pipeline.memory",
    "strategies": "pipeline.strategies",
    "Timing": "pipeline.timing",
    "compare_files": "pipeline.compare",
    "sensitivity": "pipeline.sensitivity",
    "Survey": "pipeline.sensitivity",
    "save": "artifact.io",
    "load": "pipeline.load",
    "Reader": "artifact.io",
    "pack": "pipeline.pack",
    "unpack": "pipeline.pack",
    "load_recipe": "recipe.load",
    "Recipe": "spec",
    "Rule": "spec",
    "Prune": "spec",
    "Shrink": "spec",
    "Cluster": "spec",
    "Fold": "spec",
    "Smooth": "spec",
    "Quantize": "spec",
    "Train": "spec",
    "Distill": "spec",
    "Match": "spec",
    "Code": "spec",
    "CompressedTensor": "tensor.compressed",
    "TersorError": "errors",
    "SpecError": "errors",
    "TargetError": "errors",
    "TaskError": "errors",
    "TensorError": "errors",
    "FormatError": "errors",
    "ExportError": "errors",
    "BudgetError": "errors",
    "VerificationError": "errors",
}

__all__ = [
    "Budget",
    "BudgetError",
    "Cluster",
    "Code",
    "CompressedTensor",
    "Distill",
    "Effort",
    "ExportError",
    "Fold",
    "FormatError",
    "Match",
    "Prune",
    "Quantize",
    "Reader",
    "Recipe",
    "Result",
    "Rule",
    "Shrink",
    "Smooth",
    "SpecError",
    "Survey",
    "TargetError",
    "Task",
    "TaskError",
    "TensorError",
    "TersorError",
    "Timing",
    "Train",
    "VerificationError",
    "blame",
    "compare_files",
    "compress",
    "compress_onnx",
    "evaluate",
    "evaluate_onnx",
    "export_model",
    "load",
    "load_recipe",
    "memory",
    "pack",
    "plan",
    "plot",
    "save",
    "search",
    "sensitivity",
    "strategies",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tersor' has no attribute {name!r}")
    value = getattr(import_module(f"tersor.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
