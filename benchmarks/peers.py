"""The same work through mlx-gemma4, mlx-lm, mlx-vlm and transformers, side by side.

Each measurement is a process of its own, and the programs take turns (A B A B), so that what else
the machine does falls on all of them.  The first turn warms the file cache and is not counted.
Four regimes, which nothing has in common but the checkpoint:

    help         the command line prints its help: imports alone
    load         from the start of the process until all parameters are in memory
    first-token  from the start of the process to the first token, of a text and of a picture:
                 what somebody waits for who asks one thing; imports and loading dominate
    speed        prefill and decode at several lengths of context, and the peak memory

Programs live in environments of their own, given by --python-of; those not given are left out.
llama.cpp takes no safetensors: with --gguf, and llama-bench on the PATH, it runs that file, whose
bits per weight stand beside it.  Figures of turns that are far apart are called noisy.

    python benchmarks/random_checkpoint.py mid build/mid
    python benchmarks/peers.py build/mid --image picture.png \\
        --python-of mlx-vlm=build/peers/bin/python --python-of mlx-lm=build/peers/bin/python

Prints a table, writes results/<chip>/<date>-<commit>.json, and prints that document as the last
line.  Ratios are a program's value divided by that of mlx-gemma4, of medians, and at the ends
the least and the most that the turns allow.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_facts import describe_checkpoint, describe_machine, list_versions, name_commit

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
NOT_COMPARED = {"context", "weights_bytes"}


@dataclass
class Case:
    """One thing to measure.

    Attributes:
        name: In the table and in the document.
        arguments: Of peer_worker.py after the program's name; None measures `--help`.
        runs: By program, one dictionary of figures a counted turn.
        errors: By program, why it has none.
    """

    name: str
    arguments: list[str] | None
    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def measure(program: str, python: str, case: Case, checkpoint: Path) -> dict[str, float]:
    """Run one process and return its figures.

    Args:
        program: Of `COMMANDS`, or llama.cpp.
        python: Of its environment; of llama.cpp, its checkpoint in GGUF.
        case: What to measure.
        checkpoint: For all others.

    Raises:
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
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    wall_s = time.perf_counter() - begin
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {result.returncode}")
    if case.arguments is None:
        return {"wall_s": wall_s}
    figures = json.loads(result.stdout.strip().splitlines()[-1])
    return {name: value for name, value in figures.items() if value is not None} | {
        "wall_s": wall_s
    }


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
    """Fill a case: one uncounted turn, then `rounds` turns, each through every program."""
    for turn in range(rounds + 1):
        for program, python in pythons.items():
            if program in case.errors:
                continue
            try:
                figures = measure(program, python, case, checkpoint)
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                case.errors[program] = str(error)
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
    return {
        "programs": programs,
        "ratios": ratios,
        "ratio_ranges": ranges,
        "errors": case.errors,
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
    parser.add_argument("--measures", default="help,load,first-token,speed")
    parser.add_argument("--gguf", help="the same checkpoint for llama.cpp, if llama-bench is there")
    parser.add_argument("--image", help="a picture; without one, first-token is of text alone")
    parser.add_argument("--question", default="What shape is this?")
    parser.add_argument("--contexts", default="128,512,2048")
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

    now = datetime.datetime.now(datetime.UTC)
    document: dict[str, Any] = {
        "what": "peers",
        "date": now.isoformat(timespec="seconds"),
        "commit": name_commit(),
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
