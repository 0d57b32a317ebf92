"""Write the demo's bundled samples: a picture, a sound, and a clip that training never saw.

Each question is asked through the product first; a candidate whose answer is wrong is passed over
(how often that happens is what accuracy.py measures).

    python -m benchmarks.demo.samples
"""

import argparse
import io
import json
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from benchmarks.demo import clips, pictures, sounds

FRAMES_PER_SECOND = 4
MAX_TRIES = 20


def clip_bytes(
    frames: list[np.ndarray],
    frames_per_second: int = FRAMES_PER_SECOND,
    container: str = "matroska",
) -> bytes:
    """Return frames [H, W, 3] uint8 as a video file without loss."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        # RGB as it is: no colour subsampling, no quantization, small for flat pictures.
        stream: Any = file.add_stream("ffv1", rate=frames_per_second)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for pixels in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def find_samples(model: Any, processor: Any, folder: Path) -> list[dict[str, str]]:
    """Write the first right answer of each kind; returns the records of samples.json."""
    from mlx_gemma4.api import generate_result

    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for make in (make_shape, make_count, make_number, make_keys, make_melody, make_clip):
        rng = random.Random(f"samples {make.__name__}")
        for _ in range(MAX_TRIES):
            kind, name, content, prompt, answer = make(rng)
            (folder / name).write_bytes(content)
            option = {"image": "images", "audio": "audio", "video": "videos"}[kind]
            given: dict[str, Any] = {option: [folder / name]}
            result = generate_result(model, processor, prompt, max_tokens=64, temp=0.0, **given)
            if result.text.strip() == answer:
                records.append({"file": name, "kind": kind, "prompt": prompt, "answer": answer})
                break
            (folder / name).unlink()
        else:
            print(f"{make.__name__}: no right answer in {MAX_TRIES} tries")
    return records


def png(picture: pictures.Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def wav(sound: sounds.Sound) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound.samples, sounds.SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def make_shape(rng: random.Random) -> tuple[str, str, bytes, str, str]:
    picture = pictures.draw_single(rng, (192, 144), (26, 40))
    return "image", "shape.png", png(picture), "What is in the picture?", picture.items[0].name


def make_count(rng: random.Random) -> tuple[str, str, bytes, str, str]:
    picture = pictures.draw_count(rng, (192, 144), 4, (13, 18))
    return "image", "count.png", png(picture), "How many shapes are there?", "4"


def make_number(rng: random.Random) -> tuple[str, str, bytes, str, str]:
    digits = str(rng.randint(10, 99))
    picture = pictures.draw_number(rng, (192, 144), digits, (30, 44))
    return "image", "number.png", png(picture), "What number is this?", digits


def make_keys(rng: random.Random) -> tuple[str, str, bytes, str, str]:
    sound = sounds.play_keys(rng, "".join(rng.choices("0123456789", k=3)))
    return "audio", "keys.wav", wav(sound), "Which keys were pressed?", sound.answer


def make_melody(rng: random.Random) -> tuple[str, str, bytes, str, str]:
    sound = sounds.play_melody(rng)
    return "audio", "melody.wav", wav(sound), "Does the melody go up or down?", sound.answer


def make_clip(rng: random.Random) -> tuple[str, str, bytes, str, str]:
    clip = clips.draw_clip(rng, 8)
    return "video", "clip.mkv", clip_bytes(clip.frames), "Which way does it move?", clip.direction


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--only", default="", help="kinds to keep: image, audio, video")
    options = parser.parse_args()
    from mlx_gemma4.api import load
    from mlx_gemma4.hub import find_checkpoint

    folder = find_checkpoint(options.model) / "samples"
    model, processor = load(options.model)
    records = find_samples(model, processor, folder)
    (folder / "samples.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    for record in records:
        print(f"{record['file']}: {record['prompt']} -> {record['answer']}")


if __name__ == "__main__":
    main()
