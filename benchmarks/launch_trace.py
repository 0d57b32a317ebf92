"""One step of a program as a list of operations, without a GPU and without its weights.

MLX builds a graph before it computes anything; the graph of a step is exported as it stands when
the program asks for its evaluation.  What would come apart on a CPU is recorded by the stand-ins of
launch_recorder.py, and found again by its tag.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
from launch_recorder import Recorder, count_nodes

CALL = "call"  # name of a recorded call among the operations of a trace


def trace_step(recorder: Recorder, tokens: Iterator[Any]) -> dict[str, Any]:
    """Return the trace of the step that a program launches before it yields its second token.

    Args:
        recorder: Installed, and watching the program's model.
        tokens: The program's own loop over tokens, not begun yet.
    """
    traces: list[dict[str, Any]] = []
    is_armed = False
    original = mx.async_eval

    def async_eval(*arrays: Any) -> None:
        flat = _flatten(arrays)
        if is_armed:
            traces.append(export_graph(recorder, flat))
        mx.eval(flat)

    mx.async_eval = async_eval
    try:
        next(tokens)
        is_armed = True
        recorder.layer = -1
        next(tokens)
    finally:
        mx.async_eval = original
    if len(traces) != 1:
        raise RuntimeError(f"the program asked for {len(traces)} evaluations in one step, not one")
    return traces[0]


def export_graph(recorder: Recorder, outputs: Sequence[mx.array]) -> dict[str, Any]:
    """Return the operations that evaluating `outputs` needs, in an order that can be run.

    Returns:
        A JSON document: `arrays`, shape and dtype by name; `nodes`, the operations, recorded
        calls by their own names; `unmerged`, how many of each there are in the program's own
        graph, of which an export merges equal ones.
    """
    unmerged = count_nodes(outputs)
    messages: list[dict[str, Any]] = []
    mx.export_function(messages.append, lambda: list(outputs))
    arrays: dict[str, tuple[list[int], str]] = {}
    tags: dict[str, int] = {}
    nodes: list[dict[str, Any]] = []
    for message in messages:
        if message["type"] == "constants":
            for name, value in message["constants"]:
                arrays[name] = list(value.shape), str(value.dtype)
                if value.dtype == mx.int32 and value.ndim == 0:
                    tags[name] = int(value.item())
        elif message["type"] == "primitive":
            for name, shape, dtype in (*message["inputs"], *message["outputs"]):
                arrays.setdefault(name, (list(shape), str(dtype)))
            nodes.append(_describe(recorder, message, tags))
    return {"arrays": arrays, "nodes": nodes, "unmerged": dict(unmerged)}


def _describe(recorder: Recorder, message: dict[str, Any], tags: dict[str, int]) -> dict[str, Any]:
    inputs = [name for name, *_ in message["inputs"]]
    outputs = [name for name, *_ in message["outputs"]]
    node = {"name": message["name"], "inputs": inputs, "outputs": outputs}
    if message["name"] != "Depends":
        return node | {"arguments": _plain(message["arguments"]), "label": "", "layer": None}
    # Inputs are placeholders, one an output, the tag, and what the call was given.
    if (tag := inputs[len(outputs)]) not in tags:
        raise RuntimeError("the program calls mx.depends itself, which looks like a recorded call")
    call = recorder.calls[tags[tag]]
    node["inputs"] = inputs[len(outputs) + 1 :]
    return node | {
        "name": CALL,
        "call": call.name,
        "label": call.label,
        "layer": call.layer,
        "arguments": call.arguments,
    }


def _flatten(value: Any) -> list[mx.array]:
    if isinstance(value, mx.array):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [a for item in value for a in _flatten(item)] if isinstance(value, (list, tuple)) else []


def _plain(value: Any) -> Any:
    """Return an operation's arguments as JSON holds them."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
