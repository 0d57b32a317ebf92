"""Kernels in the simulator's check mode over the whole matrix of calls: `make check-kernels`.

Lengths up to 33 in every combination with one key head, since key heads are an axis of the grid;
longer ones so that every two values of two axes meet; the 12B's heads once a kernel.  Each call
runs in one order of execution, another one than the call before; the tests run theirs in three.
"""

import argparse
import multiprocessing
import runpy
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from kernel_truth import DTYPES, assert_as_close
from metal_sim import Simulator
from pairwise import Choice, cover_pairs
from quantized_truth import FORMATS
from ring_calls import SCORES, RingCall

from mlx_gemma4.api import load
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.kernels import registry, residual_norms, shared_decode
from mlx_gemma4.kernels.kernel import dtype_name
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.processing.processor import Processor

SHORT, LONG = (1, 2, 7, 31, 32, 33), (1023, 1024, 1025, 2500)
GROUPS = (2, 4, 8, 16)
DECODE_ROWS = ((1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 3), (1, 4))  # group, length
REPORT_EVERY_S = 30


@dataclass(frozen=True)
class Check:
    """One call of one kernel; `run` raises if the kernel is wrong."""

    kernel: str
    label: str
    run: Callable[[], None]


def ring_check(kernel: str, call: RingCall) -> Check:
    """Return the check of a call; a copy, so that no two share what they have drawn."""
    return Check(kernel, str(call), lambda: replace(call).check(kernel))


def decode_checks() -> Iterator[Check]:
    """Four simdgroups take four keys in turn, so 16 first slots are all there are."""
    for dtype, (group, length), residue, others, Dh, scores in product(
        DTYPES, DECODE_ROWS, range(16), ((), (3,)), (128, 256), ("drawn", "far apart")
    ):
        call = RingCall(dtype, (64 + residue, *others), length, 24, 8, group, 1, Dh, scores=scores)
        yield ring_check("sliding_decode", call)


def tall_decode_checks() -> Iterator[Check]:
    for dtype, (group, length), start, Dh in product(
        DTYPES, DECODE_ROWS, (1022, 1023, 1024, 1025, 2500), (128, 256)
    ):
        call = RingCall(dtype, (start,), length, 1024, 16, group, 1, Dh)
        yield ring_check("sliding_decode", call)
    yield ring_check("sliding_decode", RingCall(mx.bfloat16, (5000,), 1, 1024, 16, 16, 8, 256))


def short_blocks(length: int) -> list[tuple[tuple[int, int], ...]]:
    """Return images: none, at tile borders, longer than the window of 24, two."""
    if length >= 31:
        return [(), ((0, 16),), ((2, 30),), ((1, 8), (15, 31))]
    return [(), ((0, min(5, length)),)] if length > 1 else [()]


def tiles_checks() -> Iterator[Check]:
    """A window of 24 and a slack of 8: up to 9 positions lie in the ring, more are a chunk."""
    for dtype, length in product(DTYPES, SHORT):
        keys = 16 if dtype == mx.float32 else 32
        for residue, group, others, blocks in product(
            range(keys), GROUPS, ((), (3,)), short_blocks(length)
        ):
            starts = (64 + residue, *others)
            call = RingCall(dtype, starts, length, 24, 8, group, 1, blocks=blocks)
            yield ring_check("sliding_tiles", call)


LONG_BLOCKS = ((), ((0, 256),), ((700, 1000),), ((31, 311), (320, 600)))


def tall_cost(choice: Choice) -> float:
    """Return about how many products of tiles a call has."""
    rows = choice["length"] * choice["group"] * len(choice["others"] + (0,))
    return rows * (choice["window"] + 64) * choice["Dh"]


def tall_tiles_checks() -> Iterator[Check]:
    axes = {
        "dtype": DTYPES,
        "length": LONG,
        "start": (0, 777, 1024, 4003),
        "window": (64, 1024),
        "blocks": LONG_BLOCKS,
        "group": (1, 2, 3, 4, 8, 16),
        "others": ((), (130,)),
        "Dh": (128, 256),
        "scores": SCORES,
    }
    for choice in cover_pairs(axes, tall_cost):
        call = RingCall(
            choice["dtype"],
            (choice["start"], *choice["others"]),
            choice["length"],
            choice["window"],
            16,
            choice["group"],
            1,
            choice["Dh"],
            choice["blocks"],
            choice["scores"],
        )
        yield ring_check("sliding_tiles", call)
    for length in (8, 64):
        call = RingCall(mx.bfloat16, (5000,), length, 1024, 16, 16, 8, 256)
        yield ring_check("sliding_tiles", call)


