"""The benchmark nets as tasks: ``tersor compress benchmarks.tasks:lenet5_caffe`` and the like.

The weights of the MNIST nets are those of the cached baseline of seed 0, which ``python -m
benchmarks.baselines`` trains; ResNet-20's come from the committed artifact, which ``python -m
benchmarks.resnet20`` trains. A task's score is the accuracy: 1 or 0 for each image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tersor
from benchmarks.cifar import MEAN, STD, cifar10
from benchmarks.data import Batches, mnist
from benchmarks.nets import NETS

BATCH_SIZE = 128
SHIFT_PIXELS = 2
CROP_PIXELS = 4
HERE = Path(__file__).resolve().parent
BASELINES = HERE.parent / "runs" / "baselines"
RESNET20_ARTIFACT = HERE / "artifacts" / "resnet20-baseline.tersor"

ImageBatch = tuple[Tensor, Tensor]
Weights = Mapping[str, Tensor] | Path


def mnist_task(net: str, weights: Path, *, seed: int = 0, shifts: bool = True) -> tersor.Task:
    """A net of :data:`benchmarks.nets.NETS` on MNIST; ``seed`` orders the training images.

    weights -- need not exist where only ``build`` is called (a file is evaluated).
    """
    images = mnist()
    return tersor.Task(
        name=net,
        build=NETS[net],
        weights=weights,
        train=Batches(images.train, BATCH_SIZE, seed=seed, shift=SHIFT_PIXELS if shifts else 0),
        validation=Batches(images.validation, 500),
        test=Batches(images.test, 500),
        forward=forward,
        loss=loss,
        score=correct,
        example_inputs=(torch.zeros(1, 1, 28, 28),),
    )


def cifar10_task(weights: Weights, *, net: str = "resnet20", seed: int = 0) -> tersor.Task:
    """A ResNet-20 on CIFAR-10, with crops of the image padded by 4 and mirror images (He et al. 2016, 4.2).

    weights -- need not exist where only ``build`` is called (a file is evaluated).
    """
    images = cifar10()
    batches = partial(Batches, mean=MEAN, std=STD)
    return tersor.Task(
        name=net,
        build=NETS[net],
        weights=weights,
        train=batches(images.train, BATCH_SIZE, seed=seed, shift=CROP_PIXELS, flip=True),
        validation=batches(images.validation, 100),
        test=batches(images.test, 100),
        forward=forward,
        loss=loss,
        score=correct,
        example_inputs=(torch.zeros(1, 3, 32, 32),),
    )


def net_task(net: str) -> tersor.Task:
    """The task of any net on its data set, to evaluate files: its weights are not there."""
    missing = Path("not-needed.pt")
    return cifar10_task(missing, net=net) if net.startswith("resnet20") else mnist_task(net, missing)


def with_teacher(task: tersor.Task, teacher: tersor.Task) -> tersor.Task:
    """``task`` with the net of another one to learn from, which speaks in bfloat16 where there is such."""
    return replace(task, teacher=replace(teacher, forward=narrow_forward))


def forward(model: nn.Module, batch: ImageBatch) -> Tensor:
    """The logits in float32.

    Channels-last activations, and bfloat16 while training where the processor has it, train LeNet-5 2.4 times
    as fast. Evaluation is in float32.
    """
    return narrow_forward(model, batch, narrow=model.training)


def narrow_forward(model: nn.Module, batch: ImageBatch, *, narrow: bool = True) -> Tensor:
    """The logits in float32 of a net that computes in bfloat16, if asked for and where the processor does."""
    images = batch[0].contiguous(memory_format=torch.channels_last)
    narrow = narrow and images.device.type == "cpu" and _has_bfloat16()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=narrow):
        logits: Tensor = model(images)
    return logits.float()


def loss(output: Tensor, batch: ImageBatch) -> Tensor:
    """Cross-entropy."""
    return nn.functional.cross_entropy(output, batch[1])


def correct(output: Tensor, batch: ImageBatch) -> Tensor:
    """1 for each image that is classified rightly, else 0."""
    return (output.argmax(1) == batch[1]).float()


def baseline_path(net: str, seed: int, *, shifts: bool) -> Path:
    """Where the trained weights of a baseline are kept."""
    return BASELINES / f"{net}-{'shifts' if shifts else 'plain'}-{seed}.pt"


def lenet_300_100() -> tersor.Task:
    return _seed_0("lenet_300_100", shifts=True)


def lenet5_caffe() -> tersor.Task:
    return _seed_0("lenet5_caffe", shifts=True)


def keras_net() -> tersor.Task:
    return _seed_0("keras_net", shifts=False)


def convnet_87k() -> tersor.Task:
    return _seed_0("convnet_87k", shifts=False)


def resnet20() -> tersor.Task:
    if not RESNET20_ARTIFACT.exists():
        raise tersor.TaskError(f"{RESNET20_ARTIFACT.name} is not there: make bench-resnet20 trains it")
    return cifar10_task(tersor.load(RESNET20_ARTIFACT))


def _seed_0(net: str, *, shifts: bool) -> tersor.Task:
    return mnist_task(net, baseline_path(net, 0, shifts=shifts), shifts=shifts)


def _has_bfloat16() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
