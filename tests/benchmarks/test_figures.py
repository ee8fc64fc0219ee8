from benchmarks.markdown import unfinished

from benchmarks import (
    figures,
    figures_pruning,
    figures_search,
    figures_sensitivity,
    pruning,
    structured,
    students,
)


def test_the_page_is_that_of_the_committed_results():
    assert figures.PAGE.read_text() == figures.page()


def test_a_curve_has_the_mean_and_the_worst_of_its_seeds():
    rows = [
        {
            "net": "mlp_2352", "schedule": "gradual", "taught": True, "epochs": 10,
            "fraction": fraction, "seed": seed,
            "drop_points": drop, "size_bytes": 1000 + seed, "baseline_error_percent": 1.0 + seed,
        }
        for fraction, drops in ((0.5, (0.1, 0.3)), (0.9, (0.5, 0.5)))
        for seed, drop in enumerate(drops)
    ]  # fmt: skip
    stored = {"rows": rows, "conditions": "all", "unfinished": ["one"]}
    text = "\n".join(figures_pruning.curves(stored))
    assert "| mlp_2352 | gradual | dense net | 10 | 1.50 | +0.20 (+0.30) | +0.50 (+0.50) |" in text
    assert "| mlp_2352 | gradual | dense net | 10 | 1000 | 1000 |" in text
    assert "Not run yet: one." in text and "trained and measured on" not in text
    rows[0]["device"] = "a GPU"
    assert "1 of the 4 rows, of mlp_2352, were trained and measured on a GPU" in "\n".join(
        figures_pruning.curves(stored)
    )


def test_a_shrunk_net_has_its_latencies_below():
    row = {
        "net": "resnet20", "removed": 0.5, "kind": "fp32", "seed": 0, "parameters": 9, "size_bytes": 8,
        "error_percent": 9.5, "baseline_error_percent": 9.0, "drop_points": 0.5,
        "latencies": [{"batch_size": 1, "median_ms": 2.0, "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6}],
    }  # fmt: skip
    text = "\n".join(figures_pruning.shrunk({"rows": [row], "conditions": "all", "unfinished": []}))
    assert "| resnet20 | 50% | 0 | 1 | 2.000 | 0.500 (0.400 to 0.600) |" in text
    assert "+0.50" in text and "Not run" not in text


def test_students_are_compared_by_the_means_of_their_seeds():
    rows = [
        {"net": "half", "way": way, "seed": seed, "epochs": 20, "size_bytes": 10, "error_percent": error}
        for way, errors in (("alone", (11.0, 12.0)), ("taught", (10.0, 10.5)))
        for seed, error in enumerate(errors)
    ]
    text = "\n".join(figures_pruning.students({"rows": rows, "conditions": "all", "unfinished": []}))
    assert "| half | alone | 20 | 11.00, 12.00 | 11.50 |  |" in text
    assert "| half | taught | 20 | 10.00, 10.50 | 10.25 | 1.25 |" in text


def test_sensitivity_says_what_was_asked_and_what_it_is():
    row = {"name": "fc", "candidate": "bits 4", "change": 0.5, "estimated": 0.25, "drop": 0.125}
    stored = {
        "net": "one", "samples": 500, "asked": 0.8, "rows": [row, {**row, "candidate": "bits 3"}],
        "correlations": [{"group": "all", "rows": 2, "correlation": None}],
        "candidates": [
            {"candidate": "bits 4", "rows": 9, "correlation": 0.5, "measured_to_estimated_median": 2.0}
        ],
    }  # fmt: skip
    text = "\n".join(figures_sensitivity.ranks(stored))
    assert "asked: 0.8" in text and "| all | 2 |  |" in text and "| bits 4 | 9 | 0.500 | 2.00 |" in text
    assert text.count("| fc | 0.5000 | 0.2500 | +12.5 |") == 1


def test_searches_and_their_checks_have_a_line_each():
    rows = [
        {
            "net": "small", "way": way, "amount": amount, "size_bytes": 100, "ratio": 12.5,
            "error_percent": 2.0, "baseline_error_percent": 1.5, "drop_points": 0.5, "seconds": 3.0, **more,
        }
        for way, amount, more in (
            ("alone", 0.005, {"met": True, "trials": 7}),
            ("latency", 0.001, {"met": True, "trials": 9, "latencies": [{"ratio": 0.5}, {"ratio": 0.25}]}),
            ("uniform", 4, {}),
        )
    ]  # fmt: skip
    peers = [["small", "others", 200, 3.0, 2.5]]
    text = "\n".join(figures_search.searches({"rows": rows, "unfinished": ["x"], "peers": peers}))
    assert (
        "| small | search, no training data | 0.5 points | 100 | 12.50x | 2.00 | 1.50 | +0.50 |  | yes | 7 |"
        in text
    )
    assert "| +0.50 | 0.50 / 0.25 | yes | 9 |" in text
    assert "| 4 bits |" in text and "Not run yet: x." in text
    assert "| small | others | 200 | 3.00 | 2.50 |" in text
    drops = [
        {"part": "drops", "confidence": None, "drop": drop, "kept": drop < 0.02, "size_bytes": 10}
        for drop in (0.01, 0.03)
    ]
    kills = [{"part": "kills", "same_file": True, "was_running": True}]
    text = "\n".join(figures_search.checks({"rows": drops + kills, "allowed": 0.02}))
    assert "| as measured | 2 | 1 | 3.00 | 10 |" in text
    assert "1 of 1 killed searches" in text


def test_rows_have_names_of_their_own_as_their_recipes_do():
    for rows in (pruning.ROWS, structured.ROWS, students.ROWS):
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            assert row.recipe.name == row.name


def test_every_way_to_prune_trains_for_as_long():
    lengths = {}
    for row in pruning.ROWS:
        (step,) = row.recipe.steps
        rounds = step.rounds if row.schedule == "iterative" else 1
        lengths.setdefault(row.net, set()).add(round(step.train.epochs * rounds / row.longer, 9))
        assert step.train.teacher == ("original" if row.taught else "none")
    assert lengths == {net: {train.epochs} for net, train in pruning.TRAINING.items()}


def test_a_long_list_of_rows_to_come_is_cut():
    assert unfinished({"unfinished": ["a", "b"]}) == ["Not run yet: a; b."]
    (line,) = unfinished({"unfinished": [f"row{at}" for at in range(30)]})
    assert line.endswith("; row11; and 18 more.")
    assert unfinished({"unfinished": []}) == []
