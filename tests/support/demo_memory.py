"""What the demo checkpoint needs beside its weights, as the planner has it."""

from mlx_gemma4.config import Config
from mlx_gemma4.hub import find_checkpoint
from mlx_gemma4.memory import PREFILL_STEPS, Reading, plan_memory
from mlx_gemma4.weights import open_checkpoint


def weights_bytes() -> int:
    """Return the bytes of the weights in float32."""
    folder = find_checkpoint("demo")
    return open_checkpoint(folder, Config.from_folder(folder)).memory_bytes(4)


def needed_bytes(context_tokens: int, kv_bits: int, step_size: int | None = None) -> int:
    """Return the bytes of cache and work in float32 on a CPU.

    Args:
        context_tokens: Positions of prompt and answer.
        kv_bits: 16 or 8.
        step_size: Positions of a chunk; None takes those that need least.
    """
    text = Config.from_folder(find_checkpoint("demo")).text_config
    return min(
        plan_memory(text, 0, context_tokens, 4, Reading(step, kv_bits=kv_bits)).total_bytes
        for step in ((step_size,) if step_size else PREFILL_STEPS)
    )


def between(context_tokens: int, step_size: int | None = None) -> int:
    """Return bytes that are enough for so many positions with 8 bits, and not with 16."""
    least, most = (needed_bytes(context_tokens, bits, step_size) for bits in (8, 16))
    assert least < most
    return (least + most) // 2
