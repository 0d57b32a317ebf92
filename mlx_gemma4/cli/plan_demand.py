"""What `plan` plans for: sizes of weights, media, and a conversation, whatever the machine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gemma4.errors import ConfigError, OptionError

if TYPE_CHECKING:
    from mlx_gemma4.config import Config, QuantizationSettings
    from mlx_gemma4.memory import MemoryPlan, Reading
    from mlx_gemma4.processing.settings import ProcessorSettings

# Of a conversation that has no other length: beyond its media, prompt and answer.
_TEXT_TOKENS = 1024
_ALTERNATIVE_RECIPES = ("q8", "mixed-4-8", "q4")
_MARKERS = 2  # tokens around the soft tokens of a picture or a sound


@dataclass(frozen=True)
class Demand:
    """What is planned: sizes that do not depend on the machine.

    Attributes:
        config: Of the model.
        stored_as: How the weights are stored, for the table.
        weights_bytes: In memory.
        drafter_bytes: In memory.
        context_tokens: Positions of prompt and answer.
        media_tokens: Of which so many are media.
        item_bytes: Of one activation.
        smaller: Other ways to store the weights, and their bytes.
        notes: What was assumed, one line each.
    """

    config: "Config"
    stored_as: str
    weights_bytes: int
    drafter_bytes: int
    context_tokens: int
    media_tokens: int
    item_bytes: int
    smaller: Mapping[str, int]
    notes: tuple[str, ...]

    def plan(self, reading: "Reading", weights_bytes: int | None = None) -> "MemoryPlan":
        """Return the plan, or that with other weights."""
        from mlx_gemma4.memory import plan_memory

        weights_bytes = self.weights_bytes if weights_bytes is None else weights_bytes
        return plan_memory(
            self.config.text_config,
            weights_bytes,
            self.context_tokens,
            self.item_bytes,
            reading,
            self.drafter_bytes,
        )

    def longest_context(self, reading: "Reading", limit_bytes: int) -> int:
        """Return the positions that fit."""
        from mlx_gemma4.memory import longest_context

        return longest_context(
            self.config.text_config,
            self.weights_bytes,
            limit_bytes,
            self.item_bytes,
            reading,
            self.drafter_bytes,
        )


def count_media(
    settings: "ProcessorSettings",
    num_images: int,
    image_tokens: str | None,
    audio_s: float,
    num_videos: int,
    num_frames: int | None,
) -> dict[str, int]:
    """Return tokens of all media, soft tokens from pixels, and those of the longest picture."""
    from mlx_gemma4.processing.audio import FRAME_SIZE, SAMPLE_RATE

    budget = settings.image_tokens
    if image_tokens is not None:  # what a picture's size decides is planned as the most there is
        budget = 1120 if image_tokens == "auto" else int(image_tokens)
    frames = num_videos * (num_frames or settings.num_frames)
    pixels = num_images * budget + frames * settings.video_tokens
    sound = math.ceil(audio_s * SAMPLE_RATE / FRAME_SIZE)
    markers = _MARKERS * (num_images + frames + bool(sound))
    longest = max(budget if num_images else 0, settings.video_tokens if frames else 0)
    return {
        "tokens": pixels + sound + markers,
        "pixel_tokens": pixels,
        "longest_picture": longest,
    }


def make_demand(
    folder: Path,
    recipe: str | None,
    draft_model: str | None,
    dtype: str | None,
    context_tokens: int | None,
    media: Mapping[str, int],
    *,
    is_cpu: bool,
) -> Demand:
    """Return what is planned for.

    Args:
        folder: With config.json, and perhaps weights.
        recipe: As if converted so; None takes what is there.
        draft_model: A drafter beside it.
        dtype: Of activations; None is what loading would choose.
        context_tokens: Of prompt and answer; None is enough for the media and some text.
        media: From `count_media`.
        is_cpu: Whether it is planned for a CPU.

    Raises:
        ConfigError: The drafter is none.
        OptionError: The context is too short or too long, or the recipe is for something else.
    """
    from mlx_gemma4.config import Config
    from mlx_gemma4.memory import DEFAULT_CONTEXT

    config = Config.from_folder(folder)
    dtype = dtype or ("float32" if is_cpu else config.dtype)
    item_bytes = 4 if dtype == "float32" else 2
    stored_as, weights_bytes, smaller, notes = _weights(folder, config, recipe, item_bytes)
    most = config.text_config.max_position_embeddings
    least = media["tokens"]
    if context_tokens is None:
        context_tokens = min(most, max(DEFAULT_CONTEXT, least + _TEXT_TOKENS))
    if not max(1, least) <= context_tokens <= most:
        media_part = f"the {least:,} tokens of the media" if least else "1"
        raise OptionError(
            f"--context is {context_tokens:,} tokens; allowed is from {media_part} to the model's "
            f"{most:,}"
        )
    return Demand(
        config,
        f"{stored_as}, {dtype} activations",
        weights_bytes,
        _drafter_bytes(draft_model, item_bytes) if draft_model else 0,
        context_tokens,
        least,
        item_bytes,
        smaller,
        notes,
    )


def _weights(
    folder: Path, config: "Config", recipe: str | None, item_bytes: int
) -> tuple[str, int, dict[str, int], tuple[str, ...]]:
    """Return how weights are stored, their bytes, those of smaller ways, and notes."""
    from mlx_gemma4.convert.recipe import read_recipe
    from mlx_gemma4.weights import open_checkpoint

    if config.quantization is not None and recipe is not None:
        raise OptionError(
            f"{folder} is quantized already; leave --recipe out, or name the bfloat16 checkpoint"
        )
    notes: tuple[str, ...] = ()
    if recipe is not None:
        chosen = read_recipe(recipe)
        stored_as, nbytes = chosen.name, _recipe_bytes(config, chosen.name, item_bytes)
        if chosen.name != recipe:  # a file of the user's
            nbytes = _recipe_bytes(config, recipe, item_bytes)
    elif any(folder.glob("*.safetensors")):
        checkpoint = open_checkpoint(folder, config)
        kinds = {f"{settings.bits}-bit" for settings in checkpoint.quantization.values()}
        stored_as = " and ".join(sorted(kinds)) or "not quantized"
        nbytes, notes = checkpoint.memory_bytes(item_bytes), checkpoint.notes
    else:
        nbytes = _config_bytes(config, item_bytes)
        kind = config.quantization
        stored_as = f"{kind.bits}-bit" if kind else "not quantized"
        notes = (f"{folder} has no weights: their size follows from config.json",)
    smaller: dict[str, int] = {}
    if config.quantization is None:
        for name in _ALTERNATIVE_RECIPES:
            if (alternative := _recipe_bytes(config, name, item_bytes)) < nbytes:
                smaller[f"--recipe {name}"] = alternative
    return stored_as, nbytes, smaller, notes


def _recipe_bytes(config: "Config", recipe: str, item_bytes: int) -> int:
    """Return the bytes of all parameters once a recipe has been applied and the result loaded."""
    from mlx_gemma4.convert.recipe import read_recipe

    chosen = read_recipe(recipe)

    def settings_of(path: str) -> "QuantizationSettings | None":
        rule = chosen.rule_of(path)
        return rule.settings if rule else None

    return _bytes_of(config, settings_of, item_bytes)


def _config_bytes(config: "Config", item_bytes: int) -> int:
    """Return the bytes of all parameters as config.json describes them.

    It does not say which modules are quantized: those of the decoder are, as converters have them.
    """
    from mlx_gemma4.weights.names import canonical_name

    quantization = config.quantization
    overrides = quantization.overrides if quantization else {}
    by_path = {canonical_name(path): settings for path, settings in overrides.items()}

    def settings_of(path: str) -> "QuantizationSettings | None":
        if quantization is None:
            return None
        default = quantization.default if path.startswith("language_model.") else None
        return by_path.get(path, default)

    return _bytes_of(config, settings_of, item_bytes)


def _bytes_of(config: "Config", settings_of: Any, item_bytes: int) -> int:
    from mlx_gemma4.memory import parameter_bytes
    from mlx_gemma4.weights import expected_tensors

    total = 0
    for name, shape in expected_tensors(config).items():
        is_matrix = name.endswith(".weight") and len(shape) == 2
        settings = settings_of(name.removesuffix(".weight")) if is_matrix else None
        total += parameter_bytes(shape, settings, item_bytes)
    return total


def _drafter_bytes(name: str, item_bytes: int) -> int:
    """Return the bytes of a drafter: of its tensors if they are here, else by its config."""
    from mlx_gemma4.config.section import read_json
    from mlx_gemma4.convert.source import ASSISTANT, check_config, expected_assistant, open_source
    from mlx_gemma4.hub import find_checkpoint
    from mlx_gemma4.memory import parameter_bytes

    folder = find_checkpoint(name, with_weights=False, check=check_config)
    document = dict(read_json(folder / "config.json"))
    if document.get("model_type") != ASSISTANT:
        raise ConfigError(
            f"{name} is no drafter; name one that is made for the model, such as "
            "google/gemma-4-12B-it-assistant"
        )
    if not any(folder.glob("*.safetensors")):
        shapes = expected_assistant(folder, document)
        return sum(parameter_bytes(shape, None, item_bytes) for shape in shapes.values())
    return sum(
        item_bytes * math.prod(tensor.shape) if tensor.is_float else tensor.nbytes
        for tensor in open_source(folder, name).tensors.values()
    )
