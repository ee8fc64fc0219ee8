import gzip
import hashlib

import numpy as np
import pytest
import torch

from benchmarks import data
from tersor.errors import TersorError


def small(count=23):
    pixels = torch.arange(count * 36, dtype=torch.int64).remainder(251).to(torch.uint8).view(count, 6, 6)
    return data.Images(pixels, torch.arange(count))


def test_a_pass_in_order_gives_every_image_once():
    batches = data.Batches(small(), 5)
    assert len(batches) == 5
    for _ in range(2):
        x, y = (torch.cat(part) for part in zip(*batches, strict=True))
        assert torch.equal(y, torch.arange(23))
        assert torch.allclose(x[:, 0] * 255 * data.PIXEL_STD, small().pixels.float())


def test_a_generator_put_back_gives_the_same_pass_again():
    first, other = (data.Batches(small(), 5, seed=seed, shift=2) for seed in (7, 8))
    list(first), list(other)
    state = first.generator.get_state()
    passed = list(first)
    following = list(first)
    first.generator.set_state(state)
    for (x, y), (x_again, y_again) in zip(passed, first, strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)
    orders = [torch.cat([y for _, y in batches]) for batches in (passed, following, other)]
    assert sorted(orders[0].tolist()) == list(range(23))
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_a_pass_left_halfway_does_not_change_the_next():
    whole, halfway = (data.Batches(small(), 5, seed=7, shift=2) for _ in range(2))
    list(whole), next(iter(halfway))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, halfway, strict=True))


def test_every_shift_within_the_bound_occurs_and_moves_the_image():
    pixels = torch.zeros(400, 7, 7, dtype=torch.uint8)
    pixels[:, 3, 3] = 255
    ((x, _),) = data.Batches(data.Images(pixels, torch.zeros(400).long()), 400, seed=0, shift=2)
    _, _, rows, columns = x.nonzero(as_tuple=True)
    assert len(rows) == 400
    assert sorted(set(zip(rows.tolist(), columns.tolist(), strict=True))) == [
        (row, column) for row in range(1, 6) for column in range(1, 6)
    ]


def test_half_the_images_are_mirrored_in_all_channels_together():
    pixels = torch.randint(
        0, 256, (400, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    batches = data.Batches(data.Images(pixels, torch.arange(400)), 150, seed=0, flip=True, std=(1.0,) * 3,
                           mean=(0.0,) * 3)  # fmt: skip
    state = batches.generator.get_state()
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    plain = pixels[y].float() / 255
    as_it_is, mirrored = ((x - one).abs().amax((1, 2, 3)) < 1e-6 for one in (plain, plain.flip(-1)))
    assert (as_it_is ^ mirrored).all()
    assert 150 < mirrored.sum() < 250
    batches.generator.set_state(state)
    assert torch.equal(torch.cat([x for x, _ in batches]), x)


@pytest.fixture
def tiny_mnist(monkeypatch):
    """Files in the IDX layout, and their digests in place of the published ones."""
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 5_007), ("t10k", 11)):
        files[f"{part}-images-idx3-ubyte"] = bytes(16) + rng.integers(0, 256, count * 784, np.uint8).tobytes()
        files[f"{part}-labels-idx1-ubyte"] = bytes(8) + rng.integers(0, 10, count, np.uint8).tobytes()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(data, "DIGESTS", digests)
    monkeypatch.setattr(data, "_from_mirrors", unreachable)
    monkeypatch.setattr(data, "_from_npm", unreachable)
    data.mnist.cache_clear()
    yield files
    data.mnist.cache_clear()


def unreachable():
    raise TersorError("not today")


def test_idx_files_in_the_data_folder_are_converted_once(tiny_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("TERSOR_DATA", str(tmp_path))
    for name, content in tiny_mnist.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    parts = data.mnist()
    assert [len(one) for one in (parts.train, parts.validation, parts.test)] == [7, 5_000, 11]
    assert parts.test.pixels.numpy().tobytes() == tiny_mnist["t10k-images-idx3-ubyte"][16:]
    assert parts.test.labels.tolist() == list(tiny_mnist["t10k-labels-idx1-ubyte"][8:])
    for name in tiny_mnist:
        (tmp_path / f"{name}.gz").unlink()
    data.mnist.cache_clear()
    again = data.mnist()
    assert torch.equal(again.train.pixels, parts.train.pixels)


def test_nothing_reachable_says_what_to_do(tiny_mnist, tmp_path):
    with pytest.raises(TersorError, match=r"not today.*Put the four IDX files .* TERSOR_DATA"):
        data.fetch_mnist(tmp_path / "mnist.npz")
    assert list(tmp_path.iterdir()) == []


def test_other_bytes_are_not_taken_for_mnist(tiny_mnist, tmp_path):
    for name, content in tiny_mnist.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(bytes(19))
    with pytest.raises(TersorError, match="t10k-labels-idx1-ubyte is not MNIST's"):
        data.fetch_mnist(tmp_path / "mnist.npz")
