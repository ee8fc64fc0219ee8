from dataclasses import dataclass
from io import StringIO

import pytest
from rich.console import Console

from tersor.report import (
    Table,
    as_lines,
    as_rich,
    layer_table,
    ledger_table,
    model_layers,
    model_table,
    plan_table,
    score_table,
    stage_table,
    time_table,
)
from tersor.result import (
    OF_ALL,
    TEACHER,
    Comparison,
    LayerRecord,
    Ledger,
    LedgerRow,
    PlannedTime,
    Score,
    StageRecord,
    Touched,
)

LEDGER = Ledger(
    (
        LedgerRow(
            "fc.weight", (30, 78), "float32", "codebook", "context", 32, {"codes": 900, "codebook": 128}
        ),
        LedgerRow("fc.[red]bias\x1b", (30,), "float32", "raw", "raw", 0, {"values": 120, "scales": 0}),
        LedgerRow("scale", (), "float32", "raw", "raw", 0, {"values": 4}),
        LedgerRow("container", (), "", "container", "", 0, {"header": 48}),
    ),
    1200,
)
LAYERS = (
    LayerRecord("fc.weight", (30, 78), ("prune", "cluster"), 0.92, 32, 1028, 9360),
    LayerRecord("fc.bias", (30,), (), 0.0, 0, 120, 120),
)


def drawn(table, width=120):
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(as_rich(table))
    return console.file.getvalue()


def comparison(drop, **changes):
    fields = {"low": -0.001, "high": 0.002, "p_value": 0.5, "test": "mcnemar", "resolution": 0.003}
    return Comparison(drop, **(fields | changes))


def test_scores_with_intervals_bytes_and_ratio():
    before, after = Score(0.98, 0.97, 0.99, 1000, "wilson"), Score(0.979, 0.969, 0.989, 1000, "wilson")
    lines = as_lines(score_table(before, after, comparison(0.001, note="few samples"), 9480, 1200))
    assert " ".join(lines[2].split()) == "baseline 0.9800 0.9700 to 0.9900 1,000 9,480 B (9.48 kB) 1.0x"
    assert " ".join(lines[3].split()) == "artifact 0.9790 0.9690 to 0.9890 1,000 1,200 B (1.2 kB) 7.9x"
    assert "worse by 0.0010; 95 % interval of the drop -0.0010 to 0.0020; mcnemar, p = 0.5000" in lines[4]
    assert "a drop below 0.0030 cannot be told from none" in lines[5] and "few samples" in lines[6]


def test_a_metric_without_samples_has_no_interval():
    score = Score(30.1, None, None, 0, "metric")
    nothing = comparison(-0.1, low=None, high=None, p_value=None, resolution=None, test="none")
    lines = as_lines(score_table(score, score, nothing, 10, 5))
    assert lines[2].split() == ["baseline", "30.1000", "-", "-", "10", "B", "1.0x"]
    assert lines[4:] == ["  the artifact is better by 0.1000"]


@pytest.mark.parametrize(("drop", "word"), [(0.0, "the same"), (0.1, "worse"), (-0.1, "better")])
def test_the_direction_of_the_drop(drop, word):
    score = Score(0.5, 0.4, 0.6, 10, "wilson")
    assert word in "\n".join(as_lines(score_table(score, score, comparison(drop), 10, 5)))


@pytest.mark.parametrize(
    ("drop", "low", "high", "words"),
    [
        (0.01, -0.02, 0.03, "worse by 0.0100; 95 % interval of the drop -0.0200 to 0.0300"),
        (-0.01, -0.03, 0.02, "better by 0.0100; 95 % interval of the gain -0.0200 to 0.0300"),
        (-0.01, -0.03, 0.0, "better by 0.0100; 95 % interval of the gain 0.0000 to 0.0300"),
        (0.0, -0.03, 0.02, "scores the same; 95 % interval of the drop -0.0300 to 0.0200"),
    ],
)
def test_the_interval_has_the_sign_of_what_it_stands_beside(drop, low, high, words):
    score = Score(0.5, 0.4, 0.6, 10, "wilson")
    notes = score_table(score, score, comparison(drop, low=low, high=high), 10, 5).notes
    assert words in notes[0]


@pytest.mark.parametrize(
    ("p", "words"), [(0.00002, "p < 0.001"), (0.0, "p < 0.001"), (0.001, "p = 0.0010"), (1.0, "p = 1.0000")]
)
def test_a_small_p_value_is_only_said_to_be_small(p, words):
    score = Score(0.5, 0.4, 0.6, 10, "wilson")
    assert score_table(score, score, comparison(0.1, p_value=p), 10, 5).notes[0].endswith(f"mcnemar, {words}")


def test_layers_and_the_rest_are_the_whole_file():
    table = layer_table(LAYERS, LEDGER)
    sizes = [int(row[6].replace(",", "")) for row in table.rows]
    assert sum(sizes) == LEDGER.file_bytes == int(table.total[6].replace(",", ""))
    assert table.rows[0][2:5] == ("prune, cluster", "92.0 %", "32") and table.rows[1][2:5] == ("-", "-", "-")
    assert table.rows[2][0] == "(rest of the file)"


def test_the_ledger_adds_up_by_row_and_by_part():
    table = ledger_table(LEDGER)
    assert table.columns[6:] == ("codes", "codebook", "raw values", "header", "bytes")
    assert table.total[6:] == ("900", "128", "124", "48", "1,200")
    assert [row[-1] for row in table.rows] == ["1,028", "120", "4", "48"]
    assert table.notes == ("1,200 B (1.2 kB) on disk",)


