"""Who is to blame: planted, put back, and where nothing can be put back said so."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import FormatError, SpecError, TaskError
from tersor.pipeline.blame import save_blame
from tersor.pipeline.relax import rules_for
from tersor.pipeline.stages import Stage
from tersor.pipeline.tail import keep_stage
from tersor.recipe import parse_recipe


def three_layers(**fields):
    """Two layers that 1 bit hurts little and one, 'bad', whose small differences are all that counts."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=draw)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.bad = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.bad(self.good(x))

    signs = torch.tensor([1.0, -1.0])[torch.randint(2, (6, 6), generator=draw)]
    weights = {
        "good.weight": signs + 1e-3 * torch.randn(6, 6, generator=draw), "good.bias": torch.zeros(6),
        "bad.weight": 1.0 + 0.1 * torch.randn(2, 6, generator=draw), "bad.bias": torch.zeros(2),
    }  # fmt: skip
    model = Net()
    model.load_state_dict(weights)
    y = model(x).argmax(1).detach()
    batches = list(zip(x.split(50), y.split(50), strict=True))
    given = {
        "name": "three", "build": Net, "weights": weights, "validation": batches[:4], "test": batches[4:],
        "loss": lambda output, batch: nn.functional.cross_entropy(output, batch[1]), "train": batches[4:],
        "score": lambda output, batch: (output.argmax(1) == batch[1]).float(),
    }  # fmt: skip
    return tersor.Task(**given | fields)


COARSE = tersor.Recipe(name="coarse", steps=(tersor.Cluster(bits=1), tersor.Code()))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coarse")
    task = three_layers()
    return task, folder, tersor.compress(task, COARSE, out=folder)


def test_the_planted_layer_is_to_blame_and_its_rule_helps(coarse):
    task, folder, result = coarse
    found = tersor.blame(task, folder)
    assert [one.name for one in found.tensors] == ["bad.weight", "good.weight"]
    worst, other = found.tensors
    assert worst.lost > 0.05 and abs(other.lost) < 0.02 and worst.regained > abs(other.regained)
    assert worst.low <= worst.lost <= worst.high
    sizes = {one.name: one for one in result.layers}["bad.weight"]
    assert worst.saved_bytes == sizes.dense_bytes - sizes.size_bytes and worst.size_bytes == sizes.size_bytes
    assert found.put_back == "as trained" and not found.missing and found.trained_since == ()
    assert (worst.skip, worst.relax) == ("{match: bad.weight, skip: true}", "{match: bad.weight, bits: 2}")
    pasted = parse_recipe(f"steps: [cluster: {{bits: 1, rules: [{worst.skip}]}}, code: {{}}]")
    assert pasted.steps[0].rules == (tersor.Rule("bad.weight", skip=True),)
    spared = tersor.compress(task, pasted)
    validation = tersor.evaluate(task, spared.path, loader=task.validation).value
    assert validation == pytest.approx(found.score + worst.lost)  # exactly what was told


def test_steps_add_up_from_the_trained_model_to_the_file(coarse):
    task, _, result = coarse
    steps = tersor.blame(task, result, batches=1).steps
    assert [one.step for one in steps] == ["cluster", "code"]
    assert steps[0].bytes_before == result.dense_bytes and steps[-1].bytes_after == result.size_bytes
    assert steps[0].score_before == 1.0 and sum(one.lost for one in steps) == pytest.approx(
        1.0 - result.stages[-1].validation
    )


def test_batches_bound_the_data_and_nothing_changes_on_the_way(coarse):
    task, folder, _ = coarse
    before = (folder / "model.tersor").read_bytes()
    found = tersor.blame(task, folder, batches=2)
    assert found.samples == 100 and found == tersor.blame(task, folder, batches=2)
    assert (folder / "model.tersor").read_bytes() == before


def test_it_goes_into_the_report_and_leaves_the_rest(coarse):
    task, folder, _ = coarse
    before = json.loads((folder / "result.json").read_text())
    before.pop("blame", None)
    save_blame(folder, tersor.blame(task, folder, batches=1))
    after = json.loads((folder / "result.json").read_text())
    assert after.pop("blame")["tensors"][0]["name"] == "bad.weight"
    assert after == before


def test_points_stay_in_force_and_norms_are_folded_again(task):
    recipe = tersor.Recipe(steps=(tersor.Fold(), tersor.Quantize(bits=2), tersor.Code()))
    result = tersor.compress(task, recipe)
    found = tersor.blame(task, result)
    assert found.put_back == "after step 'fold', before 'quantize'"
    assert {one.name for one in found.tensors} == {"0.weight", "4.weight", "6.weight"}
    assert all(one.regained is not None and one.lost is not None for one in found.tensors)
    rest = [one.name for one in found.tensors if one.name != "4.weight"]
    spared = replace(recipe.steps[1], rules=(tersor.Rule("4.weight", override={"bits": 16}),))
    wide = tersor.blame(task, tersor.compress(task, replace(recipe, steps=(recipe.steps[0], spared))))
    names = {one.name: one for one in wide.tensors}
    assert abs(names["4.weight"].regained) < min(abs(names[name].regained) for name in rest)
    assert names["4.weight"].relax == "" and names["0.weight"].relax == "{match: 0.weight, bits: 4}"


