"""Attention written out, as one operation.

    mul(q, d ** -0.5) -> matmul(k^T) [-> add(mask)] -> softmax -> matmul(v)
becomes
    scaled_dot_product_attention(q, k, v [, mask])

Core ML has that operation from iOS 18 and macOS 15 on, and does not take a scale of its own.
Source: apple/coremltools, converters/mil/mil/ops/defs/iOS18/transformers.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph


def fuse_attention(program: ExportedProgram) -> int:
    """Rewrite every attention in place; returns how many there were."""
    graph = program.graph_module.graph
    fused = sum(_fuse(graph, node) for node in list(graph.nodes) if is_call(node, "softmax"))
    if fused:
        graph.eliminate_dead_code()
        program.graph_module.recompile()
    return fused


def _fuse(graph: Graph, softmax: Any) -> bool:
    # Nodes are Any here: torch types what a node is given as all that a graph can hold.
    import torch

    (scores, axis), users = softmax.args[:2], list(softmax.users)
    if axis not in (-1, 3) or len(users) != 1 or not is_call(users[0], "matmul"):
        return False
    masks = ()
    if is_call(scores, "add"):
        scores, *masks = scores.args
    after = 1.0
    if is_call(scores, "mul") and isinstance(scores.args[1], float):
        scores, after = scores.args
    if not is_call(scores, "matmul") or users[0].args[0] is not softmax:
        return False
    query, turned = scores.args
    if not is_call(turned, "transpose") or set(turned.args[1:]) not in ({2, 3}, {-2, -1}):
        return False
    before = 1.0
    if is_call(query, "mul") and isinstance(query.args[1], float):
        query, before = query.args
    width = query.meta["val"].shape[-1]
    # The operation divides by the square root itself; what the model multiplies by besides stays.
    rest = before * after * math.sqrt(width)
    with graph.inserting_before(users[0]):
        if not math.isclose(rest, 1.0, rel_tol=1e-6):
            query = graph.call_function(torch.ops.aten.mul.Tensor, (query, rest))
        whole = graph.call_function(
            torch.ops.aten.scaled_dot_product_attention.default,
            (query, turned.args[0], users[0].args[1], *masks),
        )
    whole.meta = dict(users[0].meta)
    users[0].replace_all_uses_with(whole)
    return True


def is_call(node: Any, name: str) -> bool:
    """Whether a node calls the ATen operation of that name."""
    packet = getattr(getattr(node, "target", None), "overloadpacket", None)
    return packet is not None and str(packet) == f"aten.{name}"
