"""From a task to a file that other runtimes run: points, names, bytes, and who agrees with whom."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf.message import Message
from tests import nets

import tersor
from tersor.artifact.io import Reader
from tersor.errors import ExportError, SpecError, TaskError, VerificationError
from tersor.export.check import Probe, check_agreement
from tersor.export.onnx import draw_onnx
from tersor.export.runtimes import open_session
from tersor.model.inputs import model_inputs
from tersor.model.restore import trained_model
from tersor.model.simulate import FakePoint, simulated, values_of
from tersor.model.storage import storages
from tersor.model.trace import trace
from tersor.pipeline import export as export_module
from tersor.pipeline.context import Context
from tersor.pipeline.quantize import plan_quantization
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import Work
from tersor.points import CENTER, label
from tersor.spec import Cluster, Fold, Prune, Quantize, Recipe, Rule, Train

NETS = {"vision": nets.vision_task, "words": nets.words_task}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By the name of a net: its task, the folder with both files, and what the export said."""

    @cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        task = NETS[name]()
        result = tersor.compress(task, Recipe(steps=(Fold(), Quantize())), out=folder)
        return task, folder, result, tersor.export_model(task, result.path, folder / "model.onnx")

    return make


@pytest.fixture(params=NETS)
def each(request, made):
    return made(request.param)


def in_memory(task, *steps):
    """The work of some steps, never written."""
    work = Work(trained_model(task))
    for step in steps:
        apply_step(work, step, Context(task))
    return work


def drawn(task, work):
    traced = trace(work.model, model_inputs(task, work.model))
    return traced, draw_onnx(traced, work.collected().tensors, work.points)


def agreement(task, work, runtime="onnxruntime"):
    """How far the runtime is from the model with its activations quantized in PyTorch; raises if too far."""
    traced, made = drawn(task, work)
    run = simulated(work.model, traced, work.points) if work.points else work.model
    probe = Probe(open_session(made.probe, runtime), made.probed) if work.points else None
    return check_agreement(task, run, open_session(made.content, runtime), probe, task.test), made


def test_the_runtime_is_within_a_step_of_the_quantized_model(each):
    _, _, _, exported = each
    assert exported.agreement.largest <= 1 and exported.agreement.samples == 21
    assert exported.floats == {}


def test_openvino_gets_int8_where_the_zero_point_is_in_the_middle(made):
    pytest.importorskip("openvino")
    task, folder, result, _ = made("vision")
    with Reader(result.path) as reader:
        centered = [one for one in reader.points if one.zero_point == CENTER]
        others = [one for one in reader.points if one.zero_point != CENTER]
    assert centered and others
    agreed = tersor.export_model(task, result.path, folder / "model.xml", format="openvino").agreement
    assert agreed.largest <= 1
    kinds = Counter(re.findall(r'destination_type="([iu]8)"', (folder / "model.xml").read_text()))
    assert kinds == {"i8": len(centered), "u8": len(others)}


