import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from prompt_cases import draw_picture, draw_sound, write_clip
from tiny_tokenizer import write_tiny_checkpoint

from mlx_gemma4.errors import CheckpointError, InputError, OptionError
from mlx_gemma4.inputs import Modality, ModelInputs
from mlx_gemma4.processing.processor import Processor
from mlx_gemma4.processing.settings import ProcessorSettings

PICTURE = draw_picture("picture 96x48")  # at 70 soft tokens a grid of 11 x 5
SOUND = draw_sound("sound 1000")
TEXT_CONFIG = SimpleNamespace(max_position_embeddings=1024)
CONFIG = cast(
    Any,
    SimpleNamespace(vision_config=object(), audio_config=object(), text_config=TEXT_CONFIG),
)


@pytest.fixture
def processor(tmp_path: Path) -> Processor:
    processor = Processor.from_folder(write_tiny_checkpoint(tmp_path), CONFIG)
    processor.settings = ProcessorSettings(image_tokens=70, video_tokens=70, num_frames=2)
    return processor


@pytest.fixture
def base(tmp_path: Path) -> Processor:
    return Processor.from_folder(write_tiny_checkpoint(tmp_path, template=None), CONFIG)


def written(processor: Processor, inputs: ModelInputs) -> str:
    """Return the prompt as text, runs of soft tokens as one."""
    ids = inputs.input_ids.tolist()
    for span in reversed(inputs.spans):
        del ids[span.start + 1 : span.stop]
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def test_text(processor: Processor) -> None:
    inputs = processor("hi")
    assert written(processor, inputs) == (
        "<bos><|turn>user\nhi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    )
    assert inputs.input_ids.dtype == np.int32
    assert (inputs.spans, inputs.patches, inputs.frames, inputs.notes) == ((), None, None, ())


def test_options_of_the_template(processor: Processor) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    text = processor.prepare("hi", thinking=True, tools=[tool]).text
    assert text.startswith("<bos><|turn>system\n<|think|>\n<|tool>f<tool|><turn|>\n<|turn>user")


def test_media_with_a_text(processor: Processor) -> None:
    prepared = processor.prepare("hi", images=[PICTURE, PICTURE], audio=SOUND)
    assert "<|turn>user\n<|image|><|image|>hi<|audio|><turn|>" in prepared.text
    assert [span.length for span in prepared.inputs.spans] == [55, 55, 2]
    picture, _, sound = prepared.media
    assert (picture.modality, picture.grid, picture.size) == (Modality.IMAGE, (11, 5), (96, 48))
    assert (picture.name, picture.num_soft_tokens) == ("image 1", 55)
    assert (sound.name, sound.num_soft_tokens, sound.seconds) == ("audio 3", 2, 1000 / 16000)


def test_rows_follow_the_spans(processor: Processor) -> None:
    white, black = Image.new("RGB", (96, 48), "white"), Image.new("RGB", (96, 48), "black")
    loud, quiet = np.ones(640, np.float32), np.zeros(1280, np.float32) + 0.25
    inputs = processor(
        [
            {"role": "user", "content": [{"type": "audio"}, {"type": "image", "image": black}]},
            {"role": "user", "content": [{"type": "image"}, "hi", {"type": "audio"}]},
        ],
        images=white,
        audio=[loud, quiet],
    )
    assert [span.modality.value for span in inputs.spans] == ["audio", "image", "image", "audio"]
    assert inputs.patches is not None
    assert inputs.patch_positions is not None
    assert inputs.frames is not None
    assert inputs.patches.shape == (110, 6912)
    assert inputs.patches[:55].max() == 0
    assert inputs.patches[55:].min() == 1
    assert inputs.patch_positions.shape == (110, 2)
    assert inputs.frames[:, 0].tolist() == [1, 0.25, 0.25]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
        "a<|image|>",
    ],
)
def test_media_in_place(processor: Processor, messages: Any) -> None:
    assert "user\na<|image|><turn|>" in processor.prepare(messages, images=[PICTURE]).text


