import random
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tersor.errors import TargetError, TaskError, TersorError
from tersor.model.attach import attach_codebook, attach_grid, attach_mask
from tersor.model.select import Selected, select
from tersor.model.simulate import FakePoint, scales_that_learn
from tersor.model.storage import storages
from tersor.points import QuantPoint
from tersor.spec import Cluster, Prune, Train
from tersor.task import Task
from tersor.tensor.affine import Grid
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.groups import Granularity
from tersor.tensor.masks import magnitude_mask
from tersor.tensor.scales import quantize_tensor
from tersor.train.checkpoint import load_checkpoint, save_checkpoint
from tersor.train.control import Control, GradualPruning, Reassignment
from tersor.train.loop import fit, make_optimizer

INPUTS = torch.randn(50, 6, generator=torch.Generator().manual_seed(5))
TARGETS = (INPUTS[:, :3].sum(dim=1) > 0).long()


class Noisy:
    """A loader that shuffles and augments with every source of chance there is."""

    def __init__(self) -> None:
        self.order = torch.Generator().manual_seed(11)
        self.jitter = np.random.default_rng(12)

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(50, generator=self.order).split(10):
            shift = random.random() + np.random.random() + self.jitter.random() + torch.rand(()).item()
            yield INPUTS[rows] + 0.1 * shift, TARGETS[rows]


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def made_task(train: Any, **changes: Any) -> Task:
    fields = {
        "name": "toy",
        "build": build,
        "weights": {},
        "test": [],
        "train": train,
        "loss": lambda output, batch: nn.functional.cross_entropy(output, batch[1]),
        "score": lambda output, batch: (output.argmax(1) == batch[1]).float(),
    }
    return Task(**fields | changes)


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=10, shuffle=True)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def clustered(model: nn.Module, reassign: int) -> list[Control]:
    step = Cluster(bits=2, reassign=reassign)
    chosen = [one for one in select(model, step) if one.step is not None]
    attach_mask(model, chosen[0].storage, magnitude_mask(chosen[0].storage.dense(), fraction=0.5))
    for one in chosen:
        found = cluster_tensor(one.storage.dense(), step, mask=one.storage.mask())
        attach_codebook(model, one.storage, found, latent=True)
    return [Reassignment(model, chosen, reassign)]


def gradual(model: nn.Module, scope: str = "layer") -> list[Control]:
    step = Prune(fraction=0.8, schedule="gradual", scope=scope, train=Train())
    return [GradualPruning(model, [one for one in select(model, step) if one.step is not None], step)]


ATTACHMENTS = {"bare": lambda model: [], "gradual": gradual, "clustered": lambda model: clustered(model, 1)}


def test_learns() -> None:
    model, seen = build(), []
    phase = Train(epochs=30, lr=0.02, name="tune")
    records = fit(model, made_task(batches()), phase, seed=3, progress=lambda *told: seen.append(told))
    assert [one.epoch for one in records] == list(range(30))
    assert records[-1].loss < 0.6 * records[0].loss
    assert records[0].lr > records[-1].lr > 0
    assert seen[-1][:3] == ("tune", 30, 30)
    assert ("tune", 0.8, 30) not in [one[:3] for one in seen] and seen[0][:3] == ("tune", 1, 30)
    assert seen[-1][3].startswith("epoch 30, loss 0.")


def test_fractional_epochs_and_loaders_without_a_length() -> None:
    class Counted:
        def __init__(self) -> None:
            self.given = 0

        def __iter__(self) -> Iterator[Any]:
            for _ in range(4):
                self.given += 1
                yield INPUTS[:10], TARGETS[:10]

    loader = Counted()
    records = fit(build(), made_task(loader), Train(epochs=2.5), seed=0)
    assert len(records) == 3
    assert loader.given == 4 + 10
    assert len(fit(build(), made_task(batches()), Train(epochs=0.01), seed=0)) == 1


