"""The CPU set, `make bench`: four forms of one random checkpoint, and the converted demo.

Each form goes through `mlx-gemma4 bench`, whose figures stand beside the ceiling, and through
`peers.py`, beside the programs that are installed.  Contexts are short where a form is slow on a
CPU: what MLX does there with bfloat16 scales takes a second a token.

    float32           what the CPU is good at
    bfloat16          as Google publishes
    q4                as the converter makes it, with bfloat16 scales
    q4-float32        the same with float32 scales: most of q4's time there is the dtype's
    demo-q4           a trained checkpoint, whose quality stands beside its speed

    python benchmarks/bench_set.py build/bench --python-of mlx-vlm=build/peers/bin/python

Makes what is not there yet in the folder; writes JSON to results/, plots to the folder, and the
page results/README.md.  An interrupted run goes on with the forms that are missing; --force begins
anew.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from peer_facts import name_chip, name_commit
from random_checkpoint import SIZES, write_checkpoint
from results_table import RESULTS, write_page

from mlx_gemma4.bench.plots import plot_documents
from mlx_gemma4.bench.report import read_document
from mlx_gemma4.errors import MissingExtraError
from mlx_gemma4.hub import find_checkpoint

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Form:
    """One checkpoint of the set.

    Attributes:
        make: Writes it into a folder; the first argument is the folder of the whole set.
        prompts: Lengths for `mlx-gemma4 bench`.
        contexts: Lengths beside the peers; none leaves them out.
        tokens: Of an answer.
    """

    make: Callable[[Path, Path], object]
    prompts: str
    contexts: str
    tokens: int


def make_random(dtype: str) -> Callable[[Path, Path], object]:
    return lambda _, target: write_checkpoint(target, SIZES["mid"], dtype=dtype)


def convert_to_q4(scratch: Path, target: Path) -> None:
    run_own("convert", str(scratch / "bfloat16"), "--recipe", "q4", "--output", str(target))


def convert_demo(_: Path, target: Path) -> None:
    demo = str(find_checkpoint("demo"))
    run_own("convert", demo, "--recipe", "q4", "--output", str(target), "--report")


def widen_scales(scratch: Path, target: Path) -> None:
    """Write the 4-bit checkpoint with everything in float32 that was bfloat16."""
    source = scratch / "q4"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in source.glob("*.safetensors"):
        arrays = mx.load(str(file))
        assert isinstance(arrays, dict)
        wide = {
            name: array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
            for name, array in arrays.items()
        }
        mx.save_safetensors(str(target / file.name), wide, {"format": "mlx"})
    config = json.loads((target / "config.json").read_text())
    config["dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(config, indent=2))


FORMS = {
    "float32": Form(make_random("float32"), "128,512,2048,8192", "128,512,2048,8192", 32),
    "bfloat16": Form(make_random("bfloat16"), "128,512,2048", "128,512", 16),
    "q4": Form(convert_to_q4, "128,512,2048", "32", 8),
    "q4-float32": Form(widen_scales, "128,512,2048", "128", 16),
    "demo-q4": Form(convert_demo, "128,512,2048", "", 32),
}
QUICK = {
    name: Form(form.make, "128", "32" if form.contexts else "", 8) for name, form in FORMS.items()
}


def run_own(*arguments: str) -> None:
    """Run the command line of mlx-gemma4; what it says goes to the terminal."""
    subprocess.run([sys.executable, "-P", "-m", "mlx_gemma4", *arguments], check=True)


def make_form(name: str, form: Form, scratch: Path) -> Path:
    """Return the folder of a form, made if it is not there; never half of it."""
    folder = scratch / name
    if not (folder / "config.json").is_file():
        partial = scratch / f"{name}.part"
        shutil.rmtree(partial, ignore_errors=True)
        form.make(scratch, partial)
        partial.rename(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path, help="for checkpoints and plots")
    parser.add_argument("--python-of", action="append", default=[], metavar="PROGRAM=PYTHON")
    parser.add_argument("--only", action="append", choices=FORMS, help="this form alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the shortest prompts alone")
    parser.add_argument("--force", action="store_true", help="measure anew what is there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    target = options.results / name_chip()
    target.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.datetime.now(datetime.UTC):%Y%m%d}-{name_commit()}"
    forms = QUICK if options.quick else FORMS
    documents: list[Path] = []
    # Every form is made, whichever are measured: one may be made of another.
    folders = {name: make_form(name, form, options.scratch) for name, form in forms.items()}
    for name in options.only or forms:
        form, folder = forms[name], folders[name]
        path = target / f"{stem}-bench-{name}.json"
        documents.append(path)
        if options.force or not path.is_file():
            line = ["--prompt", form.prompts, "--depth", form.prompts.split(",")[-1]]
            line += ["--tokens", str(form.tokens), "--rounds", str(options.rounds)]
            run_own("bench", "--model", str(folder), *line, "--json", str(path))
        peers = target / f"{stem}-peers-{name}.json"
        if form.contexts and options.python_of and (options.force or not peers.is_file()):
            command = [sys.executable, str(HERE / "peers.py"), str(folder), "--output", str(peers)]
            command += ["--contexts", form.contexts, "--max-tokens", str(form.tokens)]
            command += ["--rounds", str(options.rounds)]
            for program in options.python_of:
                command += ["--python-of", program]
            subprocess.run(command, check=True)
    try:
        for path in documents:
            plot_documents([read_document(path)], options.scratch / f"{path.stem}.png")
    except MissingExtraError as error:
        print(f"no plots: {error}", file=sys.stderr)
    (options.results / "README.md").write_text(write_page(options.results), encoding="utf-8")
    print(options.results / "README.md")


if __name__ == "__main__":
    main()
