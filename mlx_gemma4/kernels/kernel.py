"""What the registry must know of a kernel, and of the model that it runs in: plain records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx

from mlx_gemma4.config import FULL_ATTENTION, TextConfig


@dataclass(frozen=True)
class Sizes:
    """The shapes that a model's operations have.

    Attributes:
        dtype: Of activations and unquantized parameters.
        global_rotated_dims: Dimensions of a global layer's head that rotate.
    """

    dtype: mx.Dtype
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_global_key_value_heads: int
    global_head_dim: int
    global_rotated_dims: int
    sliding_window: int

    @classmethod
    def from_config(cls, config: TextConfig, dtype: mx.Dtype) -> "Sizes":
        """Return the sizes of a decoder whose activations have the given dtype."""
        share = config.rope_parameters[FULL_ATTENTION].partial_rotary_factor
        names = {field.name for field in fields(cls)} - {"dtype", "global_rotated_dims"}
        return cls(
            dtype=dtype,
            global_rotated_dims=2 * int(share * config.global_head_dim // 2),
            **{name: getattr(config, name) for name in names},
        )

    @property
    def key(self) -> str:
        """A name under which timings of these sizes are kept."""
        numbers = [str(getattr(self, field.name)) for field in fields(self)[1:]]
        return "-".join([dtype_name(self.dtype), *numbers])


@dataclass(frozen=True)
class Case:
    """One call to compare or to time.

    Attributes:
        label: What it stands for, such as "decode".
        arguments: Positional arguments of both functions of a kernel.
    """

    label: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Kernel:
    """An operation that has both a definition in plain MLX and a Metal kernel.

    Attributes:
        name: The stem that its files share.
        sources: All its Metal sources, by stem.
        launch: Runs the kernel; returns its outputs.
        define: The same in plain MLX: what is right, and what runs where the kernel is off.
        check_cases: Small calls for a dtype, odd shapes among them.
        tune_cases: Calls with the shapes of a model; none if the kernel does not fit it.
    """

    name: str
    sources: tuple[str, ...]
    launch: Callable[..., tuple[mx.array, ...]]
    define: Callable[..., tuple[mx.array, ...]]
    check_cases: Callable[[mx.Dtype], Sequence[Case]]
    tune_cases: Callable[[Sizes], Sequence[Case]]


def dtype_name(dtype: mx.Dtype) -> str:
    """Return "bfloat16" for mx.bfloat16."""
    return str(dtype).rpartition(".")[2]
