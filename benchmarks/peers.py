"""The same work through mlx-gemma4, mlx-lm, mlx-vlm and transformers, side by side.

Each measurement is a process of its own, and the programs take turns (A B A B), so that what else
the machine does falls on all of them.  The first turn warms the file cache and is not counted.
Five regimes, which nothing has in common but the checkpoint:

    help         the command line prints its help: imports alone
    load         from the start of the process until all parameters are in memory
    first-token  from the start of the process to the first token, of a text and of a picture:
                 what somebody waits for who asks one thing; imports and loading dominate
    speed        prefill and decode at several lengths of context, and the peak memory
    memory       temporary memory of prefill, and a token's bytes in the cache; only if asked for

Programs live in environments of their own, given by --python-of; those not given are left out.
llama.cpp takes no safetensors: with --gguf, and llama-bench on the PATH, it runs that file, whose
bits per weight stand beside it.  Figures of turns that are far apart are called noisy.

    python benchmarks/random_checkpoint.py mid build/mid
    python benchmarks/peers.py build/mid --image picture.png \\
        --python-of mlx-vlm=build/peers/bin/python --python-of mlx-lm=build/peers/bin/python

Memory is measured with each program's own chunk size and caches, and every turn counts.
--limit-gb sets the address space of each process, as `ulimit -v` does.  Who needs more dies, which
is a result: its row says so.  A long context is one chunk, the prompt's last, behind random rows.

    python benchmarks/random_checkpoint.py heads build/heads
    python benchmarks/peers.py build/heads --measures memory --contexts 1024,8192 \\
        --one-chunk 8192,32768,131072 --limit-gb 16 --rounds 2 --python-of ...

Prints a table, writes results/<chip>/<date>-<commit>.json, and prints that document as the last
line.  Ratios are a program's value divided by that of mlx-gemma4, of medians, and at the ends
the least and the most that the turns allow.
"""

import argparse
import datetime
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from peer_facts import (
    describe_checkpoint,
    describe_machine,
    list_versions,
    name_command,
    name_commit,
)

from mlx_gemma4.bench.report import NOISE

HERE = Path(__file__).resolve().parent
OWN = "mlx-gemma4"
# Command that prints the help of each program, beside its interpreter.
COMMANDS = {
    OWN: "mlx-gemma4",
    "mlx-lm": "mlx_lm.generate",
    "mlx-vlm": "mlx_vlm.generate",
    "transformers": "transformers",
}
LLAMA = "llama.cpp"
LLAMA_BENCH = "llama-bench"
TIMEOUT_S = 3600.0
# What a figure is for, in the document: these are not compared.
NOT_COMPARED = {"context", "weights_bytes", "prefill_step_size"}
# What C++, Python, and the loader say when a process may have no more memory.
ALLOCATION_FAILED = ("bad_alloc", "MemoryError", "Cannot allocate memory", "failed to map segment")
# What it dies of where nobody says so: MLX's CPU backend writes to memory that it was not given.
ALLOCATION_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)


@dataclass
class Case:
    """One thing to measure.

    Attributes:
        name: In the table and in the document.
        arguments: Of peer_worker.py after the program's name; None measures `--help`.
        runs: By program, one dictionary of figures a counted turn.
        errors: By program, why it has none.
        limit_bytes: Of address space, for each process.
        limits_reached: The programs among those of `errors` that needed more.
        has_warm_up: Whether a turn that is not counted comes first.
    """

    name: str
    arguments: list[str] | None
    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    limit_bytes: int | None = None
    limits_reached: list[str] = field(default_factory=list)
    has_warm_up: bool = True


class LimitReachedError(RuntimeError):
    """A process needed more memory than it was given."""


def measure(program: str, python: str, case: Case, checkpoint: Path) -> dict[str, float]:
    """Run one process and return its figures.

    Args:
        program: Of `COMMANDS`, or llama.cpp.
        python: Of its environment; of llama.cpp, its checkpoint in GGUF.
        case: What to measure.
        checkpoint: For all others.

    Raises:
        LimitReachedError: The process died of too little memory.
        RuntimeError: The process failed; the message is its last line.
    """
    if program == LLAMA:
        return measure_llama(case, python)
    if case.arguments is None:
        command = [str(Path(python).parent / COMMANDS[program]), "--help"]
    else:
        worker = [python, str(HERE / "peer_worker.py"), program, *case.arguments]
        command = [*worker, "--checkpoint", str(checkpoint), "--started", repr(time.time())]
    begin = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    result = run_limited(command, case.limit_bytes, env=environment)
    wall_s = time.perf_counter() - begin
    if case.arguments is None:
        return {"wall_s": wall_s}
    figures = json.loads(result.stdout.strip().splitlines()[-1])
    return {name: value for name, value in figures.items() if value is not None} | {
        "wall_s": wall_s
    }


