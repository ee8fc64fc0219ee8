"""What a model takes in memory, precisions side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.report.figures import format_bytes, format_shape, printable
from tersor.report.tables import Table

if TYPE_CHECKING:
    from tersor.measure.footprint import Footprint, LayerMemory, ModelMemory

PREFETCH = "prefetching weights is the runtime's business, and not counted"


def memory_table(found: ModelMemory) -> Table:
    """The totals of each precision, estimated; what PyTorch was measured to take stands below."""
    rows = tuple(
        (
            one.precision,
            f"{one.weights_bytes:,}",
            f"{one.given_arena.peak_bytes:,}",
            f"{one.arena.peak_bytes:,}{'' if one.arena.exact else ' *'}",
            f"{one.arena.size_bytes:,}",
            f"{one.total_bytes:,}",
            printable(one.arena.peak_at),
        )
        for one in found.footprints
    )
    columns = (
        "precision", "weights", "peak, own order", "peak, best order", "arena", "weights + arena", "peak at"
    )  # fmt: skip
    title = f"memory in bytes at batch {found.batch_size:,}, estimated; {found.macs:,.0f} macs a sample"
    return Table(title, columns, rows, left=1, notes=(*_notes(found), PREFETCH))


def weights_table(found: ModelMemory) -> Table:
    """The bytes of the weights of each operation that reads any, and its arithmetic."""
    first = found.footprints[0]
    named = [one for one in first.layers if one.weights_bytes or one.macs]
    columns = ("operation", "macs", *(one.precision for one in found.footprints))
    rows = tuple(
        (printable(one.name), f"{one.macs:,.0f}" if one.macs else "-",
         *(f"{_layers(other)[one.name].weights_bytes:,}" for other in found.footprints))
        for one in named
    )  # fmt: skip
    total = ("all", f"{found.macs:,.0f}", *(f"{one.weights_bytes:,}" for one in found.footprints))
    return Table("weights in bytes, as codes with their scales", columns, rows, total=total)


def activations_table(found: ModelMemory) -> Table:
    """What is alive while each operation runs, in the order of the last precision."""
    last = found.footprints[-1]
    alive = (f"alive, {one.precision}" for one in found.footprints)
    columns = ("operation", "shape", "reads", "makes", *alive)
    rows = tuple(
        (
            printable(one.name),
            format_shape(one.shape) if one.shape else "-",
            f"{one.read_bytes:,}",
            f"{one.made_bytes:,}",
            *(_alive(other, one.name) for other in found.footprints),
        )
        for one in last.layers
    )
    peaks = (f"{one.arena.peak_bytes:,}" for one in found.footprints)
    title = f"activations in bytes, in the best order of {last.precision} (reads and makes are its own)"
    return Table(title, columns, rows, left=2, total=("peak", "", "", "", *peaks))


def _layers(one: Footprint) -> dict[str, LayerMemory]:
    return {layer.name: layer for layer in one.layers}


def _alive(one: Footprint, name: str) -> str:
    found = [layer for layer in one.layers if layer.name == name]
    return f"{found[0].live_bytes:,}" if found else "-"


def _notes(found: ModelMemory) -> tuple[str, ...]:
    measured = found.measured
    notes = [
        f"measured in PyTorch, tensors between operations: {format_bytes(measured.eager_bytes)} as the model "
        f"runs; {format_bytes(measured.given_bytes)} as its graph does in its own order (estimated "
        f"{measured.estimated_bytes:,}); {format_bytes(measured.planned_bytes)} in the best order (estimated "
        f"{measured.planned_estimated_bytes:,})",
        "a peak is the most that is alive at once, an arena holds every buffer at a fixed place; PyTorch is "
        "measured to take more, since it writes over less and the caller holds the inputs",
        "codes are counted side by side: runtimes hold activations of fewer than 8 bits in whole bytes, and "
        "ONNX Runtime widens weights of 4 bits when it loads, but for linear layers in blocks",
    ]  # fmt: skip
    if found.file is not None:
        notes.insert(0, f"file is {printable(found.file)}: {format_bytes(found.file_bytes or 0)} on disk")
    if not all(one.arena.exact for one in found.footprints):
        notes.append("* the lowest that was found; a lower one is not ruled out")
    return tuple(notes)
