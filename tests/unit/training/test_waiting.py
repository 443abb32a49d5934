"""The share of time that a loop waits for batches, with a clock that is set by hand."""

from types import SimpleNamespace

import pytest

from clip_itm.training import waiting
from clip_itm.training.callbacks import ReadingCallback
from clip_itm.training.waiting import Waiting


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def step(share: Waiting, wait, read: float, train: float) -> None:
    with share.reading():
        wait(read)
    wait(train)


def test_shares_of_all_time_and_since_the_last_look(clock):
    share = Waiting()
    assert share.take() == share.share == 0
    clock(1000)  # before training
    step(share, clock, 1, 3)
    assert share.take() == 0.25
    step(share, clock, 3, 1)
    step(share, clock, 3, 1)
    assert share.take() == 0.75
    assert share.share == pytest.approx(7 / 12)
    assert share.take() == 0, "no time has passed"


def test_evaluations_do_not_count(clock):
    share = Waiting()
    with share.paused():
        clock(50)
    step(share, clock, 1, 1)
    with share.paused():
        clock(100)
        with pytest.raises(RuntimeError), share.paused():
            raise RuntimeError
    clock(2)
    assert share.take() == 0.25


def test_a_failing_loader_has_been_waited_for(clock):
    share = Waiting()

    def fail():
        with share.reading():
            clock(2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert share.share == 1


@pytest.mark.parametrize(
    ("read", "train", "told"), [(100, 300, True), (61, 2, True), (59, 1, False), (100, 500, False), (0, 300, False)]
)
def test_a_long_wait_is_told_once(clock, recwarn, read, train, told):
    trainer = SimpleNamespace(waiting=Waiting())
    callback = ReadingCallback(trainer, "set data.cache_images")
    step(trainer.waiting, clock, read, train)
    for _ in range(2):
        step(trainer.waiting, clock, 0, 0)
        callback.on_epoch_end(None, None, None)
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == told
    assert all("waiting for photos: set data.cache_images" in message for message in messages)
