"""Answers to the prompts of a file: what is missing, made and written."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_gemma4.cli.answer_file import AnswerFile, id_key
from mlx_gemma4.cli.jsonl import BadLine, PromptFile, PromptLine
from mlx_gemma4.cli.terminal import ProgressBar, say
from mlx_gemma4.errors import InputError, OptionError

if TYPE_CHECKING:
    from mlx_gemma4.generation.batch import Batch
    from mlx_gemma4.generation.batch_row import BatchAnswer, BatchFailure, BatchRequest
    from mlx_gemma4.model.gemma4 import Gemma4
    from mlx_gemma4.processing.processor import Processor

_MOST_SHOWN = 10  # errors on stderr; all are in the file


@dataclass
class Account:
    """What was done.

    Attributes:
        answers: Written now.
        earlier_answers: That were there before.
        errors: Lines that cannot be honoured.
        prompt_tokens: Positions of the prompts answered now.
        generation_tokens: Tokens of these answers.
        seconds: From the first prompt to the last answer.
        notes: What the engine has to say.
    """

    answers: int = 0
    earlier_answers: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it in one line."""
        parts = [_count(self.answers, "answer")]
        if self.earlier_answers:
            parts.append(f"{self.earlier_answers:,} from before")
        if self.errors:
            parts.append(_count(self.errors, "error"))
        if self.answers:
            speed = self.generation_tokens / self.seconds if self.seconds else 0.0
            parts.append(
                f"prompts {self.prompt_tokens:,} tokens, answers {self.generation_tokens:,} "
                f"tokens, {speed:.1f} tokens/s"
            )
        return "; ".join(parts)


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Attributes:
        bad_lines: That cannot be honoured, as far as the file alone tells.
        num_missing: Prompts without an answer.
        num_done: Prompts with one.
        notes: What there is to say about it.
    """

    bad_lines: list[BadLine]
    num_missing: int
    num_done: int
    notes: tuple[str, ...]


def find_work(lines: PromptFile, answers: AnswerFile) -> Work:
    """Read through the prompts once, and compare them with the answers.

    Raises:
        InputError: There is no prompt.
        OptionError: An answer is one to something else.
    """
    bad_lines: list[BadLine] = []
    num_missing = num_done = 0
    for line in lines:
        if isinstance(line, BadLine):
            bad_lines.append(line)
        elif (answered := answers.done.get(id_key(line.id))) is None:
            num_missing += 1
        elif answered == line.fingerprint:
            num_done += 1
        else:
            raise OptionError(
                f"line {line.number} of {lines.path} is not what {answers.path} answers under the "
                f"id {id_key(line.id)}: the prompt, an option, or the model has changed; choose "
                "another --output, or take that line out of it"
            )
    if not (bad_lines or num_missing or num_done):
        raise InputError(f"{lines.path} has no prompts; write one JSON object a line")
    notes = ["half a line at the end was dropped"] * answers.is_cut
    if answers.num_errors:
        notes.append(f"{_count(answers.num_errors, 'error')} from before, tried again now")
    if num_done:
        notes.append(f"{_count(num_done, 'answer')} of {num_done + num_missing:,} there already")
    if foreign := len(answers.done) - num_done:
        notes.append(f"{_count(foreign, 'answer')} there to what {lines.path} does not ask")
    return Work(bad_lines, num_missing, num_done, tuple(notes))


class Run:
    """Writes an answer, or an error, for each line that has none.

    Args:
        lines: The prompts.
        work: What there is to do of them.
        answers: Where answers go.
        is_quiet: Whether errors stand there alone.

    Attributes:
        account: Of what was done.
    """

    def __init__(
        self, lines: PromptFile, work: Work, answers: AnswerFile, *, is_quiet: bool
    ) -> None:
        self.account = Account(earlier_answers=work.num_done)
        self._lines = lines
        self._work = work
        self._answers = answers
        self._is_quiet = is_quiet

    def refuse(self, number: int, line_id: str | int | None, error: str) -> None:
        """Write why a line cannot be honoured."""
        self._answers.write(line_id, {"line": number, "error": error})
        self.account.errors += 1
        if self._is_quiet or self.account.errors > _MOST_SHOWN:
            return
        say(f"{self._lines.path}, line {number}: {error}")
        if self.account.errors == _MOST_SHOWN:
            say(f"more errors, if any, are in {self._answers.path} alone")

    def answer(self, engine: "Engine", bar: ProgressBar) -> None:
        """Have an engine answer what is missing."""
        work, account = self._work, self.account
        start = time.perf_counter()
        bar.update(0, work.num_missing)
        try:
            for done, (line, fields) in enumerate(engine.answer(self._missing()), 1):
                self._write(line, fields)
                bar.update(done, work.num_missing)
        except KeyboardInterrupt:
            bar.close()
            say(
                f"{account.answers + work.num_done:,} of {work.num_missing + work.num_done:,} "
                f"prompts are answered in {self._answers.path}; the same command goes on"
            )
            raise
        account.seconds = time.perf_counter() - start
        account.notes = engine.notes

    def _missing(self) -> Iterator[PromptLine]:
        for line in self._lines:
            if isinstance(line, PromptLine) and id_key(line.id) not in self._answers.done:
                yield line

    def _write(self, line: PromptLine, fields: dict[str, Any]) -> None:
        if "error" in fields:
            self.refuse(line.number, line.id, fields["error"])
            return
        self._answers.write(line.id, {**fields, "request": line.fingerprint})
        self.account.answers += 1
        self.account.prompt_tokens += fields["prompt_tokens"]
        self.account.generation_tokens += fields["generation_tokens"]


class Engine:
    """Answers lines with a model, several at a time.

    Args:
        model: From `load`.
        processor: From `load`.
        batch: With this model.
    """

    def __init__(self, model: "Gemma4", processor: "Processor", batch: "Batch") -> None:
        self._model = model
        self._processor = processor
        self._batch = batch

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said about the work as a whole."""
        notes = tuple(self._model.notes or ())
        if self._batch.is_short_of_memory:
            notes += (
                f"memory was short: at most {self._batch.most_rows} at a time, and not always",
            )
        return notes

    def answer(self, lines: Iterator[PromptLine]) -> Iterator[tuple[PromptLine, dict[str, Any]]]:
        """Yield each line with the fields of its answer, or with its error, as they are done."""
        for done in self._batch.answer(map(self._request, lines)):
            yield done.key, _fields(done)

    def _request(self, line: PromptLine) -> "BatchRequest | BatchFailure":
        from mlx_gemma4.errors import Gemma4Error
        from mlx_gemma4.generation.batch_row import BatchFailure, BatchRequest
        from mlx_gemma4.generation.sampling import choose_sampling

        try:
            inputs = self._processor(line.messages, **line.processing)
            sampler, processors = choose_sampling(self._model.generation_config, **line.sampling)
        except Gemma4Error as error:
            return BatchFailure(key=line, error=error)
        return BatchRequest(
            key=line,
            inputs=inputs,
            sampler=sampler,
            logits_processors=processors,
            max_tokens=line.max_tokens,
            stop=line.stop,
        )


def open_engine(
    name: str,
    *,
    batch_size: int,
    prefill_step_size: int | None,
    progress: Callable[[int], None],
    **load_options: Any,
) -> Engine:
    """Load a model to answer lines with."""
    from mlx_gemma4.api import load
    from mlx_gemma4.generation.batch import Batch

    with ProgressBar("quantizing") as quantizing, ProgressBar("trying kernels") as tuning:
        model, processor = load(
            name, progress=quantizing.update, tune_progress=tuning.update, **load_options
        )
    batch = Batch(
        model,
        processor.tokenizer,
        eos_token_ids=model.generation_config.eos_token_ids,
        batch_size=batch_size,
        prefill_step_size=prefill_step_size,
        progress=progress,
    )
    return Engine(model, processor, batch)


def _fields(done: "BatchAnswer | BatchFailure") -> dict[str, Any]:
    from mlx_gemma4.generation.batch_row import BatchFailure

    if isinstance(done, BatchFailure):
        return {"error": str(done.error)}
    return {
        "text": done.text,
        "thinking": done.thinking,
        "tool_calls": [dataclasses.asdict(call) for call in done.tool_calls],
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.prompt_tokens,
        "generation_tokens": len(done.tokens),
        "notes": list(done.notes),
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
