"""A search under a budget: what it keeps, what it never passes, and that it can be killed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor import Budget, Effort
from tersor.errors import SpecError, TaskError, TersorError
from tersor.pipeline import budgeted
from tersor.pipeline.context import Context
from tersor.pipeline.search import Search
from tersor.pipeline.tail import tail_start, trains
from tersor.pipeline.trained import Pruned, _prune
from tersor.pipeline.trials import Notes, Trial, Trials
from tersor.spec import Prune, Quantize, Recipe

SHORT = Effort(epochs=4.0, tuning=2.0, lr=1e-2, tuning_lr=1e-3, batches=8)


def spirals(**fields):
    """A net that was trained on two classes that a hidden layer tells apart; a third layer hardly matters."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2400, 8, generator=draw)
    y = ((x[:, 0] * x[:, 1] + x[:, 2]) > 0).long()

    def build():
        return nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[:1200]), y[:1200]).backward()
            optimizer.step()
    batches = list(zip(x.split(100), y.split(100), strict=True))
    given = {
        "name": "spirals", "build": build, "weights": model.state_dict(),
        "loss": lambda output, batch: nn.functional.cross_entropy(output, batch[1]),
        "score": lambda output, batch: (output.argmax(1) == batch[1]).float(),
        "train": None, "validation": batches[12:20], "test": batches[20:],
    }  # fmt: skip
    return tersor.Task(**given | fields)


