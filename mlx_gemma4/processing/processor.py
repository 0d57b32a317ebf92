"""Processor: a prompt and its media in, `ModelInputs` out.

Each medium that is given appears in the prompt exactly once, or the call fails: nothing is left
out silently.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np

from mlx_gemma4.errors import InputError, OptionError
from mlx_gemma4.inputs import Modality, ModelInputs
from mlx_gemma4.messages import Message, TextPart, parse_messages, parse_tools
from mlx_gemma4.processing.chat_template import ChatTemplate
from mlx_gemma4.processing.image import check_budget
from mlx_gemma4.processing.media import (
    Medium,
    name_of,
    read_audio,
    read_image,
    read_video,
)
from mlx_gemma4.processing.placement import Placed, as_sources, place_media
from mlx_gemma4.processing.prompt import encode_prompt, order_media
from mlx_gemma4.processing.settings import ProcessorSettings
from mlx_gemma4.processing.tokenizer import Tokenizer
from mlx_gemma4.processing.video import MAX_SOFT_TOKENS

if TYPE_CHECKING:
    from mlx_gemma4.config import Config

Prompt = str | Sequence[Message | Mapping[str, Any]]


class PromptOptions(TypedDict, total=False):
    """What may be said about a prompt.

    Media given here fill the places that the prompt keeps for them, or stand before the text
    (pictures and clips) and after it (sounds): see `placement`.

    Attributes:
        images: A picture or a list of them; each what `image.load_image` takes.
        audio: A sound or a list of them; each what `audio.load_audio` takes.
        videos: A clip or a list of them; each a path or the bytes of a file.
        thinking: Ask the model to think before it answers.
        tools: Functions that the model may call, as JSON schemas.
        image_tokens: Soft tokens that a picture may take: 70, 140, 280, 560, 1120, or "auto" by
            its size.  The checkpoint's default if None.
        num_frames: Frames to show of a clip.  The checkpoint's default if None.
        video_sound: Let the model hear each clip's sound, right after the clip.
        ignore_chat_template: Take the text as it is, with `<bos>` before it.
    """

    images: Any
    audio: Any
    videos: Any
    thinking: bool
    tools: Sequence[Mapping[str, Any]] | None
    image_tokens: int | Literal["auto"] | None
    num_frames: int | None
    video_sound: bool
    ignore_chat_template: bool


@dataclasses.dataclass(frozen=True)
class PreparedPrompt:
    """A prompt and what became of it, for those who want to look.

    Attributes:
        inputs: What the model takes.
        text: The prompt as text, with one placeholder for each medium.
        media: The media in the order in which the model meets them.
    """

    inputs: ModelInputs
    text: str
    media: tuple[Medium, ...]


class Processor:
    """Turns prompts into `ModelInputs`, the way the checkpoint was trained.

    Args:
        tokenizer: The checkpoint's.
        chat_template: The checkpoint's, or None: a base model then takes raw text alone.
        settings: The checkpoint's defaults for media.
        has_vision: Whether the model takes pictures and clips.
        has_audio: Whether the model takes sounds.
        max_tokens: Positions of the model's context: media of more are not read to the end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None = None,
        settings: ProcessorSettings | None = None,
        *,
        has_vision: bool = True,
        has_audio: bool = True,
        max_tokens: int = MAX_SOFT_TOKENS,
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.settings = settings or ProcessorSettings()
        self.has_vision = has_vision
        self.has_audio = has_audio
        self.max_tokens = max_tokens

    @classmethod
    def from_folder(cls, folder: str | Path, config: "Config") -> "Processor":
        """Return the processor of a checkpoint; only tokenizer.json must be there.

        Raises:
            CheckpointError: tokenizer.json is missing, or a file cannot be read.
            ConfigError: processor_config.json wants something that is not implemented.
        """
        folder = Path(folder)
        tokenizer = Tokenizer.from_folder(folder)
        return cls(
            tokenizer,
            ChatTemplate.from_folder(folder, tokenizer.special_tokens),
            ProcessorSettings.from_folder(folder),
            has_vision=config.vision_config is not None,
            has_audio=config.audio_config is not None,
            max_tokens=config.text_config.max_position_embeddings,
        )

    def __call__(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> ModelInputs:
        """Return the model's inputs for a text or a conversation.

        Raises:
            InputError: The prompt is empty or broken; or a medium cannot be read, has no place in
                the prompt, or the model has no front end for it.
            OptionError: `image_tokens` or `num_frames` has a value that is not allowed.
        """
        return self.prepare(prompt, **options).inputs

    def prepare(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> PreparedPrompt:
        """Return the model's inputs, and the text and media they are made of; see `__call__`."""
        unknown = options.keys() - PromptOptions.__annotations__.keys()
        if unknown:  # a misspelt `images=` must not leave the pictures out
            raise TypeError(
                f"unknown option {', '.join(sorted(unknown))}; "
                f"allowed: {', '.join(PromptOptions.__annotations__)}"
            )
        given = {
            Modality.IMAGE: as_sources(options.get("images"), "images"),
            Modality.VIDEO: as_sources(options.get("videos"), "videos"),
            Modality.AUDIO: as_sources(options.get("audio"), "audio"),
        }
        messages, sources = place_media(self.tokenizer, parse_messages(prompt), given)
        if not sources and not any(_says_something(message) for message in messages):
            raise InputError("the prompt is empty; say something, or give a medium")
        media = self._read_media(sources, options)

        is_raw = options.get("ignore_chat_template", False) or self.chat_template is None
        write = self._write_raw if is_raw else self._write_chat
        text = self._add_sounds(write(messages, options), media)
        media = [m for medium in media for m in (medium, medium.sound) if m is not None]
        order = order_media(self.tokenizer, text, [medium.modality for medium in media])
        media = [media[index] for index in order]
        return PreparedPrompt(self._assemble(text, media, add_bos=is_raw), text, tuple(media))

    def _read_media(self, sources: Sequence[Placed], options: PromptOptions) -> list[Medium]:
        image_tokens = options.get("image_tokens")
        num_frames = options.get("num_frames")
        image_tokens = self.settings.image_tokens if image_tokens is None else image_tokens
        num_frames = self.settings.num_frames if num_frames is None else num_frames
        check_budget(image_tokens)
        if num_frames < 1:
            raise OptionError(f"num_frames is {num_frames}; it must be 1 or more")
        with_sound = options.get("video_sound", False)
        for modality, _ in sources:  # before anything slow
            self._check_front_end(modality)
            if with_sound and modality is Modality.VIDEO:
                self._check_front_end(Modality.AUDIO)

        media: list[Medium] = []
        num_tokens = 0
        for number, (modality, source) in enumerate(sources, 1):
            name = name_of(source, modality, number)
            if modality is Modality.IMAGE:
                medium = read_image(source, name, self.tokenizer, image_tokens)
            elif modality is Modality.AUDIO:
                medium = read_audio(source, name, self.tokenizer)
            else:
                medium = read_video(
                    source,
                    name,
                    self.tokenizer,
                    num_frames,
                    self.settings.video_tokens,
                    with_sound=with_sound,
                )
            media.append(medium)
            num_tokens += medium.num_soft_tokens
            # Here, since the rest would fill the memory before anybody counts tokens.
            if num_tokens > self.max_tokens:
                raise InputError(
                    f"the first {number} of {len(sources)} media have {num_tokens:,} soft tokens, "
                    f"the model's context {self.max_tokens:,}; give fewer, or give them fewer "
                    "soft tokens"
                )
        return media

    def _check_front_end(self, modality: Modality) -> None:
        is_sound = modality is Modality.AUDIO
        if not (self.has_audio if is_sound else self.has_vision):
            key = "audio_config" if is_sound else "vision_config"
            raise InputError(
                f"this checkpoint takes no {modality}: its config.json has no {key}; leave the "
                f"{modality} out, or use a checkpoint with that front end"
            )

    def _write_chat(self, messages: Sequence[Message], options: PromptOptions) -> str:
        assert self.chat_template is not None
        return self.chat_template.render(
            messages,
            tools=parse_tools(options.get("tools")),
            thinking=options.get("thinking", False),
        )

    def _write_raw(self, messages: Sequence[Message], options: PromptOptions) -> str:
        """Return a plain text with its media, for a model or a user without a template."""
        why = (
            "this checkpoint has no chat template (a base model)"
            if self.chat_template is None
            else "the chat template is ignored"
        )
        if len(messages) != 1 or messages[0].role != "user":
            raise InputError(f"{why}, so it takes no conversation; give one text")
        for option in ("thinking", "tools"):
            if options.get(option):
                raise InputError(f"{why}, so it knows no {option}; leave it off")
        tokens = self.tokenizer.special_tokens
        return "".join(
            part.text if isinstance(part, TextPart) else tokens[f"{part.kind}_token"]
            for part in messages[0].parts
        )

    def _add_sounds(self, text: str, media: Sequence[Medium]) -> str:
        """Write a placeholder after each clip whose sound is to be heard."""
        clips = [medium for medium in media if medium.modality is Modality.VIDEO]
        video_token = self.tokenizer.special_tokens["video_token"]
        audio_token = self.tokenizer.special_tokens["audio_token"]
        head, *tails = text.split(video_token)
        if len(tails) != len(clips):
            return text  # a place was lost, which `order_media` reports
        return head + "".join(
            video_token + audio_token * (clip.sound is not None) + tail
            for clip, tail in zip(clips, tails, strict=True)
        )

    def _assemble(self, text: str, media: Sequence[Medium], *, add_bos: bool) -> ModelInputs:
        expansions = [medium.expansion for medium in media]
        input_ids, spans = encode_prompt(self.tokenizer, text, expansions, add_bos=add_bos)
        return ModelInputs(
            input_ids,
            spans,
            patches=_join([medium.patches for medium in media]),
            patch_positions=_join([medium.patch_positions for medium in media]),
            frames=_join([medium.frames for medium in media]),
            notes=tuple(note for medium in media for note in medium.notes),
        )


def _says_something(message: Message) -> bool:
    has_words = any(isinstance(p, TextPart) and p.text.strip() for p in message.parts)
    return has_words or bool(message.tool_calls or message.tool_responses)


def _join(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return the rows of all media, those without any left out."""
    present = [array for array in arrays if array is not None]
    if len(present) < 2:
        return present[0] if present else None
    return np.concatenate(present)