@pytest.mark.parametrize("attach", ATTACHMENTS.values(), ids=ATTACHMENTS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_same_seed_same_weights_and_nothing_else_disturbed(optimizer: str, attach: Any) -> None:
    phase = Train(epochs=2, optimizer=optimizer, weight_decay=0.01, clip_norm=1.0, warmup=0.2)
    loader, results = Noisy(), []
    for seed in (1, 1, 2):
        model = build().eval()
        model[1].train()
        controls = attach(model)
        torch.manual_seed(77 + len(results))
        random.seed(len(results))
        chance = torch.get_rng_state(), random.getstate(), loader.order.get_state()
        fit(model, made_task(loader), phase, seed=seed, controls=controls)
        assert torch.equal(torch.get_rng_state(), chance[0])
        assert random.getstate() == chance[1]
        assert torch.equal(loader.order.get_state(), chance[2])
        assert [one.training for one in model] == [False, True, False, False, False]
        results.append(state_of(model))
    assert_same(results[0], results[1])
    assert any(not torch.equal(value, results[2][name]) for name, value in results[0].items())


@dataclass
class Breaking(Control):
    """Presses Ctrl-C in the middle of a step."""

    at: int
    seen: list[int] = field(default_factory=list)

    def on_step_begin(self, step: int, total: int) -> None:
        self.seen.append(step)
        if step == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("attach", ATTACHMENTS.values(), ids=ATTACHMENTS)
@pytest.mark.parametrize("stop", [0, 3, 4, 5, 12, 16])
def test_an_interrupted_phase_ends_as_an_unbroken_one(stop: int, attach: Any, tmp_path: Path) -> None:
    phase = Train(epochs=3.4, lr=0.01, optimizer="adamw", warmup=0.1)
    whole = build()
    records = fit(whole, made_task(Noisy()), phase, seed=4, controls=attach(whole))
    path = tmp_path / "phase.checkpoint"
    broken = build()
    breaking = Breaking(stop)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, made_task(Noisy()), phase, seed=4, controls=[*attach(broken), breaking], checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is before
    assert breaking.seen == list(range(stop + 1))
    resumed = build()
    watching = Breaking(-1)
    again = fit(
        resumed, made_task(Noisy()), phase, seed=4, controls=[*attach(resumed), watching], checkpoint=path
    )
    assert watching.seen == list(range(stop + 1, 17))
    assert_same(state_of(whole), state_of(resumed))
    assert [replace(one, seconds=0) for one in again] == [replace(one, seconds=0) for one in records]
    done = build()
    finished = fit(done, made_task(Noisy()), phase, seed=4, controls=attach(done), checkpoint=path)
    assert_same(state_of(whole), state_of(done))
    assert finished == again
    assert [one.name for one in tmp_path.iterdir()] == ["phase.checkpoint"]


BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


@pytest.mark.parametrize("name", BIT_GENERATORS)
def test_a_loader_may_draw_from_any_generator_of_numpy(name: str, tmp_path: Path) -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.draw = np.random.Generator(getattr(np.random, name)(1))

        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Iterator[Any]:
            for rows in torch.from_numpy(self.draw.permutation(50)).split(10):
                noise = self.draw.integers(0, 3, dtype=np.uint32) + self.draw.random() + np.random.randn()
                yield INPUTS[rows] + float(noise), TARGETS[rows]

    whole, broken, resumed = build(), build(), build()
    fit(whole, made_task(Shuffled()), Train(epochs=2), seed=4)
    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        fit(broken, made_task(Shuffled()), Train(epochs=2), seed=4, controls=[Breaking(7)], checkpoint=path)
    loader = Shuffled()
    untouched = [Shuffled().draw.random(), np.random.get_state()[1].tolist()]
    fit(resumed, made_task(loader), Train(epochs=2), seed=4, checkpoint=path)
    assert_same(state_of(whole), state_of(resumed))
    assert [loader.draw.random(), np.random.get_state()[1].tolist()] == untouched


def test_a_dataloader_resumes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    phase = Train(epochs=2)
    whole, broken, resumed = build(), build(), build()
    fit(whole, made_task(batches()), phase, seed=4)
    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        fit(broken, made_task(batches()), phase, seed=4, controls=[Breaking(7)], checkpoint=path)
    fit(resumed, made_task(batches()), phase, seed=4, checkpoint=path)
    assert_same(state_of(whole), state_of(resumed))


def test_a_checkpoint_that_is_not_this_phases(tmp_path: Path) -> None:
    path = tmp_path / "c"
    fit(build(), made_task(batches()), Train(epochs=1), seed=0, checkpoint=path)
    with pytest.raises(TaskError, match="is of another training phase or seed"):
        fit(build(), made_task(batches()), Train(epochs=1), seed=1, checkpoint=path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(TaskError, match=r"cannot be read .* delete it"):
        fit(build(), made_task(batches()), Train(epochs=1), seed=0, checkpoint=path)


def test_a_write_that_fails_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    fit(build(), made_task(batches()), Train(epochs=1), seed=0, checkpoint=path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path_again = path.with_name("d")
    path_again.write_bytes(before)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TersorError, match=r"e' cannot be written \(.*No space.*\): make room"):
        fit(build(), made_task(batches()), Train(epochs=1, name="x"), seed=0, checkpoint=tmp_path / "e")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c", "d"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("room", [0, 1000, 40_000])
def test_a_disk_that_fills_up_is_told_and_nothing_is_left(room: int, tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"earlier": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(TersorError) as caught:
            save_checkpoint(path, {"a": torch.ones(20_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"checkpoint '{path}' cannot be written (")
    assert "File too large" in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["c"]
    assert load_checkpoint(path) == {"earlier": 1}


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TersorError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "c", {})


def test_gradual_pruning_rises_and_arrives() -> None:
    seen: list[float] = []

    class Watch(Control):
        def after_step(self, step: int, total: int) -> None:
            seen.append(float((storage.dense() == 0).float().mean()))

    for end in (0.6, 1.0):
        model = build()
        seen.clear()
        step = Prune(fraction=0.75, schedule="gradual", begin=0.2, end=end, train=Train())
        chosen = [one for one in select(model, step) if one.step is not None]
        storage = chosen[0].storage
        fit(model, made_task(batches()), Train(epochs=4), seed=0,
            controls=[GradualPruning(model, chosen, step), Watch()])  # fmt: skip
        assert seen[:5] == [0] * 5
        assert seen == sorted(seen)
        assert len(set(seen)) > 5
        assert seen[-1] == 0.75
        assert (0.75 in seen[:14]) == (end == 0.6)


def test_gradual_pruning_ranks_layers_together_and_keeps_earlier_zeros() -> None:
    model = build()
    with torch.no_grad():
        model[4].weight.mul_(100)
    first = next(one for one in storages(model) if one.name == "4.weight")
    attach_mask(model, first, magnitude_mask(first.dense(), fraction=0.25))
    zeros = first.dense() == 0

    class Watch(Control):
        def after_step(self, step: int, total: int) -> None:
            assert (first.dense()[zeros] == 0).all()

    controls = [*gradual(model, "global"), Watch()]
    fit(model, made_task(batches()), Train(epochs=4, lr=1e-4), seed=0, controls=controls)
    sparsity = {one.name: float((one.dense() == 0).float().mean()) for one in storages(model)}
    assert sparsity["4.weight"] < 0.5 < sparsity["0.weight"]
    assert (first.dense()[zeros] == 0).all()
    assert sum(int((one.dense() == 0).sum()) for one in storages(model) if one.kind == "weight") == round(
        0.8 * 128
    )


def test_codes_are_assigned_anew_between_epochs() -> None:
    model = build()
    controls = clustered(model, 2)
    storage = next(one for one in storages(model) if one.name == "4.weight")
    seen: list[Tensor] = []

    class Watch(Control):
        def between_epochs(self, done: int) -> None:
            seen.append(storage.parametrization[0].index.clone())

    fit(model, made_task(batches()), Train(epochs=5, lr=0.05), seed=0, controls=[*controls, Watch()])
    assert len(seen) == 4
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_controls_refuse_what_they_cannot_do() -> None:
    model = build()
    chosen = [one for one in select(model, Cluster(bits=2)) if one.step is not None]
    with pytest.raises(TargetError, match="has no codebook to assign codes from"):
        Reassignment(model, chosen, 1)
    storage = chosen[0].storage
    attach_codebook(model, storage, cluster_tensor(storage.dense(), Cluster(bits=2)))
    with pytest.raises(ValueError, match=r"0.weight has no latent"):
        Reassignment(model, chosen[:1], 1)
    with pytest.raises(ValueError, match="not every 0"):
        Reassignment(model, chosen[:1], 0)
    step = Prune(fraction=0.5, schedule="gradual", train=Train())
    with pytest.raises(ValueError, match=r"0.weight already shares its weights"):
        GradualPruning(model, [Selected(storage, step)], step)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": None}, "has no train loader"),
        ({"train": []}, "the train loader is empty"),
        ({"loss": None}, "has no loss"),
        ({"loss": lambda output, batch: output}, r"loss gave a tensor of shape \(10, 2\)"),
        ({"loss": lambda output, batch: 1.0}, "loss gave float"),
        ({"loss": lambda output, batch: output.detach().sum()}, "the loss has no gradient"),
    ],
)
def test_a_task_that_cannot_train(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        fit(build(), replace(made_task(batches()), **changes), Train(), seed=0)


def test_a_loader_that_is_shorter_than_it_says() -> None:
    class Short(Noisy):
        def __len__(self) -> int:
            return 6

    with pytest.raises(TaskError, match="gave 5 batches in epoch 0, its length is 6"):
        fit(build(), made_task(Short()), Train(epochs=2), seed=0)


def test_nothing_trainable() -> None:
    with pytest.raises(TaskError, match="nothing in the model is trainable"):
        fit(build().requires_grad_(False), made_task(batches()), Train(), seed=0)


@pytest.mark.parametrize("attach", ATTACHMENTS.values(), ids=ATTACHMENTS)
def test_adamw_refuses_float16_that_trains(attach: Any) -> None:
    model = build()
    model[4].weight.data = model[4].weight.data.half()
    attach(model)
    with pytest.raises(TaskError, match=r"^4\.weight is float16.*float32 or bfloat16"):
        make_optimizer(model, Train())
    model[4].requires_grad_(False)
    make_optimizer(model, Train())
    make_optimizer(build().bfloat16(), Train())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_trains_every_dtype_as_it_does_float32(dtype: torch.dtype, momentum: float) -> None:
    ends = []
    for one in (torch.float32, dtype):
        model = nn.Linear(6, 40).to(one)
        nn.init.constant_(model.weight, 0.5)
        nn.init.zeros_(model.bias)
        data = [(INPUTS.to(one), TARGETS)]
        fit(model, made_task(data), Train(optimizer="sgd", momentum=momentum, lr=0.5, epochs=9), seed=0)
        ends.append(model.weight.detach().float())
    assert torch.allclose(*ends, atol=0.02)
    assert not torch.allclose(ends[0], torch.full((40, 6), 0.5), atol=0.1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_told_with_its_step(bad: float, tmp_path: Path) -> None:
    calls = []

    def loss(output: Tensor, batch: Any) -> Tensor:
        calls.append(1)
        return nn.functional.cross_entropy(output, batch[1]) + (bad if len(calls) == 7 else 0)

    path = tmp_path / "c"
    with pytest.raises(
        TaskError, match=rf"the loss is {bad} at step 6 of 'train', at a learning rate of 0.5"
    ):
        fit(build(), made_task(batches(), loss=loss), Train(epochs=9, lr=0.5, schedule="constant"), seed=0,
            checkpoint=path)  # fmt: skip
    assert not path.exists()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_decay_and_learned_scales_do_not(name):
    layer = nn.Linear(4, 3)
    storage = storages(layer)[0]
    grid = Grid(bits=4, granularity=Granularity("channel", 0))
    attach_grid(layer, storage, quantize_tensor(storage.dense(), grid), grid, latent=True, learn=True)
    point = FakePoint(QuantPoint("", "linear", 0, scale=0.1), learn=True)
    optimizer = make_optimizer(nn.Sequential(layer, point), Train(optimizer=name, weight_decay=0.1, lr=0.1))
    decayed, kept = optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {one.shape for one in decayed["params"]} == {layer.bias.shape, layer.weight.shape}
    assert {id(one) for one in kept["params"]} == {
        id(point.shift), id(layer.parametrizations.weight.original1)
    }  # fmt: skip


@pytest.mark.parametrize("learn", [False, True])
def test_scales_that_learn_take_no_part_of_the_norm_that_clips_weights(learn: bool) -> None:
    model = build()
    storage = storages(model)[0]
    grid = Grid(bits=8, granularity=Granularity("channel", 0))
    attach_grid(model, storage, quantize_tensor(storage.dense(), grid), grid, latent=True, learn=learn)
    scales = scales_that_learn(model)
    before = [one.detach().clone() for one in model.parameters()]
    phase = Train(epochs=1, lr=1.0, optimizer="sgd", momentum=0.0, clip_norm=1e-3, schedule="constant")
    fit(model, made_task([(INPUTS, TARGETS)]), phase, seed=0)
    moved = [
        (one, float((one.detach() - old).norm())) for one, old in zip(model.parameters(), before, strict=True)
    ]
    weights = [length for one, length in moved if one not in scales]
    assert np.linalg.norm(weights) == pytest.approx(1e-3, rel=1e-2)
    assert all(0 < length < 1.01e-3 for one, length in moved if one in scales)
    assert len(scales) == learn