def test_a_file_by_path_bytes_and_data_url(processor: Processor, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    path = tmp_path / "ramp.png"
    path.write_bytes(buffer.getvalue())
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    prepared = [
        processor.prepare("hi", images=str(path)),
        processor.prepare("hi", images=[path]),
        processor.prepare("hi", images=buffer.getvalue()),
        processor.prepare("hi", images=url),
        processor.prepare([{"role": "user", "content": [part, "hi"]}]),
    ]
    assert [p.media[0].name for p in prepared[:3]] == ["ramp.png", "ramp.png", "image 1"]
    for other in prepared[1:]:
        assert other.inputs.input_ids.tolist() == prepared[0].inputs.input_ids.tolist()
        np.testing.assert_array_equal(other.inputs.patches, prepared[0].inputs.patches)


def test_image_tokens(processor: Processor) -> None:
    picture = draw_picture("picture 1000x1000")
    assert len(processor("hi", images=picture, image_tokens=280).spans) == 1
    lengths = [
        processor("hi", images=picture, image_tokens=budget).spans[0].length
        for budget in (None, 140, "auto")
    ]
    assert lengths == [64, 121, 529]


def test_notes_say_what_was_lost(processor: Processor) -> None:
    notes = processor("hi", images=draw_picture("picture 2000x1000"), audio=(SOUND, 8000)).notes
    assert len(notes) == 2
    assert "2000x1000 pixels shrunk" in notes[0]
    assert "8000 Hz mono converted" in notes[1]


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ("", {}, "the prompt is empty"),
        (" \n", {}, "the prompt is empty"),
        ([], {}, "the conversation is empty"),
        ([{"role": "user", "content": []}], {}, "the prompt is empty"),
        ("hi", {"images": ["missing.png"]}, r"missing\.png"),
        ("hi", {"images": ["https://x.org/a.png"]}, r"images\[0\] is a web address"),
        ("hi <|audio|>", {}, "has 1 place for audio"),
        ("hi", {"tools": [{"function": {}}]}, r"tools\[0\]\.function has no name"),
        ([{"role": "assistant", "content": "hi"}], {"audio": SOUND}, "no message of the user"),
        ("a\udcffb", {}, "not valid Unicode"),
    ],
)
def test_prompts_that_cannot_be_honoured(
    processor: Processor, prompt: Any, options: Any, error: str
) -> None:
    with pytest.raises(InputError, match=error):
        processor(prompt, **options)


def test_media_of_more_soft_tokens_than_the_context(processor: Processor) -> None:
    """The rest of them is not read: a thousand pictures would fill the memory."""
    media = [PICTURE] * 18 + [PICTURE, "not read.png"]
    with pytest.raises(InputError, match=r"first 19 of 20 media have 1,045 .* context 1,024; give"):
        processor("hi", images=media)


def test_a_template_that_drops_a_medium(processor: Processor) -> None:
    """The template of the tests writes no system message that is a list."""
    assert processor.chat_template is not None
    processor.chat_template.source = "{{ messages[0].content[1].text }}"
    with pytest.raises(InputError, match="has 0 places for image"):
        processor([{"role": "user", "content": [{"type": "image", "image": PICTURE}, "hi"]}])


@pytest.mark.parametrize("options", [{"image_tokens": 100}, {"num_frames": 0}])
def test_options_that_are_not_allowed(processor: Processor, options: Any) -> None:
    with pytest.raises(OptionError):
        processor("hi", **options)


def test_a_misspelt_option_is_no_option(processor: Processor) -> None:
    with pytest.raises(TypeError, match="unknown option image; allowed: images, audio"):
        cast(Any, processor)("hi", image=PICTURE)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"images": PICTURE}, "takes no image: its config.json has no vision_config"),
        ({"videos": "a.mp4"}, "takes no video: its config.json has no vision_config"),
        ({"audio": SOUND}, "takes no audio: its config.json has no audio_config"),
    ],
)
def test_a_model_without_that_front_end(tmp_path: Path, options: Any, error: str) -> None:
    config = SimpleNamespace(vision_config=None, audio_config=None, text_config=TEXT_CONFIG)
    processor = Processor.from_folder(write_tiny_checkpoint(tmp_path), cast(Any, config))
    with pytest.raises(InputError, match=error):
        processor("hi", **options)
    assert processor("hi").spans == ()


