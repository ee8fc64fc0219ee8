import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from tersor.errors import FormatError, TensorError, TersorError
from tersor.pipeline.checkpoint import TensorInfo, open_checkpoint, write_checkpoint

TENSORS = {
    "flag": torch.tensor([True, False, True]),
    "half": torch.arange(5).half(),
    "a": torch.arange(6.0).reshape(2, 3),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
    "wave": torch.tensor([1 + 2j]),
    "tiny": torch.arange(4, dtype=torch.uint8).view(torch.float8_e4m3fn),
    "ü.0": torch.arange(3, dtype=torch.float64),
}


def infos(tensors):
    return [TensorInfo(name, tuple(one.shape), one.dtype) for name, one in tensors.items()]


def test_what_is_written_the_reference_library_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    size = write_checkpoint(path, infos(TENSORS), TENSORS.__getitem__, metadata={"format": "pt"})
    again = load_file(path)
    assert set(again) == set(TENSORS)
    for name, one in TENSORS.items():
        assert (again[name].dtype, again[name].shape) == (one.dtype, one.shape)
        assert torch.equal(again[name].reshape(-1).view(torch.uint8), one.reshape(-1).view(torch.uint8))
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.size_bytes == size == path.stat().st_size


def test_every_tensor_is_aligned_to_its_type(tmp_path):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, infos(TENSORS), TENSORS.__getitem__, metadata={})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    for name, one in TENSORS.items():
        assert header[name]["data_offsets"][0] % one.dtype.itemsize == 0
    assert max(fields["data_offsets"][1] for fields in header.values()) == len(data) - 8 - length


def test_it_reads_what_the_reference_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"who": "me"})
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.metadata == {"who": "me"}
    for name, one in TENSORS.items():
        read = checkpoint.read(name)
        assert (read.dtype, read.shape) == (one.dtype, one.shape)


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "one.safetensors")
    save_file({"c": torch.ones(4)}, tmp_path / "two.safetensors")

    def index(**changes):
        files = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"} | changes
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {name: file for name, file in files.items() if file}}))
        return path

    return index


def test_a_sharded_checkpoint_is_one(sharded):
    checkpoint = open_checkpoint(sharded())
    assert list(checkpoint.files) == ["a", "b", "c"]
    assert [checkpoint.read(name).numel() for name in "abc"] == [2, 3, 4]
    assert checkpoint.size_bytes == sum(file.stat().st_size for file in set(checkpoint.files.values()))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"b": None}, "one.safetensors do not agree about the tensor 'b'"),
        ({"d": "two.safetensors"}, "do not agree about the tensor 'd'"),
        ({"c": "../two.safetensors"}, "shards lie beside their index"),
        ({"c": "three.safetensors"}, r"three\.safetensors"),
    ],
)
def test_an_index_that_its_shards_do_not_match_is_refused(sharded, changes, message):
    with pytest.raises(TersorError, match=message):
        open_checkpoint(sharded(**changes))


@pytest.mark.parametrize("name, content", [("x.safetensors", b"PK\x03\x04" + b"0" * 99), ("x.json", b"{}"),
                                           ("x.json", b"[1"), ("x.safetensors", b"")])  # fmt: skip
def test_a_file_that_is_neither_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=name):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["x.safetensors", "x.json"])
def test_a_file_that_is_not_there_is_one_clear_error(tmp_path, name):
    with pytest.raises(TersorError, match=r"cannot read .*No such file"):
        open_checkpoint(tmp_path / name)


def test_what_safetensors_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    for tensors in ({"a": torch.zeros(1, dtype=torch.complex128)}, {"__metadata__": torch.zeros(1)}):
        with pytest.raises(TensorError, match=next(iter(tensors))):
            write_checkpoint(tmp_path / "x", infos(tensors), tensors.__getitem__, metadata={})
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    tensors = {"a": torch.zeros(100_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(TersorError, match=r"cannot write .*: File too large"):
            write_checkpoint(path, infos(tensors), tensors.__getitem__, metadata={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
