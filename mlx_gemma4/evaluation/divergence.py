"""How far one next-token distribution is from another, without ever holding either whole.

Logits of N positions over 262,144 tokens are gigabytes.  Here they come a block of the vocabulary
at a time, and only sums are kept:

    KL(p || q) = sum p (log p - log q) = E_p[z_p - z_q] - log Z_p + log Z_q

with logits z and Z = sum exp(z).  The sums are float64, so that nothing is lost where the two terms
nearly cancel; where both distributions come from the same logits, the result is 0 exactly.
"""

import numpy as np


class Divergence:
    """Reference and subject at N positions, over the part of the vocabulary that has been added.

    Args:
        targets: [N] integer, the token that really follows each position.
    """

    def __init__(self, targets: np.ndarray) -> None:
        self._reference = _Distribution(targets)
        self._subject = _Distribution(targets)
        self._difference = np.zeros(len(targets))  # sum of exp(z_p - max) (z_p - z_q)

    def add(self, positions: slice, start: int, reference: np.ndarray, subject: np.ndarray) -> None:
        """Add logits of some positions for tokens start, start + 1, and so on.

        Args:
            positions: Which of the N; each must see every token once.
            start: First token of the block.
            reference: [n, R] logits.
            subject: [n, R] logits.
        """
        reference, subject = reference.astype(np.float64), subject.astype(np.float64)
        difference = reference - subject
        weights, shrink = self._reference.add(positions, start, reference)
        self._subject.add(positions, start, subject)
        self._difference[positions] *= shrink
        self._difference[positions] += np.einsum("nr,nr->n", weights, difference)

    @property
    def kl(self) -> np.ndarray:
        """KL(reference || subject) in nats, [N] float64."""
        expected = self._difference / self._reference.total
        return np.maximum(expected - self._reference.log_sum + self._subject.log_sum, 0.0)

    @property
    def is_same_top(self) -> np.ndarray:
        """Whether both find the same token most likely, [N] bool."""
        return self._reference.top == self._subject.top

    @property
    def reference_loss(self) -> np.ndarray:
        """-log p(target) of the reference in nats, [N] float64."""
        return self._reference.log_sum - self._reference.target_logit

    @property
    def subject_loss(self) -> np.ndarray:
        """-log p(target) of the subject in nats, [N] float64."""
        return self._subject.log_sum - self._subject.target_logit


class _Distribution:
    """What is kept of one side: the largest logit, the sum beside it, and the target's logit."""

    def __init__(self, targets: np.ndarray) -> None:
        count = len(targets)
        self.targets = targets
        self.largest = np.full(count, -np.inf)
        self.total = np.zeros(count)  # of exp(z - largest)
        self.top = np.zeros(count, np.int64)
        self.target_logit = np.full(count, np.nan)

    @property
    def log_sum(self) -> np.ndarray:
        return self.largest + np.log(self.total)

    def add(
        self, positions: slice, start: int, logits: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add logits [n, R]; return exp(z - largest) of them, and by what earlier sums shrink."""
        rows = np.arange(len(logits))
        best = logits.argmax(axis=-1)
        is_better = logits[rows, best] > self.largest[positions]
        # The first of several equal ones is the top, as argmax has it.
        self.top[positions] = np.where(is_better, start + best, self.top[positions])
        largest = np.maximum(self.largest[positions], logits[rows, best])
        shrink = np.exp(self.largest[positions] - largest)
        weights = np.exp(logits - largest[:, None])
        self.total[positions] = self.total[positions] * shrink + weights.sum(axis=-1)
        self.largest[positions] = largest

        column = self.targets[positions] - start
        is_here = (column >= 0) & (column < logits.shape[1])
        found = logits[rows, np.clip(column, 0, logits.shape[1] - 1)]
        self.target_logit[positions] = np.where(is_here, found, self.target_logit[positions])
        return weights, shrink
