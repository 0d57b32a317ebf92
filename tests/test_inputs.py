import numpy as np
import pytest

from mlx_gemma4.inputs import Modality, ModelInputs, SoftTokenSpan

SPANS = (
    SoftTokenSpan(2, 5, Modality.IMAGE),
    SoftTokenSpan(10, 8, Modality.AUDIO),
    SoftTokenSpan(20, 3, Modality.VIDEO),
)


def prompt():
    rows = np.arange(8, dtype=np.float32)
    return ModelInputs(
        np.arange(30, dtype=np.int32),
        SPANS,
        np.repeat(rows[:, None], 6912, 1),
        np.stack([rows, rows], 1).astype(np.int32),
        np.repeat(rows[:, None], 640, 1),
        ("a note",),
    )


@pytest.mark.parametrize("size", [1, 2, 4, 7, 30, 100])
def test_chunks_keep_pictures_whole_and_lose_nothing(size):
    inputs = prompt()
    chunks = inputs.chunks(size)
    assert np.concatenate([chunk.input_ids for chunk in chunks]).tolist() == list(range(30))
    offset, blocks = 0, []
    patches, frames = [], []
    for chunk in chunks:
        blocks += [(offset + s.start, s.length) for s in chunk.spans if s.is_block]
        patches += [] if chunk.patches is None else chunk.patches[:, 0].tolist()
        frames += [] if chunk.frames is None else chunk.frames[:, 0].tolist()
        assert len(chunk) <= size or any(s.is_block and s.length > size for s in chunk.spans)
        offset += len(chunk)
    assert blocks == [(2, 5), (20, 3)]
    assert patches == list(range(8))
    assert frames == list(range(8))


def test_a_cut_through_a_picture_is_refused():
    with pytest.raises(ValueError, match=r"the image at 2\.\.7 must stay whole"):
        prompt().slice(0, 4)


def test_a_sound_may_be_cut():
    part = prompt().slice(12, 19)
    assert part.spans == (SoftTokenSpan(0, 6, Modality.AUDIO),)
    assert part.frames is not None
    assert part.frames[:, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert part.patches is None
    assert part.notes == ("a note",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spans": (SPANS[1], SPANS[0])}, "ascending and disjoint"),
        ({"spans": (*SPANS[:2], SoftTokenSpan(28, 3, Modality.VIDEO))}, "end at 31"),
        ({"patches": None}, "0 patches for 8 soft tokens"),
        ({"patch_positions": np.zeros((7, 2), np.int32)}, "7 patch positions for 8"),
        ({"frames": np.zeros((9, 640), np.float32)}, "9 frames for 8"),
    ],
)
def test_parts_that_do_not_add_up_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelInputs(**{**vars(prompt()), **changes})
