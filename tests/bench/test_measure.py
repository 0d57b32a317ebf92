"""What is measured, in which order, and against which ceiling; no test looks at a clock."""

import time
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from fake_kernels import SIZES, fake_gpu, fake_kernel

from mlx_gemma4.api import load
from mlx_gemma4.bench import knobs
from mlx_gemma4.bench.chips import Chip
from mlx_gemma4.bench.facts import check_kernels, describe_model
from mlx_gemma4.bench.knobs import measure_knobs
from mlx_gemma4.bench.measure import Bench, Workload, measured, take_spans
from mlx_gemma4.bench.power import EnergyMeter
from mlx_gemma4.bench.report import Row
from mlx_gemma4.bench.starts import load_model, measure_starts
from mlx_gemma4.config import Config
from mlx_gemma4.errors import Gemma4Error
from mlx_gemma4.generation.lookup import PromptLookup
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.kernels import trial
from mlx_gemma4.memory import MemoryLimit
from mlx_gemma4.weights import open_checkpoint

WORK = Workload(
    prompts=(48,),
    depths=(64,),
    chunk=32,
    tokens=4,
    rounds=2,
    has_picture=True,
    has_sound=True,
    batches=(1, 3),
)
CEILING = Chip("as measured", 10.0, 2, 0.1)


def checkpoint_of(name: str):
    folder = find_checkpoint(name)
    return open_checkpoint(folder, Config.from_folder(folder))


@pytest.fixture(scope="module")
def facts():
    model, _ = load("demo")
    return describe_model(checkpoint_of("demo"), model, None, "q4")


def measure(facts, workload: Workload, limit_bytes: int | None = None) -> tuple[list[Row], Bench]:
    model, processor = load("demo")
    mx.eval(model.parameters())
    if limit_bytes is not None:
        model.memory_limit = MemoryLimit(limit_bytes, "this test allows")
    said: list[str] = []
    bench = Bench(model, processor, facts, workload, CEILING, said.append)
    rows = list(bench.rows())
    assert said
    return rows, bench


@pytest.fixture(scope="module")
def rows(facts) -> dict[str, Row]:
    """Return everything that can be measured of a loaded model, by label."""
    measured, bench = measure(facts, WORK)
    assert bench.notes == []
    assert len({row.key for row in measured}) == len(measured)
    return {row.label: row for row in measured}


def test_every_measure_has_its_rounds(rows) -> None:
    assert list(rows) == [
        "first token, warm",
        "first token, prefix hit",
        "picture, prepared",
        "picture, embedded",
        "first token, with a picture",
        "sound, prepared",
        "sound, embedded",
        "first token, with a sound",
        "prefill 48",
        "decode 4 after 48",
        "prefill 64",
        "decode 4 after 64",
        "prefill 32 after 64",
        "batch, 1 at a time",
        "batch, 3 at a time",
    ]
    assert {len(row.samples_s) for row in rows.values()} == {2}


def test_media_are_counted_in_their_own_units(rows) -> None:
    assert rows["picture, embedded"].amount == rows["picture, embedded"].length <= 70
    assert (rows["sound, prepared"].amount, rows["sound, prepared"].length) == (30, 750)


def test_all_answers_of_a_batch_count(rows) -> None:
    assert [rows[f"batch, {size} at a time"].amount for size in (1, 3)] == [4, 12]


def test_peaks_stand_beside_the_plan(rows, facts) -> None:
    row = rows["prefill 64"]
    assert facts.weights_bytes < row.peak_bytes < 1.5 * row.planned_bytes
    assert row.planned_bytes > facts.weights_bytes


def test_a_token_reads_the_decoder_and_what_it_sees(rows, facts) -> None:
    row = rows["decode 4 after 64"]
    # In float32 on the CPU: key and value of 256 in a sliding layer, rows of 640 in a global one.
    text = checkpoint_of("demo").config.text_config
    layers = [text.is_sliding(index) for index in range(text.num_hidden_layers)]
    context = 66
    cached = 4 * context * (sum(layers) * 2 * 256 + (len(layers) - sum(layers)) * 640)
    assert row.read_bytes == 4 * (facts.token_bytes + cached)
    assert row.reading_s == pytest.approx(row.read_bytes / 10e9)


@pytest.mark.parametrize(
    ("kv_bits", "kv_rows", "row_bytes"),
    [(8, "shared", 640 + 2 * 4), (16, "value", 512 * 4), (8, "value", 512 + 4)],
)
def test_a_token_reads_the_rows_that_the_cache_has(kv_bits, kv_rows, row_bytes) -> None:
    model, processor = load("demo", kv_bits=kv_bits, kv_rows=kv_rows)
    checkpoint = checkpoint_of("demo")
    facts = describe_model(checkpoint, model, None, None)
    assert (facts.kv_bits, facts.kv_rows) == (kv_bits, kv_rows)
    work = Workload(prompts=(64,), depths=(64,), chunk=8, tokens=4, rounds=1)
    bench = Bench(model, processor, facts, work, CEILING, lambda _: None)
    row = next(row for row in bench.rows() if row.measure == "decode")
    assert bench.notes == []
    text = checkpoint.config.text_config
    layers = [text.is_sliding(index) for index in range(text.num_hidden_layers)]
    cached = 66 * (4 * sum(layers) * 2 * 256 + (len(layers) - sum(layers)) * row_bytes)
    assert row.read_bytes == 4 * (facts.token_bytes + cached)


class SteadyMeter:
    """Stands for a meter of a machine that always takes 20 W."""

    shortest_s = 0.02

    def samples_j(self, spans):
        return tuple(20 * (stop - start) for start, stop in spans)


