"""The analysis as a whole: what it finds, how it goes on, what it refuses."""

import json
import os
from dataclasses import replace
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from tests import nets
from torch import nn

import tersor
from tersor.allocate.candidates import candidates_of

FEW = tersor.Survey(candidates=("fp32", "bits", "sparsity"), calibration=4)
BITS = tersor.Survey(candidates=("bits",), activations=False, calibration=4)


class Planted(nn.Module):
    """Two layers of the same weights, of which one is all that the output tells, nearly."""

    def __init__(self):
        super().__init__()
        self.loud = nn.Linear(6, 4)
        self.quiet = nn.Linear(6, 4)

    def forward(self, x):
        return 3 * self.loud(x) + 0.01 * self.quiet(x)


def planted():
    model = Planted()
    model.quiet.load_state_dict(model.loud.state_dict())
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(300, 6, generator=draw)
    batches = list(zip(x.split(50), (3 * model.loud(x)).argmax(1).split(50), strict=True))
    return tersor.Task(
        name="planted", build=Planted, weights=model.state_dict(), train=batches, validation=batches,
        test=batches, score=lambda output, batch: (output.argmax(1) == batch[1]).float(),
    )  # fmt: skip


def test_the_layer_that_matters_comes_first():
    found = tersor.sensitivity(planted(), survey=FEW)
    rows = {(row.name, row.candidate): row for row in found.rows}
    for one in candidates_of("bits", "sparsity"):
        loud, quiet = rows["loud.weight", one.name], rows["quiet.weight", one.name]
        if one.name != "sparsity 0":
            assert loud.estimated > 1000 * quiet.estimated and loud.change > 1000 * quiet.change
        assert abs(quiet.drop) <= 0.01
    assert rows["loud.weight", "sparsity 90"].drop > 0.1
    assert rows["loud.weight", "fp32"].change == rows["loud.weight", "fp32"].estimated == 0
    assert found.correlations["all"] > 0.9 and found.baseline.value > 0.99
    inputs = [row for row in found.rows if row.family == "activation-bits"]
    assert [row.candidate for row in inputs] == [f"activation-bits {bits}" for bits in range(2, 9)]
    assert all(one.change > other.change for one, other in pairwise(inputs))
    assert all(0.3 < row.estimated / row.change < 3 for row in inputs[2:])


def test_a_linear_model_does_what_is_estimated():
    # All signs in equal numbers: then errors of weights add up, as the diagonal has it.
    x = torch.tensor(list(product((-1.0, 1.0), repeat=6)))
    model = nn.Linear(6, 2, bias=False)
    batches = [(x, torch.zeros(64, 2))]
    task = tersor.Task(
        name="linear", build=lambda: nn.Linear(6, 2, bias=False), weights=model.state_dict(), train=batches,
        validation=batches, test=batches, score=lambda output, batch: -output.square().mean(1),
    )  # fmt: skip
    survey = tersor.Survey(candidates=("bits", "values", "sparsity"), activations=False, calibration=400)
    found = tersor.sensitivity(task, survey=survey)
    moved = [row for row in found.rows if row.change > 1e-10]
    assert len(moved) > 12
    for row in moved:
        assert row.estimated == pytest.approx(row.change, rel=0.1), row.candidate


def test_an_analysis_goes_on_where_it_was_cut(tmp_path):
    task, path = nets.small_task(), tmp_path / "rows.jsonl"
    whole = tersor.sensitivity(task, path, survey=BITS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-20]) + lines[-20][:9])
    calls = []

    def forward(model, batch):
        calls.append(1)
        return model(batch[0])

    assert tersor.sensitivity(task, path, survey=BITS) == whole
    assert path.read_bytes() == b"".join(lines)
    more = replace(BITS, candidates=("bits", "fp16"))
    found = tersor.sensitivity(task, path, survey=more)
    assert [row for row in found.rows if row.family == "bits"] == list(whole.rows)
    assert path.read_bytes().startswith(b"".join(lines))
    estimated = tersor.sensitivity(task, path, survey=replace(BITS, measured=False))
    assert estimated.baseline is None and all(row.change is None for row in estimated.rows)
    other = replace(task, forward=forward)
    with pytest.raises(tersor.TersorError, match="is of another sensitivity"):
        tersor.sensitivity(other, path, survey=BITS)
    before = path.read_bytes()
    with pytest.raises(tersor.TersorError, match="is of another sensitivity"):
        tersor.sensitivity(task, path, survey=replace(BITS, batches=1))
    assert path.read_bytes() == before


