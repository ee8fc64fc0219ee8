"""Pictures: what is in them, that they fit, that files are the same each time; nothing needs a display."""

import re
import sys
from itertools import pairwise

import numpy as np
import pytest

from tersor.errors import TersorError
from tersor.report.plots.canvas import MOST_ROWS, new_figure, save_figure
from tersor.report.plots.choices import StrategyView, front_figure, strategies_figure
from tersor.report.plots.layers import Sensitive, Sizes, alive_figure, memory_figure, sensitivity_figure
from tersor.report.plots.weights import ACROSS, DOWN, PAGES, WeightView, weight_pages
from tersor.result import SearchRecord, TrialRecord


def words(figure):
    """All text of a figure that is seen, once it is drawn."""
    figure.draw_without_rendering()
    found = [one for one in figure.findobj(lambda one: hasattr(one, "get_text")) if one.get_visible()]
    return [one.get_text() for one in found if one.get_text()]


def views(count):
    draw = np.random.default_rng(0)
    weights = [draw.normal(size=(6, 5 + at % 7)).astype(np.float32) for at in range(count)]
    return [WeightView(f"layer{at}.weight", one.shape, np.sign(one), one) for at, one in enumerate(weights)]


@pytest.mark.parametrize(("layers", "pages"), [(1, 1), (10, 1), (13, 2), (200, PAGES)])
def test_a_panel_a_tensor_up_to_some_pages(layers, pages):
    figures = weight_pages(views(layers))
    assert len(figures) == pages
    shown = sum(one.get_visible() for figure in figures for one in figure.axes)
    assert shown == min(layers, PAGES * ACROSS * DOWN)
    left = layers - shown
    assert (f"{left} smaller tensors are not shown" in " ".join(words(figures[0]))) == bool(left)


def test_lines_stand_where_values_are_and_are_as_high_as_their_share():
    after = np.array([0.0] * 6 + [0.5] * 3 + [-1.0], np.float32)
    (figure,) = weight_pages([WeightView("fc.weight", (2, 5), after)])
    (axes,) = (one for one in figure.axes if one.get_visible())
    tops = {round(float(one[1][0]), 3): one[1][1] for one in axes.collections[0].get_segments()}
    assert tops == pytest.approx({0.0: 60.0, 0.5: 30.0, -1.0: 10.0})
    said = words(figure)
    assert "2x5, 3 values, 60.0 % zeros" in said and "as trained" not in said


def test_a_note_stands_below():
    assert any(one.endswith("folded") for one in words(weight_pages(views(1), note="folded")[0]))


def test_tensors_of_one_value_and_of_many():
    draw = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    many = WeightView("a", (1000,), draw, draw)
    (figure,) = weight_pages([WeightView("b", (4,), np.zeros(4, np.float32)), many])
    assert "1000, 1,000 values" in words(figure) and "4, 1 value, 100.0 % zeros" in words(figure)


def test_bars_are_ranked_and_carry_what_was_chosen():
    bars = [
        Sensitive("low", 1e-5, "3 bits"),
        Sensitive("high", 0.5, "8 bits"),
        Sensitive("none", 0.0, "2 bits"),
    ]
    figure = sensitivity_figure(bars, "change")
    (axes,) = figure.axes
    assert [one.get_text() for one in axes.get_yticklabels()] == ["high", "low", "none"]
    assert axes.get_xscale() == "log" and {"3 bits", "8 bits", "2 bits"} <= set(words(figure))
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first is at the top
    signed = sensitivity_figure([Sensitive("a", -0.1), Sensitive("b", 0.2)], "change").axes[0]
    assert signed.get_xscale() == "linear" and signed.get_xlim()[0] < -0.1


