"""What may be compared, what is refused, and what is called faster."""

from dataclasses import replace

import pytest
from bench_documents import POWER, ROWS, make_document

from mlx_gemma4.bench.compare import Change, compare_documents, list_differences
from mlx_gemma4.bench.power import PowerFacts
from mlx_gemma4.bench.report import Row
from mlx_gemma4.errors import OptionError


def row(*samples_s: float) -> Row:
    return Row("decode", "", 64, 2048, 64, "tokens", samples_s)


@pytest.mark.parametrize(
    ("first", "second", "verdict", "speedup"),
    [
        (row(1.0, 1.1, 1.2), row(0.5, 0.55, 0.6), "faster", 2.0),
        (row(1.0, 1.1, 1.2), row(2.1, 2.2, 2.3), "slower", 0.5),
        (row(1.0, 1.1, 1.2), row(0.9, 0.95, 1.05), "within noise", 1.1 / 0.95),
    ],
)
def test_a_change_is_clear_if_no_samples_meet(first, second, verdict, speedup) -> None:
    change = Change(first, second)
    assert change.verdict == verdict
    assert change.speedup == pytest.approx(speedup)


def test_the_same_is_within_noise() -> None:
    comparison = compare_documents(make_document(), make_document())
    assert {change.verdict for change in comparison.changes} == {"within noise"}
    assert len(comparison.changes) == len(ROWS)
    assert comparison.notes == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"bits_per_weight": 16.0}}, "bits per weight 4.55 and 16.00"),
        ({"model": {"dtype": "float16"}}, "model.dtype bfloat16 and float16"),
        ({"model": {"hidden_size": 192}}, "model.hidden_size 3840 and 192"),
        ({"machine": {"chip": "Apple M1"}}, "machine.chip Apple M4 Max and Apple M1"),
        ({"machine": {"gpu_cores": 32}}, "machine.gpu_cores 40 and 32"),
        ({"machine": {"device": "cpu"}}, "machine.device gpu and cpu"),
        ({"machine": {"blas": "libopenblas.so.0"}}, "machine.blas None and libopenblas.so.0"),
        ({"machine": {"memory_bytes": 32 << 30}}, "memory 69 and 34 GB"),
        ({"model": {"kv_bits": 8}}, "model.kv_bits 16 and 8"),
        ({"model": {"kv_rows": "value"}}, "model.kv_rows shared and value"),
    ],
)
def test_what_would_mislead_is_refused_unless_asked_for(change: dict, says: str) -> None:
    first, second = make_document(), make_document(**change)
    with pytest.raises(OptionError) as caught:
        compare_documents(first, second)
    assert says in str(caught.value)
    assert "--anyway" in str(caught.value)
    comparison = compare_documents(first, second, anyway=True)
    assert comparison.notes[0] == f"not the same: {says}"


def test_a_document_of_before_there_was_a_choice_has_the_first_one() -> None:
    old = make_document(model={"kv_bits": None, "kv_rows": None})
    assert list_differences(old, make_document()) == []
    assert list_differences(make_document(model={"kv_bits": 8}), old) == ["model.kv_bits 8 and 16"]


def test_energies_are_compared_where_both_have_them() -> None:
    first, second = (replace(row(1.0, 1.1, 1.2), samples_j=j) for j in ((4.0,) * 3, (3.0,) * 3))
    assert Change(first, second).energy_ratio == 0.75
    assert Change(first, row(1.0)).energy_ratio is None
    assert Change(row(1.0), second).energy_ratio is None


def test_energy_of_other_parts_is_a_note() -> None:
    second = make_document(power=PowerFacts("rapl", "package-0", 10.0))
    notes = compare_documents(make_document(power=POWER), second).notes
    assert notes == (f"energy is of {POWER.covers}, and of package-0",)


def test_versions_and_power_are_notes() -> None:
    versions = make_document().machine.versions | {"mlx": "0.40.0"}
    state = make_document(machine={"versions": versions}).machine.state
    battery = type(state)("battery", None, None, 1.0)
    second = make_document(machine={"versions": versions, "state": battery})
    assert list_differences(make_document(), second) == []
    notes = compare_documents(make_document(), second).notes
    assert notes == ("mlx 0.32.4 and 0.40.0", "power: mains and battery")


def test_rows_of_one_file_alone_are_counted() -> None:
    comparison = compare_documents(make_document(), make_document(rows=ROWS[1:]))
    assert len(comparison.changes) == 2
    assert comparison.notes == ("rows in one of the files alone: 1",)
    with pytest.raises(OptionError, match="no measure is in both files"):
        compare_documents(make_document(rows=ROWS[:1]), make_document(rows=ROWS[1:]))


def test_a_machine_that_is_slower_itself_is_said() -> None:
    second = make_document(machine={"copy_gb_per_s": 300.0})
    (note,) = compare_documents(make_document(), second).notes
    assert note.startswith("the machine itself was not as fast in both: it copied 470.0 and 300.0")
    close = make_document(machine={"copy_gb_per_s": 460.0})
    assert compare_documents(make_document(), close).notes == ()
