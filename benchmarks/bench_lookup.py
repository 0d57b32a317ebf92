"""Prompt lookup: whether answers stay the same, tokens per forward pass, and seconds.

Three questions, each in one process, with and without `speculate="lookup"` in turn:

* The demo checkpoint answers its own tasks, held out from training: text, pictures, sounds, clips.
  Are the greedy ids the same?
* A random network goes on with random texts that repeat themselves.  Verifying adds up in another
  order than single steps do, so where two tokens are as good as equal the other one may win: how
  often is that, and how far apart were the two?
* A random network is made to say what a good one would: it quotes a document, edits a program, or
  says something that its prompt does not.  The passes are real ones; a logits processor sees to
  their outcome.  How many tokens does a pass give, and what does it gain in time?

The texts of the third are this repository's own.  Tokens are those of `--tokenizer`, numbered anew
so that they fit into the checkpoint's vocabulary; the time is that of the tokens after the first.

    python benchmarks/random_checkpoint.py tiny build/tiny
    python benchmarks/random_checkpoint.py mid build/mid
    python -m benchmarks.bench_lookup --random build/tiny --timed build/mid
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np

from benchmarks.demo.accuracy import ROWS
from mlx_gemma4.api import generate_result, load
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.generation.lookup import PromptLookup
from mlx_gemma4.generation.speculation import speculative_generate_step
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.processing.tokenizer import Tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "LICENSE", "convert/README.md")
PROGRAMS = ("cache/sliding.py", "generation/sampling.py", "api.py", "hub.py", "inputs.py")


def compare_demo(num_prompts: int) -> dict[str, Any]:
    """Ask the demo checkpoint; count answers whose ids differ."""
    model, processor = load("demo", check_limits=False)
    rng, differing, tokens, forwards = random.Random(6), 0, 0, 0
    for index in range(num_prompts):
        asked = ROWS[index % len(ROWS)].make(rng)
        inputs = processor(asked.prompt, **asked.options)
        plain = generate_result(model, processor, inputs, max_tokens=48)
        lookup = generate_result(model, processor, inputs, max_tokens=48, speculate="lookup")
        differing += plain.tokens != lookup.tokens
        tokens += lookup.generation_tokens
        forwards += lookup.forwards
    return {
        "prompts": num_prompts,
        "differing": differing,
        "tokens": tokens,
        "tokens_per_forward": round(tokens / forwards, 3),
    }


def compare_random(
    folder: Path, num_prompts: int, length: int, **load_options: Any
) -> dict[str, Any]:
    """Let a random network go on; count answers that differ, and how close the two tokens were."""
    model, _ = load(folder, check_limits=False, **load_options)
    gaps, tokens, drafted, accepted = [], 0, 0, 0
    for seed in range(num_prompts):
        inputs = ModelInputs.from_ids(repeat_runs(seed, model.config.text_config.vocab_size))
        plain = list(generate_step(inputs, model, max_tokens=length))
        lookup = PromptLookup(inputs)
        steps = [s[0] for s in speculative_generate_step(inputs, model, lookup, max_tokens=length)]
        tokens += len(steps)
        drafted += lookup.draft_tokens
        accepted += lookup.accepted_tokens
        for (token, logprobs), other in zip(plain, steps, strict=True):
            if token != other:
                gaps.append(round(cast(float, (logprobs[token] - logprobs[other]).item()), 6))
                break
    return {
        "checkpoint": folder.name,
        **load_options,
        "prompts": num_prompts,
        "differing": len(gaps),
        "gaps": gaps,
        "tokens": tokens,
        "draft_tokens": drafted,
        "accepted_tokens": accepted,
    }


def repeat_runs(seed: int, vocab_size: int) -> np.ndarray:
    """Token ids of runs that come again in any order, [150] int32."""
    rng = np.random.default_rng(seed)
    runs = [rng.integers(100, vocab_size, int(rng.integers(4, 20))) for _ in range(5)]
    return np.concatenate([runs[int(rng.integers(0, 5))] for _ in range(50)])[:150].astype(np.int32)


@dataclass(frozen=True)
class Answered:
    """A prompt, and what a good model would say."""

    prompt: str
    answer: str


def quote(characters: int) -> Iterator[Answered]:
    """A document, and two paragraphs of its middle."""
    for name in DOCUMENTS:
        text = (REPOSITORY / name).read_text(encoding="utf-8")[:characters]
        start = text.index("\n\n", len(text) // 3) + 2
        yield Answered(f"{text}\n\nQuote the part about this.", text[start : start + 1600])


def edit(characters: int) -> Iterator[Answered]:
    """A program, and the same with two names changed and a comment every 25 lines."""
    for name in PROGRAMS:
        text = (REPOSITORY / "mlx_gemma4" / name).read_text(encoding="utf-8")[:characters]
        words = sorted(set(re.findall(r"\b[a-z]{4,}\b", text)), key=lambda w: (-text.count(w), w))
        lines = text.replace(words[0], f"{words[0]}_new").replace(words[3], "other").split("\n")
        for index in range(20, len(lines), 25):
            lines[index] = f"    # What is said here of line {index} stands nowhere else."
        yield Answered(f"{text}\n\nRename these, and explain.", "\n".join(lines))


def speak_freely(characters: int) -> Iterator[Answered]:
    """A document or a program, and another one of the same kind."""
    for kind in (DOCUMENTS, tuple(f"mlx_gemma4/{name}" for name in PROGRAMS)):
        texts = [(REPOSITORY / name).read_text(encoding="utf-8") for name in kind]
        for text, other in pairwise(texts):
            yield Answered(f"{text[:characters]}\n\nGo on.", other[:characters])


KINDS = {"quoting": quote, "editing": edit, "free": speak_freely}


def say(model: Gemma4, ids: np.ndarray, answer: list[int], lookup: bool) -> dict[str, Any]:
    """Make the network say an answer; return what it took."""
    inputs = ModelInputs.from_ids(ids)

    def insist(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, answer[tokens.shape[0] - len(ids)]].add(1000.0)

    options: dict[str, Any] = {"max_tokens": len(answer), "logits_processors": [insist]}
    drafts = PromptLookup(inputs)
    steps: Iterator[Any] = (
        speculative_generate_step(inputs, model, drafts, **options)
        if lookup
        else generate_step(inputs, model, **options)
    )
    said = [next(steps)[0]]
    start = time.perf_counter()
    said += [step[0] for step in steps]
    seconds = time.perf_counter() - start
    if said != answer:
        sys.exit("the network did not say what it was told to")
    return {
        "seconds": seconds,
        "draft_tokens": drafts.draft_tokens,
        "accepted_tokens": drafts.accepted_tokens,
        "forwards": len(answer) - drafts.accepted_tokens,
    }


def measure_kind(
    name: str,
    model: Gemma4,
    tokenizer: Tokenizer,
    *,
    length: int,
    num_texts: int | None,
    characters: int,
    is_timed: bool,
) -> dict[str, Any]:
    """Say the answers of one kind; with `is_timed` without drafts too, in turn."""
    numbers: dict[int, int] = {}
    vocab_size = model.config.text_config.vocab_size
    total = {"tokens": 0, "forwards": 0, "draft_tokens": 0, "accepted_tokens": 0}
    plain_s, lookup_s = [], []
    for text in list(KINDS[name](characters))[:num_texts]:
        ids, answer = (
            [numbers.setdefault(i, 100 + len(numbers)) for i in tokenizer.encode(part)]
            for part in (text.prompt, text.answer)
        )
        if 100 + len(numbers) > vocab_size:
            sys.exit(f"{len(numbers)} tokens, the vocabulary has {vocab_size}; take fewer texts")
        answer = answer[:length]
        if is_timed:
            plain_s.append(say(model, np.array(ids, np.int32), answer, False)["seconds"])
        said = say(model, np.array(ids, np.int32), answer, True)
        lookup_s.append(said.pop("seconds"))
        for key, value in ({"tokens": len(answer)} | said).items():
            total[key] += value
    row: dict[str, Any] = {"kind": name, "texts": len(lookup_s), **total}
    row["tokens_per_forward"] = round(total["tokens"] / total["forwards"], 2)
    if is_timed:
        ratios = [a / b for a, b in zip(plain_s, lookup_s, strict=True)]
        row |= {
            "plain_s": [round(value, 2) for value in plain_s],
            "lookup_s": [round(value, 2) for value in lookup_s],
            "speedup": round(statistics.median(ratios), 2),
            "speedups": [round(ratio, 2) for ratio in ratios],
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--random", type=Path, help="checkpoint of the second question")
    parser.add_argument("--timed", type=Path, help="checkpoint of the third question's seconds")
    parser.add_argument("--quantize", type=int, help="bits, of both random checkpoints")
    parser.add_argument("--dtype", help="of both random checkpoints; float32 by default on a CPU")
    parser.add_argument("--tokenizer", type=Path, help="folder; the demo's by default")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1000, help="of an answer at most")
    parser.add_argument("--timed-tokens", type=int, default=100)
    parser.add_argument("--texts", type=int, default=5, help="timed texts of a kind")
    options = parser.parse_args()
    document: dict[str, Any] = {
        "benchmark": "lookup",
        "device": str(mx.default_device()),
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
        "mlx": version("mlx"),
    }

    def report(name: str, result: Any) -> None:
        document.setdefault(name, []).append(result)
        print(f"{name}: {json.dumps(result)}", flush=True)

    load_options = {"quantize": options.quantize, "dtype": options.dtype}
    if options.prompts:
        report("demo", compare_demo(options.prompts))
    tokenizer = Tokenizer.from_folder(options.tokenizer or find_checkpoint("demo"))
    if options.random:
        if options.prompts:
            report("random", compare_random(options.random, options.prompts, 64, **load_options))
        model, _ = load(options.random, check_limits=False)
        for kind in KINDS:
            row = measure_kind(
                kind,
                model,
                tokenizer,
                length=options.tokens,
                num_texts=None,
                characters=6000,
                is_timed=False,
            )
            report("counted", row)
    if options.timed:
        model, _ = load(options.timed, check_limits=False, **load_options)
        say(model, np.arange(100, 150, dtype=np.int32), [7] * 20, True)
        for kind in KINDS:
            row = measure_kind(
                kind,
                model,
                tokenizer,
                length=options.timed_tokens,
                num_texts=options.texts,
                characters=3000,
                is_timed=True,
            )
            report("timed", row)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
