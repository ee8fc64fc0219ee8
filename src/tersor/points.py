"""Where activations are quantized: one placement for training, for the file and for every runtime.

The graph here is neutral: operations that read and make named values. :mod:`tersor.model.trace` draws it
from a PyTorch model, :mod:`tersor.export.graph` from an ONNX file; :func:`place` decides on either.

A value has at most one point, and all that read it see it quantized (of one whose scale is taken from each
batch only linear layers do). What runtimes compute in integers is
between two points: a layer with its activation function, a residual addition, a pooling.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from tersor.errors import VerificationError, did_you_mean

WEIGHTED = ("conv", "linear")
ELEMENTWISE = ("add", "mul", "cat", "avg_pool")
FUSED = ("relu", "clip")
MOVES = ("max_pool", "move")  # values pass unchanged, so their grid does
RECURRENT = ("lstm", "gru", "rnn")
INPUT = "input"
MOST_BITS = 8  # of a point
CENTER = 128  # of its codes then
_FLOAT_OUT = ("linear",)  # runtimes give its result in float where nobody wants integers

Key = tuple[str, str, int]
Action = Literal["integer", "float", "weights only"]


@dataclass(frozen=True)
class QuantPoint:
    """How one value is quantized: code = round(value / scale) + zero_point, held in ``bits``.

    path, operation, index -- the module that makes the value ("" is the model), what it does there, and which
        call of that it is. An input of the model is (``""``, ``"input"``, its number).
    scale -- a float32 above 0; 0.0 means dynamic: the runtime takes it from each batch, and only linear
        layers see the value quantized (:func:`seen_by`).
    """

    path: str
    operation: str
    index: int
    bits: int = 8
    signed: bool = False
    scale: float = 0.0
    zero_point: int = 0

    @property
    def key(self) -> Key:
        """What names the point."""
        return self.path, self.operation, self.index

    @property
    def dynamic(self) -> bool:
        """Whether the runtime finds the scale, batch by batch."""
        return self.scale == 0

    @property
    def low(self) -> int:
        """The least code."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def high(self) -> int:
        """The greatest code."""
        return self.low + (1 << self.bits) - 1


def as_int8(points: Iterable[QuantPoint]) -> tuple[QuantPoint, ...]:
    """The same grids with the zero points of 128 as 0 among int8 codes, where there is nothing to correct.

    OpenVINO computes such products in less time; ONNX Runtime on x86 wants uint8.

    >>> as_int8([QuantPoint("", "input", 0, scale=0.1, zero_point=128)])[0].zero_point
    0
    """
    return tuple(
        replace(one, signed=True, zero_point=0)
        if (one.bits, one.signed, one.zero_point) == (MOST_BITS, False, CENTER) and not one.dynamic
        else one
        for one in points
    )


