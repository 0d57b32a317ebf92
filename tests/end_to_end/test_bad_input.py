"""Every mistake a user can make ends with one line that says what to do, and exit code 2."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fake_hub import NAME, FakeHub
from PIL import Image
from random_checkpoint import Size, write_checkpoint
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.cli import main
from mlx_gemma4.processing.processor import PreparedPrompt, Processor
from mlx_gemma4.processing.tokenizer import Tokenizer

Arguments = list[str]


@dataclass
class Place:
    """Where a mistake is made."""

    checkpoint: Path  # not to be changed
    folder: Path
    data: Path
    patch: pytest.MonkeyPatch

    def copy(self) -> Path:
        """Return a copy of the checkpoint, to be damaged."""
        return Path(shutil.copytree(self.checkpoint, self.folder / "copy"))

    def reconfigured(self, **changes: Any) -> Path:
        """Return a copy of the checkpoint with another config; `text__key` is in text_config."""
        folder = self.copy()
        config = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            (config[f"{section}_config"] if section else config)[key] = value
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def file(self, name: str, content: bytes) -> str:
        """Write a file and return its path."""
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def ask(self, *arguments: str, model: Path | None = None) -> Arguments:
        """Return the arguments of a question to a model, the good one if None."""
        return ["--model", str(model or self.checkpoint), "--max-tokens", "1", *arguments]


@pytest.fixture
def place(
    small_checkpoint: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    return Place(small_checkpoint, tmp_path, repository / "tests" / "data", monkeypatch)


# Checkpoints.


def missing_path(place: Place) -> Arguments:
    return place.ask("hi", model=Path("/nowhere/model"))


def folder_without_config(place: Place) -> Arguments:
    return place.ask("hi", model=place.folder)


def wrong_model_type(place: Place) -> Arguments:
    return place.ask("hi", model=place.reconfigured(model_type="gemma3"))


def truncated_weights(place: Place) -> Arguments:
    folder = place.copy()
    os.truncate(folder / "model.safetensors", 100_000)
    return place.ask("hi", model=folder)


def corrupt_weights(place: Place) -> Arguments:
    folder = place.copy()
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * 64)
    return place.ask("hi", model=folder)


def missing_shard(place: Place) -> Arguments:
    folder = write_tiny_checkpoint(
        write_checkpoint(
            place.folder / "shards",
            Size(64, 128, 6, 2, 1, 64, 128, 32, 1024),
            num_shards=2,
            has_tokenizer=False,
        )
    )
    (folder / "model-00002-of-00002.safetensors").unlink()
    return place.ask("hi", model=folder)


def wrong_shape(place: Place) -> Arguments:
    return place.ask("hi", model=place.reconfigured(text__intermediate_size=192))


def unknown_quantization(place: Place) -> Arguments:
    quantization = {"mode": "wild", "bits": 4, "group_size": 64}
    return place.ask("hi", model=place.reconfigured(quantization=quantization))


def no_tokenizer(place: Place) -> Arguments:
    folder = place.copy()
    (folder / "tokenizer.json").unlink()
    return place.ask("hi", model=folder)


def full_disk(place: Place) -> Arguments:
    hub = FakeHub(place.checkpoint, place.folder / "cache")
    hub.size = 10**18
    hub.connect(place.patch)
    return ["--model", NAME, "hi"]


# Pictures.


def missing_image(place: Place) -> Arguments:
    return place.ask("--image", "/nowhere/a.png", "hi")


def text_as_image(place: Place) -> Arguments:
    return place.ask("--image", place.file("note.png", b"this is a text\n"), "hi")


def empty_image(place: Place) -> Arguments:
    return place.ask("--image", place.file("empty.png", b""), "hi")


def image_bomb(place: Place) -> Arguments:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    size = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(60_001) * 20)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return place.ask("--image", place.file("bomb.png", png), "hi")


def unknown_budget(place: Place) -> Arguments:
    return place.ask("--image", str(place.data / "shapes.png"), "--image-tokens", "300", "hi")


def image_without_front_end(place: Place) -> Arguments:
    folder = place.reconfigured(vision_config=None)
    return place.ask("--image", str(place.data / "shapes.png"), "hi", model=folder)


def heic_without_extra(place: Place) -> Arguments:
    place.patch.setitem(sys.modules, "pillow_heif", None)
    return place.ask("--image", str(place.data / "photo.heic"), "hi")


def web_address(place: Place) -> Arguments:
    return place.ask("--image", "https://example.com/a.png", "hi")


# Sounds and clips.


def nan_audio(place: Place) -> Arguments:
    path = place.folder / "nan.wav"
    soundfile.write(path, np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    return place.ask("--audio", str(path), "hi")


def empty_audio(place: Place) -> Arguments:
    path = place.folder / "silent.wav"
    soundfile.write(path, np.zeros(0, np.float32), 16_000)
    return place.ask("--audio", str(path), "hi")


def text_as_audio(place: Place) -> Arguments:
    return place.ask("--audio", place.file("note.wav", b"this is a text\n"), "hi")


def audio_without_front_end(place: Place) -> Arguments:
    folder = place.reconfigured(audio_config=None)
    return place.ask("--audio", str(place.data / "note.m4a"), "hi", model=folder)


def m4a_without_extra(place: Place) -> Arguments:
    place.patch.setitem(sys.modules, "av", None)
    return place.ask("--audio", str(place.data / "note.m4a"), "hi")


def broken_video(place: Place) -> Arguments:
    content = (place.data / "clip.mp4").read_bytes()
    return place.ask("--video", place.file("clip.mp4", content[: len(content) // 3]), "hi")


def video_without_extra(place: Place) -> Arguments:
    place.patch.setitem(sys.modules, "av", None)
    return place.ask("--video", str(place.data / "clip.mp4"), "hi")


# Prompts and options.


def misplaced_media(place: Place) -> Arguments:
    return place.ask("--image", str(place.data / "shapes.png"), "<|image|> and <|image|>")


def tools_without_template(place: Place) -> Arguments:
    folder = place.copy()
    (folder / "chat_template.jinja").unlink()
    tools = place.file("tools.json", b'[{"function": {"name": "look"}}]')
    return place.ask("--tools", tools, "hi", model=folder)


def empty_prompt(place: Place) -> Arguments:
    return place.ask("")


def no_prompt(place: Place) -> Arguments:
    return place.ask()


def too_long_prompt(place: Place) -> Arguments:
    return place.ask("a" * 200, model=place.reconfigured(text__max_position_embeddings=128))


def binary_stdin(place: Place) -> Arguments:
    place.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi \xff\xfe"), "utf-8"))
    return place.ask("-")


def closed_stdin(place: Place) -> Arguments:
    place.patch.setattr(sys, "stdin", None)
    return place.ask("-")


def failing_stdin(place: Place) -> Arguments:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    place.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Broken())))
    return place.ask("-")


def no_model(place: Place) -> Arguments:
    return ["hi"]


def unknown_option(place: Place) -> Arguments:
    return place.ask("--imagine", "hi")


def negative_temperature(place: Place) -> Arguments:
    return place.ask("--temp", "-1", "hi")


def already_quantized_bits(place: Place) -> Arguments:
    return place.ask("--quantize", "5", "hi")


def broken_messages(place: Place) -> Arguments:
    return place.ask("--messages", place.file("messages.json", b"[{"), "hi")


def tool_without_name(place: Place) -> Arguments:
    return place.ask("--tools", place.file("tools.json", b'[{"function": {}}]'), "hi")


CASES: list[tuple[Callable[[Place], Arguments], str]] = [
    (missing_path, "no such folder: '/nowhere/model'"),
    (folder_without_config, "config.json"),
    (wrong_model_type, "gemma3"),
    (truncated_weights, "model.safetensors is truncated"),
    (corrupt_weights, "model.safetensors is no proper safetensors file"),
    (missing_shard, "model-00002-of-00002.safetensors"),
    (wrong_shape, "of a wrong shape"),
    (unknown_quantization, "wild"),
    (no_tokenizer, "tokenizer.json"),
    (full_disk, "make room"),
    (missing_image, "no such file: /nowhere/a.png"),
    (text_as_image, "note.png is not a picture"),
    (empty_image, "empty.png is empty"),
    (image_bomb, "bomb.png has 400 million pixels"),
    (unknown_budget, "70, 140, 280, 560, 1120, auto"),
    (image_without_front_end, "vision_config"),
    (heic_without_extra, "mlx-gemma4[media]"),
    (web_address, "download it first"),
    (nan_audio, "nan.wav"),
    (empty_audio, "silent.wav"),
    (text_as_audio, "note.wav"),
    (audio_without_front_end, "audio_config"),
    (m4a_without_extra, "mlx-gemma4[media]"),
    (broken_video, "clip.mp4"),
    (video_without_extra, "mlx-gemma4[media]"),
    (empty_prompt, "the prompt is empty"),
    (no_prompt, "standard input"),
    (too_long_prompt, "the model's context 128"),
    (binary_stdin, "byte 0xff at position 3"),
    (closed_stdin, "standard input is closed"),
    (failing_stdin, "Input/output error"),
    (no_model, "MLX_GEMMA4_MODEL"),
    (unknown_option, "--imagine"),
    (negative_temperature, "temperature is -1.0"),
    (already_quantized_bits, "allowed are 4, 8"),
    (broken_messages, "messages.json is not JSON"),
    (tool_without_name, "tools[0].function has no name"),
    (misplaced_media, "2 places for image"),
    (tools_without_template, "so it knows no tools"),
]


@pytest.mark.parametrize(("mistake", "says"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_bad_input_is_one_line_and_exit_code_2(
    mistake: Callable[[Place], Arguments],
    says: str,
    place: Place,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = main(["generate", *mistake(place)])
    output, errors = capfd.readouterr()
    lines = errors.splitlines()
    assert code == 2, errors
    assert output == ""
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert lines[1:] in ([], ["run 'mlx-gemma4 generate --help' to see what is allowed"])


# What is cheap to find must not wait for a model.
CHEAP = (missing_image, empty_image, web_address, unknown_budget, empty_prompt, binary_stdin)
CHEAP += (negative_temperature, already_quantized_bits, broken_messages, tool_without_name)


@pytest.mark.parametrize("mistake", CHEAP, ids=[make.__name__ for make in CHEAP])
def test_cheap_checks_come_before_the_model(
    mistake: Callable[[Place], Arguments], place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = mistake(place)
    arguments[arguments.index("--model") + 1] = "/nowhere/model"
    assert main(["generate", *arguments]) == 2
    assert "/nowhere/model" not in capfd.readouterr().err


@pytest.mark.parametrize("mistake", [text_as_image, text_as_audio, image_bomb, broken_video])
def test_media_are_read_before_the_weights(
    mistake: Callable[[Place], Arguments], place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    place.patch.setattr("mlx_gemma4.api.load", load)
    assert main(["generate", *mistake(place)]) == 2
    assert "loaded" not in capfd.readouterr().err


BEFORE_WEIGHTS = (text_as_image, image_bomb, image_without_front_end, nan_audio, text_as_audio)
BEFORE_WEIGHTS += (audio_without_front_end, m4a_without_extra, broken_video, video_without_extra)
BEFORE_WEIGHTS += (too_long_prompt, misplaced_media, tools_without_template)


@pytest.mark.parametrize("mistake", BEFORE_WEIGHTS, ids=[make.__name__ for make in BEFORE_WEIGHTS])
def test_a_bad_prompt_is_known_before_the_hub_is_asked_for_weights(
    mistake: Callable[[Place], Arguments], place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = mistake(place)
    at = arguments.index("--model") + 1
    hub = FakeHub(Path(arguments[at]), place.folder / "cache")
    hub.connect(place.patch)
    arguments[at] = NAME
    assert main(["generate", *arguments]) == 2
    assert dict(CASES)[mistake] in capfd.readouterr().err
    assert "tokenizer.json" in hub.fetched
    assert not [name for name in hub.planned + hub.fetched if "safetensors" in name]


def test_a_good_prompt_is_prepared_once_and_then_the_weights_come(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    hub = FakeHub(place.checkpoint, place.folder / "cache")
    hub.connect(place.patch)
    fetched_when_prepared: list[list[str]] = []
    tokenizers: list[Path] = []
    prepare, read_backend = Processor.prepare, Tokenizer._backend.func

    def note_prepare(self: Processor, *arguments: Any, **options: Any) -> PreparedPrompt:
        fetched_when_prepared.append(list(hub.fetched))
        return prepare(self, *arguments, **options)

    def note_read(self: Tokenizer) -> Any:
        tokenizers.append(self.path)
        return read_backend(self)

    place.patch.setattr(Processor, "prepare", note_prepare)
    place.patch.setattr(Tokenizer._backend, "func", note_read)
    picture = str(place.data / "shapes.png")
    assert main(["generate", *place.ask("--image", picture, "hi", model=Path(NAME))]) == 0
    (before,) = fetched_when_prepared
    assert "config.json" in before
    assert "model.safetensors" not in before
    assert hub.fetched == [*before, "model.safetensors"]
    assert tokenizers == [hub.folder / "tokenizer.json"]


def write_image(size: tuple[int, int]) -> Callable[[Place], Arguments]:
    def write(place: Place) -> Arguments:
        Image.new("RGB", size, "red").save(place.folder / "image.png")
        return ["--image", str(place.folder / "image.png")]

    return write


def write_sound(subtype: str, num_channels: int = 1) -> Callable[[Place], Arguments]:
    def write(place: Place) -> Arguments:
        samples = np.sin(np.arange(22_050) / 8)[:, None].repeat(num_channels, 1)
        soundfile.write(place.folder / "sound.wav", samples, 44_100, subtype=subtype)
        return ["--audio", str(place.folder / "sound.wav")]

    return write


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_image((1, 1)), id="1x1 picture"),
        pytest.param(write_image((1, 3000)), id="1x3000 picture"),
        pytest.param(write_sound("PCM_U8"), id="8-bit wav"),
        pytest.param(write_sound("PCM_24"), id="24-bit wav"),
        pytest.param(write_sound("FLOAT"), id="float wav"),
        pytest.param(write_sound("PCM_16", 6), id="6-channel wav"),
    ],
)
def test_odd_but_good_input_works(
    write: Callable[[Place], Arguments], place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *place.ask(*write(place), "hi")]) == 0, capfd.readouterr().err


def test_a_defect_of_ours_is_exit_code_1(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("boom")

    place.patch.setattr("mlx_gemma4.api.load", load)
    assert main(["generate", *place.ask("hi")]) == 1
    quiet = capfd.readouterr()
    assert quiet.out == ""
    assert quiet.err.startswith("error: ZeroDivisionError: boom\n")
    assert "--verbose" in quiet.err
    assert "Traceback" not in quiet.err
    assert main(["generate", *place.ask("hi", "--verbose")]) == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--model", "google/gemma-4-12B-it", "hi"],
        ["inspect", "--model", "google/gemma-4-12B-it"],
    ],
)
def test_no_network(tmp_path: Path, arguments: list[str]) -> None:
    # Port 9 of this machine answers nothing: as good as no network, without waiting for one.
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-m", "mlx_gemma4", *arguments],
        env=os.environ | unreachable | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "google/gemma-4-12B-it" in result.stderr
    assert "Traceback" not in result.stderr
