"""How fast a loaded model runs here: each measure a row, with the ceiling beside it.

Everything is run once before it counts; every time ends when the result is there; the median of
the rounds counts, and their spread tells how far it can be trusted.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_gemma4.api import stream_generate
from mlx_gemma4.bench.chips import Chip
from mlx_gemma4.bench.facts import ModelFacts
from mlx_gemma4.bench.power import EnergyMeter, Span
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
from mlx_gemma4.memory import MemoryPlan, Reading
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
        meter: Of energy, if it can be read.
    """

    def __init__(
        self,
        model: Gemma4,
        processor: Processor,
        facts: ModelFacts,
        workload: Workload,
        ceiling: Chip,
        progress: Progress,
        meter: EnergyMeter | None = None,
    ) -> None:
        self.notes: list[str] = []
        self._model, self._processor, self._facts = model, processor, facts
        self._workload, self._ceiling, self._progress = workload, ceiling, progress
        self._meter, self._text = meter, model.config.text_config

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
        work, plan = self._workload, self.plan(length, self._workload.tokens)
        if plan is None:
            return
        label = f"{length:,} tokens"
        self._progress(f"{label}, warm-up")
        self._read(min(length, plan.prefill_step_size), 2)
        mx.clear_cache()
        mx.reset_peak_memory()
        reads, answers = list[Span](), list[Span]()
        for turn in range(work.rounds):
            self._progress(f"{label}, round {turn + 1} of {work.rounds}")
            times = self._read(length, work.tokens + 1)
            reads.append((times[0], times[1]))
            answers.append((times[1], times[-1]))
        yield Row(
            "prefill",
            "",
            length,
            0,
            length,
            "tokens",
            peak_bytes=mx.get_peak_memory(),
            planned_bytes=plan.total_bytes,
            **self.least_prefill(0, length, plan.prefill_step_size),
            **measured(reads, self._meter),
        )
        yield Row(
            "decode",
            "",
            work.tokens,
            length,
            work.tokens,
            "tokens",
            **self._least_decode(length),
            **measured(answers, self._meter),
        )

    def _measure_after(
        self, measure: Literal["first token", "prefill"], depth: int, length: int
    ) -> Iterator[Row]:
        """Yield how long it takes to read `length` positions, and choose a token, behind others."""
        plan, rounds = self.plan(depth, length), self._workload.rounds
        if plan is None:
            return
        inputs, spans = self.inputs(length), list[Span]()
        for turn in range(rounds + 1):
            self._progress(f"{length:,} after {depth:,} tokens, round {turn} of {rounds}")
            cache = self._model.make_cache()
            mx.eval(prefill(self.inputs(depth), self._model, cache))
            mx.synchronize()
            start = time.perf_counter()
            for _ in generate_step(inputs, self._model, max_tokens=1, prompt_cache=cache):
                spans.append((start, time.perf_counter()))
        found = self.least_prefill(depth, length, plan.prefill_step_size)
        found |= measured(spans[1:], self._meter)
        if measure == "prefill":
            yield Row("prefill", "", length, depth, length, "tokens", **found)
        else:
            yield Row("first token", "prefix hit", length, depth, 1, "", **found)

    def _measure_batch(self, size: int) -> Iterator[Row]:
        """Yield how fast so many answers come together, when all their prompts have been read."""
        work, length = self._workload, min(self._workload.prompts)
        spans, amount = list[Span](), 0
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
                BatchRequest(key=key, inputs=self.inputs(length), max_tokens=work.tokens + 1)
                for key in range(size)
            )
            for done in batch.answer(requests):
                if isinstance(done, BatchFailure):
                    self.notes.append(f"{size} answers at a time were left out: {done.error}")
                    return
            if batch.is_short_of_memory:
                self.notes.append(f"{size} answers at a time: memory was short, fewer were")
            spans.append((steps[0][0], steps[-1][0]))
            amount = steps[-1][1] - steps[0][1]
        found = measured(spans[1:], self._meter)
        yield Row("batch", f"{size} at a time", work.tokens, length, amount, "tokens", **found)

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
            spans = take_spans(function, self._workload.rounds)
            yield Row(medium, case, soft_tokens, 0, amount, unit, **measured(spans, self._meter))
        yield self._measure_answer(f"with a {medium}", media)

    def _measure_answer(self, case: str, media: dict[str, Any]) -> Row:
        """Return how long the first token of a question takes, all of the way."""
        self._progress(f"first token, {case}")
        ask = partial(
            stream_generate, self._model, self._processor, QUESTION, max_tokens=1, temp=0, **media
        )
        spans = take_spans(lambda: list(ask()), self._workload.rounds)
        length = len(self._processor(QUESTION, **media))
        return Row("first token", case, length, 0, 1, "", **measured(spans, self._meter))

    def _read(self, length: int, tokens: int) -> list[float]:
        """Read a prompt and answer it; return when it began, and when each token was there."""
        inputs = self.inputs(length)
        mx.synchronize()
        times = [time.perf_counter()]
        for _ in generate_step(inputs, self._model, max_tokens=tokens):
            times.append(time.perf_counter())
        return times

    def inputs(self, length: int) -> ModelInputs:
        """Return a prompt of ordinary tokens, the same in every run."""
        first = min(_FIRST_ORDINARY_ID, self._text.vocab_size // 2)
        ids = np.random.default_rng(0).integers(first, self._text.vocab_size, length)
        return ModelInputs.from_ids(ids)

    def plan(self, length: int, tokens: int) -> MemoryPlan | None:
        """Return how a prompt is read that so many more follow; None, and a note, if it cannot."""
        most = self._text.max_position_embeddings
        if length + tokens > most:
            self.notes.append(f"{length:,} tokens were left out: the model's context is {most:,}")
            return None
        inputs, cache = self.inputs(length), self._model.make_cache()
        try:
            return plan_reading(inputs, self._model, cache, max_tokens=tokens)
        except (InputError, MemoryLimitError) as error:
            self.notes.append(f"{length:,} tokens were left out: {error}")
            return None

    def _least_decode(self, depth: int) -> dict[str, Any]:
        """Return the least seconds of an answer by bandwidth and arithmetic, and its bytes."""
        tokens, item_bytes = self._workload.tokens, self._model.dtype.size
        context = depth + tokens // 2
        seen = min(context, self._text.sliding_window)
        operations = sum(attention_operations(self._text, window=seen, context=context))
        operations += 2 * sum(count for _, count in matrices(self._text))
        read_bytes = self._facts.token_bytes + sliding_bytes(self._text, context, item_bytes)
        kind = self._model.kv_rows, self._facts.kv_bits or Reading().kv_bits
        read_bytes += global_bytes(self._text, context, item_bytes, *kind)
        reading_s = tokens / decode_tokens_per_s(self._ceiling, read_bytes)
        arithmetic_s = tokens * operations / (self._ceiling.vector_tflops * 1e12)
        return {
            "reading_s": reading_s,
            "arithmetic_s": arithmetic_s,
            "read_bytes": round(tokens * read_bytes),
        }

    def least_prefill(self, depth: int, length: int, step_size: int) -> dict[str, Any]:
        """Return the same for reading a prompt: every chunk reads every matrix."""

        def arithmetic_s(positions: int) -> float:
            if not positions:
                return 0.0
            return positions / prefill_tokens_per_s(self._ceiling, self._text, positions)

        read_bytes = -(-length // step_size) * self._facts.token_bytes
        return {
            "reading_s": read_bytes / self._ceiling.bandwidth,
            "arithmetic_s": arithmetic_s(depth + length) - arithmetic_s(depth),
            "read_bytes": read_bytes,
        }


def take_spans(function: Callable[[], object], rounds: int) -> list[Span]:
    """Return when a function ran, without the first time."""
    spans = list[Span]()
    for _ in range(rounds + 1):
        mx.synchronize()
        start = time.perf_counter()
        function()
        spans.append((start, time.perf_counter()))
    return spans[1:]


def measured(
    spans: Sequence[Span], meter: EnergyMeter | None, times: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return the samples of a row: seconds, and joules where they are read.

    Args:
        spans: One a round.
        meter: Of energy.
        times: How often it was done in each span; None is once.
    """
    counts = times or [1] * len(spans)
    seconds = ((stop - start) / n for (start, stop), n in zip(spans, counts, strict=True))
    joules = meter and meter.samples_j(spans)
    return {
        "samples_s": tuple(seconds),
        "samples_j": joules and tuple(j / n for j, n in zip(joules, counts, strict=True)),
    }


def _draw_noise() -> np.ndarray:
    """Return a picture [H, W, 3] uint8 that no decoder or cache makes easy."""
    return np.random.default_rng(0).integers(0, 256, (*_PICTURE_PIXELS, 3), np.uint8)


def _play_tones() -> np.ndarray:
    """Return a sound [n, 2] float32 that has to be mixed and resampled."""
    times = np.arange(_SOUND_S * _SOUND_RATE, dtype=np.float32) / _SOUND_RATE
    return 0.3 * np.stack([np.sin(2 * np.pi * pitch * times) for pitch in (440, 660)], axis=1)