@dataclass(frozen=True)
class Operation:
    """One operation of a model: what it reads and makes.

    kind -- one of the words of this module where runtimes have integers for it, else the operator's name.
    inputs -- the floating activations that it reads; weights -- the parameters, by the names of the file, of
        a layer its weight first, or none where that is computed.
    """

    kind: str
    path: str
    index: int
    inputs: tuple[str, ...]
    output: str
    weights: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What names the point on its output."""
        return self.path, self.kind, self.index


@dataclass(frozen=True)
class Decision:
    """What was decided of an operation that has weights or could run in integers, and why."""

    operation: Operation
    action: Action
    reason: str


@dataclass(frozen=True)
class Placement:
    """The points by the value that they sit on, and what was decided.

    follows -- values that lie on the grid of another one, since they only move or pick its elements.
    """

    points: Mapping[str, Key]
    follows: Mapping[str, str]
    decisions: tuple[Decision, ...]


def place(
    operations: Sequence[Operation],
    inputs: Sequence[str],
    quantized: Iterable[str],
    left_out: Mapping[str, str] | None = None,
    *,
    dynamic: bool = False,
) -> Placement:
    """Decide which operations run in integers, and which values are quantized for them.

    inputs -- names of the model's floating inputs, in order.
    quantized -- the weights that have integer codes; left_out -- a reason by module path, for operations
        that stay float whatever they are.

    A layer is integer if its weight is quantized. An addition, a product, a concatenation or an average
    pooling is where its result reaches an integer operation. ReLU and clipping belong to the operation before
    them if nothing else reads its result.

    >>> conv = Operation("conv", "conv1", 0, ("x",), "conv2d", ("conv1.weight",))
    >>> relu = Operation("relu", "", 0, ("conv2d",), "relu")
    >>> place([conv, relu], ["x"], ["conv1.weight"]).points
    {'x': ('', 'input', 0), 'relu': ('', 'relu', 0)}
    """
    graph = _Graph(operations, frozenset(quantized), left_out or {})
    integer = graph.integer(("linear",), ()) if dynamic else graph.integer(WEIGHTED, ELEMENTWISE)
    keys = keys_of(operations, inputs)
    wanted: dict[str, Key] = {}
    for one in operations:
        if one.output in integer:
            for value in one.inputs:
                root = value if dynamic else graph.root(value)
                wanted.setdefault(root, keys[root])
    for one in operations:
        if one.output in integer and one.kind not in _FLOAT_OUT and not dynamic:
            end = graph.end(one)
            wanted.setdefault(end, keys[end])
    points = {value: wanted[value] for value in keys if value in wanted}
    follows = {} if dynamic else graph.follows(points)
    return Placement(points, follows, tuple(graph.decisions(integer)))


def placement_of(
    operations: Sequence[Operation],
    inputs: Sequence[str],
    quantized: Iterable[str],
    points: Iterable[QuantPoint],
) -> Placement:
    """Where given points are, and what runs in integers between them: what a file tells of a placement.

    A layer with a quantized weight is integer if all that it reads has a point; so is another operation whose
    result has one too. Raises :class:`VerificationError` for a point that the graph has no value for.

    >>> conv = Operation("conv", "conv1", 0, ("x",), "y", ("conv1.weight",))
    >>> found = placement_of([conv], ["x"], ["conv1.weight"], [QuantPoint("", "input", 0, scale=0.1)])
    >>> found.points, found.decisions[0].action
    ({'x': ('', 'input', 0)}, 'integer')
    """
    graph = _Graph(operations, frozenset(quantized), {})
    named = keys_of(operations, inputs)
    given = {point.key: point for point in points}
    unknown = set(given) - set(named.values())
    if unknown:
        hint = did_you_mean(spell(min(unknown)), [spell(key) for key in named.values()])
        raise VerificationError(f"the model has no value for the point {spell(min(unknown))}.{hint}")
    placed = {value: key for value, key in named.items() if key in given}
    follows = graph.follows({value: key for value, key in placed.items() if not given[key].dynamic})
    dynamic = {value for value, key in placed.items() if given[key].dynamic}
    integer = graph.between({*placed, *follows}, dynamic)
    follows = {value: root for value, root in follows.items() if value not in placed}
    return Placement(placed, follows, tuple(graph.decisions(integer)))


def keys_of(operations: Iterable[Operation], inputs: Iterable[str]) -> dict[str, Key]:
    """The key of each value, in the order of the graph."""
    found: dict[str, Key] = {name: ("", INPUT, at) for at, name in enumerate(inputs)}
    return found | {one.output: one.key for one in operations}


def seen_by(operations: Iterable[Operation], value: str) -> tuple[str, ...]:
    """The outputs of the operations that see a value quantized where its point is dynamic.

    Those are linear layers with a stored weight: what else reads it would lose by the rounding, and gains
    nothing, since runtimes quantize batch by batch for a product only.

    >>> linear = Operation("linear", "fc", 0, ("x",), "y", ("fc.weight",))
    >>> seen_by([linear, Operation("add", "", 0, ("x", "y"), "z")], "x")
    ('y',)
    """
    return tuple(one.output for one in operations if value in one.inputs and _takes_batches(one))


def _takes_batches(one: Operation) -> bool:
    return one.kind == "linear" and bool(one.weights)


def label(key: Key) -> str:
    """A key as a name in a file.

    >>> label(("conv1", "conv", 0)), label(("", "add", 1))
    ('conv1.conv', 'add_1')
    """
    path, operation, index = key
    return ".".join(filter(None, (path, operation))) + (f"_{index}" if index else "")


def spell(key: Key) -> str:
    """A key for people.

    >>> spell(("conv1", "conv", 0)), spell(("", "add", 1))
    ('conv1 (conv)', 'model (add, call 2)')
    """
    path, operation, index = key
    call = f", call {index + 1}" if index else ""
    return f"{path or 'model'} ({operation}{call})"


class _Graph:
    def __init__(
        self, operations: Sequence[Operation], quantized: frozenset[str], left_out: Mapping[str, str]
    ) -> None:
        self.operations = operations
        self.quantized = quantized
        self.left_out = left_out
        self.producer = {one.output: one for one in operations}
        self.readers: dict[str, list[Operation]] = {}
        for one in operations:
            for value in one.inputs:
                self.readers.setdefault(value, []).append(one)

    def root(self, value: str) -> str:
        """The value whose elements this one only moves or picks."""
        producer = self.producer.get(value)
        while producer is not None and producer.kind in MOVES and producer.inputs:
            value = producer.inputs[0]
            producer = self.producer.get(value)
        return value

    @cached_property
    def fused(self) -> dict[str, str]:
        """The output of an operation -> that of the activation function that belongs to it."""
        found = {}
        for one in self.operations:
            if one.kind not in FUSED or len(one.inputs) != 1:
                continue
            producer = self.producer.get(one.inputs[0])
            alone = len(self.readers.get(one.inputs[0], [])) == 1
            if producer is not None and alone and producer.kind in (*WEIGHTED, "add", "mul"):
                found[producer.output] = one.output
        return found

    def end(self, operation: Operation) -> str:
        """The value that leaves an operation and the activation function that belongs to it."""
        return self.fused.get(operation.output, operation.output)

    def reached(self, value: str) -> list[Operation]:
        """The operations that read a value, or what was moved or picked from it."""
        found = []
        for one in self.readers.get(value, []):
            found += self.reached(one.output) if one.kind in MOVES else [one]
        return found

    def integer(self, layers: Sequence[str], others: Sequence[str]) -> set[str]:
        """The outputs of all operations that run in integers: of ``layers`` with weights, of ``others``."""
        integer = {one.output for one in self.operations if one.kind in layers and not self.obstacle(one)}
        candidates = [
            one
            for one in reversed(self.operations)
            if one.kind in others and not self.excluded(one) and self.complete(one)
        ]
        before = -1
        while before != len(integer):
            before = len(integer)
            for one in candidates:
                if any(reader.output in integer for reader in self.reached(self.end(one))):
                    integer.add(one.output)
        return integer

    def between(self, points: Collection[str], dynamic: Collection[str]) -> set[str]:
        """The outputs of the operations that run in integers where these values are quantized."""
        integer = set()
        for one in self.operations:
            fed = all(value in points for value in one.inputs)
            if not _takes_batches(one):
                fed = fed and not any(value in dynamic for value in one.inputs)
            layer = one.kind in WEIGHTED and not self.obstacle(one)
            made = one.kind in ELEMENTWISE and self.complete(one) and self.end(one) in points
            if fed and (layer or made):
                integer.add(one.output)
        return integer

    def follows(self, points: Mapping[str, Key]) -> dict[str, str]:
        """The values that move or pick the elements of one that has a point, and that one."""
        return {
            one.output: root
            for one in self.operations
            if one.kind in MOVES and one.inputs and (root := self.root(one.output)) in points
        }

    def complete(self, operation: Operation) -> bool:
        """Whether it reads nothing but activations."""
        least = 1 if operation.kind == "avg_pool" else 2
        return len(operation.inputs) >= least and not operation.weights

    def obstacle(self, operation: Operation) -> str:
        """Why a layer is not integer, or ""."""
        if operation.kind not in WEIGHTED:
            return f"no layer with weights ({operation.kind})"
        excluded = self.excluded(operation)
        if excluded:
            return excluded
        if not operation.weights:
            return "its weight is computed, not stored"
        return "" if operation.weights[0] in self.quantized else "its weight is not quantized"

    def excluded(self, operation: Operation) -> str:
        """The reason for which the user's rules leave it out, or ""."""
        path = operation.path
        while path and path not in self.left_out:
            path = path.rpartition(".")[0]
        return self.left_out.get(path, "")

    def decisions(self, integer: set[str]) -> Iterable[Decision]:
        fused = {relu: self.producer[source] for source, relu in self.fused.items()}
        for one in self.operations:
            stored = any(name in self.quantized for name in one.weights)
            if one.output in integer:
                yield Decision(one, "integer", "")
            elif one.output in fused and fused[one.output].output in integer:
                yield Decision(one, "integer", f"part of {fused[one.output].kind}")
            elif one.kind in MOVES:
                continue
            elif stored:
                yield Decision(one, "weights only", self._why_float(one))
            else:
                yield Decision(one, "float", self._why_float(one))

    def _why_float(self, one: Operation) -> str:
        if one.kind in WEIGHTED:
            return self.obstacle(one)
        if one.kind in RECURRENT:
            return "runtimes compute recurrent layers in float"
        excluded = self.excluded(one)
        if excluded:
            return excluded
        if one.kind in ELEMENTWISE:
            return (
                "its result reaches no integer operation"
                if self.complete(one)
                else "one operand is a constant or a weight"
            )
        if one.kind in FUSED:
            return "the operation before it is not integer, or others read its result too"
        return f"runtimes have no integers for {one.kind}"
