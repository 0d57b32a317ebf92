"""One output file, written where its rows belong while they are made."""

import hashlib
import json
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx

from mlx_gemma4.convert.encode import Block, Factors, blocks_of, encode_block, row_bytes
from mlx_gemma4.convert.plan import OutputTensor, PlannedParameter, Shard
from mlx_gemma4.errors import CheckpointError

_ALIGNMENT = 8


def header_of(tensors: list[OutputTensor]) -> tuple[bytes, dict[str, int]]:
    """Return the head of a safetensors file, and where in the file each tensor begins.

    Source: safetensors' format description: u64 length, JSON padded with blanks, the tensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    offsets, offset = {}, 0
    for tensor in tensors:
        offsets[tensor.name] = offset
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    head = struct.pack("<Q", len(text)) + text
    return head, {name: len(head) + start for name, start in offsets.items()}


def write_shard(
    shard: Shard,
    file: Path,
    *,
    factors: Mapping[str, Factors],
    allow_nan: bool,
    on_block: Callable[[int], None],
) -> dict[str, str]:
    """Write a file and return the SHA-256 of each tensor in it.

    Blocks are encoded by as many threads as there are cores, and written in order; at most two more
    than threads are in memory.  The file is on the disk when this returns.

    Args:
        shard: What belongs into it.
        file: Where; replaced if it exists.
        factors: Learned factors by canonical parameter name.
        allow_nan: Take over values that are not finite.
        on_block: Called with the bytes of the source that have been read.

    Raises:
        CheckpointError: The source cannot be read, or has values that are not finite.
    """
    head, offsets = header_of(shard.tensors())
    hashes = {tensor.name: hashlib.sha256() for tensor in shard.tensors()}
    with file.open("wb") as stream:
        descriptor = stream.fileno()
        stream.write(head)
        stream.flush()
        os.truncate(descriptor, len(head) + shard.nbytes)
        for block in _encode(shard, factors):
            if not (block.is_finite or allow_nan):
                raise _not_finite(block)
            for part, content in block.content.items():
                tensor = block.parameter.parts[part]
                start = block.start * row_bytes(tensor.nbytes, tensor.shape)
                _write_at(descriptor, content, offsets[tensor.name] + start)
                hashes[tensor.name].update(content)
            on_block(_source_bytes(block))
        os.fsync(descriptor)
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def _encode(shard: Shard, factors: Mapping[str, Factors]) -> Iterator[Block]:
    """Yield the blocks of a shard in order, encoded ahead by threads."""
    device = mx.default_device()
    workers = 1 if device == mx.Device(mx.gpu) else min(8, os.cpu_count() or 1)
    of_thread = threading.local()

    def encode(parameter: PlannedParameter, start: int, stop: int) -> Block:
        if not hasattr(of_thread, "stream"):
            of_thread.stream = mx.new_stream(device)
        with mx.stream(of_thread.stream):
            return encode_block(parameter, start, stop, factors.get(parameter.name))

    waiting: deque[Future[Block]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for parameter in shard.parameters:
            for start, stop in blocks_of(parameter):
                waiting.append(pool.submit(encode, parameter, start, stop))
                if len(waiting) > workers + 1:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(descriptor, content, offset)
        content, offset = content[count:], offset + count


def _source_bytes(block: Block) -> int:
    return sum(
        (block.stop - block.start) * row_bytes(tensor.nbytes, tensor.shape)
        for tensor in block.parameter.stored.values()
    )


def _not_finite(block: Block) -> CheckpointError:
    tensor = block.parameter.stored["weight"]
    return CheckpointError(
        f"{tensor.file}: tensor {tensor.name} has values that are not finite (NaN or infinite) in "
        f"rows {block.start:,} to {block.stop - 1:,}; the checkpoint is damaged: download it "
        "again, or take them over with --allow-nan"
    )
