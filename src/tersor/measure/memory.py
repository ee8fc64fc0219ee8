"""How much memory the values between operations take: what is alive when, and where it can lie.

Plain data in, plain data out: buffers with their bytes, and the operations that make and read them. Weights
are no buffers: they lie in memory all the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tersor.errors import SpecError

ALIGNMENT = 64  # bytes: a line of the cache, and what the widest vector instructions load at once
_TRIES = 30  # orders in which buffers are placed


@dataclass(frozen=True)
class Node:
    """One operation: the buffers that it reads and makes.

    over -- buffers among ``reads`` whose memory the first that it makes may take, if nobody needs them then.
    after -- operations that have to come first for another reason than that it reads what they make.
    """

    name: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    over: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flow:
    """The operations of a model in an order in which they can run, and the bytes of each buffer.

    inputs -- buffers that are there before the first operation; kept -- those that are needed after the last:
        outputs. What is made and never read is there while its operation runs.

    Raises :class:`SpecError` for a buffer without bytes, and for an order that cannot run.
    """

    sizes: Mapping[str, int]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...] = ()
    kept: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        there, done = set(self.inputs), set()
        for node in self.nodes:
            unknown = [one for one in (*node.reads, *node.makes) if self.sizes.get(one, -1) < 0]
            if unknown:
                raise SpecError(
                    f"operation {node.name!r}: buffer {unknown[0]!r} has no size of 0 or more bytes"
                )
            early = [one for one in node.reads if one not in there] + [
                one for one in node.after if one not in done
            ]
            if early or node.name in done or there.intersection(node.makes):
                what = f"before {early[0]!r}" if early else "twice"
                raise SpecError(f"operation {node.name!r} would run {what}: give an order that can run")
            there.update(node.makes)
            done.add(node.name)

    def ordered(self, names: Sequence[str]) -> Flow:
        """The same in another order; raises :class:`SpecError` for one that cannot run, or lacks some."""
        by_name = {node.name: node for node in self.nodes}
        if sorted(names) != sorted(by_name):
            raise SpecError(f"an order of {len(names)} names for {len(by_name)} operations: name each once")
        return Flow(self.sizes, tuple(by_name[name] for name in names), self.inputs, self.kept)


@dataclass(frozen=True)
class Placed:
    """A buffer in the arena: its bytes, where they begin, and the first and last operation of its life."""

    name: str
    size_bytes: int
    offset: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """What one order of execution takes.

    order -- the operations by name; ``live_bytes`` -- what is alive while each runs.
    peak_bytes -- the most of these: no arena is smaller in this order. ``peak_at`` is the operation.
    size_bytes -- of the arena as the buffers are placed.
    reused -- buffer -> the one whose memory it takes.
    exact -- whether no order has a lower peak; False: none was found.
    """

    order: tuple[str, ...]
    live_bytes: tuple[int, ...]
    size_bytes: int
    buffers: tuple[Placed, ...]
    reused: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False

    @property
    def peak_bytes(self) -> int:
        """The most that is alive at once."""
        return max(self.live_bytes, default=0)

    @property
    def peak_at(self) -> str:
        """The first operation at which that is so; "" if there is none."""
        return self.order[self.live_bytes.index(self.peak_bytes)] if self.order else ""

    def live(self, at: int) -> tuple[str, ...]:
        """The buffers that are alive while the operation at this place of the order runs."""
        return tuple(one.name for one in self.buffers if one.first <= at <= one.last)


def lifetimes(flow: Flow) -> dict[str, tuple[int, int]]:
    """The first and the last operation, by their places, at which each buffer is needed.

    An input that nothing reads has no life.

    >>> flow = Flow({"x": 4, "y": 8}, (Node("f", ("x",), ("y",)),), ("x",), frozenset({"y"}))
    >>> lifetimes(flow)
    {'x': (0, 0), 'y': (0, 0)}
    """
    end = len(flow.nodes) - 1
    first = dict.fromkeys(flow.inputs, 0)
    last = {name: end for name in flow.inputs if name in flow.kept}
    for at, node in enumerate(flow.nodes):
        for name in node.makes:
            first[name] = at
            last[name] = end if name in flow.kept else at
        for name in node.reads:
            last[name] = max(at, last.get(name, 0))
    return {name: (start, last[name]) for name, start in first.items() if name in last}


def reuse(flow: Flow, lives: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Which buffers take the memory of one that is read for the last time, as their operations allow."""
    found = {}
    for at, node in enumerate(flow.nodes):
        ending = [
            one
            for one in node.over
            if lives[one][1] == at and one not in flow.kept and flow.sizes[one] == flow.sizes[node.makes[0]]
        ]
        if ending:
            found[node.makes[0]] = ending[0]
    return found


