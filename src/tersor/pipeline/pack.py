"""Weights only: a safetensors or an ONNX file to a ``.tersor`` file and back, without any model code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Literal, TypedDict, Unpack

import torch

from tersor.artifact.io import Reader, write
from tersor.artifact.words import dtype_name, torch_dtype
from tersor.artifact.writer import disk_errors
from tersor.errors import FormatError, SpecError, TargetError, did_you_mean, in_context
from tersor.patterns import matches
from tersor.pipeline.checkpoint import Checkpoint, TensorInfo, open_checkpoint, write_checkpoint
from tersor.pipeline.onnx_pack import ATTACHMENT as GRAPH
from tersor.pipeline.onnx_pack import open_onnx, write_onnx
from tersor.progress import Progress, silent
from tersor.result import Ledger
from tersor.spec import Cluster, Speed
from tersor.tensor.affine import bounded_grid
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.compressed import CompressedTensor, raw
from tersor.tensor.deviation import deviation
from tersor.tensor.finite import count_non_finite

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ATTACHMENT = "safetensors.metadata"
_USUAL: Mapping[str, str] = {"format": "pt"}


@dataclass(frozen=True)
class PackRow:
    """What was done to one tensor; errors compare its decoded weights with the source's.

    relative_error -- norm of the difference over norm of the weights; ``max_error`` is max |w - q|.
    non_finite -- how many NaN and Inf it holds; kept as they are, since it is kept losslessly.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: Literal["clustered", "grid", "lossless"]
    reason: str
    relative_error: float
    max_error: float
    source_bytes: int
    seconds: float
    non_finite: int


@dataclass(frozen=True)
class PackReport:
    """The file byte by byte, what was done to each tensor, and the bytes of the input."""

    ledger: Ledger
    source_bytes: int
    rows: tuple[PackRow, ...]
    seconds: float


@dataclass(frozen=True)
class _Source:
    """What is packed: tensors by name, read one at a time, and what the file keeps beside them."""

    names: tuple[str, ...]
    read: Callable[[str], torch.Tensor]
    attachments: Mapping[str, bytes]
    files: frozenset[Path]
    size_bytes: int


@dataclass(frozen=True)
class _Choice:
    """Why the patterns leave a tensor out, if they do; whether one names it."""

    reason: str
    named: bool


class PackOptions(TypedDict, total=False):
    """What :func:`pack` compresses: one amount, and the patterns (or one) of the tensors that it is for."""

    bits: int | None
    clusters: int | None
    max_error: float | None
    lossless: bool
    include: str | Sequence[str]
    exclude: str | Sequence[str]


def pack(
    source: str | Path,
    out: str | Path,
    *,
    speed: Speed = "balanced",
    progress: Progress = silent,
    **options: Unpack[PackOptions],
) -> PackReport:
    """Pack a ``.safetensors`` file, the index of a sharded one, or an ``.onnx`` file into ``out``.

    At most one of: ``bits`` (at most 2^bits values a tensor), ``clusters`` (at most that many),
    ``max_error`` (the coarsest uniform grid that moves no weight further), ``lossless`` (the default).
    Tensors that are not floating, have one dimension, or are too small to gain are kept losslessly; the
    row says why. ``include`` and ``exclude`` are patterns (a glob, or a regular expression after
    ``re:``, held against a tensor's name and the modules above it) for tensors to compress; one that
    ``include`` names itself, not by its module, may have a single dimension. Of an ONNX file, what is left
    of the graph is an attachment; the tensors of Constant nodes have the names of the nodes' outputs.

    Raises :class:`TensorError` for NaN or Inf in a tensor to be compressed, :class:`TargetError` for a
    pattern that matches nothing; ``out`` is then left as it was.
    """
    started = perf_counter()
    plan = _plan(options)
    include, exclude = _patterns(options.get("include", ())), _patterns(options.get("exclude", ()))
    if plan is None and (include or exclude):
        raise SpecError("include and exclude choose what to compress; a lossless pack compresses nothing")
    opened = _open(Path(source))
    _check_apart(Path(out), opened.files)
    choices = _choices(list(opened.names), include, exclude)
    rows: list[PackRow] = []

    def tensors() -> Iterator[tuple[str, CompressedTensor]]:
        for done, name in enumerate(opened.names):
            progress("pack", done, len(opened.names), name)
            with in_context(name):
                compressed, row = _pack_one(opened, name, plan, choices[name])
            rows.append(row)
            yield name, compressed

    with disk_errors(Path(out)):
        ledger = write(out, tensors(), attachments=opened.attachments, speed=speed)
    progress("pack", len(rows), len(rows))
    return PackReport(ledger, opened.size_bytes, tuple(rows), perf_counter() - started)


