import json
import time
from typing import Any

import mlx.core as mx
import pytest
from fake_kernels import CHIP, SIZES, fake_gpu, fake_kernel, raises

from mlx_gemma4.config import Config
from mlx_gemma4.errors import OptionError
from mlx_gemma4.kernels import registry, trial
from mlx_gemma4.kernels.kernel import Sizes

FASTER: dict[str, Any] = {"plain_s": 0.003}
SLOWER: dict[str, Any] = {"kernel_s": 0.003}


def no_progress(done: int, total: int) -> None:
    pytest.fail(f"something is tried: {done} of {total}")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Return a function that makes this a machine with a GPU and some kernels."""

    def enter(*kernels):
        fake_gpu(monkeypatch, tmp_path, *kernels)
        return tmp_path

    return enter


def counting(calls, **options):
    """Return a kernel that notes each launch."""

    def kernel(x):
        calls.append(1)
        return x + x

    return fake_kernel(kernel=kernel, **options)


def test_without_a_metal_device_all_are_off(monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_GEMMA4_CACHE", str(tmp_path))
    monkeypatch.setattr(registry, "_states", {})
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert registry.prepare(SIZES, progress=no_progress) == []
    for name in registry.KERNELS:
        assert not registry.is_on(name)
        assert registry.why(name) == "no Metal device"
    assert list(tmp_path.iterdir()) == []
    start = time.perf_counter()
    for _ in range(100):
        registry.prepare(SIZES)
    assert (time.perf_counter() - start) / 100 < 1e-3


def test_on_the_cpu_of_a_mac_all_are_off(gpu, monkeypatch):
    folder = gpu(fake_kernel(kernel=raises))
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert registry.prepare(SIZES) == []
    assert registry.why("double") == "MLX computes on the CPU"
    assert list(folder.iterdir()) == []


def test_the_faster_is_kept(gpu):
    gpu(fake_kernel("a", **FASTER), fake_kernel("b", **SLOWER))
    assert registry.prepare(SIZES) == []
    assert registry.is_on("a")
    assert registry.why("a") == "faster than plain MLX"
    assert not registry.is_on("b")
    assert registry.why("b").startswith("slower than plain MLX (case 0: 0.")


def test_a_kernel_that_raises_or_mismatches_is_off_with_a_line(gpu):
    gpu(
        fake_kernel("raises", kernel=raises, **FASTER),
        fake_kernel("mismatches", kernel=lambda x: 3 * x, **FASTER),
        fake_kernel("right", **FASTER),
    )
    first, second = registry.prepare(SIZES)
    assert first.startswith("kernel mismatches is off, plain MLX runs instead: failed its self-ch")
    assert "Unable to build metal library" in second
    assert [name for name in registry.KERNELS if registry.is_on(name)] == ["right"]
    assert registry.prepare(SIZES) == [first, second]  # said at every start


def test_a_kernel_that_fails_only_on_the_models_shapes_is_off(gpu):
    def kernel(x):
        return raises(x) if x.size == SIZES.hidden_size else x + x

    gpu(fake_kernel(kernel=kernel))
    (note,) = registry.prepare(SIZES)
    assert "while it was timed: RuntimeError" in note
    assert not registry.is_on("double")


def test_later_starts_only_read(gpu):
    calls = []
    folder = gpu(counting(calls, **FASTER))
    registry.prepare(SIZES)
    (path,) = folder.iterdir()
    written, launches = path.stat().st_mtime_ns, len(calls)
    assert launches > 3
    registry._states.clear()
    registry.prepare(SIZES, progress=no_progress)
    assert len(calls) == launches
    assert path.stat().st_mtime_ns == written
    assert registry.is_on("double")
    assert json.loads(path.read_text())["machine"]["chip"] == CHIP


def test_another_model_is_timed_but_not_checked_anew(gpu):
    calls = []
    gpu(counting(calls, **FASTER))
    registry.prepare(SIZES)
    steps = []
    other = Sizes(**{**vars(SIZES), "hidden_size": 512})
    registry.prepare(other, progress=lambda *step: steps.append(step))
    assert steps == [(1, 1)]
    assert registry.report().sizes_key == other.key
    registry.prepare(SIZES, progress=no_progress)


def test_changed_kernels_are_checked_anew(gpu, monkeypatch):
    folder = gpu(fake_kernel(**FASTER))
    registry.prepare(SIZES)
    monkeypatch.setattr(registry.inspect, "getsource", lambda _: "changed")
    registry.prepare(SIZES)
    assert len(list(folder.iterdir())) == 2
    (note,) = registry.report().notes
    assert note.startswith("ignored, being of another chip, macOS, MLX, or version of the kernels:")


def test_a_broken_file_is_said_and_replaced(gpu):
    folder = gpu(fake_kernel(**FASTER))
    registry.prepare(SIZES)
    (path,) = folder.iterdir()
    path.write_text("{")
    (note,) = registry.prepare(SIZES)
    assert "ignored" in note
    assert registry.prepare(SIZES) == []


def test_a_folder_that_cannot_be_written_is_said(gpu, monkeypatch, tmp_path):
    gpu(fake_kernel(**FASTER))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLX_GEMMA4_CACHE", str(tmp_path / "file"))
    notes = registry.prepare(SIZES)
    assert any("cannot be kept" in note for note in notes)
    assert registry.is_on("double")


def test_no_tune_leaves_what_passed_on(gpu):
    gpu(fake_kernel("slow", **SLOWER), fake_kernel("wrong", kernel=lambda x: x))
    (note,) = registry.prepare(SIZES, tune=False)
    assert note.startswith("kernel wrong is off")
    assert registry.is_on("slow")
    assert registry.why("slow") == "passed its self-check; not timed for this model"
    registry.prepare(SIZES)
    assert not registry.is_on("slow")


def test_tuning_ends_at_its_limit_and_goes_on_at_the_next_start(gpu, monkeypatch):
    gpu(*(fake_kernel(name, plain_s=0.02) for name in "abc"))
    monkeypatch.setattr(trial, "TUNE_LIMIT_S", 0.6)
    start = time.perf_counter()
    registry.prepare(SIZES)
    assert time.perf_counter() - start < 3
    reasons = [registry.why(name) for name in "abc"]
    assert all(map(registry.is_on, "abc"))
    assert reasons[-1] == "passed its self-check; not timed for this model"
    monkeypatch.setattr(trial, "TUNE_LIMIT_S", 20.0)
    registry.prepare(SIZES)
    assert {registry.why(name) for name in "abc"} == {"faster than plain MLX"}


def test_a_thorough_trial_forgets_what_was_known(gpu):
    works = []

    def kernel(x):
        return x + x if works else raises(x)

    gpu(fake_kernel(kernel=kernel, **FASTER))
    assert len(registry.prepare(SIZES)) == 1
    works.append(True)
    assert len(registry.prepare(SIZES)) == 1
    assert registry.prepare(SIZES, thorough=True) == []
    assert registry.is_on("double")


def test_a_kernel_without_cases_does_not_fit(gpu):
    gpu(fake_kernel(cases=0))
    registry.prepare(SIZES)
    assert not registry.is_on("double")
    assert registry.why("double") == "does not fit this model's sizes"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0", []), ("1", ["a", "b"]), ("b", ["b"]), (" a , b,", ["a", "b"]), ("", ["a"])],
)
def test_the_variable_overrules_the_timing(gpu, monkeypatch, value, expected):
    gpu(
        fake_kernel("a", **FASTER),
        fake_kernel("b", **SLOWER),
        fake_kernel("wrong", kernel=lambda x: x),
    )
    registry.prepare(SIZES)
    monkeypatch.setenv("MLX_GEMMA4_KERNELS", value)
    registry.prepare(SIZES)
    assert [name for name in registry.KERNELS if registry.is_on(name)] == expected
    if value == "0":
        assert registry.why("a") == "left out by MLX_GEMMA4_KERNELS"
    if value == "1":
        assert "asked for by MLX_GEMMA4_KERNELS" in registry.why("b")


def test_none_wanted_is_none_tried(gpu, monkeypatch):
    folder = gpu(fake_kernel(kernel=raises))
    monkeypatch.setenv("MLX_GEMMA4_KERNELS", "0")
    assert registry.prepare(SIZES, progress=no_progress) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", ["attention", "a,c", "2", "on"])
def test_an_unknown_name_is_an_error(gpu, monkeypatch, value):
    gpu(fake_kernel("a"), fake_kernel("b"))
    monkeypatch.setenv("MLX_GEMMA4_KERNELS", value)
    with pytest.raises(OptionError, match=r"allowed are 0 \(none\), 1 \(all\), or some of a, b"):
        registry.prepare(SIZES)


def test_forced_ends_with_its_block():
    one, *_ = names = list(registry.KERNELS)
    with registry.forced(one):
        assert [name for name in names if registry.is_on(name)] == [one]
        assert registry.why(one) == "forced on"
        with registry.forced():
            assert not registry.is_on(one)
        assert registry.is_on(one)
    assert not registry.is_on(one)
    with pytest.raises(KeyError), registry.forced("no such kernel"):
        pass


@pytest.mark.google_files
def test_sizes_come_from_a_config(google_checkpoint):
    config = Config.from_folder(google_checkpoint).text_config
    sizes = Sizes.from_config(config, mx.bfloat16)
    assert sizes.key == "bfloat16-3840-15360-16-8-256-1-512-128-1024"
