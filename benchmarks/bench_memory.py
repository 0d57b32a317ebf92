"""The memory planner against MLX's own account: planned and measured peaks, in bytes.

The regime is reading a prompt, the dearest moment of a conversation: contexts, chunk sizes, and
pictures on random checkpoints, one of them with the 12B's heads and few layers.  Each case runs in
a process of its own, read as `generate` reads it, and reports `mx.get_peak_memory()` and the
resident set beside it.  A long context is one chunk on a cache of random rows, since reading all of
it would take days on a CPU.

    python benchmarks/bench_memory.py build/memory
    python benchmarks/bench_memory.py build/memory --only mid
    python benchmarks/bench_memory.py build/memory --output benchmarks/results/CHIP/FILE.json
"""

import argparse
import datetime
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from peer_facts import describe_machine, list_versions, name_command, name_commit
from random_checkpoint import write_checkpoint

MODELS = ("tiny", "mid", "heads", "deep")  # of random_checkpoint.py
# model, bits, context, chunk, soft tokens of each of two pictures, whether it is one chunk
CASES = [
    *[("tiny", None, tokens, 2048, 0, False) for tokens in (512, 2048, 8192)],
    *[("mid", None, tokens, step, 0, False) for tokens, step in ((512, 2048), (2048, 256))],
    *[("mid", None, tokens, 2048, 0, False) for tokens in (2048, 4096)],
    ("mid", 4, 2048, 1024, 0, False),
    *[("deep", None, tokens, 2048, 0, False) for tokens in (2048, 4096)],
    *[("mid", None, 3072, 1024, picture, False) for picture in (280, 1120)],
    *[("heads", None, 2048, step, 0, False) for step in (256, 1024, 2048)],
    *[("heads", None, 8192, step, 0, True) for step in (256, 1024)],
    *[("heads", None, tokens, 256, 0, True) for tokens in (32_768, 131_072)],
]


def measure(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Read one prompt; return planned and measured bytes."""
    import mlx.core as mx

    from mlx_gemma4 import load
    from mlx_gemma4.generation.generate import prefill
    from mlx_gemma4.generation.reading import plan_reading

    model, _ = load(folder, quantize=case["bits"], check_limits=False)
    mx.eval(model.parameters())
    mx.clear_cache()
    tokens, step, picture = case["tokens"], case["step"], case["picture"]
    cache = model.make_cache(context_tokens=tokens)  # as if the prompt were read from its start
    is_last_chunk = case["is_one_chunk"]
    if is_last_chunk:
        fill_cache(model, cache, tokens - step)
    inputs = make_inputs(step if is_last_chunk else tokens, picture)
    plan = plan_reading(inputs, model, cache, prefill_step_size=step)
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    mx.eval(prefill(inputs, model, cache, prefill_step_size=step))
    return {
        **case,
        "planned_bytes": plan.total_bytes,
        "measured_bytes": mx.get_peak_memory(),
        "weights_bytes": plan.weights_bytes,
        "workspace_bytes": plan.workspace_bytes,
        "rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "seconds": round(time.perf_counter() - start, 1),
    }


def fill_cache(model: Any, cache: Any, tokens: int) -> None:
    """Fill every layer's cache as if so many positions had been read."""
    import mlx.core as mx

    text = model.config.text_config
    for index, layer_cache in enumerate(cache):
        is_sliding = text.is_sliding(index)
        dims = 2 * text.head_dim if is_sliding else text.global_head_dim * 5 // 4
        # What a sliding layer has seen before its last window is gone.
        count = min(tokens, layer_cache.capacity) if is_sliding else tokens
        layer_cache.offset = tokens - count
        shape = (1, text.num_key_value_heads_of(index), count, dims)
        rows = 0.1 * mx.random.normal(shape, model.dtype)
        if not is_sliding:
            layer_cache.offset = 0
        if is_sliding:
            layer_cache.update_and_fetch(rows)
        else:
            rotated = dims - text.global_head_dim
            layer_cache.update_and_fetch(layer_cache.row_format.pack(rows, rotated))
        mx.eval(layer_cache.state)
        del rows
        mx.clear_cache()


def make_inputs(tokens: int, picture: int) -> Any:
    """Return a prompt of random ids, with two pictures in it if they have soft tokens."""
    from mlx_gemma4.inputs import Modality, ModelInputs, SoftTokenSpan

    rng = np.random.default_rng(0)
    ids = rng.integers(10, 4000, tokens).astype(np.int32)
    if not picture:
        return ModelInputs(ids)
    spans = tuple(SoftTokenSpan(start, picture, Modality.IMAGE) for start in (8, 16 + picture))
    patches = rng.random((2 * picture, 48 * 48 * 3), np.float32)
    places = np.arange(picture)
    grid = np.tile(np.stack([places % 28, places // 28], axis=1).astype(np.int32), (2, 1))
    return ModelInputs(ids, spans, patches, grid)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the random checkpoints are made")
    parser.add_argument("--only", choices=MODELS, help="one model alone")
    parser.add_argument("--output", type=Path, help="for the JSON, which is printed in any case")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.folder / options.case["model"], options.case)))
        return
    document: dict[str, Any] = {
        "what": "memory",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": name_commit(),
        "command": name_command(__file__, sys.argv[1:]),
        "machine": describe_machine(),
        "versions": list_versions(sys.executable),
    }
    rows: list[dict[str, Any]] = []
    document["rows"] = rows
    print(
        f"{'model':<7}{'bits':>5}{'tokens':>9}{'chunk':>7}{'picture':>9}{'planned':>10}"
        f"{'measured':>10}{'ratio':>7}{'RSS':>8}{'s':>7}   MB"
    )
    for values in CASES:
        case: dict[str, Any] = dict(
            zip(("model", "bits", "tokens", "step", "picture", "is_one_chunk"), values, strict=True)
        )
        if options.only in (None, case["model"]):
            folder = options.folder / case["model"]
            if not (folder / "config.json").exists():
                write_checkpoint(folder, case["model"])
            rows.append(run(options, case))
    off = [row for row in rows if not is_close(row)]
    print(f"{len(rows) - len(off)} of {len(rows)} within 5 % or 50 MB")
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))


def run(options: argparse.Namespace, case: dict[str, Any]) -> dict[str, Any]:
    """Measure a case in a process of its own, and print its row."""
    command = [sys.executable, __file__, str(options.folder), "--case", json.dumps(case)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    row = json.loads(result.stdout.splitlines()[-1])
    planned, measured = row["planned_bytes"], row["measured_bytes"]
    print(
        f"{row['model']:<7}{row['bits'] or '-':>5}{row['tokens']:>9,}{row['step']:>7,}"
        f"{row['picture'] or '-':>9}{planned / 1e6:>10,.0f}{measured / 1e6:>10,.0f}"
        f"{measured / planned:>7.3f}{row['rss_bytes'] / 1e6:>8,.0f}{row['seconds']:>7.1f}",
        flush=True,
    )
    return row


def is_close(row: dict[str, Any]) -> bool:
    """Whether a peak is within 5 % of what was planned, at least 50 MB."""
    difference = abs(row["planned_bytes"] - row["measured_bytes"])
    return difference <= max(0.05 * row["measured_bytes"], 50e6)


if __name__ == "__main__":
    main()
