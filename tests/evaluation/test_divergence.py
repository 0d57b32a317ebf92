"""Sums over blocks of the vocabulary give what the whole distributions give."""

import numpy as np
import pytest

from mlx_gemma4.evaluation.divergence import Divergence

N, V = 40, 1000


def in_blocks(
    reference: np.ndarray, subject: np.ndarray, targets: np.ndarray, rows: int, positions: int
) -> Divergence:
    divergence = Divergence(targets)
    for start in range(0, V, rows):
        for first in range(0, N, positions):
            at = slice(first, first + positions)
            block = slice(start, start + rows)
            divergence.add(at, start, reference[at, block], subject[at, block])
    return divergence


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    largest = logits.max(-1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))


@pytest.mark.parametrize(("rows", "positions"), [(1000, 40), (300, 7), (1, 40), (999, 1)])
@pytest.mark.parametrize("noise", [1e-4, 0.1, 20.0])
def test_blocks_do_not_matter(
    rng: np.random.Generator, rows: int, positions: int, noise: float
) -> None:
    reference = (rng.standard_normal((N, V)) * 8).clip(-30, 30).astype(np.float32)
    subject = reference + (noise * rng.standard_normal((N, V))).astype(np.float32)
    targets = rng.integers(0, V, N)
    found = in_blocks(reference, subject, targets, rows, positions)
    p, q = log_softmax(reference), log_softmax(subject)
    expected = (np.exp(p) * (p - q)).sum(-1)
    # 1e-14: at a noise of 1e-4 the divergence itself is near 1e-9.
    np.testing.assert_allclose(found.kl, expected, rtol=1e-7, atol=1e-14)
    assert np.array_equal(found.is_same_top, reference.argmax(-1) == subject.argmax(-1))
    np.testing.assert_allclose(found.reference_loss, -p[np.arange(N), targets], rtol=1e-12)
    np.testing.assert_allclose(found.subject_loss, -q[np.arange(N), targets], rtol=1e-12)


def test_the_same_logits_are_no_difference_at_all(rng: np.random.Generator) -> None:
    logits = (rng.standard_normal((N, V)) * 8).astype(np.float32)
    found = in_blocks(logits, logits.copy(), np.zeros(N, np.int32), 77, 9)
    assert (found.kl == 0).all()
    assert found.is_same_top.all()


def test_of_equal_logits_the_first_is_the_top() -> None:
    even = np.zeros((N, V), np.float32)
    peaked = even.copy()
    peaked[: N // 2, 0] = 1e-3  # where all are equal, token 0 is the top too
    peaked[N // 2 :, V - 1] = 1e-3
    found = in_blocks(even, peaked, np.zeros(N, np.int32), 300, 40)
    assert found.is_same_top.tolist() == [True] * (N // 2) + [False] * (N - N // 2)


def test_what_is_not_finite_is_not_hidden(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((N, V)).astype(np.float32)
    broken = logits.copy()
    broken[3, 500] = np.nan
    found = in_blocks(logits, broken, np.zeros(N, np.int32), 300, 40)
    assert np.flatnonzero(np.isnan(found.kl)).tolist() == [3]
    assert np.flatnonzero(np.isnan(found.subject_loss)).tolist() == [3]
    assert np.isfinite(found.reference_loss).all()
