"""The demo checkpoint says what transformers says, token for token: 50 prompts of all kinds."""

import pytest
from demo_prompts import demo_prompts, inputs_of

from mlx_gemma4.api import load
from mlx_gemma4.generation.generate import generate_step
from mlx_gemma4.generation.sampling import make_logits_processors

PROMPTS = demo_prompts()


@pytest.fixture(scope="module")
def demo():
    return load("demo")


def test_every_modality_is_there():
    assert len(PROMPTS) == 50
    for kind in ("images", "audio", "videos", "thinking", "tools"):
        assert sum(kind in record for record in PROMPTS) >= 2, kind


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_greedy_ids_equal_transformers(demo, index):
    model, processor = demo
    record = PROMPTS[index]
    config = model.generation_config
    steps = generate_step(
        inputs_of(processor, record),
        model,
        max_tokens=len(record["ids"]),
        logits_processors=make_logits_processors(suppress_tokens=config.suppress_tokens),
    )
    ids: list[int] = []
    for token, _ in steps:
        ids.append(token)
        if token in config.eos_token_ids:
            break
    assert ids == record["ids"]
