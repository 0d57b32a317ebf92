"""A document goes into JSON and comes back; what is damaged, or tells too much, does not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench_documents import FINDINGS, POWER, ROWS, make_document

from mlx_gemma4.bench.report import Document, Row, check_writable, read_document, write_whole
from mlx_gemma4.errors import InputError, OptionError


def test_a_document_comes_back_as_it_was() -> None:
    document = make_document(notes=("one thing",))
    assert Document.from_json(document.to_json(), "a.json") == document


def test_no_path_is_written() -> None:
    finding = replace(FINDINGS[0], reason="cannot build /Users/ada/cache/k.metal: 3 tokens/s")
    notes = (
        "~/models/secret has no weights",
        "C:\\Users\\ada\\x left out",
        "and/or, 5 GB/s, 1 / 2",
    )
    text = make_document(notes=notes, kernels=(finding,)).to_json()
    assert "ada" not in text
    assert "secret" not in text
    document = json.loads(text)
    assert document["kernels"][0]["reason"] == "cannot build <path>: 3 tokens/s"
    assert document["notes"][2] == notes[2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"what": "peers"}, "a.json is no document of bench"),
        ({"schema": 99}, "a.json has version 99; this program reads version 1"),
        ({"rows": 3}, "a.json is damaged: rows is '3'"),
        ({"extra": 1}, "lacks or does not know extra"),
        ({"machine": {}}, "machine lacks or does not know"),
        ({"notes": [1]}, "notes[0] is '1'"),
    ],
)
def test_what_is_wrong_is_named(change: dict, says: str) -> None:
    document = json.loads(make_document().to_json()) | change
    with pytest.raises(InputError) as caught:
        Document.from_json(json.dumps(document), "a.json")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("samples_s", [], "rows[1]: samples_s needs one time or more"),
        ("samples_s", [1.0, -1.0], "rows[1]: samples_s needs one time or more"),
        ("samples_s", [True], "rows[1].samples_s[0] is 'True'"),
        ("amount", "many", "rows[1].amount is 'many'"),
        ("amount", float("inf"), "rows[1].amount is 'inf'"),
        ("length", 1.5, "rows[1].length is '1.5'"),
        ("measure", "speed", "rows[1].measure is 'speed'"),
    ],
)
def test_a_damaged_row_is_named(name: str, value: object, says: str) -> None:
    document = json.loads(make_document().to_json())
    document["rows"][1][name] = value
    with pytest.raises(InputError) as caught:
        Document.from_json(json.dumps(document), "a.json")
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[1]", b"[" * 100_000])
def test_no_document_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError):
        read_document(tmp_path / "a.json")


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_document(tmp_path / "a.json")


def test_a_document_of_before_reads_as_none() -> None:
    document = json.loads(make_document(power=POWER).to_json())
    del document["power"]
    for name in ("kv_bits", "kv_rows"):
        del document["model"][name]
    for row in document["rows"]:
        del row["samples_j"]
    read = Document.from_json(json.dumps(document), "a.json")
    assert (read.power, read.model.kv_bits, read.model.kv_rows) == (None, None, None)
    assert {row.samples_j for row in read.rows} == {None}


@pytest.mark.parametrize(
    ("part", "name", "says"),
    [
        ("model", "dtype", "model lacks or does not know dtype"),
        ("model", "+colour", "model lacks or does not know colour"),
        ("power", "idle_w", "power lacks or does not know idle_w"),
        ("power", "+host", "power lacks or does not know host"),
    ],
)
def test_what_always_was_there_may_not_be_missing(part: str, name: str, says: str) -> None:
    document = json.loads(make_document(power=POWER).to_json())
    if name.startswith("+"):
        document[part][name[1:]] = 1
    else:
        del document[part][name]
    with pytest.raises(InputError, match=says):
        Document.from_json(json.dumps(document), "a.json")


def test_energy_of_a_row() -> None:
    row = replace(ROWS[2], samples_j=(30.0, 32.0, 40.0))
    assert (row.energy_j, row.unit_j) == (32.0, 0.5)
    assert row.power_w == pytest.approx(102 / 3.03)
    load = replace(ROWS[0], samples_j=(3.0, 4.0, 5.0))
    assert load.unit_j == 4.0
    assert (ROWS[2].energy_j, ROWS[2].unit_j, ROWS[2].power_w) == (None, None, None)
    with pytest.raises(ValueError, match="samples_j needs as many"):
        replace(ROWS[2], samples_j=(1.0,))
    with pytest.raises(ValueError, match="none below 0"):
        replace(ROWS[2], samples_j=(1.0, 2.0, -1.0))
    document = make_document(rows=(row,), power=POWER)
    assert Document.from_json(document.to_json(), "a.json") == document


def test_a_row_counts() -> None:
    _, prefill, decode = ROWS
    assert (prefill.label, decode.label) == ("prefill 2,048", "decode 64 after 2,048")
    assert decode.rate == pytest.approx(64 / 1.01)
    assert decode.reading_share == pytest.approx(0.8 / 1.01)
    assert prefill.arithmetic_share == pytest.approx(3.0 / 4.1)
    assert decode.spread == pytest.approx(0.02 / 1.01)
    assert not decode.is_noisy
    assert Row("load", "", 0, 0, 1, "", (1.0, 1.0, 1.2)).is_noisy
    assert ROWS[0].rate is None


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "out.json"
    target.write_text("before")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(target, b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert target.read_text() == "before"


def test_where_nothing_can_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no folder"):
        check_writable("--json", tmp_path / "no" / "out.json")
    with pytest.raises(OptionError, match="a folder; give the name of a file"):
        check_writable("--json", tmp_path)
