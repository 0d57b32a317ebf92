"""Conversions by mlx-gemma4, mlx-vlm, and mlx-lm side by side: time, peak memory, size.

Each is a process of its own, and they take turns (A B C A B C); the first turn warms the file cache
and is not counted.  Peak memory is the process's own high-water mark (VmHWM; ru_maxrss where there
is no /proc).  Output folders are removed after each run.

    python benchmarks/random_checkpoint.py big build/big --dtype bfloat16 --shards 2
    python benchmarks/bench_convert.py build/big --recipes q4 q8 \\
        --python-of mlx-vlm=build/peers/bin/python --python-of mlx-lm=build/peers/bin/python

Prints a table, and the document as the last line; --output keeps it in a file.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import describe_machine, list_versions, name_commit

OWN = "mlx-gemma4"
BITS = {"q4": "4", "q8": "8", "bf16": None}
MODULES = {"mlx-vlm": "mlx_vlm.convert", "mlx-lm": "mlx_lm.convert"}


def command_of(program: str, python: str, source: Path, target: Path, recipe: str) -> list[str]:
    """Return the command line of a conversion."""
    if program == OWN:
        command = [python, "-m", "mlx_gemma4", "convert", str(source), "--recipe", recipe]
        return [*command, "--output", str(target)]
    command = [python, "-m", MODULES[program], "--hf-path", str(source), "--mlx-path", str(target)]
    bits = BITS[recipe]
    return command if bits is None else [*command, "-q", "--q-bits", bits]


def peak_bytes(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process and return the most memory it had."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(command: list[str], target: Path) -> dict[str, float]:
    """Run one conversion and return its figures.

    Raises:
        RuntimeError: It failed; the message is its last line.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        peak = peak_bytes(process)
        seconds = time.perf_counter() - began
        if process.returncode:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit code {process.returncode}")
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return {"seconds": seconds, "peak_mb": peak / 1e6, "output_mb": size / 1e6}


def run(options: argparse.Namespace, pythons: dict[str, str]) -> list[dict[str, Any]]:
    """Return the medians of every checkpoint, recipe, and program, and ratios to ours."""
    rows: list[dict[str, Any]] = []
    for source in options.checkpoints:
        for recipe in options.recipes:
            runs: dict[str, list[dict[str, float]]] = {program: [] for program in pythons}
            for turn in range(options.rounds + 1):
                for program, python in pythons.items():
                    target = options.scratch / f"{source.name}-{recipe}-{program}"
                    shutil.rmtree(target, ignore_errors=True)
                    command = command_of(program, python, source, target, recipe)
                    try:
                        figures = measure(command, target)
                    except RuntimeError as error:
                        print(f"{source.name} {recipe} {program}: {error}", file=sys.stderr)
                        continue
                    finally:
                        shutil.rmtree(target, ignore_errors=True)
                    if turn:
                        runs[program].append(figures)
            if not runs[OWN]:
                continue  # nothing to compare with; what failed has been said
            own = medians(runs[OWN])
            for program, measured in runs.items():
                if measured:
                    values = medians(measured)
                    ratios = {key: round(values[key] / own[key], 2) for key in values}
                    rows.append(
                        {
                            "checkpoint": source.name,
                            "source_mb": source_mb(source),
                            "recipe": recipe,
                            "program": program,
                            "runs": len(measured),
                            **{key: round(value, 2) for key, value in values.items()},
                            "ratios": ratios,
                        }
                    )
                    print(format_row(rows[-1]), flush=True)
    return rows


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def source_mb(source: Path) -> float:
    return round(sum(file.stat().st_size for file in source.glob("*.safetensors")) / 1e6, 1)


def format_row(row: dict[str, Any]) -> str:
    ratios = row["ratios"]
    return (
        f"{row['checkpoint']:<10} {row['source_mb']:>9,.0f} MB  {row['recipe']:<5} "
        f"{row['program']:<11} {row['seconds']:>7.1f} s ({ratios['seconds']:.2f})  "
        f"{row['peak_mb']:>7,.0f} MB peak ({ratios['peak_mb']:.2f})  "
        f"{row['output_mb']:>8,.0f} MB out ({ratios['output_mb']:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["q4", "q8"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python-of", action="append", default=[], metavar="PROGRAM=PYTHON")
    parser.add_argument("--scratch", type=Path, default=Path("build/bench_convert"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    pythons = {OWN: sys.executable} | dict(item.split("=", 1) for item in options.python_of)
    if unknown := pythons.keys() - {OWN, *MODULES}:
        parser.error(f"unknown programs: {', '.join(sorted(unknown))}")
    if unknown := [r for r in options.recipes if r not in BITS] and len(pythons) > 1:
        parser.error(f"the others make {', '.join(BITS)} alone")
    rows = run(options, pythons)
    document = {
        "benchmark": "convert",
        "machine": describe_machine(),
        "commit": name_commit(),
        "versions": {program: list_versions(python) for program, python in pythons.items()},
        "rounds": options.rounds,
        "rows": rows,
    }
    text = json.dumps(document)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
