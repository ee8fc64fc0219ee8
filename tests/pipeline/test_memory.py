import pytest
import torch
from tests.nets import branching_task, small_task, vision_task, words_task

import tersor

INT8 = tersor.Recipe(name="int8", steps=(tersor.Fold(), tersor.Quantize(bits=8, batches=1)))


def test_by_hand_on_three_layers():
    found = tersor.memory(small_task(), batch_size=2)
    assert (found.task, found.file, found.batch_size) == ("small", None, 2)
    assert [one.precision for one in found.footprints] == ["FP32", "FP16", "INT8", "INT4"]
    assert found.macs == 16 * 4 * 9 + 64 * 16 + 16 * 3
    weights = 36 + 64 * 16 + 16 * 3
    biases = 4 + 16 + 3
    assert [one.weights_bytes for one in found.footprints] == [
        4 * (weights + biases),
        2 * (weights + biases),
        weights + 4 * biases + 4 * biases,  # a scale for each output, and 32 bits of each bias
        weights // 2 + 4 * biases + 4 * biases,
    ]
    # at the convolution: 36 numbers a sample come in, 64 go out
    assert [one.arena.peak_bytes for one in found.footprints] == [800, 400, 200, 100]
    assert found["FP32"].arena.peak_at == "conv.conv" and found["FP32"].arena.exact
    measured = found.measured
    assert measured.eager_bytes == measured.given_bytes == measured.estimated_bytes == 2 * 4 * (36 + 2 * 64)
    for one in found.footprints:
        assert one.weights_bytes == sum(layer.weights_bytes for layer in one.layers)
        assert sum(layer.macs for layer in one.layers) == found.macs
        assert (
            max(layer.live_bytes for layer in one.layers)
            == one.arena.peak_bytes
            <= one.given_arena.peak_bytes
        )


def test_a_file_has_the_precision_of_its_points(tmp_path):
    task = vision_task()
    path = tersor.compress(task, INT8, out=tmp_path).path
    found = tersor.memory(task, path)
    assert found.file == str(path) and found.file_bytes == path.stat().st_size
    mine, whole = found["file"], found["INT8"]
    assert mine.weights_bytes == whole.weights_bytes
    assert mine.arena.peak_bytes == whole.arena.peak_bytes  # at the concatenation, between integers
    words = [one.name for one in mine.layers if one.kind.endswith("quantize")]
    assert words[0] == "quantize x" and "norm.batch_norm" not in {one.name for one in mine.layers}
    assert mine.arena.size_bytes * 3 < found["FP32"].arena.size_bytes


def test_four_bits_and_floats_in_one_file(tmp_path):
    task = small_task()
    step = tersor.Quantize(
        bits=4, activation_bits=4, batches=1, rules=(tersor.Rule("conv", skip=True),), granularity="channel"
    )
    found = tersor.memory(task, tersor.compress(task, tersor.Recipe(steps=(step,)), out=tmp_path).path)
    layers = {one.name: one for one in found["file"].layers}
    assert layers["conv.conv"].weights_bytes == 4 * 40
    assert layers["hidden.linear"].weights_bytes == 64 * 16 // 2 + 16 * 4 + 16 * 4
    assert layers["hidden.linear"].read_bytes == 64 // 2  # codes
    assert layers["conv.conv"].made_bytes == 64 * 4  # floats


def test_scales_from_each_batch_leave_the_floats_to_others(tmp_path):
    task = words_task()
    found = tersor.memory(task, tersor.compress(task, "int8-dynamic", out=tmp_path).path)
    flow = found["file"]
    assert "quantize layer_norm" in {one.name for one in flow.layers}
    assert not [one for one in flow.layers if one.name.startswith("dequantize")]
    assert {one.name: one.size_bytes for one in flow.arena.buffers}["layer_norm"] == 7 * 16 * 4
    assert found.macs == sum(one.macs for one in flow.layers)


def test_shrunk_files_are_what_is_left(tmp_path):
    task = small_task()
    step = tersor.Shrink(fraction=0.5, targets=("hidden",), untraceable="error")
    found = tersor.memory(task, tersor.compress(task, tersor.Recipe(steps=(step,)), out=tmp_path).path)
    assert found.macs == 16 * 4 * 9 + 64 * 8 + 8 * 3


def test_tied_weights_count_once():
    found = tersor.memory(words_task())["FP32"]
    layers = {one.name: one.weights_bytes for one in found.layers}
    assert layers["embed.embedding"] == 30 * 16 * 4 and layers["out.linear"] == 0


def test_the_model_stays_as_it_was():
    task = small_task()
    model = task.build()
    before = torch.random.get_rng_state()
    found = tersor.memory(task, batch_size=11)  # more than a batch of the data
    assert torch.equal(before, torch.random.get_rng_state()) and model.training
    assert tersor.memory(task, batch_size=11) == found


def test_what_cannot_be_asked(task, tmp_path):
    with pytest.raises(tersor.SpecError, match="batch_size is 0"):
        tersor.memory(task, batch_size=0)
    with pytest.raises(tersor.SpecError, match="batch_size is True"):
        tersor.memory(task, batch_size=True)
    with pytest.raises(tersor.TaskError, match="not a str"):
        tersor.memory("task.py:task")
    with pytest.raises(tersor.TersorError, match=r"none\.tersor"):
        tersor.memory(task, tmp_path / "none.tersor")
    (tmp_path / "text.tersor").write_text("this is a text and no model at all")
    with pytest.raises(tersor.FormatError, match=r"text\.tersor"):
        tersor.memory(task, tmp_path / "text.tersor")
    other = tersor.compress(small_task(), tersor.Recipe(steps=(tersor.Code(),)), out=tmp_path / "other").path
    with pytest.raises(tersor.VerificationError, match="another model"):
        tersor.memory(task, other)


def test_a_model_without_a_graph_says_so():
    with pytest.raises(tersor.TaskError, match="cannot be traced"):
        tersor.memory(branching_task())
