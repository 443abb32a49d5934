"""Every method x processes x cache x accumulation x recomputed layers: one process on the same batch, to 1e-9."""

import importlib.util

import numpy as np
import pytest

from support.paths import ROOT

spec = importlib.util.spec_from_file_location("benchmark_exactness", ROOT / "benchmarks" / "exactness.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

TOLERANCE = 1e-9
COLUMNS = [setting.name for setting in benchmark.settings(1)]


@pytest.fixture(scope="module")
def found():
    """What so many processes found, all methods in one start; made when a test first asks for it."""
    made: dict[int, dict[str, np.ndarray]] = {}

    def of(processes: int) -> dict[str, np.ndarray]:
        if processes not in made:
            made[processes] = benchmark.in_processes(processes, list(benchmark.HEADS))
        return made[processes]

    return of


@pytest.mark.parametrize("case", benchmark.HEADS)
@pytest.mark.parametrize(
    "processes", [pytest.param(count, marks=[pytest.mark.slow] * (count > 1)) for count in (1, 2, 4)]
)
def test_gradients_are_those_of_one_process_that_keeps_everything(found, case, processes):
    reference = {key: value for key, value in found(1).items() if key.startswith(f"{case} | plain |")}
    own = {key: value for key, value in found(processes).items() if key.startswith(f"{case} |")}
    apart = benchmark.differences(own, reference)
    assert set(apart) == {(case, column) for column in COLUMNS}
    assert max(apart.values()) < TOLERANCE, apart
    sizes = [np.abs(value).max() for key, value in reference.items() if "gradient" in key]
    assert np.median(sizes) > 1e-4, "most weights have a gradient to compare"


def test_a_difference_would_be_found(found):
    reference = {key: value for key, value in found(1).items() if key.startswith("clip | plain |")}
    other = {key: value.copy() for key, value in reference.items()}
    other["clip | plain | gradient head.logit_scale"] *= 1 + 1e-8
    assert benchmark.differences(other, reference)["clip", "plain"] > TOLERANCE
    del other["clip | plain | gradient head.logit_scale"]
    with pytest.raises(AssertionError, match=r"head\.logit_scale"):
        benchmark.differences(other, reference)


def test_every_method_is_compared():
    from clip_itm.kinds import METHODS

    assert {head["kind"] for head in benchmark.HEADS.values()} == set(METHODS)
