"""The target that is a command line: `generate` and `inspect`, with all that they read."""

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

from fuzz.case import Files, Target, write_files
from fuzz.checkpoints import MIB, demo_file
from fuzz.mutation import mutate_bytes, mutate_json
from fuzz.prompts import MESSAGE_WORDS, read_conversations
from mlx_gemma4.cli import OUR_FAULT, main
from mlx_gemma4.errors import Gemma4Error

_SMALL_FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
_SMALL_FILES += ("chat_template.jinja",)
_COMMANDS: tuple[list[str], ...] = (
    [
        "generate",
        "What?",
        "--image",
        "{folder}/a.png",
        "--image-tokens",
        "auto",
        "--max-tokens",
        "3",
    ],
    ["generate", "-", "--temp", "0.7", "--top-p", "0.9", "--top-k", "40", "--seed", "1", "--json"],
    ["generate", "--messages", "{folder}/messages.json", "--tools", "{folder}/tools.json"],
    ["generate", "A", "--stop", "x", "--repetition-penalty", "1.1", "--dtype", "float32", "-q"],
    ["generate", "B", "--speculate", "lookup", "--num-draft-tokens", "4", "--min-p", "0.1"],
    ["inspect", "<|image|> or <|audio|>", "--image", "{folder}/a.png", "--system", "Be brief."],
    ["inspect", "--image", "{folder}/a.png", "--json", "--raw", "--quantize", "4"],
    ["inspect", "--messages", "{folder}/messages.json", "--thinking", "--num-frames", "4"],
)
_ARGUMENTS = ("--image", "--audio", "--video", "--messages", "--tools", "--system", "--raw", "--")
_ARGUMENTS += ("-", "", " ", "nan", "inf", "-1", "0", "1e400", "9" * 400, "9" * 5000, "\udcff", "é")
_ARGUMENTS += ("{folder}", "{folder}/a.png", "{folder}/none", "{folder}/messages.json", "~nobody")
_ARGUMENTS += ("--model", "--temp", "--top-k", "--seed", "--stop", "--json", "--num-frames", "a/b")
_ARGUMENTS += ("--quantize", "--dtype", "--max-tokens", "<|image|>", "<|audio|>", "x" * 5000, "\n")


@cache
def read_commands() -> tuple[Files, ...]:
    """Return command lines with what they name."""
    conversation = read_conversations()[0]
    small = {name: demo_file(name) for name in _SMALL_FILES}
    small |= {"a.png": demo_file("samples/shape.png"), **conversation, "stdin": b"What is this?\n"}
    return tuple({"arguments.json": json.dumps(line).encode(), **small} for line in _COMMANDS)


def mutate_command(rng: Random, real: Sequence[Files]) -> Files:
    """Change a command's arguments, and now and then what it reads."""
    files = dict(rng.choice(real))
    name, *arguments = json.loads(files["arguments.json"])
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(arguments) + 1)
        draw = rng.randrange(4)
        if draw == 0:
            del arguments[at : at + 1]
        elif draw == 1:
            arguments.insert(at, rng.choice(_ARGUMENTS))
        elif draw == 2:
            arguments[at : at + 1] = [rng.choice(_ARGUMENTS)]
        elif at < len(arguments):
            changed = mutate_bytes(rng, arguments[at].encode("utf-8", "surrogateescape"))
            arguments[at] = changed.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    files["arguments.json"] = json.dumps([name, *arguments]).encode()
    if rng.random() < 0.2:
        files["stdin"] = mutate_bytes(rng, files["stdin"])
    if rng.random() < 0.2:
        talk = json.loads(files["messages.json"])
        files["messages.json"] = mutate_json(rng, talk, MESSAGE_WORDS)
    return files


def run_command(files: Files, folder: Path) -> None:
    """Run a command on a checkpoint without weights: all is read but these."""
    write_files(files, folder)
    try:
        name, *arguments = json.loads(files["arguments.json"])
        arguments = [argument.replace("{folder}", str(folder)) for argument in arguments]
    except (ValueError, AttributeError):
        return  # minimised beyond a command line
    errors = io.StringIO()
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(files.get("stdin", b"")))
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main([name, "--verbose", "--model", str(folder), *arguments])
    finally:
        sys.stdin = stdin
    if code == Gemma4Error.exit_code:
        raise Gemma4Error(errors.getvalue())
    if code == OUR_FAULT:
        raise AssertionError(f"the command says that it is a defect:\n{errors.getvalue()}")


TARGETS = (Target("command", read_commands, mutate_command, run_command, 256 * MIB),)