def test_a_scalar_has_a_shape_and_what_is_no_tensor_has_none():
    assert [row[1] for row in ledger_table(LEDGER).rows] == ["30x78", "30", "()", ""]


def test_tables_say_zeros_and_values():
    assert layer_table(LAYERS, LEDGER).columns[3:5] == ("zeros", "values")
    assert ledger_table(LEDGER).columns[5] == "values"
    assert "levels" not in "".join(layer_table(LAYERS, LEDGER).columns + ledger_table(LEDGER).columns)


def test_tied_names_are_named():
    aliases = {"head.[red]weight\x1b": "fc.weight"}
    for table in (ledger_table(LEDGER, aliases), layer_table(LAYERS, LEDGER, aliases)):
        assert table.notes[0] == "head.[red]weight\\x1b is tied to fc.weight"


def test_what_is_kept_with_nan_is_a_warning():
    assert layer_table(LAYERS, LEDGER, {}, {}).notes == ()
    notes = layer_table(LAYERS, LEDGER, {}, {"fc.bias": 3}).notes
    assert notes == ("warning: NaN or Inf, kept as they are: 3 in fc.bias",)
    assert plan_table((), 12, 24, {"fc.bias": 3}).notes[1:] == notes
    many = layer_table(LAYERS, LEDGER, {}, {f"mask{at}": 1024 for at in range(30)}).notes[0]
    assert "1,024 in mask4 and in 25 more tensors" in many and "mask5" not in many


def test_stages():
    touched = (
        Touched("fc", True, "90 % zeros"), Touched("b", False, "bias"), Touched(OF_ALL, True, "per layer"),
    )  # fmt: skip
    table = stage_table((StageRecord("prune", "prune", 1000, None, 1.25, touched),), 9480)
    assert table.rows == (("prune", "prune", "1 of 2", "1,000 B (1 kB)", "9.5x", "-", "1.2"),)
    assert table.notes == ("prune: per layer",)


def test_who_taught_is_told_below_the_stages_once():
    taught = Touched(TEACHER, True, "the uncompressed model")
    layer = Touched(f"{TEACHER} block", True, "(1, 2) ~ layer (1, 3): mse")
    alone = Touched(TEACHER, False, "the output is a dict")
    given = {"prune": (Touched("fc", True, ""), taught, layer), "cluster": (taught,), "tune": (alone,)}
    stages = [StageRecord(name, name, 10, None, 1.0, touched) for name, touched in given.items()]
    table = stage_table(stages, 100)
    assert [row[2] for row in table.rows] == ["1 of 1", "", ""]
    assert table.notes == (
        "prune, cluster taught: the uncompressed model",
        "prune taught: block (1, 2) ~ layer (1, 3): mse",
        "tune not taught: the output is a dict",
    )


def test_the_plan_says_that_it_is_an_estimate():
    @dataclass(frozen=True)
    class Row:
        step: str
        tensor: str
        action: str
        detail: str
        predicted_bytes: int | None

    rows = (Row("prune", "fc", "apply", "90 %", 12), Row("prune", "b", "skip", "one dimension", None))
    table = plan_table(rows, 1200, 9480)
    assert table.rows[0] == ("prune", "fc", "apply", "90 %", "12")
    assert table.rows[1] == ("prune", "b", "skip", "one dimension", "-")
    assert "estimate" in table.notes[0]


def test_times_are_told_with_what_they_were_taken_from():
    times = (PlannedTime("tune", 7200.4, "8 of 900 batches of training"), PlannedTime("code", None, "none"))
    table = time_table(times, None)
    assert table.rows == (
        ("tune", "8 of 900 batches of training", "7,200 (2.0 h)"), ("code", "none", "not known"),
    )  # fmt: skip
    assert table.total == ("all", "", "not known") and "estimate" in table.notes[0]
    assert time_table(times[:1], 12.34).total[-1] == "12.3"


def test_plain_lines_are_aligned():
    table = Table("t", ("name", "n"), (("a", "1"), ("bbbbbb", "22")), total=("sum", "23"))
    assert as_lines(table) == ["t", "  name     n", "  a        1", "  bbbbbb  22", "  sum     23"]


@pytest.mark.parametrize("table", [ledger_table(LEDGER), layer_table(LAYERS, LEDGER)])
def test_rich_draws_every_word_and_takes_names_for_text(table):
    text = drawn(table)
    words = [
        word for row in (table.columns, *table.rows, table.total) for cell in row for word in cell.split()
    ]
    assert all(word in text for word in words)
    assert "\x1b" not in text.replace("\x1b[1m", "").replace("\x1b[0m", "")


def test_a_model_s_layers_tied_weights_once():
    from torch import nn

    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(10, 4))
    model.add_module("norm", nn.BatchNorm1d(4))
    model.add_module("head", nn.Linear(4, 10, bias=False))
    model.add_module("act", nn.ReLU())
    model.head.weight = model.embed.weight
    layers = model_layers(model)
    assert [layer.name for layer in layers] == ["embed", "norm", "head"]
    assert [layer.parameters for layer in layers] == [40, 8, 0]
    assert layers[1].size_bytes == 4 * 4 * 4 + 8
    assert layers[2].tied == (("weight", "embed.weight"),) and layers[2].shapes == (("weight", (10, 4)),)
    table = model_table(layers)
    assert table.total[-2:] == ("48", f"{160 + 72}") and "tied to embed.weight" in table.notes[0]
