"""Prompts on disk: known after a restart, refused if anything is wrong, never half-written."""

import dataclasses
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from closeness import difference
from parity_case_models import model_of
from parity_cases import CASES_BY_NAME
from prompt_parts import join, picture, read, sound, text

from mlx_gemma4.errors import PromptCacheError
from mlx_gemma4.inputs import ModelInputs
from mlx_gemma4.prompt_cache import pieces
from mlx_gemma4.prompt_cache.archive import open_archive
from mlx_gemma4.prompt_cache.fingerprint import Fingerprint, hash_model
from mlx_gemma4.prompt_cache.folder import choose_unused, list_prompts, list_stored, remove
from mlx_gemma4.prompt_cache.keys import prompt_keys
from mlx_gemma4.prompt_cache.pieces import read_pieces
from mlx_gemma4.prompt_cache.stops import Spacing
from mlx_gemma4.prompt_cache.store import PromptCacheStore

RELATIVE_RMS = 2e-5
CLOSE = Spacing(interval=64, turns=20, worth_keeping=16)
TURN = 24


@pytest.fixture(scope="module")
def model():
    """A network of 6 layers with a window of 32."""
    return model_of(CASES_BY_NAME["image_decode"])


@pytest.fixture(scope="module")
def fingerprint(model):
    return Fingerprint.of(model, model.make_cache, "template")


@pytest.fixture(scope="module")
def sound_file(model, fingerprint, tmp_path_factory):
    """The bytes of a file of 100 positions."""
    file = tmp_path_factory.mktemp("sound") / "kept.safetensors"
    ask(model, fingerprint, file, text(np.random.default_rng(1), 100))
    return file.read_bytes()


@pytest.fixture(params=["file", "folder"])
def place(request, tmp_path):
    return tmp_path / ("kept.safetensors" if request.param == "file" else "kept")


def open_store(model, fingerprint, place, **options):
    archive = open_archive(place, fingerprint, model.make_cache, spacing=CLOSE, **options)
    return PromptCacheStore(
        model.make_cache, spacing=CLOSE, turn_token_id=TURN, archive=archive
    ), archive


def ask(model, fingerprint, place, inputs, **options):
    """Start anew, read a prompt, check its logits, save; return how much was known, and notes."""
    store, archive = open_store(model, fingerprint, place, **options)
    reading = store.fetch(inputs)
    logits = read(model, reading)
    plain = np.array(model(inputs))[-len(logits) :]
    difference(logits, plain).assert_within(RELATIVE_RMS)
    store.insert(reading)
    store.save()
    return reading.cached_tokens, archive.notes


def files_of(place):
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    return {file.name: file.read_bytes() for file in files}


def find(folder, kind, stop):
    """Return the file of a folder that holds rows up to `stop`, or the rings there."""
    stored = list_stored(folder)
    (file,) = [s.file for s in stored if (s.pieces[0].kind, s.pieces[0].stop) == (kind, stop)]
    return file


def test_after_a_restart_a_document_is_not_read_again(model, fingerprint, place, rng):
    document = join(
        text(rng, 100), picture(rng, 5, 4), sound(rng, 60), ModelInputs.from_ids([TURN])
    )
    known = [ask(model, fingerprint, place, join(document, text(rng, 12))) for _ in range(3)]
    assert known == [(0, []), (185, []), (185, [])]
    assert len(document) == 185


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("kv_rows", ["shared", "value"])
def test_every_form_of_rows_comes_back_as_it_was(model, tmp_path, rng, kv_bits, kv_rows):
    def make_cache():
        return model.make_cache(kv_bits=kv_bits, kv_rows=kv_rows)

    fingerprint = Fingerprint.of(model, make_cache)
    document, question = text(rng, 150), text(rng, 20)
    logits = []
    for _ in range(2):
        archive = open_archive(tmp_path, fingerprint, make_cache, spacing=CLOSE)
        store = PromptCacheStore(make_cache, spacing=CLOSE, archive=archive)
        if not logits:
            reading = store.fetch(document)
            read(model, reading)
            store.insert(reading)
            store.save()
        reading = store.fetch(join(document, question))
        assert reading.cached_tokens == 150
        logits.append(read(model, reading))
    np.testing.assert_array_equal(*logits)
    # Another form is another layout, of which this folder holds nothing.
    other = Fingerprint.of(model, lambda: model.make_cache(kv_bits=24 - kv_bits, kv_rows=kv_rows))
    archive = open_archive(tmp_path, other, model.make_cache, spacing=CLOSE)
    assert archive.load(prompt_keys(document), 0) is None


