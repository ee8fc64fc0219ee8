"""``tersor compress`` with a budget and no recipe."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tersor.cli import console
from tersor.cli.result import run, show_result
from tersor.cli.target import check_out
from tersor.errors import BudgetError

if TYPE_CHECKING:
    from tersor.pipeline.result import Result
    from tersor.spec import Budget
    from tersor.task import Task

_WITH_RECIPES = ("recipe", "sets", "asked_drop", "keep_stages", "dry_run")


def search_command(
    task: str, budget: dict[str, Any], given: Collection[str], out: Path, *, resume: bool, as_json: bool,
    seed: int, device: str, **_: Any,
) -> None:  # fmt: skip
    """Search, show what was found, and end with exit code 3 where the budget is not met."""
    wrong = [name for name in _WITH_RECIPES if name in given]
    if wrong:
        option = wrong[0].rstrip("s" if wrong[0] == "sets" else "").replace("_", "-")
        raise click.UsageError(f"--{option} goes with a recipe; a budget makes its own")
    if not budget:
        raise click.UsageError("--resume goes with the budget of the search that is to go on")
    from tersor.spec import Budget

    with console.json_alone(as_json) as emit:
        wanted = Budget(**budget)
        check_out(out)
        from tersor.cli.task_ref import load_task

        result = _search(load_task(task), wanted, out, resume=resume, seed=seed, device=device)
        emit({"out": str(out), **result.to_dict()})
    record = result.search
    if record is not None and not record.met:
        unit = "" if wanted.limits_drop else " bytes"
        raise BudgetError(
            f"the budget of {record.allowed:g}{unit} is missed by {record.missed_by:.4g}{unit}; in the way: "
            f"{', '.join(record.in_the_way) or 'nothing in particular'}; the nearest file is in {str(out)!r}"
        )


def _search(task: Task, budget: Budget, out: Path, **options: Any) -> Result:
    import tersor
    from tersor.report import trial_table

    result = run(lambda progress: tersor.search(task, budget, out=out, progress=progress, **options))
    assert result.search is not None
    files = ("search.jsonl", *(("model.onnx",) if budget.objective == "latency" else ()))
    show_result(result, task, out, trial_table(result.search), files)
    if result.search.note:
        console.say(f"validation: {result.search.note}")
    return result
