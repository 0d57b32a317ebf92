"""One measurement of one program in a process of its own; `peers.py` starts it.

Runs under the interpreter of the program's environment, so nothing but the standard library is
imported before the program itself: what the program imports is part of what is measured.  Prints
one JSON document as the last line.

    load         seconds from the start of the process until all parameters are in memory
    first-token  seconds from the start of the process to the first token of a chat prompt, with or
                 without a picture: imports, loading, processing and prefill
    speed        prefill and decode of random token ids, greedy, the peak memory of the process, and
                 what MLX held beyond the weights
    memory       prefill alone, in full or as the last chunk behind random rows in the program's own
                 cache: what MLX held beyond weights and cache, and the cache's own bytes

Each program is asked in its own documented way.  Times are taken here, around its token iterator,
so that they mean the same for all.
"""

import argparse
import inspect
import json
import random
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class OwnWorker:
    """mlx-gemma4."""

    def __init__(self, checkpoint: str) -> None:
        from mlx_gemma4 import load

        self.model, self.processor = load(checkpoint)

    def chat(self, question: str, image: str | None) -> Iterable[Any]:
        from mlx_gemma4 import stream_generate

        images = [image] if image else None
        return stream_generate(
            self.model, self.processor, question, images=images, max_tokens=2, temp=0
        )

    def read(self, ids: list[int], max_tokens: int) -> Iterable[Any]:
        import numpy as np

        from mlx_gemma4.generation.generate import generate_step
        from mlx_gemma4.inputs import ModelInputs

        inputs = ModelInputs(np.array(ids, np.int32))
        return generate_step(inputs, self.model, max_tokens=max_tokens)

    def prefill_step_size(self, ids: list[int]) -> int:
        import numpy as np

        from mlx_gemma4.generation.reading import plan_reading
        from mlx_gemma4.inputs import ModelInputs

        inputs = ModelInputs(np.array(ids, np.int32))
        return plan_reading(inputs, self.model, self.model.make_cache()).prefill_step_size

    def make_cache(self, context: int, past: int, step: int) -> Any:
        sys.path.append(str(Path(__file__).resolve().parent))  # Python's safe path leaves it out
        from bench_memory import fill_cache

        # As if the prompt were read from its start, and its length known.
        cache = self.model.make_cache(context_tokens=context)
        if past:
            fill_cache(self.model, cache, past)
        return cache

    def prefill(self, ids: list[int], cache: Any) -> None:
        import numpy as np

        from mlx_gemma4.generation.generate import prefill
        from mlx_gemma4.inputs import ModelInputs

        prefill(ModelInputs(np.array(ids, np.int32)), self.model, cache)

    def allocated_bytes(self) -> int | None:
        return mlx_peak_bytes()


class MlxLmWorker:
    """mlx-lm: text alone."""

    def __init__(self, checkpoint: str) -> None:
        from mlx_lm import load

        self.checkpoint = checkpoint
        self.model, self.tokenizer = load(checkpoint)[:2]

    def chat(self, question: str, image: str | None) -> Iterable[Any]:
        from mlx_lm import stream_generate

        if image:
            raise ValueError("mlx-lm reads no pictures")
        messages = [{"role": "user", "content": question}]
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return stream_generate(self.model, self.tokenizer, prompt, max_tokens=2)

    def read(self, ids: list[int], max_tokens: int) -> Iterable[Any]:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        return generate_step(mx.array(ids), self.model, max_tokens=max_tokens)

    def prefill_step_size(self, ids: list[int]) -> int:
        from mlx_lm.generate import generate_step

        return inspect.signature(generate_step).parameters["prefill_step_size"].default

    def make_cache(self, context: int, past: int, step: int) -> Any:
        from mlx_lm.models.cache import make_prompt_cache

        return fill_cache(make_prompt_cache(self.model), self.checkpoint, past, step)

    def prefill(self, ids: list[int], cache: Any) -> None:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        for _ in generate_step(mx.array(ids), self.model, max_tokens=0, prompt_cache=cache):
            raise RuntimeError("a token was made, and none was asked for")

    def allocated_bytes(self) -> int | None:
        return mlx_peak_bytes()


