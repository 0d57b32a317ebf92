"""Layouts, and the rules by which launches are counted."""

from typing import Any

import mlx.core as mx
import pytest
from launch_layout import Layout
from launch_rules import RULES, Operation, UnknownOperationError
from launches import check_unmerged, count

Rows = Layout.rows


def launches(
    name: str,
    inputs: list[Layout],
    shapes: list[tuple[int, ...]],
    arguments: Any = None,
    *,
    only_reader: bool = True,
    architecture: str = "g",
) -> int:
    """Return the launches of one operation."""
    operation = Operation(
        name,
        tuple(inputs),
        tuple(shapes),
        arguments,
        (only_reader,) * len(inputs),
        architecture,
    )
    return RULES[name].apply(operation)[0]


def permuted(layout: Layout, *axes: int) -> Layout:
    return Layout(
        tuple(layout.shape[axis] for axis in axes), tuple(layout.strides[axis] for axis in axes)
    )


def test_a_transposed_row_of_one_position_is_contiguous() -> None:
    heads = permuted(Rows((1, 1, 16, 256)), 0, 2, 1, 3)
    assert heads.is_row_contiguous
    assert not permuted(Rows((1, 2, 16, 256)), 0, 2, 1, 3).is_row_contiguous
    assert permuted(Rows((1, 2, 16, 256)), 0, 2, 1, 3).is_contiguous


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4), (24,), (2, 12), (3, 8), (1, 6, 1, 4)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_a_view_with_another_shape_holds_the_same_elements(
    axes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    layout = permuted(Rows((2, 3, 4)), *axes)
    view = layout.reshaped(shape)
    if view is None:
        return  # it must be copied, which is always right
    buffer = mx.arange(24)
    expected = mx.as_strided(buffer, layout.shape, layout.strides, 0).reshape(shape)
    assert mx.array_equal(mx.as_strided(buffer, shape, view.strides, 0), expected)


def test_what_can_and_what_cannot_be_a_view() -> None:
    assert Rows((2, 3, 4)).reshaped((6, 4)) is not None
    assert permuted(Rows((2, 3, 4)), 1, 0, 2).reshaped((6, 4)) is None
    assert launches("Reshape", [permuted(Rows((2, 3, 4)), 1, 0, 2)], [(24,)]) == 1
    assert launches("Reshape", [Rows((2, 3, 4))], [(24,)]) == 0


def test_cache_writes() -> None:
    cache, rows = Rows((1, 8, 1040, 512)), Rows((1, 8, 1, 512))
    assert launches("SliceUpdate", [cache, rows], [cache.shape]) == 1
    assert launches("SliceUpdate", [cache, rows], [cache.shape], only_reader=False) == 2


def test_concatenate_copies_each_input_that_is_not_empty() -> None:
    parts = [Rows((1, 0, 4)), Rows((1, 3, 4)), Rows((1, 2, 4))]
    assert launches("Concatenate", parts, [(1, 5, 4)]) == 2


def test_norms_copy_rows_with_gaps() -> None:
    assert launches("rms_norm", [Rows((1, 4, 256))], [(1, 4, 256)]) == 1
    gaps = Layout((1, 4, 256), (2048, 512, 1))
    assert launches("rms_norm", [gaps], [(1, 4, 256)]) == 2


def test_rope_copies_what_does_not_rotate_if_somebody_else_reads_it() -> None:
    x = Rows((1, 16, 1, 512))
    assert launches("rope", [x], [x.shape], {"dims": 512}) == 1
    assert launches("rope", [x], [x.shape], {"dims": 128}) == 1
    assert launches("rope", [x], [x.shape], {"dims": 128}, only_reader=False) == 2


@pytest.mark.parametrize(
    ("heads", "keys", "dims", "architecture", "expected"),
    [
        (8, 1023, 256, "s", 1),
        (8, 1024, 256, "s", 2),
        (8, 1024, 256, "d", 2),
        (8, 4095, 256, "g", 1),
        (8, 4096, 256, "g", 2),
        (1, 2048, 512, "g", 5),  # composite: scale, product, softmax, product in two parts
        (2, 2048, 512, "g", 1),  # eight query heads on one
        (1, 256, 512, "g", 6),  # both products in two parts
    ],
)
def test_attention(heads: int, keys: int, dims: int, architecture: str, expected: int) -> None:
    q = Rows((1, 16, 1, dims))
    k = Rows((1, heads, keys, dims))
    counted = launches(
        "scaled_dot_product_attention",
        [q, k, k],
        [q.shape],
        {"mask": None},
        architecture=architecture,
    )
    assert counted == expected


def test_kernels_copy_strided_inputs() -> None:
    strided = Layout((1, 8, 500, 512), (8 * 1040 * 512, 1040 * 512, 512, 1))
    arguments = {"fills": 0, "copies": True}
    out = [(1, 16, 1, 256)]
    assert launches("metal_kernel", [Rows((8,)), strided], out, arguments) == 2
    assert launches("metal_kernel", [strided], out, arguments | {"copies": False}) == 1
    assert launches("metal_kernel", [Rows((8,))], out, {"fills": 1, "copies": True}) == 2


def test_compiled_functions() -> None:
    call = {"name": "rms_norm", "arguments": {}, "shapes": [[[1, 1, 64], [64]], [[1, 1, 64]]]}
    arguments = {"kernels": {"CompiledAddTanh": 2, "Add": 1, "Broadcast": 3}, "calls": [call]}
    assert launches("compile", [Rows((4,))], [(4,)], arguments) == 4
    arguments["kernels"] = {"Sort": 1}
    with pytest.raises(UnknownOperationError, match="Sort"):
        launches("compile", [Rows((4,))], [(4,)], arguments)


def test_more_than_a_step_of_decoding_is_refused() -> None:
    x = Rows((1, 8, 3840))
    with pytest.raises(UnknownOperationError, match="8 rows"):
        launches("quantized_matmul", [x], [(1, 8, 64)], {"transpose": True})


def document(*nodes: dict[str, Any], **unmerged: int) -> dict[str, Any]:
    """Return a trace of operations on arrays of four elements."""
    names = {name for node in nodes for name in (*node["inputs"], *node["outputs"])}
    return {
        "arrays": {name: [[4], "float32"] for name in names},
        "nodes": [{"arguments": [], "label": "", "layer": None} | node for node in nodes],
        "unmerged": unmerged,
    }


def test_an_operation_without_a_row_is_an_error() -> None:
    node = {"name": "Convolution", "inputs": ["A"], "outputs": ["B"]}
    with pytest.raises(UnknownOperationError, match="Convolution has no row"):
        count(document(node, Convolution=1), "g")


def test_equal_operations_that_an_export_merges_are_an_error() -> None:
    node = {"name": "Add", "inputs": ["A", "A"], "outputs": ["B"]}
    assert [launch.count for launch in count(document(node, Add=1), "g")] == [1]
    with pytest.raises(UnknownOperationError, match="2 operations Add"):
        count(document(node, Add=2), "g")
    check_unmerged(document(node, Add=1, Broadcast=7), [])


def test_every_row_names_its_source() -> None:
    assert all("mlx/" in rule.source and rule.launches for rule in RULES.values())