def unpack(source: str | Path, out: str | Path, *, replace: bool = True, progress: Progress = silent) -> int:
    """Write a ``.tersor`` file's dense tensors as the kind of file they came from; returns its bytes.

    That is an ``.onnx`` file if the graph of one is attached, else ``.safetensors``. Names, shapes and dtypes
    are those of the file; tied weights are written under each of their names.

    replace -- False: a file at ``out`` stays, and has to hold the very bytes already.

    Raises :class:`SpecError` if ``out`` ends like the other kind, and for another file that is there.
    """
    _check_apart(Path(out), [Path(source)])
    if not replace and Path(out).is_file():
        with TemporaryDirectory(prefix=".tersor-", dir=Path(out).parent) as folder:
            again = Path(folder) / Path(out).name
            size = unpack(source, again, progress=progress)
            if not cmp(again, out, shallow=False):
                raise SpecError(f"{out} exists, and holds something else: take another name, or --force "
                                "(replace=True)")  # fmt: skip
        return size
    with Reader(source) as reader:
        infos = {one.name: TensorInfo(one.name, one.shape, torch_dtype(one.dtype)) for one in reader.entries}
        for alias, name in reader.aliases.items():
            infos[alias] = TensorInfo(alias, infos[name].shape, infos[name].dtype)
        attachments = reader.attachments
        _check_ending(Path(source), Path(out), GRAPH in attachments)
        metadata = _parse_metadata(attachments[_ATTACHMENT]) if _ATTACHMENT in attachments else _USUAL
        done = 0

        def read(name: str) -> torch.Tensor:
            nonlocal done
            progress("unpack", done, len(infos), name)
            done += 1
            return reader.read(name).decode()

        with disk_errors(Path(out)):
            if GRAPH in attachments:
                shapes = {name: (one.shape, dtype_name(one.dtype)) for name, one in infos.items()}
                with in_context(str(source)):
                    size = write_onnx(Path(out), attachments[GRAPH], shapes, read)
            else:
                size = write_checkpoint(Path(out), infos.values(), read, metadata=metadata)
        progress("unpack", done, len(infos))
        return size


def _open(source: Path) -> _Source:
    if source.suffix == ".onnx":
        weights = open_onnx(source)
        return _Source(
            tuple(weights.tensors), weights.read, {GRAPH: weights.graph}, frozenset([source]),
            weights.size_bytes,
        )  # fmt: skip
    checkpoint = _open_checkpoint(source)
    metadata = dict(checkpoint.metadata)
    attachments = {} if metadata == _USUAL else {_ATTACHMENT: _print_metadata(metadata)}
    files = frozenset([source, *checkpoint.files.values()])
    return _Source(tuple(checkpoint.files), checkpoint.read, attachments, files, checkpoint.size_bytes)


def _check_ending(source: Path, out: Path, graph: bool) -> None:
    if graph and out.suffix != ".onnx":
        raise SpecError(
            f"{source} holds an ONNX graph, and {out} does not end in .onnx: name a file that does"
        )
    if not graph and out.suffix == ".onnx":
        raise SpecError(f"{source} holds no graph, only tensors: name a file that ends in .safetensors")


