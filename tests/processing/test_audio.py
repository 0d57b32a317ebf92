"""Any sound becomes 16 kHz mono in frames of 640; whatever is no sound becomes a message."""

import contextlib
import hashlib
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from golden_pictures import SOUND_LENGTHS, draw_sound

from mlx_gemma4.errors import Gemma4Error, InputError, MissingExtraError
from mlx_gemma4.processing import audio as audio_module
from mlx_gemma4.processing.audio import load_audio, pack_frames, process_audio


def tone(rate: int = 16_000, seconds: float = 0.5, hertz: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def encode(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


@pytest.fixture
def data_folder(repository: Path) -> Path:
    return repository / "tests" / "data"


@pytest.mark.parametrize(
    ("subtype", "step"),
    [
        ("PCM_U8", 1 / 128),
        ("PCM_16", 1 / 32768),
        ("PCM_24", 2**-23),
        ("PCM_32", 2**-24),
        ("FLOAT", 2**-24),
        ("DOUBLE", 2**-24),
        ("ULAW", 1 / 32),
    ],
)
def test_wav_of_every_depth(subtype: str, step: float, tmp_path: Path) -> None:
    data = encode(tone(), 16_000, subtype=subtype)
    (tmp_path / "a").write_bytes(data)  # the content decides, not the ending
    for source in (data, tmp_path / "a", str(tmp_path / "a")):
        loaded = load_audio(source)
        assert loaded.samples.dtype == np.float32
        assert np.abs(loaded.samples - tone()).max() <= 1.01 * step
        assert loaded.notes == ()


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "OPUS", "MP3", "AIFF", "CAF", "W64", "RF64"])
def test_formats(kind: str) -> None:
    rate = 48_000
    samples = np.stack([tone(rate)] * 2, axis=1)
    file_format, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind, None)
    loaded = load_audio(encode(samples, rate, file_format, subtype))
    assert len(loaded.samples) == pytest.approx(8000, abs=600)  # some codecs pad
    assert loudest_hertz(loaded.samples) == pytest.approx(440, abs=3)
    assert loaded.notes == ("sound: 48000 Hz stereo converted to 16000 Hz mono",)


def loudest_hertz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 16_000))
    return float(np.argmax(spectrum))


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_rates_and_channels(rate: int, channels: int) -> None:
    samples = np.stack([tone(rate)] * channels, axis=1)
    loaded = load_audio(encode(samples, rate, subtype="FLOAT"))
    assert len(loaded.samples) == math.ceil(len(samples) * 16_000 / rate)
    middle = slice(500, 7500)  # the resampler's filter rings at the ends
    assert np.abs(loaded.samples[middle] - tone()[middle]).max() < 1e-3
    assert bool(loaded.notes) == (rate != 16_000 or channels != 1)


def test_channels_are_averaged() -> None:
    left, right = tone(hertz=300), tone(hertz=500)
    loaded = load_audio(encode(np.stack([left, right], axis=1), 16_000, subtype="FLOAT"))
    assert np.abs(loaded.samples - (left + right) / 2).max() < 1e-6


def test_pieces_are_resampled_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    import soxr

    samples = draw_sound(30_000)
    whole = soxr.resample(samples, 44_100, 16_000, quality="HQ")
    length = math.ceil(len(samples) * 16_000 / 44_100)
    for size in (100, 1 << 16):
        monkeypatch.setattr(audio_module, "_BLOCK_SIZE", size)
        ours = load_audio((samples, 44_100)).samples
        assert len(ours) == length
        assert np.array_equal(ours[: len(whole)], whole[:length])


def test_frames_equal_the_reference(data_folder: Path) -> None:
    golden = json.loads((data_folder / "media" / "processor.json").read_text())["sounds"]
    for length in SOUND_LENGTHS:
        frames = process_audio(draw_sound(length)).frames
        digest = hashlib.sha256(np.ascontiguousarray(frames, "<f4").tobytes()).hexdigest()
        assert [len(frames), digest[:16]] == golden[str(length)], length


@pytest.mark.parity
def test_frames_equal_the_installed_reference(data_folder: Path, tmp_path: Path) -> None:
    from transformers import audio_utils
    from transformers.models.gemma4_unified import feature_extraction_gemma4_unified as reference

    extractor: Any = reference.Gemma4UnifiedAudioFeatureExtractor()
    for rate, channels in ((16_000, 1), (44_100, 2), (8000, 1), (48_000, 6)):
        path = tmp_path / f"{rate}.wav"
        noise = draw_sound(rate * channels).reshape(-1, channels)
        soundfile.write(path, noise, rate, subtype="PCM_24")
        samples = audio_utils.load_audio(str(path), backend="soundfile")
        out = extractor(samples, return_tensors="np")
        ours = process_audio(path).frames
        assert out["input_features_mask"].all()
        assert np.abs(ours - out["input_features"][0]).max() < 1e-6


