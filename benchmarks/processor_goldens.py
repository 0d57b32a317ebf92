"""Make the goldens of pictures, sounds, and clips, and measure how far the processors are apart.

    python benchmarks/processor_goldens.py media      # the files in tests/data
    python benchmarks/processor_goldens.py goldens    # tests/data/media/processor.npz and .json

`goldens` runs transformers' own processors, which need torch and torchvision; neither belongs to
the environments of this project:

    python3 -m venv build/goldens
    build/goldens/bin/pip install torch torchvision transformers pillow numpy av soxr soundfile

It compares every value of every picture, prints the differences, and stores a sample of the
reference's values.  The last line is a JSON document.
"""

import hashlib
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from golden_pictures import (  # noqa: E402
    CLIP_RATES,
    CLIPS,
    PICTURES,
    SIDES,
    SOUND_LENGTHS,
    draw,
    draw_sound,
    sample_positions,
)

from mlx_gemma4.processing.image import SOFT_TOKEN_BUDGETS, process_image  # noqa: E402
from mlx_gemma4.processing.video import process_video  # noqa: E402

DATA = ROOT / "tests" / "data"
NUM_VALUES = 4096  # stored of each picture
CLIP_FRAMES = 8
SOUND_RATE = 44_100  # Hz, of the clip's sound


def make_media() -> None:
    """Draw the small files that tests and README examples use."""
    import av
    import pillow_heif

    shape = Image.new("RGB", (768, 576), "white")
    ImageDraw.Draw(shape).ellipse((248, 152, 520, 424), fill=(215, 30, 35))
    shape.reduce(4).save(DATA / "shapes.png", optimize=True)
    ramps = draw(next(p for p in PICTURES if p.kind == "ramps")).crop((0, 0, 96, 64))
    pillow_heif.from_pillow(ramps).save(DATA / "photo.heic", quality=90)
    _write_sound(av, DATA / "note.m4a", "ipod", 22_050, "mono", 1.0)
    _write_clip(av, DATA / "clip.mp4")


def _write_clip(av, path: Path) -> None:
    """A blue square that moves to the right for 3 seconds, and a tone."""
    with av.open(path, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=8, options={"crf": "20"})
        video.width, video.height, video.pix_fmt = 192, 144, "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        for index in range(24):
            image = Image.new("RGB", (192, 144), "white")
            x = 30 + 5 * index
            ImageDraw.Draw(image).rectangle((x - 18, 54, x + 18, 90), fill=(25, 75, 215))
            container.mux(video.encode(av.VideoFrame.from_image(image)))
        container.mux(video.encode())
        for frame in _tone(av, SOUND_RATE, "stereo", 3.0):
            container.mux(audio.encode(frame))
        container.mux(audio.encode())


def _write_sound(av, path: Path, container_format: str, rate: int, layout: str, s: float) -> None:
    with av.open(path, "w", format=container_format) as container:
        audio = container.add_stream("aac", rate=rate, layout=layout)
        for frame in _tone(av, rate, layout, s):
            container.mux(audio.encode(frame))
        container.mux(audio.encode())


