from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from tersor.errors import SpecError, TaskError
from tersor.measure.quality import compare, evaluate, evaluate_model, evaluating, to_device
from tersor.task import Task


def right(output, batch):
    return (output.argmax(1) == batch[1]).float()


def squared(output, batch):
    return ((output[:, 0] - batch[1]) ** 2).double()


def task_with(score=right, **fields):
    return Task(name="demo", build=net, weights={}, test=batches(), score=score, **fields)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3))


def batches(sizes=(40, 40, 17), seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 6, generator=draw), torch.randint(3, (n,), generator=draw)) for n in sizes]


def test_the_score_is_the_mean_over_samples_not_over_batches():
    model, data = net().eval(), batches()
    score = evaluate(lambda batch: model(batch[0]), task_with(), data)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    correct = (model(x).argmax(1) == y).double()
    assert score.value == pytest.approx(correct.mean().item())
    assert score.samples == 97 and score.method == "wilson"
    assert np.array_equal(score.per_sample, correct.numpy())
    assert score.low < score.value < score.high


def test_a_model_is_scored_in_evaluation_mode_and_each_mode_is_restored():
    model = net().train()
    model[2].eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    first, second = (evaluate_model(model, task_with(), batches()) for _ in range(2))
    assert first == second
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_modes_are_restored_after_a_failure():
    model = net().train()
    with pytest.raises(TaskError):
        evaluate_model(model, task_with(score=lambda output, batch: output), batches())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert all(module.training for module in model.modules())


def test_no_gradient_is_recorded():
    seen = []
    evaluate_model(
        net(), task_with(score=lambda out, b: seen.append(out.requires_grad) or right(out, b)), batches()
    )
    assert seen == [False] * 3


def test_scores_that_are_not_0_or_1_get_a_bootstrap_interval():
    score = evaluate_model(net(), task_with(score=squared), batches())
    assert score.method == "bootstrap" and score.low < score.value < score.high


def test_one_sample_has_no_interval():
    score = evaluate_model(net(), task_with(score=squared), batches((1,)))
    assert (score.low, score.high, score.samples) == (None, None, 1)


def test_an_empty_batch_adds_nothing():
    whole = evaluate_model(net(), task_with(), batches())
    assert evaluate_model(net(), task_with(), [*batches(), *batches((0,))]).value == whole.value


@pytest.mark.parametrize("data", [[], batches((0,))])
def test_an_empty_loader_is_refused(data):
    with pytest.raises(TaskError, match="'demo': the loader is empty"):
        evaluate_model(net(), task_with(), data)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda out, b: right(out, b).mean(), r"batch 0: score returned shape \(\).*\(40,\).*not their mean"),
        (lambda out, b: out, r"score returned shape \(40, 3\)"),
        (lambda out, b: right(out, b)[:-1], r"score returned shape \(39,\)"),
        (lambda out, b: right(out, b) / 0, "batch 0: 40 of 40 scores are NaN or infinite"),
        (lambda out, b: "good", "score returned a str, not a tensor of numbers"),
        (lambda out, b: None, "score returned a NoneType"),
    ],
)  # fmt: skip
def test_scores_that_do_not_fit_are_refused(score, message):
    with pytest.raises(TaskError, match=message):
        evaluate_model(net(), task_with(score=score), batches())


def test_outputs_that_do_not_fit_the_score_keep_the_cause():
    with pytest.raises(
        TaskError, match=r"'demo', batch 0: score failed: RuntimeError: The size of"
    ) as caught:
        evaluate_model(net(), task_with(score=lambda out, b: out[:, 0] == torch.zeros(7)), batches())
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(TaskError, match="batch 0: forward failed: RuntimeError: mat1 and mat2"):
        evaluate_model(nn.Linear(5, 3), task_with(), batches())


def test_lists_and_arrays_are_scores_too():
    for convert in (lambda s: s.tolist(), lambda s: s.numpy(), lambda s: s.bool()):
        score = evaluate_model(net(), task_with(score=lambda out, b, c=convert: c(right(out, b))), batches())
        assert score.method == "wilson"


def test_a_list_of_samples_is_a_batch():
    def forward(model, batch):
        return model(torch.stack([x for x, _ in batch]))

    data = [[(x, y) for x, y in zip(*one, strict=True)] for one in batches()]
    task = task_with(score=lambda out, b: out.argmax(1) == torch.stack([y for _, y in b]), forward=forward)
    assert evaluate_model(net(), task, data).value == evaluate_model(net(), task_with(), batches()).value


@pytest.mark.parametrize("kind", [tuple, list, namedtuple("Pair", "x y")._make])
def test_the_number_of_parts_of_a_batch_is_no_number_of_samples(kind):
    task = task_with(score=lambda out, b: right(out, b)[:2], forward=lambda model, batch: model(batch[0]))
    with pytest.raises(TaskError, match=r"score returned shape \(2,\); it has to be \(40,\):"):
        evaluate_model(net(), task, [kind(one) for one in batches()])


@pytest.mark.parametrize("kind", [tuple, list])
def test_parts_may_be_lists_of_samples(kind):
    def forward(model, batch):
        return model(torch.stack(list(batch[0])))

    task = task_with(score=lambda out, b: out.argmax(1) == torch.stack(list(b[1])), forward=forward)
    score = evaluate_model(net(), task, [tuple(kind(part) for part in one) for one in batches()])
    assert score.value == evaluate_model(net(), task_with(), batches()).value


def metric_task(metric):
    return Task(name="demo", build=net, weights={}, test=batches(), metric=metric)