def test_last_frame_is_padded_with_zeros() -> None:
    frames = pack_frames(np.ones(641, np.float32))
    assert (frames.shape, frames.dtype) == ((2, 640), np.float32)
    assert frames[0].all()
    assert frames[1, 0] == 1
    assert not frames[1, 1:].any()


def test_long_sounds_are_heard_whole_with_a_note() -> None:
    ours = process_audio(np.full(31 * 16_000, 0.1, np.float32))
    assert (ours.num_soft_tokens, ours.seconds) == (775, 31.0)
    assert ours.notes == (
        "sound lasts 31.0 s and is heard whole; the model was trained on sounds of at most 30 s",
    )
    assert process_audio(np.full(30 * 16_000, 0.1, np.float32)).notes == ()


def test_silence_is_noted() -> None:
    assert process_audio(np.zeros(640, np.float32)).notes == ("sound is silent: every sample is 0",)


def test_arrays() -> None:
    wave = tone().astype(np.float32)
    for source in (
        wave,
        wave.astype(np.float64),
        (wave, 16_000),
        (wave[:, None], 16_000),
    ):
        assert np.array_equal(load_audio(source).samples, wave)
    halves = np.full((100, 2), 16384, np.int16)
    assert load_audio((halves, 16_000)).samples.tolist() == [0.5] * 100
    assert load_audio(np.full(100, 2**30, np.int32)).samples.tolist() == [0.5] * 100
    assert len(load_audio((np.ones(1, np.float32), 48_000)).samples) == 1


def test_m4a_and_the_sound_of_a_video(data_folder: Path) -> None:
    pytest.importorskip("av")
    note = process_audio(data_folder / "note.m4a")
    assert note.seconds == pytest.approx(1.0, abs=0.15)
    assert note.notes == ("note.m4a: 22050 Hz mono converted to 16000 Hz mono",)
    for source in (data_folder / "clip.mp4", (data_folder / "clip.mp4").read_bytes()):
        loaded = load_audio(source)
        assert len(loaded.samples) / 16_000 == pytest.approx(3.0, abs=0.15)
        assert loudest_hertz(loaded.samples[8000:24_000]) == pytest.approx(440, abs=3)


def encode_aac(samples: np.ndarray, sample_rate: int) -> bytes:
    """Return [n, channels] float32 as an .aac file, in which every frame tells its own format."""
    import av

    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    with av.open(file, "w", format="adts") as container:
        stream = container.add_stream("aac", rate=sample_rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout)
        frame.sample_rate = sample_rate
        for part in (frame, None):
            container.mux(stream.encode(part))
    return file.getvalue()


def test_a_sound_that_changes_its_format_on_the_way() -> None:
    """Recordings that were joined: half of it mono at 22,050 Hz, half stereo at 44,100."""
    pytest.importorskip("av")
    first = np.sin(2 * np.pi * 440 * np.arange(44_100) / 22_050)[:, None]
    second = np.sin(2 * np.pi * 880 * np.arange(88_200) / 44_100)[:, None].repeat(2, axis=1)
    data = encode_aac(0.5 * first.astype(np.float32), 22_050)
    data += encode_aac(0.5 * second.astype(np.float32), 44_100)
    samples = load_audio(data).samples
    assert len(samples) / 16_000 == pytest.approx(4.0, abs=0.2)
    assert loudest_hertz(samples[8000:24_000]) == pytest.approx(440, abs=3)
    assert loudest_hertz(samples[40_000:56_000]) == pytest.approx(880, abs=3)


def test_m4a_without_the_extra(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'pip install "mlx-gemma4\[media\]"'):
        load_audio(data_folder / "note.m4a")
    with pytest.raises(InputError, match="is not a sound"):  # no extra would help a text
        load_audio(b"This is no sound.")


