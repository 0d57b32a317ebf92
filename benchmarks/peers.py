"""The same work through mlx-gemma4, mlx-lm, mlx-vlm and transformers, side by side.

Each measurement is a process of its own, and the programs take turns (A B A B), so that what else
the machine does falls on all of them.  The first turn warms the file cache and is not counted.
Three regimes, which nothing has in common but the checkpoint:

    help         the command line prints its help: imports alone
    first-token  from the start of the process to the first token, of a text and of a picture:
                 what somebody waits for who asks one thing; imports and loading dominate
    speed        prefill and decode at several lengths of context, and the peak memory

Programs live in environments of their own, given by --python-of; those not given are left out.

    python benchmarks/random_checkpoint.py mid build/mid
    python benchmarks/peers.py build/mid --image picture.png \\
        --python-of mlx-vlm=build/peers/bin/python --python-of mlx-lm=build/peers/bin/python

Prints a table, writes results/<chip>/<date>-<commit>.json, and prints that document as the last
line.  Ratios are a program's value divided by that of mlx-gemma4.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OWN = "mlx-gemma4"
# Command that prints the help of each program, beside its interpreter.
COMMANDS = {
    OWN: "mlx-gemma4",
    "mlx-lm": "mlx_lm.generate",
    "mlx-vlm": "mlx_vlm.generate",
    "transformers": "transformers",
}
PACKAGES = ("mlx-gemma4", "mlx", "mlx-lm", "mlx-vlm", "torch", "transformers")
TIMEOUT_S = 1800.0


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

    Raises:
        RuntimeError: The process failed; the message is its last line.
    """
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
    """Return medians, best and worst by program and figure, and ratios of medians to ours."""
    programs: dict[str, Any] = {
        program: {
            name: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "runs": len(values),
            }
            for name in runs[0]
            if (values := [run[name] for run in runs])
        }
        for program, runs in case.runs.items()
    }
    own = programs.get(OWN, {})
    ratios = {
        program: {
            name: figure["median"] / own[name]["median"]
            for name, figure in figures.items()
            if name != "context" and own.get(name, {}).get("median")
        }
        for program, figures in programs.items()
        if program != OWN
    }
    return {"programs": programs, "ratios": ratios, "errors": case.errors}


def name_chip() -> str:
    """Return the processor's name, as the name of a folder."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        cpuinfo = Path("/proc/cpuinfo").read_text()
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        name = found.group(1) if found else platform.machine()
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def name_commit() -> str:
    """Return the short hash of the commit, with a plus if the tree differs from it."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changes = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    )
    return (head.stdout.strip() or "unknown") + ("+" if changes.stdout.strip() else "")


def list_versions(python: str) -> dict[str, str]:
    """Return the versions of the packages that matter in an environment."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))\n"
    )
    result = subprocess.run(
        [python, "-c", code, *PACKAGES], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


def describe_machine() -> dict[str, Any]:
    """Return what a figure means nothing without."""
    return {
        "chip": name_chip(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.mac_ver()[0]}".strip(),
        "load_average": os.getloadavg()[0],
        "preloaded": os.environ.get("LD_PRELOAD", ""),
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
    parser.add_argument("--measures", default="help,first-token,speed")
    parser.add_argument("--image", help="a picture; without one, first-token is of text alone")
    parser.add_argument("--question", default="What shape is this?")
    parser.add_argument("--contexts", default="128,512,2048")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()

    pythons = {OWN: sys.executable}
    for given in options.python_of:
        program, _, python = given.partition("=")
        if program not in COMMANDS or not python:
            parser.error(f"--python-of {given}: give {'|'.join(COMMANDS)}=/path/to/python")
        pythons[program] = python

    cases = []
    measures = options.measures.split(",")
    if "help" in measures:
        cases.append(Case("help", None))
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

    config = json.loads((options.checkpoint / "config.json").read_text())
    now = datetime.datetime.now(datetime.UTC)
    document: dict[str, Any] = {
        "what": "peers",
        "date": now.isoformat(timespec="seconds"),
        "commit": name_commit(),
        "machine": describe_machine(),
        "versions": {program: list_versions(python) for program, python in pythons.items()},
        "checkpoint": {
            "name": options.checkpoint.name,
            "dtype": config.get("dtype"),
            "hidden_size": config["text_config"]["hidden_size"],
            "num_hidden_layers": config["text_config"]["num_hidden_layers"],
            "quantization": config.get("quantization"),
        },
        "cases": {},
    }
    for case in cases:
        run_in_turns(case, pythons, options.checkpoint, options.rounds)
        document["cases"][case.name] = summarize(case)
        print_table(case, document["cases"][case.name])

    folder = options.results / document["machine"]["chip"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y%m%dT%H%M}-{document['commit']}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\n{path}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
