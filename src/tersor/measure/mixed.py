"""The memory of a model of which some values are integers and others floats, as the points of a file say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tersor.measure.memory import Flow, Node
from tersor.model.dataflow import Dataflow, Kernel
from tersor.points import FUSED, Operation, Placement, QuantPoint, seen_by


@dataclass(frozen=True)
class Precisions:
    """Which values of a graph are integers, by their names in it.

    bits -- of those that have codes. integer -- the results of operations that compute on codes.
    copied -- values of which only some readers see codes, and those readers: the others read the floats.
    """

    bits: Mapping[str, int]
    integer: frozenset[str]
    copied: Mapping[str, frozenset[str]]


def precisions_of(
    operations: Iterable[Operation], placement: Placement, points: Iterable[QuantPoint]
) -> Precisions:
    """The precision of each value where ``points`` are placed so; what has none is float.

    >>> from tersor.points import placement_of
    >>> conv = Operation("conv", "c", 0, ("x",), "y", ("c.weight",))
    >>> relu = Operation("relu", "", 0, ("y",), "z")
    >>> points = [QuantPoint("", "input", 0, scale=0.1), QuantPoint("", "relu", 0, bits=4, scale=0.1)]
    >>> found = precisions_of([conv, relu], placement_of([conv, relu], ["x"], ["c.weight"], points), points)
    >>> found.bits, sorted(found.integer)
    ({'x': 8, 'z': 4, 'y': 4}, ['y', 'z'])
    """
    given = {point.key: point for point in points}
    operations = tuple(operations)
    placed = {value: given[key] for value, key in placement.points.items()}
    bits = {value: point.bits for value, point in placed.items() if not point.dynamic}
    bits |= {value: bits[root] for value, root in placement.follows.items() if root in bits}
    integer = {one.operation.output for one in placement.decisions if one.action == "integer"}
    for one in (decision.operation for decision in placement.decisions):
        if one.kind in FUSED and one.output in integer and one.output in bits:
            bits[one.inputs[0]] = bits[one.output]
    copied = {
        value: frozenset(seen_by(operations, value)) for value, point in placed.items() if point.dynamic
    }
    bits |= {value: placed[value].bits for value in copied}
    return Precisions(bits, frozenset(integer.union(placement.follows)), copied)


def mixed_flow(dataflow: Dataflow, precisions: Precisions) -> Flow:
    """As a runtime runs it with codes for some values, and floats for the others.

    Where a float operation makes what an integer one reads, or the other way round, there is an operation
    more, ``quantize`` or ``dequantize``, and a buffer more.
    """
    return _Mixed(dataflow, precisions).flow()


class _Mixed:
    """The flow of a dataflow, each buffer in up to two forms: codes and floats."""

    def __init__(self, dataflow: Dataflow, precisions: Precisions) -> None:
        self.dataflow = dataflow
        self.precisions = precisions
        self.sizes: dict[str, int] = {}
        self.nodes: list[Node] = []
        self.codes: set[str] = set()  # buffers that hold codes as they are made
        self.bits: dict[str, int] = {}
        self.copied: dict[str, frozenset[str]] = {}
        for value, bits in precisions.bits.items():
            for buffer in dataflow.held.get(value, ()):
                self.bits[buffer] = bits
                if value in precisions.copied:
                    self.copied[buffer] = precisions.copied[value]
        self.written: dict[str, list[str]] = {}  # buffer -> the operations that changed it in place
        self.converted: dict[tuple[str, str, int], str] = {}  # word, buffer, elements -> its other form

    def flow(self) -> Flow:
        """The operations in the order of the dataflow, each with the conversions that it needs before it."""
        for name in self.dataflow.inputs:
            self._add(name, codes=False)
        for kernel in self.dataflow.kernels:
            self._run(kernel)
        whole = {name: one.elements for name, one in self.dataflow.buffers.items()}
        kept = frozenset(self._read(one, whole[one], "", False) for one in sorted(self.dataflow.outputs))
        return Flow(self.sizes, tuple(self.nodes), self.dataflow.inputs, kept)

    def _run(self, kernel: Kernel) -> None:
        integer = kernel.value in self.precisions.integer
        reads = {
            one: one if one in kernel.writes else self._read(one, span, kernel.value, integer)
            for one, span in zip(kernel.reads, kernel.spans, strict=True)
        }
        for one in kernel.makes:
            self._add(one, codes=integer and one in self.bits and one not in self.copied)
        over = tuple(reads[one] for one in kernel.over)
        after = list(kernel.after)
        for one in kernel.writes:
            stale = [key for key in self.converted if key[1] == one]
            after += [self.converted.pop(key) for key in stale]
            self.written.setdefault(one, []).append(kernel.name)
        self.nodes.append(
            Node(kernel.name, tuple(dict.fromkeys(reads.values())), kernel.makes, over, tuple(after))
        )

    def _add(self, name: str, *, codes: bool) -> None:
        if codes:
            self.codes.add(name)
        self.sizes[name] = self.dataflow.buffers[name].size_bytes(self.bits[name] if codes else None)

    def _read(self, name: str, span: int, reader: str, integer: bool) -> str:
        """The buffer in which a reader finds a value, after a conversion if it needs one.

        span -- how many elements it reads: a part that was cut out is all that becomes floats.
        """
        whole = self.dataflow.buffers[name].elements
        if name in self.copied:
            return self._convert("quantize", name, name, whole) if reader in self.copied[name] else name
        if name not in self.bits:
            return name
        codes = name if name in self.codes else self._convert("quantize", name, name, whole)
        return codes if integer else self._convert("dequantize", codes, name, span)

    def _convert(self, word: str, source: str, name: str, span: int) -> str:
        if (word, name, span) not in self.converted:
            made = f"{word} {name}"
            while made in self.sizes:
                made += " again"
            bits = self.bits[name] if word == "quantize" else None
            part = replace(self.dataflow.buffers[name], elements=span)
            self.sizes[made] = part.size_bytes(bits)
            after = tuple(self.written.get(name, ()))
            self.nodes.append(Node(made, (source,), (made,), (), after))
            self.converted[word, name, span] = made
        return self.converted[word, name, span]
