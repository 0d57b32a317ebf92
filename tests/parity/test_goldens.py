"""This project's logits against stored logits of transformers: plain, cached, and chunked.

The goldens were made by `benchmarks/parity_goldens.py`; tests/data/parity/README.md tells how.
"""

import numpy as np
import pytest
from closeness import difference
from parity_case_models import (
    GOLDENS,
    RELATIVE_RMS,
    RELATIVE_RMS_DECODED,
    cached_logits,
    compare,
    model_of,
)
from parity_cases import CASES, CASES_BY_NAME, inputs_of

from mlx_gemma4.inputs import ModelInputs

CHUNK_SIZES = (1, 7, 64, 512)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plain_path_agrees(case):
    logits = np.array(model_of(case)(inputs_of(case)))
    compare(logits, case).assert_within(RELATIVE_RMS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_cached_path_agrees_for_every_chunking(case):
    model, inputs = model_of(case), inputs_of(case)
    plain = np.array(model(inputs))
    for chunk_size in CHUNK_SIZES:
        logits = cached_logits(model, inputs, chunk_size, case.decoded)
        compare(logits, case).assert_within(RELATIVE_RMS_DECODED)
        difference(logits, plain).assert_within(RELATIVE_RMS_DECODED)


def test_the_other_mask_rule_is_far_away():
    """The rule of transformers' plain forward would not pass as ours, nor ours as it."""
    case = CASES_BY_NAME["image_late"]
    logits = np.array(model_of(case, image_attention="all")(inputs_of(case)))
    assert compare(logits, case).mean_kl > 0.1
    with np.load(GOLDENS / "image_late_forward_rule.npz", allow_pickle=False) as golden:
        found = difference(logits[golden["positions"]], golden["logits"])
    found.assert_within(RELATIVE_RMS)


def test_a_rejected_draft_leaves_no_trace():
    case = CASES_BY_NAME["text_decode"]
    model, inputs = model_of(case), inputs_of(case)
    cache = model.make_cache()
    length = len(inputs) - case.decoded
    logits = [np.array(model(inputs.slice(0, length), cache))]
    rng = np.random.default_rng(0)
    for position in range(length, len(inputs)):
        draft = rng.integers(3, 290, int(rng.integers(1, 12)))
        model(ModelInputs.from_ids(draft), cache)
        for layer_cache in cache:
            layer_cache.trim(len(draft))
        logits.append(np.array(model(inputs.slice(position, position + 1), cache)))
    compare(np.concatenate(logits), case).assert_within(RELATIVE_RMS_DECODED)
