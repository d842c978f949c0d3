"""The graph of an exported file: which module a node is from, and which operators compute in float."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..common.errors import ModelError

__all__ = ['QUANTIZED', 'fold_transposes', 'group_of', 'groups', 'kept_nodes', 'left_in_float']

QUANTIZED = ('Conv', 'Gemm', 'MatMul')
"""Operators that become int8: they do nearly all the arithmetic. With all that onnxruntime can quantize, additions and
norms among them, logits of TinyViT-5M were off three times as far and no pass was faster (AMD EPYC with VNNI)."""

MOVING = frozenset(
    (
        'Cast', 'Concat', 'Constant', 'ConstantOfShape', 'DequantizeLinear', 'Expand', 'Flatten', 'Gather',
        'GatherElements', 'GatherND', 'Identity', 'Pad', 'QuantizeLinear', 'Reshape', 'Shape', 'Slice', 'Split',
        'Squeeze', 'Tile', 'Transpose', 'Unsqueeze',
    )
)  # fmt: skip
"""Operators that move numbers and compute nothing."""
SCOPES = 'pkg.torch.onnx.name_scopes'
BLOCK = re.compile(r'(.*?\bblocks\.\d+)\b')
STAGE = re.compile(r'(.*?\b(?:stages|layers)\.\d+\.\w+)\b')


def group_of(module: str) -> str:
    """The part of a model that a module belongs to: its block, a stage's downsampling, or the module at the top."""
    match = BLOCK.match(module) or STAGE.match(module)
    return match[1] if match else module.partition('.')[0] or 'others'


def fold_transposes(model: Any) -> None:
    """Store the transposed weight instead of a node that transposes it, in an `onnx.ModelProto`.

    torch's exporter does so itself, but not for a weight that several layers share: onnxruntime would take what the
    node gives for an activation, and leave the weight in float32.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    folded: dict[tuple[str, tuple[int, ...]], str] = {}
    renamed: dict[str, str] = {}
    for node in [node for node in graph.node if node.op_type == 'Transpose' and node.input[0] in weights]:
        name = node.input[0]
        order = next((tuple(entry.ints) for entry in node.attribute if entry.name == 'perm'), ())
        if (name, order) not in folded:
            folded[name, order] = node.output[0]
            values = numpy_helper.to_array(weights[name]).transpose(order or None)
            graph.initializer.append(numpy_helper.from_array(values.copy(), node.output[0]))
        renamed[node.output[0]] = folded[name, order]
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for name in {name for name, _ in folded} - used:
        graph.initializer.remove(weights[name])


def groups(nodes: Iterable[Any]) -> dict[str, list[str]]:
    """Names of the nodes that can become int8, by group, in the graph's order."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        if node.op_type in QUANTIZED:
            found.setdefault(group_of(_module(node)), []).append(node.name)
    return found


def kept_nodes(nodes: Sequence[Any], patterns: Iterable[str]) -> set[str]:
    """Names of the nodes of modules that a pattern such as 'head' or 'stages.0*' matches, or whose parent it matches.

    Raises:
        ModelError: If a pattern matches none.
    """
    candidates = [node for node in nodes if node.op_type in QUANTIZED]
    kept: set[str] = set()
    for pattern in patterns:
        matched = {node.name for node in candidates if _matches(_module(node), pattern)}
        if not matched:
            names = ', '.join(groups(nodes))
            raise ModelError(f"No layer of the exported file is called '{pattern}'; its parts are {names}.")
        kept |= matched
    return kept


def left_in_float(model: Any) -> dict[str, int]:
    """How many nodes of each operator of an `onnx.ModelProto` compute in float, the most frequent first.

    A graph for any size computes sizes and indices too; these are integers.
    """
    from onnx import TensorProto, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16}
    from_int8 = {name for node in graph.node if node.op_type == 'DequantizeLinear' for name in node.output}
    counts = Counter(
        node.op_type
        for node in graph.node
        if node.op_type not in MOVING
        and floats.intersection(types.get(name) for name in (*node.input, *node.output))
        and not (node.op_type in QUANTIZED and from_int8.issuperset(node.input[:2]))
    )
    return dict(counts.most_common())


def _module(node: Any) -> str:
    """Path of the module that a node was traced from; '' if the exporter did not say it."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), '[]')
    names = [name for name in ast.literal_eval(scopes)[:-1] if name]  # the last one is the node of the traced program
    return names[-1] if names else ''


def _matches(module: str, pattern: str) -> bool:
    return fnmatchcase(module, pattern) or fnmatchcase(module, f'{pattern}.*')
