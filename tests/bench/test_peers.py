"""Programs side by side: what the turns of one case say, and what is not compared."""

import json
import os
import stat
import sys
from pathlib import Path

import peers
import pytest
from peer_facts import describe_checkpoint, describe_machine, name_command
from peers import (
    LLAMA,
    OWN,
    Case,
    LimitReachedError,
    measure,
    run_in_turns,
    run_limited,
    summarize,
    summarize_values,
)

from mlx_gemma4.config import Config
from mlx_gemma4.memory import cache_bytes

LLAMA_BENCH = """#!/bin/sh
case "$*" in
*"-p 512 -n 0"*) echo '[{"avg_ts": 200.0, "model_size": 7000}]' ;;
*"-p 0 -n 16 -d 512"*) echo '[{"avg_ts": 20.0, "model_size": 7000}]' ;;
*) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""


def case(**runs: list[float]) -> Case:
    """Return a case whose programs had these speeds, one a turn."""
    return Case(
        "speed",
        ["speed"],
        {
            program: [{"context": 512.0, "tokens_per_s": value} for value in values]
            for program, values in runs.items()
        },
    )


def test_ratios_come_with_the_range_that_the_turns_allow() -> None:
    summary = summarize(case(**{OWN: [10.0, 11.0, 12.0], "mlx-lm": [20.0, 22.0, 30.0]}))
    assert summary["ratios"] == {"mlx-lm": {"tokens_per_s": 2.0}}
    low, high = summary["ratio_ranges"]["mlx-lm"]["tokens_per_s"]
    assert (low, high) == (pytest.approx(20 / 12), pytest.approx(30 / 10))


def test_what_fails_in_our_own_turns_leaves_no_ratio() -> None:
    summary = summarize(case(**{"mlx-lm": [20.0]}))
    assert summary["ratios"] == {"mlx-lm": {}}
    assert summary["programs"]["mlx-lm"]["tokens_per_s"]["median"] == 20.0


@pytest.mark.parametrize(("values", "is_noisy"), [([10.0, 10.5], False), ([10.0, 12.0], True)])
def test_turns_far_apart_are_noisy(values: list[float], is_noisy: bool) -> None:
    assert summarize_values(values)["is_noisy"] is is_noisy


def test_programs_take_turns_and_the_first_is_not_counted(monkeypatch) -> None:
    order: list[str] = []

    def fake(program: str, *_: object) -> dict[str, float]:
        order.append(program)
        if program == "broken":
            raise RuntimeError("no such model")
        return {"wall_s": float(len(order))}

    monkeypatch.setattr(peers, "measure", fake)
    measured = Case("help", None)
    run_in_turns(measured, {OWN: "a", "broken": "b", "mlx-lm": "c"}, Path(), 2)
    assert order == [OWN, "broken", "mlx-lm", OWN, "mlx-lm", OWN, "mlx-lm"]
    assert measured.runs[OWN] == [{"wall_s": 4.0}, {"wall_s": 6.0}]
    assert measured.errors == {"broken": "no such model"}


def test_our_own_worker_loads_and_answers(tiny_checkpoint: Path) -> None:
    load = measure(OWN, sys.executable, Case("load", ["load"]), tiny_checkpoint)
    assert load["load_s"] > 0
    assert load["weights_bytes"] > 40e6
    arguments = ["speed", "--context", "32", "--max-tokens", "3"]
    speed = measure(OWN, sys.executable, Case("speed", arguments), tiny_checkpoint)
    assert speed["peak_over_weights_bytes"] < speed["peak_allocated_bytes"]
    assert speed["decode_tokens_per_s"] > 0


def test_llama_bench_reads_and_then_answers(monkeypatch, tmp_path: Path) -> None:
    script = tmp_path / "llama-bench"
    script.write_text(LLAMA_BENCH)
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    speed = Case("speed at 512", ["speed", "--context", "512", "--max-tokens", "16"])
    assert measure(LLAMA, "model.gguf", speed, Path()) == {
        "context": 512.0,
        "prefill_tokens_per_s": 200.0,
        "decode_tokens_per_s": 20.0,
        "weights_bytes": 7000.0,
    }
    longer = Case("speed at 99", ["speed", "--context", "99", "--max-tokens", "16"])
    with pytest.raises(RuntimeError, match="unexpected: "):
        measure(LLAMA, "model.gguf", longer, Path())
    with pytest.raises(RuntimeError, match="does not measure this"):
        measure(LLAMA, "model.gguf", Case("help", None), Path())


def test_a_checkpoint_is_told_by_its_bits(tiny_checkpoint: Path, monkeypatch) -> None:
    facts = describe_checkpoint(tiny_checkpoint)
    assert facts["bits_per_weight"] == pytest.approx(32)
    assert facts["quality"] == {}
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/some/libopenblas.so.0")
    machine = describe_machine()
    assert machine["preloaded"] == "libopenblas.so.0"
    assert "/" not in json.dumps(machine)


TAKE_PYTHON = "bytearray(3 << 30)"
TAKE_MLX = "import mlx.core as mx; mx.eval(mx.zeros((3 << 28,)))"


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit address space")
@pytest.mark.parametrize(
    ("code", "reason"), [(TAKE_PYTHON, "MemoryError"), (TAKE_MLX, "SIGSEGV|SIGABRT|SIGBUS")]
)
def test_who_needs_more_than_the_limit_dies_at_it(code: str, reason: str) -> None:
    command = [sys.executable, "-c", code]
    with pytest.raises(LimitReachedError, match=rf"^died at 2 GB: ({reason})$"):
        run_limited(command, 2 * 10**9)
    assert run_limited(command, 16 * 10**9).returncode == 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('no such layer')", "ValueError: no such layer"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import sys; sys.exit(3)", "exit code 3"),
    ],
)
def test_other_failures_are_not_the_limits(code: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        run_limited([sys.executable, "-c", code], None)
    assert not isinstance(caught.value, LimitReachedError)


def test_a_limit_that_is_reached_is_a_result(monkeypatch) -> None:
    turns: list[str] = []

    def fake(program: str, *_: object) -> dict[str, float]:
        turns.append(program)
        if program == "mlx-lm":
            raise LimitReachedError("died at 16 GB: SIGSEGV")
        if program == "mlx-vlm":
            raise RuntimeError("no such model")
        return {"temporary_bytes": 1e8}

    monkeypatch.setattr(peers, "measure", fake)
    measured = Case("memory", ["memory"], limit_bytes=16 * 10**9, has_warm_up=False)
    run_in_turns(measured, {OWN: "a", "mlx-lm": "b", "mlx-vlm": "c"}, Path(), 2)
    assert turns == [OWN, "mlx-lm", "mlx-vlm", OWN]  # no turn is left out, and no dead one called
    summary = summarize(measured)
    assert summary["limits_reached"] == ["mlx-lm"]
    assert summary["limit_bytes"] == 16 * 10**9
    assert set(summary["errors"]) == {"mlx-lm", "mlx-vlm"}
    assert summary["programs"][OWN]["temporary_bytes"]["runs"] == 2


@pytest.mark.parametrize("program", [OWN, "mlx-lm"])
@pytest.mark.parametrize("flags", [[], ["--one-chunk"]])
def test_memory_of_prefill_is_told_apart(
    program: str, flags: list[str], tiny_checkpoint: Path
) -> None:
    arguments = ["memory", "--context", "2560", *flags]
    figures = measure(program, sys.executable, Case("memory", arguments), tiny_checkpoint)
    assert figures["prefill_step_size"] == 2048
    held = figures["weights_bytes"] + figures["cache_bytes"] + figures["temporary_bytes"]
    # The peak is counted from after the weights, before which loading may have had more.
    assert figures["peak_allocated_bytes"] == held
    assert figures["cache_bytes_per_token"] == figures["cache_bytes"] / 2560
    text = Config.from_folder(tiny_checkpoint).text_config
    planned = cache_bytes(text, 2560, 4)
    if program == OWN:
        assert figures["cache_bytes"] == planned
        return
    # Keys and values beside each other in global layers, and no slots beyond the window.
    rows = {"full_attention": 2560, "sliding_attention": text.sliding_window}
    assert figures["cache_bytes"] == sum(
        2 * 4 * rows[kind] * text.num_key_value_heads_of(index) * text.head_dim_of(index)
        for index, kind in enumerate(text.layer_types)
    )


def test_a_command_has_no_paths_of_the_machine() -> None:
    given = ["build/heads", "--python-of", "mlx-lm=/opt/peers/bin/python", "--output", "/a/b.json"]
    shown = name_command("/home/me/benchmarks/peers.py", given)
    expected = "benchmarks/peers.py build/heads --python-of mlx-lm=python --output b.json"
    assert shown == expected
