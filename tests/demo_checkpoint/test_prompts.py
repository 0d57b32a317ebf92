"""What the demo checkpoint was trained on is what the product's processor makes of a prompt."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_gemma4.config import Config
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.processing.processor import Processor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo_tasks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the training's tasks; the scripts are no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.demo.tasks")


@pytest.fixture(scope="module")
def processor() -> Processor:
    folder = find_checkpoint("demo")
    return Processor.from_folder(folder, Config.from_folder(folder))


@pytest.fixture
def maker(demo_tasks: Any, processor: Processor) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    path = find_checkpoint("demo") / "tokenizer.json"
    return demo_tasks.Maker(tokenizers.Tokenizer.from_file(str(path)), seed=1, held_out=True)


def test_texts_render_as_the_template_does(demo_tasks: Any, maker: Any, processor: Processor):
    words = importlib.import_module("benchmarks.demo.words")
    kinds = set()
    for _ in range(200):
        task = demo_tasks.text.write_text(maker.rng, held_out=True)
        kinds.add(task.task)
        messages: list[Any] = [{"role": "user", "content": task.question}]
        if task.call:
            tool, city = task.call
            call = {"type": "function", "function": {"name": tool, "arguments": {"city": city}}}
            given = [{"name": tool, "response": task.response}]
            messages.append({"role": "assistant", "tool_calls": [call], "tool_responses": given})
        tools = [words.TOOLS[name] for name in task.tools] or None
        text = processor.prepare(messages, thinking=task.thinking, tools=tools).text
        assert text == demo_tasks.render_text(task, task.thinking)
    assert len(kinds) == 8


def test_pictures_are_cut_as_the_processor_does(demo_tasks: Any, maker: Any, processor: Processor):
    pictures = demo_tasks.pictures
    for size in pictures.SIZES:
        pixels = pictures.draw_scene(maker.rng, size, 3).pixels
        patches, positions, _ = demo_tasks.cut_patches(pixels)
        inputs = processor("What is this?", images=[pixels])
        assert inputs.patches is not None
        np.testing.assert_array_equal(np.round(inputs.patches * 255), patches)
        np.testing.assert_array_equal(inputs.patch_positions, positions)


@pytest.mark.parametrize("kind", ["picture", "sound"])
def test_branches_are_ordinary_prompts(maker: Any, processor: Processor, kind: str):
    """The prefix and one branch, alone, have the ids and the positions of an independent prompt."""
    compared = 0
    while compared < 20:
        sequence = maker.make_picture(300) if kind == "picture" else maker.make_sound(300)
        num_branches = max(sequence.branches)
        if not num_branches:
            continue
        row = [k for k, branch in enumerate(sequence.branches) if branch in (0, num_branches)]
        ids = [sequence.ids[k] for k in row]
        text = processor.tokenizer.decode(ids, skip_special_tokens=False)
        if text.count("<|turn>") != 2:
            continue  # a second turn
        question = text.partition("<image|>" if kind == "picture" else "<audio|>")[2]
        question, _, answer = question.partition(
            "<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
        )
        part: dict[str, Any]
        if kind == "picture":
            height, width = sequence_size(len(sequence.patches[0]))
            part = {"type": "image", "image": np.zeros((height, width, 3), np.uint8)}
        else:
            part = {"type": "audio", "audio": sequence.frames.reshape(-1)}
        content = [part, {"type": "text", "text": question}]
        inputs = processor([{"role": "user", "content": content}])
        assert inputs.input_ids.tolist() == ids[: len(inputs.input_ids)]
        assert [sequence.positions[k] for k in row] == list(range(len(row)))
        assert answer.endswith("<turn|>")
        compared += 1


def sequence_size(num_patches: int) -> tuple[int, int]:
    """Height and width of a picture that takes so many patches."""
    return {63: (144, 192), 64: (160, 160), 66: (144, 256)}[num_patches]
