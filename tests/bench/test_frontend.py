"""Distortions do what they say, samples stay the same, and the report is what its file says."""

import copy
import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlx_gemma4.api import load
from mlx_gemma4.hub import find_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def frontend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the modules; the scripts are no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    names = ("axes", "axis", "distortions", "measure", "prompts", "report", "samples", "shift")
    return SimpleNamespace(
        **{name: importlib.import_module(f"benchmarks.frontend.{name}") for name in names}
    )


@pytest.fixture(scope="module")
def demo() -> Any:
    return load("demo")


@pytest.fixture
def pixels() -> np.ndarray:
    """A dark bar on a light ground, left of the middle and upright."""
    pixels = np.full((144, 192, 3), (240, 230, 220), np.uint8)
    pixels[40:100, 60:80] = (20, 30, 200)
    return pixels


@pytest.fixture
def tone() -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 / 16_000 * np.arange(16_000))).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("rotate", (0, (70, 70))),
        ("blur", (0,)),
        ("add_noise", (0, np.random.default_rng(1))),
        ("set_contrast", (1,)),
        ("set_brightness", (1,)),
        ("shrink", (1,)),
    ],
)
def test_a_neutral_value_leaves_a_picture(
    frontend: Any, pixels: np.ndarray, name: str, neutral: tuple
) -> None:
    np.testing.assert_array_equal(getattr(frontend.distortions, name)(pixels, *neutral), pixels)


def test_a_turn_keeps_its_centre_and_its_ground(frontend: Any, pixels: np.ndarray) -> None:
    turned = frontend.distortions.rotate(pixels, 90, (70, 70))
    dark = turned.sum(axis=2) < 400
    y, x = np.nonzero(dark)
    assert (np.ptp(x) + 1, np.ptp(y) + 1) == pytest.approx((60, 20), abs=2)
    assert (x.mean(), y.mean()) == pytest.approx((69.5, 69.5), abs=1)
    assert tuple(turned[0, 0]) == tuple(turned[-1, -1]) == (240, 230, 220)


def test_a_turn_is_counter_clockwise(frontend: Any, pixels: np.ndarray) -> None:
    pixels[40:50, 60:80] = (255, 0, 0)  # the top of the bar
    turned = frontend.distortions.rotate(pixels, 90, (70, 70)).astype(int)
    red = (turned[..., 0] > 200) & (turned[..., 1] < 60)
    assert np.nonzero(red)[1].max() < 60


@pytest.mark.parametrize("sigma", [1.0, 4.0, 16.0])
def test_noise_has_its_sigma(frontend: Any, sigma: float) -> None:
    grey = np.full((300, 300, 3), 128, np.uint8)
    noisy = frontend.distortions.add_noise(grey, sigma, np.random.default_rng(0))
    # Rounding to whole levels adds 1/12 to the variance.
    assert noisy.astype(float).std() == pytest.approx(math.sqrt(sigma**2 + 1 / 12), rel=0.02)


@pytest.mark.parametrize("empty", [True, False])
def test_noise_stays_in_its_patches(frontend: Any, pixels: np.ndarray, empty: bool) -> None:
    noisy = frontend.distortions.add_noise_to_patches(
        pixels, 8, np.random.default_rng(0), empty=empty
    )
    has_changed = (noisy != pixels).any(axis=2)
    patches = has_changed.reshape(3, 48, 4, 48).any(axis=(1, 3))
    is_filled = np.zeros((3, 4), bool)
    is_filled[:, 1] = True  # the bar: rows 40 to 99, columns 60 to 79
    np.testing.assert_array_equal(patches, is_filled != empty)


def test_blur_is_a_gaussian_of_its_sigma(frontend: Any) -> None:
    edge = np.zeros((64, 200, 3), np.uint8)
    edge[:, 100:] = 255
    line = np.diff(frontend.distortions.blur(edge, 6)[32, :, 0].astype(float))
    place = np.arange(len(line))
    mean = (line * place).sum() / line.sum()
    assert math.sqrt((line * (place - mean) ** 2).sum() / line.sum()) == pytest.approx(6, rel=0.1)


