"""How close two runs of the same network must be: the measures of the project's parity bar."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """Distance of logits [L, V] from reference logits.

    Attributes:
        relative_rms: RMS of the difference over RMS of the reference.
        mean_kl: Mean over positions of KL(reference || ours), in nats.
        top1_mismatches: Positions whose most likely token differs, ties aside.
    """

    relative_rms: float
    mean_kl: float
    top1_mismatches: int

    def assert_within(self, relative_rms: float, mean_kl: float = 1e-6) -> None:
        """Fail unless the difference is within the bar."""
        assert self.relative_rms <= relative_rms, self
        assert self.mean_kl <= mean_kl, self
        assert self.top1_mismatches == 0, self


def difference(ours: np.ndarray, reference: np.ndarray) -> Difference:
    """Measure logits [L, V] against the reference's, in float64."""
    assert ours.shape == reference.shape
    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    delta = ours - reference
    log_ours, log_reference = log_softmax(ours), log_softmax(reference)
    kl = (np.exp(log_reference) * (log_reference - log_ours)).sum(-1)
    # A tie: the reference itself prefers its choice by less than the two runs differ there.
    best = np.arange(len(ours)), reference.argmax(-1)
    chosen = np.arange(len(ours)), ours.argmax(-1)
    margin = reference[best] - reference[chosen]
    mismatches = (margin > 2 * abs(delta).max(-1)).sum()
    return Difference(
        float(np.sqrt((delta**2).mean() / (reference**2).mean())),
        float(kl.mean()),
        int(mismatches),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities of logits [L, V]."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