def interrupted(task, out, trial):
    """A search that was interrupted after so many trials."""

    def interrupt(phase, done, total, note=""):
        if note.startswith(f"trial {trial}"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tersor.search(task, Budget(max_drop=0.02), out=out, progress=interrupt)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    task = spirals()
    return task, folder, tersor.search(task, Budget(max_drop=0.02), out=folder)


def test_the_budget_is_kept_by_a_much_smaller_file(found):
    task, folder, result = found
    record = result.search
    assert record.met and record.allowed == 0.02
    assert result.ratio > 4
    assert result.size_bytes == (folder / "model.tersor").stat().st_size
    assert tersor.evaluate(task, folder / "model.tersor").value == result.artifact.value
    chosen = next(one for one in record.trials if one.size_bytes == result.size_bytes)
    assert chosen.inside and chosen.verdict_drop <= 0.02
    stored = json.loads((folder / "result.json").read_text())
    assert stored["search"]["trials"][0]["size_bytes"] == record.trials[0].size_bytes
    assert not (folder / "best.tersor").exists() and not (folder / ".tersor-search").exists()
    assert (folder / "search.jsonl").stat().st_size


def test_the_front_is_what_no_other_trial_beats(found):
    trials = found[2].search.trials
    for one in trials:
        beaten = [
            two for two in trials
            if (two.size_bytes, two.drop) != (one.size_bytes, one.drop)
            and two.size_bytes <= one.size_bytes and two.drop <= one.drop
        ]  # fmt: skip
        assert one.front == (not beaten)


def test_the_recipe_that_was_found_gives_the_same_file(found, tmp_path):
    task, _, result = found
    parts = budgeted.with_calibration(task)
    again = tersor.compress(parts, result.recipe, out=tmp_path)
    assert again.path.read_bytes() == result.path.read_bytes()


def test_a_size_is_never_passed(tmp_path):
    task = spirals()
    for size in (900, 2500):
        result = tersor.search(task, Budget(target_size=size), out=tmp_path / str(size))
        assert result.search.met and result.size_bytes <= size
        assert result.size_bytes > 0.6 * size
    ratio = tersor.search(task, Budget(target_ratio=6.0))
    assert ratio.ratio >= 6


def test_what_cannot_be_met_is_missed_by_something_and_names_layers(tmp_path):
    result = tersor.search(spirals(), Budget(target_size=40), out=tmp_path)
    record = result.search
    assert not record.met and record.missed_by == result.size_bytes - 40
    assert set(record.in_the_way) <= {layer.name for layer in result.layers} and record.in_the_way
    assert (tmp_path / "model.tersor").exists()


def test_a_confidence_asks_for_more(found):
    task, _, measured = found
    sure = tersor.search(task, Budget(max_drop=0.05, confidence=95))
    loose = tersor.search(task, Budget(max_drop=0.05))
    assert sure.search.met
    assert sure.size_bytes >= loose.size_bytes
    assert loose.size_bytes <= measured.size_bytes


def test_layers_that_matter_differently_get_different_bits(tmp_path):
    task = spirals()
    weights = {name: one.clone() for name, one in task.weights.items()}
    wide = nn.Linear(48, 48)
    with torch.no_grad():  # the hidden layer passes the first on, and adds next to nothing of its own
        weights["2.weight"] = torch.eye(48) + 1e-3 * wide.weight
    planted = replace(task, weights=weights)
    trials = Trials(tmp_path, Context(budgeted.with_calibration(planted)), Notes(tmp_path / "n.jsonl", "k"))
    allocation = trials.allocation((), 8)
    chosen = allocation.within_loss(1e-3)
    bits = {
        name: 8 * row.size_bytes / allocation.tensors[name].weight.numel() for name, row in chosen.items()
    }
    assert bits["2.weight"] < 0.5 * bits["0.weight"]


def test_the_same_bits_in_all_layers_take_more_bytes(found):
    task, _, result = found
    within = []
    for bits in (8, 7, 6, 5, 4, 3):
        step = Quantize(bits=bits, scale="mse", activations="none")
        uniform = tersor.compress(task, Recipe(steps=(step,)))
        within += [uniform.size_bytes] if uniform.comparison.drop <= 0.02 else []
    assert len(within) > 1 and result.size_bytes < 0.9 * min(within)


def test_a_search_with_training_prunes_tunes_and_is_no_larger(found, tmp_path):
    task, _, alone = found
    x = torch.randn(1200, 8, generator=torch.Generator().manual_seed(1))
    labels = ((x[:, 0] * x[:, 1] + x[:, 2]) > 0).long()
    trained = replace(task, train=list(zip(x.split(100), labels.split(100), strict=True)))
    result = tersor.search(trained, Budget(max_drop=0.02), out=tmp_path, effort=SHORT)
    steps = {one.steps for one in result.search.trials}
    assert any(one.startswith("prune-1 > ") and " > share" in one and one.endswith("tune") for one in steps)
    assert result.search.met
    # What blame puts tensors back from is there, since the rounds before it were trained.
    blamed = tersor.blame(trained, tmp_path, batches=2)
    assert not blamed.missing and any(one.lost is not None for one in blamed.tensors)
    start = tail_start(result.recipe.steps)
    before = [step for step in result.recipe.steps[:start] if trains(step)]
    kept = [one.name.partition("-")[0] for one in (tmp_path / "stages").glob("*")]
    assert kept == ([str(start - 1)] if before else [])
    assert result.size_bytes < 1.1 * alone.size_bytes


def test_an_interrupted_search_goes_on_and_ends_in_the_same_file(found, tmp_path):
    task, _, whole = found
    interrupted(task, tmp_path, 3)
    assert list((tmp_path / ".tersor-search").iterdir())
    with pytest.raises(TersorError, match="of another search"):
        tersor.search(task, Budget(max_drop=0.03), out=tmp_path)
    result = tersor.search(task, Budget(max_drop=0.02), out=tmp_path, resume=True)
    assert result.path.read_bytes() == whole.path.read_bytes()
    assert [one.size_bytes for one in result.search.trials] == [one.size_bytes for one in whole.search.trials]


def test_a_line_that_was_cut_is_dropped(tmp_path):
    path = tmp_path / "notes.jsonl"
    notes = Notes(path, "mine")
    assert notes.once("a", lambda: {"x": 1}) == {"x": 1}
    with path.open("ab") as file:
        file.write(b'{"key": "b", "val')
    again = Notes(path, "mine")
    assert again.once("a", lambda: None) == {"x": 1}
    assert again.once("b", lambda: 2) == 2
    assert Notes(path, "mine").known["b"] == 2


def test_what_a_search_needs(tmp_path):
    task = spirals()
    with pytest.raises(TaskError, match="no validation data"):
        tersor.search(replace(task, validation=None), Budget(max_drop=0.1))
    with pytest.raises(SpecError, match="no search to resume"):
        tersor.search(task, Budget(max_drop=0.1), out=tmp_path, resume=True)
    with pytest.raises(SpecError, match="exactly one of max_drop"):
        Budget()
    with pytest.raises(SpecError, match="exactly one of max_drop"):
        Budget(max_drop=0.1, target_size=5)
    with pytest.raises(SpecError, match="goes with a limit of the drop"):
        Budget(target_size=5, confidence=95)
    for wrong in (
        {"max_drop": -1.0},
        {"target_size": 0},
        {"target_ratio": 0.5},
        {"max_drop": 0.1, "confidence": 10.0},
    ):
        with pytest.raises(SpecError):
            Budget(**wrong)


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}]
from tests.pipeline.test_search import spirals
import tersor, torch
torch.set_num_threads({threads})
left = int(sys.argv[2])
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
tersor.search(spirals(), tersor.Budget(max_drop=0.02), out=sys.argv[1], progress=count)
"""


@pytest.mark.parametrize("moment", [50])
def test_a_killed_search_ends_in_the_same_file(found, tmp_path, moment, pytestconfig):
    code = KILLED.format(root=str(pytestconfig.rootpath), threads=torch.get_num_threads())
    first = subprocess.run([sys.executable, "-c", code, tmp_path, str(moment)], check=False, timeout=300)
    assert first.returncode == -9
    subprocess.run([sys.executable, "-c", code, tmp_path, "-1"], check=True, timeout=300)
    assert (tmp_path / "model.tersor").read_bytes() == found[2].path.read_bytes()
    assert np.isclose(
        json.loads((tmp_path / "result.json").read_text())["artifact"]["value"], found[2].artifact.value
    )


class Endless:
    """Training data without a length."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_however_little_time_there_is_one_file_is_made():
    task = spirals()
    for limit in (Budget(max_drop=0.02, time_limit=1e-6), Budget(target_size=900, time_limit=1e-6)):
        assert len(tersor.search(task, limit).search.trials) == 1
    unsized = replace(task, train=Endless(task.validation))
    assert len(tersor.search(unsized, Budget(max_drop=0.02, time_limit=1e-6)).search.trials) == 1


