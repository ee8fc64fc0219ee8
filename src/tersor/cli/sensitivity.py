"""``tersor sensitivity``: what each way to hold each tensor does to the outputs."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click

from tersor.cli import console

AGAIN = "give the same command again to go on from where it stopped"


@click.command()
@click.argument("task")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path),
              help="Add what is found to this file, line by line, and go on from what is there.")  # fmt: skip
@click.option("--candidates", metavar="FAMILY,...",
              help="fp32, fp16, bits, channel-bits, values, sparsity (the default: these), "
              "rate; or single ones: 'bits 4'.")  # fmt: skip
@click.option(
    "--measure/--no-measure", "measured", default=True, help="Run the model for each, or estimate only."
)
@click.option("--activations/--no-activations", default=True, help="Look at activations too.")
@click.option("--fold/--no-fold", default=True, help="Fold norms first.")
@click.option("--batches", type=click.IntRange(1), default=16, show_default=True,
              help="Batches of validation data to measure on.")  # fmt: skip
@click.option("--calibration", type=click.IntRange(1), default=32, show_default=True,
              help="Batches of training data to estimate from.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True,
              help="Processes that measure; OMP_NUM_THREADS bounds the threads of each.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where to run the model.")
@click.option("--json", "as_json", is_flag=True, help="Every row as JSON on stdout.")
def sensitivity(
    task: str, out: Path | None, candidates: str | None, jobs: int, seed: int, device: str, as_json: bool,
    **survey: bool | int,
) -> None:  # fmt: skip
    """Tell how sensitive each tensor and activation is.

    For each tensor of the TASK's trained model and each way to hold it (fewer bits, shared values, zeros),
    and for each activation in 2 to 8 bits: the change of the outputs (of a classifier the Kullback-Leibler
    divergence, else the relative squared error), estimated from gradients and measured with this one thing
    changed. Tables show the measured change, the most sensitive first, and how well estimates rank it.

    \b
    tersor sensitivity my_task.py:task -o sensitivity.jsonl --candidates bits,values --jobs 2
    """
    with console.json_alone(as_json) as emit:
        import tersor
        from tersor.cli.task_ref import load_task
        from tersor.report.sensitivity import sensitivity_tables

        asked = tersor.Survey(**survey)  # type: ignore[arg-type]
        if candidates is not None:
            families = tuple(one.strip() for one in candidates.split(",") if one.strip())
            asked = replace(asked, candidates=families)
        try:
            with console.progress() as progress:
                found = tersor.sensitivity(
                    load_task(task), out, survey=asked, remake=partial(load_task, task), jobs=jobs, seed=seed,
                    device=device, progress=progress,
                )  # fmt: skip
        except KeyboardInterrupt:
            raise KeyboardInterrupt(AGAIN if out is not None else "") from None
        console.show(*sensitivity_tables(found))
        data = asdict(found)
        if data["baseline"] is not None:
            del data["baseline"]["per_sample"], data["baseline"]["order"]
        emit({"task": task, "survey": asdict(asked), "seed": seed, **data})
