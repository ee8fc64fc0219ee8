"""Every step on another device than the CPU: a pretended one, and a GPU where there is one."""

import signal
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tests.far import FAR, Far, far_away

import tersor
from tersor import Cluster, Code, Distill, Fold, Match, Prune, Quantize, Recipe, Shrink, Smooth, Train
from tersor.model.shrink import check_same
from tersor.pipeline import shrink as pipeline_shrink

# What torch says of its own device without memory.
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
DEVICES = [FAR, *(["cuda"] if torch.cuda.is_available() else [])]
TRAIN = Train(epochs=2)
FREE = Train(epochs=2, teacher="none")
LAYERS = Train(epochs=1, distill=Distill(layers=(Match(student="0", teacher="1"),), decoupled=(1.0, 2.0)))
UNTRAINED = {
    "magnitude": (Prune(fraction=0.5, scope="global"),),
    "blocks": (Prune(fraction=0.5, granularity="block", block_size=(2, 3), targets=("4",)),),
    "pattern": (Prune(pattern="2:4", targets=("4",)),),
    "gradients": (Prune(fraction=0.5, importance="movement"),),
    "fisher": (Prune(fraction=0.5, importance="fisher"),),
    "activations": (Prune(fraction=0.5, granularity="channel", importance="apoz", targets=("0", "4")),),
    "channels": (Shrink(fraction=0.5, importance="taylor", reestimate=2),),
    "dead": (Prune(fraction=0.5, granularity="channel", targets=("4",)), Shrink(dead=True)),
    "codebook": (Cluster(bits=3, importance="output", keep_zero=True),),
    "entropy": (Cluster(rate=0.05, importance="fisher"),),
    "static": (Fold(equalize=True, reestimate=2), Quantize(batches=2, correct_bias=True)),
    "rounding": (Quantize(bits=4, batches=2, rounding="learned", targets=("6",)),),
    "dynamic": (Smooth(), Quantize(batches=2, activations="dynamic")),
    "half": (Quantize(bits=16, activations="none"),),
}
TRAINED = {
    "alone": (replace(FREE, gradient_bits=8, clip_norm=1.0),),
    "layers": (LAYERS,),
    "gradual": (Prune(fraction=0.5, schedule="gradual", train=TRAIN),),
    "by-gradients": (Prune(fraction=0.5, schedule="linear", importance="taylor", train=TRAIN),),
    "iterative": (
        Prune(fraction=0.5, schedule="iterative", rounds=2, max_drop=0.5, rewind=True, train=TRAIN),
    ),
    "regrow": (Prune(fraction=0.5, regrow=0.3, regrow_every=2, train=TRAIN),),
    "channels": (Shrink(fraction=0.5, train=TRAIN),),
    "codebook": (Prune(fraction=0.5), Cluster(bits=3, train=TRAIN)),
    "mean": (Cluster(bits=3, update="mean", reassign=1, train=TRAIN),),
    "assigned": (Cluster(bits=3, reassign=1, keep_zero=True, train=TRAIN),),
    "scales": (Fold(), Prune(fraction=0.5), Quantize(bits=4, activation_bits=4, batches=2, train=TRAIN)),
    "ranges": (Fold(), Quantize(batches=2, learn_scales=False, freeze_observers=0.5, train=TRAIN)),
    "norms": (Fold(), Quantize(batches=2, freeze_norms=0.5, train=TRAIN)),
    "clustered": (Cluster(bits=3), Quantize(batches=2, train=TRAIN)),
}


@pytest.fixture(params=DEVICES)
def device(request):
    with far_away() if request.param == FAR else nullcontext():
        yield request.param


def run(task, steps, device="cpu", out=None, **given):
    return tersor.compress(task, Recipe(steps=(*steps, Code())), out=out, device=device, **given)


def test_what_was_left_behind_is_noticed(device):
    here, there = torch.ones(2), torch.ones(2, device=device)
    assert isinstance(there, Far) == (device == FAR)
    assert (there * torch.tensor(2.0)).tolist() == [2.0, 2.0]
    for mixed in (lambda: here + there, lambda: torch.stack([there.sum(), here.sum()])):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()


