import json

import benchmarks.figures as figures
import benchmarks.minilm as minilm
import benchmarks.transformer as transformer
import onnx
import pytest
import torch
from benchmarks.transformer import PLAIN, SUM

import tersor


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The plain export of a net of one narrow layer, and its task."""
    patch = pytest.MonkeyPatch()
    for name, value in {"LAYERS": 1, "WIDTH": 48, "INNER": 96, "VOCABULARY": 20_000}.items():
        patch.setattr(minilm, name, value)
    torch.manual_seed(0)
    model = minilm.MiniLM().eval()
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20_000, (4, 9), generator=draw)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        batches = [(ids, mask, model(ids, mask))]
    task = tersor.Task(
        name="small", build=minilm.MiniLM, weights=model.state_dict(), train=batches, test=batches,
        forward=lambda model, batch: model(batch[0], batch[1]), score=minilm.agreement,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("small")
    yield task, transformer.export_plain(task, folder / "plain.onnx"), folder
    patch.undo()


def test_the_plain_export_is_the_model(small):
    task, plain, _ = small
    assert transformer.score(task, plain).value == pytest.approx(1, abs=1e-5)


def test_apart_changes_a_kernel_and_no_number(small):
    task, plain, folder = small
    other = transformer.apart(plain, folder / "apart.onnx")
    before, after = transformer.kernels(plain), transformer.kernels(other)
    assert before.pop("SkipLayerNormalization") and before == after
    assert transformer.score(task, other).value == pytest.approx(1, abs=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_peers_are_quantized_and_near(small):
    task, plain, folder = small
    files = dict(transformer.peers(task, plain, folder))
    assert len(files) == 2 * len(transformer.PEERS)
    assert all(plain.stat().st_size > path.stat().st_size for path in files.values())
    assert "MatMulNBits" in transformer.kernels(files["onnxruntime int4 blocks, int8"])
    assert transformer.score(task, files["onnxruntime dynamic" + SUM]).value > 0.99


def test_our_blocks_run_in_the_kernel_for_them(small):
    task, _, folder = small
    path = transformer.export(
        task, transformer.recipe(tersor.Quantize(
            bits=4, granularity="block", block_size=16, activations="none", targets=("encoder.*",)
        )), folder / "int4.onnx",
    )  # fmt: skip
    assert transformer.kernels(path)["MatMulNBits"] == 6
    held = {one.name: one.data_type for one in onnx.load(path).graph.initializer}
    assert held["encoder.layer.0.output.dense.weight"] == onnx.TensorProto.INT4


def test_latencies_are_of_the_first_named(small):
    _, plain, folder = small
    files = {"other": transformer.apart(plain, folder / "again.onnx"), PLAIN: plain}
    rows = transformer.latencies(files, (2, 5), PLAIN, rounds=6)
    assert {one["name"] for one in rows} == set(files)
    assert next(one for one in rows if one["name"] == PLAIN)["ratio"] == 1.0
    assert {(one["of"], one["sentences"], one["tokens"]) for one in rows} == {(PLAIN, 2, 5)}


def test_batches_are_computed_when_they_are_read_and_once(monkeypatch):
    calls = []
    monkeypatch.setattr(minilm, "sentences", lambda: tuple("abcdefgh"))
    monkeypatch.setattr(minilm, "batches", lambda texts, reference: calls.append(texts) or list(texts))
    part = minilm.Sentences(2, 5, torch.nn.Identity())
    iter(part)
    assert not calls and len(part) == 1
    assert list(part) == list(part) == ["c", "d", "e"] and len(calls) == 1


def test_the_figures_show_each_file_and_each_shape():
    times = [
        {"name": name, "of": "tersor a", "sentences": 1, "tokens": tokens,
         "ratio": 0.4, "ratio_low": 0.3, "ratio_high": 0.5}
        for tokens, names in ((32, ("tersor a", "tersor b")), (2, ("tersor a",))) for name in names
    ]  # fmt: skip
    rows = [
        {"file": name, "cosine": 0.99, "cosine_low": 0.98, "cosine_high": 1.0, "size_bytes": 12}
        for name in ("tersor a", "tersor b")
    ]
    stored = {
        "rows": rows, "latencies": times, "alpha": 0.7, "alphas": [{"alpha": 0.7, "validation_cosine": 0.9}],
        "target": transformer.TARGET, "samples": 3, "runtime": "r",
    }  # fmt: skip
    page = "\n".join(figures.transformer(json.loads(json.dumps(stored))))
    assert "| tersor b | 0.99000 | 0.98000 to 1.00000 | 12 | 0.400 (0.300 to 0.500) |" in page
    assert "| 1x32 of tersor a |" in page and "| file | 1x2 of tersor a |" in page
