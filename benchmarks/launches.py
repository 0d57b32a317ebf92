"""Kernel launches of one decoded token: ours, and those of mlx-lm and mlx-vlm, counted alike.

On a GPU the weights are read once a token, but in hundreds of launches that wait for each other.
They can be counted without a GPU: each program runs its own token loop on a checkpoint of the real
48 layers, of which only headers are read, with stand-ins for what a CPU would compute in another
way (launch_trace.py); a table says how many kernels MLX launches for each operation of the step
(launch_rules.py).

    python benchmarks/launches.py
    python benchmarks/launches.py --python-of mlx-vlm=build/peers/bin/python --operations

Counted is a step in the middle of an answer: from the sampled token through embedding, layers,
cache writes, output head, softcap, and greedy choice to the next token.  Steps in which a cache
grows, one in 256, are left out.  Prints a table and one JSON document as the last line.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launch_rules import RULES, Layout, Operation, UnknownOperationError
from random_checkpoint import (
    PLACEHOLDERS,
    SIZES,
    Size,
    build_config,
    build_processor_config,
    build_tokenizer,
    find_token_ids,
    list_tensors,
    write_json,
)

HERE = Path(__file__).resolve().parent
ARCHITECTURES = {"g": "base", "s": "Pro, Max", "d": "Ultra"}
LAYERS = {"sliding_attention": "sliding", "full_attention": "global"}
AROUND = "around"
OWN, PLAIN = "mlx-gemma4", "mlx-gemma4, kernels off"
# Beside the programs of launch_worker.py: ours in other ways, and its options for them.
VARIANTS = {
    PLAIN: ["--plain"],
    "mlx-gemma4, values alone": ["--kv-rows", "value"],
    "mlx-gemma4, int8 rows": ["--kv-bits", "8"],
    "mlx-gemma4, int8 values alone": ["--kv-bits", "8", "--kv-rows", "value"],
}
CONTEXT = 1536  # beyond the sliding window; not where a cache grows
TIMEOUT_S = 1800.0
_BYTES = {"BF16": 2, "U32": 4}


@dataclass(frozen=True)
class Launch:
    """The launches of one operation of a step.

    Attributes:
        operation: What a person calls it.
        layer: Index of the decoder layer, -1 before the first, their number after the last.
        count: Kernels.
    """

    operation: str
    layer: int
    count: int


def write_headers(
    folder: Path, size: Size | str = "real", *, bits: int = 4, group_size: int = 64
) -> Path:
    """Write a quantized checkpoint whose tensors are holes in their file, and return its folder.

    It has the demo checkpoint's tokenizer and takes no room on disk to speak of.
    """
    size = SIZES[size] if isinstance(size, str) else size
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0

    def add(name: str, dtype: str, *shape: int) -> None:
        nonlocal end
        start, end = end, end + _BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}

    for tensor in list_tensors(size):
        name = tensor.name.removesuffix(".weight")
        if "language_model" not in name or len(tensor.shape) != 2:
            add(tensor.name, "BF16", *tensor.shape)
            continue
        rows, columns = tensor.shape
        add(tensor.name, "U32", rows, columns * bits // 32)
        for part in ("scales", "biases"):
            add(f"{name}.{part}", "BF16", rows, columns // group_size)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    quantization = {"group_size": group_size, "bits": bits, "mode": "affine"}
    source = Path(str(files("mlx_gemma4.demo")))
    form = build_tokenizer(source, size.vocab_size)
    write_json(folder / "tokenizer.json", form)
    for file_name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / file_name).write_bytes((source / file_name).read_bytes())
    ids = find_token_ids(form, size.vocab_size)
    named_ids = {key: ids[content] for key, content in PLACEHOLDERS.items()}
    named_ids["eos_token_id"] = ids["<eos>"]
    config = build_config(size, "bfloat16", named_ids)
    write_json(folder / "config.json", config | {"quantization": quantization})
    write_json(folder / "processor_config.json", build_processor_config(size))
    return folder


def trace(program: str, python: str, checkpoint: Path, context: int) -> dict[str, Any]:
    """Return the trace of one step, from a process of the program's own."""
    name = OWN if program in VARIANTS else program
    arguments = VARIANTS.get(program, [])
    command = [python, str(HERE / "launch_worker.py"), name, str(checkpoint)]
    result = subprocess.run(
        [*command, "--context", str(context), *arguments],
        # The worker finds its neighbours even where a script's own folder is left out of the path.
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {result.returncode}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def count(document: dict[str, Any], architecture: str) -> list[Launch]:
    """Return the launches of a traced step, in an order in which they can run.

    Args:
        document: From `trace`.
        architecture: Key of ARCHITECTURES.

    Raises:
        UnknownOperationError: The table does not cover an operation.
    """
    layouts: dict[str, Layout] = {}
    layers: dict[str, int] = {}
    readers = Counter(name for node in document["nodes"] for name in set(node["inputs"]))

    def layout_of(name: str) -> Layout:
        shape = document["arrays"][name][0]
        return layouts.setdefault(name, Layout.rows(shape))

    launches: list[Launch] = []
    for node in document["nodes"]:
        name = node.get("call", node["name"])
        if name not in RULES:
            raise UnknownOperationError(f"{name} has no row in launch_rules.RULES; add it there")
        operation = Operation(
            name,
            tuple(layout_of(array) for array in node["inputs"]),
            tuple(tuple(document["arrays"][array][0]) for array in node["outputs"]),
            node["arguments"],
            tuple(readers[array] == 1 for array in node["inputs"]),
            architecture,
        )
        number, outputs = RULES[name].apply(operation)
        # What is no call belongs where the last of its inputs was made.
        layer = node["layer"]
        if layer is None:
            layer = max((layers.get(array, -1) for array in node["inputs"]), default=-1)
        for array, layout in zip(node["outputs"], outputs, strict=True):
            layouts[array], layers[array] = layout, layer
        if number:
            launches.append(Launch(node["label"] or name, layer, number))
    check_unmerged(document, launches)
    return launches


def check_unmerged(document: dict[str, Any], launches: Iterable[Launch]) -> None:
    """Refuse a trace from which an export has left out equal operations that launch something."""
    exported = Counter(node["name"] for node in document["nodes"])
    launching = {launch.operation for launch in launches}
    for name, number in document["unmerged"].items():
        kept = exported["call" if name == "Depends" else name]
        if kept != number and name in launching | {"Depends"}:
            raise UnknownOperationError(
                f"the step has {number} operations {name}, of which {kept} differ; the rest would "
                "not be counted"
            )


def tabulate(launches: Sequence[Launch], layer_types: Sequence[str]) -> dict[str, Counter[str]]:
    """Return launches by operation, of each type of layer in all and of what is around layers."""
    table: dict[str, Counter[str]] = {name: Counter() for name in [*LAYERS, AROUND]}
    for launch in launches:
        is_inside = 0 <= launch.layer < len(layer_types)
        table[layer_types[launch.layer] if is_inside else AROUND][launch.operation] += launch.count
    return table


def summarize(document: dict[str, Any], layer_types: Sequence[str]) -> dict[str, Any]:
    """Return a traced step's totals on each size of GPU, and its operations on the smallest."""
    totals = {}
    for architecture in ARCHITECTURES:
        totals[architecture] = sum(launch.count for launch in count(document, architecture))
    table = tabulate(count(document, "g"), layer_types)
    return {"launches": totals, "operations": {name: dict(row) for name, row in table.items()}}


def format_programs(programs: dict[str, dict[str, Any]], numbers: dict[str, int]) -> str:
    """Return the table of programs: a layer of each type, what is around, and the totals.

    Args:
        programs: From `summarize`, by name.
        numbers: Layers of each type.
    """
    heads = [*(f"{LAYERS[name]} layer" for name in numbers), AROUND, *ARCHITECTURES.values()]
    lines = [f"{'':30}" + "".join(f"{head:>15}" for head in heads)]
    for program, summary in programs.items():
        rows = summary["operations"]
        per_layer = [f"{sum(rows[name].values()) / number:g}" for name, number in numbers.items()]
        totals = summary["launches"].values()
        cells = [*per_layer, sum(rows[AROUND].values()), *totals]
        lines.append(f"{program:30}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def format_operations(summary: dict[str, Any], numbers: dict[str, int]) -> str:
    """Return the operations of one program, launches a layer of each type, most in all first."""
    rows = summary["operations"]
    totals: Counter[str] = sum((Counter(row) for row in rows.values()), Counter())
    heads = [*(LAYERS[name] for name in numbers), AROUND, "in all"]
    lines = [f"  {'operation':44}" + "".join(f"{head:>9}" for head in heads)]
    for operation, total in totals.most_common():
        per_layer = [f"{rows[name].get(operation, 0) / n:g}" for name, n in numbers.items()]
        cells = [*per_layer, rows[AROUND].get(operation, 0), total]
        lines.append(f"  {operation:44}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def format_rules() -> str:
    """Return the table of operations and their launches, with sources."""
    return "\n".join(f"{name}\n    {r.launches}\n    {r.source}" for name, r in RULES.items())


def default_pythons() -> dict[str, str]:
    """Return this interpreter for every program that it can import."""
    modules = dict.fromkeys([PLAIN, OWN, *VARIANTS], "mlx_gemma4")
    modules |= {"mlx-lm": "mlx_lm", "mlx-vlm": "mlx_vlm"}
    return {name: sys.executable for name, module in modules.items() if find_spec(module)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Count kernel launches of one decoded token.")
    parser.add_argument("--context", type=int, default=CONTEXT, help="positions of the prompt")
    parser.add_argument(
        "--python-of", action="append", default=[], metavar="PROGRAM=PYTHON", help="may be repeated"
    )
    parser.add_argument("--operations", action="store_true", help="list them, program by program")
    parser.add_argument("--rules", action="store_true", help="print what each operation launches")
    options = parser.parse_args()
    if options.rules:
        print(format_rules())
        return
    pythons = default_pythons() | dict(pair.split("=", 1) for pair in options.python_of)
    size = SIZES["real"]
    numbers = Counter(size.layer_types)
    numbers = {name: numbers[name] for name in LAYERS}
    programs: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_headers(Path(folder), size)
        for program, python in pythons.items():
            print(f"tracing {program}", file=sys.stderr)
            try:
                document = trace(program, python, checkpoint, options.context)
                programs[program] = summarize(document, size.layer_types)
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                errors[program] = str(error)
                print(f"{program}: {error}", file=sys.stderr)
    counted = " and ".join(f"{number} {LAYERS[name]}" for name, number in numbers.items())
    print(f"kernel launches of one decoded token after {options.context} others, {counted} layers")
    print(format_programs(programs, numbers))
    for program, summary in programs.items() if options.operations else ():
        print(f"\n{program}\n{format_operations(summary, numbers)}")
    print(json.dumps({"context": options.context, "programs": programs, "errors": errors}))
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
