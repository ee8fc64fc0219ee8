"""``tersor compress``: a task or an ONNX model in, a measured file out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from tersor.cli import console
from tersor.cli.budget import budget_options, taken
from tersor.cli.plan import show_plan
from tersor.cli.result import run, show_result
from tersor.cli.search import search_command
from tersor.cli.target import check_out
from tersor.spec import Recipe
from tersor.task import Task


@click.command()
@click.argument("task")
@click.option("-r", "--recipe", default="deep-compression", show_default=True,
              help="A preset (see `tersor recipe list`) or a YAML file.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("tersor-out"),
              show_default=True, help="Folder for model.tersor, result.json and recipe.yaml.")  # fmt: skip
@click.option("--set", "sets", multiple=True, metavar="STEP.FIELD=VALUE",
              help="Change the recipe, as in cluster.bits=3 or prune.train.lr=1e-4; repeatable.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where to train and to evaluate.")
@click.option("--asked-drop", type=click.FloatRange(min=0),
              help="A drop in the score's own unit that the test data should be able to tell; the result "
              "says if it cannot.")  # fmt: skip
@budget_options
@click.option("--keep-stages", is_flag=True, help="Leave the file of each step in OUT/stages.")
@click.option("--data", metavar="DATA.npz", help="Samples to calibrate an ONNX model on: one "
              "array an input; or file.py:function for an iterable of dicts.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The result (or the plan) as JSON on stdout.")
@click.option("--dry-run", is_flag=True, help="Only say what `tersor plan` says.")
@click.pass_context
def compress(context: click.Context, /, task: str, recipe: str, out: Path, sets: tuple[str, ...],
             as_json: bool, dry_run: bool, **options: Any) -> None:  # fmt: skip
    """Compress a trained model, read the file back, measure it.

    TASK is file.py:function or package.module:function; the function returns a tersor.Task. Results that an
    earlier run left in OUT are replaced once the new file is verified; a folder with other files is refused.
    An interrupted run goes on where it stopped when the same command is given again.

    TASK may also be an .onnx file, with --data: it is quantized without training (int8 unless -r says
    otherwise), written as OUT/model.onnx and compared with the float model in ONNX Runtime.

    With --max-drop, --max-drop-relative, --target-size or --target-ratio there is no recipe: the smallest
    file inside the limit is searched for (the best score, where bytes are limited). The best file so far is
    OUT/best.tersor all the while; where the limit cannot be kept, the exit code is 3 and the nearest file is
    there.
    """
    from tersor.recipe import apply_sets, load_recipe

    data = options.pop("data")
    if task.endswith(".onnx"):
        from tersor.cli.onnx import compress_onnx, refuse_options

        given = {
            one for one in context.params if context.get_parameter_source(one) != ParameterSource.DEFAULT
        }
        refuse_options(given)
        if not dry_run:
            check_out(out)
        with console.json_alone(as_json) as emit:
            emit(
                compress_onnx(
                    Path(task), recipe if "recipe" in given else None, sets, data, None if dry_run else out
                )
            )
        return
    if data is not None:
        raise click.UsageError("--data goes with an ONNX model; a TASK has data of its own")
    budget, resume = taken(options), options.pop("resume")
    if budget or resume:
        given = {
            one for one in context.params if context.get_parameter_source(one) != ParameterSource.DEFAULT
        }
        search_command(task, budget, given, out, resume=resume, as_json=as_json, **options)
        return
    with console.json_alone(as_json) as emit:
        chosen = apply_sets(load_recipe(recipe), sets)
        if not dry_run:
            from tersor.pipeline.load import check_device

            check_out(out)
            check_device(options["device"])
        from tersor.cli.task_ref import load_task

        loaded = load_task(task)
        if dry_run:
            emit(show_plan(loaded, chosen, seed=options["seed"], device=options["device"]))
        else:
            emit(_compress(loaded, chosen, out, **options))


def _compress(task: Task, recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    import tersor
    from tersor.report import stage_table

    result = run(lambda progress: tersor.compress(task, recipe, out=out, progress=progress, **options))
    show_result(result, task, out, stage_table(result.stages, result.dense_bytes))
    return {"out": str(out), **result.to_dict()}
