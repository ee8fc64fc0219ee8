"""A search from its beginning to its verdict: task and budget in, the best verified file out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from shutil import copyfile, rmtree
from time import perf_counter
from typing import cast

from tersor.artifact.io import Reader
from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import SpecError, TaskError
from tersor.measure.quality import evaluate_model, halves
from tersor.measure.size import dense_bytes
from tersor.model.attach import collect
from tersor.model.restore import trained_model
from tersor.pipeline.context import Context
from tersor.pipeline.export import export_model
from tersor.pipeline.fastest import fastest
from tersor.pipeline.fingerprint import fingerprint
from tersor.pipeline.forecast import time_step
from tersor.pipeline.load import check_device
from tersor.pipeline.result import ARTIFACT, Result, in_folder
from tersor.pipeline.run import check_seed, check_task, measured_result
from tersor.pipeline.search import Effort, Search, Verdicts
from tersor.pipeline.tail import keep_stage
from tersor.pipeline.timing import Stopwatch, Timing
from tersor.pipeline.trained import with_training
from tersor.pipeline.trials import NOTES, Notes, Trial, Trials
from tersor.pipeline.untrained import make_safe, without_training
from tersor.pipeline.verdict import verdict
from tersor.pipeline.work import read_collected
from tersor.progress import Progress, silent
from tersor.result import Score, SearchRecord
from tersor.spec import Budget, Code, Recipe, Train
from tersor.task import Batch, Task, batches_in
from tersor.train.randomness import Randomness

NOTES_VERSION = 2
WORK, BEST, EXPORTED = ".tersor-search", "best.tersor", "model.onnx"
TRAINING_SHARE = 0.8  # of the time limit
LEAST_SHARE = 0.1  # of the usual training, however little time there is
ROUNDS = 6  # that a search with a time limit is to have time for


def search(
    task: Task,
    budget: Budget,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    effort: Effort | Timing | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Result:
    """The smallest file whose score keeps the budget (or the best score in so many bytes), measured.

    Without training data (or a loss) it rounds and shares weights alone; with them it also prunes in rounds,
    each learning from the uncompressed model, and tunes what was chosen. Trials are chosen on one half of
    the validation data, the verdict is given on the other; what is trained on keeps the budget on both, but
    for a confidence, which has the other half to itself. The test data are used once, at the end.

    out -- as in :func:`tersor.compress`; the best file so far is in it as ``best.tersor`` all the while, and
        what was tried in ``search.jsonl`` afterwards; in ``stages`` what blame puts tensors back from, where
        that was trained. A search that was interrupted or killed goes on where
        it stopped when it is asked for again; ``resume`` insists on there being one. The folder of another
        search is refused.
    effort -- of each round of training, by default what the time limit allows. Where the objective is latency
        it is a :class:`tersor.Timing`, how files are timed: then nothing is trained, and layers are in 8 bits
        (weights and activations) or in floats. The fastest inside the budget is the result, with
        ``model.onnx`` beside it; where nothing in 8 bits is faster, that has none.

    A budget that is not met gives the nearest file that was found, and ``result.search.missed_by`` says by
    how much. Raises what :func:`tersor.compress` does, and :class:`TaskError` without validation data.
    """
    seed = check_seed(seed)
    check_device(device)
    wanted = Timing if budget.objective == "latency" else Effort
    if not isinstance(effort, wanted | None):
        raise SpecError(f"effort is {effort!r}, and the objective is {budget.objective}: "
                        f"give a tersor.{wanted.__name__}")  # fmt: skip
    check_task(task, Recipe(name="search", steps=(Code(),)), device)
    if task.validation is None:
        raise TaskError(f"task {task.name!r} has no validation data: a search chooses and judges by them")
    context = Context(task, seed, device, None, progress)
    return in_folder(out, lambda folder: _search(task, budget, folder, context, effort, resume))


def _search(
    task: Task, budget: Budget, folder: Path, context: Context, effort: Effort | Timing | None,
    resume: bool,
) -> Result:  # fmt: skip
    started = perf_counter()
    may_train = task.train is not None and task.loss is not None
    task = with_calibration(task)
    context = replace(context, task=task)
    assert task.validation is not None
    original = trained_model(task.reference)
    size = dense_bytes(original)
    with Randomness(task.validation).seeded(0):  # each pass in one order, even where it is shuffled
        baseline = evaluate_model(
            original.to(context.device), task.reference, task.validation, device=context.device
        )
    work = folder / WORK
    if resume and not (work / NOTES).exists():
        raise SpecError(f"there is no search to resume in {str(folder)!r}: leave --resume out to begin one")
    with disk_errors(folder):
        work.mkdir(parents=True, exist_ok=True)
    notes = Notes(work / NOTES, _key(task, budget, effort, baseline, context))
    verdicts = Verdicts(
        halves(baseline), _allowed_drop(budget, baseline), budget.confidence, task.higher_is_better
    )
    fast = budget.objective == "latency"
    stopwatch = Stopwatch(task, effort if isinstance(effort, Timing) else Timing()) if fast else None
    may_train = may_train and not fast
    pace = _pace(budget, notes, context) if may_train else None
    clock = None if any(one.startswith("trial ") for one in notes.known) else started
    found = Search(
        budget, Trials(work, context, notes, stopwatch), context, verdicts,
        effort if isinstance(effort, Effort) else _effort(budget, pace), size,
        keep=lambda trial: _put(trial.path, folder / BEST),
        may_train=may_train, pace=pace, clock=clock,
    )  # fmt: skip
    look(found)
    trial, record = verdict(found, baseline)
    result = _measured(trial, found, record)
    result = replace(result, seconds=found.seconds)
    result.save(folder)
    keep_stage(trial.recipe.steps, found.trials.store_of(trial.recipe).stages, folder)
    if fast:
        export_model(task, folder / ARTIFACT, folder / EXPORTED, batches=1)
    _put(work / NOTES, folder / NOTES)
    (folder / BEST).unlink(missing_ok=True)
    rmtree(work)
    return replace(result, path=folder / ARTIFACT)


def look(search: Search) -> None:
    """All trials of a search; the best ends in ``search.best``."""
    if search.budget.objective == "latency":
        fastest(search)
        return
    loss = without_training(search)
    if search.may_train and not search.out_of_time():
        with_training(search, loss)
    if search.budget.limits_drop:
        make_safe(search, loss)


@dataclass(frozen=True)
class Part:
    """Some batches of a loader: those whose number modulo ``of`` is in ``which``."""

    loader: Iterable[Batch]
    which: tuple[int, ...]
    of: int = 4

    def __iter__(self) -> Iterator[Batch]:
        return (batch for at, batch in enumerate(self.loader) if at % self.of in self.which)

    def __len__(self) -> int:
        whole = len(cast(Sized, self.loader))
        return sum(1 for at in range(whole) if at % self.of in self.which)


def with_calibration(task: Task) -> Task:
    """The task with a quarter of its validation batches to calibrate on, where it has no training data.

    A model that was fitted to data looks better on them; so they take no part in the choice. With fewer than
    four batches nothing can be set apart, and they do.
    """
    if task.train is not None or task.validation is None:
        return task
    known = batches_in(task.validation)
    if (sum(1 for _ in islice(task.validation, 4)) if known is None else known) < 4:
        return task
    parts = (Part(task.validation, one) for one in ((0,), (1, 2, 3)))
    return replace(task, train=next(parts), validation=next(parts))


def _measured(trial: Trial, search: Search, record: SearchRecord) -> Result:
    """The chosen trial's file on the test data."""
    store = search.trials.store_of(trial.recipe)
    with Reader(trial.path) as reader:
        ledger = reader.ledger()
    asked = record.allowed if search.budget.limits_drop else None
    result = measured_result(
        trial.recipe, store.stages, read_collected(trial.path), (trial.path, ledger), search.context, asked
    )
    return replace(result, search=record)