def test_what_was_trained_takes_its_stage(task, recipe, tmp_path):
    alone = tersor.blame(task, tersor.compress(task, recipe, out=tmp_path / "a"))
    assert "--keep-stages" in alone.missing and all(one.lost is None for one in alone.tensors)
    assert all(one.why == alone.missing and one.saved_bytes > 0 for one in alone.tensors[:1])
    assert alone.steps[0].lost is not None
    found = tersor.blame(task, tersor.compress(task, recipe, out=tmp_path / "b", keep_stages=True))
    assert found.put_back == "after step 'prune', before 'cluster'"
    assert found.trained_since == ("cluster", "more") and not found.missing
    assert all(one.lost is not None and one.step == "cluster" for one in found.tensors)
    (tmp_path / "b" / "stages" / "0-prune.tersor").write_bytes(b"another")
    with pytest.raises(FormatError):
        tersor.blame(task, tmp_path / "b")


def test_what_only_a_training_made_smaller_is_not_put_back(task):
    train = tersor.Train(epochs=1, teacher="none")
    pruned = tersor.Prune(fraction=0.5, schedule="gradual", train=train)
    found = tersor.blame(task, tersor.compress(task, tersor.Recipe(steps=(pruned,))))
    assert "nothing to put a tensor back to" in found.missing and found.put_back == ""
    assert found.tensors[0].lost is None and found.tensors[0].skip
    assert [one.step for one in found.steps] == ["prune", "(file)"]


def test_a_search_keeps_the_one_stage_that_is_needed(task, recipe, tmp_path):
    result = tersor.compress(task, recipe, out=tmp_path, keep_stages=True)
    files = sorted((tmp_path / "stages").iterdir())
    moved = [one.rename(tmp_path / one.name) for one in files[:-1]]  # the last one is stale, and goes
    stages = [Stage(path, record) for path, record in zip(moved, result.stages, strict=False)]
    keep_stage(recipe.steps, stages, tmp_path)
    assert [one.name for one in (tmp_path / "stages").iterdir()] == ["0-prune.tersor"]
    found = tersor.blame(task, tmp_path)
    assert not found.missing and found.put_back == "after step 'prune', before 'cluster'"
    keep_stage(recipe.steps[1:], stages[1:], tmp_path)  # nothing before the tail was trained
    assert not list((tmp_path / "stages").iterdir())


def test_scores_that_are_better_low_and_metrics(coarse):
    task, folder, _ = coarse
    error = replace(
        task, score=lambda output, batch: (output.argmax(1) != batch[1]).float(), higher_is_better=False
    )
    low = tersor.blame(error, folder).tensors[0]
    assert low.name == "bad.weight" and low.lost > 0.05

    def metric(model, loader):
        return sum(float((model(x).argmax(1) == y).sum()) for x, y in loader)

    whole = tersor.blame(replace(task, score=None, metric=metric), folder, batches=1)
    assert whole.tensors[0].lost > 0 and whole.tensors[0].low is None and whole.change is None


@pytest.mark.parametrize("batches", [0, True, 1.5])
def test_batches_are_a_whole_number(coarse, batches):
    with pytest.raises(SpecError, match="batches"):
        tersor.blame(coarse[0], coarse[1], batches=batches)


def test_what_is_no_result_is_told(coarse, tmp_path):
    task, folder, _ = coarse
    with pytest.raises(SpecError, match=r"no result\.json"):
        tersor.blame(task, tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(FormatError, match="no JSON"):
        tersor.blame(task, tmp_path)
    (tmp_path / "result.json").write_text('{"task": "three"}')
    with pytest.raises(SpecError, match=r"no model\.tersor"):
        tersor.blame(task, tmp_path)
    (tmp_path / "model.tersor").write_bytes((folder / "model.tersor").read_bytes())
    with pytest.raises(FormatError, match="recipe"):
        tersor.blame(task, tmp_path)
    with pytest.raises(SpecError, match="'three', not 'other'"):
        tersor.blame(replace(task, name="other"), folder)
    with pytest.raises(TaskError, match="no validation data"):
        tersor.blame(replace(task, validation=None), folder)


def test_rules_keep_what_earlier_rules_change():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    step = tersor.Quantize(bits=4, rules=(tersor.Rule("0", override={"bits": 2, "scale": "mse"}),))
    recipe = tersor.Recipe(steps=(step,))
    assert rules_for(model, recipe, step, "0.weight")[1] == "{match: 0.weight, bits: 4, scale: mse}"
    alone = tersor.Cluster(bits=2, targets=("0.weight",))
    assert rules_for(model, tersor.Recipe(steps=(alone,)), alone, "0.weight") == (
        "", "{match: 0.weight, bits: 4}",
    )  # fmt: skip
    assert rules_for(model, tersor.Recipe(steps=(alone,)), alone, "1.weight") == ("", "")
