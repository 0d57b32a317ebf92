"""How fast a loaded model runs here: each measure a row, with the ceiling beside it.

Everything is run once before it counts; every time ends when the result is there; the median of
the rounds counts, and their spread tells how far it can be trusted.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_gemma4.api import stream_generate
from mlx_gemma4.bench.chips import Chip
from mlx_gemma4.bench.facts import ModelFacts
from mlx_gemma4.bench.report import Row
from mlx_gemma4.bench.roofline import (
    attention_operations,
    decode_tokens_per_s,
    global_bytes,
    matrices,
    prefill_tokens_per_s,
    sliding_bytes,
)
from mlx_gemma4.errors import InputError, MemoryLimitError
from mlx_gemma4.generation.batch import Batch
from mlx_gemma4.generation.batch_row import BatchFailure, BatchRequest
from mlx_gemma4.generation.generate import generate_step, prefill
from mlx_gemma4.generation.reading import plan_reading
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.memory import MemoryPlan
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.processing.processor import Processor

QUESTION = "What is this?"

# Positions that follow a cached prefix, as a short question does.
_FOLLOWING = 16
_PICTURE_PIXELS = (1024, 1536)  # height, width
_SOUND_S, _SOUND_RATE = 30, 44_100
_FIRST_ORDINARY_ID = 300  # below are tokens with a meaning of their own

# Called with what is going on.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    """What to measure.

    Attributes:
        prompts: Lengths of prompts that are read, and that an answer follows.
        depths: Positions after which an answer follows, or `chunk` more are read.
        chunk: So many.
        tokens: Length of an answer.
        rounds: Samples of each row.
        has_picture: Whether a picture is shown.
        has_sound: Whether a sound is played.
        batches: Answers that are written at a time.
    """

    prompts: tuple[int, ...] = (512, 2048, 8192)
    depths: tuple[int, ...] = (2048,)
    chunk: int = 512
    tokens: int = 64
    rounds: int = 5
    has_picture: bool = False
    has_sound: bool = False
    batches: tuple[int, ...] = ()


QUICK = Workload(prompts=(128, 512), depths=(512,), chunk=128, tokens=16, rounds=3)


class Bench:
    """A loaded model under measure.

    Attributes:
        notes: What was left out, one line each.

    Args:
        model: With its parameters in memory.
        processor: Of the same checkpoint.
        facts: About it.
        workload: What to measure.
        ceiling: What the machine allows.
        progress: Called with what is going on.
    """

    def __init__(
        self,
        model: Gemma4,
        processor: Processor,
        facts: ModelFacts,
        workload: Workload,
        ceiling: Chip,
        progress: Progress,
    ) -> None:
        self.notes: list[str] = []
        self._model, self._processor, self._facts = model, processor, facts
        self._workload, self._ceiling, self._progress = workload, ceiling, progress
        self._text = model.config.text_config

    def rows(self) -> Iterator[Row]:
        """Yield each row as soon as it is measured."""
        work = self._workload
        yield self._measure_answer("warm", {})
        yield from self._measure_after("first token", min(work.prompts), _FOLLOWING)
        if work.has_picture:
            yield from self._measure_medium("picture")
        if work.has_sound:
            yield from self._measure_medium("sound")
        for length in sorted({*work.prompts, *work.depths}):
            yield from self._measure_prompt(length)
        for depth in sorted(work.depths):
            yield from self._measure_after("prefill", depth, work.chunk)
        for size in work.batches:
            yield from self._measure_batch(size)

    def _measure_prompt(self, length: int) -> Iterator[Row]:
        """Yield how fast a prompt is read, and how fast an answer follows it."""
        work, plan = self._workload, self._plan(length, self._workload.tokens)
        if plan is None:
            return
        label = f"{length:,} tokens"
        self._progress(f"{label}, warm-up")
        self._read(min(length, plan.prefill_step_size), 2)
        mx.clear_cache()
        mx.reset_peak_memory()
        read_s, answer_s = [], []
        for turn in range(work.rounds):
            self._progress(f"{label}, round {turn + 1} of {work.rounds}")
            start, *times = self._read(length, work.tokens + 1)
            read_s.append(times[0] - start)
            answer_s.append(times[-1] - times[0])
        yield Row(
            "prefill",
            "",
            length,
            0,
            length,
            "tokens",
            tuple(read_s),
            *self._least_prefill(0, length, plan),
            peak_bytes=mx.get_peak_memory(),
            planned_bytes=plan.total_bytes,
        )
        yield Row(
            "decode",
            "",
            work.tokens,
            length,
            work.tokens,
            "tokens",
            tuple(answer_s),
            *self._least_decode(length),
        )

    def _measure_after(
        self, measure: Literal["first token", "prefill"], depth: int, length: int
    ) -> Iterator[Row]:
        """Yield how long it takes to read `length` positions, and choose a token, behind others."""
        plan, rounds = self._plan(depth, length), self._workload.rounds
        if plan is None:
            return
        inputs, samples = self._inputs(length), []
        for turn in range(rounds + 1):
            self._progress(f"{length:,} after {depth:,} tokens, round {turn} of {rounds}")
            cache = self._model.make_cache()
            mx.eval(prefill(self._inputs(depth), self._model, cache))
            mx.synchronize()
            start = time.perf_counter()
            for _ in generate_step(inputs, self._model, max_tokens=1, prompt_cache=cache):
                samples.append(time.perf_counter() - start)
        counted, least = tuple(samples[1:]), self._least_prefill(depth, length, plan)
        if measure == "prefill":
            yield Row("prefill", "", length, depth, length, "tokens", counted, *least)
        else:
            yield Row("first token", "prefix hit", length, depth, 1, "", counted, *least)

    def _measure_batch(self, size: int) -> Iterator[Row]:
        """Yield how fast so many answers come together, when all their prompts have been read."""
        work, length = self._workload, min(self._workload.prompts)
        samples, amount = list[float](), 0
        for turn in range(work.rounds + 1):
            self._progress(f"{size} answers at a time, round {turn} of {work.rounds}")
            steps: list[tuple[float, int]] = []
            batch = Batch(
                self._model,
                self._processor.tokenizer,
                eos_token_ids=(),
                batch_size=size,
                progress=lambda tokens, steps=steps: steps.append((time.perf_counter(), tokens)),
            )
            requests = (
                BatchRequest(key=key, inputs=self._inputs(length), max_tokens=work.tokens + 1)
                for key in range(size)
            )
            for done in batch.answer(requests):
                if isinstance(done, BatchFailure):
                    self.notes.append(f"{size} answers at a time were left out: {done.error}")
                    return
            if batch.is_short_of_memory:
                self.notes.append(f"{size} answers at a time: memory was short, fewer were")
            samples.append(steps[-1][0] - steps[0][0])
            amount = steps[-1][1] - steps[0][1]
        counted = tuple(samples[1:])
        yield Row("batch", f"{size} at a time", work.tokens, length, amount, "tokens", counted)

    def _measure_medium(self, medium: Literal["picture", "sound"]) -> Iterator[Row]:
        """Yield how fast a medium is prepared and embedded, and how long its question takes."""
        media: dict[str, Any] = {"images": [_draw_noise()]}
        if medium == "sound":
            media = {"audio": [(_play_tones(), _SOUND_RATE)]}
        inputs = self._processor(QUESTION, **media)
        soft_tokens = sum(span.length for span in inputs.spans)
        amount, unit = soft_tokens, "soft tokens"
        if medium == "sound":
            amount, unit = _SOUND_S, "seconds of sound"
        for case, function in (
            ("prepared", lambda: self._processor(QUESTION, **media)),
            ("embedded", lambda: mx.eval([part for _, part in self._model.soft_tokens(inputs)])),
        ):
            self._progress(f"{medium}, {case}")
            samples = take_samples(function, self._workload.rounds)
            yield Row(medium, case, soft_tokens, 0, amount, unit, samples)
        yield self._measure_answer(f"with a {medium}", media)

    def _measure_answer(self, case: str, media: dict[str, Any]) -> Row:
        """Return how long the first token of a question takes, all of the way."""
        self._progress(f"first token, {case}")
        ask = partial(
            stream_generate, self._model, self._processor, QUESTION, max_tokens=1, temp=0, **media
        )
        samples = take_samples(lambda: list(ask()), self._workload.rounds)
        return Row("first token", case, len(self._processor(QUESTION, **media)), 0, 1, "", samples)

    def _read(self, length: int, tokens: int) -> list[float]:
        """Read a prompt and answer it; return when it began, and when each token was there."""
        inputs = self._inputs(length)
        mx.synchronize()
        times = [time.perf_counter()]
        for _ in generate_step(inputs, self._model, max_tokens=tokens):
            times.append(time.perf_counter())
        return times

    def _inputs(self, length: int) -> ModelInputs:
        """Return a prompt of ordinary tokens, the same in every run."""
        first = min(_FIRST_ORDINARY_ID, self._text.vocab_size // 2)
        ids = np.random.default_rng(0).integers(first, self._text.vocab_size, length)
        return ModelInputs.from_ids(ids)

    def _plan(self, length: int, tokens: int) -> MemoryPlan | None:
        """Return how a prompt is read that so many more follow; None, and a note, if it cannot."""
        most = self._text.max_position_embeddings
        if length + tokens > most:
            self.notes.append(f"{length:,} tokens were left out: the model's context is {most:,}")
            return None
        inputs, cache = self._inputs(length), self._model.make_cache()
        try:
            return plan_reading(inputs, self._model, cache, max_tokens=tokens)
        except (InputError, MemoryLimitError) as error:
            self.notes.append(f"{length:,} tokens were left out: {error}")
            return None

    def _least_decode(self, depth: int) -> tuple[float, float, int]:
        """Return the least seconds of an answer by bandwidth and arithmetic, and its bytes."""
        tokens, item_bytes = self._workload.tokens, self._model.dtype.size
        context = depth + tokens // 2
        seen = min(context, self._text.sliding_window)
        operations = sum(attention_operations(self._text, window=seen, context=context))
        operations += 2 * sum(count for _, count in matrices(self._text))
        read_bytes = self._facts.token_bytes + sliding_bytes(self._text, context, item_bytes)
        read_bytes += global_bytes(self._text, context, item_bytes, rows="shared")
        reading_s = tokens / decode_tokens_per_s(self._ceiling, read_bytes)
        arithmetic_s = tokens * operations / (self._ceiling.vector_tflops * 1e12)
        return reading_s, arithmetic_s, round(tokens * read_bytes)

    def _least_prefill(self, depth: int, length: int, plan: MemoryPlan) -> tuple[float, float, int]:
        """Return the same for reading a prompt: every chunk reads every matrix."""

        def arithmetic_s(positions: int) -> float:
            if not positions:
                return 0.0
            return positions / prefill_tokens_per_s(self._ceiling, self._text, positions)

        read_bytes = -(-length // plan.prefill_step_size) * self._facts.token_bytes
        seconds = arithmetic_s(depth + length) - arithmetic_s(depth)
        return read_bytes / self._ceiling.bandwidth, seconds, read_bytes


def take_samples(function: Callable[[], object], rounds: int) -> tuple[float, ...]:
    """Return how many seconds a function takes, without the first time."""
    seconds = []
    for _ in range(rounds + 1):
        mx.synchronize()
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return tuple(seconds[1:])


def _draw_noise() -> np.ndarray:
    """Return a picture [H, W, 3] uint8 that no decoder or cache makes easy."""
    return np.random.default_rng(0).integers(0, 256, (*_PICTURE_PIXELS, 3), np.uint8)


def _play_tones() -> np.ndarray:
    """Return a sound [n, 2] float32 that has to be mixed and resampled."""
    times = np.arange(_SOUND_S * _SOUND_RATE, dtype=np.float32) / _SOUND_RATE
    return 0.3 * np.stack([np.sin(2 * np.pi * pitch * times) for pitch in (440, 660)], axis=1)