def test_a_metric_is_taken_as_it_is_without_an_interval():
    model = net().train()
    score = evaluate_model(model, metric_task(lambda m, loader: 1.0 - m.training + len(loader)), batches())
    assert (score.value, score.low, score.high, score.per_sample) == (4.0, None, None, None)
    assert model.training


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda m, loader: float("nan"), "metric is nan"),
        (lambda m, loader: "good", "metric returned 'good', not one number"),
        (lambda m, loader: 1 / 0, "metric failed: ZeroDivisionError"),
    ],
)
def test_a_metric_that_is_no_number_is_refused(metric, message):
    with pytest.raises(TaskError, match=message):
        evaluate_model(net(), metric_task(metric), batches())


def test_a_metric_takes_a_model():
    with pytest.raises(TaskError, match="only a model can be evaluated"):
        evaluate(lambda batch: batch, metric_task(lambda m, loader: 1.0), batches())


def test_progress_counts_batches():
    seen = []
    evaluate_model(net(), task_with(), batches(), progress=lambda *what: seen.append(what))
    assert seen == [("evaluate", 1.0, 3.0), ("evaluate", 2.0, 3.0), ("evaluate", 3.0, 3.0)]


def scored(values, order=5):
    """A score with these per-sample values."""
    batch = (torch.full((len(values),), float(order)),)
    return evaluate(lambda batch: values, task_with(score=lambda out, b: out), [batch])


def test_a_lossy_artifact_is_told_by_mcnemar():
    before, after = np.ones(1000), np.ones(1000)
    before[:5] = 0
    after[:5], after[100:130] = 1, 0
    found = compare(scored(before), scored(after), higher_is_better=True)
    assert found.test == "mcnemar" and found.drop == pytest.approx(0.025)
    assert found.low < 0.025 < found.high and found.low > 0
    assert found.p_value < 1e-4 and found.note == ""
    swapped = compare(scored(after), scored(before), higher_is_better=True)
    assert (swapped.drop, swapped.p_value) == pytest.approx((-found.drop, found.p_value))
    errors = compare(scored(1 - before), scored(1 - after), higher_is_better=False)
    assert errors == found


def test_other_scores_are_compared_pair_by_pair():
    rng = np.random.default_rng(0)
    before = rng.normal(5, 10, 400)
    after = before + rng.normal(0.1, 0.3, 400)
    found = compare(scored(before), scored(after), higher_is_better=False)
    assert found.test == "bootstrap" and found.low < 0.1 < found.high
    assert found.p_value < 0.01 < found.resolution < 0.1


def test_a_sample_too_small_for_the_asked_drop_is_noted_with_the_number_that_would_do():
    values = np.ones(200)
    values[:4] = 0
    small = compare(scored(values), scored(values[::-1].copy()), higher_is_better=True, asked_drop=0.005)
    assert small.note.startswith("200 samples cannot tell a drop of 0.005 from none, only 0.03")
    assert "samples would" in small.note
    large = compare(scored(values), scored(values[::-1].copy()), higher_is_better=True, asked_drop=0.1)
    assert large.note == ""


def test_no_sample_tells_a_drop_of_nothing():
    values = np.random.default_rng(1).normal(size=50)
    found = compare(scored(values), scored(values**3), higher_is_better=True, asked_drop=0.0)
    assert "cannot tell a drop of 0 from none" in found.note and "would" not in found.note
    for wrong in (-0.1, float("nan"), float("inf"), "0.1"):
        with pytest.raises(SpecError, match=rf"asked_drop is {wrong!r}"):
            compare(scored(values), scored(values), higher_is_better=True, asked_drop=wrong)


def test_the_same_answers_twice_are_no_difference():
    values = np.ones(100)
    found = compare(scored(values), scored(values), higher_is_better=True)
    assert (found.drop, found.p_value) == (0.0, 1.0) and found.low < 0 < found.high


def test_another_order_or_number_of_samples_is_not_paired():
    values = np.ones(100)
    for other in (scored(values, order=6), scored(np.ones(99))):
        found = compare(scored(values), other, higher_is_better=True)
        assert found.test == "none" and found.p_value is None and "shuffle" in found.note


def test_a_shuffled_loader_is_noticed():
    data = torch.utils.data.TensorDataset(*(torch.cat(part) for part in zip(*batches(), strict=True)))
    model = net()
    loaders = [torch.utils.data.DataLoader(data, batch_size=10, shuffle=shuffle) for shuffle in (True, False)]
    found = [
        compare(*(evaluate_model(model, task_with(), loader) for _ in range(2)), higher_is_better=True).test
        for loader in loaders
    ]
    assert found == ["none", "mcnemar"]


def test_metrics_are_subtracted_without_a_test():
    first, second = (
        evaluate_model(net(), metric_task(lambda m, loader, v=value: v), batches()) for value in (0.9, 0.8)
    )
    found = compare(first, second, higher_is_better=True)
    assert found.drop == pytest.approx(0.1) and found.test == "none" and found.resolution is None


def test_a_batch_moves_with_its_nesting():
    pair = namedtuple("pair", "x y")
    batch = {"a": [torch.ones(2), "text"], "b": pair(torch.ones(1), (torch.ones(3),)), "c": 4}
    moved = to_device(batch, "meta")
    assert moved["a"][0].is_meta and moved["a"][1] == "text" and moved["c"] == 4
    assert isinstance(moved["b"], pair) and moved["b"].x.is_meta and moved["b"].y[0].is_meta