def _tone(av, rate: int, layout: str, seconds: float):
    """440 Hz in the frames of 1024 samples that aac wants."""
    wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    samples = np.tile(wave.astype(np.float32), (2 if layout == "stereo" else 1, 1))
    for start in range(0, samples.shape[1], 1024):
        block = np.ascontiguousarray(samples[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame


def make_goldens() -> None:
    """Run transformers' processors, compare, and store."""
    import torch
    import torchvision
    import transformers
    from transformers.models.gemma4_unified import (
        feature_extraction_gemma4_unified as features,
    )
    from transformers.models.gemma4_unified import (
        image_processing_gemma4_unified as images,
    )

    arrays: dict[str, np.ndarray] = {}
    report = {"pictures": {}}
    image_processor: Any = images.Gemma4UnifiedImageProcessor()
    for picture in PICTURES:
        out = image_processor(draw(picture), max_soft_tokens=picture.budget, return_tensors="pt")
        count = out["num_soft_tokens_per_image"][0]
        ours = process_image(draw(picture), picture.budget)
        report["pictures"][picture.name] = _store_patches(
            arrays,
            picture.name,
            out["pixel_values"][0, :count].numpy(),
            out["image_position_ids"][0, :count].numpy(),
            (ours.patches, ours.positions),
        )
    _store_clip(arrays, report)

    def fit(width: int, height: int, budget: int) -> tuple[int, int]:
        rows, columns = images.get_aspect_ratio_preserving_size(height, width, 16, budget * 9, 3)
        return columns // 48, rows // 48

    arrays["fit_size"] = np.array(
        [[[fit(w, h, b) for h in SIDES] for w in SIDES] for b in SOFT_TOKEN_BUDGETS], np.int16
    )
    np.savez_compressed(DATA / "media" / "processor.npz", allow_pickle=False, **arrays)
    extractor = features.Gemma4UnifiedAudioFeatureExtractor()
    exact = {"sounds": {}, "clips": _sample_clips(), "versions": {}}
    for length in SOUND_LENGTHS:
        out = extractor(draw_sound(length), return_tensors="np")
        frames = out["input_features"][0][out["input_features_mask"][0]]
        digest = hashlib.sha256(np.ascontiguousarray(frames, "<f4").tobytes()).hexdigest()
        exact["sounds"][str(length)] = [len(frames), digest[:16]]
    for module in (torch, torchvision, transformers, np):
        exact["versions"][module.__name__] = module.__version__
    (DATA / "media" / "processor.json").write_text(json.dumps(exact, indent=1) + "\n")
    _print(report)


def _store_patches(arrays, name, patches, positions, ours) -> dict[str, float]:
    """Store a sample of the reference's values, return our distance from it in 1/255."""
    levels = np.rint(patches * 255)
    assert np.abs(patches * 255 - levels).max() < 1e-3  # 8-bit levels, as the reference has them
    flat = levels.astype(np.uint8).reshape(-1)
    arrays[f"{name}/values"] = flat[sample_positions(flat.size, NUM_VALUES)]
    arrays[f"{name}/positions"] = positions.astype(np.int16)
    arrays[f"{name}/patch_means"] = patches.mean(axis=1).astype(np.float32)
    assert np.array_equal(ours[1], positions), name
    distance = np.abs(ours[0] - patches) * 255
    return {
        "soft_tokens": len(patches),
        "max": round(float(distance.max()), 3),
        "mean": round(float(distance.mean()), 4),
    }


def _store_clip(arrays, report) -> None:
    """Run the video processor on tests/data/clip.mp4, decoded by transformers' PyAV reader."""
    from transformers.models.gemma4_unified import video_processing_gemma4_unified as videos
    from transformers.video_utils import default_sample_indices_fn, read_video_pyav

    def sample(metadata, **kwargs):
        return default_sample_indices_fn(metadata, num_frames=CLIP_FRAMES)

    frames, metadata = read_video_pyav(cast(Any, str(DATA / "clip.mp4")), sample)
    out = videos.Gemma4UnifiedVideoProcessor()(
        frames.transpose(0, 3, 1, 2), do_sample_frames=False, return_tensors="pt"
    )
    count = out["num_soft_tokens_per_video"][0]
    ours = process_video(DATA / "clip.mp4", CLIP_FRAMES)
    assert ours.timestamps_s == tuple(metadata.timestamps), (ours.timestamps_s, metadata)
    report["clip"] = _store_patches(
        arrays,
        "clip",
        out["pixel_values_videos"][:, :count].reshape(-1, 6912).numpy(),
        out["video_position_ids"][:, :count].reshape(-1, 2).numpy(),
        (
            np.concatenate([frame.patches for frame in ours.frames]),
            np.concatenate([frame.positions for frame in ours.frames]),
        ),
    )
    arrays["clip/times"] = np.array(metadata.timestamps)


def _sample_clips() -> list[list]:
    """[frames, rate, frames asked for, rate asked for, indices] by transformers' rule."""
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    rows: list[list] = []
    for total, rate, num_frames, fps in [
        *((total, 24.0, num_frames, None) for total, num_frames in CLIPS),
        *((total, rate, None, fps) for total, rate, fps in CLIP_RATES),
    ]:
        metadata = VideoMetadata(total_num_frames=total, fps=rate)
        indices = default_sample_indices_fn(metadata, num_frames=num_frames, fps=fps)
        rows.append([total, rate, num_frames, fps, indices.tolist()])
    return rows


def _print(report) -> None:
    rows = {**report["pictures"], "clip": report["clip"]}
    print(f"{'picture':<34}{'soft tokens':>12}{'max':>8}{'mean':>9}   in 1/255")
    for name, row in rows.items():
        print(f"{name:<34}{row['soft_tokens']:>12}{row['max']:>8}{row['mean']:>9}")
    worst = {key: max(row[key] for row in rows.values()) for key in ("max", "mean")}
    print(json.dumps({"worst": worst, **report}))


if __name__ == "__main__":
    {"media": make_media, "goldens": make_goldens}[sys.argv[1]]()