def test_notes_that_are_gone_take_their_stages_with_them(tmp_path):
    task = spirals()

    interrupted(task, tmp_path, 3)
    other = {name: one + 0.1 * torch.sin(100 * one) for name, one in task.weights.items()}
    changed = replace(task, weights=other)
    (tmp_path / ".tersor-search" / "search.jsonl").unlink()
    found = tersor.search(changed, Budget(max_drop=0.02), out=tmp_path)
    fresh = tersor.search(changed, Budget(max_drop=0.02), out=tmp_path / "fresh")
    assert found.path.read_bytes() == fresh.path.read_bytes()


def test_time_that_an_earlier_process_took_is_counted_as_its_trials_come_again(tmp_path):
    task = spirals()

    interrupted(task, tmp_path, 6)
    lines = (tmp_path / ".tersor-search" / "search.jsonl").read_text().splitlines()
    trials = [json.loads(line) for line in lines if '"key": "trial' in line]
    spent = sum(one["value"]["seconds"] for one in trials)
    # A limit that the noted trials have used up: none of them is thrown away, and no other begins.
    limit = spent - trials[-1]["value"]["seconds"] / 2
    result = tersor.search(task, Budget(max_drop=0.02, time_limit=limit), out=tmp_path)
    assert len(result.search.trials) == len(trials)


