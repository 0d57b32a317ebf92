"""Ask the demo checkpoint about distorted pictures and sounds: how robust is one product?

Each condition asks about the same held-out samples.  What is measured is saved after each; the
same command goes on where it stopped, and `--samples` with a higher number asks the rest.

    python -m benchmarks.frontend.measure
    python -m benchmarks.frontend.report --write

On Linux, preload OpenBLAS as the Makefile does.
"""

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.frontend.axes import AXES, conditions
from benchmarks.frontend.axis import Condition
from benchmarks.frontend.samples import TASKS
from benchmarks.frontend.shift import measure_shift
from benchmarks.peer_facts import describe_checkpoint, describe_machine, list_versions, name_commit
from mlx_gemma4.api import generate_result, load
from mlx_gemma4.bench.report import write_whole
from mlx_gemma4.hub import find_checkpoint

OUTPUT = Path(__file__).resolve().parent / "results.json"
WHAT = "mlx-gemma4 front end"
SHIFT_SAMPLES = 10
WRONG_KEPT = 6


def first_position(inputs: Any) -> int:
    """Where the medium begins in a prompt; of a text, where the prompt ends."""
    return inputs.spans[0].start if inputs.spans else len(inputs.input_ids)


def measure_condition(
    model: Any, processor: Any, condition: Condition, record: dict[str, Any], samples: int
) -> dict[str, Any]:
    """Ask the samples that `record` lacks; returns a record of all of them.

    Of wrong answers, the most frequent are kept; later samples add to those that were.
    """
    task = TASKS[condition.task]
    right = Counter(record.get("right", {}))
    wrong = Counter({(w, g): n for w, g, n in record.get("wrong", ())})
    start = record.get("samples", 0)
    positions = [record.get("position", 0.0)] * start
    for index in range(start, samples):
        asked = condition.axis.ask(condition.task, index, condition.level, processor)
        inputs = processor(asked.prompt, **asked.options)
        positions.append(first_position(inputs))
        result = generate_result(model, processor, inputs, max_tokens=task.max_tokens, temp=0.0)
        given = result.text.strip()
        for name, is_right in task.scores.items():
            right[name] += is_right(asked.answer, given)
        if given != asked.answer:
            wrong[asked.answer, given] += 1
    return {
        "task": condition.task,
        "samples": samples,
        "right": {name: right[name] for name in task.scores},
        "position": round(float(np.mean(positions)), 1),
        "wrong": [[*pair, count] for pair, count in wrong.most_common(WRONG_KEPT)],
    }


def measure_shifts(model: Any, processor: Any, document: dict[str, Any], output: Path) -> None:
    """Measure how far soft tokens move, along each axis that keeps their places."""
    shifts = document["shifts"]
    for axis in AXES:
        if not axis.has_shift:
            continue
        of_axis = shifts.setdefault(axis.name, {})
        for level in axis.levels:
            label = axis.label(level)
            if level is not None and label not in of_axis:
                task = axis.tasks[0]
                of_axis[label] = measure_shift(model, processor, axis, task, level, SHIFT_SAMPLES)
        save(document, output)


def start_document(output: Path, model: str, command: str) -> dict[str, Any]:
    """Return what was measured before, or an empty document of this checkpoint.

    Raises:
        SystemExit: What was measured is of another checkpoint.
    """
    folder = find_checkpoint(model)
    weights = b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))
    checkpoint = describe_checkpoint(folder) | {"sha256": hashlib.sha256(weights).hexdigest()}
    document: dict[str, Any] = {
        "what": WHAT,
        "checkpoint": checkpoint,
        "confidence": 0.95,
        "runs": [],
        "conditions": {},
        "shifts": {},
    }
    if output.exists():
        document = json.loads(output.read_text(encoding="utf-8"))
        if document["checkpoint"]["sha256"] != checkpoint["sha256"]:
            sys.exit(f"{output.name} is of another checkpoint; give another --output, or remove it")
    document["runs"].append(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "commit": name_commit(),
            "machine": describe_machine() | {"device": str(mx.default_device())},
            "versions": list_versions(sys.executable),
            "seconds": 0.0,
            "asked": 0,
        }
    )
    return document


def save(document: dict[str, Any], output: Path) -> None:
    write_whole(output, (json.dumps(document, indent=1) + "\n").encode())


def show_progress(done: int, wanted: int, started: float, text: str) -> None:
    """Say on stderr how far it is; a terminal keeps one line."""
    spent = time.perf_counter() - started
    left = spent / done * (wanted - done)
    end = "\x1b[K\r" if sys.stderr.isatty() else "\n"
    sys.stderr.write(f"{done}/{wanted}, {left / 60:.0f} min left  {text}{end}")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="a folder, or the bundled checkpoint")
    parser.add_argument("--samples", type=int, default=40, help="of each condition")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--only", default="", help="axes to measure, comma-separated")
    options = parser.parse_args()
    known = {axis.name for axis in AXES}
    only = set(filter(None, options.only.split(","))) or known
    if only - known or options.samples < 1:
        parser.error(f"--only takes {', '.join(sorted(known))}; --samples 1 or more")
    model, processor = load(options.model)
    command = f"python -m benchmarks.frontend.measure --samples {options.samples}"
    command += f" --only '{options.only}'" * bool(options.only)
    document = start_document(options.output, options.model, command)
    measured, run = document["conditions"], document["runs"][-1]
    wanted = [
        condition
        for condition in conditions(tuple(axis for axis in AXES if axis.name in only))
        if measured.get(condition.key, {}).get("samples", 0) < options.samples
    ]
    started = time.perf_counter()
    for done, condition in enumerate(wanted, start=1):
        before = measured.get(condition.key, {})
        record = measure_condition(model, processor, condition, before, options.samples)
        measured[condition.key] = record
        run["seconds"] = round(time.perf_counter() - started, 1)
        run["asked"] += options.samples - before.get("samples", 0)
        save(document, options.output)
        shares = (f"{name} {n / record['samples']:.0%}" for name, n in record["right"].items())
        show_progress(done, len(wanted), started, f"{condition.key}: {', '.join(shares)}")
    measure_shifts(model, processor, document, options.output)
    run["seconds"] = round(time.perf_counter() - started, 1)
    save(document, options.output)


if __name__ == "__main__":
    main()