class MlxVlmWorker:
    """mlx-vlm."""

    def __init__(self, checkpoint: str) -> None:
        from mlx_vlm import load

        self.checkpoint = checkpoint
        self.model, self.processor = load(checkpoint)

    def chat(self, question: str, image: str | None) -> Iterable[Any]:
        from mlx_vlm import stream_generate
        from mlx_vlm.prompt_utils import apply_chat_template

        prompt = apply_chat_template(
            self.processor, self.model.config, question, num_images=int(image is not None)
        )
        return stream_generate(
            self.model, self.processor, prompt, image=image, max_tokens=2, temperature=0.0
        )

    def read(self, ids: list[int], max_tokens: int) -> Iterable[Any]:
        import mlx.core as mx
        from mlx_vlm.generate import generate_step

        return generate_step(
            mx.array([ids]), self.model, None, None, max_tokens=max_tokens, temperature=0.0
        )

    def prefill_step_size(self, ids: list[int]) -> int:
        from mlx_vlm.generate import generate_step

        return inspect.signature(generate_step).parameters["prefill_step_size"].default

    def make_cache(self, context: int, past: int, step: int) -> Any:
        from mlx_vlm.models.cache import make_prompt_cache

        empty = make_prompt_cache(self.model.language_model)
        return fill_cache(empty, self.checkpoint, past, step)

    def prefill(self, ids: list[int], cache: Any) -> None:
        import mlx.core as mx
        from mlx_vlm.generate import generate_step

        options = {"max_tokens": 0, "temperature": 0.0, "prompt_cache": cache}
        for _ in generate_step(mx.array([ids]), self.model, None, None, **options):
            raise RuntimeError("a token was made, and none was asked for")

    def allocated_bytes(self) -> int | None:
        return mlx_peak_bytes()


