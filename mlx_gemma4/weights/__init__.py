"""Checkpoints on disk: found, checked against config.json, and loaded under one set of names.

The headers of all files are checked before any tensor is read, so that a damaged or mismatched
checkpoint is named in a second and not halfway through 24 GB.  Canonical names, whatever a file
calls them, are the paths in `mlx_gemma4.model`: Google's without the leading "model.".
"""

from mlx_gemma4.weights.checkpoint import QUANTIZE_GROUP_SIZE, Checkpoint, open_checkpoint
from mlx_gemma4.weights.files import INDEX_FILE, SINGLE_FILE, find_files
from mlx_gemma4.weights.header import StoredTensor, read_header
from mlx_gemma4.weights.loading import QUANTIZE_BITS, check_quantize, load_weights
from mlx_gemma4.weights.names import canonical_name, expected_tensors
from mlx_gemma4.weights.reading import read_bytes, read_rows, row_blocks

__all__ = [
    "INDEX_FILE",
    "QUANTIZE_BITS",
    "QUANTIZE_GROUP_SIZE",
    "SINGLE_FILE",
    "Checkpoint",
    "StoredTensor",
    "canonical_name",
    "check_quantize",
    "expected_tensors",
    "find_files",
    "load_weights",
    "open_checkpoint",
    "read_bytes",
    "read_header",
    "read_rows",
    "row_blocks",
]