def test_settings_have_energy_and_are_long_enough(facts) -> None:
    model, processor = load("demo")
    work = Workload(prompts=(64,), depths=(600,), tokens=4, rounds=2)
    meter = cast(EnergyMeter, SteadyMeter())
    bench = Bench(model, processor, facts, work, CEILING, lambda _: None, meter)
    rows = {row.label: row for row in measure_knobs(bench, model, work, meter, lambda _: None)}
    assert list(rows) == [
        "prefill 600, chunks of 128",
        "prefill 600, chunks of 512",
        "request 16 after 64, quoting",
        "request 16 after 64, quoting, lookup",
    ]
    assert bench.notes == []
    assert all(row.power_w == pytest.approx(20) for row in rows.values())
    for row in rows.values():
        assert row.samples_j is not None
        assert len(row.samples_j) == 2
    small, large = (rows[f"prefill 600, chunks of {size}"] for size in (128, 512))
    assert small.read_bytes == 5 * facts.token_bytes
    assert large.read_bytes == 2 * facts.token_bytes


def test_a_sample_is_repeated_until_it_is_long_enough() -> None:
    spans, times = knobs._take_long_spans(lambda: time.sleep(0.01), 3, 0.05)
    assert len(spans) == 3
    assert all(stop - start >= 0.05 for start, stop in spans)
    assert max(times) <= 5
    found = measured([(0.0, 3.0), (5.0, 6.0)], cast(EnergyMeter, SteadyMeter()), [2, 1])
    assert found == {"samples_s": (1.5, 1.0), "samples_j": (30.0, 20.0)}


def test_an_answer_that_quotes_is_drafted(facts, monkeypatch) -> None:
    made: list[PromptLookup] = []

    class Watched(PromptLookup):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(knobs, "PromptLookup", Watched)
    model, processor = load("demo")
    work = Workload(prompts=(200,), depths=(8,), tokens=16, rounds=1)
    meter = cast(EnergyMeter, SteadyMeter())
    bench = Bench(model, processor, facts, work, CEILING, lambda _: None, meter)
    rows = list(measure_knobs(bench, model, work, meter, lambda _: None))
    assert {row.length for row in rows} == {64}
    # Of 64 tokens the first few have nothing before them to be found by.
    assert all(lookup.accepted_tokens > 48 for lookup in made)
    assert made


def test_reading_more_is_what_reading_all_takes_less_what_is_there(rows) -> None:
    whole, part = rows["prefill 64"], rows["prefill 32 after 64"]
    assert part.arithmetic_s is not None
    assert whole.arithmetic_s is not None
    assert whole.arithmetic_s / 2 < part.arithmetic_s < whole.arithmetic_s
    assert part.read_bytes == whole.read_bytes  # each is one chunk


def test_what_does_not_fit_is_left_out_with_a_note(facts) -> None:
    work = Workload(prompts=(16, 100_000), depths=(), tokens=2, rounds=1)
    rows, bench = measure(facts, work)
    assert "prefill 100,000" not in {row.label for row in rows}
    assert bench.notes == ["100,000 tokens were left out: the model's context is 8,192"]


def test_too_little_memory_is_a_note(facts) -> None:
    work = Workload(prompts=(16, 4000), depths=(), tokens=2, rounds=1)
    rows, bench = measure(facts, work, limit_bytes=mx.get_active_memory() + 50_000_000)
    assert "prefill 16" in {row.label for row in rows}
    assert "prefill 4,000" not in {row.label for row in rows}
    assert bench.notes[0].startswith("4,000 tokens were left out: this needs")


@pytest.mark.parametrize(
    ("quantize", "least", "most"),
    [(None, 16, 16), (4, 4.5, 8), (8, 8.5, 12)],  # the front ends stay as they are
)
def test_bits_are_those_of_the_weights(quantize, least, most) -> None:
    model, _ = load("demo", quantize=quantize)
    facts = describe_model(checkpoint_of("demo"), model, quantize, None)
    assert least <= facts.bits_per_weight <= most
    assert facts.dtype == ("float32" if mx.default_device().type == mx.cpu else "bfloat16")
    assert facts.token_bytes < facts.weights_bytes


def test_no_sample_is_the_first() -> None:
    calls: list[int] = []
    assert len(take_spans(lambda: calls.append(1), 3)) == 3
    assert len(calls) == 4


def test_kernels_are_checked_and_timed_anew(monkeypatch, tmp_path: Path) -> None:
    wrong = fake_kernel("wrong", kernel=lambda x: x)
    fake_gpu(monkeypatch, tmp_path, fake_kernel("fast", plain_s=0.003), wrong)
    monkeypatch.setattr(trial, "_THOROUGH_SAMPLES", 3)
    steps: list[tuple[int, int]] = []
    fast, failed = check_kernels(SIZES, lambda *step: steps.append(step))
    assert (fast.name, fast.is_on, fast.timings[0].label) == ("fast", True, "case 0")
    assert (failed.name, failed.is_on, failed.timings) == ("wrong", False, ())
    assert "failed its self-check" in failed.reason
    assert steps


def test_loading_is_measured_from_the_files(tiny_checkpoint: Path) -> None:
    model, _, row = load_model(
        str(tiny_checkpoint), {"dtype": "float32", "kv_bits": 8}, 1, lambda _: None
    )
    assert row.label == "load"
    assert len(row.samples_s) == 1
    assert (model.dtype, model.kv_bits) == (mx.float32, 8)


def test_a_cold_start_is_a_process_of_its_own() -> None:
    options = {"dtype": "float32", "quantize": None}
    rows = list(measure_starts("demo", options, 1, lambda _: None))
    assert [row.label for row in rows] == ["start, --help", "first token, cold"]


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    steps = measure_starts(str(tmp_path), {}, 1, lambda _: None)
    next(steps)
    with pytest.raises(Gemma4Error, match=r"config\.json"):
        next(steps)