def lay_out(flow: Flow, *, alignment: int = ALIGNMENT, exact: bool = False) -> Arena:
    """What is alive at each operation in the order of ``flow``, and an arena that holds it.

    Buffers are placed by size, the largest first, each into the smallest gap between those that live when it
    does; or by operation, those of the one that needs most first (Pisarchyk & Lee 2020, Efficient Memory
    Management for Deep Neural Net Inference, section 5: offsets, greedy by size and by breadth, as in
    TensorFlow Lite). Where that leaves holes, what ends last is placed earlier and all is tried again.

    >>> flow = Flow({"x": 4, "y": 4, "z": 2}, (Node("f", ("x",), ("y",)), Node("g", ("y",), ("z",))), ("x",))
    >>> arena = lay_out(flow, alignment=1)
    >>> arena.live_bytes, arena.size_bytes, [(one.name, one.offset) for one in arena.buffers]
    ((8, 6), 8, [('x', 0), ('y', 4), ('z', 0)])
    """
    if alignment < 1:
        raise SpecError(f"alignment is {alignment}: it has to be 1 byte or more")
    lives = lifetimes(flow)
    reused = reuse(flow, lives)
    blocks = _blocks(flow, lives, reused)
    live = [0] * len(flow.nodes)
    for block in blocks:
        for at in range(block.first, block.last + 1):
            live[at] += block.size_bytes
    places = _packed(blocks, live, alignment)
    buffers = [
        Placed(name, flow.sizes[name], places[block], *lives[name])
        for block in blocks
        for name in block.names
    ]
    buffers.sort(key=lambda one: (one.first, one.offset))
    order = tuple(node.name for node in flow.nodes)
    return Arena(order, tuple(live), _end(places), tuple(buffers), reused, exact)


@dataclass(frozen=True)
class _Block:
    """Memory that one buffer after another has: those that take each other's place."""

    names: tuple[str, ...]
    size_bytes: int
    first: int
    last: int


def _blocks(flow: Flow, lives: Mapping[str, tuple[int, int]], reused: Mapping[str, str]) -> list[_Block]:
    chains: dict[str, list[str]] = {}
    of: dict[str, list[str]] = {}
    for name in sorted(lives, key=lambda one: lives[one]):
        chain = of[reused[name]] if name in reused else chains.setdefault(name, [])
        chain.append(name)
        of[name] = chain
    return [
        _Block(tuple(chain), flow.sizes[chain[0]], lives[chain[0]][0], lives[chain[-1]][1])
        for chain in chains.values()
    ]


def _packed(blocks: Sequence[_Block], live: Sequence[int], alignment: int) -> dict[_Block, int]:
    """Where each block begins, in the smallest arena that was found."""
    widest = {one: max(live[one.first : one.last + 1]) for one in blocks}
    by_size = sorted(blocks, key=lambda one: (-one.size_bytes, one.first))
    by_breadth = sorted(blocks, key=lambda one: (-widest[one], -one.size_bytes, one.first))
    best: dict[_Block, int] = {}
    for order in (by_size, by_breadth):
        for _ in range(_TRIES):
            places = _placed(order, alignment)
            end = _end(places)
            if not best or end < _end(best):
                best = places
            if _end(best) <= max(live, default=0):
                return best
            late = {one for one, offset in places.items() if offset + one.size_bytes == end}
            order = sorted(order, key=lambda one: one not in late)  # stable: the others as they were
    return best


def _placed(order: Sequence[_Block], alignment: int) -> dict[_Block, int]:
    """Where each block begins."""
    places: dict[_Block, int] = {}
    for block in order:
        beside = sorted(
            (places[other], other.size_bytes)
            for other in places
            if other.first <= block.last and block.first <= other.last
        )
        best, narrowest, end = -1, 0, 0
        for start, size in beside:
            gap = start - end
            if gap >= block.size_bytes and (best < 0 or gap < narrowest):
                best, narrowest = end, gap
            end = max(end, -(-(start + size) // alignment) * alignment)
        places[block] = end if best < 0 else best
    return places


def _end(places: Mapping[_Block, int]) -> int:
    return max((offset + block.size_bytes for block, offset in places.items()), default=0)
