"""The step as a user runs it: channels go, the file rebuilds the model, runtimes take it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests import narrow_nets
from tests.nets import images, make_task, small_task, words_task
from torch import nn

import tersor
from tersor import (
    Cluster,
    Code,
    Fold,
    Prune,
    Quantize,
    Recipe,
    Rule,
    Shrink,
    SpecError,
    TargetError,
    TaskError,
    Train,
)
from tersor.artifact.io import Reader
from tersor.model.restore import trained_model
from tersor.pipeline.context import Context
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import Work
from tersor.result import TEACHER

LOADED = """
import sys, torch, tersor
from tests import narrow_nets
for name in narrow_nets.NETS:
    model = tersor.load(f"{sys.argv[1]}/{name}/model.tersor", narrow_nets.NETS[name][0]()).eval()
    with torch.no_grad():
        torch.save(model(narrow_nets.inputs_of(name)), f"{sys.argv[1]}/{name}.pt")
"""

INTEGERS = Quantize(bits=4, activations="none")


def task_of(name):
    build, draw = narrow_nets.NETS[name]

    def batches(seed):
        random = torch.Generator().manual_seed(seed)
        return [(draw(6, random), torch.randint(0, 5, (6,), generator=random)) for _ in range(2)]

    return tersor.Task(
        name=name, build=build, weights=narrow_nets.trained(build).state_dict(),
        loss=lambda output, batch: F.cross_entropy(output, batch[1]),
        score=lambda output, batch: (output.argmax(1) == batch[1]).float(),
        train=batches(1), validation=batches(2), test=batches(3),
    )  # fmt: skip


def run(task, *steps, **fields):
    return tersor.compress(task, Recipe(steps=steps), **fields)


def loaded(result, task):
    return tersor.load(result.path, task.build()).eval()


def seconds(model, x):
    def once():
        started = time.perf_counter()
        with torch.no_grad():
            model(x)
        return time.perf_counter() - started

    return min(once() for _ in range(5))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    tasks = {name: task_of(name) for name in narrow_nets.NETS}
    steps = (Shrink(fraction=0.5), Code(speed="fast"))
    return folder, tasks, {name: run(task, *steps, out=folder / name) for name, task in tasks.items()}


def test_a_fresh_process_rebuilds_each_net_from_its_file(results):
    folder, tasks, found = results
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOADED, str(folder)], cwd=root, check=True,
                   env={"PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"})  # fmt: skip
    for name, task in tasks.items():
        x = narrow_nets.inputs_of(name)
        model = loaded(found[name], task)
        with torch.no_grad():
            assert torch.equal(torch.load(folder / f"{name}.pt", weights_only=True), model(x))
        whole = sum(one.numel() for one in task.build().parameters())
        small = sum(one.numel() for one in model.parameters())
        ratio = seconds(trained_model(task), x) / seconds(model, x)
        print(f"{name}: {small:,} of {whole:,} weights, {ratio:.2f} times as fast")
        assert small < 0.8 * whole


@pytest.mark.parametrize("name", narrow_nets.NETS)
def test_each_net_is_exported_and_checked_in_the_runtime(results, name):
    folder, tasks, found = results
    exported = tersor.export_model(tasks[name], found[name].path, folder / f"{name}.onnx")
    assert exported.agreement.largest < 1e-4


def test_the_task_and_its_weights_stay_as_they_were(results):
    _, tasks, _ = results
    again = task_of("resnet20")
    assert all(torch.equal(tasks["resnet20"].weights[key], one) for key, one in again.weights.items())


def test_a_file_tells_its_changes_and_no_more(results):
    _, _, found = results
    with Reader(found["transformer"].path) as reader:
        changes = {(one.path, one.attribute): one.value for one in reader.changes}
    assert changes["attend.0", "heads"] == changes["attend.1", "heads"] == 2
    assert changes["attend.1.qkv", "outputs"] == 24 and changes["up.0", "outputs"] == 16
    assert not {path for path, _ in changes} & {"embed", "head", "norms.0"}


def test_sparse_and_structured_in_one_recipe(tmp_path):
    task = task_of("resnet20")
    train = Train(epochs=1, lr=1e-3)
    result = run(
        task, Prune(fraction=0.3, train=train),
        Shrink(macs=0.5, scope="global", round_to=4, reestimate=2, train=train),
        Prune(name="more", fraction=0.6), Cluster(bits=4, train=train), Code(speed="fast"),
        out=tmp_path, keep_stages=True,
    )  # fmt: skip
    for row in result.layers:
        if "cluster" in row.steps:
            assert row.sparsity >= 0.59 and row.levels <= 16
    assert sum(row.size_bytes for row in result.ledger.rows) == result.size_bytes
    told = {one.name: one.detail for one in result.stages[1].touched}
    assert (
        ": 50.0 % of the multiply-accumulates asked, 4" in told["multiply-accumulates"]
        and "uncompressed" in told[TEACHER]
    )
    kept = loaded(result, task)
    assert all(layer.out_channels % 4 == 0 for layer in kept.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(
    "before",
    [Prune(fraction=0.5), Cluster(bits=3, keep_zero=True), Cluster(bits=3, granularity="channel"), INTEGERS],
)
def test_masks_and_codes_are_sliced(before):
    task = small_task()
    whole = loaded(run(task, before), task)
    result = run(task, before, Shrink(fraction=0.5, importance="random"))
    model = loaded(result, task)
    rows = {tuple(row.flatten().tolist()) for row in whole.hidden.weight.reshape(16, 4, 16).permute(1, 0, 2)}
    assert model.conv.weight.shape[0] == 2 and model.hidden.weight.shape == (8, 32)
    assert set(model.hidden.weight.unique().tolist()) <= set(whole.hidden.weight.unique().tolist()) and rows


def test_tied_weights_stay_tied_and_what_is_not_understood_stays():
    task = words_task()
    result = run(task, Shrink(fraction=0.5))
    model = loaded(result, task)
    assert model.out.weight is model.embed.weight and model.up.out_features == 16
    left = {one.name: one.detail for one in result.stages[0].touched if not one.applied}
    assert "nn.MultiheadAttention" in left["embed.weight"] and "not known" in left["lstm.weight_ih_l0"]


@pytest.mark.parametrize("name", ["grouped", "transformer", "separable"])
def test_step_by_step(name):
    task = task_of(name)
    once = Shrink(fraction=0.4)
    result = run(task, once, Shrink(name="again", fraction=0.4))
    sizes = [sum(sum(row.shape) for row in one.layers) for one in (run(task, once), result)]
    assert sizes[1] < sizes[0]
    tersor.export_model(task, result.path, result.path.with_suffix(".onnx"))


def test_a_bias_that_is_held_keeps_a_constant_before_it():
    task = small_task()
    task.weights["hidden.weight"][2] = 0
    task.weights["hidden.bias"][2] = 1.5
    result = run(task, Cluster(bits=8, biases=True), Shrink(dead=True))
    assert loaded(result, task).hidden.out_features == 16


def test_integers_follow_a_smaller_model():
    task = task_of("separable")
    result = run(task, Shrink(fraction=0.5), Fold(), Quantize(batches=2))
    assert loaded(result, task).first.weight.shape == (8, 3, 3, 3)
    again = run(task, Fold(), Shrink(fraction=0.5))
    assert loaded(again, task).first.bias.shape == (8,)


def test_points_and_blocks_refuse_it():
    task = small_task()
    work = Work(trained_model(task))
    apply_step(work, Quantize(batches=1), Context(task))
    with pytest.raises(TargetError, match="shrink before you quantize"):
        apply_step(work, Shrink(fraction=0.5), Context(task))
    with pytest.raises(tersor.TensorError, match=r"step 'shrink': .*weight: .*blocks of 4"):
        run(
            task,
            Quantize(bits=4, activations="none", granularity="block", block_size=4, targets=("conv", "head")),
            Shrink(fraction=0.5),
        )


def test_dead_units_go_without_loss():
    task = small_task()
    weights = {key: one.clone() for key, one in task.weights.items()}
    weights["hidden.weight"][[2, 5]] = 0
    weights["hidden.bias"][2] = 1.5  # a constant, which the head's bias takes
    weights["conv.weight"][1] = 0
    weights["head.weight"][:, 7] = 0
    dead = small_task(weights=weights)
    x = torch.randn(4, 1, 6, 6)
    with torch.no_grad():
        before = trained_model(dead)(x)
        for result in (run(dead, Shrink(dead=True)), run(dead, Prune(threshold=1e-9), Shrink(dead=True))):
            model = loaded(result, dead)
            assert model.conv.out_channels == 3 and model.hidden.out_features == 13
            assert torch.allclose(model(x), before, atol=1e-5)
    rows = run(task, Shrink(dead=True)).stages[0].touched
    assert [one.detail for one in rows if one.applied][:2] == ["4 -> 4 channels", "16 -> 16 channels"]


def test_a_constant_gives_a_layer_the_bias_that_it_lacked():
    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5, bias=False))

    task = make_task(build, lambda seed: [(torch.randn(4, 6), torch.zeros(4, dtype=torch.long))])
    task.weights["0.weight"][3] = 0
    task.weights["0.bias"][3] = 2.0
    model = loaded(run(task, Shrink(dead=True)), task)
    x = torch.randn(5, 6)
    with torch.no_grad():
        assert model[0].out_features == 7 and model[2].bias is not None
        assert torch.allclose(model(x), trained_model(task)(x), atol=1e-5)


def test_layers_are_protected_named_and_ruled():
    task = task_of("separable")
    step = Shrink(fraction=0.5, rules=(Rule("first", skip=True), Rule("point", override={"count": 1})))
    rows = {one.name: one for one in run(task, step).stages[0].touched}
    assert not rows["first.weight"].applied and "rule 'first' skips it" in rows["first.weight"].detail
    assert rows["point.weight"].detail == "24 -> 23 channels, with twice.weight"
    assert not rows["head.weight"].applied and rows["head.weight"].detail == "output of the model"
    with pytest.raises(
        TargetError, match="head is named and its channels cannot be removed: output of the model"
    ):
        run(task, Shrink(fraction=0.5, targets=("head",)))
    with pytest.raises(TargetError, match="several amounts"):
        run(task_of("resnet20"), Shrink(fraction=0.5, rules=(Rule("3.conv2", override={"fraction": 0.1}),)))
    with pytest.raises(
        TargetError, match=r"goes with 0\.weight and 8 others: no target matches; name 0\.weight, 4.* too"
    ):
        run(task_of("resnet20"), Shrink(fraction=0.5, targets=("3.conv2",)))


@pytest.mark.parametrize("pattern", ["deep", "norm2"])
def test_a_rule_that_skips_what_shares_channels_holds_them_all(pattern):
    task = task_of("separable")
    result = run(task, Shrink(fraction=0.5, rules=(Rule(pattern, skip=True),)))
    rows = {one.name: one for one in result.stages[0].touched}
    assert f"rule '{pattern}' skips it" in rows["first.weight"].detail and not rows["deep.weight"].applied
    model = loaded(result, task)
    assert (model.first.out_channels, model.deep.out_channels, model.point.out_channels) == (16, 16, 12)


def test_depthwise_layers_are_named_ruled_and_told_as_what_they_go_with():
    task = task_of("separable")
    result = run(task, Shrink(fraction=0.5, targets=("first", "deep")))
    rows = {one.name: (one.applied, one.detail) for one in result.stages[0].touched}
    assert rows["deep.weight"] == (True, "16 -> 8 channels, with first.weight")
    assert rows["twice.weight"] == (False, "no target matches")
    assert loaded(result, task).deep.weight.shape == (8, 1, 3, 3)
    for one, other in (("deep", "first"), ("first", "deep")):
        with pytest.raises(TargetError, match=rf"{one} is named.*name {other}\.weight too, or leave it out"):
            run(task, Shrink(fraction=0.5, targets=(one,)))
    with pytest.raises(TargetError, match="several amounts"):
        run(task, Shrink(fraction=0.5, rules=(Rule("deep", override={"fraction": 0.1}),)))


def test_a_depthwise_layer_of_the_input_says_why_it_stays():
    def build():
        return nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 4, 4), nn.Flatten(), nn.Linear(4, 3))

    task = make_task(build, lambda seed: [(torch.randn(4, 2, 6, 6), torch.zeros(4, dtype=torch.long))])
    rows = {one.name: one.detail for one in run(task, Shrink(fraction=0.5)).stages[0].touched}
    assert rows["0.weight"] == "a depthwise convolution of channels that no layer makes"


def test_a_dry_run_foretells_the_sizes():
    task = task_of("lenet5")
    recipe = Recipe(steps=(Shrink(fraction=0.5, importance="l1", train=Train(), reestimate=3), Code()))
    rows = tersor.plan(task, recipe, timed=False).rows
    details = {one.tensor: one.detail for one in rows if one.action == "apply"}
    assert details["2.weight"] == "50 -> 25 channels"
    assert details["multiply-accumulates"] == "2,293,000 -> 646,500 (28.2%)"
    run(task, *recipe.with_fields("shrink", train=None).steps)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.head(self.b(x) if x.sum() > 0 else x)


def test_without_a_graph_only_masks_and_only_if_asked():
    task = make_task(Branching, lambda seed: [(torch.randn(4, 6), torch.zeros(4, dtype=torch.long))])
    with pytest.raises(TaskError, match=r"x\.sum\(\) > 0.*untraceable: masks"):
        run(task, Shrink(fraction=0.5))
    result = run(task, Shrink(fraction=0.5, untraceable="masks"))
    model = loaded(result, task)
    assert model.a.weight.shape == (8, 6) and int((model.a.weight == 0).all(1).sum()) == 4
    assert int((model.a.bias == 0).sum()) == 4 and bool((model.head.weight != 0).all())
    assert "there is no graph" in result.stages[0].touched[0].detail


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "takes exactly one of fraction, count, threshold, percentile, macs, dead"),
        ({"fraction": 0.5, "dead": True}, "exactly one of"),
        ({"fraction": 0.0}, "fraction is 0.0: it has to be more than 0 and less than 1"),
        ({"fraction": 1}, "less than 1"),
        ({"macs": 1.0}, "less than 1"),
        ({"count": 0}, "more than 0"),
        ({"percentile": 100}, "less than 100"),
        ({"fraction": 0.5, "round_to": 0}, "round_to is 0"),
        ({"fraction": 0.5, "importance": "l3"}, "importance is 'l3'"),
        ({"macs": 0.5, "untraceable": "masks"}, "takes a graph"),
        ({"fraction": 0.5, "rules": (Rule("a", override={"round_to": 8}),)}, "rule 'a' changes round_to"),
    ],
)
def test_what_cannot_be_meant(fields, message):
    with pytest.raises(SpecError, match=message):
        Shrink(**fields)


def test_nothing_to_remove_is_an_error():
    with pytest.raises(TargetError, match="removes nothing"):
        run(small_task(), Shrink(fraction=0.5, round_to=64))
    alone = make_task(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
        lambda seed: images(1, 6, 3, seed=seed),
        name="one",
    )
    with pytest.raises(TargetError, match="no layer has channels"):
        run(alone, Shrink(fraction=0.5))
    with pytest.raises(TargetError, match="no norm"):
        run(small_task(), Shrink(fraction=0.5, importance="norm_scale"))


def test_importance_by_data_and_norms_anew_train_on_a_schedule():
    task = task_of("separable")
    for importance in ("taylor", "fisher", "norm_scale"):
        skip = (Rule("twice", skip=True), Rule("point", skip=True)) if importance == "norm_scale" else ()
        step = Shrink(fraction=0.25, importance=importance, batches=2, rules=skip, reestimate=2)
        model = loaded(run(task, step), task)
        assert model.first.out_channels == 12
        assert not torch.equal(model.norm1.running_mean, torch.zeros(12))
