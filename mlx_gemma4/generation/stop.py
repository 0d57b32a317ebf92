"""StopStrings: end an answer where it says one of some texts, however its tokens cut them."""

from collections.abc import Sequence

from mlx_gemma4.errors import OptionError


class StopStrings:
    """Passes text on up to the first stop string.

    What may be the beginning of one is held back until more has come, so that no part of a stop
    string is ever shown.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """Take the texts that end an answer.

        Raises:
            OptionError: One of them is empty.
        """
        if "" in stop:
            raise OptionError("a stop string is empty; give at least one character, or none at all")
        self._stop = tuple(stop)
        self._held = ""
        self.is_stopped = False

    def add(self, text: str) -> str:
        """Return the text that is certain to precede any stop string."""
        if self.is_stopped:
            return ""
        text, self._held = self._held + text, ""
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        if held:
            text, self._held = text[:-held], text[-held:]
        return text

    def finish(self) -> str:
        """Return what was held back; no stop string followed."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
