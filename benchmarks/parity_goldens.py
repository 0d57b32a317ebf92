"""Store transformers' logits for tests/parity: run in an environment with torch and transformers.

    python benchmarks/parity_goldens.py

For each case of tests/support/parity_cases.py the logits of some positions, the last ones and those
around every picture among them, go to tests/data/parity/<case>.npz.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "support"))

from parity_cases import CASES, Case, config_of, inputs_of, parameters_of  # noqa: E402
from transformers_reference import reference_logits, reference_model  # noqa: E402

NUM_POSITIONS = 24


def positions_of(case: Case) -> np.ndarray:
    """Return the positions to store: edges of pictures, the last ones, and some between."""
    inputs = inputs_of(case)
    wanted = {len(inputs) - 1 - i for i in range(6)}
    for span in inputs.spans:
        wanted |= {span.start, (span.start + span.stop) // 2, span.stop - 1, span.stop}
    spread = np.linspace(0, len(inputs) - 1, NUM_POSITIONS).astype(int).tolist()
    return np.array(sorted({p for p in [*wanted, *spread] if 0 <= p < len(inputs)}), np.int32)


def main() -> None:
    """Compute and store every golden."""
    folder = ROOT / "tests" / "data" / "parity"
    for case in CASES:
        config = config_of(case.variant)
        model = reference_model(config, parameters_of(config, case.seed))
        rules = {case.name: False}
        if case.name == "image_late":
            rules["image_late_forward_rule"] = True
        for name, forward_rule in rules.items():
            positions = positions_of(case)
            logits = reference_logits(model, inputs_of(case), forward_rule=forward_rule)
            np.savez_compressed(
                folder / f"{name}.npz", positions=positions, logits=logits[positions]
            )
            print(f"{name}: {len(inputs_of(case))} tokens, {len(positions)} positions stored")


if __name__ == "__main__":
    main()