def test_of_200_layers_the_first_are_shown_and_the_others_told():
    names = [f"layer{at}.weight" for at in range(200)]
    figure = sensitivity_figure([Sensitive(one, at / 100) for at, one in enumerate(names)], "change")
    assert len(figure.axes[0].get_yticks()) == MOST_ROWS
    assert "160 more tensors are not shown: 1.6 or less" in " ".join(words(figure))
    figure = memory_figure(
        [Sizes(one, 100.0 + at, 10.0) for at, one in enumerate(names)], ("a", "b"), "bytes"
    )
    labels = [one.get_text() for one in figure.axes[0].get_yticklabels()]
    assert labels[0] == "layer160.weight" and labels[-1] == "160 others together"
    assert "all 200 together: 39.9 kB and 2 kB" in " ".join(words(figure))


@pytest.mark.parametrize("layers", [10, 200])
def test_no_name_lies_over_another_or_over_the_edge(layers):
    long = [f"encoder.block{at}.attention.self.query.projection.weight" for at in range(layers)]
    bars = [Sensitive(one, 10.0 ** -(at % 5), "16 bits (15.9), 99 % zeros") for at, one in enumerate(long)]
    figure = sensitivity_figure(bars, "change")
    figure.draw_without_rendering()
    edge = figure.bbox
    boxes = [one.get_window_extent() for one in figure.axes[0].get_yticklabels()]
    assert all(one.y0 >= two.y1 for one, two in pairwise(boxes))
    beside = [one.get_window_extent() for one in figure.axes[0].texts]
    assert all(edge.x0 <= one.x0 and one.x1 <= edge.x1 for one in (*boxes, *beside))


def test_names_are_text_and_nothing_else(tmp_path):
    odd = "a$\\frac{$.\x1b[2Jweight"
    figure = sensitivity_figure([Sensitive(odd, 1.0, "$x")], odd)
    save_figure(figure, tmp_path / "a.png", "png")
    (page,) = weight_pages([WeightView(odd, (2,), np.ones(2, np.float32))])
    save_figure(page, tmp_path / "b.png", "png")
    assert not any("\x1b" in one for one in (*words(figure), *words(page)))


def test_what_is_alive_has_a_step_an_operation():
    figure = alive_figure([10, 4000, 30], [5, 20, 15], ("FP32", "file"))
    assert "FP32, peak 4 kB" in words(figure) and figure.axes[0].get_xlim() == (0.5, 3.5)


def test_strategies_have_three_axes_and_say_what_is_not_there():
    found = [StrategyView("FP32", 0.9, 0.8, 0.95, 4000, 100, 5000), StrategyView("all-4", 0.5)]
    figure = strategies_figure(found)
    assert len(figure.axes) == 3
    said = words(figure)
    assert {"FP32", "all-4", "0.9", "4.1 kB", "5 kB", "weights", "buffers"} <= set(said)
    assert said.count("not measured") == 2


def search(budget, allowed, drops):
    trials = tuple(
        TrialRecord("share", 1000 * 2**at, drop, drop, drop, drop <= 0.01, True, 1.0, chosen=at == 2)
        for at, drop in enumerate(drops)
    )
    return SearchRecord(budget, allowed, 0.0, 500, "", (), trials)


def test_the_front_shows_the_budget_the_choice_and_what_it_leaves_out():
    record = search({"max_drop": 0.01}, 0.01, [0.9, 0.03, 0.005, 0.001])
    said = words(front_figure(record))
    assert {"chosen: 4 kB", "allowed: 0.01", "inside the budget", "outside", "4 files of a search"} <= set(
        said
    )
    assert any("not shown, with greater drops: 1" in one for one in said)
    assert "allowed: 3 kB" in words(front_figure(search({"target_size": 3000}, 3000, [0.1, 0.2])))


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_figure_is_the_same_file(kind, tmp_path):
    for name in ("a", "b"):
        save_figure(sensitivity_figure([Sensitive("x", 1.0)], "change"), tmp_path / name, kind)
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes() and len(first) > 1000
    assert first.startswith(b"\x89PNG") if kind == "png" else re.search(rb"<svg", first)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(TersorError, match=r"pip install 'tersor\[plots\]'"):
        new_figure(1, 1)


def test_nothing_opens_a_window():
    save = sys.modules.get("matplotlib.pyplot")
    weight_pages(views(1))
    assert sys.modules.get("matplotlib.pyplot") is save