def _allowed_drop(budget: Budget, baseline: Score) -> float:
    return budget.drop_for(baseline.value) if budget.limits_drop else float("inf")


def _pace(budget: Budget, notes: Notes, context: Context) -> float | None:
    """The seconds that an epoch takes: measured once, and noted; None where nobody needs to know.

    So it is for training data that have no length.
    """
    if budget.time_limit is None:
        return None
    epoch = Recipe(name="epoch", steps=(Train(epochs=1.0),))
    dense = collect(trained_model(context.task))
    pace: float | None = notes.once("seconds an epoch", lambda: time_step(dense, epoch, 0, context).seconds)
    return pace


def _effort(budget: Budget, pace: float | None) -> Effort:
    """What each round of training may take where time is limited."""
    usual = Effort()
    if budget.time_limit is None or pace is None:
        return usual
    epochs = TRAINING_SHARE * budget.time_limit / pace / ROUNDS
    share = max(epochs / (usual.epochs + 2 * usual.tuning), LEAST_SHARE)
    return replace(usual, epochs=round(usual.epochs * share, 3), tuning=round(usual.tuning * share, 3))


def _key(
    task: Task, budget: Budget, effort: Effort | Timing | None, baseline: Score, context: Context
) -> str:
    """Whose notes these are: everything that a run's stages depend on, the samples, and what is asked for."""
    words = fingerprint(task, Recipe(name="search", steps=(Code(),)), context.seed, context.device)
    asked = repr(
        (NOTES_VERSION, words, replace(budget, time_limit=None), effort, baseline.order, baseline.value)
    )
    return blake2b(asked.encode(), digest_size=16).hexdigest()


def _put(source: Path, target: Path) -> None:
    with replacing(target) as partial, disk_errors(target):
        copyfile(source, partial)
