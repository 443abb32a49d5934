"""How many processes read photos."""

import pytest

from clip_itm.data import workers
from clip_itm.data.configuration import SampleData
from clip_itm.data.workers import loader_processes


@pytest.mark.parametrize(
    ("cores", "launched", "on_gpu", "images", "expected"),
    [
        (16, 1, True, 10**6, 15),
        (16, 1, True, None, 15),
        (128, 1, True, 10**6, 16),
        (64, 8, True, 10**6, 7),
        (4, 8, True, 10**6, 0),
        (1, 1, True, 10**6, 0),
        (16, 1, True, 2000, 0),
        (16, 1, False, 10**6, 0),
    ],
)
def test_auto_goes_by_cores(monkeypatch, cores, launched, on_gpu, images, expected):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(launched))
    assert loader_processes("auto", on_gpu, images) == expected
    assert loader_processes(3, on_gpu, images) == 3


def test_auto_is_the_default():
    assert SampleData().num_workers == "auto"
    assert SampleData(num_workers=4).num_workers == 4
    with pytest.raises(ValueError, match="num_workers"):
        SampleData(num_workers=-1)
