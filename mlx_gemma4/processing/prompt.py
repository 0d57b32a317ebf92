"""Prompt text to token ids: each placeholder of a medium becomes its soft tokens.

The rendered prompt says `<|image|>` where a picture goes; the model wants `<|image>`, as many
`<|image|>` as the picture has soft tokens, and `<image|>`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_gemma4.errors import CheckpointError, InputError
from mlx_gemma4.inputs import Modality, SoftTokenSpan
from mlx_gemma4.processing.tokenizer import Tokenizer

_TOKEN_NAMES = {modality: f"{modality}_token" for modality in Modality}


@dataclass(frozen=True)
class Expansion:
    """What one placeholder becomes.

    Attributes:
        modality: Whose placeholder.
        text: What is written in its place.
        lengths: Soft tokens of each span in it: one for a picture or a sound, one a video frame.
    """

    modality: Modality
    text: str
    lengths: tuple[int, ...]


def expand_image(tokenizer: Tokenizer, num_soft_tokens: int) -> Expansion:
    """Return the soft tokens of a picture."""
    text = _soft_tokens(tokenizer, Modality.IMAGE, num_soft_tokens)
    return Expansion(Modality.IMAGE, text, (num_soft_tokens,))


def expand_audio(tokenizer: Tokenizer, num_soft_tokens: int) -> Expansion:
    """Return the soft tokens of a sound."""
    text = _soft_tokens(tokenizer, Modality.AUDIO, num_soft_tokens)
    return Expansion(Modality.AUDIO, text, (num_soft_tokens,))


def expand_video(
    tokenizer: Tokenizer, num_soft_tokens: Sequence[int], timestamps_s: Sequence[float]
) -> Expansion:
    """Return the soft tokens of a video: `mm:ss` before each frame, one space between frames.

    Args:
        tokenizer: Names the tokens.
        num_soft_tokens: Of each frame.
        timestamps_s: Of each frame; parts of a second are dropped.

    Source: transformers, processing_gemma4_unified.Gemma4UnifiedProcessor.replace_video_token.
    """
    frames = [
        f"{int(seconds // 60):02d}:{int(seconds % 60):02d} "
        + _soft_tokens(tokenizer, Modality.VIDEO, count)
        for count, seconds in zip(num_soft_tokens, timestamps_s, strict=True)
    ]
    return Expansion(Modality.VIDEO, " ".join(frames), tuple(num_soft_tokens))


def find_placeholders(text: str, tokenizer: Tokenizer) -> list[tuple[Modality, int]]:
    """Return modality and character position of each placeholder, in order."""
    modalities = {tokenizer.special_tokens[name]: m for m, name in _TOKEN_NAMES.items()}
    pattern = "|".join(map(re.escape, modalities))
    return [(modalities[match[0]], match.start()) for match in re.finditer(pattern, text)]


def order_media(tokenizer: Tokenizer, text: str, media: Sequence[Modality]) -> list[int]:
    """Return the indices of the media in the order of their placeholders in the prompt.

    Args:
        tokenizer: Names the tokens.
        text: The prompt with one placeholder for each medium.
        media: Those of one modality in the order of their placeholders.

    Raises:
        InputError: More or fewer placeholders than media.
    """
    places = [modality for modality, _ in find_placeholders(text, tokenizer)]
    for modality in Modality:
        num_places, num_given = places.count(modality), list(media).count(modality)
        if num_places != num_given:
            raise count_mismatch(tokenizer, modality, num_places, num_given)
    waiting = {m: iter([i for i, given in enumerate(media) if given is m]) for m in Modality}
    return [next(waiting[modality]) for modality in places]


def count_mismatch(
    tokenizer: Tokenizer, modality: Modality, num_places: int, num_given: int
) -> InputError:
    """Return the error for a prompt with more or fewer places for media than media."""
    token = tokenizer.special_tokens[_TOKEN_NAMES[modality]]
    return InputError(
        f"the prompt has {num_places} place{'s' * (num_places != 1)} for {modality} ({token}), "
        f"but {num_given} {'was' if num_given == 1 else 'were'} given; give one for each place, "
        f"and take {token} out of texts that only mention it"
    )


def encode_prompt(
    tokenizer: Tokenizer, text: str, expansions: Sequence[Expansion], *, add_bos: bool = False
) -> tuple[np.ndarray, tuple[SoftTokenSpan, ...]]:
    """Return the ids of a prompt and where its soft tokens are.

    Args:
        tokenizer: The checkpoint's.
        text: The prompt with one placeholder for each medium.
        expansions: Of the media, in the order of their placeholders: see `order_media`.
        add_bos: The text is not from a chat template, which writes `<bos>` itself.

    Returns:
        input_ids: [L] int32.
        spans: Ascending.

    Raises:
        CheckpointError: The tokenizer does not know a placeholder as one token.
    """
    pieces: list[str] = []
    end = 0
    places = find_placeholders(text, tokenizer)
    for (_, start), expansion in zip(places, expansions, strict=True):
        pieces += (text[end:start], expansion.text)
        end = start + len(tokenizer.special_tokens[_TOKEN_NAMES[expansion.modality]])
    pieces.append(text[end:])
    ids = np.array(tokenizer.encode("".join(pieces), add_bos=add_bos), np.int32)
    lengths = [(e.modality, length) for e in expansions for length in e.lengths]
    return ids, _find_spans(tokenizer, ids, lengths)


def _soft_tokens(tokenizer: Tokenizer, modality: Modality, count: int) -> str:
    begin, end = ("boa", "eoa") if modality is Modality.AUDIO else ("boi", "eoi")
    names = tokenizer.special_tokens
    return names[f"{begin}_token"] + names[_TOKEN_NAMES[modality]] * count + names[f"{end}_token"]


def _find_spans(
    tokenizer: Tokenizer, ids: np.ndarray, lengths: Sequence[tuple[Modality, int]]
) -> tuple[SoftTokenSpan, ...]:
    """Return the runs of placeholder ids, which must be those that were written."""
    if not lengths:
        return ()
    spans: list[SoftTokenSpan] = []
    for modality in {modality for modality, _ in lengths}:
        token_id = tokenizer.special_id(_TOKEN_NAMES[modality])
        edges = np.flatnonzero(np.diff(ids == token_id, prepend=False, append=False))
        spans += (
            SoftTokenSpan(int(start), int(stop - start), modality)
            for start, stop in edges.reshape(-1, 2)
        )
    spans.sort(key=lambda span: span.start)
    if [(span.modality, span.length) for span in spans] != list(lengths):
        raise CheckpointError(
            f"{tokenizer.path} splits the placeholders of media; "
            "they must be special tokens of their own; fetch the file again"
        )
    return tuple(spans)
