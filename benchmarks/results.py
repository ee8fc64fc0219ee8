"""Write the rows of a benchmark where the page of figures reads them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
PACKAGES = ("torch", "numpy", "numba", "zstandard")


def write_results(
    name: str, command: str, rows: Sequence[Mapping[str, Any]], *, folder: Path = RESULTS, **extra: Any
) -> Path:
    """Write ``<folder>/<name>.json`` with the command, this machine and the rows; returns its path.

    The file appears whole or not at all, and equal results give equal text.
    """
    document = {"command": command, "environment": environment(), "rows": list(rows), **extra}
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    partial = folder / f".{name}.json.{os.getpid()}"
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_results(path: Path) -> dict[str, Any]:
    """The document that :func:`write_results` wrote."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def environment() -> dict[str, Any]:
    """Versions and the processor; nothing that names a person, a host or a folder."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": _threads(),
        "tersor": _version("tersor"),
        "commit": _commit(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _commit() -> str | None:
    """The commit of the checkout, with ``+`` after it where files differ from it; None outside git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