def test_what_was_noted_is_not_run_again(tmp_path):
    calls = []

    def forward(model, batch):
        calls.append(1)
        return model(batch[0])

    task = nets.small_task(forward=forward)
    tersor.sensitivity(task, tmp_path / "rows.jsonl", survey=BITS)
    first = len(calls)
    calls.clear()
    tersor.sensitivity(task, tmp_path / "rows.jsonl", survey=BITS)
    assert len(calls) < 20 < first


@pytest.mark.parametrize("text", ["mine\n", '{"a": 1}\n', "no end of a line", '{"key": "x", "value": 1}\n'])
def test_a_file_of_somebody_else_stays_as_it_is(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(tersor.TersorError, match="name another place"):
        tersor.sensitivity(nets.small_task(), path, survey=BITS)
    assert path.read_text() == text


def test_norms_are_folded_where_there_is_a_graph():
    survey = replace(BITS, measured=False)
    folded = tersor.sensitivity(nets.vision_task(), survey=survey)
    plain = tersor.sensitivity(nets.vision_task(), survey=replace(survey, fold=False))
    assert "norm.weight" not in {row.name for row in folded.rows} and not folded.missing
    assert "norm.weight" in {row.name for row in plain.rows}
    none = tersor.sensitivity(nets.branching_task(), survey=replace(survey, activations=True))
    assert {"norms", "activations"} == set(none.missing) and "torch.export" in none.missing["activations"]
    assert {row.name for row in none.rows} == {"fc.weight", "fc.bias"}


def test_what_cannot_be_right_is_refused(tmp_path):
    task = nets.small_task()
    with pytest.raises(tersor.SpecError, match=r"'bit'. Did you mean 'bits'"):
        tersor.Survey(candidates=("bit",))
    with pytest.raises(tersor.SpecError, match="a tuple of families"):
        tersor.Survey(candidates="bits")
    with pytest.raises(tersor.SpecError, match="one family or more"):
        tersor.Survey(candidates=(), activations=False)
    with pytest.raises(tersor.SpecError, match="batches is 0"):
        tersor.Survey(batches=0)
    with pytest.raises(tersor.SpecError, match="jobs is 0"):
        tersor.sensitivity(task, jobs=0)
    with pytest.raises(tersor.SpecError, match="a folder: name a file"):
        tersor.sensitivity(task, tmp_path)
    with pytest.raises(tersor.SpecError, match="there is no folder"):
        tersor.sensitivity(task, tmp_path / "none" / "rows.jsonl")
    with pytest.raises(tersor.TaskError, match="neither train nor validation"):
        tersor.sensitivity(replace(task, train=None, validation=None))
    with pytest.raises(tersor.TaskError, match="call it"):
        tersor.sensitivity(nets.small_task)
    with pytest.raises(tersor.SpecError, match=r"jobs is 2, and the task cannot be sent .* remake"):
        tersor.sensitivity(task, survey=BITS, jobs=2)


def test_notes_are_lines_of_json(tmp_path):
    path = tmp_path / "rows.jsonl"
    tersor.sensitivity(nets.small_task(), path, survey=BITS)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["key"] == "sensitivity"
    kinds = [line["key"].split()[0] for line in lines[1:]]
    assert kinds.count("estimate") == kinds.count("measure") == 6 * 8


def test_a_process_that_ends_is_told(tmp_path):
    survey = replace(BITS, candidates=("bits 4",))
    with pytest.raises(tersor.TersorError, match="a process ended before its work was done"):
        tersor.sensitivity(
            nets.small_task(), tmp_path / "rows.jsonl", survey=survey, remake=partial(os._exit, 3), jobs=2
        )
    found = tersor.sensitivity(nets.small_task(), tmp_path / "rows.jsonl", survey=survey)
    assert all(row.change is not None for row in found.rows)
