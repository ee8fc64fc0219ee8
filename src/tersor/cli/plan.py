"""``tersor plan``: what a recipe would do to a model, to the bytes and the seconds, before it is done."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tersor.cli import console
from tersor.spec import Recipe
from tersor.task import Task


@click.command()
@click.argument("task")
@click.option("-r", "--recipe", default="deep-compression", show_default=True,
              help="A preset (see `tersor recipe list`) or a YAML file.")  # fmt: skip
@click.option("--set", "sets", multiple=True, metavar="STEP.FIELD=VALUE",
              help="Change the recipe, as in cluster.bits=3; repeatable.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where it would train and evaluate.")
@click.option("--time/--no-time", "timed", default=True, show_default=True,
              help="Whether to run a few batches of each step and predict the seconds.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON on stdout.")
@click.pass_context
def plan(context: click.Context, /, task: str, recipe: str, sets: tuple[str, ...], as_json: bool,
         **options: Any) -> None:  # fmt: skip
    """Say what a recipe would do, and predict bytes and time.

    What each step would touch, what it would skip and why. Nothing is trained or written. A recipe that would
    touch nothing is an error (exit code 2). TASK may also be an .onnx file; of one what would be quantized is
    told (int8 unless -r says otherwise), and no time.

    \b
    tersor plan my_task.py:task -r cluster --set cluster.bits=3
    """
    from tersor.recipe import apply_sets, load_recipe

    with console.json_alone(as_json) as emit:
        if task.endswith(".onnx"):
            from tersor.cli.onnx import compress_onnx

            given = context.get_parameter_source("recipe") != click.core.ParameterSource.DEFAULT
            emit(compress_onnx(Path(task), recipe if given else None, sets, None, None))
            return
        from tersor.cli.task_ref import load_task

        chosen = apply_sets(load_recipe(recipe), sets)
        emit(show_plan(load_task(task), chosen, **options))


def show_plan(task: Task, recipe: Recipe, *, seed: int, device: str, timed: bool = True) -> dict[str, Any]:
    """Make a plan and show its tables; returns it as data."""
    import tersor
    from tersor.report import plan_table, time_table

    with console.progress() as progress:
        made = tersor.plan(task, recipe, seed=seed, device=device, timed=timed, progress=progress)
    console.show(plan_table(made.rows, made.predicted_bytes, made.dense_bytes, made.non_finite))
    if made.times:
        console.show(time_table(made.times, made.predicted_seconds))
    return asdict(made)
