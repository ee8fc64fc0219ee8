import errno
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tersor.artifact.io import Reader, load, save
from tersor.errors import FormatError, SpecError, TargetError, TensorError, TersorError
from tersor.pipeline.pack import pack, unpack
from tersor.tensor.compressed import Affine, Codebook, Raw


@pytest.fixture
def weights():
    torch.manual_seed(0)
    pruned = torch.randn(64, 50)
    pruned[torch.rand(64, 50) < 0.8] = 0
    return {
        "embed.weight": torch.randn(200, 32),
        "layers.0.fc.weight": torch.randn(48, 32).to(torch.bfloat16),
        "layers.0.fc.bias": torch.randn(48),
        "layers.1.conv.weight": torch.randn(16, 8, 3, 3, dtype=torch.float64),
        "layers.1.pruned.weight": pruned,
        "norm.weight": torch.ones(500),
        "ids": torch.arange(512).reshape(1, 512),
        "mask": torch.full((4, 4), float("-inf")),
        "scale": torch.tensor(0.5),
        "none": torch.zeros(0, 3),
    }


@pytest.fixture
def source(tmp_path, weights):
    save_file(weights, tmp_path / "in.safetensors", {"format": "pt"})
    return tmp_path / "in.safetensors"


def rows_of(report):
    return {row.name: row for row in report.rows}


@pytest.mark.parametrize("options, most", [({"bits": 4}, 16), ({"bits": 1}, 2), ({"clusters": 5}, 5)])
def test_clustered_weights_take_few_values(tmp_path, source, weights, options, most):
    report = pack(source, tmp_path / "x", exclude=("mask",), **options)
    rows = rows_of(report)
    again = load(tmp_path / "x")
    for name, one in weights.items():
        assert (again[name].shape, again[name].dtype) == (one.shape, one.dtype)
        if rows[name].action == "lossless":
            assert torch.equal(again[name], one)
            assert rows[name].reason
        else:
            assert len(again[name].unique()) <= most
            off = again[name].double() - one.double()
            assert rows[name].max_error == float(off.abs().max())
            assert rows[name].relative_error == pytest.approx(float(off.norm() / one.double().norm()))
    clustered = {name for name, row in rows.items() if row.action == "clustered"}
    assert clustered == {
        "embed.weight",
        "layers.0.fc.weight",
        "layers.1.conv.weight",
        "layers.1.pruned.weight",
    }
    assert report.source_bytes == source.stat().st_size
    assert report.ledger.file_bytes == (tmp_path / "x").stat().st_size
    assert [row.name for row in report.ledger.rows[:-1]] == [row.name for row in report.rows]


def test_pruned_weights_stay_zero(tmp_path, source, weights):
    pack(source, tmp_path / "x", bits=3, exclude=("mask",))
    again = load(tmp_path / "x")["layers.1.pruned.weight"]
    assert (again[weights["layers.1.pruned.weight"] == 0] == 0).all()


def test_more_bits_err_less_and_take_more(tmp_path, source):
    errors, sizes = [], []
    for bits in (2, 4, 6):
        report = pack(source, tmp_path / "x", bits=bits, include=("embed",))
        errors.append(rows_of(report)["embed.weight"].relative_error)
        sizes.append(report.ledger.file_bytes)
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("bound", [0.2, 0.01])
def test_an_error_is_a_bound(tmp_path, source, weights, bound):
    report = pack(source, tmp_path / "x", max_error=bound, exclude=("mask",))
    again = load(tmp_path / "x")
    for name, row in rows_of(report).items():
        assert row.max_error <= bound
        assert (
            float(
                (again[name].double() - weights[name].double()).abs().nan_to_num(0).max()
                if again[name].numel()
                else 0
            )
            <= bound
        )
    assert rows_of(report)["embed.weight"].action == "grid"


def test_a_bound_below_the_dtype_is_kept_losslessly_and_said(tmp_path, source, weights):
    report = pack(source, tmp_path / "x", max_error=1e-9, include=("embed", "layers.0.fc"))
    row = rows_of(report)["layers.0.fc.weight"]
    assert (row.action, row.max_error) == ("lossless", 0)
    assert "too coarse" in row.reason
    assert torch.equal(load(tmp_path / "x")["embed.weight"], weights["embed.weight"])


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_lossless_is_the_default_and_gives_every_bit_back(tmp_path, source, weights, options):
    report = pack(source, tmp_path / "x", **options)
    assert {row.action for row in report.rows} == {"lossless"}
    again = load(tmp_path / "x")
    assert all(torch.equal(again[name], one) for name, one in weights.items())


