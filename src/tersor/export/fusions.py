"""Write a graph so that a runtime does not fuse it into something slower."""

from __future__ import annotations

import onnx_ir as ir


def keep_apart_(graph: ir.Graph) -> None:
    """``Sum`` for the ``Add`` in front of a LayerNormalization, in place: the same numbers.

    ONNX Runtime fuses the two into SkipLayerNormalization, whose CPU kernel takes several times as long as
    both alone (measured with 1.31 on a transformer of width 384: a quarter of the time of its int8 form).
    """
    for node in graph:
        if node.op_type != "LayerNormalization" or node.inputs[0] is None:
            continue
        before = node.inputs[0].producer()
        if before is not None and before.op_type == "Add" and not before.attributes:
            before.op_type = "Sum"
