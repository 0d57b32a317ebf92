"""Launches of a decoded token on the real 48 layers: ours by hand, and mlx-lm's as others count."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from launches import AROUND, OWN, PLAIN, VARIANTS, count, summarize, trace, write_headers
from predictions import HEADING, README, read_launches
from random_checkpoint import SIZES

LAYER_TYPES = SIZES["real"].layer_types
CONTEXT = 1100  # beyond the sliding window; not where a cache grows

# A layer in plain MLX, one launch each unless a number says otherwise.
NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
MATRICES = ("qkv_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVERY_LAYER = {
    **dict.fromkeys((*NORMS, *MATRICES), 1),
    "q_norm": 1,
    "rms_norm": 1,  # of values
    "rope": 2,
    "SliceUpdate": 1,
    "Add": 2,
    "geglu": 2,  # MLX fuses chains of at most 11 operations; this one takes two
}
SLIDING_LAYER = EVERY_LAYER | {"k_norm": 1, "Concatenate": 2, "attention": 1, "Multiply": 1}
# Rows are of three parts; k_norm's weight is a factor of its own; attention is five kernels.
GLOBAL_LAYER = EVERY_LAYER | {"Concatenate": 3, "attention": 5, "Multiply": 2}


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One traced step of each program that the test environment has."""
    checkpoint = write_headers(tmp_path_factory.mktemp("real"))
    programs = (OWN, *VARIANTS, "mlx-lm")
    return {name: trace(name, sys.executable, checkpoint, CONTEXT) for name in programs}


def layer_counts(document: dict[str, Any], layer: int) -> Counter[str]:
    """Return the launches of one layer by operation, on the smallest GPUs."""
    counts: Counter[str] = Counter()
    for launch in count(document, "g"):
        if launch.layer == layer:
            counts[launch.operation] += launch.count
    return counts


def test_layers_in_plain_mlx_are_counted_as_by_hand(traces: dict[str, dict[str, Any]]) -> None:
    # The norm before a layer is made by the layer before it.
    assert layer_counts(traces[PLAIN], 7) == Counter(SLIDING_LAYER)
    assert layer_counts(traces[PLAIN], 11) == Counter(GLOBAL_LAYER)


def test_layers_on_kernels_have_one_launch_of_each(traces: dict[str, dict[str, Any]]) -> None:
    for layer, attention in ((7, "sliding_decode"), (11, "shared_decode")):
        counts = layer_counts(traces[OWN], layer)
        expected = {
            "residual_norms": 2,
            "qkv_norm_rope": 1,
            "SliceUpdate": 1,
            attention: 1,
            "merge_splits": 1,
        }
        assert {name: counts[name] for name in expected} == expected
        assert counts.total() <= 13
        for plain in ("rope", "rms_norm", "Add", "Concatenate", "attention"):
            assert counts[plain] == 0


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != PLAIN])
def test_rows_of_any_form_come_out_of_the_kernel_that_makes_them(
    traces: dict[str, dict[str, Any]], variant: str
) -> None:
    """What int8 costs is that scales are written to a buffer of their own."""
    assert layer_counts(traces[variant], 7) == layer_counts(traces[OWN], 7)
    expected = layer_counts(traces[OWN], 11) + Counter(SliceUpdate=int("int8" in variant))
    assert layer_counts(traces[variant], 11) == expected


def test_all_layers_of_a_type_are_alike(traces: dict[str, dict[str, Any]]) -> None:
    for document in traces.values():
        totals: Counter[int] = Counter()
        for launch in count(document, "g"):
            totals[launch.layer] += launch.count
        alike = {(kind, totals[layer]) for layer, kind in enumerate(LAYER_TYPES)}
        assert len(alike) == len(set(LAYER_TYPES)), alike


def test_mlx_lm_has_as_many_as_others_have_counted(traces: dict[str, dict[str, Any]]) -> None:
    summary = summarize(traces["mlx-lm"], LAYER_TYPES)
    assert 1130 * 0.98 <= summary["launches"]["g"] <= 1180 * 1.02
    # 23 and 26 a layer by hand, with geglu as one: MLX makes two kernels of it.
    assert layer_counts(traces["mlx-lm"], 7).total() == 23 + 1
    assert layer_counts(traces["mlx-lm"], 11).total() == 26 + 1
    # Pro, Max, and Ultra split each sliding layer's attention over keys.
    assert summary["launches"]["s"] == summary["launches"]["g"] + 40


def test_ours_are_fewer(traces: dict[str, dict[str, Any]]) -> None:
    totals = {
        name: summarize(document, LAYER_TYPES)["launches"]["g"] for name, document in traces.items()
    }
    assert totals[OWN] < totals[PLAIN] < totals["mlx-lm"]


def test_the_readme_has_the_launches_of_this_code(traces: dict[str, dict[str, Any]]) -> None:
    in_readme = read_launches(README.read_text(encoding="utf-8").partition(HEADING)[2])
    for name in (OWN, *VARIANTS):
        counted = summarize(traces[name], LAYER_TYPES)["launches"]
        assert in_readme[name] == counted, "run: make predictions"


def test_what_is_around_layers(traces: dict[str, dict[str, Any]]) -> None:
    around = summarize(traces["mlx-lm"], LAYER_TYPES)["operations"][AROUND]
    assert around == {
        "Gather": 3,  # codes, scales, and biases of the token's embedding
        "dequantize": 1,
        "Multiply": 1,
        "norm": 1,
        "embed_tokens": 1,
        "logit_softcap": 1,
        "LogSumExp": 1,
        "Subtract": 1,
        "ArgReduce": 1,
    }


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"config\.json"):
        trace("mlx-lm", sys.executable, tmp_path, 16)
