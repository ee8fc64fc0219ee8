"""Where a command may write: what tersor did not write is not replaced, unless ``--force`` says so."""

from __future__ import annotations

from pathlib import Path

import click

from tersor.errors import SpecError

# What a run writes into its folder, finished or not; files exported there have a mark, others are somebody's.
OURS = (
    "model.tersor",
    "result.json",
    "recipe.yaml",
    "stages",
    "plots",
    "strategies.json",
    "sensitivity.json",
    "sensitivity.jsonl",
    ".tersor-run",
    "best.tersor",
    "search.jsonl",
    ".tersor-search",
    ".model.tersor.*",
    ".*.part",
)


def check_out(out: Path) -> None:
    """Refuse a folder for a result that holds what tersor did not write."""
    if not out.is_dir():
        return
    foreign = sorted(
        one.name
        for one in out.iterdir()
        if not any(one.match(pattern) for pattern in OURS) and not (one.suffix != ".tersor" and is_ours(one))
    )
    if foreign:
        raise click.BadParameter(
            f"{str(out)!r} holds files that tersor did not write ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}): name a new or an empty folder",
            param_hint="'--out'",
        )


def check_target(path: Path, *, force: bool) -> None:
    """Raise :class:`SpecError` for a file that is there and that tersor did not write."""
    pair = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    for one in pair:
        if not force and one.exists() and not one.is_dir() and not is_ours(one):
            raise SpecError(f"{one} exists, and tersor did not write it: take another name, or --force")


def check_ending(path: Path, ending: str, what: str) -> None:
    """Raise :class:`SpecError` for a file that would not end as its kind does."""
    if path.suffix != ending:
        raise SpecError(f"out is {str(path)!r}: {what} end in {ending}")


def is_ours(path: Path) -> bool:
    """Whether tersor wrote a file, by the mark of its kind; False for kinds that carry none.

    The weights of an ``.xml`` file (``.bin``) go with it.
    """
    if path.suffix == ".bin":
        return is_ours(path.with_suffix(".xml"))
    if not path.is_file() or path.suffix not in _MARKS:
        return False
    return _MARKS[path.suffix](path)


def _tersor(path: Path) -> bool:
    from tersor.artifact.container import HEAD

    with path.open("rb") as file:
        return file.read(len(HEAD) - 1) == HEAD[:-1]


def _onnx(path: Path) -> bool:
    from tersor.errors import ExportError
    from tersor.export.runtimes import parse_onnx

    try:
        return parse_onnx(path.read_bytes()).producer_name == "tersor"
    except ExportError:
        return False


def _xml(path: Path) -> bool:
    return b'<written_by value="tersor"' in path.read_bytes()


def _tflite(path: Path) -> bool:
    """By the description in it: a string of a flatbuffer, with its length ahead and 0 behind."""
    content = path.read_bytes()
    return content[4:8] == b"TFL3" and b"\x06\0\0\0tersor\0" in content


_MARKS = {".tersor": _tersor, ".onnx": _onnx, ".xml": _xml, ".tflite": _tflite}
