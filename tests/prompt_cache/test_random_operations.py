"""Random sequences of operations on prompts: always the logits of the path without a cache."""

from collections import Counter

import numpy as np
import pytest
from closeness import difference
from narrow_network import narrow_network
from prompt_parts import join, picture, read, sound, step_on, text

from mlx_gemma4.api import load
from mlx_gemma4.cache import trim_prompt_cache
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.prompt_cache.archive import open_archive
from mlx_gemma4.prompt_cache.fingerprint import Fingerprint
from mlx_gemma4.prompt_cache.keys import last_cut
from mlx_gemma4.prompt_cache.stops import Spacing
from mlx_gemma4.prompt_cache.store import PromptCacheStore

RELATIVE_RMS = 2e-5
TURN = 24
OPERATIONS = ("say", "look", "listen", "cut", "answer", "reject", "interrupt", "fork", "restart")


class Walk:
    """One store, the prompts said so far, and what has been done.

    Args:
        model: Whose logits are compared.
        folder: Of the archive.
        seed: Of everything random.
        longest: Positions of a prompt at most.
    """

    def __init__(self, model, folder, seed, longest):
        self.rng = np.random.default_rng(seed)
        self.model, self.longest = model, longest
        self.counts = Counter()
        self.known = self.read = 0
        self.spacing = Spacing(*(int(self.rng.choice(s)) for s in ((40, 90), (15, 60), (1, 25))))
        self.is_file = bool(self.rng.integers(2))
        self.place = folder / ("kept.safetensors" if self.is_file else "kept")
        self.max_bytes = int(self.rng.choice([0, 1 << 20, 1 << 30]))
        self.fingerprint = Fingerprint.of(model, model.make_cache)
        self.prompts = [self.new_text(5, 60)]
        self.restart()

    def new_text(self, least, most):
        ids = text(self.rng, int(self.rng.integers(least, most))).input_ids
        ids[0] = TURN
        return ModelInputs.from_ids(ids)

    def restart(self):
        archive = open_archive(
            self.place, self.fingerprint, self.model.make_cache, spacing=self.spacing
        )
        self.store = PromptCacheStore(
            self.model.make_cache,
            spacing=self.spacing,
            max_bytes=self.max_bytes,
            turn_token_id=TURN,
            archive=archive,
        )

    def fetch(self, prompt):
        reading = self.store.fetch(prompt)
        assert {c.offset for c in reading.prompt_cache} == {reading.cached_tokens}
        self.known += reading.cached_tokens
        return reading

    def check(self, logits, prompt):
        plain = np.array(self.model(prompt))[-len(logits) :]
        bars = RELATIVE_RMS, 1e-6
        if self.model.kv_bits == 8:
            # Rows were rounded, whichever way they were read: where a value is halfway between two
            # codes, one way may round it up and another down.  Few are.
            exact, plain = plain, np.array(self.model(prompt, self.model.make_cache()))
            plain = plain[-len(logits) :]
            rounding = difference(plain, exact)
            bars = bars[0] + rounding.relative_rms / 4, bars[1] + rounding.mean_kl / 4
        difference(logits, plain).assert_within(*bars)
        self.read += len(logits)

    def step(self):
        operation = str(self.rng.choice(OPERATIONS))
        self.counts[operation] += 1
        prompt = self.prompts[int(self.rng.integers(len(self.prompts)))]
        if operation == "restart":
            self.store.save()
            self.restart()
            return
        if len(prompt) > self.longest or operation == "cut":
            at = last_cut(prompt, int(self.rng.integers(1, len(prompt) + 1)))
            prompt = prompt.slice(0, max(at, 1))
            if self.rng.integers(2):
                prompt = join(prompt, self.new_text(1, 30))
        elif operation == "look":
            prompt = join(prompt, picture(self.rng, *self.rng.integers(1, 7, 2)))
        elif operation == "listen":
            prompt = join(prompt, sound(self.rng, int(self.rng.integers(1, 40))))
        elif operation in ("say", "fork"):
            prompt = join(prompt, self.new_text(1, 70))
        reading = self.fetch(prompt)
        answer = self.rng.integers(30, 290, int(self.rng.integers(1, 12))).tolist()
        if operation == "fork":
            # Somebody else asks in between, reads, and answers.
            other = join(prompt.slice(0, last_cut(prompt, len(prompt) // 2)), self.new_text(1, 20))
            second = self.fetch(other)
            self.check(read(self.model, reading, int(self.rng.integers(8, 100))), prompt)
            self.check(read(self.model, second, int(self.rng.integers(8, 100))), other)
            self.store.insert(second)
            self.prompts.append(other)
        elif operation == "interrupt":
            read(
                self.model, reading, until=int(self.rng.integers(0, len(reading.stops) + 1)) or None
            )
        else:
            self.check(read(self.model, reading, int(self.rng.integers(8, 100))), prompt)
        if operation in ("answer", "reject"):
            logits = step_on(self.model, reading, answer)
            if operation == "reject":  # a draft of which the last tokens are wrong
                wrong = int(self.rng.integers(1, len(answer) + 1))
                trim_prompt_cache(reading.prompt_cache, wrong)
                answer = answer[: len(answer) - wrong]
                logits = logits[: len(answer)]
            prompt = join(prompt, ModelInputs.from_ids(answer)) if answer else prompt
            if len(logits):
                self.check(logits, prompt)
            reading.tokens.extend(answer)
        self.store.insert(reading)
        self.prompts = [*self.prompts[-5:], prompt]
        assert self.store.nbytes <= self.max_bytes


@pytest.fixture(scope="module")
def model():
    """A network of two sliding layers and a global one, with a window of 16."""
    return narrow_network(num_sliding=2, seed=1)


@pytest.fixture(scope="module")
def demo():
    return load("demo", check_limits=False, tune=False)[0]


def take_walks(model, folder, seeds):
    """Take a short walk for each seed; all operations come, and much is known of what is asked."""
    counts, known = Counter(), 0
    for seed in seeds:
        walk = Walk(model, folder / str(seed), seed, longest=90)
        for _ in range(5):
            walk.step()
        counts += walk.counts
        known += walk.known
    assert set(counts) == set(OPERATIONS)
    assert known > 40 * len(seeds)


@pytest.mark.parametrize("block", range(4))
def test_a_random_network(model, tmp_path, block):
    take_walks(model, tmp_path, range(50 * block, 50 * block + 50))


@pytest.mark.parametrize(("kv_bits", "kv_rows"), [(16, "value"), (8, "shared"), (8, "value")])
def test_other_kinds_of_rows(model, tmp_path, monkeypatch, kv_bits, kv_rows):
    monkeypatch.setattr(model, "kv_bits", kv_bits)
    monkeypatch.setattr(model, "kv_rows", kv_rows)
    take_walks(model, tmp_path, range(500, 540))


@pytest.mark.parametrize("seed", range(2))
def test_the_demo_checkpoint(demo, tmp_path, seed):
    walk = Walk(demo, tmp_path, 1000 + seed, longest=350)
    walk.prompts = [walk.new_text(200, 250)]
    for _ in range(6):
        walk.step()
    assert walk.known > 200