def _open_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint; for a pickle, what to do with it."""
    try:
        return open_checkpoint(source)
    except FormatError as error:
        with source.open("rb") as file:
            head = file.read(4)
        if source.suffix in (".safetensors", ".json") or not head.startswith((b"PK\x03\x04", b"\x80")):
            raise
        raise FormatError(
            f"{source} is a pickle, as torch.save writes it; pack takes a safetensors file. Load it with "
            "torch.load(..., weights_only=True), then write the state_dict with safetensors.torch.save_file, "
            "or with tersor.save, which is lossless"
        ) from error


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _check_apart(out: Path, sources: Iterable[Path]) -> None:
    if out.resolve() in {one.resolve() for one in sources}:
        raise SpecError(f"{out} is what is read: it would be lost; name another file to write")


def _plan(options: PackOptions) -> Cluster | float | None:
    for name in options:
        if name not in PackOptions.__annotations__:
            raise SpecError(f"pack has no option {name!r}.{did_you_mean(name, PackOptions.__annotations__)}")
    amounts = ("bits", "clusters", "max_error", "lossless")
    named = [name for name in amounts if options.get(name) not in (None, False)]
    if len(named) > 1:
        raise SpecError(f"pack takes one of {', '.join(amounts)}; given: {', '.join(named)}")
    max_error = options.get("max_error")
    if max_error is not None:
        if not 0 < max_error < float("inf"):
            raise SpecError(f"max_error is {max_error}: it has to be a finite number above 0")
        return float(max_error)
    bits, clusters = options.get("bits"), options.get("clusters")
    return None if bits is None and clusters is None else Cluster(bits=bits, clusters=clusters)


def _choices(names: list[str], include: tuple[str, ...], exclude: tuple[str, ...]) -> dict[str, _Choice]:
    for pattern in (*include, *exclude):
        if not any(_hits(pattern, name) for name in names):
            raise TargetError(f"the pattern {pattern!r} matches no tensor.{did_you_mean(pattern, names)}")
    choices = {}
    for name in names:
        hits = [pattern for pattern in include if _hits(pattern, name)]
        reason = "not included" if include and not hits else ""
        for pattern in exclude:
            reason = f"excluded by {pattern!r}" if _hits(pattern, name) else reason
        choices[name] = _Choice(reason, any(_names(pattern, name) for pattern in hits))
    return choices


def _hits(pattern: str, name: str) -> bool:
    return any(matches(pattern, one) for one in (name, *_modules(name)))


def _names(pattern: str, name: str) -> bool:
    """Whether the pattern means the tensor itself, not all that its module holds."""
    return not any(matches(pattern, one) for one in ("", *_modules(name)))


def _modules(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _pack_one(
    source: _Source, name: str, plan: Cluster | float | None, choice: _Choice
) -> tuple[CompressedTensor, PackRow]:
    started = perf_counter()
    tensor = source.read(name)
    reason = _why_lossless(tensor, plan, choice)
    compressed = None
    if reason == "" and isinstance(plan, Cluster):
        compressed = cluster_tensor(tensor, _keeping_zeros(tensor, plan))
    elif reason == "" and isinstance(plan, float):
        compressed = bounded_grid(tensor, plan)
        reason = "" if compressed else f"its dtype is too coarse for an error of {plan:g}"
    relative, worst = (0.0, 0.0) if compressed is None else deviation(tensor, compressed.decode())
    action: Literal["clustered", "grid", "lossless"] = "clustered" if isinstance(plan, Cluster) else "grid"
    row = PackRow(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."),
                  "lossless" if compressed is None else action, reason, relative, worst,
                  tensor.numel() * tensor.element_size(), perf_counter() - started,
                  0 if compressed else count_non_finite(tensor))  # fmt: skip
    return compressed or raw(tensor), row


def _why_lossless(tensor: torch.Tensor, plan: Cluster | float | None, choice: _Choice) -> str:
    """Why a tensor is kept as it is, or nothing."""
    if plan is None:
        return "lossless was asked for"
    if choice.reason:
        return choice.reason
    if tensor.dtype not in _FLOATS:
        return f"{str(tensor.dtype).removeprefix('torch.')} is not a float of 16 bits or more"
    if tensor.ndim < 2 and not choice.named:
        return f"{tensor.ndim} dimensions: norms, biases and scalars are kept"
    if isinstance(plan, Cluster):
        code_bits = max((plan.max_clusters - 1).bit_length(), 1)
        if tensor.numel() * code_bits / 8 + 4 * plan.max_clusters >= tensor.numel() * tensor.element_size():
            return f"too small: {tensor.numel()} weights beside a codebook of {plan.max_clusters}"
    return ""


def _keeping_zeros(tensor: torch.Tensor, plan: Cluster) -> Cluster:
    """Hold an exact zero where zeros are common enough to own a code: what was pruned stays pruned."""
    zeros = tensor.numel() - int(torch.count_nonzero(tensor))
    if plan.max_clusters < 2 or zeros * plan.max_clusters < tensor.numel():
        return plan
    return Cluster(bits=plan.bits, clusters=plan.clusters, keep_zero=True)


def _print_metadata(metadata: Mapping[str, str]) -> bytes:
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _parse_metadata(data: bytes) -> dict[str, str]:
    try:
        metadata = json.loads(data)
    except ValueError as error:
        raise FormatError(f"the attachment {_ATTACHMENT!r} is not JSON") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"the attachment {_ATTACHMENT!r} does not map names to strings")
    return metadata
