"""Store what transformers answers with the demo checkpoint: 50 prompts, token for token.

    python -m benchmarks.demo.goldens            in an environment with torch and transformers

Media are drawn once and kept as small lossless files in tests/data/demo; prompts.json beside them
has each prompt, its options, and the greedy ids of transformers' `generate` in float32 with a
static cache, whose masks follow the rule that this project follows.  Run it again whenever the
demo checkpoint is trained again; `--media` draws the files anew.
"""

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from benchmarks.demo import clips, pictures, sounds, text, words

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "data" / "demo"
MAX_TOKENS = 32
FRAMES_PER_SECOND = 4


@dataclass
class Prompt:
    """A prompt as `load("demo")` and its processor take it; media are names of files."""

    prompt: Any
    images: list[str] = field(default_factory=list)
    audio: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    thinking: bool = False
    tools: list[Any] | None = None


def draw_media() -> None:
    """Draw 10 pictures, 5 sounds, and 3 clips."""
    rng = random.Random("goldens of the demo checkpoint")
    for index in range(10):
        size = pictures.SIZES[index % len(pictures.SIZES)]
        if index < 4:
            picture = pictures.draw_single(rng, size)
        elif index < 6:
            picture = pictures.draw_scene(rng, size, 3)
        elif index < 8:
            picture = pictures.draw_count(rng, size, 2 + index - 6)
        else:
            picture = pictures.draw_number(rng, size, ("47", "305")[index - 8])
        Image.fromarray(picture.pixels).save(FOLDER / f"picture{index}.png", optimize=True)
    for index in range(5):
        sound = sounds.play_keys(rng) if index < 3 else sounds.play_melody(rng)
        soundfile.write(FOLDER / f"sound{index}.flac", sound.samples, 16_000, subtype="PCM_16")
    for index in range(3):
        write_clip(clips.draw_clip(rng, 8).frames, FOLDER / f"clip{index}.mkv")


def write_clip(frames: list[np.ndarray], path: Path) -> None:
    """Write frames without loss, so that every decoder gives the same pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FRAMES_PER_SECOND)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_prompts() -> list[Prompt]:
    """Write 50 prompts of every kind."""
    rng = random.Random("prompts of the demo checkpoint")

    def ask(question: str, *slots: object) -> str:
        return rng.choice(words.ASK[question]).format(*slots)

    prompts: list[Prompt] = []
    for index in range(10):
        question = ("shape", "colour", "shape and colour", "count", "number")[index % 5]
        prompts.append(Prompt(ask(question), images=[f"picture{index}.png"]))
        other = ("shape and colour", "count", "number", "digits")[index % 4]
        prompts.append(Prompt(ask(other), images=[f"picture{index}.png"]))
    for index in range(5):
        question = "keys" if index < 3 else "melody"
        prompts.append(Prompt(ask(question), audio=[f"sound{index}.flac"]))
        prompts.append(Prompt(ask("tones"), audio=[f"sound{index}.flac"]))
    for index in range(3):
        prompts.append(Prompt(ask("motion"), videos=[f"clip{index}.mkv"]))
        prompts.append(Prompt(ask("mover"), videos=[f"clip{index}.mkv"]))
    prompts.append(Prompt("What do you see?", images=["picture0.png", "picture5.png"]))
    prompts.append(Prompt("How many?", images=["picture6.png"], audio=["sound1.flac"]))
    prompts.append(
        Prompt(
            "What is this?",
            images=["picture1.png"],
            audio=["sound3.flac"],
            videos=["clip1.mkv"],
        )
    )
    prompts.append(
        Prompt(
            [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]},
                {"role": "assistant", "content": "red circle"},
                {"role": "user", "content": ask("count")},
            ],
            images=["picture2.png"],
        )
    )
    # By name, so that another mix of training tasks asks the same.
    tasks = [text.write_words(rng, task, held_out=True) for task in ("copy", "reverse", "upper")]
    tasks += [text.write_sum(rng, held_out=True, thinking=index < 3) for index in range(5)]
    tasks += [text.write_call(rng, held_out=True) for _ in range(50 - len(prompts) - len(tasks))]
    for task in tasks:
        tools = [words.TOOLS[name] for name in task.tools] or None
        prompts.append(Prompt(task.question, thinking=task.thinking, tools=tools))
    return prompts


def main() -> None:
    """Draw what is missing, ask transformers, write prompts.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--media", action="store_true", help="draw the files anew")
    options = parser.parse_args()
    sys.path.append(str(ROOT / "tests" / "support"))
    from demo_prompts import inputs_of
    from transformers_reference import demo_reference, greedy_ids

    from mlx_gemma4.api import load

    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.media or not (FOLDER / "clip2.mkv").exists():
        draw_media()
    reference = demo_reference()
    _, processor = load("demo")
    records = []
    for prompt in write_prompts():
        record = {key: value for key, value in asdict(prompt).items() if value}
        record["ids"] = greedy_ids(reference, inputs_of(processor, record), MAX_TOKENS)
        records.append(record)
        print(prompt.prompt, "->", processor.tokenizer.decode(record["ids"]))
    (FOLDER / "prompts.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
