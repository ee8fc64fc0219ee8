"""Train ResNet-20 on CIFAR-10 with tersor's own loop, and keep it as a lossless artifact.

    python -m benchmarks.resnet20

One net, which the other benchmarks compress. Interrupted, it goes on from its checkpoint in
``runs/resnet20``. The settings are common ones, not scanned. The artifact (``benchmarks/artifacts``) holds
every tensor bit by bit; its test error is measured on the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import tersor
from benchmarks.nets import NETS
from benchmarks.results import write_results
from benchmarks.tasks import BATCH_SIZE, CROP_PIXELS, RESNET20_ARTIFACT, cifar10_task
from tersor.measure.quality import evaluate_model
from tersor.spec import Train
from tersor.train.loop import fit

RUNS = Path(__file__).resolve().parent.parent / "runs" / "resnet20"
SEED = 0
SETTINGS = Train(
    epochs=50, optimizer="sgd", lr=0.15, momentum=0.9, weight_decay=5e-4, warmup=0.05, teacher="none"
)


def main() -> None:
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    task = cifar10_task(Path("not-needed.pt"), seed=SEED)
    torch.manual_seed(SEED)
    model = NETS["resnet20"]()
    _arrange_(model, torch.channels_last)  # trains a sixth faster
    records = fit(model, task, SETTINGS, seed=SEED, checkpoint=RUNS / "checkpoint.pt", progress=_print_epoch)
    assert task.validation is not None
    validation = evaluate_model(model, task, task.validation)
    _arrange_(model, torch.contiguous_format)
    tersor.save(model, RESNET20_ARTIFACT)
    test = tersor.evaluate(task, RESNET20_ARTIFACT)
    row = {
        "net": "resnet20",
        "seed": SEED,
        "epochs": SETTINGS.epochs,
        "batch_size": BATCH_SIZE,
        "shifts_pixels": CROP_PIXELS,
        "validation_error_percent": round(100 * (1 - validation.value), 6),
        "error_percent": round(100 * (1 - test.value), 6),
        "size_bytes": RESNET20_ARTIFACT.stat().st_size,
        "dense_bytes": sum(one.nbytes for one in model.state_dict().values()),
        "artifact": f"benchmarks/artifacts/{RESNET20_ARTIFACT.name}",
        "seconds": round(sum(one.seconds for one in records), 1),
        "settings": asdict(SETTINGS),
    }
    write_results("resnet20", "python -m benchmarks.resnet20", [row])
    print(json.dumps(row, indent=1))


def _arrange_(model: nn.Module, order: torch.memory_format) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=order)


def _print_epoch(phase: str, done: float, total: float, note: str = "") -> None:
    if note.startswith("epoch"):
        print(note, flush=True)


if __name__ == "__main__":
    main()
