"""`mlx-gemma4 batch`: answer the prompts of a file, several at a time."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from mlx_gemma4.cli import options
from mlx_gemma4.cli.answer_file import open_answers
from mlx_gemma4.cli.batch_run import Run, find_work, open_engine
from mlx_gemma4.cli.jsonl import PromptFile
from mlx_gemma4.cli.terminal import ProgressBar, say
from mlx_gemma4.errors import OptionError

BAD_LINES = 2

Prompts = Annotated[
    str,
    typer.Argument(
        metavar="PROMPTS",
        help="A JSON object a line: id, prompt or messages; perhaps system, images, audio, videos "
        "(paths from the file's folder), tools, max_tokens, temp, seed, and so on.",
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Answers, a JSON object a line. Those that are there already are not made again.",
    ),
]


def batch(
    prompts: Prompts,
    output: Output,
    model: options.Model = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Answers that are written at a time, if memory allows.",
        ),
    ] = 8,
    system: options.System = None,
    thinking: options.Thinking = False,
    image_tokens: options.ImageTokens = None,
    num_frames: options.NumFrames = None,
    video_sound: options.VideoSound = False,
    raw: options.Raw = False,
    max_tokens: options.MaxTokens = None,
    temp: options.Temp = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    quantize: options.Quantize = None,
    dtype: options.Dtype = None,
    image_attention: options.ImageAttention = "sliding",
    kv_bits: options.FixedKVBits = "16",
    kv_rows: options.KVRows = "shared",
    prefill_step_size: options.PrefillStepSize = None,
    no_tune: options.NoTune = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Answer the prompts of a file.

    Answers come as they are complete, in any order. After an interruption the same command goes on
    with what is missing. What a line says itself goes before options. A line that cannot be
    honoured has an error in its answer's place, and the exit code is 2 then.
    """
    name = options.require_model(model)
    source, target = Path(prompts).expanduser(), Path(output).expanduser()
    lines = PromptFile(
        source,
        defaults={
            "system": system,
            "thinking": thinking or None,
            "image_tokens": options.parse_image_tokens(image_tokens),
            "num_frames": num_frames,
            "video_sound": video_sound or None,
            "ignore_chat_template": raw or None,
            "max_tokens": max_tokens,
            "temp": temp,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
        },
        circumstances={
            "model": name,
            "quantize": quantize,
            "dtype": dtype,
            "image_attention": image_attention,
            "kv_bits": kv_bits,
            "kv_rows": kv_rows,
        },
    )
    if target.exists() and target.samefile(source):
        raise OptionError("--output is the file of prompts; choose another file")
    with open_answers(target) as answers:
        work = find_work(lines, answers)
        if not quiet:
            for note in work.notes:
                say(f"note: {note}")
        run = Run(lines, work, answers, is_quiet=quiet)
        for bad in work.bad_lines:
            run.refuse(bad.number, None, bad.error)
        if work.num_missing:
            with _Bar("answering") as bar:
                engine = open_engine(
                    name,
                    batch_size=batch_size,
                    prefill_step_size=prefill_step_size,
                    dtype=dtype,
                    quantize=None if quantize is None else int(quantize),
                    image_attention=image_attention,
                    kv_bits=int(kv_bits),
                    kv_rows=kv_rows,
                    tune=not no_tune,
                    progress=bar.count_tokens,
                )
                run.answer(engine, bar)
    account = run.account
    if as_json:
        document = {"model": name, "output": output, **dataclasses.asdict(account)}
        print(json.dumps(document, ensure_ascii=False, indent=2))
    if not quiet:
        for note in account.notes:
            say(f"note: {note}")
        say(f"{target}: {account}")
    return BAD_LINES if account.errors else 0


class _Bar(ProgressBar):
    """Prompts that are done, and tokens per second of all rows together."""

    _start = 0.0

    def count_tokens(self, tokens: int) -> None:
        """Show how fast so many tokens have come."""
        self._start = self._start or time.perf_counter()
        seconds = time.perf_counter() - self._start
        if self._progress is not None and seconds > 0:
            label = f"answering, {tokens / seconds:.1f} tokens/s"
            self._progress.update(self._progress.task_ids[0], description=label)
