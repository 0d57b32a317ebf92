"""What became of pictures, sounds, and clips, for JSON and for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_gemma4.processing.media import Medium


def describe_media(media: "Sequence[Medium]") -> list[dict[str, Any]]:
    """Return the facts about each medium in JSON's types, in the order of the prompt."""
    facts: list[dict[str, Any]] = []
    for medium in media:
        about: dict[str, Any] = {
            "modality": str(medium.modality),
            "name": medium.name,
            "num_soft_tokens": medium.num_soft_tokens,
        }
        if medium.size is not None:
            about |= {"size": list(medium.size), "grid": list(medium.grid or ())}
        if medium.seconds is not None:
            about["seconds"] = medium.seconds
        if medium.timestamps_s:
            about["timestamps_s"] = list(medium.timestamps_s)
        facts.append(about)
    return facts


def describe_medium(medium: "Medium") -> str:
    """Return the facts about a medium in one line."""
    facts = [medium.name]
    if medium.seconds is not None:
        facts.append(f"{medium.seconds:.2f} s")
    if medium.size is not None and medium.grid is not None:
        facts.append(f"{medium.size[0]}x{medium.size[1]} pixels")
        facts.append(f"grid {medium.grid[0]}x{medium.grid[1]}")
    if medium.timestamps_s:
        times = " ".join(f"{s:.2f}" for s in medium.timestamps_s)
        facts.append(f"{len(medium.timestamps_s)} frames at {times} s")
    facts.append(f"{medium.num_soft_tokens} soft tokens")
    return ", ".join(facts)
