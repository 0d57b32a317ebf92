"""Where media go: each one given gets one place in the conversation, in the order given.

Places are `<|image|>`, `<|audio|>`, `<|video|>` in a text and media parts of messages.  A part with
a source of its own needs nothing; the others are filled by `images=`, `audio=`, and `videos=`.
"""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlx_gemma4.errors import InputError
from mlx_gemma4.inputs import Modality
from mlx_gemma4.messages import MediaPart, Message, Part, TextPart, resolve_source
from mlx_gemma4.processing.prompt import count_mismatch, find_placeholders
from mlx_gemma4.processing.tokenizer import Tokenizer

Placed = tuple[Modality, Any]
"""A modality and a source."""


def as_sources(value: Any, argument: str) -> list[Any]:
    """Return the media of one argument as a list; one alone need not stand in a list.

    Raises:
        InputError: A web address, or a broken data: URL.
    """
    if value is None:
        return []
    # A pair (samples, rate) is one sound, not two.
    is_sampled_sound = (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], np.ndarray)
        and np.isscalar(value[1])
    )
    if not isinstance(value, list | tuple) or is_sampled_sound:
        value = [value]
    return [resolve_source(source, f"{argument}[{index}]") for index, source in enumerate(value)]


def place_media(
    tokenizer: Tokenizer, messages: Sequence[Message], given: Mapping[Modality, Sequence[Any]]
) -> tuple[tuple[Message, ...], list[Placed]]:
    """Return the messages with a place for each medium, and the media in the order of places.

    Where the messages keep no place for a modality, its media go to the user's last message:
    pictures and clips before the text, sounds after it, as Google's model card asks.

    Raises:
        InputError: More or fewer media than places.
    """
    messages = tuple(messages)
    places = _find_places(tokenizer, messages)
    awaited = {modality for modality, source in places if source is None}
    homeless = {m: sources for m, sources in given.items() if sources and m not in awaited}
    if homeless:
        messages = _attach(messages, homeless)
        places = _find_places(tokenizer, messages)
    waiting = {modality: deque(given.get(modality, ())) for modality in Modality}
    for modality, sources in waiting.items():
        num_open = sum(m is modality and source is None for m, source in places)
        if num_open != len(sources):
            raise count_mismatch(tokenizer, modality, num_open, len(sources))
    return messages, [
        (modality, waiting[modality].popleft() if source is None else source)
        for modality, source in places
    ]


def _find_places(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Placed]:
    """Return modality and source of each place, None where it is still open."""
    places: list[Placed] = []
    for part in (part for message in messages for part in message.parts):
        if isinstance(part, MediaPart):
            places.append((Modality(part.kind), part.source))
        else:
            places += ((m, None) for m, _ in find_placeholders(part.text, tokenizer))
    return places


def _attach(
    messages: tuple[Message, ...], media: Mapping[Modality, Sequence[Any]]
) -> tuple[Message, ...]:
    """Return the messages with open places for the media in the user's last message."""
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    if not users:
        raise InputError(
            "media were given, but no message of the user for them; add one with role 'user'"
        )
    last = messages[users[-1]]
    texts = tuple(part for part in last.parts if not isinstance(part, TextPart) or part.text)
    before: list[Part] = [
        MediaPart(modality.value)
        for modality in (Modality.IMAGE, Modality.VIDEO)
        for _ in media.get(modality, ())
    ]
    after: list[Part] = [MediaPart("audio") for _ in media.get(Modality.AUDIO, ())]
    attached = dataclasses.replace(last, content=(*before, *texts, *after))
    return (*messages[: users[-1]], attached, *messages[users[-1] + 1 :])
