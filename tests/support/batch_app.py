"""`mlx-gemma4 batch` in a process that is to be killed, with an engine that only pretends.

    python batch_app.py LOG batch prompts.jsonl --output answers.jsonl --model stand-in

LOG is "" for the real engine; else ids of the lines that the stand-in takes are written there.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

from mlx_gemma4.cli import main


class StandIn:
    """Answers up to eight lines at a time, in any order, each with its own prompt."""

    notes = ()

    def __init__(self, log: Path) -> None:
        self._log = log

    def answer(self, lines: Any) -> Any:
        rng, rows = random.Random(0), []
        with self._log.open("a", errors="backslashreplace") as log:
            for line in lines:
                print(line.id, file=log, flush=True)
                rows.append(line)
                if len(rows) == 8:
                    yield self._answer(rows.pop(rng.randrange(8)))
            while rows:
                yield self._answer(rows.pop())

    def _answer(self, line: Any) -> Any:
        time.sleep(1e-4)
        text = f"an answer to {line.messages[-1].content}"
        return line, {"text": text, "prompt_tokens": 3, "generation_tokens": 2}


if __name__ == "__main__":
    log = sys.argv.pop(1)
    if log:
        import mlx_gemma4.cli.batch as command_module

        stand_in: Any = lambda *_, **__: StandIn(Path(log))  # noqa: E731
        command_module.open_engine = stand_in
    sys.exit(main())