def test_base_models_take_raw_text(base: Processor) -> None:
    assert written(base, base("hi\n")) == "<bos>hi\n"
    assert written(base, base("<bos>hi")) == "<bos>hi"
    raw = base.prepare("hi", images=PICTURE, audio=SOUND)
    assert raw.text == "<|image|>hi<|audio|>"
    assert written(base, raw.inputs).startswith("<bos><|image><|image|><image|>hi<|audio>")


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ([{"role": "system", "content": "hi"}], {}, "no chat template.*takes no conversation"),
        ("hi", {"thinking": True}, "no chat template.*knows no thinking"),
        ("hi", {"tools": [{"function": {"name": "f"}}]}, "knows no tools"),
        ("", {}, "the prompt is empty"),
    ],
)
def test_base_models_take_nothing_else(
    base: Processor, prompt: Any, options: Any, error: str
) -> None:
    with pytest.raises(InputError, match=error):
        base(prompt, **options)


def test_the_template_can_be_ignored(processor: Processor) -> None:
    inputs = processor("hi", ignore_chat_template=True)
    assert written(processor, inputs) == "<bos>hi"
    with pytest.raises(InputError, match="the chat template is ignored, so it knows no thinking"):
        processor("hi", ignore_chat_template=True, thinking=True)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        Processor.from_folder(tmp_path, CONFIG)


class TestClips:
    @pytest.fixture(autouse=True)
    def _needs_av(self) -> None:
        pytest.importorskip("av", reason="PyAV not installed: pip install 'mlx-gemma4[media]'")

    def test_frames_and_times(self, processor: Processor, tmp_path: Path) -> None:
        clip = write_clip("clip 30x10 96x64", tmp_path)
        prepared = processor.prepare("hi", videos=clip, num_frames=3)
        frame = "<|image><|video|><image|>"
        assert f"user\n00:00 {frame} 00:01 {frame} 00:02 {frame}hi<turn|>" in written(
            processor, prepared.inputs
        )
        (medium,) = prepared.media
        assert (medium.modality, medium.seconds, medium.size) == (Modality.VIDEO, 3.0, (96, 64))
        assert medium.timestamps_s == (0, 1, 2)
        assert len(prepared.inputs.spans) == 3
        assert len(processor("hi", videos=[clip]).spans) == 2  # the checkpoint's number of frames

    @pytest.mark.parametrize("prompt", ["hi", "a<|video|>b<|video|>"])
    def test_their_sound(self, processor: Processor, tmp_path: Path, prompt: str) -> None:
        loud = write_clip("clip 10x10 96x64", tmp_path, draw_sound("sound 16000"))
        mute = write_clip("clip 10x10 64x64", tmp_path)
        prepared = processor.prepare(prompt, videos=[mute, loud], video_sound=True)
        wanted = (
            "a<|video|>b<|video|><|audio|>" if "a" in prompt else "<|video|><|video|><|audio|>hi"
        )
        assert f"user\n{wanted}<turn|>" in prepared.text
        assert [medium.name for medium in prepared.media] == [
            mute.name,
            loud.name,
            f"sound of {loud.name}",
        ]
        assert prepared.media[-1].seconds == 1.0
        assert prepared.inputs.frames is not None
        assert len(prepared.inputs.frames) == 25
        assert f"{mute.name} has no sound" in prepared.inputs.notes
        assert len(processor(prompt, videos=[mute, loud]).spans) == 4

    def test_sound_for_a_model_that_is_deaf(self, processor: Processor, tmp_path: Path) -> None:
        processor.has_audio = False
        clip = write_clip("clip 10x10 96x64", tmp_path)
        with pytest.raises(InputError, match="takes no audio"):
            processor("hi", videos=clip, video_sound=True)