def norm_checks() -> Iterator[Check]:
    """The calls of two kernels' tests, at all lengths; wide rows at few."""
    folder = Path(__file__).parent
    residual = runpy.run_path(str(folder / "test_residual_norms.py"))
    heads = runpy.run_path(str(folder / "test_qkv_norm_rope.py"))

    def drawn(test: dict[str, Any], *arguments: Any) -> tuple[Any, ...]:
        return test["drawn"](np.random.default_rng(1), *arguments)

    def check_residual(call: tuple[Any, ...]) -> None:
        plain = residual_norms.define(*call)
        assert_as_close(residual_norms.launch(*call), plain, residual["truth"](*call))

    shapes = [(2, L, 192) for L in (*SHORT, *LONG)] + [(1, L, 3840) for L in SHORT]
    for dtype, shape, scalar in product(DTYPES, [*residual["SHAPES"], *shapes], (0.75, None)):
        label = f"{dtype_name(dtype)}, {shape}, scalar {scalar}"
        arguments = (residual, *shape, dtype, scalar)
        yield Check("residual_norms", label, lambda a=arguments: check_residual(drawn(*a)))
    calls = [*heads["CALLS"].values(), *(([262_100 - L, 0], L) for L in SHORT)]
    for dtype, name in product(DTYPES, heads["LAYOUTS"]):
        layout = heads["LAYOUTS"][name]
        of_layout = calls + [([100], L) for L in LONG] * (name == "partly rotated")
        for offsets, length in of_layout:
            label = f"{dtype_name(dtype)}, {name}, {length} at {offsets}"
            arguments = (heads, layout, offsets, length, dtype)
            yield Check("qkv_norm_rope", label, lambda a=arguments: heads["check"](drawn(*a)))


def shared_checks() -> Iterator[Check]:
    """Every kind of rows around a tile of 16 keys and of 16 query rows; split keys; the 12B."""
    test = runpy.run_path(str(Path(__file__).parent / "test_shared_decode.py"))

    def check(*arguments: Any) -> None:
        call = test["call"](*arguments)
        truth = test["shared_truth"](*call)
        assert_as_close(shared_decode.launch(*call), shared_decode.define(*call), [truth])

    small = product([[0], [15], [16], [31], [130], [300, 5]], (1, 2, 3, 8, 16), test["HEADS"][1:])
    calls = [*small, *(([1030], length, (16, 1, 512, 128)) for length in (1, 8))]
    for dtype, kind, (starts, length, heads) in product(DTYPES, test["FORMATS"], calls):
        label = f"{kind}, {dtype_name(dtype)}, {length} at {starts}, heads {heads}"
        arguments = (dtype, starts, length, heads, kind)
        yield Check("shared_decode", label, lambda a=arguments: check(*a))


def quantized_checks() -> Iterator[Check]:
    """Every number of rows of x in every format: few rows of W, and the 12B's widths."""
    folder = Path(__file__).parent
    names = ("quantized_matvec", "quantized_small_batch", "gate_up_geglu")
    tests = {name: runpy.run_path(str(folder / f"test_{name}.py")) for name in names}
    widths = tests["quantized_matvec"]["WIDTHS"]

    def check(name: str, M: int, *arguments: Any) -> None:
        tests[name]["check_drawn"](np.random.default_rng(M), M, *arguments)

    for dtype, (bits, group), M in product(DTYPES, FORMATS, range(1, 17)):
        for N, K in ((1, 2 * group), (7, 3 * group), (33, 5 * group), *((16, K) for K in widths)):
            for name in names if K <= 3840 else names[:2]:
                label = f"{M} x {K} by {N}, {bits} bits in {group}, {dtype_name(dtype)}"
                arguments = (name, M, N, K, bits, group, dtype)
                yield Check(name, label, lambda a=arguments: check(*a))
    for dtype, (bits, group), part in product(DTYPES, FORMATS, range(8)):
        label = f"105 rows alone, {bits} bits in {group}, {dtype_name(dtype)}, {part}"
        arguments = (bits, group, dtype, 105)
        yield Check(
            "quantized_matvec",
            label,
            lambda a=arguments, part=part: tests["quantized_matvec"]["assert_rows_alone"](
                np.random.default_rng(part), *a
            ),
        )


@cache
def demo(bits: int | None) -> tuple[Gemma4, Processor]:
    """Return the demo checkpoint in float32, or quantized so."""
    return load("demo", dtype="float32", quantize=bits)


