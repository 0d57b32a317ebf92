"""Writes results/README.md from the JSON beside it, and nothing that is not in it.

    python benchmarks/results_table.py --write

A test compares the page with what this makes of the files.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench_memory import is_close

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
    "prefill_step_size": ("chunk, tokens", 1.0),
    "temporary_bytes": ("temporary, MB", 1e6),
    "cache_bytes_per_token": ("cache, bytes a token", 1.0),
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
        elif document.get("what") == "memory":
            sections.append(write_plans(name, document))
        elif document.get("what") == WHAT:
            text = path.read_text(encoding="utf-8")
            sections.append(write_bench(name, Document.from_json(text, path.name)))
        else:
            sections.append(f"## {name}\n\nAnother script's, see [the file]({name}).\n")
    return "\n".join(sections)


def write_peers(name: str, document: Mapping[str, Any]) -> str:
    """Return the section of a run of peers.py: a line a figure, a column a program."""
    checkpoint, cases = document["checkpoint"], document["cases"]
    programs = list({program: None for case in cases.values() for program in case["programs"]})
    # Of the environments, what differs: each program's own version, and MLX.
    versions = [f"{p} {document['versions'][p][p]}" for p in programs if p in document["versions"]]
    versions.append(f"MLX {document['versions'][OWN]['mlx']}")
    about = (
        f"{describe_machine(document['machine'])}; {', '.join(versions)}; checkpoint "
        f"{checkpoint['name']}, {checkpoint['dtype']}{describe_bits(checkpoint)}; commit "
        f"{document['commit']}, {document['date'][:10]}{describe_command(document)}."
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


def write_plans(name: str, document: Mapping[str, Any]) -> str:
    """Return the section of a run of bench_memory.py: planned and measured peaks."""
    versions = [f"{p} {document['versions'][p]}" for p in (OWN, "mlx")]
    about = (
        f"Memory while a prompt is read, planned and measured; "
        f"{describe_machine(document['machine'])}; {', '.join(versions)}; commit "
        f"{document['commit']}, {document['date'][:10]}{describe_command(document)}."
    )
    headings = [
        "checkpoint",
        "tokens",
        "chunk",
        "read",
        "planned",
        "measured",
        "measured / planned",
    ]
    lines = [f"## {name}", "", about, "", row(headings), row(["---"] * len(headings))]
    for case in document["rows"]:
        bits = f", {case['bits']} bits" if case["bits"] else ""
        pictures = f", 2 pictures of {case['picture']:,}" if case["picture"] else ""
        planned, measured = case["planned_bytes"], case["measured_bytes"]
        cells = [f"{case['model']}{bits}", f"{case['tokens']:,}{pictures}", f"{case['step']:,}"]
        cells += ["the last chunk" if case["is_one_chunk"] else "in full"]
        cells += [f"{planned / 1e6:,.0f} MB", f"{measured / 1e6:,.0f} MB"]
        lines.append(row([*cells, f"{measured / planned:.3f}"]))
    close = sum(is_close(case) for case in document["rows"])
    return (
        "\n".join([*lines, "", f"{close} of {len(document['rows'])} within 5 % or 50 MB."]) + "\n"
    )


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Return chip, cores, memory, system, load, and BLAS."""
    return (
        f"{machine['chip']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"{machine['system']}, load average {machine['load_average']:.1f} at the start, BLAS: "
        f"{Path(machine['preloaded']).name or 'as it comes'}"
    )


def describe_command(document: Mapping[str, Any]) -> str:
    """Return the command line where it was kept."""
    return f"; `{document['command']}`" if "command" in document else ""


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
        is_dead = program in case.get("limits_reached", ())
        return f"died at {case['limit_bytes'] / 1e9:.0f} GB" if is_dead else ""
    scaled = value["median"] / scale
    text = f"{scaled:,.0f}" if scale > 1 or scaled >= 1000 else f"{scaled:.3g}"
    text += "~" * value.get("is_noisy", False)
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
