"""Store what transformers makes of the cases in tests/support/prompt_cases.py.

    python benchmarks/prompt_goldens.py CHECKPOINT

CHECKPOINT is a folder with Google's config.json, tokenizer.json, chat_template.jinja, and
processor_config.json.  The processor needs torch and torchvision; neither belongs to the
environments of this project:

    python3 -m venv build/goldens
    build/goldens/bin/pip install torch torchvision transformers pillow numpy soundfile

The files go to tests/data/processor.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "support"))

from prompt_cases import MEDIA_CASES, TEMPLATE_CASES, TEXTS, compress  # noqa: E402
from transformers_processor import (  # noqa: E402
    make_reference_folder,
    reference_chat,
    reference_ids,
)

FOLDER = ROOT / "tests" / "data" / "processor"


def main() -> None:
    """Compute and store every golden."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        reference = make_reference_folder(Path(sys.argv[1]).resolve(), Path(folder))
        processor = transformers.AutoProcessor.from_pretrained(str(reference))
        tokenizer = processor.tokenizer
        _store("chat_template", {c.name: reference_chat(tokenizer, c) for c in TEMPLATE_CASES})
        _store("prompts", {c.name: compress(reference_ids(processor, c)) for c in MEDIA_CASES})
        _store("texts", {name: tokenizer.encode(text) for name, text in TEXTS.items()})


def _store(name: str, goldens: dict[str, Any]) -> None:
    lines = (f" {json.dumps(k)}: {json.dumps(v)}" for k, v in goldens.items())
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{name}: {len(goldens)} cases")


if __name__ == "__main__":
    main()
