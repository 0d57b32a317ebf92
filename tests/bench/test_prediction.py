"""The cost model, and that the README says what it computes."""

import pytest
from predictions import (
    HEADING,
    OWN,
    README,
    read_launches,
    real_text_config,
    step_of,
    write_section,
)

from mlx_gemma4.bench.chips import CHIPS
from mlx_gemma4.bench.prediction import ARITHMETIC_SHARE, LAUNCH_S, READING_SHARE, Step
from mlx_gemma4.bench.roofline import WeightFormat, decode_tokens_per_s

BY_NAME = {chip.name: chip for chip in CHIPS}
M4_MAX = BY_NAME["M4 Max"]


def test_reading_limits_a_short_context() -> None:
    step = Step(6e9, 1e9, 1e8, 0.0, 1000)
    expected = 7.1e9 / (READING_SHARE * 546e9) + 1000 * LAUNCH_S
    assert step.predicted_s(M4_MAX) == pytest.approx(expected)


def test_arithmetic_can_limit_global_layers() -> None:
    step = Step(0.0, 0.0, 1.0, 1e12, 0)
    assert step.predicted_s(M4_MAX) == pytest.approx(1e12 / (ARITHMETIC_SHARE * 16.2e12))


def test_no_prediction_is_above_the_roofline() -> None:
    text = real_text_config()
    for chip in CHIPS:
        for context in (1, 1024, 262_144):
            step = Step.of_model(text, context, lambda _: WeightFormat(4, 64), 0)
            assert 1 / step.predicted_s(chip) < decode_tokens_per_s(chip, step.read_bytes)


def test_the_size_of_a_chip_decides_on_its_launches() -> None:
    launches = {"g": 1, "s": 2, "d": 3}
    text = real_text_config()
    counted = {
        name: step_of(text, BY_NAME[name], 1, launches, "shared").launches
        for name in ("M1", "M3 Pro", "M4 Max", "M2 Ultra")
    }
    assert counted == {"M1": 1, "M3 Pro": 2, "M4 Max": 2, "M2 Ultra": 3}


def test_readme_has_what_is_computed_from_its_launches() -> None:
    section = HEADING + README.read_text(encoding="utf-8").partition(HEADING)[2]
    launches = read_launches(section)
    assert launches[OWN]["g"] > 0
    assert section == write_section(launches), "run: make predictions"
