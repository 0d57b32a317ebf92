"""The section "Predictions" of kernels/README.md, from counted launches and the cost model.

    python benchmarks/launches.py | python benchmarks/predictions.py
    python benchmarks/launches.py | python benchmarks/predictions.py --write

The first prints it, the second puts it in its place.
Predicted are tokens a second of the 12B at 4 bit, by `mlx_gemma4.bench`, beside the roofline of the
same bytes and what others have published of their programs.  Nothing here was timed by us.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from random_checkpoint import PLACEHOLDERS, SIZES, build_config, find_token_ids

from mlx_gemma4.bench.chips import CHIPS, Chip
from mlx_gemma4.bench.prediction import ARITHMETIC_SHARE, LAUNCH_S, READING_SHARE, Step
from mlx_gemma4.bench.roofline import GlobalRows, WeightFormat, decode_tokens_per_s
from mlx_gemma4.config import Config, TextConfig

README = Path(__file__).resolve().parents[1] / "kernels" / "README.md"
HEADING = "## Predictions"
OWN, PEER = "mlx-gemma4", "mlx-lm"
CONTEXTS = {"1K": 1024, "32K": 32768, "128K": 131072, "256K": 262144}
FOUR_BIT = WeightFormat(4, 64)


@dataclass(frozen=True)
class Published:
    """What others have measured: decoding of the 12B.

    Attributes:
        program: With the format of its weights, and the prompt if it was not short.
        weights_gb: That a token reads, as published or from bits a weight.
        context: Positions before the token; a few hundred where it is not said.
        tokens_per_s: As published.
        source: Where.
    """

    program: str
    weights_gb: float
    context: int
    tokens_per_s: str
    source: str


# "4 bit" is taken at its word: 4.5 bits a weight with scale and bias.
PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "M1": (Published("mlx-lm and llama.cpp, 4.9 bits", 7.29, 512, "7 to 7.8", "Ziraph's report"),),
    "M2 Pro": (Published("Rapid-MLX, 4 bit", 6.7, 512, "19.6 to 21.7", "its guide"),),
    "M3 Pro": (Published("Rapid-MLX, 4 bit", 6.7, 512, "16.3 to 17.9", "its guide"),),
    "M3 Ultra": (Published("mlx-lm, nvfp4, at 65K", 6.7, 65_000, "53.3", "ml-explore/mlx #4518"),),
    "M4": (Published("Ollama, GGUF, Q4_K_M", 7.38, 512, "12.2", "ollama #16562"),),
    "M4 Pro": (Published("mlx-lm, nvfp4, at 16K", 6.7, 16_000, "29.4", "ml-explore/mlx #4518"),),
    "M5 Max": (
        Published("AX Engine, 4 bit", 6.74, 512, "67.9", "its README"),
        Published("llama.cpp, Q4_K_M", 7.38, 512, "57.9", "ax-engine's README"),
        Published("Ollama, nvfp4, coding prompts", 6.7, 1024, "50.2", "Ollama's blog"),
    ),
}


def real_text_config() -> TextConfig:
    """Return the 12B's decoder."""
    ids = find_token_ids(None, SIZES["real"].vocab_size)
    named_ids = {key: ids[content] for key, content in PLACEHOLDERS.items()}
    config = build_config(SIZES["real"], "bfloat16", named_ids | {"eos_token_id": ids["<eos>"]})
    return Config.from_dict(config).text_config


def step_of(
    text: TextConfig, chip: Chip, context: int, launches: Mapping[str, int], rows: GlobalRows
) -> Step:
    """Return a decoded token at 4 bit on a chip, whose size decides on the launches."""
    return Step.of_model(text, context, lambda _: FOUR_BIT, launches[chip.architecture], rows)


def write_launches(launches: Mapping[str, Mapping[str, int]]) -> str:
    """Return the table of launches by program and size of chip."""
    lines = ["| program | base | Pro, Max | Ultra |", "|---|---|---|---|"]
    lines += [
        f"| {program} | {of_program['g']:,} | {of_program['s']:,} | {of_program['d']:,} |"
        for program, of_program in launches.items()
    ]
    return "\n".join(lines)


def read_launches(section: str) -> dict[str, dict[str, int]]:
    """Return the launches that a section has in its table."""
    launches: dict[str, dict[str, int]] = {}
    for line in section.partition("| program |")[2].splitlines()[2:]:
        if not line.startswith("|"):
            break
        program, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
        counts = (int(number.replace(",", "")) for number in numbers)
        launches[program] = dict(zip("gsd", counts, strict=True))
    return launches