def test_where_prompts_part_is_learned_across_restarts(model, fingerprint, place, rng):
    document = text(rng, 230)
    known = [ask(model, fingerprint, place, join(document, text(rng, 30)))[0] for _ in range(3)]
    assert known == [0, 192, 230]


def test_another_picture_of_the_same_size_is_another_prompt(model, fingerprint, place, rng):
    prompts = [join(text(rng, 40), picture(rng, 5, 4), text(rng, 30)) for _ in range(2)]
    head = prompts[0].slice(0, 40)
    prompts = [join(head, prompt.slice(40, 92)) for prompt in prompts]
    assert (prompts[0].input_ids[:62] == prompts[1].input_ids[:62]).all()
    assert ask(model, fingerprint, place, prompts[0])[0] == 0
    assert ask(model, fingerprint, place, prompts[1])[0] == 0
    assert ask(model, fingerprint, place, join(prompts[1], text(rng, 5)))[0] == 92


def test_a_short_question_does_not_rewrite_anything(model, fingerprint, place, rng):
    document = join(text(rng, 200), ModelInputs.from_ids([TURN]))
    ask(model, fingerprint, place, join(document, text(rng, 18)))
    before = files_of(place)
    ask(model, fingerprint, place, join(document, text(rng, 10)))
    assert files_of(place) == before


def test_a_file_that_held_another_prompt_says_so(model, fingerprint, tmp_path, rng):
    file = tmp_path / "kept.safetensors"
    ask(model, fingerprint, file, text(rng, 100))
    known, notes = ask(model, fingerprint, file, text(rng, 100))
    assert known == 0
    assert notes == [
        f"{file} held another prompt, of 100 tokens; it is replaced (a folder keeps several)"
    ]


def test_a_folder_shares_what_prompts_have_in_common(model, fingerprint, tmp_path, rng):
    document = join(text(rng, 300), ModelInputs.from_ids([TURN]))
    ask(model, fingerprint, tmp_path, join(document, text(rng, 40)))
    for _ in range(3):
        ask(model, fingerprint, tmp_path, join(document, text(rng, 40)))
    stored = list_stored(tmp_path)
    assert len(list_prompts(stored)) == 4
    stops = [piece.stop for s in stored for piece in s.pieces if piece.kind == "rows"]
    assert len(stops) == len(set(stops)) + 3  # only the last piece is there four times
    assert stops.count(341) == 4


def test_a_folder_keeps_few_rings_of_a_long_conversation(model, fingerprint, tmp_path, rng):
    prompt = text(rng, 60)
    for _ in range(8):
        known, _ = ask(model, fingerprint, tmp_path, prompt)
        assert known == 0 or known >= len(prompt) - 50
        prompt = join(prompt, ModelInputs.from_ids([TURN]), text(rng, 40))
    (stored,) = list_prompts(list_stored(tmp_path))
    assert len(stored.stops) == 4
    assert stored.stops[-1] == stored.tokens


def test_a_folder_keeps_its_budget_and_what_others_rest_on(model, fingerprint, tmp_path, rng):
    document = join(text(rng, 100), ModelInputs.from_ids([TURN]))
    ask(model, fingerprint, tmp_path, join(document, text(rng, 40)))
    budget = 2 * sum(len(content) for content in files_of(tmp_path).values())
    for _ in range(6):
        known, _ = ask(
            model, fingerprint, tmp_path, join(document, text(rng, 40)), max_bytes=budget
        )
        assert known == 100
        assert sum(len(content) for content in files_of(tmp_path).values()) <= budget


def test_what_is_removed_leaves_nothing_that_rests_on_it(model, fingerprint, tmp_path, rng):
    for _ in range(3):
        ask(model, fingerprint, tmp_path, text(rng, 150))
    stored = list_stored(tmp_path)
    total = sum(one.nbytes for one in stored)
    for max_bytes in (total, total // 2, total // 5, 0):
        remove(choose_unused(list_stored(tmp_path), max_bytes=max_bytes))
        left = list_stored(tmp_path)
        assert sum(one.nbytes for one in left) <= max_bytes
        rows = {p.id for s in left for p in s.pieces if p.kind == "rows"}
        assert {p.parent for s in left for p in s.pieces if p.kind == "rows"} <= {*rows, ""}
        assert {p.id for s in left for p in s.pieces if p.kind == "rings"} <= rows
    assert not files_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "0" * 32}, "it is of another model"),
        ({"dtype": "bfloat16"}, "it is in float32, and the model now in bfloat16"),
        ({"version": "9.9"}, "it is of version "),
        ({"chat_template": "other"}, "it is of another chat template"),
        ({"layout": ()}, "its layers are kept in another layout, such as other bits"),
    ],
)
def test_a_file_of_something_else_is_refused(model, fingerprint, tmp_path, rng, change, reason):
    prompt = text(rng, 80)
    file, folder = tmp_path / "kept.safetensors", tmp_path / "folder"
    for path in (file, folder):
        ask(model, fingerprint, path, prompt)
    other = dataclasses.replace(fingerprint, **change)
    with pytest.raises(PromptCacheError, match=reason) as refused:
        open_store(model, other, file)
    assert str(refused.value).endswith("; remove it, or name another one")
    assert "\n" not in str(refused.value)
    store, archive = open_store(model, other, folder)
    assert store.fetch(prompt).cached_tokens == 0
    assert archive.notes == []


