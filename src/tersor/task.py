"""What only the user knows: the model, the data, and how to score an output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tersor.errors import TaskError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Batch = Any
Output = Any


def _forward(model: nn.Module, batch: Batch) -> Output:
    return model(batch[0])


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trained model with its data and its own measure of quality.

    build -- returns a fresh, untrained model; called again for every evaluation of a file.
    weights -- the trained ``state_dict``, or a path to one (``.pt`` read with ``weights_only=True``, or
        ``.safetensors``).
    forward -- runs the model on one batch; the default calls ``model(batch[0])``.
    loss -- (output, batch) -> scalar tensor; needed by every step that trains.
    score -- (output, batch) -> one number for each sample, shape (n,); a mean of it is the score.
    metric -- (model, loader) -> one number, instead of ``score``, where no sample has a score alone.
    train, validation, test -- re-iterable loaders of batches (a DataLoader, a list).
        ``forward``, ``loss``, ``score`` and ``metric`` get them, and outputs, on the device in use.
    example_inputs -- positional inputs of the model, for export.
    teacher -- another task, whose trained model this one is to take the place of: its ``forward`` runs it on
        this task's batches, for what training steps learn from it, and for the baseline that results are
        compared with. Without it both are the uncompressed model itself. A student that has not been trained
        has ``build().state_dict()`` as its ``weights``.

    Exactly one of ``score`` and ``metric`` is given. Raises :class:`TaskError` where that does not hold.
    """

    name: str
    build: Callable[[], nn.Module]
    weights: Mapping[str, Tensor] | str | Path
    test: Iterable[Batch]
    train: Iterable[Batch] | None = None
    validation: Iterable[Batch] | None = None
    forward: Callable[[nn.Module, Batch], Output] = _forward
    loss: Callable[[Output, Batch], Tensor] | None = None
    score: Callable[[Output, Batch], Tensor] | None = None
    metric: Callable[[nn.Module, Iterable[Batch]], float] | None = None
    higher_is_better: bool = True
    example_inputs: tuple[Any, ...] | None = None
    teacher: Task | None = None

    def __post_init__(self) -> None:
        if (self.score is None) == (self.metric is None):
            raise TaskError(f"task {self.name!r} takes exactly one of score and metric")
        is_model = hasattr(self.build, "state_dict") and not isinstance(self.build, type)
        if not callable(self.build) or is_model:
            kind = type(self.build).__name__
            raise TaskError(
                f"task {self.name!r}: build is a {kind}; it has to be a function that returns a module"
            )
        if not isinstance(self.weights, Mapping | str | Path):
            kind = type(self.weights).__name__
            raise TaskError(f"task {self.name!r}: weights is a {kind}; give model.state_dict() or a path")
        if self.teacher is not None and not isinstance(self.teacher, Task):
            kind = type(self.teacher).__name__
            raise TaskError(f"task {self.name!r}: teacher is a {kind}; it has to be a tersor.Task of its own")
        for name in ("train", "validation", "test"):
            loader = getattr(self, name)
            if loader is None and name != "test":
                continue
            if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
                raise TaskError(
                    f"task {self.name!r}: {name} is {loader!r}; give a DataLoader or a list of batches"
                )
            if iter(loader) is loader:
                raise TaskError(
                    f"task {self.name!r}: {name} is an iterator, which runs dry after one pass; "
                    "give a DataLoader or a list"
                )

    @property
    def reference(self) -> Task:
        """The task of the model that a result is measured against: its teacher's, on its own data."""
        if self.teacher is None:
            return self
        model = {name: getattr(self.teacher, name) for name in ("name", "build", "weights", "forward")}
        return replace(self, **model, example_inputs=self.teacher.example_inputs, teacher=None)


def batches_in(loader: object) -> int | None:
    """How many batches a loader has; None where only a pass over it would tell.

    What is ``Sized`` may have no length: a DataLoader over an iterable dataset.

    >>> batches_in([1, 2]), batches_in(iter([1, 2]))
    (2, None)
    """
    try:
        return len(cast(Sized, loader))
    except TypeError:
        return None


def to_device(batch: Batch, device: str | torch.device) -> Batch:
    """The batch with everything in it that can move on ``device``, through tuples, lists and mappings."""
    if hasattr(batch, "to"):  # tensors, packed sequences, tokenizers' encodings
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def check_is_task(task: object) -> None:
    """Raise :class:`TaskError` for what is no :class:`Task`, most often the function that makes one.

    >>> def make(): ...
    >>> check_is_task(make)
    Traceback (most recent call last):
    tersor.errors.TaskError: make is a function, not a tersor.Task: call it, make()
    """
    if isinstance(task, Task):
        return
    if callable(task):
        name = getattr(task, "__name__", type(task).__name__)
        raise TaskError(f"{name} is a function, not a tersor.Task: call it, {name}()")
    raise TaskError(f"a tersor.Task is needed, not a {type(task).__name__}")