def test_jpeg_loses_more_at_lower_quality(frontend: Any, pixels: np.ndarray) -> None:
    losses = [
        np.abs(frontend.distortions.compress(pixels, quality).astype(int) - pixels).mean()
        for quality in (95, 50, 5)
    ]
    assert losses == sorted(losses)
    assert losses[0] < 1 < losses[-1]


@pytest.mark.parametrize("factor", [0.5, 0.1])
def test_contrast_and_brightness_scale_levels(
    frontend: Any, pixels: np.ndarray, factor: float
) -> None:
    flat = frontend.distortions.set_contrast(pixels, factor)
    assert np.ptp(flat) == pytest.approx(factor * np.ptp(pixels), abs=1)
    assert flat.mean() == pytest.approx(pixels.mean(), abs=0.5)
    dark = frontend.distortions.set_brightness(pixels, factor)
    assert dark.mean() == pytest.approx(factor * pixels.mean(), abs=0.5)


def test_shrinking_leaves_fewer_pixels(frontend: Any, pixels: np.ndarray) -> None:
    assert frontend.distortions.shrink(pixels, 0.25).shape == (36, 48, 3)


@pytest.mark.parametrize("snr_db", [-10, 0, 20])
def test_noise_has_its_distance_to_the_sound(frontend: Any, tone: np.ndarray, snr_db: int) -> None:
    noisy = frontend.distortions.add_noise_at(tone, snr_db, np.random.default_rng(0))
    noise = noisy.astype(float) - tone
    measured = 10 * np.log10(np.mean(tone.astype(float) ** 2) / np.mean(noise**2))
    assert measured == pytest.approx(snr_db, abs=0.01)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.03  # white


def test_gain_scales_clips_and_rounds(frontend: Any, tone: np.ndarray) -> None:
    softer = frontend.distortions.set_gain(tone, -20)
    np.testing.assert_allclose(softer, tone / 10, atol=1 / 65536 + 1e-9)
    np.testing.assert_array_equal(softer * 32768, np.round(softer * 32768))
    louder = frontend.distortions.set_gain(tone, 20)
    assert (louder.min(), louder.max()) == (-1, 32767 / 32768)


def test_resampling_keeps_what_is_below_half_the_rate(frontend: Any, tone: np.ndarray) -> None:
    low, rate = frontend.distortions.resample(tone, 4000)
    assert (len(low), rate) == (4000, 4000)
    assert np.abs(np.fft.rfft(low)).argmax() == 440
    gone, _ = frontend.distortions.resample(tone, 500)
    assert np.std(gone) < 0.02 * np.std(tone)


def test_speed_is_another_rate_and_delay_is_silence(frontend: Any, tone: np.ndarray) -> None:
    samples, rate = frontend.distortions.change_speed(tone, 1.25)
    assert (len(samples), rate) == (16_000, 20_000)
    late = frontend.distortions.delay(tone, 80)
    assert not late[:80].any()
    np.testing.assert_array_equal(late[80:], tone)


def test_conditions_are_asked_once_and_have_their_tasks(frontend: Any) -> None:
    known = [condition.key for condition in frontend.axes.conditions()]
    assert len(known) == len(set(known))
    levels = {
        frontend.axis.Condition(axis, task, level).key
        for axis in frontend.axes.AXES
        for task in axis.tasks
        for level in axis.levels
    }
    assert set(known) == levels


def picture_of(axis: Any, level: Any, index: int = 0) -> np.ndarray:
    (pixels,) = axis.ask("object", index, level, None).options["images"]
    return pixels


def test_samples_are_the_same_in_every_condition(frontend: Any) -> None:
    axes = {axis.name: axis for axis in frontend.axes.AXES}
    plain = picture_of(axes["blur"], None)
    np.testing.assert_array_equal(plain, picture_of(axes["noise"], None))
    np.testing.assert_array_equal(picture_of(axes["noise"], 4), picture_of(axes["noise"], 4))
    assert (plain != picture_of(axes["blur"], None, index=1)).any()
    weak, strong = (picture_of(axes["noise"], level) - plain.astype(int) for level in (4, 16))
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.8  # the same noise


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_circle_is_cut_by_its_share(frontend: Any, share: float) -> None:
    axis = next(axis for axis in frontend.axes.AXES if axis.name == "cut off")
    edges = set()
    for index in range(60):
        if "circle" not in axis.ask("object", index, share, None).answer:
            continue
        pixels = picture_of(axis, share, index)
        height, width = pixels.shape[:2]
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        values, counts = np.unique(corners, axis=0, return_counts=True)
        y, x = np.nonzero((pixels != values[counts.argmax()]).any(axis=2))
        edges.add((x.min() == 0, x.max() == width - 1, y.min() == 0, y.max() == height - 1))
        seen, whole = sorted((np.ptp(x) + 1, np.ptp(y) + 1))
        assert seen / whole == pytest.approx(1 - share, abs=0.05)
    assert len(edges) > 1


