"""Damage: every bit, every length; and damage that a checksum hides."""

from zlib import crc32

import numpy as np
import pytest
import torch

from tersor.artifact.container import HEAD, TAIL_BYTES, Entry, Index, Part, print_tail
from tersor.artifact.forms import digest
from tersor.artifact.index import print_index
from tersor.artifact.io import Reader, load, save, write
from tersor.artifact.sections import encode_changes, encode_points
from tersor.errors import FormatError
from tersor.points import QuantPoint
from tersor.structure import Change


@pytest.fixture
def path(tmp_path, small):
    write(
        tmp_path / "x",
        small.items(),
        aliases={"tied": "fc.weight"},
        points=encode_points([QuantPoint("fc", "linear", 0, scale=0.5)]),
        structure=encode_changes([Change("norm", "identity", 1)]),
        attachments={"n": b"123"},
    )
    return tmp_path / "x"


def read_all(path):
    with Reader(path) as reader:
        ledger = reader.ledger()
        content = (dict(reader.items()), reader.aliases, reader.points, reader.changes, reader.attachments)
    assert sum(row.size_bytes for row in ledger.rows) == ledger.file_bytes
    return content


def test_every_flipped_bit_is_refused(path):
    data = bytearray(path.read_bytes())
    assert len(data) < 1000
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(data)
        with pytest.raises(FormatError):
            read_all(path)
        data[bit >> 3] ^= 1 << (bit & 7)


def test_every_truncation_and_every_appended_byte_is_refused(path):
    data = path.read_bytes()
    for changed in [data[:end] for end in range(len(data))] + [data + bytes([byte]) for byte in range(256)]:
        path.write_bytes(changed)
        with pytest.raises(FormatError):
            read_all(path)


def test_every_flipped_bit_of_a_large_file_is_refused_where_it_is_read(tmp_path):
    """The index, the tail, and a sample of the payload, whose checksums are those of the chunks."""
    path = tmp_path / "x"
    tensors = {"a": torch.randn(40_000), "b": torch.randn(40_000)}
    ledger = save(tensors, path, speed="fast")
    data = bytearray(path.read_bytes())
    around = ledger.rows[0].parts["values"] + ledger.rows[1].parts["values"] + len(HEAD)
    bits = [*range(40), *range(40, 8 * around, 49_999), *range(8 * around, 8 * len(data))]
    for bit in bits:
        data[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(data)
        with pytest.raises(FormatError):
            read_all(path)
        data[bit >> 3] ^= 1 << (bit & 7)


def with_checksum(data):
    length = int.from_bytes(data[-8:-4], "little")
    index = data[len(data) - TAIL_BYTES - length : -TAIL_BYTES]
    return data[:-TAIL_BYTES] + print_tail(index, crc32(data[: -TAIL_BYTES - length]))


def test_damage_that_the_checksum_hides_is_refused_or_harmless(path):
    """Whatever the bytes, a reader gives tensors or a FormatError, and nothing else."""
    data = bytearray(path.read_bytes())
    original = {name: digest(one) for name, one in read_all(path)[0].items()}
    refused = 0
    for at in range(len(HEAD), len(data) - TAIL_BYTES):
        for change in (1, 4, 32, 128, 255):
            data[at] ^= change
            path.write_bytes(with_checksum(bytes(data)))
            try:
                tensors = read_all(path)
                assert tensors is not None
            except FormatError:
                refused += 1
            data[at] ^= change
    assert refused > len(data)
    assert {name: digest(one) for name, one in read_all_of(path, data).items()} == original


def read_all_of(path, data):
    path.write_bytes(data)
    return read_all(path)[0]


def hand_made(path, *entries, **sections):
    index = print_index(Index(tuple(entries), **sections))
    path.write_bytes(HEAD + index + print_tail(index, crc32(HEAD)))
    return path


def huge(name="zeros", shape=(1 << 20, 1 << 20)):
    """Legal: one value for all weights takes no payload but the value; here the value is missing too."""
    return Entry(name, "codebook", "float32", shape, "float16", (Part(0, 0), Part(0, 0)), levels=1)


def test_a_few_bytes_cannot_take_the_memory(tmp_path):
    path = hand_made(tmp_path / "x", huge())
    assert path.stat().st_size < 50
    with Reader(path) as reader, pytest.raises(FormatError, match="past the limit of 1,073,741,824"):
        reader.read("zeros")
    many = hand_made(tmp_path / "y", *(huge(str(at), (1 << 27,)) for at in range(2)))
    with pytest.raises(FormatError, match="max_bytes"):
        load(many)


def test_a_tensor_within_the_limit_is_read(tmp_path):
    save({"a": torch.zeros(1000)}, tmp_path / "x")
    with Reader(tmp_path / "x", max_bytes=13_999) as reader, pytest.raises(FormatError, match="13,999"):
        reader.read("a")
    assert np.array_equal(load(tmp_path / "x", max_bytes=18_000)["a"].numpy(), np.zeros(1000))
    with pytest.raises(FormatError, match="decoding takes 18,000 bytes"):
        load(tmp_path / "x", max_bytes=17_999)