@pytest.mark.parametrize("steps", UNTRAINED.values(), ids=UNTRAINED)
def test_without_training_the_file_is_that_of_the_cpu(task, steps, device, tmp_path):
    made = run(task, steps, device, tmp_path / "there")
    assert tersor.evaluate(task, made.path, device=device).value == made.artifact.value
    if device == FAR:
        assert made.path.read_bytes() == run(task, steps, out=tmp_path / "here").path.read_bytes()


@pytest.mark.parametrize("steps", TRAINED.values(), ids=TRAINED)
def test_what_was_trained_elsewhere_runs_anywhere(task, steps, device, tmp_path):
    made = run(task, steps, device, tmp_path)
    assert made.artifact.value == pytest.approx(tersor.evaluate(task, made.path).value, abs=0.05)
    assert {one.step for one in made.stages} >= {one.name for one in steps}


class Interrupting:
    """Batches, with Ctrl-C before one of them."""

    def __init__(self, batches, at):
        self.batches, self.left = batches, at

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGINT)
            yield batch


@pytest.mark.parametrize("kind", ["gradual", "assigned", "scales"])
def test_a_training_that_was_stopped_in_an_epoch_goes_on(task, kind, device, tmp_path):
    steps = TRAINED[kind]
    whole = run(task, steps, device, tmp_path / "whole")
    task = replace(task, train=Interrupting(task.train, at=11))
    with pytest.raises(KeyboardInterrupt):
        run(task, steps, device, tmp_path / "stopped")
    assert [one.name for one in (tmp_path / "stopped").rglob("*.checkpoint")]
    stopped = run(task, steps, device, tmp_path / "stopped")
    if device == FAR:
        assert stopped.path.read_bytes() == whole.path.read_bytes()


def test_plans_blame_and_sensitivity(task, device, tmp_path):
    steps = TRAINED["scales"]
    plan = tersor.plan(task, Recipe(steps=steps), device=device)
    assert plan.predicted_seconds
    made = run(task, steps, device, tmp_path / "made")
    assert tersor.blame(task, made.path.parent, device=device).tensors
    survey = tersor.Survey(candidates=("bits 4", "values 16", "sparsity 50"), batches=1)
    assert tersor.sensitivity(task, survey=survey, device=device).rows


def test_a_forward_may_use_what_the_model_holds(task, device):
    def forward(model, batch):
        return model(batch[0] - model[0].bias.detach()[:1])

    given = replace(task, forward=forward)
    assert run(given, TRAINED["channels"], device).ratio > 1
    assert run(given, UNTRAINED["fisher"], device).ratio > 1


def test_metrics_see_their_own_loader(task, device):
    class Loader(list):
        batch_size = 20

    def metric(model, loader):
        x, y = loader[0]
        return float((model(x).argmax(1) == y).sum()) / loader.batch_size / len(loader)

    loaders = {name: Loader(getattr(task, name)) for name in ("validation", "test")}
    given = replace(task, **loaders, score=None, metric=metric)
    assert 0 <= run(given, UNTRAINED["magnitude"], device).artifact.value <= 1


@pytest.mark.parametrize("kind", ["channels", "dead"])
def test_removals_are_proved_on_the_cpu(task, kind, device, monkeypatch):
    """A GPU may multiply with so few bits that a removal looks like a change."""
    seen = set()

    def look(expected, got, *rest):
        seen.update(one.device.type for model in (expected, got) for one in model.parameters())
        return check_same(expected, got, *rest)

    monkeypatch.setattr(pipeline_shrink, "check_same", look)
    run(task, UNTRAINED[kind], device)
    assert seen == {"cpu"}


def test_a_search(task, device, tmp_path):
    untrained = replace(task, train=None, loss=None)
    found = tersor.search(untrained, tersor.Budget(max_drop=0.2), out=tmp_path, device=device)
    assert found.size_bytes < found.dense_bytes