class TransformersWorker:
    """transformers on the CPU, with the static cache that follows the checkpoint's mask rule."""

    def __init__(self, checkpoint: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        self.checkpoint = checkpoint
        self.torch = torch
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)

    def chat(self, question: str, image: str | None) -> Iterable[Any]:
        content: list[dict[str, str]] = [{"type": "text", "text": question}]
        if image:
            from transformers import AutoProcessor

            reader = AutoProcessor.from_pretrained(self.checkpoint)
            content.insert(0, {"type": "image", "path": image})
        else:
            from transformers import AutoTokenizer

            reader = AutoTokenizer.from_pretrained(self.checkpoint)
        inputs = reader.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return self.stream(max_tokens=2, **inputs)

    def read(self, ids: list[int], max_tokens: int) -> Iterable[Any]:
        return self.stream(max_tokens=max_tokens, input_ids=self.torch.tensor([ids]))

    def stream(self, max_tokens: int, **inputs: Any) -> Iterator[Any]:
        """Yield once a token, from the thread in which `generate` does not run."""
        import queue
        import threading

        from transformers.generation.streamers import BaseStreamer

        tokens: queue.Queue[Any] = queue.Queue()

        class Streamer(BaseStreamer):
            def put(self, value: Any) -> None:
                tokens.put(value)

            def end(self) -> None:
                tokens.put(None)

        def run() -> None:
            try:
                self.model.generate(
                    **inputs,
                    max_new_tokens=max_tokens,
                    min_new_tokens=max_tokens,
                    do_sample=False,
                    cache_implementation="static",
                    disable_compile=True,
                    streamer=Streamer(),
                )
            except Exception as error:  # raised where the tokens are awaited
                tokens.put(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        is_prompt = True  # the streamer is given that first
        while (token := tokens.get()) is not None:
            if isinstance(token, Exception):
                raise token
            if not is_prompt:
                yield token
            is_prompt = False
        thread.join()

    def allocated_bytes(self) -> int | None:
        return None


WORKERS = {
    "mlx-gemma4": OwnWorker,
    "mlx-lm": MlxLmWorker,
    "mlx-vlm": MlxVlmWorker,
    "transformers": TransformersWorker,
}


def mlx_peak_bytes() -> int:
    """Return the most that MLX had allocated at once."""
    import mlx.core as mx

    return mx.get_peak_memory()


def reset_mlx_peak() -> None:
    """Count MLX's peak from now on."""
    import mlx.core as mx

    mx.reset_peak_memory()


def mlx_weights_bytes(worker: Any) -> int | None:
    """Return what MLX holds when all parameters are there."""
    if worker.allocated_bytes() is None:
        return None
    import mlx.core as mx

    mx.eval(worker.model.parameters())
    mx.clear_cache()
    return mx.get_active_memory()


def fill_cache(cache: Any, checkpoint: str, tokens: int, step: int) -> Any:
    """Give the caches of mlx-lm or mlx-vlm random keys and values, a chunk at a time.

    They come through each cache's own update, so that it is as long, and has as much room, as if a
    prompt had been read.
    """
    import mlx.core as mx

    config = json.loads((Path(checkpoint) / "config.json").read_text())
    text, dtype = config["text_config"], getattr(mx, config["dtype"])
    for layer_cache, layer_type in zip(cache, text["layer_types"], strict=True):
        is_global = layer_type == "full_attention"
        heads = text["num_global_key_value_heads" if is_global else "num_key_value_heads"]
        dims = text["global_head_dim" if is_global else "head_dim"]
        for start in range(0, tokens, step):
            shape = (1, heads, min(step, tokens - start), dims)
            keys, values = (0.1 * mx.random.normal(shape, dtype) for _ in range(2))
            layer_cache.update_and_fetch(keys, values)
            mx.eval(layer_cache.keys, layer_cache.values)
            mx.clear_cache()
    return cache


def peak_resident_bytes() -> int:
    """Return the most memory that this process had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def draw_ids(checkpoint: str, length: int) -> list[int]:
    """Return a prompt of ordinary tokens, the same for every program."""
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    special = {value for value in config.values() if isinstance(value, int)}
    ordinary = [i for i in range(300, config["text_config"]["vocab_size"]) if i not in special]
    return [2, *random.Random(0).choices(ordinary, k=length - 1)]


def measure_first_token(worker: Any, question: str, image: str | None, started: float) -> dict:
    tokens = iter(worker.chat(question, image))
    next(tokens)
    result = {"first_token_s": time.time() - started}
    for _ in tokens:  # lets the program end in its own way
        pass
    return result


def measure_speed(worker: Any, ids: list[int], max_tokens: int) -> dict:
    """Time a prompt and what follows; a shorter run first, so that nothing is measured cold."""
    for _ in worker.read(ids[:16], 4):
        pass
    begin = time.perf_counter()
    times = [time.perf_counter() for _ in worker.read(ids, max_tokens)]
    result = {"context": len(ids), "prefill_tokens_per_s": len(ids) / (times[0] - begin)}
    if len(times) > 1:
        result["decode_tokens_per_s"] = (len(times) - 1) / (times[-1] - times[0])
    return result


def measure_memory(worker: Any, ids: list[int], is_one_chunk: bool) -> dict:
    """Read a prompt, or its last chunk alone; take MLX's peak, less weights and cache."""
    weights_bytes = mlx_weights_bytes(worker)
    if weights_bytes is None:
        raise ValueError("this program does not compute with MLX")
    step = worker.prefill_step_size(ids)
    past = max(0, len(ids) - step) if is_one_chunk else 0
    cache = worker.make_cache(len(ids), past, step)
    reset_mlx_peak()
    begin = time.perf_counter()
    worker.prefill(ids[past:], cache)
    prefill_s = time.perf_counter() - begin
    cache_bytes = sum(layer_cache.nbytes for layer_cache in cache)
    return {
        "context": len(ids),
        "prefill_step_size": step,
        "weights_bytes": weights_bytes,
        "cache_bytes": cache_bytes,
        "cache_bytes_per_token": cache_bytes / len(ids),
        "temporary_bytes": mlx_peak_bytes() - weights_bytes - cache_bytes,
        "prefill_s": prefill_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One measurement; started by peers.py.")
    parser.add_argument("program", choices=WORKERS)
    parser.add_argument("measure", choices=["load", "first-token", "speed", "memory"])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--started", type=float, default=0.0, help="time.time() at the start")
    parser.add_argument("--question", default="What is this?")
    parser.add_argument("--image")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--one-chunk", action="store_true", help="of memory: the last chunk alone")
    options = parser.parse_args()

    worker = WORKERS[options.program](options.checkpoint)
    if options.measure == "load":
        weights_bytes = mlx_weights_bytes(worker)
        result = {"load_s": time.time() - options.started, "weights_bytes": weights_bytes}
    elif options.measure == "first-token":
        result = measure_first_token(worker, options.question, options.image, options.started)
    elif options.measure == "memory":
        ids = draw_ids(options.checkpoint, options.context)
        result = measure_memory(worker, ids, options.one_chunk)
    else:
        ids = draw_ids(options.checkpoint, options.context)
        weights_bytes = mlx_weights_bytes(worker)
        if weights_bytes is not None:
            reset_mlx_peak()  # what loading took at most is a measure of its own
        result = measure_speed(worker, ids, options.max_tokens)
        peak_bytes = worker.allocated_bytes()
        if weights_bytes is not None and peak_bytes is not None:
            result["peak_over_weights_bytes"] = peak_bytes - weights_bytes
    result["peak_resident_bytes"] = peak_resident_bytes()
    result["peak_allocated_bytes"] = worker.allocated_bytes()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
