"""The step that prunes, from a recipe to what is in the file and in the record."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import tersor
from tersor.model.select import select
from tersor.pipeline.describe import report_amounts
from tersor.pipeline.steps import without_training
from tersor.result import OF_ALL
from tersor.spec import Prune, Quantize, Rule, Train
from tersor.tensor.masks import magnitude_mask

WEIGHTS = ("0.weight", "4.weight", "6.weight")


def run(task, *steps, **given):
    return tersor.compress(task, tersor.Recipe(steps=steps), **given)


def tensors(result):
    return tersor.load(result.path)


def said(result, at=0):
    return {one.name: one for one in result.stages[at].touched}


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_a_pattern_holds_in_the_file_through_training(task, pattern):
    result = run(task, Prune(pattern=pattern, train=Train(epochs=1, lr=0.01)))
    keep = int(pattern[0])
    for name in ("4.weight", "6.weight"):
        groups = tensors(result)[name].reshape(-1, 4)
        assert ((groups != 0).sum(1) == keep).all()
    assert (tensors(result)["0.weight"] != 0).all()
    row = said(result)["0.weight"]
    assert not row.applied and row.detail == f"{pattern} keeps {keep} inputs, and it has 1"
    assert said(result)[OF_ALL].detail.startswith(f"per layer: {pattern} along the inputs by greatest |w|")


def test_inputs_of_a_transposed_convolution_lie_along_its_first_axis(task):
    def build():
        return nn.Sequential(nn.ConvTranspose2d(4, 2, 1, bias=False), nn.Flatten())

    made = replace(task, build=build, weights=build().state_dict(), validation=None,
                   test=[(torch.randn(4, 4, 2, 2), torch.zeros(4))],
                   score=lambda output, batch: output[:, 0])  # fmt: skip
    weight = tensors(run(made, Prune(pattern="1:4")))["0.weight"]
    assert weight.shape == (4, 2, 1, 1) and ((weight != 0).sum(0) == 1).all()


@pytest.mark.parametrize(
    "given",
    [
        {"granularity": "channel", "norm": 1},
        {"granularity": "channel", "importance": "random"},
        {"granularity": "channel", "importance": "apoz", "targets": ("0", "4")},
        {"granularity": "channel", "importance": "activation", "targets": ("0", "4")},
        {"granularity": "channel", "importance": "taylor"},
    ],
    ids=lambda given: "-".join(str(one) for one in given.values()),
)
def test_channels_go_as_a_whole(task, given):
    result = run(task, Prune(fraction=0.5, **given))
    for name in given.get("targets", ("0", "4")):
        rows = tensors(result)[f"{name}.weight"].flatten(1) != 0
        assert (rows.all(1) | ~rows.any(1)).all() and rows.any(1).sum() == len(rows) / 2


def test_a_score_of_outputs_leaves_alone_what_has_none(task):
    result = run(task, Prune(fraction=0.5, granularity="channel", importance="apoz"))
    row = said(result)["6.weight"]
    assert not row.applied and "no ReLU or clipping comes behind it" in row.detail
    assert (tensors(result)["6.weight"] != 0).all()


def test_the_scores_of_a_step_rank_what_it_prunes(task):
    weight = task.weights["4.weight"]
    files = {kind: run(task, Prune(fraction=0.5, importance=kind, targets=("4",), batches=2))
             for kind in ("magnitude", "random", "taylor", "fisher", "movement")}  # fmt: skip
    kept = {kind: tensors(one)["4.weight"] != 0 for kind, one in files.items()}
    assert np.array_equal(kept["magnitude"].numpy(), magnitude_mask(weight, fraction=0.5))
    masks = list(kept.values())
    assert all(one.float().mean() == 0.5 for one in masks)
    assert not any(torch.equal(one, other) for at, one in enumerate(masks) for other in masks[:at])


def test_the_record_says_what_an_amount_meant_and_what_was_reached(task, tmp_path):
    rules = (Rule("6", override={"fraction": 0.25}),)
    result = run(task, Prune(fraction=0.5, rules=rules), out=tmp_path)
    assert said(result)[OF_ALL].detail == (
        "per layer: 50.00% of weights by least |w| or 25.00% of weights by least |w| asked; "
        "48.93% of 840 weights in 3 tensors are zero"
    )
    assert [said(result)[name].detail for name in WEIGHTS] == ["50.00% zeros", "50.00% zeros", "25.00% zeros"]
    stored = json.loads((tmp_path / "result.json").read_text())["stages"][0]["touched"]
    assert stored[-1]["name"] == OF_ALL and stored[-1]["applied"]
    step = Prune(percentile=40, scope="global", granularity="block", block_size=(2, 2))
    words = said(run(task, step))[OF_ALL].detail
    assert words.startswith("global: 2 x 2 blocks with |w| below percentile 40 asked, of each tensor one ")
    rows = tersor.plan(task, tersor.Recipe(steps=(step,)), timed=False).rows
    assert rows[-1].tensor == OF_ALL and rows[-1].detail == words and rows[-1].predicted_bytes is None


@pytest.fixture
def masks(task):
    return {name: torch.from_numpy(magnitude_mask(task.weights[name], fraction=0.4)) for name in WEIGHTS}


def test_a_mask_of_the_users_is_held(task, masks, tmp_path):
    save_file(masks, tmp_path / "m.safetensors")
    step = Prune(mask=str(tmp_path / "m.safetensors"), train=Train(epochs=1, lr=0.01))
    result = run(task, step)
    for name in WEIGHTS:
        assert torch.equal(tensors(result)[name] != 0, masks[name])
    assert said(result)[OF_ALL].detail.startswith("per layer: the mask of a file asked; 39.88% of 840")
    assert tersor.plan(task, tersor.Recipe(steps=(step,)), timed=False).rows[0].detail == "38.89% zeros"


def test_a_mask_that_does_not_fit_is_one_error_that_says_all(task, masks, tmp_path):
    path = tmp_path / "m.safetensors"
    wrong = {"0.weight": masks["0.weight"].float(), "4.weight": masks["4.weight"][:3],
             "4.wait": torch.ones(1), "4.bias": torch.ones(12, dtype=torch.bool)}  # fmt: skip
    save_file(wrong, path)
    with pytest.raises(tersor.SpecError) as error:
        run(task, Prune(mask=str(path)))
    for words in (
        "0.weight: it is float32, not bool",
        "4.weight: its shape is (3, 64), that of the weight (12, 64)",
        "4.wait: no parameter has that name. Did you mean '4.weight'?",
        "4.bias: the step does not target it",
        "6.weight: there is no mask for it",
    ):
        assert words in str(error.value)
    with pytest.raises(tersor.TersorError, match=r"none\.safetensors"):
        run(task, Prune(mask=str(tmp_path / "none.safetensors")))


def test_another_mask_in_the_same_file_does_not_go_on_from_the_stages_of_the_first(task, masks, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(masks, path)
    steps = (Prune(mask=str(path)), Train(name="more", epochs=2))

    def stop(phase, done, total, note=""):
        if phase == "more":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(task, *steps, out=tmp_path / "out", progress=stop)
    save_file({name: ~one for name, one in masks.items()}, path)
    result = run(task, *steps, out=tmp_path / "out")
    assert torch.equal(tensors(result)["4.weight"] == 0, masks["4.weight"])


def test_a_tied_weight_has_one_mask_under_any_of_its_names(tied_task, tmp_path):
    mask = torch.rand(30, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    save_file({"outward.weight": mask}, tmp_path / "m.safetensors")
    result = run(tied_task, Prune(mask=str(tmp_path / "m.safetensors")))
    assert torch.equal(tensors(result)["inward.weight"] != 0, mask)
    both = {"outward.weight": mask, "inward.weight": mask.clone()}
    save_file(both, tmp_path / "m.safetensors")
    with pytest.raises(tersor.SpecError, match=r"another name of inward\.weight, which has a mask already"):
        run(tied_task, Prune(mask=str(tmp_path / "m.safetensors")))


def test_growth_ends_at_the_sparsity_that_it_began_with(task):
    step = Prune(
        fraction=0.8, importance="random", regrow=0.5, regrow_every=1, train=Train(epochs=3, lr=0.01)
    )
    grown = run(task, step)
    still = run(task, replace(step, regrow=0.0, regrow_every=100))
    for name in WEIGHTS:
        one, other = tensors(grown)[name] != 0, tensors(still)[name] != 0
        assert not torch.equal(one, other)
        # A grown weight is zero until it moves, and may be so at the end.
        assert 0.9 * other.sum() <= one.sum() <= other.sum()


def test_pruning_after_pruning_counts_what_is_gone(task):
    result = run(task, Prune(fraction=0.5), Prune(name="again", fraction=0.7, importance="random"))
    assert said(result, 1)["4.weight"].detail.startswith("70.0")


def test_a_plan_needs_no_data_for_what_looks_at_data(task):
    def fail(output, batch):
        raise AssertionError("a plan must not train")

    train = Train(epochs=1)
    for step in (
        Prune(fraction=0.5, importance="taylor", batches=3),
        Prune(fraction=0.5, rules=(Rule("4", override={"importance": "fisher"}),)),
        Prune(fraction=0.5, importance="apoz", granularity="channel", targets=("0", "4")),
        Prune(fraction=0.5, schedule="iterative", rounds=3, max_drop=0.1, rewind=True, train=train),
        Prune(fraction=0.5, schedule="linear", importance="movement", train=train),
        Prune(fraction=0.5, regrow=0.3, regrow_every=7, train=train),
    ):
        told = tersor.plan(replace(task, loss=fail), tersor.Recipe(steps=(step,)), timed=False)
        rows = {row.tensor: row.detail for row in told.rows}
        assert rows["4.weight"] == "50.00% zeros", step


def test_a_plan_ranks_by_magnitude_what_a_rule_ranks_by_data(task):
    rules = (Rule("4", override={"importance": "fisher"}),)
    step = Prune(fraction=0.5, importance="random", rules=rules)
    (rule,) = without_training(step).rules
    assert rule.override == {"importance": "magnitude"}


def test_nothing_of_an_empty_weight_is_zero(task):
    step = Prune(fraction=0.5)
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(3, 0))
    chosen = [replace(one, step=step) for one in select(model, step)]
    (row,) = report_amounts([chosen], step)
    assert "0.00% of 0 weights in 1 tensor are zero" in row.detail


def test_of_layers_that_are_ranked_together_each_keeps_a_channel(task):
    small = {name: value * (1e-3 if name == "4.weight" else 1) for name, value in task.weights.items()}
    targets = ("0", "4")
    step = Prune(fraction=0.75, scope="global", granularity="channel", targets=targets)
    for one in (step, replace(step, schedule="iterative", rounds=2, train=Train(epochs=1, lr=1e-5))):
        result = run(replace(task, weights=small), one)
        rows = tensors(result)["4.weight"] != 0
        norms = small["4.weight"].norm(dim=1)
        assert rows.any(1).sum() == 1
        assert rows.any(1)[norms.argmax()] or one != step
        assert "asked, of each tensor one at least stays; " in said(result)[OF_ALL].detail or one != step


def test_growth_of_what_is_quantized_is_refused(task):
    step = Prune(name="late", fraction=0.8, importance="random", regrow=0.5, train=Train(epochs=1))
    with pytest.raises(tersor.TargetError, match=r"step 'late': .*0.weight is quantized already"):
        run(task, Quantize(activations="none", targets=("0", "4")), step)


def test_a_step_that_looks_at_outputs_needs_some_data(task):
    step = Prune(fraction=0.5, importance="apoz", granularity="channel")
    with pytest.raises(tersor.TaskError, match="neither train nor validation data, of which step 'prune'"):
        run(replace(task, train=None, validation=None), step)


def test_scores_from_a_shuffling_loader_give_the_same_bytes(task, tmp_path):
    data = torch.utils.data.TensorDataset(*(torch.cat(part) for part in zip(*task.train, strict=True)))
    shuffled = replace(task, train=torch.utils.data.DataLoader(data, 20, shuffle=True))
    for step in (Prune(fraction=0.5, importance="taylor", batches=2),
                 Prune(fraction=0.5, importance="activation", granularity="channel", batches=2)):  # fmt: skip
        chance = torch.get_rng_state()
        files = [run(shuffled, step, out=tmp_path / name).path.read_bytes() for name in "ab"]
        assert files[0] == files[1]
        assert torch.equal(chance, torch.get_rng_state())


def test_a_loss_is_all_that_a_score_of_gradients_needs(task):
    doubled = replace(task, loss=lambda output, batch: 2 * F.cross_entropy(output, batch[1]))
    step = Prune(fraction=0.5, importance="taylor")
    assert all(
        torch.equal(tensors(run(task, step))[name], tensors(run(doubled, step))[name]) for name in WEIGHTS
    )


def test_channels_that_are_the_output_stay_unless_they_are_named(task):
    step = Prune(fraction=0.5, granularity="channel")
    spared = said(run(task, step))["6.weight"]
    assert not spared.applied and "output of the model" in spared.detail
    assert said(run(task, step))["4.weight"].applied
    assert said(run(task, replace(step, targets=("4", "6"))))["6.weight"].applied
    assert said(run(task, replace(step, axis=1)))["6.weight"].applied
