"""Bundled sounds are what their answers say, and are the same every time."""

import re

import numpy as np
import pytest

from mlx_gemma4.evaluation.sounds import PLAYERS
from mlx_gemma4.processing.audio import SAMPLE_RATE, process_audio

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def play(name: str, seed: int) -> tuple[np.ndarray, str]:
    samples, _, answer = PLAYERS[name](np.random.default_rng(seed))
    return samples, answer


def pitch(samples: np.ndarray) -> float:
    """Return the loudest frequency in hertz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 16))
    return float(spectrum.argmax() * SAMPLE_RATE / (1 << 16))


@pytest.mark.parametrize("name", PLAYERS)
def test_the_same_seed_plays_the_same(name: str) -> None:
    (one, answer), (again, same) = play(name, 3), play(name, 3)
    assert np.array_equal(one, again)
    assert answer == same
    assert len({play(name, seed)[1] for seed in range(12)}) > 2


@pytest.mark.parametrize("name", PLAYERS)
def test_it_is_a_sound_of_a_few_seconds(name: str) -> None:
    for seed in range(6):
        samples, _ = play(name, seed)
        assert samples.dtype == np.float32
        assert np.abs(samples).max() == 0.5
        heard = process_audio(samples)
        assert 25 <= heard.num_soft_tokens <= 90
        assert heard.notes == ()


@pytest.mark.parametrize("seed", range(6))
def test_notes_go_the_way_that_the_answer_says(seed: int) -> None:
    samples, answer = play("notes", seed)
    length = int(0.3 * SAMPLE_RATE)
    pitches = [pitch(samples[k : k + length]) for k in range(0, len(samples), length)]
    assert NUMBERS[len(pitches)] in answer
    assert (np.diff(pitches) > 0).all() == ("higher" in answer)
    assert (np.diff(pitches) < 0).all() == ("lower" in answer)


@pytest.mark.parametrize("seed", range(6))
def test_a_chirp_starts_and_ends_where_the_answer_says(seed: int) -> None:
    samples, answer = play("chirp", seed)
    start, end = map(int, re.findall(r"about (\d+)", answer))
    assert pitch(samples[:800]) == pytest.approx(start, rel=0.15)
    assert pitch(samples[-800:]) == pytest.approx(end, rel=0.15)
    assert NUMBERS[len(samples) // SAMPLE_RATE] in answer


@pytest.mark.parametrize(("name", "silence_s"), [("bursts", 0.1), ("beat", 0.1)])
def test_as_many_are_heard_as_the_answer_says(name: str, silence_s: float) -> None:
    for seed in range(6):
        samples, answer = play(name, seed)
        loud = np.flatnonzero(np.abs(samples) > 0.05)
        count = 1 + np.count_nonzero(np.diff(loud) > silence_s * SAMPLE_RATE)
        assert re.search(rf"\b{NUMBERS[count]}\b", answer), answer
