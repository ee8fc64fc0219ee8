"""The one training loop: plain fine-tuning under whatever is attached to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import TaskError, code_of_the_task
from tersor.model.modes import device_of, modes_restored
from tersor.model.simulate import scales_that_learn
from tersor.model.storage import storages
from tersor.progress import Progress, silent
from tersor.spec import Train
from tersor.task import Batch, Task, batches_in, to_device
from tersor.train.checkpoint import interrupt_later, load_checkpoint, save_checkpoint
from tersor.train.control import Control
from tersor.train.gradients import quantized_gradients
from tersor.train.randomness import Randomness, State
from tersor.train.schedule import learning_rate

REPORT_STEPS = 20
SAVE_SECONDS = 60.0
_NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training loader: the mean loss of its steps, its last rate."""

    epoch: int
    loss: float
    lr: float
    seconds: float


def fit(
    model: nn.Module,
    task: Task,
    phase: Train,
    *,
    seed: int,
    device: str = "cpu",
    controls: Sequence[Control] = (),
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> list[EpochRecord]:
    """Train what is trainable in ``model``, in place, as ``phase`` says.

    The same seed gives the same weights (one machine, versions, threads; on a GPU as far as torch's kernels
    do, :func:`torch.use_deterministic_algorithms`): the phase seeds torch, NumPy, ``random`` and the
    generators held by the loader, and puts all of them back afterwards, as it does with the model's modes and
    device. ``checkpoint`` is a file to go on from if it is there; it is
    written once a minute, at the end, and on Ctrl-C between two steps, after which KeyboardInterrupt goes its
    way. Going on from it, with the model and controls as they were at the beginning of the phase, ends in the
    same weights as training without a break. ``progress`` counts epochs. A teacher is one of the controls
    (:class:`tersor.train.teaching.Teaching`): ``phase.teacher`` is not looked at here.

    Raises :class:`TaskError` if the task has no loss or training data, if nothing is trainable,
    or if the loss becomes NaN or infinite.
    """
    loader = _train_loader(task)
    randomness, rounded = Randomness(loader), quantized_gradients(model, phase.gradient_bits)
    with randomness.seeded(seed), _in_training(model, device), rounded:
        steps_an_epoch = _count_batches(task, loader)
        total = max(1, round(phase.epochs * steps_an_epoch))
        epochs = total / steps_an_epoch
        randomness.seed(seed)
        learners = [one for control in controls if (one := control.learner()) is not None]
        optimizer = make_optimizer(model, phase, learners)
        run = _Run(model, optimizer, phase, randomness, checkpoint, learners, [asdict(phase), seed, total])
        run.load()
        with interrupt_later() if checkpoint else nullcontext(lambda: False) as interrupted:
            while run.step < total:
                epoch, skip = divmod(run.step, steps_an_epoch)
                end = min((epoch + 1) * steps_an_epoch, total)
                started = perf_counter()
                for batch in islice(run.begin_epoch(loader, skip), end - run.step):
                    _learn(run, controls, partial(_loss, model, task, to_device(batch, device), controls))
                    if run.step % REPORT_STEPS == 0 and run.step < end:
                        progress(phase.name, run.step / steps_an_epoch, epochs, f"loss {run.last_loss():.4g}")
                    if run.step < end:
                        run.save_if_due(interrupted())
                if run.step < end:
                    raise TaskError(f"task {task.name!r}: the train loader gave {run.step % steps_an_epoch} "
                                    f"batches in epoch {epoch}, its length is {steps_an_epoch}")  # fmt: skip
                loss = run.end_epoch(epoch, perf_counter() - started)
                progress(phase.name, run.step / steps_an_epoch, epochs, f"epoch {epoch + 1}, loss {loss:.4g}")
                if run.step < total:
                    for control in controls:
                        control.between_epochs(epoch + 1)
                run.save_if_due(interrupted(), done=run.step == total)
    return run.records


def _learn(run: _Run, controls: Sequence[Control], loss_now: Callable[[], Tensor]) -> None:
    step, total = run.step, run.identity[-1]
    for control in controls:
        control.on_step_begin(step, total)
    optimizer, phase, lr = run.optimizer, run.phase, learning_rate(step, total, run.phase)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss = loss_now()
    torch.autograd.backward(loss)
    if phase.clip_norm is not None:
        # Scales apart: the gradient to a logarithm is 1e2 to 1e4 times as long, and would be all of the norm.
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], phase.clip_norm)
    optimizer.step()
    run.losses.append(loss.detach())
    for control in controls:
        control.after_step(step, total)
    run.step += 1


