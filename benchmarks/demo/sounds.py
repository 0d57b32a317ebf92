"""Play the demo's sounds: telephone keys (DTMF) and melodies that rise or fall, 16 kHz mono."""

import random
from dataclasses import dataclass, field

import numpy as np

from benchmarks.demo.words import KEYS

SAMPLE_RATE = 16_000
LOW_HZ = (697, 770, 852, 941)
HIGH_HZ = (1209, 1336, 1477)
PAD = ("123", "456", "789", "*0#")
RAMP_SAMPLES = 80  # 5 ms in and out: no click


@dataclass
class Tone:
    """One key or note: from `start` to `end` in samples."""

    start: int
    end: int
    key: str = ""
    pitch_hz: float = 0.0


@dataclass
class Sound:
    """Samples [N] float32, -1 to 1, at 16 kHz, and what was played."""

    samples: np.ndarray
    tones: list[Tone] = field(default_factory=list)
    answer: str = ""


def key_frequencies(key: str) -> tuple[int, int]:
    row = next(r for r, keys in enumerate(PAD) if key in keys)
    return LOW_HZ[row], HIGH_HZ[PAD[row].index(key)]


def sine(rng: random.Random, hz: float, length: int) -> np.ndarray:
    return np.sin(2 * np.pi * hz / SAMPLE_RATE * np.arange(length) + rng.uniform(0, 2 * np.pi))


def shape_ends(wave: np.ndarray) -> np.ndarray:
    ramp = np.linspace(0, 1, RAMP_SAMPLES)
    wave[:RAMP_SAMPLES] *= ramp
    wave[-RAMP_SAMPLES:] *= ramp[::-1]
    return wave


def assemble(
    rng: random.Random, pieces: list[tuple[Tone, np.ndarray]], length: int
) -> tuple[np.ndarray, list[Tone]]:
    samples = np.zeros(length)
    for tone, wave in pieces:
        samples[tone.start : tone.end] += wave
    samples *= rng.uniform(0.1, 0.7) / max(1e-9, np.abs(samples).max())
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 1, length)
        samples += noise * 10 ** rng.uniform(-4, -2.3)
    # What a 16-bit file holds.
    samples = np.round(np.clip(samples, -1, 1) * 32767) / 32768
    return samples.astype(np.float32), [tone for tone, _ in pieces]


def play_keys(rng: random.Random, keys: str | None = None) -> Sound:
    """One to five keys, 100 to 220 ms each, 50 to 110 ms apart; at most two seconds."""
    keys = keys or "".join(rng.choices(KEYS, k=rng.randint(1, 5)))
    position = int(rng.uniform(0, 0.08) * SAMPLE_RATE)
    length, gap = (int(rng.uniform(*s) * SAMPLE_RATE) for s in ((0.10, 0.22), (0.05, 0.11)))
    pieces = []
    for key in keys:
        low, high = key_frequencies(key)
        wave = sine(rng, low, length) + rng.uniform(0.8, 1.25) * sine(rng, high, length)
        pieces.append((Tone(position, position + length, key=key), shape_ends(wave)))
        position += length + gap
    total = position - gap + int(rng.uniform(0, 0.1) * SAMPLE_RATE)
    samples, tones = assemble(rng, pieces, total)
    return Sound(samples, tones, keys)


def play_melody(rng: random.Random, direction: str | None = None) -> Sound:
    """Three to six notes of 120 to 260 ms that rise or fall by one to four semitones each."""
    direction = direction or rng.choice(("up", "down"))
    count = rng.randint(3, 6)
    length = int(rng.uniform(0.12, 0.26) * SAMPLE_RATE)
    semitones = np.cumsum([rng.randint(1, 4) for _ in range(count)])
    if direction == "down":
        semitones = semitones[::-1]
    base_hz = rng.uniform(220, 440)
    overtones = [rng.uniform(0, 0.4), rng.uniform(0, 0.2)]
    position = int(rng.uniform(0, 0.08) * SAMPLE_RATE)
    pieces = []
    for step in semitones:
        hz = base_hz * 2 ** (step / 12)
        wave = sine(rng, hz, length)
        for k, level in enumerate(overtones):
            wave += level * sine(rng, hz * (k + 2), length)
        pieces.append((Tone(position, position + length, pitch_hz=hz), shape_ends(wave)))
        position += length
    samples, tones = assemble(rng, pieces, position + int(rng.uniform(0, 0.08) * SAMPLE_RATE))
    return Sound(samples, tones, direction)
