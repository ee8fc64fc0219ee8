import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor import coding
from tersor.artifact import forms, writer
from tersor.artifact.container import DTYPES
from tersor.artifact.io import Reader, load, save, write
from tersor.artifact.words import bit_view
from tersor.coding.framing import read_varint, write_varint
from tersor.errors import FormatError, TargetError, TensorError, TersorError, VerificationError
from tersor.tensor.compressed import Codebook, CompressedTensor, Raw, raw

KNOWN = [name for name in DTYPES if hasattr(torch, name) and "x2" not in name]


@st.composite
def state_dicts(draw):
    names = draw(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), unique=True, max_size=5)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors = {}
    for name in names:
        dtype = getattr(torch, draw(st.sampled_from(KNOWN)))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        count = int(np.prod(shape, dtype=int))
        data = torch.from_numpy(rng.integers(0, 256, count * dtype.itemsize, np.uint8))
        data = data & 1 if dtype == torch.bool else data
        tensors[name] = (data.view(dtype) if count else torch.zeros(0, dtype=dtype)).reshape(shape)
    return tensors


def same_bits(one, other):
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.array_equal(bit_view(one), bit_view(other))
    )


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@settings(max_examples=60, deadline=None)
@given(tensors=state_dicts())
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("io") / "x.tersor"
    ledger = save(tensors, path)
    again = load(path)
    assert list(again) == list(tensors)
    assert all(same_bits(again[name], tensors[name]) for name in tensors)
    assert sum(row.size_bytes for row in ledger.rows) == ledger.file_bytes == path.stat().st_size


def test_a_module_comes_back(tmp_path):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2).double()
    )
    save(net, tmp_path / "net.tersor")
    again = load(tmp_path / "net.tersor")
    assert list(again) == list(net.state_dict())
    assert all(same_bits(again[name], one) for name, one in net.state_dict().items())


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    weight = torch.randn(300, 40)
    tensors = {"head": weight, "embed": weight, "turned": weight.t(), "again": weight.detach()}
    save(tensors, tmp_path / "x")
    with Reader(tmp_path / "x") as reader:
        assert reader.names == ("head", "turned")
        assert reader.aliases == {"again": "head", "embed": "head"}
        assert torch.equal(reader.read("embed").decode(), weight)
    again = load(tmp_path / "x")
    assert again["embed"] is again["head"]
    assert torch.equal(again["turned"], weight.t())


def test_not_contiguous_and_expanded_tensors_keep_their_values(tmp_path):
    tensors = {"turned": torch.arange(6).reshape(2, 3).t(), "wide": torch.tensor([1.5]).expand(4),
               "part": torch.arange(10.0)[::3]}  # fmt: skip
    save(tensors, tmp_path / "x")
    assert all(torch.equal(load(tmp_path / "x")[name], one) for name, one in tensors.items())


