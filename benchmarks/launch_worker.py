"""One decode step of one program, traced; `launches.py` starts it under the program's interpreter.

The program loads the checkpoint and runs its own token loop, greedy.  Nothing of the checkpoint is
read but its headers.  Prints the trace as one JSON document, the last line.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from launch_recorder import Recorder
from launch_trace import trace_step


def own_tokens(recorder: Recorder, checkpoint: Path, ids: list[int], **kv: Any) -> Iterator[Any]:
    """mlx-gemma4, with rows of global layers kept in some way."""
    import numpy as np

    from mlx_gemma4 import load
    from mlx_gemma4.generation.generate import generate_step
    from mlx_gemma4.inputs import ModelInputs

    model, _ = load(checkpoint, dtype="bfloat16", check_limits=False, tune=False, **kv)
    recorder.watch(model, model.language_model.layers)
    return generate_step(ModelInputs(np.array(ids, np.int32)), model, max_tokens=4)


def mlx_lm_tokens(recorder: Recorder, checkpoint: Path, ids: list[int]) -> Iterator[Any]:
    """mlx-lm."""
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model: Any = load_model(checkpoint, lazy=True)[0]
    recorder.watch(model, model.layers)
    return generate_step(mx.array(ids), model, max_tokens=4)


def mlx_vlm_tokens(recorder: Recorder, checkpoint: Path, ids: list[int]) -> Iterator[Any]:
    """mlx-vlm."""
    from mlx_vlm.generate import generate_step
    from mlx_vlm.utils import load_model

    model = load_model(checkpoint, lazy=True)
    recorder.watch(model, model.language_model.model.layers)
    return generate_step(mx.array([ids]), model, None, None, max_tokens=4, temperature=0.0)


PROGRAMS = {"mlx-gemma4": own_tokens, "mlx-lm": mlx_lm_tokens, "mlx-vlm": mlx_vlm_tokens}


def trace(program: str, checkpoint: Path, context: int, kernels: bool, **kv: Any) -> dict[str, Any]:
    """Return the trace of the step whose token follows `context` others.

    Args:
        program: Key of PROGRAMS.
        checkpoint: Folder.
        context: Positions of the prompt.
        kernels: Whether our own Metal kernels are on, all of them; of no meaning to others.
        kv: How our own global layers' rows are kept, as `mlx_gemma4.load` takes it; likewise.
    """
    mx.set_default_device(mx.cpu)  # where there is a GPU, stand-ins would fail its kernels' checks
    recorder = Recorder()
    recorder.install()
    ids = [2, *(300 + i % 1000 for i in range(context - 1))]
    is_ours = program == "mlx-gemma4"
    tokens = PROGRAMS[program](recorder, checkpoint, ids, **(kv if is_ours else {}))
    with recorder.pretended_gpu():
        if not is_ours:
            return trace_step(recorder, tokens)
        from mlx_gemma4.kernels import registry

        with registry.forced(*(registry.KERNELS if kernels else ())):
            return trace_step(recorder, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description="One traced step; started by launches.py.")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--plain", action="store_true", help="with our Metal kernels off")
    parser.add_argument("--kv-bits", type=int, default=16, help="of our global layers' rows")
    parser.add_argument("--kv-rows", default="shared", help="what these rows are")
    options = parser.parse_args()
    document = trace(
        options.program,
        options.checkpoint,
        options.context,
        not options.plain,
        kv_bits=options.kv_bits,
        kv_rows=options.kv_rows,
    )
    print(json.dumps(document))


if __name__ == "__main__":
    main()
