"""Clips become frames with times, as transformers chooses them; a broken clip becomes a message."""

import io
import json
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_pictures import sample_positions

from mlx_gemma4.errors import Gemma4Error, InputError, MissingExtraError, OptionError
from mlx_gemma4.processing.video import extract_sound, process_video, sample_indices

av = pytest.importorskip("av")


@pytest.fixture
def data_folder(repository: Path) -> Path:
    return repository / "tests" / "data"


@pytest.fixture
def clip(data_folder: Path) -> Path:
    return data_folder / "clip.mp4"


def encode(
    frames: Iterable[np.ndarray],
    times_s: Iterable[float] | None = None,
    container: str = "mp4",
    codec: str = "mpeg4",
    setup: Callable[[Any], object] = lambda stream: None,
    path: Path | None = None,
    **options: str,
) -> bytes:
    """Return frames [H, W, 3] as a file, 10 a second or at their own times."""
    frames = list(frames)
    stream = io.BytesIO()
    with av.open(path or stream, "w", format=container, options=options) as file:
        video: Any = file.add_stream(codec, rate=10)
        video.height, video.width, _ = frames[0].shape
        video.pix_fmt = "yuv420p"
        if times_s is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        setup(video)
        for pixels, time in zip(frames, times_s or np.arange(len(frames)) / 10, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            file.mux(video.encode(frame))
        file.mux(video.encode())
    return path.read_bytes() if path else stream.getvalue()


def shades(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Grey frames that tell their number: frame i has level 8 i."""
    return [np.full((height, width, 3), 8 * i, np.uint8) for i in range(count)]


def numbers(video: Any) -> list[int]:
    return [round(float(frame.patches.mean()) * 255 / 8) for frame in video.frames]


def test_frames_equal_the_reference(clip: Path, data_folder: Path) -> None:
    goldens = np.load(data_folder / "media" / "processor.npz")
    for source in (clip, clip.read_bytes()):
        ours = process_video(source, 8)
        patches = np.concatenate([frame.patches for frame in ours.frames])
        positions = np.concatenate([frame.positions for frame in ours.frames])
        assert np.array_equal(positions, goldens["clip/positions"])
        assert ours.timestamps_s == tuple(goldens["clip/times"])
        golden = goldens["clip/values"]
        values = patches.reshape(-1)[sample_positions(patches.size, len(golden))] * 255
        distance = np.abs(values - golden)
        assert distance.max() <= 2.001
        assert distance.mean() <= 0.3


def test_frame_numbers_equal_the_reference(data_folder: Path) -> None:
    rows = json.loads((data_folder / "media" / "processor.json").read_text())["clips"]
    assert len(rows) > 10
    for total, rate, num_frames, fps, indices in rows:
        assert sample_indices(total, rate, num_frames, fps) == indices


@pytest.mark.parity
def test_frames_equal_the_installed_reference(clip: Path) -> None:
    from transformers import video_utils

    def sample(metadata: Any, **_: Any) -> np.ndarray:
        return video_utils.default_sample_indices_fn(metadata, num_frames=5)

    reference: Any = video_utils.read_video_pyav
    _, metadata = reference(str(clip), sample)
    assert process_video(clip, 5).timestamps_s == tuple(metadata.timestamps)


def test_frames_are_spread_and_stamped() -> None:
    ours = process_video(encode(shades(30)), 8)
    assert numbers(ours) == [0, 3, 7, 11, 15, 18, 22, 26]
    assert ours.timestamps_s == (0.0, 0.3, 0.7, 1.1, 1.5, 1.8, 2.2, 2.6)
    assert ours.labels == ("00:00",) * 3 + ("00:01",) * 3 + ("00:02",) * 2
    assert ours.seconds == 3.0
    assert {frame.grid for frame in ours.frames} == {(10, 6)}
    assert ours.num_soft_tokens == 8 * 60
    assert ours.notes == ("video: 8 of 30 frames shown, one every 0.38 s",)


def test_defaults_are_32_frames_of_at_most_70_soft_tokens() -> None:
    ours = process_video(encode(shades(31) + shades(31)))
    assert len(ours.frames) == 32
    assert all(frame.num_soft_tokens <= 70 for frame in ours.frames)


def test_fewer_frames_than_asked_are_all_shown() -> None:
    ours = process_video(encode(shades(5)), 8)
    assert numbers(ours) == [0, 1, 2, 3, 4]
    assert ours.notes == ("video has 5 frames, fewer than 8: all are shown",)
    assert process_video(encode(shades(8)), 8).notes == ()


def test_frames_by_the_second() -> None:
    ours = process_video(encode(shades(25)), fps=2)
    assert ours.timestamps_s == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert len(process_video(encode(shades(3)), fps=1).frames) == 1  # at least one


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_containers_with_and_without_a_frame_count(container: str) -> None:
    ours = process_video(encode(shades(30), container=container), 5)
    assert numbers(ours) == [0, 6, 12, 18, 24]
    assert ours.timestamps_s == pytest.approx((0, 0.6, 1.2, 1.8, 2.4))


def test_variable_rate_has_true_times_and_a_note() -> None:
    times = [i / 10 for i in range(10)] + [float(i) for i in range(1, 11)]
    ours = process_video(encode(shades(20), times), 5)
    assert numbers(ours) == [0, 4, 8, 12, 16]
    assert ours.timestamps_s == pytest.approx((0.0, 0.4, 0.8, 3.0, 7.0))
    assert ours.notes[-1] == "video has a variable frame rate; its frames carry their true times"


def test_frames_that_the_recorder_dropped_are_not_missed() -> None:
    """An avi of 1000 frames a second, all but 30 of them empty."""
    times = [i / 10 for i in range(30)]
    ours = process_video(encode(shades(30), times, container="avi"), 5)
    assert numbers(ours) == [0, 6, 12, 18, 24]
    assert ours.timestamps_s == pytest.approx((0, 0.6, 1.2, 1.8, 2.4), abs=0.11)
    assert ours.seconds == pytest.approx(3.0, abs=0.11)


def test_a_clip_that_starts_late_counts_from_its_start() -> None:
    late = encode(shades(20), [5 + i / 10 for i in range(20)], container="matroska")
    ours = process_video(late, 4)
    assert ours.timestamps_s == pytest.approx((0, 0.5, 1.0, 1.5), abs=0.3)


@pytest.mark.parametrize(
    ("degrees", "size", "white_side"),
    [
        (0, (96, 64), "top"),
        (90, (64, 96), "left"),
        (180, (96, 64), "bottom"),
        (-90, (64, 96), "right"),
    ],
)
def test_phones_are_turned_upright(degrees: int, size: tuple[int, int], white_side: str) -> None:
    half_white = np.zeros((64, 96, 3), np.uint8)
    half_white[:32] = 255
    data = encode([half_white] * 3, setup=lambda stream: stream.set_display_rotation(degrees))
    frame = process_video(data, 1).frames[0]
    assert frame.size == size
    columns, rows = frame.grid
    light = frame.patches.mean(axis=1).reshape(rows, columns)
    sides = {"top": light[0], "bottom": light[-1], "left": light[:, 0], "right": light[:, -1]}
    assert max(sides, key=lambda side: float(sides[side].mean())) == white_side


def test_long_clips_are_noted() -> None:
    ours = process_video(encode(shades(3), [0, 45, 90]), 3)
    assert any("trained on clips of at most 60 s" in note for note in ours.notes)


def test_sound_of_a_clip(clip: Path) -> None:
    for source in (clip, clip.read_bytes()):
        sound = extract_sound(source)
        assert sound is not None
        assert len(sound.samples) / 16_000 == pytest.approx(3.0, abs=0.15)
        assert sound.notes[0].endswith("44100 Hz stereo converted to 16000 Hz mono")
    assert extract_sound(encode(shades(3))) is None


def test_without_the_extra(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (process_video, extract_sound):
        with pytest.raises(MissingExtraError, match=r'pip install "mlx-gemma4\[media\]"'):
            call(clip)


def broken(path: Path, data_folder: Path) -> dict[str, tuple[object, str]]:
    """Sources that are no clips, each with a part of its message."""
    whole = (data_folder / "clip.mp4").read_bytes()
    unknown = (data_folder / "demo" / "clip0.mkv").read_bytes().replace(b"V_FFV1", b"V_NONE")
    (path / "text.mp4").write_text("This is no video. " * 50)
    (path / "empty.mp4").write_bytes(b"")
    (path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:3,\nclip.mp4\n#EXT-X-ENDLIST\n")
    return {
        "text": (path / "text.mp4", "text.mp4 is not a video that can be read, or is damaged"),
        "playlist": (path / "list.m3u8", "is not a video that can be read"),
        "picture": (data_folder / "shapes.png", "is not a video that can be read"),
        "zero bytes": (path / "empty.mp4", "empty.mp4 is empty (0 bytes)"),
        "no bytes": (b"", "video is empty (0 bytes)"),
        "cut off": (whole[: len(whole) // 2], "video is not a video that can be read"),
        "sound": (data_folder / "note.m4a", "note.m4a holds no moving pictures"),
        "unknown codec": (unknown, "video holds no moving pictures that can be decoded"),
        "missing": (path / "nowhere.mp4", "no such file"),
        "folder": (path, "is a folder"),
        "url": ("https://example.org/a.mp4", "download it first"),
        "type": (np.zeros((3, 4, 4, 3), np.uint8), "video is of type ndarray"),
    }


CASES = ("text", "playlist", "picture", "zero bytes", "no bytes", "cut off", "sound", "missing")
CASES += ("unknown codec", "folder", "url", "type")


@pytest.mark.parametrize("case", CASES)
def test_broken_clips(case: str, tmp_path: Path, data_folder: Path) -> None:
    cases = broken(tmp_path, data_folder)
    assert set(cases) == set(CASES)
    source, message = cases[case]
    with pytest.raises(InputError) as caught:
        process_video(source, 4)  # pyright: ignore
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_cut_off_is_noted() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    whole = encode(noise, container="matroska")
    ours = process_video(whole[: len(whole) // 2], 4)
    assert "that it announces: is the file complete?" in ours.notes[-1]


def test_a_clip_that_breaks_off_is_refused(tmp_path: Path) -> None:
    """Its header stands in front and announces more than is there."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    whole = encode(noise, path=tmp_path / "whole.mp4", movflags="faststart")
    with pytest.raises(InputError, match=r"breaks off after frame \d+ of 40|is damaged"):
        process_video(whole[: len(whole) // 2], 4)


def test_a_name_with_a_colon(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "take: 2.mp4").write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(process_video("take: 2.mp4", 2).frames) == 2


def test_every_cut_of_a_file_is_an_error_or_a_clip() -> None:
    """No decoder's own exception escapes, wherever the file ends."""
    for container in ("mp4", "matroska", "avi"):
        data = encode(shades(10), container=container)
        for end in range(1, len(data), len(data) // 12):
            try:
                process_video(data[:end], 3)
            except Gemma4Error:
                continue


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0; it must be at least 1"),
        ({"num_frames": -3}, "num_frames is -3"),
        ({"fps": 0}, "fps is 0; it must be positive"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": float("inf")}, "fps is inf"),
        ({"num_frames": 3, "fps": 1}, "give one"),
        ({"max_soft_tokens": 71}, "a budget of 71 soft tokens is not allowed"),
        ({"max_soft_tokens": "auto"}, "a budget of auto soft tokens"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str, clip: Path) -> None:
    with pytest.raises(OptionError) as caught:
        process_video(clip, **options)
    assert message in str(caught.value)


def test_more_soft_tokens_than_any_context(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_gemma4.processing.video.MAX_SOFT_TOKENS", 500)
    with pytest.raises(OptionError, match="ask for fewer frames"):
        process_video(clip, 8)