def test_patterns_choose(tmp_path, source):
    def compressed(**options):
        report = pack(source, tmp_path / "x", bits=2, **options)
        return {row.name for row in report.rows if row.action == "clustered"}

    assert compressed(include=("layers.*",), exclude=("re:.*conv.*",)) == {
        "layers.0.fc.weight",
        "layers.1.pruned.weight",
    }
    assert compressed(include=("layers",), exclude=("layers.1",)) == {"layers.0.fc.weight"}
    assert compressed(include=("*.bias", "embed")) == {"layers.0.fc.bias", "embed.weight"}
    assert compressed(include=("norm.weight",)) == {"norm.weight"}
    assert compressed(include=("norm", "embed")) == {"embed.weight"}


def test_reasons_are_told(tmp_path, source):
    rows = rows_of(pack(source, tmp_path / "x", bits=2, include=("*",), exclude=("embed", "mask")))
    assert rows["embed.weight"].reason == "excluded by 'embed'"
    assert rows["ids"].reason.startswith("int64 is not a float")
    assert rows["norm.weight"].reason.startswith("1 dimensions")
    assert rows["none"].reason.startswith("too small")
    assert rows_of(pack(source, tmp_path / "x", bits=2, include=("embed",)))["mask"].reason == "not included"


def test_a_pattern_that_matches_nothing_is_refused(tmp_path, source):
    with pytest.raises(TargetError, match=r"'embed\.wieght' matches no tensor. Did you mean 'embed\.weight'"):
        pack(source, tmp_path / "x", bits=4, exclude=("embed.wieght",))
    with pytest.raises(TargetError, match="no regular expression"):
        pack(source, tmp_path / "x", bits=4, include=("re:(",))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bits": 4, "clusters": 3}, "given: bits, clusters"),
        ({"lossless": True, "max_error": 1}, "given: max_error, lossless"),
        ({"bits": 17}, "bits is 17"),
        ({"bits": 0}, "bits is 0"),
        ({"bit": 4}, "no option 'bit'. Did you mean 'bits'"),
        ({"max_error": 0}, "max_error is 0"),
        ({"max_error": float("nan")}, "max_error is nan"),
        ({"include": ("*",)}, "compresses nothing"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, source, options, message):
    with pytest.raises(SpecError, match=message):
        pack(source, tmp_path / "x", **options)


def test_nan_is_refused_with_name_and_count_and_the_old_file_stays(tmp_path, source, weights):
    weights["embed.weight"][:2, 0] = float("nan")
    save_file(weights, source)
    (tmp_path / "x").write_bytes(b"old")
    for options in ({"bits": 4}, {"max_error": 0.1}):
        with pytest.raises(TensorError, match=r"embed\.weight: holds 2 NaN and 0 Inf"):
            pack(source, tmp_path / "x", **options)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "x"]
    report = pack(source, tmp_path / "x", bits=4, exclude=("embed", "mask"))
    assert rows_of(report)["embed.weight"].action == "lossless"
    assert np.array_equal(
        load(tmp_path / "x")["embed.weight"].numpy(), weights["embed.weight"].numpy(), equal_nan=True
    )


def test_ctrl_c_leaves_nothing_half_written(tmp_path, source):
    def interrupt(phase, done, total, note=""):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "x", progress=interrupt)
    pack(source, tmp_path / "x")
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "x", tmp_path / "y", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "x"]


def test_the_forms_are_those_that_were_asked_for(tmp_path, source):
    for options, form in (({"bits": 4}, Codebook), ({"max_error": 0.1}, Affine), ({}, Raw)):
        pack(source, tmp_path / "x", **options, **({"exclude": ("mask",)} if options else {}))
        with Reader(tmp_path / "x") as reader:
            assert isinstance(reader.read("embed.weight").form, form)