def make_optimizer(
    model: nn.Module, phase: Train, learners: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """The phase's optimizer over what is trainable now; :class:`TaskError` if nothing in the model is.

    ``learners`` train beside it, in a group of their own.

    So it is for AdamW on float16: its state has that dtype, where eps and small squared gradients are 0. SGD
    divides by nothing and trains there. Weights decay; learned scales do not, whose decay would lead back to
    where they started.
    """
    trained = [one for one in model.parameters() if one.requires_grad]
    if not trained:
        raise TaskError("nothing in the model is trainable: no parameter requires a gradient")
    fused = all(one.device.type in ("cpu", "cuda") for one in trained)
    scales = scales_that_learn(model)
    groups: list[dict[str, Any]] = [{"params": [one for one in trained if one not in scales]}]
    if len(groups[0]["params"]) < len(trained):
        groups.append({"params": [one for one in trained if one in scales], "weight_decay": 0.0})
    beside = [parameter for one in learners for parameter in one.parameters()]
    if beside:
        groups.append({"params": beside})
    if phase.optimizer == "sgd":
        # On the CPU it leaves narrow floats as they are, and says nothing (PyTorch issue 191763).
        fused = fused and not any(one.device.type == "cpu" and one.dtype in _NARROW for one in trained)
        return torch.optim.SGD(
            groups, lr=phase.lr, momentum=phase.momentum, weight_decay=phase.weight_decay, fused=fused
        )
    for one in storages(model):
        if one.dtype == torch.float16 and getattr(one.module, one.attribute).requires_grad:
            raise TaskError(f"{one.name} is float16, too narrow for the state of adamw, which becomes NaN: "
                            "convert the model to float32 or bfloat16 before it trains")  # fmt: skip
    return torch.optim.AdamW(groups, lr=phase.lr, weight_decay=phase.weight_decay, fused=fused)


@dataclass
class _Run:
    """Where a phase is: what a checkpoint holds, beside the model and the optimizer."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    phase: Train
    randomness: Randomness
    path: Path | None
    learners: Sequence[nn.Module]
    identity: list[Any]
    step: int = 0
    records: list[EpochRecord] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    epoch_chance: State = field(default_factory=dict)
    resumed: State = field(default_factory=dict)
    saved_at: float = field(default_factory=perf_counter)

    def begin_epoch(self, loader: Iterable[Batch], skip: int) -> Iterator[Batch]:
        """The batches of an epoch from ``skip`` on, drawn as they would have been without a break."""
        if not skip:
            self.epoch_chance = self.randomness.state()
            return iter(loader)
        self.randomness.set_state(self.epoch_chance)
        batches = iter(loader)
        for _ in islice(batches, skip):
            pass
        self.randomness.set_state(self.resumed)
        return batches

    def end_epoch(self, epoch: int, seconds: float) -> float:
        """Turn the losses since its beginning into the epoch's record; returns their mean."""
        self.last_loss()
        mean = float(torch.stack(self.losses).double().mean())
        lr = learning_rate(self.step - 1, self.identity[-1], self.phase)
        self.records.append(EpochRecord(epoch, mean, lr, seconds))
        self.losses.clear()
        return mean

    def last_loss(self) -> float:
        """The loss of the last step; all of this epoch's have to be finite."""
        values = torch.stack(self.losses)
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            at = self.step - len(values) + int((~finite).nonzero()[0])
            rate = learning_rate(at, self.identity[-1], self.phase)
            raise TaskError(f"the loss is {float(values[~finite][0])} at step {at} of {self.phase.name!r}, "
                            f"at a learning rate of {rate:.3g}: lower lr or set clip_norm")  # fmt: skip
        return float(values[-1])

    def save_if_due(self, interrupted: bool, done: bool = False) -> None:
        """Save once a minute and at the end; save and stop on Ctrl-C."""
        due = done or interrupted or perf_counter() - self.saved_at > SAVE_SECONDS
        if self.path is not None and due:
            if self.losses:
                self.last_loss()
            self.save(self.path)
        if interrupted:
            raise KeyboardInterrupt

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        state = {
            "identity": self.identity,
            "step": self.step,
            "records": [astuple(one) for one in self.records],
            "losses": self.losses,
            "epoch_chance": self.epoch_chance,
            "chance": self.randomness.state(),
            "model": self.model.state_dict(),
            "learners": [one.state_dict() for one in self.learners],
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(path, state)
        self.saved_at = perf_counter()

    def load(self) -> None:
        """Go on from the checkpoint, if there is one of this very phase."""
        if self.path is None or not self.path.exists():
            return
        state = load_checkpoint(self.path)
        if state.get("identity") != self.identity:
            raise TaskError(f"checkpoint {str(self.path)!r} is of another training phase or seed: "
                            "delete it to start anew")  # fmt: skip
        self.model.load_state_dict(state["model"])
        for one, kept in zip(self.learners, state["learners"], strict=True):
            one.load_state_dict(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.records = [EpochRecord(*one) for one in state["records"]]
        home = device_of(self.model)
        self.losses = [one.to(home) for one in state["losses"]]
        self.epoch_chance = state["epoch_chance"]
        self.resumed = state["chance"]
        self.randomness.set_state(self.resumed)


def _train_loader(task: Task) -> Iterable[Batch]:
    if task.loss is None:
        raise TaskError(f"task {task.name!r} has no loss: a step that trains needs loss(output, batch)")
    if task.train is None:
        raise TaskError(f"task {task.name!r} has no train loader: a step that trains needs one")
    return task.train


def _count_batches(task: Task, loader: Iterable[Batch]) -> int:
    known = batches_in(loader)
    batches = sum(1 for _ in loader) if known is None else known
    if not batches:
        raise TaskError(f"task {task.name!r}: the train loader is empty")
    return batches


def _loss(model: nn.Module, task: Task, batch: Batch, controls: Sequence[Control]) -> Tensor:
    assert task.loss is not None
    for control in controls:
        control.before_forward(batch)
    with code_of_the_task(f"task {task.name!r}: forward"):
        output = task.forward(model, batch)
    with code_of_the_task(f"task {task.name!r}: loss"):
        loss = task.loss(output, batch)
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TaskError(f"task {task.name!r}: loss gave {got}; it has to give a scalar tensor")
    if not loss.requires_grad:
        raise TaskError(f"task {task.name!r}: the loss has no gradient: nothing it depends on is trainable")
    for control in controls:
        loss = control.loss(loss, output, batch)
    return loss


@contextmanager
def _in_training(model: nn.Module, device: str) -> Iterator[None]:
    home = device_of(model)
    with modes_restored(model):
        model.to(device).train()
        try:
            yield
        finally:
            model.to(home)
