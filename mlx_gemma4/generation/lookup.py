"""PromptLookup: what followed the last few tokens where they stood in the text before.

An answer that quotes its prompt, or edits it, says long runs of tokens a second time.  An index of
pairs finds the earlier places that end like the text does now, in time that does not grow with the
text; what followed at the most similar one is the draft.  It only guesses: the model verifies.
"""

from collections.abc import Collection

from mlx_gemma4.errors import OptionError
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.model.gemma4 import RING_SLACK

# One forward pass reads the token before the draft and the draft, and is written into the ring in
# place: RING_SLACK positions are safe to undo on every layer.
MIN_DRAFT_TOKENS, MAX_DRAFT_TOKENS = 2, RING_SLACK - 1

# A place is as similar as it has last tokens in common with the text, counted up to MAX_NGRAM.  At
# least MIN_NGRAM are asked for, and one more for every failure in a row, up to WARY_NGRAM.
MIN_NGRAM, WARY_NGRAM, MAX_NGRAM = 2, 8, 16

# Earlier places that are compared, the most recent first.
MAX_CANDIDATES = 64

# Stands for a soft token: no n-gram holds one, and no draft goes on past one.
_SOFT = -1


class PromptLookup:
    """Drafts tokens from n-grams of the prompt and of the answer so far.

    A draft is twice as long as the one before if that was accepted whole, and else one longer than
    what was accepted of it.  Free text repeats pairs by chance: each draft that fails makes the
    next one wait for a longer n-gram, so that few are tried where they do not help.

    Memory is at most one entry a token: some 40 MB at a context of 256K tokens.

    Attributes:
        draft_tokens: Tokens proposed so far.
        accepted_tokens: How many of them were accepted.

    Source: Saxena, prompt-lookup-decoding, 2023; transformers generation/candidate_generator.py,
    PromptLookupCandidateGenerator; the chains of places are those of zlib's deflate.c.
    """

    def __init__(
        self,
        prompt: ModelInputs,
        *,
        stop_tokens: Collection[int] = (),
        num_draft_tokens: int = MAX_DRAFT_TOKENS,
    ) -> None:
        """Read a prompt.

        Args:
            prompt: Its text is looked up, its soft tokens never.
            stop_tokens: A draft ends with the first of these.
            num_draft_tokens: Length of a draft at most.

        Raises:
            OptionError: A length out of its range.
        """
        check_num_draft_tokens(num_draft_tokens)
        self.draft_tokens = self.accepted_tokens = 0
        self._stop_tokens = frozenset(stop_tokens)
        self._longest = num_draft_tokens
        self._length = min(4, num_draft_tokens)
        self._failures = 0
        self._ids: list[int] = []
        # A pair stands at the position of its second token: the last position of every pair, and
        # for every position the one before it with the same pair, or -1.
        self._last: dict[int, int] = {}
        self._earlier: list[int] = []
        ids = prompt.input_ids.tolist()
        for span in prompt.spans:
            ids[span.start : span.stop] = [_SOFT] * (span.stop - span.start)
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Go on with a token of the text."""
        before = self._ids[-1] if self._ids else _SOFT
        earlier = -1
        if token != _SOFT and before != _SOFT:
            pair = before << 32 | token
            earlier = self._last.get(pair, -1)
            self._last[pair] = len(self._ids)
        self._earlier.append(earlier)
        self._ids.append(token)

    def draft(self, max_tokens: int = MAX_DRAFT_TOKENS) -> list[int]:
        """Return a guess of the next tokens, at most so many; [] if there is nothing to go by."""
        place = self._find_place()
        if place < 0:
            return []
        # Where the text has been repeating itself, the draft goes round once more.
        period = len(self._ids) - 1 - place
        draft: list[int] = []
        for index in range(min(self._length, max_tokens)):
            token = self._ids[place + 1 + index % period]
            if token == _SOFT:
                break
            draft.append(token)
            if token in self._stop_tokens:
                break
        return draft

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Note how much of a draft was accepted."""
        self.draft_tokens += num_drafted
        self.accepted_tokens += num_accepted
        is_whole = num_accepted == num_drafted
        length = 2 * self._length if is_whole else num_accepted + 1
        self._length = max(MIN_DRAFT_TOKENS, min(length, self._longest))
        # One token of several is what chance gives.
        self._failures = 0 if is_whole or num_accepted > 1 else self._failures + 1

    def _find_place(self) -> int:
        """Return where the text most similar to its end ends, the latest such; -1 if nowhere."""
        best, most = -1, min(MIN_NGRAM + self._failures, WARY_NGRAM) - 1
        here = len(self._ids) - 1
        there = self._earlier[here] if self._ids else -1
        for _ in range(MAX_CANDIDATES):
            if there < 0 or most == MAX_NGRAM:
                break
            count = self._count_same(here, there)
            if count > most:
                best, most = there, count
            there = self._earlier[there]
        return best

    def _count_same(self, here: int, there: int) -> int:
        """Return how many tokens up to two places are the same; the last pair is known to be."""
        ids, count = self._ids, MIN_NGRAM
        while count < MAX_NGRAM and count <= there:
            token = ids[there - count]
            if token != ids[here - count] or token == _SOFT:
                break
            count += 1
        return count


def check_num_draft_tokens(num_draft_tokens: int) -> None:
    """Refuse a length of drafts that no cache can undo, or that is none.

    Raises:
        OptionError: It is out of its range.
    """
    if not MIN_DRAFT_TOKENS <= num_draft_tokens <= MAX_DRAFT_TOKENS:
        raise OptionError(
            f"num_draft_tokens is {num_draft_tokens}; allowed is {MIN_DRAFT_TOKENS} to "
            f"{MAX_DRAFT_TOKENS}"
        )