def write_predictions(text: TextConfig, launches: Mapping[str, int]) -> str:
    """Return the table of chips: predicted tokens a second, the roofline in brackets."""
    lines = [
        f"| chip | {' | '.join(CONTEXTS)} | published by others |",
        "|---|" + "---|" * (len(CONTEXTS) + 1),
    ]
    for chip in CHIPS:
        cells = []
        for context in CONTEXTS.values():
            step = step_of(text, chip, context, launches, "shared")
            bound = decode_tokens_per_s(chip, step.read_bytes)
            cells.append(f"{1 / step.predicted_s(chip):.1f} ({bound:.1f})")
        published = "; ".join(
            f"{of.tokens_per_s} ({of.program})" for of in PUBLISHED.get(chip.name, ())
        )
        lines.append(f"| {chip.name} | {' | '.join(cells)} | {published or '-'} |")
    return "\n".join(lines)


def write_comparison(text: TextConfig, launches: Mapping[str, int]) -> str:
    """Return the table of what the model says of a peer's launches, and what was measured."""
    lines = ["| chip | program | predicted | measured | source |", "|---|---|---|---|---|"]
    for chip in CHIPS:
        for of in PUBLISHED.get(chip.name, ()):
            step = step_of(text, chip, of.context, launches, "separate")
            step = replace(step, weight_bytes=of.weights_gb * 1e9)
            cells = [of.program, f"{1 / step.predicted_s(chip):.1f}", of.tokens_per_s, of.source]
            lines.append(f"| {chip.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def lost_share(text: TextConfig, chip: Chip, launches: Mapping[str, int]) -> float:
    """Return the share of speed at 1K that would be lost if a launch cost twice as much."""
    once = step_of(text, chip, CONTEXTS["1K"], launches, "shared").predicted_s(chip)
    return 1 - once / (once + launches[chip.architecture] * LAUNCH_S)


def write_section(launches: Mapping[str, Mapping[str, int]]) -> str:
    """Return the whole section."""
    text, own = real_text_config(), launches[OWN]
    step = step_of(text, CHIPS[0], CONTEXTS["32K"], own, "shared")
    parts = [
        HEADING,
        _paragraph(
            """**Everything in this section is computed; nothing was timed on a Mac.**
            `benchmarks/predictions.py` writes it, from launches that `make launches` counts without
            a GPU.  Launches of one decoded token of the 12B at 4 bit, cache writes included, by the
            size of the chip:"""
        ),
        write_launches(launches),
        _paragraph(
            f"""Predicted tokens a second of {OWN} with all kernels on, and in brackets the
            roofline: the memory's nominal bandwidth divided by the bytes that must be read.  Those
            are {step.weight_bytes / 1e9:.2f} GB of matrices at 4 bit in groups of 64, and in
            bfloat16 {step.sliding_bytes / 1e9:.2f} GB of sliding layers' rows and, at 32K,
            {step.global_bytes / 1e9:.2f} GB of global layers' shared rows:"""
        ),
        write_predictions(text, own),
        _paragraph(
            f"""The cost model (`mlx_gemma4/bench/prediction.py`): bytes at {READING_SHARE:.0%} of
            the bandwidth; attention of global layers at that, or at {ARITHMETIC_SHARE:.0%} of what
            the cores can compute if that takes longer; and {1e6 * LAUNCH_S:.1f} us a launch, half
            of what one was measured to cost by itself.  That is the least certain: if it were twice
            as much, an M1 would lose {lost_share(text, CHIPS[0], own):.0%} at 1K, and an M5 Max
            {lost_share(text, CHIPS[-1], own):.0%}."""
        ),
        _paragraph(
            f"""What the same model says of {PEER}'s launches and its separate keys and values,
            beside what others have measured of their programs, few of which are exactly that:"""
        ),
        write_comparison(text, launches[PEER]),
        _paragraph(
            f"""At 65K it is too kind to {PEER}, whose global layers then run as five kernels that
            write and read scores; prompts and the state of a machine differ too."""
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 105)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the predictions of kernels/README.md.")
    parser.add_argument("--write", action="store_true", help="replace the section in the README")
    options = parser.parse_args()
    document: dict[str, Any] = json.loads(sys.stdin.read().strip().splitlines()[-1])
    programs = document["programs"]
    if missing := {OWN, PEER} - set(programs):
        sys.exit(f"launches of {', '.join(sorted(missing))} are missing; see launches.py --help")
    section = write_section({name: of["launches"] for name, of in programs.items()})
    if not options.write:
        print(section, end="")
        return
    before = README.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")[0]
    README.write_text(f"{before.rstrip()}\n\n{section}", encoding="utf-8")


if __name__ == "__main__":
    main()
