"""Which values share memory, who writes over what, and who has to wait."""

import torch
from tests.nets import vision_task, words_task
from torch import nn

from tersor.model.dataflow import draw_dataflow, run_order
from tersor.model.inputs import Inputs, model_inputs
from tersor.model.program import GraphModel
from tersor.model.restore import trained_model
from tersor.model.trace import trace


def drawn(model, *args):
    run = GraphModel(model.eval(), trace(model, Inputs(args, {}, ((),) * len(args), ())))
    return draw_dataflow(run, args, {})


def of(task, samples=1):
    model = trained_model(task)
    inputs = model_inputs(task, model).of_size(samples)
    run = GraphModel(model, trace(model, inputs))
    return run, draw_dataflow(run, inputs.args, inputs.kwargs)


def test_views_are_one_buffer_and_layers_know_their_weights():
    _, flow = of(vision_task(), 2)
    kernels = {one.name: one for one in flow.kernels}
    assert flow.held["flatten"] == flow.held["avg_pool2d"] and flow.held["dropout"] == flow.held["mean"]
    assert "dropout" not in {one.kind for one in flow.kernels}
    assert kernels["again.conv_1"].tensors == ("again.weight", "again.bias")
    assert flow.inputs == ("x",) and flow.buffers["x"].size_bytes() == 2 * 3 * 256 * 4
    assert flow.buffers["conv2d"].size_bytes(4) == 2 * 8 * 256 // 2
    assert flow.outputs == {"linear"}
    assert kernels["cat"].spans == (4096, 4096) and kernels["head.linear"].spans == (16,)


def test_what_is_written_in_place_has_an_order():
    _, flow = of(vision_task())
    kernels = {one.name: one for one in flow.kernels}
    inplace = kernels["act.relu"]
    assert inplace.makes == () and inplace.writes == inplace.reads == ("add",)
    assert kernels["again.conv_1"].after == kernels["depthwise.conv"].after == ("act.relu",)
    assert kernels["add"].over == ("relu", "conv2d_1") and kernels["cat"].over == ()
    assert kernels["first.conv"].over == ()


def test_readers_come_before_what_writes_over_their_value():
    class Late(nn.Module):
        def forward(self, x):
            y = x + 1
            z = y * 2
            y.relu_()
            return y + z, z

    kernels = {one.kind: one for one in drawn(Late(), torch.randn(2, 3)).kernels}
    assert kernels["relu"].after == ("mul",)


def test_only_what_is_laid_out_alike_is_written_over():
    class Turned(nn.Module):
        def forward(self, x):
            y = x.exp()
            return (x + y.t()).sigmoid(), y[:1] + 1

    kernels = drawn(Turned(), torch.randn(3, 3)).kernels
    assert [(one.kind, one.over) for one in kernels] == [
        ("exp", ()), ("add", ()), ("sigmoid", ("add",)), ("add", ()),
    ]  # fmt: skip


def test_several_results_tied_weights_and_a_layer_that_copies():
    _, flow = of(words_task(), 3)
    kernels = {one.name: one for one in flow.kernels}
    assert len(kernels["lstm.lstm"].makes) == 3
    assert kernels["out.linear"].tensors == kernels["embed.embedding"].tensors == ("embed.weight",)
    assert flow.held["select"] == flow.held["select_1"] == ("contiguous",)
    assert flow.held["permute"] == flow.held["reshape"] == flow.held["scaled_dot_product_attention"]
    assert not flow.buffers["ids"].floating and flow.buffers["ids"].size_bytes(4) == 3 * 7 * 8
    # 4 gates x 8 states x (16 inputs + 8 states), 7 times, 3 samples
    assert kernels["lstm.lstm"].macs == 3 * 7 * 32 * 24


def test_every_node_runs_once_after_what_it_reads():
    run, flow = of(vision_task())
    done = set()
    for node in run_order(run.traced.graph, [one.value for one in flow.kernels]):
        assert done.issuperset(node.all_input_nodes) and node not in done
        done.add(node)
    assert len(done) == len(run.traced.graph.nodes) - 1  # all but the output
