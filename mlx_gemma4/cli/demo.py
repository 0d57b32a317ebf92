"""`mlx-gemma4 demo`: ask the bundled checkpoint about its bundled picture, sound, and clip.

samples/samples.json in the checkpoint lists the questions: objects with `file` (beside it), `kind`
("image", "audio", or "video"), `prompt`, and `answer`.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlx_gemma4.errors import CheckpointError

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_gemma4.model.gemma4 import Gemma4
    from mlx_gemma4.processing.processor import Processor

WRONG_ANSWER = 1
_SAMPLES = Path("samples", "samples.json")
_MAX_TOKENS = 64


def demo() -> int:
    """Ask the bundled model about a picture, a sound, a clip.

    Shows what goes in and what comes out; an answer that is not the expected one is exit code 1.
    """
    from rich.console import Console

    from mlx_gemma4.api import load
    from mlx_gemma4.hub import DEMO, find_checkpoint

    folder = find_checkpoint(DEMO)
    samples = _read_samples(folder / _SAMPLES)
    console = Console(highlight=False)
    start = time.perf_counter()
    model, processor = load(folder)
    console.print(
        f"The demo checkpoint: {model.config.text_config.num_hidden_layers} layers, "
        f"{_count_parameters(model) / 1e6:.1f} million parameters, in Google's format."
    )
    num_right = 0
    for sample in samples:
        console.print()
        num_right += _ask(console, model, processor, sample, folder / _SAMPLES.parent)
    console.print()
    console.print(
        f"{num_right} of {len(samples)} answers are right, in {time.perf_counter() - start:.1f} s."
    )
    return 0 if num_right == len(samples) else WRONG_ANSWER


def _ask(
    console: "Console",
    model: "Gemma4",
    processor: "Processor",
    sample: dict[str, str],
    folder: Path,
) -> bool:
    """Ask one question, show everything about it, and return whether the answer is right."""
    from mlx_gemma4.api import generate_result
    from mlx_gemma4.cli.drawing import draw_medium
    from mlx_gemma4.cli.media import describe_medium
    from mlx_gemma4.messages import MediaPart, Message, TextPart

    kind: Any = sample["kind"]
    medium, text = MediaPart(kind, folder / sample["file"]), TextPart(sample["prompt"])
    parts = (text, medium) if kind == "audio" else (medium, text)
    prepared = processor.prepare([Message("user", parts)])
    for seen in prepared.media:
        console.print(f"{seen.modality}: {describe_medium(seen)}", style="dim", markup=False)
        drawing = draw_medium(seen, has_colours=bool(console.color_system))
        if drawing is not None:
            console.print(drawing)
    result = generate_result(model, processor, prepared.inputs, max_tokens=_MAX_TOKENS, temp=0.0)
    is_right = result.text.strip() == sample["answer"]
    verdict = "right" if is_right else f"wrong: {sample['answer']} was expected"
    console.print(f"> {sample['prompt']}", markup=False)
    console.print(f"{result.text.strip()}  ({verdict})", style="bold", markup=False)
    return is_right


def _count_parameters(model: "Gemma4") -> int:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    parameters = cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
    return sum(array.size for _, array in parameters)


def _read_samples(path: Path) -> list[dict[str, str]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the bundled samples cannot be read ({error}); install mlx-gemma4 again"
        ) from None
