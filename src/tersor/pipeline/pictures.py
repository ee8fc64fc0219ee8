"""Pictures of what lies in a result's folder: each that can be drawn, and why the others cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.artifact.io import Reader
from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import FormatError, SpecError, TersorError, did_you_mean
from tersor.model.restore import trained_model
from tersor.model.storage import storages
from tersor.pipeline.memory import FILE, memory
from tersor.pipeline.result import ARTIFACT, REPORT
from tersor.progress import Progress, silent
from tersor.report.plots.canvas import Format, new_figure, save_figure
from tersor.report.plots.choices import StrategyView, front_figure, strategies_figure
from tersor.report.plots.layers import Sensitive, Sizes, alive_figure, memory_figure, sensitivity_figure
from tersor.report.plots.weights import WeightView, weight_pages
from tersor.result import SearchRecord, TrialRecord
from tersor.task import Task, check_is_task
from tersor.tensor.compressed import Raw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS, STRATEGIES = "plots", "strategies.json"
SENSITIVITIES = ("sensitivity.jsonl", "sensitivity.json")
USUAL = "bits 4"  # what sensitivities are compared by, where it was looked at
FORMATS: tuple[Format, ...] = ("png", "svg")
FOLDED = "as trained: before norms were folded into them"
_MEASURE, _ESTIMATE = "measure ", "estimate "


@dataclass(frozen=True)
class Pictures:
    """The files that were drawn, and what was not, with the reason."""

    paths: tuple[Path, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


def plot(
    folder: str | Path,
    *,
    task: Task | None = None,
    out: str | Path | None = None,
    kind: Format = "png",
    progress: Progress = silent,
) -> Pictures:
    """Draw what the files of a result's folder tell; a picture each.

    ``weights``: histograms of each compressed tensor of ``model.tersor``, with the values that it is left
    with. ``memory``: bytes of each tensor before and after. ``front``: what a search tried. ``blame``: how
    much nearer the outputs are with one tensor put back, once ``tersor blame`` has written that.
    ``sensitivity``: of each tensor with what the file has for it, from ``sensitivity.jsonl`` or ``.json``.
    ``strategies``: from ``strategies.json``, which ``tersor strategies --json`` prints.

    task -- with it, weights as trained are drawn too, and memory is that of the weights and buffers of each
        operation (:func:`tersor.memory`).
    out -- the folder for the pictures, by default ``plots`` in ``folder``. kind -- ``png`` or ``svg``.

    What a folder lacks is told in ``missing``. Raises :class:`SpecError` where nothing can be drawn, and
    :class:`TersorError` without matplotlib.
    """
    source = Path(folder)
    if kind not in FORMATS:
        raise SpecError(f"kind is {kind!r}: it has to be png or svg.{did_you_mean(str(kind), FORMATS)}")
    if not source.is_dir():
        raise SpecError(f"there is no folder {str(source)!r}: name the folder of a result")
    if task is not None:
        check_is_task(task)
    new_figure(1, 1)  # is matplotlib there at all?
    target = source / PLOTS if out is None else Path(out)
    if target.exists() and not target.is_dir():
        raise SpecError(f"out is {str(target)!r}, which is no folder")
    paths: list[Path] = []
    missing: dict[str, str] = {}
    reading = _Folder(source, task, missing)
    for done, (name, draw) in enumerate(_PICTURES.items()):
        progress("plot", done, len(_PICTURES), name)
        figures = _drawn(name, draw, reading)
        for at, figure in enumerate(figures):
            paths.append(
                _written(figure, target / f"{name}{f'-{at + 1}' if figures[1:] else ''}.{kind}", kind)
            )
    if not paths:
        reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise SpecError(f"nothing can be drawn of {str(source)!r}: {reasons}")
    return Pictures(tuple(paths), missing)


@dataclass
class _Folder:
    """Where the data are; ``missing`` takes reasons."""

    path: Path
    task: Task | None
    missing: dict[str, str]

    def json(self, name: str) -> Any:
        """What a file holds; :class:`TersorError` where there is none."""
        path = self.path / name
        if not path.is_file():
            raise SpecError(f"there is no {name}")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FormatError(f"{name} is no JSON: {error}") from None

    def artifact(self) -> Path:
        """The compressed model; :class:`SpecError` where there is none."""
        path = self.path / ARTIFACT
        if not path.is_file():
            raise SpecError(f"there is no {ARTIFACT}")
        return path


def _drawn(name: str, draw: Callable[[_Folder], Iterator[Figure]], folder: _Folder) -> list[Figure]:
    try:
        return list(draw(folder))
    except TersorError as error:
        folder.missing[name] = str(error)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        folder.missing[name] = f"not what tersor writes: {type(error).__name__}: {error}"
    return []


def _written(figure: Figure, path: Path, kind: Format) -> Path:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, disk_errors(path):
        save_figure(figure, partial, kind)
    return path


def _weights(folder: _Folder) -> Iterator[Figure]:
    before = {}
    if folder.task is None:
        folder.missing["weights as trained"] = "they take the task"
    else:
        before = {one.name: one.dense() for one in storages(trained_model(folder.task))}
    views, others = [], []
    with Reader(folder.artifact()) as reader:
        folded = any(one.attribute == "identity" for one in reader.changes)
        for name in reader.names:
            held = reader.read(name)
            plain = isinstance(held.form, Raw) and held.form.mask is None
            if plain or not prod(held.shape) or not held.dtype.is_floating_point:
                continue
            known = before.get(name)
            if known is not None and tuple(known.shape) != held.shape:
                known = None
                others.append(name)
            dense = None if known is None else known.float().numpy()
            views.append(WeightView(name, held.shape, held.decode().float().numpy(), dense))
    if others:
        folder.missing["weights as trained"] = f"{len(others)} have other shapes now: {', '.join(others[:3])}"
    if not views:
        raise SpecError(f"{ARTIFACT} holds no tensor that was pruned, shared or rounded")
    yield from weight_pages(views, note=FOLDED if folded and before else "")


def _memory(folder: _Folder) -> Iterator[Figure]:
    if folder.task is not None:
        try:
            found = memory(folder.task, folder.artifact())
        except TersorError as error:
            folder.missing["memory of operations"] = str(error)
        else:
            first, own = found["FP32"], found[FILE]
            after = {one.name: one.weights_bytes for one in own.layers}
            rows = [Sizes(one.path or one.name, one.weights_bytes, after.get(one.name, 0))
                    for one in first.layers if one.weights_bytes]  # fmt: skip
            labels = ("FP32", "as the file has it")
            yield memory_figure(rows, labels, "weights in memory, estimated")
            alive = [[one.live_bytes for one in each.layers] for each in (first, own)]
            yield alive_figure(alive[0], alive[1], labels)
            return
    layers = folder.json(REPORT)["layers"]
    rows = [Sizes(one["name"], one["dense_bytes"], one["size_bytes"]) for one in layers]
    yield memory_figure(rows, ("as trained", "in the file"), "weights")


def _front(folder: _Folder) -> Iterator[Figure]:
    report = folder.json(REPORT)
    if "search" not in report:
        raise SpecError(f"{REPORT} is not of a search")
    held = report["search"]
    trials = tuple(TrialRecord(**one) for one in held["trials"])
    if not trials:
        raise SpecError("the search made no trial")
    record = SearchRecord(**held | {"trials": trials, "in_the_way": tuple(held["in_the_way"])})
    yield front_figure(record)


def _blame(folder: _Folder) -> Iterator[Figure]:
    report = folder.json(REPORT)
    if "blame" not in report:
        raise SpecError(f"{REPORT} has none: tersor blame TASK DIR finds it")
    chosen = _chosen(folder)
    rows = report["blame"]["tensors"]
    key = "regained" if any(one["regained"] is not None for one in rows) else "lost"
    bars = [Sensitive(one["name"], one[key], chosen.get(one["name"], "")) for one in rows
            if one[key] is not None]  # fmt: skip
    if not bars:
        raise SpecError(report["blame"]["missing"] or "no tensor could be put back")
    axis = {"regained": "how much nearer the outputs are to the trained model's", "lost": "gain of the score"}
    yield sensitivity_figure(bars, "with this tensor alone put back to what it was", axis=axis[key])


def _sensitivity(folder: _Folder) -> Iterator[Figure]:
    name = next((one for one in SENSITIVITIES if (folder.path / one).is_file()), None)
    if name is None:
        raise SpecError(f"there is no {' and no '.join(SENSITIVITIES)}: tersor sensitivity writes it")
    found, kind = _changes(folder, name)
    if not found:
        raise SpecError(f"{name} has no row of a tensor")
    counts = {one: len(changes) for one, changes in found.items()}
    candidate = USUAL if USUAL in counts else max(counts, key=lambda one: (counts[one], one))
    chosen = _chosen(folder) if (folder.path / REPORT).is_file() else {}
    bars = [Sensitive(tensor, change, chosen.get(tensor, "")) for tensor, change in found[candidate].items()]
    yield sensitivity_figure(bars, f"change of the outputs with this tensor alone as {candidate!r}, {kind}")


def _changes(folder: _Folder, name: str) -> tuple[dict[str, dict[str, float]], str]:
    """Candidate -> tensor -> change of the outputs; and whether it was measured or estimated."""
    found: dict[str, dict[str, dict[str, float]]] = {"measured": {}, "estimated": {}}
    if name.endswith(".jsonl"):
        for line in (folder.path / name).read_text(encoding="utf-8").splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            for start, kind, held in (
                (_MEASURE, "measured", "change"),
                (_ESTIMATE, "estimated", "estimated"),
            ):
                candidate, of, tensor = key.removeprefix(start).partition(" of ")
                if key.startswith(start) and of and isinstance(value, dict) and value.get(held) is not None:
                    found[kind].setdefault(candidate, {})[tensor] = float(value[held])
    else:
        for row in folder.json(name)["rows"]:
            for kind, held in (("measured", "change"), ("estimated", "estimated")):
                if row.get(held) is not None:
                    found[kind].setdefault(row["candidate"], {})[row["name"]] = float(row[held])
    for kind, candidates in found.items():
        of_tensors = {one: changes for one, changes in candidates.items() if not one.startswith("activation")}
        if of_tensors:
            return of_tensors, kind
    return {}, ""


def _chosen(folder: _Folder) -> dict[str, str]:
    """What the file has for each tensor, in a few words."""
    words = {}
    for one in folder.json(REPORT)["layers"]:
        coded = 8 * one["size_bytes"] / max(prod(one["shape"]), 1)
        held = f"{max(one['levels'] - 1, 1).bit_length()} bits" if one["levels"] else "floats"
        zeros = f", {100 * one['sparsity']:.0f} % zeros" if one["sparsity"] >= 0.05 else ""
        words[one["name"]] = f"{held} ({coded:.2g}){zeros}"
    return words


def _strategies(folder: _Folder) -> Iterator[Figure]:
    if not (folder.path / STRATEGIES).is_file():
        raise SpecError(f"there is no {STRATEGIES}: tersor strategies TASK --json > DIR/{STRATEGIES}")
    views = []
    for one in folder.json(STRATEGIES)["strategies"]:
        score, memory_of = one["score"] or {}, one["footprint"] or {}
        views.append(
            StrategyView(
                one["name"], score.get("value"), score.get("low"), score.get("high"),
                memory_of.get("weights_bytes"), memory_of.get("arena_bytes"), one["size_bytes"],
            )
        )  # fmt: skip
    if not views:
        raise SpecError(f"{STRATEGIES} has no strategy")
    yield strategies_figure(views)


_PICTURES: Mapping[str, Callable[[_Folder], Iterator[Figure]]] = {
    "weights": _weights,
    "memory": _memory,
    "front": _front,
    "blame": _blame,
    "sensitivity": _sensitivity,
    "strategies": _strategies,
}
