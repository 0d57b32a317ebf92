"""The bundled sounds: notes, a chirp, bursts of noise, a beat, a chord, two tones in turn.

Each is synthesized from a generator, so that the same seed gives the same sound, and comes with an
answer that tells what is heard.
"""

from collections.abc import Callable, Mapping

import numpy as np

from mlx_gemma4.processing.audio import SAMPLE_RATE

Sound = tuple[np.ndarray, str, str]
"""Samples [n] float32 in -1..1 at 16 kHz, a question, and the answer."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_QUESTION = "What do you hear?"
_RAMP_S = 0.01


def play_notes(rng: np.random.Generator) -> Sound:
    """Play notes that rise or fall."""
    count, is_rising = int(rng.integers(4, 8)), bool(rng.integers(2))
    steps = np.cumsum(rng.integers(1, 4, count))
    notes = 262 * 2 ** (np.sort(steps)[:: 1 if is_rising else -1] / 12)
    sound = np.concatenate([_tone(float(hertz), 0.3, overtones=(0.4, 0.15)) for hertz in notes])
    way, last = ("higher", "highest") if is_rising else ("lower", "lowest")
    answer = (
        f"I hear {_NUMBERS[count]} notes of the same length, one after the other. Each note is "
        f"{way} than the one before, so that the last one is the {last}."
    )
    return _finish(sound), _QUESTION, answer


def play_chirp(rng: np.random.Generator) -> Sound:
    """Play one tone that glides from one pitch to another."""
    low, high = float(rng.integers(150, 300)), float(rng.integers(1500, 3000))
    is_rising, seconds = bool(rng.integers(2)), int(rng.integers(1, 4))
    start, end = (low, high) if is_rising else (high, low)
    t = _times(seconds)
    phase = 2 * np.pi * start * seconds / np.log(end / start) * ((end / start) ** (t / seconds) - 1)
    way = "rises" if is_rising else "falls"
    answer = (
        f"I hear a single tone that glides without a break. It {way} from about {start:.0f} to "
        f"about {end:.0f} hertz, and takes {_NUMBERS[seconds]} second{'s' * (seconds > 1)} for it."
    )
    return _finish(_ramped(np.sin(phase))), _QUESTION, answer


def play_bursts(rng: np.random.Generator) -> Sound:
    """Play short bursts of noise with silence in between."""
    count = int(rng.integers(3, 8))
    parts: list[np.ndarray] = []
    for _ in range(count):
        parts.append(_ramped(rng.uniform(-1, 1, len(_times(0.12)))))
        parts.append(np.zeros(len(_times(float(rng.uniform(0.15, 0.35))))))
    answer = (
        f"I hear {_NUMBERS[count]} short bursts of noise, like a brush on a drum, with a moment of "
        "silence after each of them. There is no melody and no voice."
    )
    return _finish(np.concatenate(parts)), _QUESTION, answer


def play_beat(rng: np.random.Generator) -> Sound:
    """Play a beat in which every third or fourth click is accented."""
    tempo, meter = int(rng.choice([120, 150, 180])), int(rng.integers(3, 5))
    count = 2 * meter
    sound = np.zeros(len(_times(60 / tempo * count)))
    for beat in range(count):
        is_accent = beat % meter == 0
        click = _tone(1600 if is_accent else 900, 0.05) * (1.0 if is_accent else 0.5)
        start = int(beat * 60 / tempo * SAMPLE_RATE)
        sound[start : start + len(click)] += click
    answer = (
        f"I hear a metronome at {tempo} beats per minute. Every "
        f"{'third' if meter == 3 else 'fourth'} click is higher and louder than the others. There "
        f"are {_NUMBERS[count]} clicks in all."
    )
    return _finish(sound), _QUESTION, answer


def play_chord(rng: np.random.Generator) -> Sound:
    """Play the three notes of a chord together, fading away."""
    third, mood = ((4, "major, and sounds bright"), (3, "minor, and sounds sad"))[rng.integers(2)]
    root, seconds = float(rng.uniform(180, 330)), 2
    notes = (root, root * 2 ** (third / 12), root * 2 ** (7 / 12))
    sound = sum(_tone(hertz, seconds, overtones=(0.3,)) for hertz in notes)
    sound = sound * np.exp(-2 * _times(seconds))
    answer = (
        f"I hear three notes that are struck together and fade away within {_NUMBERS[seconds]} "
        f"seconds. They make a chord, which is {mood}. Its lowest note has {root:.0f} hertz."
    )
    return _finish(np.asarray(sound)), _QUESTION, answer


def play_siren(rng: np.random.Generator) -> Sound:
    """Play two tones in turn, over soft noise."""
    low = float(rng.uniform(380, 460))
    high, count = low * float(rng.uniform(1.3, 1.5)), int(rng.integers(2, 5))
    pair = np.concatenate([_tone(low, 0.35), _tone(high, 0.35)])
    sound = np.tile(pair, count)
    sound += 0.05 * rng.standard_normal(len(sound))
    answer = (
        f"I hear a siren with two tones, {low:.0f} and {high:.0f} hertz, first the low one and "
        f"then the high one, {_NUMBERS[count]} times in turn. Behind it there is a soft hiss."
    )
    return _finish(sound), _QUESTION, answer


PLAYERS: Mapping[str, Callable[[np.random.Generator], Sound]] = {
    "notes": play_notes,
    "chirp": play_chirp,
    "bursts": play_bursts,
    "beat": play_beat,
    "chord": play_chord,
    "siren": play_siren,
}


def _times(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _tone(hertz: float, seconds: float, overtones: tuple[float, ...] = ()) -> np.ndarray:
    """Return a sine, and how loud each of its overtones is."""
    t = _times(seconds)
    levels = (1.0, *overtones)
    parts = [level * np.sin(2 * np.pi * hertz * k * t) for k, level in enumerate(levels, 1)]
    return _ramped(np.sum(parts, axis=0))


def _ramped(wave: np.ndarray) -> np.ndarray:
    """Return it without a click at either end."""
    ramp = np.linspace(0, 1, int(_RAMP_S * SAMPLE_RATE))
    wave[: len(ramp)] *= ramp
    wave[-len(ramp) :] *= ramp[::-1]
    return wave


def _finish(wave: np.ndarray) -> np.ndarray:
    """Return what a 16-bit file at half of full loudness would hold."""
    loudest = float(np.abs(wave).max())
    return (np.round(wave / loudest * 16384) / 32768).astype(np.float32)