@pytest.mark.parametrize("ratio", ["16:9", "1:3", "5:1"])
def test_ratios_are_what_they_are_called(frontend: Any, ratio: str) -> None:
    axes = {axis.name: axis for axis in frontend.axes.AXES}
    height, width = picture_of(axes["aspect ratio"], ratio).shape[:2]
    wide, tall = map(int, ratio.split(":"))
    assert width / height == pytest.approx(wide / tall, rel=0.01)


@pytest.mark.parametrize("filler", ["words before", "turns before", "words between"])
def test_fillers_stand_where_they_say(frontend: Any, demo: Any, filler: str) -> None:
    _, processor = demo
    starts, lengths = [], []
    for level in (0, 40, 160):
        asked = frontend.prompts.crowded(filler)("keys", 0, level, processor)
        inputs = processor(asked.prompt)
        starts.append(inputs.spans[0].start)
        lengths.append(len(inputs.input_ids))
    moved = np.diff(starts) if filler != "words between" else np.diff(lengths)
    assert (moved >= (35, 115)).all()
    if filler == "words between":
        assert len(set(starts)) == 1


@pytest.mark.parametrize(
    ("right", "samples", "low", "high"),
    # R: prop.test(right, samples, correct = FALSE)
    [(0, 50, 0.0, 0.07135), (50, 50, 0.92865, 1.0), (25, 50, 0.36645, 0.63355)],
)
def test_wilson(frontend: Any, right: int, samples: int, low: float, high: float) -> None:
    assert frontend.report.wilson(right, samples) == pytest.approx((low, high), abs=1e-5)


def test_a_condition_goes_on_where_it_stopped(frontend: Any, demo: Any) -> None:
    measure, condition = frontend.measure, next(iter(frontend.axes.conditions()))
    whole = measure.measure_condition(*demo, condition, {}, 3)
    part = measure.measure_condition(*demo, condition, {}, 1)
    assert measure.measure_condition(*demo, condition, part, 3) == whole
    assert whole["right"] == {"shape": 3, "colour": 3}


def test_results_of_another_checkpoint_are_refused(frontend: Any, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    output.write_text(json.dumps({"checkpoint": {"sha256": "another"}}))
    with pytest.raises(SystemExit, match="another checkpoint"):
        frontend.measure.start_document(output, str(find_checkpoint("demo")), "")


def test_a_shift_is_none_without_a_distortion(frontend: Any, demo: Any) -> None:
    axes = {axis.name: axis for axis in frontend.axes.AXES}

    def shift(level: Any) -> dict[str, float]:
        return frontend.shift.measure_shift(*demo, axes["noise"], "object", level, 1)

    assert shift(None) == {"filled": 0.0, "empty": 0.0, "still empty": 1.0}
    assert shift(4)["still empty"] == 0
    assert shift(4)["empty"] > 10 * shift(4)["filled"] > 0


def test_the_page_is_what_the_file_says(frontend: Any) -> None:
    report = frontend.report
    document = json.loads(report.RESULTS.read_text(encoding="utf-8"))
    page = report.write_page(document)
    assert report.PAGE.read_text(encoding="utf-8") == page, (
        "run: python -m benchmarks.frontend.report --write"
    )
    changed = copy.deepcopy(document)
    changed["conditions"]["object, noise 16"]["right"]["shape"] += 1
    assert report.write_page(changed) != page


def test_every_condition_was_measured(frontend: Any) -> None:
    document = json.loads(frontend.report.RESULTS.read_text(encoding="utf-8"))
    assert set(document["conditions"]) == {c.key for c in frontend.axes.conditions()}
