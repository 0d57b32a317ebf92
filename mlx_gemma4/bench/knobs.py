"""The same work with other settings: what chunks of a prompt, and drafts, are worth in energy.

A sample repeats its work until it is long enough for its energy to be told, so that these rows
have one on any machine; seconds and joules are those of one time.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx

from mlx_gemma4.bench.measure import Bench, Progress, Workload, measured
from mlx_gemma4.bench.power import EnergyMeter, Span
from mlx_gemma4.bench.report import Row
from mlx_gemma4.errors import MemoryLimitError
from mlx_gemma4.generation.generate import generate_step, prefill
from mlx_gemma4.generation.lookup import PromptLookup
from mlx_gemma4.generation.speculation import speculative_generate_step
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.model.gemma4 import Gemma4

STEP_SIZES = (128, 512, 2048)

_LARGE = 1000.0  # far above any logit


def measure_knobs(
    bench: Bench, model: Gemma4, workload: Workload, meter: EnergyMeter, progress: Progress
) -> Iterator[Row]:
    """Yield the rows of each setting.

    Args:
        bench: Of the same model.
        model: With its parameters in memory.
        workload: The longest of its depths is the prompt; the shortest of its prompts is quoted.
        meter: Of energy.
        progress: Called with what is going on.
    """
    rounds = workload.rounds
    length = max(workload.depths)
    for step_size in STEP_SIZES:
        plan = bench.plan(length, 1) if step_size <= length else None
        if plan is None:
            continue
        progress(f"{length:,} tokens in chunks of {step_size:,}")
        read = partial(_read_prompt, model, bench.inputs(length), step_size)
        try:
            spans, times = _take_long_spans(read, rounds, meter.shortest_s)
        except MemoryLimitError as error:
            bench.notes.append(f"chunks of {step_size:,} were left out: {error}")
            continue
        yield Row(
            "prefill",
            f"chunks of {step_size:,}",
            length,
            0,
            length,
            "tokens",
            **bench.least_prefill(0, length, step_size),
            **measured(spans, meter, times),
        )
    prompt = bench.inputs(min(workload.prompts))
    answer = prompt.input_ids[len(prompt) // 4 :][: 4 * workload.tokens].tolist()
    if bench.plan(len(prompt), len(answer)) is None:
        return
    for case, has_lookup in (("quoting", False), ("quoting, lookup", True)):
        progress(f"request, {case}")
        quote = partial(_quote, model, prompt, answer, has_lookup)
        spans, times = _take_long_spans(quote, rounds, meter.shortest_s)
        found = measured(spans, meter, times)
        yield Row("request", case, len(answer), len(prompt), len(answer), "tokens", **found)


def _read_prompt(model: Gemma4, inputs: ModelInputs, step_size: int) -> None:
    mx.eval(prefill(inputs, model, model.make_cache(), prefill_step_size=step_size))


def _quote(model: Gemma4, inputs: ModelInputs, answer: list[int], has_lookup: bool) -> None:
    """Read a prompt, and answer with a part of it: a good model would, and this one is made to."""

    def insist(tokens: mx.array, logits: mx.array) -> mx.array:
        place = min(tokens.shape[0] - len(inputs), len(answer) - 1)
        return logits.at[:, answer[place]].add(_LARGE)

    if has_lookup:
        steps = speculative_generate_step(
            inputs,
            model,
            PromptLookup(inputs),
            max_tokens=len(answer),
            logits_processors=[insist],
        )
    else:
        steps = generate_step(inputs, model, max_tokens=len(answer), logits_processors=[insist])
    for _ in steps:
        pass


def _take_long_spans(
    function: Callable[[], object], rounds: int, shortest_s: float
) -> tuple[list[Span], list[int]]:
    """Return when a function ran over and over, and how often in each span."""
    function()
    spans: list[Span] = []
    times: list[int] = []
    for _ in range(rounds):
        start = stop = time.perf_counter()
        count = 0
        while not count or stop - start < shortest_s:
            function()
            count, stop = count + 1, time.perf_counter()
        spans.append((start, stop))
        times.append(count)
    return spans, times
