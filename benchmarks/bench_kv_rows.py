"""Kinds of rows of global layers: bytes of a whole context, and what they cost in quality.

Bytes: the 12B's caches after `--tokens` positions in bfloat16, one layer of each type at a time,
with real arrays of the 12B's heads; what MLX then holds is beside what the caches say.  Quality:
next-token distributions of the bundled demo checkpoint on its own prompts and answers against those
with exact rows, read in one piece and then decoded greedily.

    PYTHONPATH=benchmarks:tests/support python benchmarks/bench_kv_rows.py
"""

import argparse
import json
import platform
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np
from demo_prompts import demo_prompts, inputs_of
from random_checkpoint import PLACEHOLDERS, SIZES, build_config

from mlx_gemma4 import load
from mlx_gemma4.cache import SlidingCache
from mlx_gemma4.config import Config
from mlx_gemma4.evaluation.divergence import Divergence
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.model.gemma4 import Gemma4

KINDS: list[dict[str, Any]] = [
    {"kv_rows": rows, "kv_bits": bits} for bits in (16, 8) for rows in ("shared", "value")
]
CHUNK, ANSWER = 2048, 24


def measure_bytes(model: Gemma4, kind: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Fill one ring and one global cache of the 12B's sizes; return bytes of all 48 layers."""
    text = model.config.text_config
    totals = {"rings": 0, "global": 0}
    held = 0
    for index in (0, 5):
        cache = model.make_cache(**kind, context_tokens=tokens)[index]
        is_ring = isinstance(cache, SlidingCache)
        dims = 2 * text.head_dim if is_ring else text.global_head_dim * 5 // 4
        shape = (1, text.num_key_value_heads_of(index), CHUNK, dims)
        chunk = mx.random.normal(shape).astype(mx.bfloat16)
        mx.eval(chunk)
        mx.clear_cache()
        before = mx.get_active_memory()
        for _ in range(0, CHUNK if is_ring else tokens, CHUNK):
            if isinstance(cache, SlidingCache):
                cache.update_and_fetch(chunk)
            else:
                rotated = dims - text.global_head_dim
                cache.update_and_fetch(cache.row_format.pack(chunk, rotated))
            mx.eval(cache.state)
        layers = sum(text.is_sliding(i) == is_ring for i in range(text.num_hidden_layers))
        totals["rings" if is_ring else "global"] = layers * cache.nbytes
        held += layers * (mx.get_active_memory() - before)
        del cache
    total = sum(totals.values())
    return {
        **kind,
        "kib_a_token": totals["global"] / tokens / 1024,
        "gib": total / 2**30,
        "held_gib": held / 2**30,
    }


def answer(model: Any, inputs: Any, kind: dict[str, Any]) -> list[int]:
    """Return a greedy answer."""
    cache = model.make_cache(**kind)
    steps = generate_step(inputs, model, max_tokens=ANSWER, prompt_cache=cache)
    return [token for token, _ in steps]


def read(model: Any, inputs: Any, answer: list[int], kind: dict[str, Any]) -> np.ndarray:
    """Return logits [positions, V] of a prompt in one piece, and of an answer token by token."""
    cache = model.make_cache(**kind)
    parts = [model(inputs, cache)]
    parts += [model.forward(mx.array([[token]]), [], (), cache)[0] for token in answer]
    return np.concatenate([np.array(part) for part in parts])


def compare(model: Any, prompts: list[Any]) -> list[dict[str, Any]]:
    """Return KL and agreement of each kind against exact rows."""
    exact_answers = [answer(model, inputs, KINDS[0]) for inputs in prompts]
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        kls, tops, same = [], [], 0
        for inputs, expected in zip(prompts, exact_answers, strict=True):
            reference = read(model, inputs, expected, KINDS[0])
            divergence = Divergence(np.zeros(len(reference), np.int64))
            divergence.add(slice(None), 0, reference, read(model, inputs, expected, kind))
            kls.append(divergence.kl)
            tops.append(divergence.is_same_top)
            same += answer(model, inputs, kind) == expected
        kl, top = np.concatenate(kls), np.concatenate(tops)
        rows.append(
            {
                **kind,
                "positions": len(kl),
                "mean_kl": float(kl.mean()),
                "kl_999": float(np.quantile(kl, 0.999)),
                "max_kl": float(kl.max()),
                "top1_agreement": float(top.mean()),
                "greedy_same": same,
                "prompts": len(prompts),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=262_144, help="positions of the context")
    options = parser.parse_args()
    config = build_config(SIZES["real"], "bfloat16", dict.fromkeys(PLACEHOLDERS, 5))
    large = Gemma4(Config.from_dict(config))  # its parameters are never computed
    print(f"{'rows':<8}{'bits':>5}{'KiB a token':>13}{'GiB in all':>12}{'held by MLX':>13}")
    sizes = [measure_bytes(large, kind, options.tokens) for kind in KINDS]
    for row in sizes:
        print(
            f"{row['kv_rows']:<8}{row['kv_bits']:>5}{row['kib_a_token']:>13.3f}"
            f"{row['gib']:>12.3f}{row['held_gib']:>13.3f}"
        )
    model, processor = load("demo", dtype="float32")
    quality = compare(model, [inputs_of(processor, record) for record in demo_prompts()])
    print(
        f"\n{'rows':<8}{'bits':>5}{'mean KL':>10}{'99.9 %':>10}{'max':>10}{'top 1':>9}{'greedy':>9}"
    )
    for row in quality:
        print(
            f"{row['kv_rows']:<8}{row['kv_bits']:>5}{row['mean_kl']:>10.2g}{row['kl_999']:>10.2g}"
            f"{row['max_kl']:>10.2g}{row['top1_agreement']:>9.4f}"
            f"{row['greedy_same']:>6}/{row['prompts']}"
        )
    print(
        json.dumps(
            {
                "bench": "kv_rows",
                "machine": platform.machine(),
                "mlx": version("mlx"),
                "tokens": options.tokens,
                "sizes": sizes,
                "quality": quality,
            }
        )
    )


if __name__ == "__main__":
    main()
