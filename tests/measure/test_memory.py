"""Lifetimes, arenas and orders, against all orders and by hand."""

import random
from itertools import permutations

import pytest

from tersor.errors import SpecError
from tersor.measure.memory import Flow, Node, lay_out
from tersor.measure.order import lowest_peak, plan_memory

# Two branches that widen and narrow again, met by a concatenation: breadth first both are wide at once.
BRANCHES = Flow(
    {"x": 10, "a": 80, "b": 10, "c": 80, "d": 10, "y": 20},
    (
        Node("widen a", ("x",), ("a",)),
        Node("widen c", ("x",), ("c",)),
        Node("narrow a", ("a",), ("b",)),
        Node("narrow c", ("c",), ("d",)),
        Node("cat", ("b", "d"), ("y",)),
    ),
    ("x",),
    frozenset({"y"}),
)


def orders(flow):
    for order in permutations(flow.nodes):
        try:
            yield Flow(flow.sizes, order, flow.inputs, flow.kept)
        except SpecError:
            continue


def random_flow(draw, count=7):
    sizes, nodes, buffers = {"in": draw.randrange(1, 40)}, [], ["in"]
    for at in range(count):
        reads = tuple(draw.sample(buffers, min(len(buffers), draw.choice((1, 1, 2)))))
        made = f"b{at}"
        sizes[made] = sizes[reads[0]] if draw.random() < 0.4 else draw.randrange(1, 40)
        over = tuple(one for one in reads if one != "in" and draw.random() < 0.7)
        after = (draw.choice(nodes).name,) if nodes and draw.random() < 0.2 else ()
        nodes.append(Node(f"n{at}", reads, (made,), over, after))
        buffers.append(made)
    return Flow(sizes, tuple(nodes), ("in",), frozenset({buffers[-1], draw.choice(buffers)}))


def test_branches_one_after_the_other():
    peaks = {arena.order: arena.peak_bytes for arena in map(lay_out, orders(BRANCHES))}
    assert lay_out(BRANCHES).peak_bytes == 170 and max(peaks.values()) == 170
    assert min(peaks.values()) == 100  # the first branch's result, the second's wide one, its result
    arena = plan_memory(BRANCHES, alignment=1)
    assert (arena.peak_bytes, arena.exact) == (100, True) and peaks[arena.order] == 100
    assert arena.order[:2] in (("widen a", "narrow a"), ("widen c", "narrow c"))
    assert arena.peak_at in ("narrow a", "narrow c") and arena.size_bytes == 100


def test_a_chain_needs_two_neighbours():
    flow = Flow({"x": 4, "y": 6, "z": 3}, (Node("f", ("x",), ("y",)), Node("g", ("y",), ("z",))), ("x",),
                frozenset("z"))  # fmt: skip
    arena = plan_memory(flow, alignment=1)
    assert arena.live_bytes == (10, 9) and arena.order == ("f", "g") and arena.exact
    assert (arena.peak_bytes, arena.peak_at, arena.size_bytes) == (10, "f", 10)
    assert sorted(arena.live(0)) == ["x", "y"] and sorted(arena.live(1)) == ["y", "z"]


def test_a_shortcut_stays_until_it_is_added():
    nodes = (
        Node("conv", ("x",), ("a",)),
        Node("relu", ("a",), ("b",), ("a",)),
        Node("conv2", ("b",), ("c",)),
        Node("add", ("c", "x"), ("y",), ("c", "x")),
    )
    flow = Flow(dict.fromkeys("xabcy", 8), nodes, ("x",), frozenset("y"))
    arena = lay_out(flow, alignment=1)
    assert arena.live_bytes == (16, 16, 24, 16)  # relu and add write over what they read
    assert arena.reused == {"b": "a", "y": "c"}
    place = {one.name: one.offset for one in arena.buffers}
    assert place["a"] == place["b"] and place["c"] == place["y"]
    plain = Flow(flow.sizes, tuple(Node(one.name, one.reads, one.makes) for one in nodes), ("x",), flow.kept)
    assert lay_out(plain).live_bytes == (16, 24, 24, 24) and not lay_out(plain).reused


@pytest.mark.parametrize("seed", range(60))
def test_no_order_has_a_lower_peak(seed):
    flow = random_flow(random.Random(seed))
    best = min(lay_out(one).peak_bytes for one in orders(flow))
    order, exact = lowest_peak(flow)
    assert exact and lay_out(flow.ordered(order)).peak_bytes == best
    arena = plan_memory(flow, alignment=1)
    given = lay_out(flow, alignment=1)
    assert best <= arena.peak_bytes and (arena.size_bytes, arena.peak_bytes) <= (
        given.size_bytes,
        given.peak_bytes,
    )
    assert not arena.exact or arena.peak_bytes == best


@pytest.mark.parametrize("seed", range(30))
def test_a_search_that_is_cut_short_is_never_worse(seed):
    flow = random_flow(random.Random(seed), count=16)
    order, exact = lowest_peak(flow, most_states=3)
    assert lay_out(flow.ordered(order)).peak_bytes <= lay_out(flow).peak_bytes
    assert (
        not exact
        or lay_out(flow.ordered(order)).peak_bytes == lay_out(flow.ordered(lowest_peak(flow)[0])).peak_bytes
    )


@pytest.mark.parametrize("alignment", [1, 16])
@pytest.mark.parametrize("seed", range(30))
def test_buffers_that_live_together_do_not_overlap(seed, alignment):
    arena = lay_out(random_flow(random.Random(seed), count=20), alignment=alignment)
    taken = {(new, old) for new, old in arena.reused.items()}
    for one in arena.buffers:
        assert one.offset % alignment == 0 and one.offset + one.size_bytes <= arena.size_bytes
        for other in arena.buffers:
            together = one.first <= other.last and other.first <= one.last and one.name != other.name
            if together and (one.name, other.name) not in taken and (other.name, one.name) not in taken:
                apart = (
                    one.offset + one.size_bytes <= other.offset
                    or other.offset + other.size_bytes <= one.offset
                )
                assert apart, (one, other)
    assert arena.size_bytes >= arena.peak_bytes
    for at, live in enumerate(arena.live_bytes):
        held = {one.offset: one.size_bytes for one in arena.buffers if one.first <= at <= one.last}
        assert sum(held.values()) == live


def test_what_nobody_reads_is_there_while_it_is_made():
    flow = Flow(
        {"x": 4, "spare": 9, "y": 1}, (Node("f", ("x",), ("y", "spare")), Node("g", ("y",), ())), ("x",)
    )
    assert lay_out(flow).live_bytes == (14, 1)
    assert lay_out(Flow({"x": 4}, (), ("x",))).peak_bytes == 0


def test_flows_that_cannot_be():
    node = Node("f", ("x",), ("y",))
    with pytest.raises(SpecError, match="'f': buffer 'y' has no size"):
        Flow({"x": 1}, (node,), ("x",))
    with pytest.raises(SpecError, match="'f' would run before 'x'"):
        Flow({"x": 1, "y": 1}, (node,))
    with pytest.raises(SpecError, match="'f' would run before 'g'"):
        Flow({"x": 1, "y": 1}, (Node("f", ("x",), ("y",), (), ("g",)),), ("x",))
    with pytest.raises(SpecError, match="twice"):
        Flow({"x": 1, "y": 1}, (node, node), ("x",))
    with pytest.raises(SpecError, match="name each once"):
        BRANCHES.ordered(["cat"])
    with pytest.raises(SpecError, match="alignment is 0"):
        lay_out(BRANCHES, alignment=0)
