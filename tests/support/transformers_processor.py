"""transformers' processor as the reference: the same cases, asked there.

Needs transformers and, for pictures and clips, torchvision.
"""

import shutil
from pathlib import Path
from typing import Any

from prompt_cases import Case, draw_clip, draw_picture, draw_sound, fill

_FILES = ("config.json", "tokenizer.json", "chat_template.jinja", "processor_config.json")


def make_reference_folder(checkpoint: Path, folder: Path) -> Path:
    """Lay out Google's files as transformers wants them and return the folder."""
    for name in _FILES:
        (folder / name).symlink_to(checkpoint / name)
    settings = checkpoint / "tokenizer_config.json"
    if not settings.is_file():
        settings = checkpoint / "tokenizer_config.RECONSTRUCTED.json"
    shutil.copyfile(settings, folder / "tokenizer_config.json")
    return folder


def reference_chat(tokenizer: Any, case: Case) -> str:
    """Return what transformers' tokenizer makes of the conversation."""
    return tokenizer.apply_chat_template(
        case.messages,
        tools=case.tools,
        add_generation_prompt=case.add_generation_prompt,
        enable_thinking=case.thinking,
        tokenize=False,
    )


def reference_ids(processor: Any, case: Case) -> list[int]:
    """Return the ids that transformers' processor makes of the conversation and its media."""
    rates: list[dict[str, Any]] = []

    def make(words: str) -> Any:
        if words.startswith("picture"):
            return draw_picture(words)
        if words.startswith("sound"):
            return draw_sound(words)
        frames, fps = draw_clip(words)
        rates.append({"total_num_frames": len(frames), "fps": fps, "duration": len(frames) / fps})
        return frames

    messages = fill(case.messages, make)
    options: dict[str, Any] = {}
    if "image_tokens" in case.options:
        options["images_kwargs"] = {"max_soft_tokens": case.options["image_tokens"]}
    if rates:
        options["videos_kwargs"] = {"do_sample_frames": True, "video_metadata": rates}
        if "num_frames" in case.options:
            options["videos_kwargs"]["num_frames"] = case.options["num_frames"]
    encoded = processor.apply_chat_template(
        messages,
        tools=case.tools,
        add_generation_prompt=case.add_generation_prompt,
        enable_thinking=case.thinking,
        tokenize=True,
        return_dict=True,
        processor_kwargs=options,
    )
    ids = encoded["input_ids"]
    return [int(i) for i in (ids[0] if not isinstance(ids[0], int) else ids)]