@pytest.mark.parametrize(
    "value, message",
    [
        (3, "is a int, not a tensor"),
        (torch.eye(3).to_sparse(), "make it dense"),
        (torch.empty(3, device="meta"), "a meta tensor"),
    ],
)
def test_what_is_not_a_dense_tensor_is_named_and_refused(tmp_path, value, message):
    with pytest.raises(TensorError, match=f"odd: .*{message}"):
        save({"odd": value}, tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_names_are_opaque(tmp_path):
    names = ["", ".", "../../etc/passwd", "a/b", "C:\\x", "ü\u0000", "日本"]
    save({name: torch.tensor(at) for at, name in enumerate(names)}, tmp_path / "x")
    assert list(load(tmp_path / "x")) == names
    assert [one.name for one in tmp_path.iterdir()] == ["x"]
    with pytest.raises(TensorError, match="Unicode"):
        save({"\ud800": torch.tensor(1)}, tmp_path / "y")
    with pytest.raises(TensorError, match="takes 70000 bytes"):
        save({"x" * 70_000: torch.tensor(1)}, tmp_path / "y")
    with pytest.raises(TensorError, match="two tensors are named 'a'"):
        write(tmp_path / "y", [("a", raw(torch.ones(1)))] * 2)
    for aliases in ({"a": "b"}, {"b": "c"}):
        with pytest.raises(TensorError, match="alias"):
            write(tmp_path / "y", [("a", raw(torch.ones(1)))], aliases=aliases)


def test_sections_and_attachments_come_back(tmp_path, small):
    attachments = {"model.onnx": bytes(range(256)) * 40, "empty": b"", "a": b"1"}
    write(tmp_path / "x", small.items(), points=b"points", structure=b"s" * 9, attachments=attachments)
    with Reader(tmp_path / "x") as reader:
        assert (reader.section("points"), reader.section("structure")) == (b"points", b"s" * 9)
        assert reader.attachments == attachments
        ledger = reader.ledger()
    names = [row.name for row in ledger.rows]
    assert names == [*small, "points", "structure", "attachment a", "attachment empty",
                     "attachment model.onnx", "container"]  # fmt: skip
    assert sum(row.size_bytes for row in ledger.rows) == (tmp_path / "x").stat().st_size


def test_the_ledger_tells_parts_apart(tmp_path, small):
    rows = {row.name: row for row in write(tmp_path / "x", small.items()).rows}
    assert set(rows["fc.weight"].parts) == {"codes", "codebook", "header"}
    assert set(rows["grid"].parts) == {"codes", "scales", "zero_points", "header"}
    assert set(rows["pruned"].parts) == {"mask", "values", "header"}
    assert (rows["fc.weight"].form, rows["fc.weight"].levels, rows["fc.weight"].shape) == (
        "codebook",
        5,
        (4, 6),
    )


@pytest.mark.parametrize("speed, method", [("fast", "rANS"), ("balanced", "rANS with contexts")])
def test_the_ledger_tells_tables_from_codes(tmp_path, speed, method):
    draw = np.random.default_rng(0)
    spread = 1 if speed == "fast" else draw.gamma(0.5, 1, (60, 1))
    size = np.abs(np.rint(draw.laplace(0, 3, (60, 700)) * spread))
    codes = size.clip(max=15).astype(np.uint8)
    book = np.arange(16, dtype=np.float32)[None]
    tensors = {
        "w": CompressedTensor(codes.shape, torch.float32, Codebook(codes, book)),
        "kept": CompressedTensor(codes.shape, torch.float32, Raw(torch.ones(60, 700), codes > 4)),
        "flags": raw(torch.from_numpy(codes > 4)),
    }
    rows = {row.name: row for row in write(tmp_path / "x", tensors.items(), speed=speed).rows}
    named = (("w", "codes"), ("kept", "mask"), ("flags", "values"))
    for name, part in named[:1] if speed == "fast" else named:
        assert rows[name].method == method
        assert 8 < rows[name].parts["tables"] < rows[name].parts[part] / 3
    first = coding.encode(codes, columns=700, levels=16, center=0, speed=speed)[1]
    tables = rows["w"].parts["tables"]
    assert len(first) == tables + rows["w"].parts["codes"]
    words = read_varint(first, tables)[0]  # the one chunk begins right after the tables
    assert rows["w"].parts["codes"] == len(write_varint(words)) + 4 * 32 + 2 * words


def test_eight_tensors_pay_under_200_bytes_beyond_their_payloads(tmp_path):
    """LeNet-5 with its usual names; codes, codebooks and biases are what a file is for."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}
    tensors = []
    for layer, shape in shapes.items():
        book = np.sort(rng.standard_normal((1, 16)).astype(np.float16).astype(np.float32))
        codes = rng.integers(0, 16, shape).astype(np.uint8)
        tensors.append((f"{layer}.weight", CompressedTensor(shape, torch.float32, Codebook(codes, book))))
        tensors.append((f"{layer}.bias", raw(torch.from_numpy(rng.standard_normal(shape[0]).astype("f4")))))
    ledger = write(tmp_path / "x", tensors, speed="balanced")
    payload = sum(
        row.parts.get(part, 0) for row in ledger.rows for part in ("codes", "tables", "codebook", "values")
    )
    assert ledger.file_bytes - payload < 200


def test_an_empty_file_is_a_file(tmp_path):
    assert save({}, tmp_path / "x").file_bytes == 5 + 2 + 8
    assert load(tmp_path / "x") == {}


# -- writing: all or nothing -------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.tersor"
    save({"kept": torch.arange(3)}, path)
    return path, path.read_bytes()


def untouched(old):
    path, data = old
    return path.read_bytes() == data and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_the_old_file(old, error):
    def tensors():
        yield "a", raw(torch.randn(1000))
        raise error

    with pytest.raises(error):
        write(old[0], tensors())
    assert untouched(old)


def test_a_full_disk_leaves_the_old_file(old):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(TersorError, match=r"cannot write .*old\.tersor: File too large"):
            save({"a": torch.randn(100_000)}, old[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert untouched(old)


def test_a_disk_that_fails_late_leaves_the_old_file(old, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TersorError, match="No space left"):
        save({"a": torch.randn(10)}, old[0])
    assert untouched(old)


def test_a_coder_that_errs_is_caught_before_the_old_file_goes(old, monkeypatch):
    decode = forms.coding.decode_values
    monkeypatch.setattr(forms.coding, "decode_values", lambda *args, **named: decode(*args, **named)[::-1])
    with pytest.raises(VerificationError, match="does not give back"):
        save({"a": torch.randn(10)}, old[0])
    assert untouched(old)


def test_a_file_that_is_damaged_while_written_is_caught(old, monkeypatch):
    monkeypatch.setattr(writer, "print_tail", lambda index, before: b"\0" * 8)
    with pytest.raises(VerificationError, match="damaged"):
        save({"a": torch.randn(10)}, old[0])
    assert untouched(old)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    with pytest.raises(TersorError, match="No such file"):
        save({}, tmp_path / "no" / "x")
    with pytest.raises(TersorError, match="is a folder"):
        save({}, tmp_path)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "x")
    save({"a": torch.tensor(1)}, link)
    assert link.is_symlink()
    assert load(tmp_path / "real" / "x") == {"a": torch.tensor(1)}


# -- reading -----------------------------------------------------------------------------------------


def test_one_tensor_is_read_alone(tmp_path):
    path = tmp_path / "x"
    tensors = {"a": torch.randn(50_000), "b": torch.randn(50_000)}
    save(tensors, path, speed="fast")
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with Reader(path) as reader:
        assert torch.equal(reader.read("b").decode(), tensors["b"])
        with pytest.raises(FormatError, match=r"x: a: the checksum does not match"):
            reader.read("a")
    with pytest.raises(FormatError, match="a: the checksum"):
        load(path)


def test_a_name_that_is_not_there_is_told(tmp_path):
    save({"fc.weight": torch.ones(2)}, tmp_path / "x")
    with Reader(tmp_path / "x") as reader, pytest.raises(TargetError, match=r"Did you mean 'fc\.weight'"):
        reader.read("fc.wieght")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x89TSR", b"\x89TSR\x02" + b"0" * 40, b"\x89TSR\x01"]
)
def test_a_file_that_is_not_ours_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=str(tmp_path / "x")):
        Reader(tmp_path / "x")


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(TersorError, match=r"cannot read .*: No such file"):
        load(tmp_path / "x")
    with pytest.raises(TersorError, match="cannot read"):
        load(Path("/"))
