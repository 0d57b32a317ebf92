"""Convert the demo checkpoint by every recipe, and ask what each costs.

For each recipe: size, bits per weight, KL to the unquantized checkpoint over questions of the tasks
it knows (the bundled prompts are strange to it: it has little to lose there), and the task
accuracies of `accuracy.py`.  All recipes answer the same samples, so that their differences are
less noisy than the shares.

`--kinds` answers another question, without tasks: what it gains to keep one kind of matrix at 8
bits while the rest has 4.  The recipe mixed-4-8 is chosen by it.

    python -m benchmarks.demo.recipes --samples 200
    python -m benchmarks.demo.recipes --kinds
    python -m benchmarks.demo.recipes --stored        # the tables, from what was measured

A recipe that stands in the output already is not measured again.
"""

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.demo.accuracy import ROWS, measure_row
from mlx_gemma4.api import load
from mlx_gemma4.convert.conversion import convert
from mlx_gemma4.convert.recipe import read_recipe
from mlx_gemma4.convert.source import open_source
from mlx_gemma4.evaluation.compare import compare
from mlx_gemma4.evaluation.prompts import EvaluationPrompt
from mlx_gemma4.hub import find_checkpoint

RECIPES = ("bf16", "q8", "mxfp8", "mixed-4-8", "q4", "q4-awq", "nvfp4", "mxfp4")
KINDS = (
    "embed_tokens",
    "q_proj",
    "k_proj",
    "layers.5.self_attn.k_proj",  # the global layer's, which makes keys and values
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
PROMPTS_OF_A_TASK = 6
OUTPUT = Path("benchmarks/demo/recipes.json")


def task_prompts() -> list[EvaluationPrompt]:
    """Some questions of each task with their right answers; those with clips and tools left out."""
    prompts = []
    for row in ROWS:
        rng = random.Random(f"recipes {row.group} {row.name}")
        for number in range(PROMPTS_OF_A_TASK):
            asked = row.make(rng)
            if asked.options.keys() <= {"images", "audio"} and isinstance(asked.prompt, str):
                media: dict[str, Any] = {
                    key: tuple(of_key) for key, of_key in asked.options.items()
                }
                name = f"{row.group}: {row.name} {number}"
                prompts.append(EvaluationPrompt(name, asked.prompt, answer=asked.answer, **media))
    return prompts


def convert_demo(recipe: str, folder: Path) -> dict[str, Any]:
    """Convert by a recipe's name or file; returns size and distance."""
    source = open_source(find_checkpoint("demo"), "demo")
    done = convert(source, read_recipe(recipe), folder, force=False)
    report = compare(folder, source.folder, task_prompts())
    of_all = report.kinds["all"]
    return {
        "bytes": done.plan.nbytes,
        "bits_per_weight": round(done.plan.bits_per_weight, 3),
        "mean_kl": of_all.mean_kl,
        "kl_999": of_all.kl_999,
        "top1_agreement": of_all.top1_agreement,
    }


def measure_recipes(document: dict[str, Any], samples: int) -> None:
    measured = document.setdefault("recipes", {})
    for recipe in RECIPES:
        if recipe in measured:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / recipe
            record = convert_demo(recipe, folder)
            model, processor = load(str(folder))
            record["tasks"] = {}
            for row in ROWS:
                result = measure_row(model, processor, row, samples)
                record["tasks"][f"{row.group}: {row.name}"] = result["right"]
                print(f"{recipe}  {result['right']:6.1%}  {row.group}: {row.name}", flush=True)
        record["samples"] = samples
        measured[recipe] = record
        save(document)


def measure_kinds(document: dict[str, Any]) -> None:
    measured = document.setdefault("kinds", {})
    for kind in ("none", *KINDS):
        if kind in measured:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            recipe = Path(scratch) / f"{kind}.toml"
            recipe.write_text(recipe_of_kind(kind), encoding="utf-8")
            measured[kind] = convert_demo(str(recipe), Path(scratch) / kind)
        print(f"{kind}: {measured[kind]['mean_kl']:.5f}", flush=True)
        save(document)


def recipe_of_kind(kind: str) -> str:
    """A recipe of 4 bits with one kind of matrix at 8."""
    rules = [("language_model.*", 4)]
    if kind != "none":
        rules.insert(0, (f"language_model.*{kind}", 8))
    tables = [f'[[modules]]\nmatch = "{match}"\nbits = {bits}\n' for match, bits in rules]
    return "\n".join(
        [
            f'description = "4 bits, {kind} at 8"',
            *tables,
            '[[modules]]\nmatch = "*"\nkeep = true\n',
        ]
    )


def save(document: dict[str, Any]) -> None:
    scratch = OUTPUT.with_suffix(".partial")
    scratch.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    shutil.move(scratch, OUTPUT)


def write_tables(document: dict[str, Any]) -> str:
    """Recipes with the tasks that lose most, and the kinds, in Markdown."""
    recipes = document.get("recipes", {})
    plain = recipes.get("bf16", {}).get("tasks", {})
    lines = [
        "| recipe | MB | bits/weight | mean KL | same top | mean of tasks | tasks 2 points lower |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, record in recipes.items():
        tasks = record["tasks"]
        mean = sum(tasks.values()) / len(tasks)
        lost = [
            f"{task} {plain[task]:.1%} to {right:.1%}"
            for task, right in tasks.items()
            if task in plain and plain[task] - right >= 0.02
        ]
        lines.append(
            f"| {name} | {record['bytes'] / 1e6:.1f} | {record['bits_per_weight']:.2f} | "
            f"{record['mean_kl']:.5f} | {record['top1_agreement']:.2%} | {mean:.2%} | "
            f"{'; '.join(lost) or 'none'} |"
        )
    kinds = document.get("kinds", {})
    if kinds:
        base = kinds["none"]
        lines += ["", "| at 8 bits | MB | mean KL | KL less, per MB more |", "|---|---|---|---|"]
        for kind, record in kinds.items():
            more = (record["bytes"] - base["bytes"]) / 1e6
            less = base["mean_kl"] - record["mean_kl"]
            gain = f"{less / more:.4f}" if more else ""
            lines.append(
                f"| {kind} | {record['bytes'] / 1e6:.2f} | {record['mean_kl']:.5f} | {gain} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=200, help="of each task")
    parser.add_argument("--kinds", action="store_true", help="one kind of matrix at 8 bits each")
    parser.add_argument("--stored", action="store_true", help="measure nothing: print the tables")
    options = parser.parse_args()
    document = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {}
    if options.kinds:
        measure_kinds(document)
    elif not options.stored:
        measure_recipes(document, options.samples)
    print(write_tables(document))


if __name__ == "__main__":
    main()
