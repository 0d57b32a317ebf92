"""`logits_to_keep`: of positions that are not kept, the last layer makes cache rows alone."""

import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from narrow_network import narrow_network

from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.kernels.interval_attention import IntervalMask
from mlx_gemma4.kernels.qkv_norm_rope import pack_offsets
from mlx_gemma4.model.decoder import MLP
from mlx_gemma4.model.gemma4 import Gemma4


@pytest.fixture(scope="module")
def model() -> Gemma4:
    return narrow_network(num_sliding=1, seed=3)


@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("keep", [1, 3, 40, 50])
def test_they_are_those_of_all(model: Gemma4, keep: int, has_cache: bool) -> None:
    inputs = ModelInputs.from_ids(np.random.default_rng(0).integers(30, 290, 40))
    whole = np.array(model(inputs))
    cache = model.make_cache() if has_cache else None
    kept = np.array(model(inputs, cache, logits_to_keep=keep))
    difference(kept, whole[-keep:]).assert_within(2e-6)
    if cache is not None:  # every position has its row
        following = ModelInputs.from_ids([77])
        both = ModelInputs.from_ids([*inputs.input_ids.tolist(), 77])
        difference(np.array(model(following, cache)), np.array(model(both))[-1:]).assert_within(
            2e-6
        )


@pytest.mark.parametrize("index", [0, 1])
def test_layers_of_both_types_return_them(model: Gemma4, index: int) -> None:
    layer = model.language_model.layers[index]
    x, normed = mx.random.normal((2, 1, 20, model.config.text_config.hidden_size))
    ends = np.arange(20, dtype=np.int32)[None]
    mask = IntervalMask(np.maximum(ends - 15, 0) if index == 0 else 0 * ends, ends, ends)
    given = x, normed, model.language_model.norm, mask, pack_offsets([0]), None
    for ours, whole in zip(layer(*given, 3), layer(*given), strict=True):
        np.testing.assert_allclose(ours, whole[:, -3:], atol=2e-5)


def test_the_last_layer_works_on_them_alone(model: Gemma4, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    run = MLP.__call__

    def watch(self: MLP, x: mx.array) -> mx.array:
        lengths.append(x.shape[1])
        return run(self, x)

    monkeypatch.setattr(MLP, "__call__", watch)
    inputs = ModelInputs.from_ids(np.arange(30, 70))
    mx.eval(model(inputs, model.make_cache(), logits_to_keep=1))
    assert lengths == [40, 1]
    lengths.clear()
    mx.eval(model(inputs, model.make_cache()))
    assert lengths == [40, 40]