def greedy_tokens(bits: int | None, prompt: str) -> list[int]:
    """Return 16 tokens, whatever they are."""
    model, processor = demo(bits)
    return [token for token, _ in generate_step(processor(prompt), model, max_tokens=16)]


def answer_checks() -> Iterator[Check]:
    """The demo checkpoint answers 20 prompts on all kernels as on none, 16 tokens each."""

    def check(bits: int | None, prompt: str) -> None:
        with registry.forced():
            plain = greedy_tokens(bits, prompt)
        assert not simulator.launches
        simulator.mode = "run"
        try:
            with registry.forced(*registry.KERNELS):
                tokens = greedy_tokens(bits, prompt)
        finally:
            simulator.mode = "check"
        assert tokens == plain, f"{tokens}, not {plain}"
        layers = demo(bits)[0].config.text_config.num_hidden_layers
        launched = Counter(launch.name for launch in simulator.launches)
        assert launched["residual_norms"] == 16 * 2 * layers
        assert launched["qkv_norm_rope"] == 16 * layers
        assert launched["sliding_decode"] == 15 * (layers - 1)
        if bits:
            assert launched["gate_up_geglu"] >= 15 * layers
            assert launched["quantized_matvec"] >= 15 * 3 * layers

    words = ["tiger", "lemon", "cloud", "plane", "apple", "river", "stone", "music"]
    prompts = [f"Say this again: {' '.join(words[i : i + 3])}" for i in range(6)]
    prompts += [f"Write backwards: {words[i]} {words[-1 - i]}" for i in range(6)]
    prompts += [f"What is {17 * i} + {31 - i}?" for i in range(8)]
    for bits, prompt in product((None, 4, 8), prompts):
        label = f"{f'{bits} bits' if bits else 'float32'}, {prompt}"
        yield Check("answers", label, lambda b=bits, p=prompt: check(b, p))


PARTS = {
    "norms": norm_checks,
    "decode": decode_checks,
    "tall-decode": tall_decode_checks,
    "tall-tiles": tall_tiles_checks,
    "tiles": tiles_checks,
    "shared": shared_checks,
    "quantized": quantized_checks,
    "answers": answer_checks,
}


@cache
def checks_of(part: str) -> list[Check]:
    """Return the checks of a part; every process makes them anew, and calls them by number."""
    return list(PARTS[part]())


simulator = Simulator(orders=1)


def start_simulator() -> None:
    """Have this process simulate."""
    mx.fast.metal_kernel = simulator.metal_kernel
    mx.disable_compile()


def run_check(place: tuple[str, int]) -> tuple[str, str, float]:
    """Run a check; return its kernel, what was wrong, and how long it took."""
    part, number = place
    check = checks_of(part)[number]
    simulator.clear()
    simulator.seed = number
    begin = time.perf_counter()
    try:
        check.run()
        complaint = "" if simulator.launches else "nothing was launched"
    except Exception as error:
        complaint = f"{type(error).__name__}: {error}"
    label = f"{check.kernel}, {check.label}: {complaint}" if complaint else ""
    return check.kernel, label, time.perf_counter() - begin


def main() -> int:
    """Run the matrix, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    places = [(part, i) for part in options.parts for i in range(len(checks_of(part)))]
    print(f"{len(places):,} calls on {options.processes} processes", flush=True)
    begin = reported = time.perf_counter()
    busy_s: dict[str, float] = {}
    counts: dict[str, int] = {}
    failures = 0
    context = multiprocessing.get_context("spawn")  # MLX's threads do not survive a fork
    with context.Pool(options.processes, start_simulator) as pool:
        for done, (kernel, complaint, took_s) in enumerate(
            pool.imap_unordered(run_check, places), start=1
        ):
            busy_s[kernel] = busy_s.get(kernel, 0) + took_s
            counts[kernel] = counts.get(kernel, 0) + 1
            if complaint:
                failures += 1
                print(f"failed: {complaint}", flush=True)
            now = time.perf_counter()
            if now - reported > REPORT_EVERY_S:
                reported = now
                print(f"{done:6,} calls, {now - begin:,.0f} s", flush=True)
    for kernel in sorted(counts):
        print(f"{kernel}: {counts[kernel]:,} calls, {busy_s[kernel]:,.0f} s")
    print(
        f"{len(places):,} calls in check mode, {failures} failed, "
        f"{time.perf_counter() - begin:,.0f} s on {options.processes} processes"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
