"""Break each kernel in many ways, and see whether its smallest set of calls tells.

Every mutant of `kernel_mutations.toml` runs in a process of its own, in the simulator's check mode.
It is caught if a result is further from NumPy's than the tests allow, or a check finds something.
One that does not compile proves nothing, and counts as not caught.

    PYTHONPATH=tests/support .venv/bin/python benchmarks/mutate_kernels.py
"""

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from kernel_truth import assert_as_close
from metal_sim import MetalError, Simulator
from metal_sim.toolchain import missing
from ring_calls import RingCall

from mlx_gemma4.kernels import qkv_norm_rope, residual_norms, shared_decode, source

HERE = Path(__file__).resolve().parent
METAL = HERE.parent / "kernels" / "metal"
TESTS = HERE.parent / "tests" / "kernels"
MUTATIONS: dict[str, dict[str, tuple[str, str]]] = tomllib.loads(
    (HERE / "kernel_mutations.toml").read_text()
)
TIMEOUT_S = 300
SHARE_CAUGHT = 0.9

Call = Callable[[], None]


def residual_norms_calls() -> Iterator[Call]:
    test = runpy.run_path(str(TESTS / "test_residual_norms.py"))

    def check(arguments: tuple[Any, ...]) -> None:
        assert_as_close(
            residual_norms.launch(*arguments),
            residual_norms.define(*arguments),
            test["truth"](*arguments),
        )

    for shape, scalar in (((1, 5, 416), 0.75), ((2, 3, 192), None)):
        yield lambda a=(*shape, mx.float32, scalar): check(
            test["drawn"](np.random.default_rng(1), *a)
        )

    def zeros() -> None:
        x, _, *rest = test["drawn"](np.random.default_rng(1), 1, 2, 64, mx.float32)
        assert not np.any(np.array(residual_norms.launch(x * 0, x * 0, *rest)))

    yield zeros


def qkv_norm_rope_calls() -> Iterator[Call]:
    test = runpy.run_path(str(TESTS / "test_qkv_norm_rope.py"))

    def drawn(layout: str, call: str, dtype: mx.Dtype = mx.float32) -> tuple[Any, ...]:
        rng = np.random.default_rng(1)
        return test["drawn"](rng, test["LAYOUTS"][layout], *test["CALLS"][call], dtype)

    def check_joint(arguments: tuple[Any, ...]) -> None:
        given = test["joined"](arguments)
        assert_as_close(
            qkv_norm_rope.launch(*given), qkv_norm_rope.define(*given), test["truth"](*arguments)
        )

    yield lambda: check_joint(drawn("partly rotated", "verify"))
    for layout, call in (
        ("two shared rows", "end"),
        ("global", "verify"),
        ("two shared rows, int8", "verify"),
        ("global, values", "verify"),
        ("global, int8 values", "verify"),
    ):
        yield lambda layout=layout, call=call: test["check"](drawn(layout, call))

    yield lambda: test["check"](drawn("global, int8", "end", mx.bfloat16))

    def zeros() -> None:
        q, k, *rest = drawn("global, int8", "verify")
        test["check"]((q, 0 * k, *rest))

    yield zeros


def sliding_decode_calls() -> Iterator[Call]:
    """Runs of keys, some empty; a ring that begins anew; rows that see different keys."""
    calls = [
        RingCall(mx.float32, (500, 1), 2, 256, 4, 4, 2),
        RingCall(mx.float32, (90,), 3, 41, 4, 1, 1, blocks=((0, 2),)),
        RingCall(mx.float32, (90,), 2, 41, 4, 2, 1, scores="far apart"),
    ]
    return (lambda call=call: call.check("sliding_decode") for call in calls)


def sliding_tiles_calls() -> Iterator[Call]:
    """The same, and four splits of two key heads; an image, and a ring before a chunk."""
    calls = [
        RingCall(mx.float32, (500, 1), 3, 250, 4, 4, 2),
        RingCall(mx.bfloat16, (90,), 70, 41, 4, 3, 1, blocks=((5, 40),)),
        RingCall(mx.float32, (90,), 9, 41, 4, 2, 1, scores="far apart"),
    ]
    return (lambda call=call: call.check("sliding_tiles") for call in calls)


def merge_splits_calls() -> Iterator[Call]:
    test = runpy.run_path(str(TESTS / "test_merge_splits.py"))
    for spread in (4.0, 300.0):
        yield lambda spread=spread: test["check"](
            *test["drawn"](np.random.default_rng(1), (2, 3, 5, 2, 3, 128), mx.float32, spread)
        )


def shared_decode_calls() -> Iterator[Call]:
    """Every kind of rows; runs of keys of two rows of a batch; scores that are far apart."""
    test = runpy.run_path(str(TESTS / "test_shared_decode.py"))

    def check(
        kind: str, starts: list[int], length: int, heads: tuple[int, ...], scale: float
    ) -> None:
        q, rows, mask, *rest = test["call"](mx.float32, starts, length, heads, kind)
        first = np.minimum(mask.hi, np.arange(length, dtype=np.int32))
        mask = type(mask)(first, mask.hi, mask.key_positions)
        arguments = (scale * q, rows, mask, *rest)
        truth = test["shared_truth"](*arguments)
        assert_as_close(shared_decode.launch(*arguments), shared_decode.define(*arguments), [truth])

    for kind in test["FORMATS"]:
        yield lambda kind=kind: check(kind, [300, 5], 3, (4, 2, 256, 128), 1.0)
    yield lambda: check("shared_decode", [37], 3, (6, 1, 256, 128), 30.0)