# -- unpack ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bits": 3, "exclude": ("mask",)}])
def test_unpack_gives_names_shapes_dtypes_and_values(tmp_path, source, weights, options):
    seen = []
    pack(source, tmp_path / "x", **options, progress=lambda *step: seen.append(step))
    assert seen[-1][1:3] == (len(weights), len(weights))
    size = unpack(tmp_path / "x", tmp_path / "out.safetensors")
    assert size == (tmp_path / "out.safetensors").stat().st_size
    again = load_file(tmp_path / "out.safetensors")
    dense = load(tmp_path / "x")
    assert set(again) == set(weights)
    for name, one in again.items():
        assert (one.dtype, one.shape) == (weights[name].dtype, weights[name].shape)
        assert torch.equal(one, dense[name])


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {}, {"format": "pt", "by": "ü"}, None])
def test_metadata_survives(tmp_path, metadata):
    from safetensors import safe_open

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", metadata)
    pack(tmp_path / "a.safetensors", tmp_path / "x")
    unpack(tmp_path / "x", tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert (file.metadata() or {}) == (metadata or {})


def test_tied_weights_are_written_under_each_name(tmp_path):
    one = torch.randn(5, 4)
    save({"head": one, "embed": one}, tmp_path / "x")
    unpack(tmp_path / "x", tmp_path / "out.safetensors")
    again = load_file(tmp_path / "out.safetensors")
    assert torch.equal(again["head"], one)
    assert torch.equal(again["embed"], one)


def test_a_sharded_checkpoint_is_packed_as_one(tmp_path, weights):
    names = sorted(weights)
    shards = {name: f"model-{at % 2}.safetensors" for at, name in enumerate(names)}
    for shard in set(shards.values()):
        save_file({name: weights[name] for name in names if shards[name] == shard}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    report = pack(index, tmp_path / "x")
    assert report.source_bytes == sum((tmp_path / shard).stat().st_size for shard in set(shards.values()))
    again = load(tmp_path / "x")
    assert list(again) == names
    assert all(torch.equal(again[name], weights[name]) for name in names)


def test_a_file_that_is_not_ours_is_not_unpacked(tmp_path, source):
    with pytest.raises(FormatError, match=r"not a \.tersor file"):
        unpack(source, tmp_path / "x")
    with pytest.raises(FormatError, match="not a sound safetensors file"):
        pack(__file__, tmp_path / "x")


def test_what_is_read_is_never_written_over(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.randn(8, 8)}, path)
    before = path.read_bytes()
    with pytest.raises(SpecError, match="name another file"):
        pack(path, path, bits=2)
    assert path.read_bytes() == before
    packed = tmp_path / "m.tersor"
    pack(path, packed)
    with pytest.raises(SpecError, match="name another file"):
        unpack(packed, packed)


def test_one_pattern_need_not_be_a_tuple(tmp_path, source):
    for one in ("layers.0.*", ["layers.0.*"]):
        rows = rows_of(pack(source, tmp_path / "x", bits=2, include=one, exclude="*.bias"))
        assert {name for name, row in rows.items() if row.action == "clustered"} == {"layers.0.fc.weight"}
        assert rows["layers.0.fc.bias"].reason == "excluded by '*.bias'"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_told_what_to_do_with_it(tmp_path, weights, legacy):
    torch.save(weights, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(FormatError, match=r"m\.pt is a pickle.*safetensors\.torch\.save_file.*tersor\.save"):
        pack(tmp_path / "m.pt", tmp_path / "x")


def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path, source, monkeypatch):
    pack(source, tmp_path / "good")
    for work in (pack, unpack):
        given = source if work is pack else tmp_path / "good"
        with pytest.raises(TersorError, match=r"cannot write .*in\.safetensors/x: Not a directory"):
            work(given, source / "x")

    def read_only(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.unlink", read_only)
    with pytest.raises(TersorError, match=r"cannot write .*none/y: "):
        pack(source, tmp_path / "none" / "y")


def test_nan_that_is_kept_is_counted(tmp_path, source):
    rows = rows_of(pack(source, tmp_path / "x", bits=3, exclude=("mask",)))
    assert {name: row.non_finite for name, row in rows.items() if row.non_finite} == {"mask": 16}