def test_openvino_takes_the_same_file(made):
    pytest.importorskip("openvino")
    task, folder, result, _ = made("vision")
    again = tersor.export_model(task, result.path, folder / "again.onnx", runtime="openvino")
    assert again.agreement.largest <= 1
    assert (folder / "again.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def test_the_score_in_the_runtime_is_that_of_the_file(each):
    task, folder, result, _ = each
    served = tersor.evaluate_onnx(task, folder / "model.onnx")
    assert served.samples == result.artifact.samples == 21
    assert abs(served.value - result.artifact.value) <= 1 / 21


def test_training_the_file_and_the_graph_have_the_same_points(each):
    task, folder, _, _ = each
    work = in_memory(task, Fold())
    step = Quantize(train=Train())
    planned = plan_quantization(work, step, task)
    apply_step(work, replace(step, train=None), Context(task))
    trained = simulated(work.model, planned.traced, work.points, learn=True)
    values = values_of(planned.traced)
    in_training = {tap.template.key for tap in trained.taps if isinstance(tap, FakePoint)}
    assert {values[key] for key in in_training} == set(trained.tapped)

    with Reader(folder / "model.tersor") as reader:
        in_file = {point.key for point in reader.points}
    named = [node.name for node in onnx.load(folder / "model.onnx").graph.node
             if node.op_type == "QuantizeLinear"]  # fmt: skip
    followed = [name for name in named if "_at_" in name]  # a pooling of a point has its grid
    assert len(set(named)) == len(named)
    assert set(planned.placement.points.values()) == in_training == in_file
    assert {f"{label(key)}_QuantizeLinear" for key in in_file} == set(named) - set(followed)
    # Points on activation functions, an addition, a concatenation, both calls of one layer: no hook on a
    # module sees the first three, nor tells the last two apart.
    if task.name == "vision":
        assert {("", "relu", 0), ("act", "relu", 0), ("", "cat", 0), ("six", "clip", 0)} <= in_file
        assert {("again", "conv", 0), ("", "relu", 1)} <= in_file


def test_weights_keep_their_names(each):
    _, folder, _, _ = each
    graph = onnx.load(folder / "model.onnx").graph
    names = {one.name for one in graph.initializer}
    with Reader(folder / "model.tersor") as reader:
        matrices = {name for name in reader.names if len(reader.read(name).shape) > 1}
    assert matrices <= names
    types = {one.name: one.data_type for one in graph.initializer}
    assert all(types[name] == onnx.TensorProto.INT8 for name in matrices)


def texts(message):
    """All text in a protocol buffer, which is not its tensors."""
    for field, value in message.ListFields():
        several = value if isinstance(value, list) or hasattr(value, "append") else [value]
        for one in several:
            if isinstance(one, Message):
                yield from texts(one)
            elif isinstance(one, str):
                yield one
            elif isinstance(one, bytes) and field.name != "raw_data":
                yield one.decode()


def test_nothing_in_the_file_tells_of_this_machine(each):
    _, folder, _, _ = each
    content = (folder / "model.onnx").read_bytes()
    for word in (b"stack_trace", b"site-packages", b".py", str(Path.cwd()).encode(), str(folder).encode()):
        assert word not in content
    assert not [text for text in texts(onnx.load_from_string(content)) if "/" in text or "\\" in text]


def test_the_same_model_gives_the_same_bytes_from_the_file_and_from_memory(each, tmp_path):
    task, folder, result, _ = each
    content = (folder / "model.onnx").read_bytes()
    tersor.export_model(task, result.path, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == content
    work = in_memory(task, Fold(), Quantize())
    assert drawn(task, work)[1].content == content


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_is_free(made, batch):
    task, folder, _, _ = made("vision")
    session = open_session(folder / "model.onnx")
    x = task.test[0][0].numpy()
    whole, part = (session.run([one])[0] for one in (x, x[:batch]))
    np.testing.assert_allclose(whole[:batch], part, atol=1e-5)


def test_a_recurrent_layer_has_integer_weights_and_says_why_it_is_float(made):
    _, _, result, _ = made("words")
    rows = {one.name: one for one in result.stages[-1].touched}
    assert rows["lstm (lstm)"].detail == "weights only; runtimes compute recurrent layers in float"
    assert not rows["lstm (lstm)"].applied and rows["lstm.weight_hh_l0"].applied
    assert "embedding" in rows["embed (embedding)"].detail


MODES = {
    "weights alone": Quantize(activations="none"),
    "each batch": Quantize(activations="dynamic"),
    "1 bit": Quantize(bits=1),
    "2 bits": Quantize(bits=2),
    "3 bits": Quantize(bits=3),
    "4 bits of both": Quantize(bits=4, activation_bits=4),
    "2 bits of both": Quantize(bits=2, activation_bits=2),
    "half precision": Quantize(bits=16),
    "not narrow": Quantize(narrow=False),
    "a zero point": Quantize(symmetric=False),
    "unsigned": Quantize(symmetric=False, signed=False),
    "one scale": Quantize(granularity="tensor"),
    "powers of two": Quantize(power_of_two=True),
    "blocks": Quantize(bits=4, granularity="block", block_size=16, activations="none"),
    "blocks between points": Quantize(bits=4, granularity="block", block_size=16),
    "a scale for each input": Quantize(axis=1),
    "a scale for each input, each batch": Quantize(axis=1, activations="dynamic"),
    "a layer skipped": Quantize(rules=(Rule("hidden", skip=True),)),
    "a layer in 4 bits": Quantize(rules=(Rule("hidden", override={"bits": 4, "activation_bits": 4}),)),
    "a bias too": Quantize(targets=("*", "head.bias")),
}
# Which initializers are no integers, of conv.weight, hidden.weight, head.weight.
FLOATS = {
    "half precision": {"conv", "hidden", "head"},
    "blocks": {"conv"},  # whose rows of 9 they do not divide
    "blocks between points": {"conv"},
    "a scale for each input": {"conv", "hidden", "head"},
    "a scale for each input, each batch": {"conv", "hidden", "head"},
    "a layer skipped": {"hidden"},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_agrees_with_the_quantized_model(mode):
    task = nets.small_task()
    work = in_memory(task, MODES[mode])
    found, made = agreement(task, work)
    # With few bits a code that rounds the other way is a large step: points are then compared one by one.
    few = min((point.bits for point in work.points), default=8)
    assert found.largest <= (1 if few == 8 else 255 / (2**few - 1))
    types = {one.name: one.data_type for one in onnx.load_from_string(made.content).graph.initializer}
    for layer in ("conv", "hidden", "head"):
        is_float = types[f"{layer}.weight"] == onnx.TensorProto.FLOAT
        assert is_float == (layer in FLOATS.get(mode, ())), layer
    coarse = {name for name, reason in made.floats.items() if "too coarse in int32" in reason}
    assert min(few, MODES[mode].bits) < 8 or not coarse
    told = {name.partition(".")[0] for name in made.floats if name not in coarse}
    skipped = {"half precision", "a layer skipped"}  # these have no codes
    assert told == (
        {"head"} if mode == "a bias too" else set() if mode in skipped else FLOATS.get(mode, set())
    )


@pytest.mark.parametrize(
    ("runtime", "size"),
    [
        ("onnxruntime", 16),
        ("onnxruntime", 18),
        ("openvino", 16),
    ],  # OpenVINO: such as divide a row, at any bits
)
@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_blocks_of_8_bits_are_multiplied_with_what_is_quantized(size, activations, runtime):
    # ONNX Runtime would fuse the two, into kernels that take no blocks.
    if runtime == "openvino":
        pytest.importorskip("openvino")
    task = nets.small_task()
    step = Quantize(granularity="block", block_size=size, activations=activations, symmetric=size == 16)
    found, made = agreement(task, in_memory(task, step), runtime)
    assert found.largest <= 1
    held = {one.name: one for one in onnx.load_from_string(made.content).graph.initializer}
    for name in ("hidden.weight", "head.weight"):
        assert held[name].data_type == onnx.TensorProto.INT8


def test_few_bits_are_stored_in_few():
    sizes = [
        len(drawn(task, in_memory(task, Quantize(bits=bits, activations="none")))[1].content)
        for task in [nets.small_task()]
        for bits in (4, 8)
    ]
    weights = sum(one.numel() for one in nets.Small().parameters() if one.dim() > 1)
    # Half a byte a weight less; a Cast for each of the three layers more.
    assert sizes[1] - sizes[0] > weights / 2 - 3 * 200


def test_biases_of_integer_layers_are_int32_and_others_float():
    task = nets.small_task()
    for step, dtype in ((Quantize(), onnx.TensorProto.INT32), (Quantize(bits=16), onnx.TensorProto.FLOAT)):
        made = drawn(task, in_memory(task, step))[1]
        types = {one.name: one.data_type for one in onnx.load_from_string(made.content).graph.initializer}
        assert {types[f"{layer}.bias"] for layer in ("conv", "hidden", "head")} == {dtype}


def test_tied_weights_are_stored_once_and_feed_both_layers(made):
    _, folder, _, _ = made("words")
    graph = onnx.load(folder / "model.onnx").graph
    tied = [one for one in graph.initializer if list(one.dims) in ([30, 16], [16, 30])]
    assert {one.name for one in tied} <= {"embed.weight", "embed.weight_transposed"}


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    """Pruned, clustered and quantized under training: the task and the result."""
    task = nets.small_task()
    recipe = Recipe(
        steps=(
            Prune(fraction=0.5),
            Cluster(bits=4),
            Quantize(train=Train(epochs=34, lr=1e-2)),  # 102 steps
        )
    )
    return task, tersor.compress(task, recipe, out=tmp_path_factory.mktemp("pcq"), keep_stages=True)


def test_zeros_and_clusters_survive_quantization_aware_training(clustered):
    _, result = clustered
    stages = result.path.parent / "stages"
    before, after = tersor.load(stages / "0-prune.tersor"), tersor.load(result.path)
    for name in ("conv.weight", "hidden.weight", "head.weight"):
        assert not after[name][before[name] == 0].any()
        assert len(after[name].unique()) <= 16
        assert not torch.equal(after[name], tersor.load(stages / "1-cluster.tersor")[name])


def test_a_trained_codebook_lies_on_an_int8_grid_and_is_exported_as_codes(clustered, tmp_path):
    task, result = clustered
    exported = tersor.export_model(task, result.path, tmp_path / "model.onnx")
    assert exported.floats == {} and exported.agreement.largest <= 1
    graph = onnx.load(tmp_path / "model.onnx").graph
    held = {one.name: one for one in graph.initializer}
    stored = tersor.load(result.path)
    for name in ("conv.weight", "hidden.weight", "head.weight"):
        assert held[name].data_type == onnx.TensorProto.UINT4
        book = onnx.numpy_helper.to_array(held[f"{name}_codebook"])
        assert book.dtype == np.int8 and abs(int(book.max())) <= 127
        scale = onnx.numpy_helper.to_array(held[f"{name}_scale"])
        assert set((book * scale).tolist()) >= set(stored[name].unique().tolist())


def test_clusters_on_no_grid_are_exported_as_floats_and_told(tmp_path):
    task = nets.small_task()
    result = tersor.compress(task, Recipe(steps=(Cluster(bits=4),)), out=tmp_path)
    exported = tersor.export_model(task, result.path, tmp_path / "model.onnx")
    assert set(exported.floats) == {"conv.weight", "hidden.weight", "head.weight"}
    assert "int8 grid" in exported.floats["conv.weight"]
    held = {one.name: one for one in onnx.load(tmp_path / "model.onnx").graph.initializer}
    stored = tersor.load(result.path)["conv.weight"].numpy()
    assert np.array_equal(onnx.numpy_helper.to_array(held["conv.weight"]), stored)


def test_a_file_with_points_is_evaluated_with_them(tmp_path):
    def logits(output, batch):
        return output[:, 0].double()

    task = nets.small_task(score=logits)
    coarse = Quantize(bits=8, activation_bits=2)
    result = tersor.compress(task, Recipe(steps=(coarse,)), out=tmp_path)
    bare = tersor.load(result.path, task.build()).eval()
    with torch.no_grad():
        without = torch.cat([bare(x)[:, 0] for x, _ in task.test]).double().mean()
    with_points = tersor.evaluate(task, result.path).value
    assert abs(with_points - float(without)) > 1e-4
    work = in_memory(task, coarse)
    traced = trace(work.model, model_inputs(task, work.model))
    run = simulated(work.model, traced, work.points).eval()
    with torch.no_grad():
        expected = torch.cat([run(x)[:, 0] for x, _ in task.test]).double().mean()
    assert with_points == pytest.approx(float(expected), abs=1e-9)


def test_a_second_quantize_step_keeps_the_points_of_the_first(tmp_path):
    task = nets.small_task()
    steps = (
        Quantize(targets=("conv",)),
        Quantize(name="rest", targets=("hidden", "head")),
        Quantize(name="none", targets=("head",), activations="none"),
    )
    work = in_memory(task, steps[0])
    first = work.points
    assert {point.key for point in first} == {("", "input", 0), ("", "relu", 0)}
    for step in steps[1:]:
        apply_step(work, step, Context(task))
    assert work.points[:2] == first
    assert [point.key for point in work.points[2:]] == [("", "relu", 1)]
    found, _ = agreement(task, work)
    assert found.largest <= 1
    result = tersor.compress(task, Recipe(steps=steps), out=tmp_path)
    assert tersor.export_model(task, result.path, tmp_path / "model.onnx").agreement.largest <= 1


class Fork(torch.nn.Module):
    """Two layers read the same value, and an addition reads both results."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.left, self.right, self.last = (torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.left(x)) + self.right(x)).mean((2, 3))


def test_a_layer_that_a_rule_skips_is_float_in_the_runtime_too(tmp_path):
    # ONNX Runtime takes a float layer between points for an integer one, and quantizes its weights itself.
    task = nets.make_task(Fork, lambda seed: nets.images(1, 6, 8, seed=seed))
    work = in_memory(task, Quantize(rules=(Rule("left", skip=True),)))
    assert {("", "relu", 0), ("", "relu", 1), ("right", "conv", 0)} < {one.key for one in work.points}
    _, made = agreement(task, work)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(made.content, options)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["Conv"]) == (3, 1)


def test_rules_of_a_parent_and_of_a_child_meet():
    class Nested(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nets.Small()

        def forward(self, x):
            return self.body(x)

    task = nets.make_task(Nested, lambda seed: nets.images(1, 6, 3, seed=seed))
    rules = (Rule("body", skip=True), Rule("body.hidden", override={"bits": 4}))
    work = in_memory(task, Quantize(rules=rules))
    assert {point.key for point in work.points} == {("body", "relu", 0)}
    assert agreement(task, work)[0].largest <= 1


class Disagreeing:
    """Stands for a runtime that gives something else."""

    def __call__(self, content, runtime):
        session = open_session(content, runtime)
        return replace(session, call=lambda arrays: [one + 7 for one in session.call(arrays)])


def test_a_runtime_that_disagrees_leaves_the_old_file(tmp_path, monkeypatch, clustered):
    task, result = clustered
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    monkeypatch.setattr(export_module, "open_session", Disagreeing())
    with pytest.raises(VerificationError, match="differs from the model by") as raised:
        tersor.export_model(task, result.path, target)
    assert raised.value.exit_code == 5
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_what_cannot_be_exported_is_said_before_any_work(clustered, tmp_path, monkeypatch):
    task, result = clustered
    monkeypatch.setattr(export_module, "trace", lambda *_: pytest.fail("it was traced"))
    for fields, words in (
        ({"format": "onx"}, "Did you mean 'onnx'"),
        ({"runtime": "onnxrt"}, "Did you mean 'onnxruntime'"),
        ({"out": tmp_path / "none" / "model.onnx"}, "there is no folder"),
        ({"out": result.path}, "the file that is exported"),
    ):
        with pytest.raises(SpecError, match=words):
            tersor.export_model(task, result.path, **{"out": tmp_path / "model.onnx"} | fields)
    with pytest.raises(VerificationError, match="lacks"):
        tersor.export_model(nets.vision_task(), result.path, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced_is_refused_when_it_is_quantized():
    class Looks(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)) if x.sum() > 0 else x.flatten(1)[:, :3]

    task = nets.make_task(lambda: Looks(36, 3), lambda seed: nets.images(1, 6, 3, seed=seed))
    with pytest.raises(TaskError, match="cannot be traced"):
        in_memory(task, Quantize())


def test_a_size_that_the_graph_fixes_is_refused_where_the_graph_is_used():
    def lengths(seed):
        draw = torch.Generator().manual_seed(seed)
        return [(torch.randint(0, 30, (4, size), generator=draw), torch.zeros(4).long()) for size in (7, 9)]

    task = nets.make_task(nets.Words, lengths)
    work = in_memory(task, Quantize(activations="none"))  # needs no graph to run
    with pytest.raises(TaskError, match="fixes dimension 1 of ids to 7"):
        drawn(task, work)
    with pytest.raises(TaskError, match="fixes dimension 1 of ids to 7"):
        in_memory(task, Quantize())


def test_points_on_half_precision_are_refused():
    task = nets.make_task(
        lambda: nets.Small().half(),
        lambda seed: [(x.half(), y) for x, y in nets.images(1, 6, 3, seed=seed)],
    )
    work = in_memory(task, Quantize())
    with pytest.raises(ExportError, match="float16: points are exported on float32 alone"):
        drawn(task, work)


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x0a"])
def test_a_broken_file_is_not_evaluated(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="not an ONNX file"):
        tersor.evaluate_onnx(nets.small_task(), path)


def test_a_graph_of_another_model_is_not_evaluated(made):
    _, folder, _, _ = made("vision")
    with pytest.raises(ExportError, match="the model takes"):
        tersor.evaluate_onnx(nets.small_task(), folder / "model.onnx")


def test_an_empty_loader_is_told(made):
    task, folder, _, _ = made("vision")
    with pytest.raises(TaskError, match="empty"):
        tersor.evaluate_onnx(task, folder / "model.onnx", loader=[])


def test_storages_of_a_model_in_work_stay_whole():
    # Exporting from memory leaves the model as it was, attachments included.
    task = nets.small_task()
    work = in_memory(task, Cluster(bits=4), Quantize())
    before = [one.dense().clone() for one in storages(work.model)]
    drawn(task, work)
    after = storages(work.model)
    assert all(torch.equal(one, other.dense()) for one, other in zip(before, after, strict=True))
    assert sum(one.parametrization is not None for one in after) == 3


def test_what_is_quantized_batch_by_batch_feeds_products_alone():
    task = nets.words_task()
    found, made = agreement(task, in_memory(task, Quantize(activations="dynamic")))
    assert found.largest <= 1
    nodes = onnx.load_from_string(made.content).graph.node
    codes = {name for node in nodes if node.op_type == "DynamicQuantizeLinear" for name in node.output}
    readers = [node.op_type for node in nodes if codes & set(node.input)]
    assert codes and set(readers) == {"MatMulInteger", "Mul"}
