import time
from typing import Any

import mlx.core as mx
import pytest
from fake_kernels import SIZES, fake_kernel, raises

from mlx_gemma4.kernels import registry
from mlx_gemma4.kernels.kernel import Case, Kernel
from mlx_gemma4.kernels.tuning import Timing, is_faster, overall_gain, time_kernel


def timed(kernel, **options) -> Any:
    return time_kernel(kernel, kernel.tune_cases(SIZES), **{"samples": 3, **options})


def test_faster_and_slower_are_told_apart():
    (faster,) = timed(fake_kernel(plain_s=0.004))
    (slower,) = timed(fake_kernel(kernel_s=0.004))
    assert faster.gain > 3
    assert slower.gain < 1 / 3
    assert faster.plain_ms >= 4
    assert is_faster([faster])
    assert not is_faster([slower])


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([1.2], True),
        ([0.99], False),
        ([1.5, 0.96], True),  # within noise
        ([3.0, 0.9], False),  # never slower, however fast elsewhere
        ([1.0, 1.0], False),
        ([1.02, 0.97], False),
    ],
)
def test_a_kernel_wins_overall_and_loses_nowhere(gains, expected):
    timings = [Timing("case", gain, 1.0) for gain in gains]
    assert is_faster(timings) is expected


def test_overall_gain_is_a_geometric_mean():
    assert overall_gain([Timing("a", 4, 1), Timing("b", 1, 1)]) == pytest.approx(2)


def test_each_case_is_timed_and_reported():
    steps = []
    timings = timed(fake_kernel(cases=3), progress=lambda: steps.append(1))
    assert [timing.label for timing in timings] == ["case 0", "case 1", "case 2"]
    assert all(timing.plain_ms > 0 and timing.kernel_ms > 0 for timing in timings)
    assert len(steps) == 3


def test_a_deadline_ends_it_between_samples():
    kernel = fake_kernel(kernel_s=0.01, plain_s=0.01, cases=2)
    start = time.perf_counter()
    assert timed(kernel, samples=1000, deadline=start + 0.1) is None
    assert time.perf_counter() - start < 1


def test_a_deadline_that_has_passed_runs_nothing():
    kernel = fake_kernel(kernel=raises)
    assert timed(kernel, deadline=time.perf_counter() - 1) is None


def test_calls_are_chained_where_the_shapes_allow():
    seen = []

    def launch(x, _):
        seen.append(x)
        return (x + 1,)

    kernel = Kernel("chain", (), launch, launch, lambda _: [], lambda _: [])
    time_kernel(kernel, [Case("chain", (mx.zeros((2, 4)), 0))], samples=1)
    highest = mx.max(mx.stack(seen)).item()
    assert highest != 0  # some call has read what another has written


@pytest.mark.parametrize("name", sorted(registry.KERNELS))
def test_every_kernel_has_cases_of_a_models_shapes(name):
    kernel = registry.KERNELS[name]
    cases = kernel.tune_cases(SIZES)
    assert len({case.label for case in cases}) == len(cases) > 0
    case = cases[0]
    outputs = kernel.define(*case.arguments)
    mx.eval(outputs)
    assert outputs[0].dtype == SIZES.dtype
