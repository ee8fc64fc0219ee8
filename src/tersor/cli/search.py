"""``tersor compress`` with a budget and no recipe."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from tersor.cli import console
from tersor.cli.target import check_out
from tersor.errors import BudgetError

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


def _search(task: Any, budget: Any, out: Path, **options: Any) -> Any:
    import tersor
    from tersor.report import format_bytes, layer_table, score_table, trial_table

    try:
        with console.progress() as progress:
            result = tersor.search(task, budget, out=out, progress=progress, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("give the same command again to go on from where it stopped") from None
    record = result.search
    assert record is not None
    console.show(
        trial_table(record),
        layer_table(result.layers, result.ledger, result.aliases, result.non_finite),
        score_table(
            result.baseline,
            result.artifact,
            result.comparison,
            result.dense_bytes,
            result.size_bytes,
            name="baseline" if task.teacher is None else f"teacher, {task.teacher.name}",
        ),
    )
    if record.note:
        console.say(f"validation: {record.note}")
    for name in ("model.tersor", "result.json", "recipe.yaml", "search.jsonl"):
        console.say(f"wrote {out / name}: {format_bytes((out / name).stat().st_size)}")
    return result