def quantized_matvec_calls() -> Iterator[Call]:
    """One vector, and several with rows that fill no tile; the same bits as alone."""
    test = runpy.run_path(str(TESTS / "test_quantized_matvec.py"))
    for M, N, K in ((1, 7, 896), (3, 9, 704), (18, 3, 64)):
        yield lambda M=M, N=N, K=K: test["check_drawn"](np.random.default_rng(1), M, N, K, 4, 64)
    yield lambda: test["assert_rows_alone"](np.random.default_rng(1), 4, 64, mx.float32, 16)


def gate_up_geglu_calls() -> Iterator[Call]:
    test = runpy.run_path(str(TESTS / "test_gate_up_geglu.py"))
    for M, N, K, scale in ((1, 7, 896, 1), (3, 3, 704, 1), (1, 2, 64, 1000)):
        yield lambda a=(M, N, K), scale=scale: test["check_drawn"](
            np.random.default_rng(1), *a, 4, 64, scale=scale
        )


def quantized_small_batch_calls() -> Iterator[Call]:
    """Rows of W and of x that fill no tile, and more groups than simdgroups."""
    test = runpy.run_path(str(TESTS / "test_quantized_small_batch.py"))
    for M, N, K, group_size in ((5, 20, 448, 64), (11, 17, 288, 32)):
        yield lambda a=(M, N, K), group_size=group_size: test["check_drawn"](
            np.random.default_rng(1), *a, 4, group_size
        )


CALLS: dict[str, Callable[[], Iterator[Call]]] = {
    "residual_norms": residual_norms_calls,
    "qkv_norm_rope": qkv_norm_rope_calls,
    "sliding_decode": sliding_decode_calls,
    "sliding_tiles": sliding_tiles_calls,
    "merge_splits": merge_splits_calls,
    "shared_decode": shared_decode_calls,
    "quantized_matvec": quantized_matvec_calls,
    "gate_up_geglu": gate_up_geglu_calls,
    "quantized_small_batch": quantized_small_batch_calls,
}


def break_source(folder: Path, kernel: str, search: str, replacement: str) -> None:
    """Replace a text in copies of a kernel's source and of the headers that it includes.

    Raises:
        ValueError: It is there more or less than once.
    """
    text = (folder / f"{kernel}.metal").read_text()
    names = [f"{kernel}.metal", *re.findall(r'^#include "(.+)"', text, re.MULTILINE)]
    texts = {name: (folder / name).read_text() for name in names}
    count = sum(text.count(search) for text in texts.values())
    if count != 1:
        raise ValueError(f"{kernel}: {search!r} is there {count} times; a mutation needs it once")
    for name, text in texts.items():
        (folder / name).write_text(text.replace(search, replacement))


def run_mutant(kernel: str, mutation: str | None) -> str:
    """Run a kernel's calls until one tells; return by what it was caught, or nothing.

    Args:
        kernel: Its stem.
        mutation: Its name; None is the kernel as it is.
    """
    simulator = Simulator()
    mx.fast.metal_kernel = simulator.metal_kernel
    mx.disable_compile()
    with tempfile.TemporaryDirectory() as folder:
        copies = Path(folder) / "metal"
        shutil.copytree(METAL, copies)
        if mutation is not None:
            break_source(copies, kernel, *MUTATIONS[kernel][mutation])
        source.files = lambda _: copies
        try:
            for call in CALLS[kernel]():
                call()
        except MetalError as error:
            check = next(message.check for message in error.messages if message.is_error)
            return "does not compile" if check in ("compile", "strict") else f"check {check}"
        except AssertionError:
            return "values"
    return ""


def run_apart(kernel: str, mutation: str | None) -> str:
    """Run a mutant in a process of its own, since a broken kernel may take that with it."""
    arguments = [__file__, "--mutant", kernel, *([] if mutation is None else [mutation])]
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return "never ends"
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    if done.returncode:
        raise RuntimeError(f"{kernel}, {mutation}: {done.stderr}")
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kernels", nargs="*", help=f"of {', '.join(MUTATIONS)}; all without")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--mutant", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    if options.mutant:
        kernel, mutation = [*options.mutant, None][:2]
        print(run_mutant(kernel, mutation))
        return 0
    kernels = options.kernels or list(MUTATIONS)
    if unknown := set(kernels) - MUTATIONS.keys():
        parser.error(f"no mutations of {', '.join(sorted(unknown))}; there are {list(MUTATIONS)}")
    mutants = [(kernel, name) for kernel in kernels for name in (None, *MUTATIONS[kernel])]
    with ThreadPoolExecutor(options.processes) as pool:
        found = dict(
            zip(mutants, pool.map(lambda mutant: run_apart(*mutant), mutants), strict=True)
        )
    return report(kernels, found)


def report(kernels: list[str], found: dict[tuple[str, str | None], str]) -> int:
    """Print by what each mutant was caught, and return the exit status."""
    status = 0
    for kernel in kernels:
        if whole := found[kernel, None]:
            print(f"{kernel} itself fails: {whole}")
            status = 1
            continue
        caught = 0
        for name in MUTATIONS[kernel]:
            how = found[kernel, name]
            is_caught = how not in ("", "does not compile")
            caught += is_caught
            print(f"{kernel:15} {name:40} {how if is_caught else f'NOT CAUGHT {how}'.strip()}")
        share = caught / len(MUTATIONS[kernel])
        print(f"{kernel:15} {caught} of {len(MUTATIONS[kernel])} caught\n", flush=True)
        status |= share < SHARE_CAUGHT
    return status


if __name__ == "__main__":
    sys.exit(main())
