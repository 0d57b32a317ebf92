"""Many prompts at once: tokens per second at several batch sizes, against one by one.

The regime is what `mlx-gemma4 batch` does: prompts of random tokens are read one after the other,
and answered, a row of the batch each, up to a number of tokens.  Lengths differ from prompt to
prompt and from answer to answer, so rows come and go all the time.  Every batch size takes its
turn in each round; a figure is the median of the rounds.  Seconds hold everything, reading too; the
decode speed is that of tokens after the first, with the time that reading takes by itself left out.

Greedy ids are compared with those of one by one.  On a random network two tokens may be as good as
equal; the gap of their log-probabilities is shown where an answer differs.

    python benchmarks/random_checkpoint.py mid build/mid
    python benchmarks/bench_batch.py build/mid --prompts 16 --length 128 --tokens 64
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np

from mlx_gemma4.api import load
from mlx_gemma4.generation.batch import Batch
from mlx_gemma4.generation.batch_row import BatchAnswer, BatchRequest
from mlx_gemma4.generation.generate import generate_step, prefill
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.memory import MemoryLimit
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.processing.processor import Processor


def make_requests(model: Gemma4, count: int, length: int, tokens: int) -> list[BatchRequest]:
    """Prompts of half of `length` to one and a half times it, and answers likewise."""
    rng = np.random.default_rng(7)
    vocab_size = model.config.text_config.vocab_size
    return [
        BatchRequest(
            key=key,
            inputs=ModelInputs.from_ids(
                rng.integers(100, vocab_size, int(rng.integers(length // 2, 3 * length // 2 + 1)))
            ),
            max_tokens=int(rng.integers(tokens // 2, 3 * tokens // 2 + 1)),
        )
        for key in range(count)
    ]


def read_all(model: Gemma4, requests: list[BatchRequest]) -> float:
    """Read every prompt; return the seconds."""
    start = time.perf_counter()
    for request in requests:
        mx.eval(prefill(request.inputs, model, model.make_cache()))
    return time.perf_counter() - start


def answer_singly(
    model: Gemma4, requests: list[BatchRequest]
) -> tuple[float, dict[int, list[tuple[int, mx.array]]]]:
    """Answer one after the other; return the seconds, and tokens with log-probabilities."""
    start = time.perf_counter()
    answers: dict[int, list[tuple[int, mx.array]]] = {}
    for request in requests:
        steps = generate_step(request.inputs, model, max_tokens=request.max_tokens)
        answers[request.key] = list(steps)
    return time.perf_counter() - start, answers


def answer_together(
    model: Gemma4, processor: Processor, requests: list[BatchRequest], batch_size: int
) -> tuple[float, int, dict[int, tuple[int, ...]]]:
    """Answer so many at a time; return the seconds, the peak of memory, and the tokens."""
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    batch = Batch(model, processor.tokenizer, eos_token_ids=(), batch_size=batch_size)
    done = [answer for answer in batch.answer(requests) if isinstance(answer, BatchAnswer)]
    seconds = time.perf_counter() - start
    return seconds, mx.get_peak_memory(), {answer.key: answer.tokens for answer in done}


def gaps(
    singly: dict[int, list[tuple[int, mx.array]]], together: dict[int, tuple[int, ...]]
) -> list[float]:
    """Gaps in log-probability where an answer first differs from the one by itself."""
    found = []
    for key, steps in singly.items():
        for (token, logprobs), other in zip(steps, together[key], strict=True):
            if token != other:
                found.append(round(cast(float, (logprobs[token] - logprobs[other]).item()), 7))
                break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quantize", type=int, help="bits")
    parser.add_argument("--dtype", help="float32 by default on a CPU")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="of a prompt, on average")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, on average")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, processor = load(
        options.checkpoint, quantize=options.quantize, dtype=options.dtype, check_limits=False
    )
    requests = make_requests(model, options.prompts, options.length, options.tokens)
    tokens = sum(request.max_tokens for request in requests)
    answer_singly(model, requests[:1])
    model.memory_limit = MemoryLimit(1 << 50, "nothing here bounds")
    reading: list[float] = []
    seconds: dict[int, list[float]] = {size: [] for size in (0, *options.batch_sizes)}
    peaks: dict[int, int] = {}
    differing: dict[int, list[float]] = {}
    for _ in range(options.rounds):
        reading.append(read_all(model, requests))
        taken, singly = answer_singly(model, requests)
        seconds[0].append(taken)
        for size in options.batch_sizes:
            taken, peaks[size], together = answer_together(model, processor, requests, size)
            seconds[size].append(taken)
            differing[size] = gaps(singly, together)
        del singly
    read_s = statistics.median(reading)
    rows: list[dict[str, Any]] = []
    print(
        f"{'rows':<12}{'s':>8}{'tokens/s':>10}{'ratio':>7}{'decode/s':>10}{'ratio':>7}"
        f"{'peak MB':>9}"
    )
    for size, values in seconds.items():
        total_s = statistics.median(values)
        decode = (tokens - len(requests)) / max(total_s - read_s, 1e-9)
        row: dict[str, Any] = {
            "batch_size": size,
            "seconds": [round(value, 3) for value in values],
            "tokens_per_s": round(tokens / total_s, 2),
            "decode_tokens_per_s": round(decode, 2),
        }
        first = rows[0] if rows else row
        row["ratio"] = round(row["tokens_per_s"] / first["tokens_per_s"], 2)
        row["decode_ratio"] = round(decode / first["decode_tokens_per_s"], 2)
        if size:
            row |= {"peak_bytes": peaks[size], "gaps": differing[size]}
        rows.append(row)
        print(
            f"{size or 'one by one':<12}{total_s:>8.2f}{row['tokens_per_s']:>10.1f}"
            f"{row['ratio']:>7.2f}{decode:>10.1f}{row['decode_ratio']:>7.2f}"
            f"{peaks.get(size, 0) / 1e6:>9,.0f}   {row.get('gaps') or ''}",
            flush=True,
        )
    print(
        json.dumps(
            {
                "benchmark": "batch",
                "checkpoint": options.checkpoint.name,
                "quantize": options.quantize,
                "dtype": str(model.dtype),
                "prompts": len(requests),
                "prompt_tokens": sum(len(request.inputs) for request in requests),
                "answer_tokens": tokens,
                "read_s": [round(value, 3) for value in reading],
                "device": str(mx.default_device()),
                "machine": platform.machine(),
                "load": os.getloadavg()[0],
                "mlx": version("mlx"),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