def broken(path: Path) -> dict[str, tuple[object, str]]:
    """Sources that are no sounds, each with a part of its message."""
    nan, infinite = tone(), tone()
    nan[1600], infinite[0] = np.nan, np.inf
    flac = bytearray(encode(draw_sound(48_000), 16_000, "FLAC"))
    flac[30_000:30_100] = bytes(100)
    for name in ("text.wav", "text.raw"):
        (path / name).write_text("This is no sound.")
    (path / "empty.wav").write_bytes(b"")
    return {
        "text": (path / "text.wav", "text.wav is not a sound that can be read"),
        "raw": (path / "text.raw", "text.raw is not a sound that can be read"),
        "zero bytes": (path / "empty.wav", "empty.wav is empty (0 bytes)"),
        "no bytes": (b"", "sound is empty (0 bytes)"),
        "no samples": (encode(np.zeros(0), 16_000), "sound is empty (0 samples)"),
        "empty array": (np.zeros(0, np.float32), "sound is empty (0 samples)"),
        "nan": (encode(nan, 16_000, subtype="FLOAT"), "the first at 0.100 s"),
        "infinite": (infinite, "not numbers (the first at 0.000 s)"),
        "infinities": (np.array([[math.inf, -math.inf]]), "not numbers (the first at 0.000 s)"),
        "beyond float32": (np.array([0.0, 1e300]), "not numbers (the first at 0.000 s)"),
        "header only": (encode(tone(), 16_000)[:20], "is not a sound that can be read"),
        "damaged": (bytes(flac), "sound is damaged"),
        "missing": (path / "nowhere.wav", "no such file"),
        "folder": (path, "is a folder"),
        "url": ("https://example.org/a.wav", "download it first"),
        "type": ([0.1, 0.2], "sound is of type list; pass a path"),
        "triple": ((np.zeros(1), 1, 2), "sound is of type tuple"),
        "pair": (("a.wav", 16_000), "a pair with a str"),
        "rate 0": ((np.zeros(9, np.float32), 0), "a sample rate of 0"),
        "rate word": ((np.zeros(9, np.float32), "16k"), "a sample rate of '16k'"),
        "rate half": ((np.zeros(9, np.float32), 16_000.5), "a sample rate of 16000.5"),
        "rate nan": ((np.zeros(9, np.float32), math.nan), "a sample rate of nan"),
        "channels first": (np.zeros((2, 16_000), np.float32), "array of float32 [2, 16000]"),
        "bytes array": (np.zeros(9, np.uint8), "array of uint8 [9]"),
        "complex": (np.zeros(9, np.complex64), "array of complex64 [9]"),
        "no axis": (np.zeros((), np.float32), "array of float32 []"),
        "hours": (encode(np.zeros(11_000), 1), "at most 175 fit into any Gemma 4 context"),
    }


@pytest.mark.parametrize("case", [*broken(Path("/tmp"))] if Path("/tmp").is_dir() else [])
def test_broken_sounds(case: str, tmp_path: Path) -> None:
    source, message = broken(tmp_path)[case]
    with pytest.raises(InputError) as caught:
        process_audio(source)  # pyright: ignore
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_length_that_the_header_hides_is_still_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_module, "MAX_SECONDS", 0.25)
    blocks = iter([np.zeros((1000, 1), np.float32)] * 10)
    sound = audio_module.SoundBlocks(16_000, 1, None, blocks)
    with pytest.raises(InputError, match="cut it into parts"):
        audio_module.to_mono(sound, "stream")


def test_a_file_cut_off_is_noted() -> None:
    whole = encode(tone(seconds=4), 16_000)
    ours = process_audio(whole[: len(whole) // 2])
    assert ours.seconds == pytest.approx(2.0, abs=0.01)
    assert ours.notes == (
        "sound ends after 2.0 s of the 4.0 s that it announces: is the file complete?",
    )
    # A wav that was written to a pipe has no size in its header, and lacks nothing.
    piped = whole[:4] + b"\xff\xff\xff\xff" + whole[8:40] + b"\xff\xff\xff\xff" + whole[44:]
    assert process_audio(piped).notes == ()


def test_titles_may_be_in_any_encoding(data_folder: Path) -> None:
    pytest.importorskip("av")
    whole = (data_folder / "note.m4a").read_bytes()
    assert b"isomiso2" in whole
    assert process_audio(whole.replace(b"isomiso2", b"iso\xe4iso2")).seconds > 0.9


def test_damaged_headers_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """A callback from C cannot raise: Python would print its traceback."""
    whole = encode(tone(), 16_000, "AIFF")
    for position in range(4, 64):
        for value in (0x80, 0xFF):
            damaged = whole[:position] + bytes([value]) + whole[position + 1 :]
            with contextlib.suppress(InputError):
                process_audio(damaged)
    assert capfd.readouterr().err == ""


def test_every_cut_of_a_file_is_an_error_or_a_sound(data_folder: Path) -> None:
    """No decoder's own exception escapes, wherever the file ends."""
    whole = [encode(tone(), 16_000, kind) for kind in ("WAV", "FLAC", "OGG", "MP3")]
    for data in (*whole, (data_folder / "note.m4a").read_bytes()):
        for end in range(1, len(data), len(data) // 25):
            try:
                process_audio(data[:end])
            except Gemma4Error:
                continue