def test_every_parameter_is_part_of_the_model(model):
    def hashed(change, **options):
        other = model_of(CASES_BY_NAME["image_decode"], **options)
        change(other.language_model.layers[2])
        return hash_model(other)

    def nudge(layer):
        weight = layer.mlp.down_proj.weight
        weight[5, 7] = weight[5, 7] + 1e-6

    same = hashed(lambda layer: None)
    assert same == hash_model(model)
    assert hashed(nudge) != same
    assert hashed(lambda layer: None, image_attention="all") != same


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_refused_in_one_line(model, fingerprint, sound_file, tmp_path, seed):
    rng = np.random.default_rng(seed)
    file, prompt = tmp_path / "kept.safetensors", text(np.random.default_rng(1), 100)
    content = bytearray(sound_file)
    header = 8 + struct.unpack("<Q", content[:8])[0]
    if seed % 4 == 0:
        content = content[: int(rng.integers(0, len(content)))]
    else:  # one bit: of the length, of the header, or anywhere
        last = (8, header, len(content))[seed % 4 - 1]
        content[int(rng.integers(0, last))] ^= 1 << int(rng.integers(0, 8))
    file.write_bytes(content)
    with pytest.raises(PromptCacheError) as refused:
        open_store(model, fingerprint, file)[0].fetch(prompt)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"the prompt cache {file} is refused: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "a header of 0 bytes"),
        (b"pickle" * 100, "a header of"),
        (struct.pack("<Q", 1 << 40) + b"{}", "a header of 1,099,511,627,776 bytes"),
        (struct.pack("<Q", 2) + b"{}", "it is no prompt cache of this form"),
    ],
)
def test_a_foreign_file_is_refused(model, fingerprint, tmp_path, content, reason):
    file = tmp_path / "kept.safetensors"
    file.write_bytes(content)
    with pytest.raises(PromptCacheError, match=reason):
        open_store(model, fingerprint, file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("change", ["shape", "dtype", "layer", "position", "pieces", "extra"])
def test_a_forged_header_is_refused(model, fingerprint, tmp_path, rng, change):
    """Checksums can be made by anybody: shapes are compared with the model's own."""
    file = tmp_path / "kept.safetensors"
    ask(model, fingerprint, file, text(rng, 100))
    arrays, metadata = cast(Any, mx.load(str(file), return_metadata=True))
    heads = json.loads(metadata["pieces"])
    rows = next(name for name in arrays if name.startswith("0.") and not name.endswith("keys"))
    if change == "shape":
        arrays[rows] = arrays[rows][..., :-1] + 0
    elif change == "dtype":
        arrays[rows] = arrays[rows].astype(mx.float16)
    elif change == "layer":
        arrays[rows.replace(".5.", ".4.")] = arrays.pop(rows)
    elif change == "position":
        heads[0][4] += 1
    elif change == "pieces":
        heads[0][0] = "code"
    else:
        arrays["0.5.1"] = arrays[rows]
    hashes = {name: pieces._sha256(array) for name, array in arrays.items()}
    metadata |= {"pieces": json.dumps(heads), "sha256": json.dumps(hashes)}
    metadata.pop("checksum")
    metadata["checksum"] = pieces._checksum(metadata)
    mx.save_safetensors(str(file), arrays, metadata)
    with pytest.raises(PromptCacheError, match=r"does not fit|other|no sense") as refused:
        open_store(model, fingerprint, file)
    assert "\n" not in str(refused.value)


def test_a_damaged_file_in_a_folder_is_left_out_with_a_note(model, fingerprint, tmp_path, rng):
    prompt = text(rng, 200)
    ask(model, fingerprint, tmp_path, prompt)
    last = find(tmp_path, "rings", 200)
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    store, archive = open_store(model, fingerprint, tmp_path)
    assert store.fetch(prompt).cached_tokens == 128
    (note,) = archive.notes
    assert note.startswith(f"the prompt cache {last} is refused: the checksum of tensor ")


def test_a_missing_link_of_a_chain_is_not_stepped_over(model, fingerprint, tmp_path, rng):
    prompt = text(rng, 200)
    ask(model, fingerprint, tmp_path, prompt)
    find(tmp_path, "rows", 64).unlink()
    assert open_store(model, fingerprint, tmp_path)[0].fetch(prompt).cached_tokens == 0


def test_nothing_but_the_prompt_is_read(model, fingerprint, tmp_path, rng, monkeypatch):
    prompts = [text(rng, 100) for _ in range(3)]
    for prompt in prompts:
        ask(model, fingerprint, tmp_path, prompt)
    opened = []
    plain = pieces.read_rows
    monkeypatch.setattr(pieces, "read_rows", lambda t: opened.append(t.name) or plain(t))
    store, _ = open_store(model, fingerprint, tmp_path)
    assert opened == []
    assert store.fetch(join(prompts[0], text(rng, 3))).cached_tokens == 100
    # Two pieces of rows of one layer, rings of five at two places, and keys: its own, two others.
    assert len(opened) == 2 + 2 * 5 + 4


def test_a_place_that_cannot_be_written_is_said(model, fingerprint, tmp_path, rng):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PromptCacheError, match=r"cannot write .*; make room there, or name"):
        ask(model, fingerprint, tmp_path / "file" / "kept.safetensors", text(rng, 50))


