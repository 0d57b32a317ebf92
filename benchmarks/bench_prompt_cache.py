"""Prompt cache: what of a long document is read again, and what that costs until the first token.

A random network reads a document of N tokens and is asked about it, greedily, one token an answer:

* cold: nothing is known.
* second question: the document was a turn of its own, and the first question another one.
* own paragraph: document and question stand in one turn, with an empty line between.
* no border: they stand in one turn, and nothing shows where they part; that is learned by the
  second question, so that the third reads none of the document.
* edit: a token in the middle of the document is another one.
* restart: another process, which finds the document on disk, in a folder.
* restart, file: the same with one file.

Time is from the prepared prompt to the first token; with it the time of what else is new: saving,
and a fingerprint of the model.  Tokens read again are those of the document alone.

    python benchmarks/random_checkpoint.py tiny build/tiny
    python benchmarks/bench_prompt_cache.py build/tiny --tokens 20000
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_gemma4.api import load
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.prompt_cache.archive import open_archive
from mlx_gemma4.prompt_cache.fingerprint import Fingerprint
from mlx_gemma4.prompt_cache.store import PromptCacheStore

STEP = 2048  # tokens of a chunk


class Asker:
    """Asks one store and notes what every question cost."""

    def __init__(self, model: Gemma4, turn_token_id: int) -> None:
        self.model, self.turn = model, turn_token_id
        self.store = PromptCacheStore(model.make_cache, turn_token_id=turn_token_id)
        self.rows: list[dict[str, Any]] = []

    def restart(self, place: Path, fingerprint: Fingerprint) -> None:
        archive = open_archive(place, fingerprint, self.model.make_cache)
        self.store = PromptCacheStore(
            self.model.make_cache, turn_token_id=self.turn, archive=archive
        )

    def ask(self, label: str, prompt: np.ndarray, document_tokens: int) -> None:
        """Read a prompt, as prefill does, up to the first token of the answer."""
        start = time.perf_counter()
        reading = self.store.fetch(ModelInputs.from_ids(prompt))
        remaining, logits = reading.remaining, None
        for first, stop in pairwise([0, *reading.stops]):
            for chunk in remaining.slice(first, stop).chunks(STEP):
                logits = self.model(chunk, reading.prompt_cache, logits_to_keep=1)
                mx.eval(logits, [c.state for c in reading.prompt_cache])
            reading.take_snapshot()
        assert logits is not None
        token = int(np.array(logits).argmax())
        first_token_s = time.perf_counter() - start
        reading.tokens.append(token)
        self.store.insert(reading)
        known = reading.cached_tokens
        self.rows.append(
            {
                "case": label,
                "prompt_tokens": len(prompt),
                "cached_tokens": known,
                "document_tokens_read_again": max(0, document_tokens - known),
                "first_token_s": round(first_token_s, 4),
                "store_bytes": self.store.nbytes,
                "token": token,
            }
        )


def measure(model: Gemma4, turn: int, num_tokens: int, folder: Path) -> dict[str, Any]:
    """Ask all questions; return the rows, and what saving took."""
    rng = np.random.default_rng(0)
    vocab = model.config.text_config.vocab_size

    def draw(count: int) -> np.ndarray:
        ids = rng.integers(200, vocab - 100, count).astype(np.int32)
        ids[0] = turn
        return ids

    document, questions = draw(num_tokens), [draw(30) for _ in range(8)]
    asker = Asker(model, turn)
    asker.ask("warm-up", draw(600), 0)

    asker.ask("cold", np.concatenate([document, questions[0]]), 0)
    asker.ask("second question", np.concatenate([document, questions[1]]), num_tokens)
    asker.ask("third question", np.concatenate([document, questions[2]]), num_tokens)

    edited = document.copy()
    edited[num_tokens // 2] += 1
    asker.ask("edit in the middle", np.concatenate([edited, questions[0]]), num_tokens // 2)
    asker.ask("the old one again", np.concatenate([document, questions[3]]), num_tokens)

    start = time.perf_counter()
    fingerprint = Fingerprint.of(model, model.make_cache)
    fingerprint_s = time.perf_counter() - start
    saved: dict[str, Any] = {"fingerprint_s": round(fingerprint_s, 4)}
    for label, place in (("restart", folder / "kept"), ("restart, file", folder / "k.safetensors")):
        asker.restart(place, fingerprint)
        asker.ask(f"{label}: cold", np.concatenate([document, questions[0]]), 0)
        start = time.perf_counter()
        asker.store.save()
        files = [place] if place.is_file() else list(place.iterdir())
        saved[f"{label}: save_s"] = round(time.perf_counter() - start, 4)
        saved[f"{label}: bytes"] = sum(file.stat().st_size for file in files)
        asker.restart(place, fingerprint)
        asker.ask(label, np.concatenate([document, questions[4]]), num_tokens)
        start = time.perf_counter()
        asker.store.save()
        saved[f"{label}: save_again_s"] = round(time.perf_counter() - start, 4)

    for question in questions[5:]:
        question[0] = 199  # no turn begins here
    asker.store = PromptCacheStore(model.make_cache, paragraph_token_id=198)
    for number, label in enumerate(("cold", "second question"), start=5):
        prompt = np.concatenate([document[1:], [198], questions[number]]).astype(np.int32)
        asker.ask(f"own paragraph: {label}", prompt, 0 if label == "cold" else num_tokens)

    asker.store = PromptCacheStore(model.make_cache)
    for number, label in enumerate(("cold", "second question", "third question"), start=5):
        prompt = np.concatenate([document, questions[number]])
        asker.ask(f"no border: {label}", prompt, 0 if label == "cold" else num_tokens)
    return {"rows": asker.rows[1:], **saved}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the prompt cache.")
    parser.add_argument("checkpoint", help="a folder, or demo")
    parser.add_argument("--tokens", type=int, default=20_000, help="of the document")
    parser.add_argument("--commit", default="", help="noted in the document")
    options = parser.parse_args()
    model, processor = load(options.checkpoint, check_limits=False, tune=False)
    turn = processor.tokenizer.special_id("sot_token")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(model, turn, options.tokens, Path(folder))
    cold = found["rows"][0]["first_token_s"]
    print(
        f"{'case':32} {'prompt':>8} {'cached':>8} {'again':>8} {'first token':>12} {'of cold':>8}"
    )
    for row in found["rows"]:
        ratio = row["first_token_s"] / cold
        row["of_cold"] = round(ratio, 4)
        print(
            f"{row['case']:32} {row['prompt_tokens']:8,} {row['cached_tokens']:8,} "
            f"{row['document_tokens_read_again']:8,} {row['first_token_s']:10.3f} s {ratio:8.4f}"
        )
    document = {
        "benchmark": "prompt_cache",
        "checkpoint": Path(options.checkpoint).name,
        "tokens": options.tokens,
        "commit": options.commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "mlx": version("mlx"),
        **found,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
