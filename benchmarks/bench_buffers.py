"""What MLX keeps of freed arrays: how much memory that takes, and whether it pays.

MLX gives a freed array's buffer to the next array of its size.  Unlimited, what it keeps follows
every size a prompt has ever needed; without any, each array asks the system anew.  The regime is
`generate`: a prompt is read in chunks, and an answer follows.  Ways of limiting it take turns, each
in a process of its own:

    shipped      as `load` sets it, and cleared after each chunk
    kept         the same, not cleared
    unlimited    no limit, cleared after each chunk
    all kept     no limit, not cleared: MLX as it comes on a Mac
    none         nothing is kept
    not wired    on a GPU: as shipped, but the system may page the model out

    python benchmarks/random_checkpoint.py mid build/mid
    python benchmarks/bench_buffers.py build/mid --tokens 8192
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peer_facts import describe_machine, name_commit

UNLIMITED = 1 << 50
# Limit of freed bytes, None as shipped; whether they are cleared; whether arrays are wired.
WAYS: dict[str, tuple[int | None, bool, bool]] = {
    "shipped": (None, True, True),
    "kept": (None, False, True),
    "unlimited": (UNLIMITED, True, True),
    "all kept": (UNLIMITED, False, True),
    "none": (0, True, True),
    "not wired": (None, True, False),
}


def measure(model_name: str, way: str, tokens: int, answer: int) -> dict[str, float]:
    """Read a prompt and answer it; return seconds and bytes."""
    from unittest import mock

    import mlx.core as mx
    import numpy as np

    from mlx_gemma4 import load
    from mlx_gemma4.generation.generate import generate_step
    from mlx_gemma4.inputs import ModelInputs

    model, _ = load(model_name, check_limits=False, tune=False)
    limit, is_cleared, is_wired = WAYS[way]
    if limit is not None:
        mx.set_cache_limit(limit)
    if not is_wired:
        mx.set_wired_limit(0)
    mx.eval(model.parameters())
    vocab_size = model.config.text_config.vocab_size
    ids = np.random.default_rng(0).integers(100, vocab_size, tokens)
    held = [0]

    def watch(done: int, total: int) -> None:
        held.append(mx.get_active_memory() + mx.get_cache_memory())

    clear = mx.clear_cache

    def watch_and_clear() -> None:
        watch(0, 0)
        if is_cleared:
            clear()

    with mock.patch.object(mx, "clear_cache", watch_and_clear):
        for inputs in (ids[: min(tokens, 512)], ids):  # the first warms up
            start = time.perf_counter()
            times = [
                time.perf_counter()
                for _ in generate_step(
                    ModelInputs.from_ids(inputs),
                    model,
                    max_tokens=answer + 1,
                    prompt_progress_callback=watch,
                )
            ]
    return {
        "read_tokens_per_s": tokens / (times[0] - start),
        "answer_tokens_per_s": answer / (times[-1] - times[0]),
        "peak_bytes": mx.get_peak_memory(),
        "held_bytes": max(held),
        "resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, or the name of a checkpoint")
    parser.add_argument("--tokens", type=int, default=8192, help="of the prompt")
    parser.add_argument("--answer", type=int, default=32, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write it all there")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.model, options.way, options.tokens, options.answer)))
        return
    import mlx.core as mx

    ways = [way for way in WAYS if way != "not wired" or mx.default_device().type == mx.gpu]
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            samples[way].append(json.loads(result.stdout.splitlines()[-1]))
    print(f"{'':<11}{'read':>8}{'answer':>8} tokens/s{'peak':>8}{'held':>8}{'process':>9} MB")
    rows: list[dict[str, Any]] = []
    for way, taken in samples.items():
        row = {key: statistics.median(sample[key] for sample in taken) for key in taken[0]}
        rows.append({"way": way, **row, "samples": taken})
        print(
            f"{way:<11}{row['read_tokens_per_s']:>8.1f}{row['answer_tokens_per_s']:>8.1f}"
            f"{row['peak_bytes'] / 1e6:>17,.0f}{row['held_bytes'] / 1e6:>8,.0f}"
            f"{row['resident_bytes'] / 1e6:>9,.0f}"
        )
    if options.json:
        document = {
            "benchmark": "buffers",
            "machine": describe_machine(),
            "mlx": version("mlx"),
            "commit": name_commit(),
            "checkpoint": Path(options.model).name,
            "tokens": options.tokens,
            "rows": rows,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