def test_a_failed_write_leaves_the_old_file(model, fingerprint, place, rng, monkeypatch):
    prompt = text(rng, 80)
    ask(model, fingerprint, place, prompt)
    before = files_of(place)

    def fail(path, arrays, metadata):
        Path(path).write_bytes(b"half")
        raise RuntimeError("[save_safetensors] no space left")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(PromptCacheError, match="no space left"):
        ask(model, fingerprint, place, join(prompt, text(rng, 80)))
    assert files_of(place) == before


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import numpy as np
from parity_case_models import model_of
from parity_cases import CASES_BY_NAME
from prompt_parts import join, read, text
from mlx_gemma4.prompt_cache.archive import open_archive
from mlx_gemma4.prompt_cache.store import PromptCacheStore
from mlx_gemma4.prompt_cache.fingerprint import Fingerprint
from mlx_gemma4.prompt_cache.keys import prompt_keys
from mlx_gemma4.prompt_cache.stops import Spacing

model = model_of(CASES_BY_NAME["image_decode"])
fingerprint = Fingerprint.of(model, model.make_cache, "template")
archive = open_archive({place!r}, fingerprint, model.make_cache, spacing=Spacing(64, 20, 16))
store = PromptCacheStore(model.make_cache, spacing=Spacing(64, 20, 16), archive=archive)
prompt = text(np.random.default_rng(0), 400)
print("ready", flush=True)
for seed in range(1, 1000):
    reading = store.fetch(join(prompt, text(np.random.default_rng(seed), 20)))
    read(model, reading)
    store.insert(reading)
    store.save()
    print("saved", flush=True)
"""


def test_a_killed_process_leaves_what_was_there(model, fingerprint, place):
    """Kill a process that does nothing but save, again and again at other moments."""
    paths = [path for path in sys.path if path.endswith(("support", "benchmarks"))]
    prompt = text(np.random.default_rng(0), 400)
    for delay_s in (0.002, 0.011, 0.023, 0.041):
        code = WRITER.format(paths=paths, place=str(place))
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            assert process.stdout.readline() == b"saved\n"
            time.sleep(delay_s)
            os.kill(process.pid, signal.SIGKILL)
        store, archive = open_store(model, fingerprint, place)
        assert store.fetch(join(prompt, text(np.random.default_rng(1), 20))).cached_tokens >= 384
        assert archive.notes == []
    before = [p for p in place.parent.rglob(".*.safetensors")]
    ask(model, fingerprint, place, text(np.random.default_rng(7), 100))
    if place.suffix:  # what the last one left half-written is gone
        assert not list(place.parent.glob(".*.safetensors")), before


def test_the_header_of_a_file_is_small(model, fingerprint, tmp_path, rng):
    file = tmp_path / "kept.safetensors"
    ask(model, fingerprint, file, text(rng, 300))
    assert struct.unpack("<Q", file.read_bytes()[:8])[0] < 20_000
    assert {piece.kind for piece in read_pieces(file)} == {"rows", "rings"}
