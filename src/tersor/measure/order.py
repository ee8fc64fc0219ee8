"""In which order operations take the least memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

from tersor.measure.memory import ALIGNMENT, Arena, Flow, lay_out

MOST_STATES = 20_000  # sets of operations that the search looks at: seconds, in the worst case


def plan_memory(flow: Flow, *, alignment: int = ALIGNMENT, most_states: int = MOST_STATES) -> Arena:
    """The arena of the order with the lowest peak; of the given order where that one needs no more.

    The search goes over sets of operations that have run, those with the lowest peak so far first, so the
    first that is complete is the best (``exact``); past ``most_states`` of them it is left to greedy choices.
    The given order is taken wherever the other's arena would be larger.

    >>> from tersor.measure.memory import Node
    >>> flow = Flow({"x": 1, "a": 8, "b": 1, "c": 8, "d": 1}, (
    ...     Node("1", ("x",), ("a",)), Node("2", ("x",), ("c",)), Node("3", ("a",), ("b",)),
    ...     Node("4", ("c",), ("d",))), ("x",), frozenset("bd"))
    >>> arena = plan_memory(flow, alignment=1)
    >>> lay_out(flow).peak_bytes, arena.peak_bytes, arena.order, arena.exact
    (17, 10, ('1', '3', '2', '4'), True)
    """
    order, exact = lowest_peak(flow, most_states=most_states)
    given = lay_out(flow, alignment=alignment, exact=exact)
    found = lay_out(flow.ordered(order), alignment=alignment, exact=exact)
    if (found.size_bytes, found.peak_bytes) < (given.size_bytes, given.peak_bytes):
        return found
    return given if given.peak_bytes == found.peak_bytes else lay_out(flow, alignment=alignment)


def lowest_peak(flow: Flow, *, most_states: int = MOST_STATES) -> tuple[tuple[str, ...], bool]:
    """The order with the lowest peak, and whether no other can have a lower one."""
    costs = _Costs(flow)
    best = min(
        (list(range(len(flow.nodes))), _greedy(costs, _least_alive), _greedy(costs, _lowest_now)),
        key=costs.peak,
    )
    order, exact = best, costs.peak(best) <= costs.bound
    if not exact:
        order, exact = _search(costs, best, most_states)
    return tuple(flow.nodes[at].name for at in order), exact


@dataclass(frozen=True)
class _Move:
    """What running an operation does: bytes alive meanwhile and afterwards."""

    at: int
    during: int
    then: int


class _Costs:
    """A flow with sets of operations as the bits of integers."""

    def __init__(self, flow: Flow) -> None:
        at = {node.name: one for one, node in enumerate(flow.nodes)}
        maker = {name: one for one, node in enumerate(flow.nodes) for name in node.makes}
        self.flow = flow
        self.readers: dict[str, int] = {}
        for one, node in enumerate(flow.nodes):
            for name in node.reads:
                self.readers[name] = self.readers.get(name, 0) | 1 << one
        self.before = [
            sum(1 << one for one in {*(maker[name] for name in node.reads if name in maker),
                                     *(at[name] for name in node.after)})
            for node in flow.nodes
        ]  # fmt: skip
        self.following: list[list[int]] = [[] for _ in flow.nodes]
        for one, mask in enumerate(self.before):
            for other in _bits(mask):
                self.following[other].append(one)
        self.start = sum(
            flow.sizes[name] for name in flow.inputs if name in self.readers or name in flow.kept
        )
        self.ready = sum(1 << one for one, mask in enumerate(self.before) if not mask)
        self.all = (1 << len(flow.nodes)) - 1
        self.bound = max([self.start, *map(self._least, range(len(flow.nodes)))])

    def _least(self, at: int) -> int:
        """What is alive at least while an operation runs: what it reads and makes."""
        node, sizes = self.flow.nodes[at], self.flow.sizes
        held = sum(sizes[name] for name in {*node.reads, *node.makes})
        same = [one for one in node.over if sizes[one] == sizes[node.makes[0]] and one not in self.flow.kept]
        return held - (sizes[same[0]] if same else 0)

    def move(self, at: int, done: int, live: int) -> _Move:
        """Run an operation where ``done`` have run and ``live`` bytes are alive."""
        flow, node = self.flow, self.flow.nodes[at]
        done |= 1 << at
        made = sum(flow.sizes[name] for name in node.makes)
        gone = [
            name
            for name in {*node.reads, *node.makes}
            if name not in flow.kept and not self.readers.get(name, 0) & ~done
        ]
        taken = next(
            (
                flow.sizes[one]
                for one in node.over
                if one in gone and flow.sizes[one] == flow.sizes[node.makes[0]]
            ),
            0,
        )
        freed = sum(flow.sizes[name] for name in gone)
        return _Move(at, live + made - taken, live + made - freed)

    def next_ready(self, at: int, done: int, ready: int) -> int:
        """What can run once ``done``, which ``at`` is among, have."""
        ready &= ~(1 << at)
        for other in self.following[at]:
            if not self.before[other] & ~done:
                ready |= 1 << other
        return ready

    def peak(self, order: list[int]) -> int:
        """The most that is alive at once in an order."""
        done, live, most = 0, self.start, 0
        for at in order:
            move = self.move(at, done, live)
            done, live, most = done | 1 << at, move.then, max(most, move.during)
        return most


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _least_alive(move: _Move) -> tuple[int, int, int]:
    return move.then, move.during, move.at


def _lowest_now(move: _Move) -> tuple[int, int, int]:
    return move.during, move.then, move.at


def _greedy(costs: _Costs, key: Callable[[_Move], tuple[int, int, int]]) -> list[int]:
    order: list[int] = []
    done, live, ready = 0, costs.start, costs.ready
    while ready:
        move = min((costs.move(at, done, live) for at in _bits(ready)), key=key)
        order.append(move.at)
        done |= 1 << move.at
        ready, live = costs.next_ready(move.at, done, ready), move.then
    return order


def _search(costs: _Costs, best: list[int], most_states: int) -> tuple[list[int], bool]:
    """The best order, by the sets of operations that have run; ``best`` where there is none, or no end.

    An operation that leaves no more alive than there was, and needs no more meanwhile than the bound, is run
    at once: it would do no better later.
    """
    limit = costs.peak(best)
    came: dict[int, tuple[int, int]] = {0: (-1, -1)}  # set -> the one before, the operation between
    lowest = {0: 0}
    heap: list[tuple[int, int, int, int, int]] = [(0, 0, 0, costs.start, costs.ready)]
    while heap:
        peak, _, done, live, ready = heappop(heap)
        if done == costs.all:
            return _path(came, done), True
        if peak > lowest[done]:
            continue
        if len(lowest) > most_states:
            return best, False
        moves = [costs.move(at, done, live) for at in _bits(ready)]
        floor = max(peak, costs.bound)
        free = [move for move in moves if move.then <= live and move.during <= floor]
        for move in free[:1] or moves:
            reached, now = max(peak, move.during), done | 1 << move.at
            if reached < min(limit, lowest.get(now, limit)):
                lowest[now], came[now] = reached, (done, move.at)
                left = costs.next_ready(move.at, now, ready)
                heappush(heap, (reached, -now.bit_count(), now, move.then, left))
    return best, True


def _path(came: dict[int, tuple[int, int]], done: int) -> list[int]:
    order = []
    while done:
        done, at = came[done]
        order.append(at)
    return order[::-1]
