"""Writes results/README.md from the JSON beside it, and nothing that is not in it.

    python benchmarks/results_table.py --write

A test compares the page with what this makes of the files.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_gemma4.bench.report import WHAT, Document
from mlx_gemma4.cli.bench_tables import describe_document, table_of

RESULTS = Path(__file__).resolve().parent / "results"
OWN = "mlx-gemma4"
HEAD = """# Results

`make results` writes this page from the files beside it.  A figure is a median; `~` marks one whose
turns are far apart; the number in brackets is another program's figure over that of mlx-gemma4,
with its range where it was kept.  How it is measured: [benchmarks](../README.md).  **Figures of a
CPU say nothing about Metal.**
"""
# Figure in the document, its name, and how many of the document's unit make one of the table's.
FIGURES = {
    "wall_s": ("s", 1.0),
    "load_s": ("load, s", 1.0),
    "first_token_s": ("first token, s", 1.0),
    "prefill_tokens_per_s": ("read, tokens/s", 1.0),
    "decode_tokens_per_s": ("answer, tokens/s", 1.0),
    "peak_over_weights_bytes": ("peak over weights, MB", 1e6),
    "peak_resident_bytes": ("peak of the process, MB", 1e6),
}


def write_page(folder: Path) -> str:
    """Return the page for a folder of results."""
    sections = [HEAD]
    for path in sorted(folder.glob("*/*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        name = f"{path.parent.name}/{path.name}"
        if document.get("what") == "peers":
            sections.append(write_peers(name, document))
        elif document.get("what") == WHAT:
            text = path.read_text(encoding="utf-8")
            sections.append(write_bench(name, Document.from_json(text, path.name)))
        else:
            sections.append(f"## {name}\n\nAnother script's, see [the file]({name}).\n")
    return "\n".join(sections)


def write_peers(name: str, document: Mapping[str, Any]) -> str:
    """Return the section of a run of peers.py: a line a figure, a column a program."""
    machine, checkpoint, cases = document["machine"], document["checkpoint"], document["cases"]
    programs = list({program: None for case in cases.values() for program in case["programs"]})
    # Of the environments, what differs: each program's own version, and MLX.
    versions = [f"{p} {document['versions'][p][p]}" for p in programs if p in document["versions"]]
    versions.append(f"MLX {document['versions'][OWN]['mlx']}")
    about = (
        f"{machine['chip']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"{machine['system']}, load average {machine['load_average']:.1f} at the start, BLAS: "
        f"{Path(machine['preloaded']).name or 'as it comes'}; {', '.join(versions)}; checkpoint "
        f"{checkpoint['name']}, {checkpoint['dtype']}{describe_bits(checkpoint)}; commit "
        f"{document['commit']}, {document['date'][:10]}."
    )
    lines = [f"## {name}", "", about, "", row(["", *programs]), row(["---"] * (len(programs) + 1))]
    for case_name, case in cases.items():
        lines += [row([label, *cells]) for label, cells in figures_of(case_name, case, programs)]
    errors = [
        f"* {case_name}, {program}: {error}"
        for case_name, case in cases.items()
        for program, error in case["errors"].items()
    ]
    return "\n".join([*lines, *(["", *errors] if errors else [])]) + "\n"


def describe_bits(checkpoint: Mapping[str, Any]) -> str:
    """Return bits per weight, and quality where it is known."""
    text = ""
    if "bits_per_weight" in checkpoint:
        text += f", {checkpoint['bits_per_weight']:.2f} bits per weight"
    if quality := checkpoint.get("quality"):
        text += f", mean KL {quality['mean_kl']:.5f}"
    return text


def figures_of(
    name: str, case: Mapping[str, Any], programs: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield label and cells of each figure that a case is about."""
    known = case["programs"].values()
    # A process's whole time tells nothing beside the figure that it was started for.
    is_alone = not any(len(figures) > 1 for figures in known)
    for figure, (label, scale) in FIGURES.items():
        if any(figure in of for of in known) and (figure != "wall_s" or is_alone):
            cells = [show_figure(case, program, figure, scale) for program in programs]
            yield f"{name}: {label}", cells


def show_figure(case: Mapping[str, Any], program: str, figure: str, scale: float) -> str:
    """Return a median with its mark, and the ratio to ours with its range."""
    value = case["programs"].get(program, {}).get(figure)
    if value is None:
        return ""
    text = f"{value['median'] / scale:,.3g}" + "~" * value.get("is_noisy", False)
    if scale > 1:
        text = f"{value['median'] / scale:,.0f}" + "~" * value.get("is_noisy", False)
    ratio = case["ratios"].get(program, {}).get(figure)
    if ratio is None:
        return text
    low_high = case.get("ratio_ranges", {}).get(program, {}).get(figure)
    between = f", {low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else ""
    return f"{text} ({ratio:.2f}{between})"


def write_bench(name: str, document: Document) -> str:
    """Return the section of a document of bench."""
    lines = [f"## {name}", "", "; ".join(describe_document(document)) + f"; {document.date[:10]}."]
    headings, cells = table_of(document.rows)
    lines += ["", row(list(headings)), row(["---"] * len(headings))]
    lines += [row(list(of_row)) for of_row in cells]
    notes = [f"* {note}" for note in document.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def row(cells: list[str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write results/README.md from its JSON files.")
    parser.add_argument("--write", action="store_true", help="replace the page")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    page = write_page(options.results)
    if options.write:
        (options.results / "README.md").write_text(page, encoding="utf-8")
    else:
        print(page, end="")


if __name__ == "__main__":
    main()
