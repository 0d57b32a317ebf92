"""Fingerprint: what must be the same where a prompt was read and where it is gone on with."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma4.cache import LayerCache, SlidingCache
from mlx_gemma4.config import TextConfig
from mlx_gemma4.model.gemma4 import Gemma4
from mlx_gemma4.model.rope import RoPE

_SAMPLES = 64  # values of each parameter, evenly spaced
_WORDS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


@dataclass(frozen=True)
class LayerLayout:
    """What a layer keeps.

    Attributes:
        kind: Name of the cache's class.
        window: Of a sliding layer; 0 for one that keeps everything.
        parts: Batch, heads, and values of a row, and dtype, of each array that is saved.
    """

    kind: str
    window: int
    parts: tuple[tuple[int, int, int, str], ...]


@dataclass(frozen=True)
class Fingerprint:
    """What a stored prompt belongs to.

    Attributes:
        model: Hash of every parameter, and of the mask rule.
        dtype: Of activations.
        version: Of this package.
        chat_template: Hash of the template; "" without one.
        layout: Of every layer.
    """

    model: str
    dtype: str
    version: str
    chat_template: str
    layout: tuple[LayerLayout, ...]

    @classmethod
    def of(
        cls,
        model: Gemma4,
        make_cache: Callable[[], Sequence[LayerCache]],
        chat_template: str | None = None,
    ) -> "Fingerprint":
        """Return that of a model; all its parameters are read.

        Args:
            model: With parameters loaded.
            make_cache: Makes an empty prompt cache, `model.make_cache`.
            chat_template: The template's text.
        """
        template = "" if chat_template is None else _hash(chat_template.encode())
        return cls(
            hash_model(model),
            _name(model.dtype),
            version("mlx-gemma4"),
            template,
            tuple(_layouts(model.config.text_config, model.dtype, make_cache())),
        )

    def as_text(self) -> str:
        """Return it as JSON, the same for the same fingerprint."""
        return json.dumps(asdict(self), sort_keys=True)

    def difference(self, text: str) -> str | None:
        """Say in what another fingerprint, as JSON, differs from this one; None if in nothing."""
        if text == self.as_text():
            return None
        try:
            other: dict[str, Any] = json.loads(text)
            mine = json.loads(self.as_text())
            if other["model"] != mine["model"]:
                return "it is of another model"
            if other["version"] != mine["version"]:
                theirs = str(other["version"])[:20]
                return f"it is of version {theirs}, and this is {self.version}"
            if other["dtype"] != mine["dtype"]:
                return f"it is in {str(other['dtype'])[:20]}, and the model now in {self.dtype}"
            if other["layout"] != mine["layout"]:
                return "its layers are kept in another layout, such as other bits"
            return "it is of another chat template"
        except (ValueError, KeyError, TypeError, RecursionError):
            return "it does not say of which model it is"


def hash_model(model: Gemma4) -> str:
    """Return a hash of a model's parameters, in hexadecimal, and of how it is masked.

    Sums of all words, and some words by their place: another training, or other bits, change both.
    """
    digest = hashlib.sha256(model.image_attention.encode())
    flat = cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
    for name, array in sorted(flat, key=lambda item: item[0]):
        words = array.reshape(-1).view(_WORDS[array.dtype.size])
        samples = words[:: max(1, words.size // _SAMPLES)]
        total = words.astype(mx.uint32).sum() if array.dtype.size < 4 else words.sum()
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.array(samples).tobytes() + np.array(total).tobytes())
    return digest.hexdigest()[:32]


def _layouts(text: TextConfig, dtype: mx.Dtype, caches: Sequence[LayerCache]) -> list[LayerLayout]:
    """Return the layouts of empty caches, by what they keep of one position."""
    layouts = []
    for index, layer_cache in enumerate(caches):
        head_dim = text.head_dim_of(index)
        rope = RoPE(text.rope_parameters[text.layer_types[index]], head_dim)
        dims = head_dim + (head_dim if text.is_sliding(index) else rope.dims)
        rows = mx.zeros((1, text.num_key_value_heads_of(index), 1, dims), dtype)
        if isinstance(layer_cache, SlidingCache):
            layer_cache.update_and_fetch(rows)
        else:
            layer_cache.update_and_fetch(layer_cache.row_format.pack(rows, rope.dims))
        arrays = saved_arrays(layer_cache, 0)
        parts = tuple((a.shape[0], a.shape[1], a.shape[3], _name(a.dtype)) for a in arrays)
        window = layer_cache.window if isinstance(layer_cache, SlidingCache) else 0
        layouts.append(LayerLayout(type(layer_cache).__name__, window, parts))
    return layouts


def saved_arrays(layer_cache: LayerCache, start: int) -> list[mx.array]:
    """Return what is saved of a layer, [B, K, positions, values] each.

    Args:
        layer_cache: A ring gives all that it keeps; another its positions from `start` on.
        start: First position.
    """
    if isinstance(layer_cache, SlidingCache):
        return [layer_cache.rows_in_order()]
    return [array[:, :, start : layer_cache.offset] for array in layer_cache.state]


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