def run_limited(
    command: list[str], limit_bytes: int | None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a process that may have so many bytes of address space; None is no limit.

    Raises:
        LimitReachedError: It died of too little memory.
        RuntimeError: It failed otherwise; the message is its last line.
    """

    limit = None
    if limit_bytes is not None:
        limit = partial(resource.setrlimit, resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        preexec_fn=limit,
        **options,
    )
    if result.returncode == 0:
        return result
    lines = (result.stderr or result.stdout).strip().splitlines()
    failed = [line.strip() for line in lines if any(text in line for text in ALLOCATION_FAILED)]
    killed_by = signal.Signals(-result.returncode) if result.returncode < 0 else None
    if limit_bytes is not None and (failed or killed_by in ALLOCATION_SIGNALS):
        reason = failed[-1] if failed or killed_by is None else killed_by.name
        raise LimitReachedError(f"died at {limit_bytes / 1e9:.0f} GB: {reason}")
    if killed_by is not None:
        raise RuntimeError(f"killed by {killed_by.name}")
    raise RuntimeError(lines[-1] if lines else f"exit code {result.returncode}")


def measure_llama(case: Case, gguf: str) -> dict[str, float]:
    """Run llama-bench once, without its own repetitions, and return the figures of a case.

    Raises:
        RuntimeError: It failed, or has no such measure.
    """
    arguments = case.arguments or [""]
    if arguments[0] != "speed":
        raise RuntimeError(f"{LLAMA_BENCH} does not measure this")
    context, tokens = arguments[2], arguments[4]
    command = [LLAMA_BENCH, "-m", gguf, "-r", "1", "-o", "json", "-p", context, "-n", "0"]
    read = _run_llama(command)
    # Answers come after the prompt, as everybody else's do.
    answered = _run_llama([*command[:-4], "-p", "0", "-n", tokens, "-d", context])
    return {
        "context": float(context),
        "prefill_tokens_per_s": read["avg_ts"],
        "decode_tokens_per_s": answered["avg_ts"],
        "weights_bytes": read["model_size"],
    }


def _run_llama(command: list[str]) -> dict[str, float]:
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    try:
        (figures,) = json.loads(result.stdout)
        return {"avg_ts": float(figures["avg_ts"]), "model_size": float(figures["model_size"])}
    except (ValueError, KeyError, TypeError):
        lines = result.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {result.returncode}") from None


def run_in_turns(case: Case, pythons: dict[str, str], checkpoint: Path, rounds: int) -> None:
    """Fill a case: one uncounted turn if it has one, then `rounds`, each through every program."""
    for turn in range(0 if case.has_warm_up else 1, rounds + 1):
        for program, python in pythons.items():
            if program in case.errors:
                continue
            try:
                figures = measure(program, python, case, checkpoint)
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                case.errors[program] = str(error)
                if isinstance(error, LimitReachedError):
                    case.limits_reached.append(program)
                case.runs.pop(program, None)
                print(f"{case.name}: {program}: {error}", file=sys.stderr)
                continue
            if turn:
                case.runs.setdefault(program, []).append(figures)
            print(f"{case.name}, turn {turn} of {rounds}: {program}", file=sys.stderr)


def summarize(case: Case) -> dict[str, Any]:
    """Return medians, best and worst by program and figure, and ratios to ours with their range."""
    programs: dict[str, Any] = {
        program: {name: summarize_values([run[name] for run in runs]) for name in runs[0]}
        for program, runs in case.runs.items()
    }
    own = programs.get(OWN, {})
    ratios: dict[str, Any] = {}
    ranges: dict[str, Any] = {}
    for program, figures in programs.items():
        if program == OWN:
            continue
        compared = [name for name in figures if name in own and name not in NOT_COMPARED]
        compared = [name for name in compared if own[name]["min"] > 0]
        ratios[program] = {n: figures[n]["median"] / own[n]["median"] for n in compared}
        ranges[program] = {
            n: [figures[n]["min"] / own[n]["max"], figures[n]["max"] / own[n]["min"]]
            for n in compared
        }
    limits = {"limit_bytes": case.limit_bytes, "limits_reached": case.limits_reached}
    return {
        "programs": programs,
        "ratios": ratios,
        "ratio_ranges": ranges,
        "errors": case.errors,
        **(limits if case.limit_bytes is not None else {}),
    }


def summarize_values(values: list[float]) -> dict[str, Any]:
    """Return the figures of a program's turns, and whether they are far apart."""
    median = statistics.median(values)
    return {
        "median": median,
        "min": min(values),
        "max": max(values),
        "runs": len(values),
        "is_noisy": max(values) - min(values) > NOISE * median,
    }


def print_table(case: Case, summary: dict[str, Any]) -> None:
    """Print a case: a line a program, medians, and ratios to ours in brackets."""
    print(f"\n{case.name}")
    for program, figures in summary["programs"].items():
        cells = []
        for name, figure in figures.items():
            if name == "context":
                continue
            value = figure["median"]
            shown = f"{value / 1e6:.0f} MB" if name.endswith("_bytes") else f"{value:.3g}"
            shown += " noisy" * figure["is_noisy"]
            ratio = summary["ratios"].get(program, {}).get(name)
            cells.append(f"{name} {shown}" + (f" ({ratio:.2f}x)" if ratio else ""))
        print(f"  {program:<13}{', '.join(cells)}")
    for program, error in summary["errors"].items():
        print(f"  {program:<13}{error}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure mlx-gemma4 beside other programs on the same checkpoint."
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--python-of", action="append", default=[], metavar="PROGRAM=PYTHON")
    parser.add_argument("--measures", default="help,load,first-token,speed", help="and memory")
    parser.add_argument("--gguf", help="the same checkpoint for llama.cpp, if llama-bench is there")
    parser.add_argument("--image", help="a picture; without one, first-token is of text alone")
    parser.add_argument("--question", default="What shape is this?")
    parser.add_argument("--contexts", default="128,512,2048")
    parser.add_argument("--one-chunk", default="", help="contexts of memory that are one chunk")
    parser.add_argument("--limit-gb", type=float, help="of address space, of each memory process")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, help="default: a file of the date in --results")
    options = parser.parse_args()

    pythons = {OWN: sys.executable}
    for given in options.python_of:
        program, _, python = given.partition("=")
        if program not in COMMANDS or not python:
            parser.error(f"--python-of {given}: give {'|'.join(COMMANDS)}=/path/to/python")
        pythons[program] = python
    if options.limit_gb is not None and sys.platform == "darwin":
        parser.error("--limit-gb: macOS does not limit a process's address space; leave it out")
    if options.gguf and shutil.which(LLAMA_BENCH):
        pythons[LLAMA] = options.gguf

    cases = []
    measures = options.measures.split(",")
    if "help" in measures:
        cases.append(Case("help", None))
    if "load" in measures:
        cases.append(Case("load", ["load"]))
    if "first-token" in measures:
        ask = ["first-token", "--question", options.question]
        cases.append(Case("first token, text", ask))
        if options.image:
            picture = str(Path(options.image).resolve())
            cases.append(Case("first token, picture", [*ask, "--image", picture]))
    if "speed" in measures:
        for context in options.contexts.split(","):
            speed = ["speed", "--context", context, "--max-tokens", str(options.max_tokens)]
            cases.append(Case(f"speed at {context}", speed))

    if "memory" in measures:
        limit_bytes = None if options.limit_gb is None else int(options.limit_gb * 1e9)
        contexts = [(context, False) for context in options.contexts.split(",") if context]
        contexts += [(context, True) for context in options.one_chunk.split(",") if context]
        for context, is_one_chunk in contexts:
            how = "the last chunk" if is_one_chunk else "in full"
            arguments = ["memory", "--context", context, *["--one-chunk"] * is_one_chunk]
            name = f"memory at {int(context):,}, {how}"
            cases.append(Case(name, arguments, limit_bytes=limit_bytes, has_warm_up=False))

    now = datetime.datetime.now(datetime.UTC)
    document: dict[str, Any] = {
        "what": "peers",
        "date": now.isoformat(timespec="seconds"),
        "commit": name_commit(),
        "command": name_command(__file__, sys.argv[1:]),
        "machine": describe_machine(),
        "versions": {
            program: list_versions(python)
            for program, python in pythons.items()
            if program != LLAMA
        },
        "checkpoint": describe_checkpoint(options.checkpoint),
        "cases": {},
    }
    for case in cases:
        run_in_turns(case, pythons, options.checkpoint, options.rounds)
        document["cases"][case.name] = summarize(case)
        print_table(case, document["cases"][case.name])

    path = options.output
    if path is None:
        name = f"{now:%Y%m%dT%H%M}-{document['commit']}-{options.checkpoint.name}.json"
        path = options.results / document["machine"]["chip"] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\n{path}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
