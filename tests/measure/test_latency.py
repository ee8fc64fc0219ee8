import gc
import random
import time
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import SpecError
from tersor.measure.latency import compare_latency, median_interval


class Machine:
    """A clock that callables push forward: ``seconds(spent)`` of it for each call."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def clock(self):
        return self.now

    def taking(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds() if callable(seconds) else seconds

        return call


def turns(log):
    """The names in the order of their blocks."""
    return [name for at, name in enumerate(log) if at == 0 or log[at - 1] != name]


def test_what_takes_three_times_as_long_is_found_exactly():
    machine = Machine()
    calls = {"a": machine.taking("a", 2**-10), "b": machine.taking("b", 3 * 2**-10)}
    a, b = compare_latency(calls, clock=machine.clock)
    assert (a.name, a.ratio, a.ratio_low, a.ratio_high) == ("a", 1, 1, 1)
    assert b.median_ms == b.low_ms == b.high_ms == 3000 / 1024
    assert b.ratio == b.ratio_low == b.ratio_high == 3
    assert a.rounds == b.rounds == 30


def test_a_quick_call_is_repeated_and_a_slow_one_is_not():
    machine = Machine()
    calls = {"quick": machine.taking("quick", 1e-5), "slow": machine.taking("slow", 1.0)}
    quick, slow = compare_latency(calls, min_seconds=0.01, rounds=6, warmup=2, clock=machine.clock)
    assert 1000 <= quick.calls <= 1200 and slow.calls == 1
    assert slow.ratio == pytest.approx(1e5)
    assert machine.log.count("slow") == 2 + 1 + 6


def test_each_round_has_each_once_in_orders_that_differ():
    machine = Machine()
    calls = {name: machine.taking(name, 1.0) for name in "abc"}
    compare_latency(calls, rounds=40, warmup=0, clock=machine.clock)
    rounds = [tuple(machine.log[at : at + 3]) for at in range(3, len(machine.log), 3)]
    assert len(rounds) == 40 and all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) == 6
    before = list(machine.log)
    machine.log.clear()
    compare_latency(calls, rounds=40, warmup=0, clock=machine.clock)
    assert machine.log == before
    machine.log.clear()
    compare_latency(calls, rounds=40, warmup=0, clock=machine.clock, seed=1)
    assert machine.log != before


def test_a_machine_that_slows_down_moves_the_times_and_not_the_ratio():
    machine = Machine()
    calls = {
        name: machine.taking(name, lambda k=k: k * (1 + machine.now / 50)) for name, k in (("a", 1), ("b", 2))
    }
    a, b = compare_latency(calls, rounds=51, clock=machine.clock)
    assert a.high_ms > 3 * a.low_ms
    assert b.ratio_low <= 2.1 and b.ratio_high >= 1.9 and b.ratio_high - b.ratio_low < 0.2


def test_a_few_interruptions_do_not_count():
    machine, chance = Machine(), random.Random(3)
    calls = {name: machine.taking(name, lambda: 30.0 if chance.random() < 0.1 else 1.0) for name in "ab"}
    a, b = compare_latency(calls, rounds=60, clock=machine.clock)
    assert a.median_ms == b.median_ms == 1000 and b.ratio == b.ratio_low == b.ratio_high == 1


def test_the_interval_holds_the_true_ratio_as_often_as_it_says():
    inside, runs = 0, 300
    for seed in range(runs):
        machine, noise = Machine(), random.Random(seed)
        calls = {"a": machine.taking("a", lambda n=noise: n.lognormvariate(0, 0.2)),
                 "b": machine.taking("b", lambda n=noise: 1.5 * n.lognormvariate(0, 0.2))}  # fmt: skip
        _, b = compare_latency(calls, rounds=15, warmup=0, clock=machine.clock)
        inside += b.ratio_low <= 1.5 <= b.ratio_high
    assert 0.93 <= inside / runs <= 1.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=400))
def test_the_interval_holds_the_median_and_has_its_level(values):
    low, high = median_interval(values)
    assert min(values) <= low <= float(np.median(values)) <= high <= max(values)
    rank = sorted(values).index(low)
    spread = NormalDist(len(values) / 2, np.sqrt(len(values)) / 2)
    assert rank <= spread.inv_cdf(0.025) + 1  # the normal approximation of the same rank


@pytest.mark.parametrize(("n", "rank"), [(6, 0), (9, 1), (20, 5), (30, 9), (100, 39)])
def test_the_interval_of_published_tables(n, rank):
    # Conover, Practical Nonparametric Statistics, and any table of the binomial at 1/2.
    assert median_interval(list(range(n))) == (rank, n - 1 - rank)


def test_garbage_waits_and_is_collected_again_after_a_failure():
    seen = []

    def call():
        seen.append(gc.isenabled())
        time.sleep(1e-4)

    compare_latency({"a": call}, rounds=6, min_seconds=1e-5)
    assert not any(seen) and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        compare_latency({"a": lambda: 1 / 0})
    assert gc.isenabled()


def test_sleep_takes_no_processor_time():
    def sleep():
        time.sleep(2e-3)

    def work():
        until = time.process_time() + 2e-3
        while time.process_time() < until:
            pass

    _, worked = compare_latency(
        {"sleep": sleep, "work": work}, rounds=6, min_seconds=1e-4, clock=time.process_time
    )
    assert worked.ratio > 3


def test_progress_counts_rounds():
    told = []
    compare_latency({"a": lambda: time.sleep(1e-5)}, rounds=7, min_seconds=1e-5,
                    progress=lambda *words: told.append(words))  # fmt: skip
    assert told[-1] == ("latency", 7.0, 7.0) and len(told) == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [({"rounds": 5}, "rounds is 5: .* 6 or more"), ({"min_seconds": 0}, "min_seconds is 0"),
     ({"min_seconds": float("nan")}, "min_seconds is nan"), ({"warmup": -1}, "warmup is -1")],
)  # fmt: skip
def test_numbers_that_cannot_be(given, message):
    with pytest.raises(SpecError, match=message):
        compare_latency({"a": lambda: None}, **given)


def test_nothing_and_a_clock_that_stands():
    with pytest.raises(SpecError, match="nothing to measure"):
        compare_latency({})
    with pytest.raises(SpecError, match="1,048,576 calls of a took 0 s"):
        compare_latency({"a": lambda: None}, clock=lambda: 1.0)