class Written:
    """What trials lose on either half, and their bytes, written down by the share that they prune."""

    def __init__(self, confidence):
        self.allowed, self.confidence = 0.01, confidence
        self.losses = {0.5: (0.001, 0.002, 900), 0.8: (0.001, 0.03, 500), 0.9: (0.03, 0.0, 300)}

    def run(self, recipe):
        return Trial(recipe, Path(str(len(recipe.steps))), self.of(recipe)[2], None, 0.0)

    def of(self, recipe):
        return self.losses[round(recipe.steps[-1].fraction, 6)]

    def expected(self, trials, half):
        return [self.of(one.recipe)[half] for one in trials]

    def bound(self, trial, half):
        return self.of(trial.recipe)[half] + 0.004


def written_search(confidence):
    """(a search of what is written down, the bytes of the files it kept, what it told)."""
    written, kept, told = Written(confidence), [], []
    search = Search(
        Budget(max_drop=0.01, confidence=confidence), written,
        Context(None, 0, "cpu", None, lambda *said: told.append(said[-1])), written, Effort(), 1000,
        keep=lambda trial: kept.append(trial.size_bytes), may_train=True,
    )  # fmt: skip
    return search, kept, told


@pytest.mark.parametrize(("confidence", "best"), [(None, 900), (95.0, 500)])
def test_both_halves_have_to_agree_with_what_others_are_built_on(confidence, best):
    search, kept, told = written_search(confidence)
    steps = [Prune(name=f"prune-{one}", fraction=one) for one in search.verdicts.losses]
    tried = [search.try_out(tuple(steps[: at + 1])) for at in range(3)]
    assert [search.inside(one) for one in tried] == [True, True, False]
    assert [search.holds(one) for one in tried] == [True, confidence is not None, False]
    assert search.best.size_bytes == kept[-1] == best
    assert [one.split(", ")[-1] for one in told] == [
        "inside", "inside" if confidence else "inside on one half", "outside"
    ]  # fmt: skip
    search.try_out(tuple(steps[:1]))
    assert len(told) == len(search.seen) == 3


@pytest.mark.parametrize(("confidence", "outside"), [(None, 0.2), (95.0, 0.0)])
def test_pruning_goes_back_where_one_half_says_no(confidence, outside):
    search, _, _ = written_search(confidence)
    pruned, _ = _prune(search, Pruned(), 0.2, Effort())
    assert pruned.outside == outside and pruned.kept == (1.0 if outside else 0.2)


def test_a_confidence_does_not_ask_the_half_for_the_verdict_what_to_try():
    for confidence in (None, 95.0):
        search, _, _ = written_search(confidence)
        half = search.try_out((Prune(fraction=0.8),))
        assert search.settled(half) == (confidence is not None) and not search.passes(half)


def test_no_drop_at_all_is_kept_by_what_is_stored_without_loss():
    result = tersor.search(spirals(), Budget(max_drop=0.0, time_limit=60))
    assert result.search.met and result.comparison.drop == 0


def test_data_that_are_shuffled_and_labels_that_mean_nothing_are_no_obstacle(tmp_path):
    task = spirals()
    x, y = (torch.cat(part) for part in zip(*task.validation, strict=True))
    data = torch.utils.data.TensorDataset(x, y)
    shuffled = replace(task, validation=torch.utils.data.DataLoader(data, 100, shuffle=True))
    assert tersor.search(shuffled, Budget(max_drop=0.05)).search.met
    assert tersor.search(shuffled, Budget(max_drop=0.05)).search.met
    labels = y.clone()
    labels[::50] = -100
    padded = list(zip(x.split(100), labels.split(100), strict=True))
    assert tersor.search(replace(task, validation=padded), Budget(max_drop=0.05)).search.met


def test_pruning_ends_where_no_less_can_be_kept():
    task = spirals()
    trained = replace(task, train=task.validation)
    effort = Effort(epochs=0.2, tuning=0.2, batches=2)
    notes = []
    result = tersor.search(
        trained,
        Budget(max_drop=2.0, time_limit=120),
        effort=effort,
        progress=lambda *told: notes.append(told),
    )
    assert result.search.met and result.seconds < 100
