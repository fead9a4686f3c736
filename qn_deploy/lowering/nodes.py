"""New nodes of a graph that know their value's shape."""

from __future__ import annotations

from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Node


def called(graph_module: GraphModule, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A call of an operator, where the graph inserts nodes now; it has the dtype and shape of what it will compute."""
    node = graph_module.graph.call_function(target, args, kwargs)
    values = torch.fx.node.map_arg((args, kwargs), lambda source: source.meta["val"])
    with torch.no_grad(), enable_python_dispatcher():  # without, an operator written in C++ fixes a dynamic size at the example's
        node.meta["val"] = target(*values[0], **values[1])
    return node
