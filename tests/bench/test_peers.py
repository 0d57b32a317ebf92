"""Programs side by side: what the turns of one case say, and what is not compared."""

import json
import os
import stat
import sys
from pathlib import Path

import peers
import pytest
from peer_facts import describe_checkpoint, describe_machine
from peers import LLAMA, OWN, Case, measure, run_in_turns, summarize, summarize_values

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
