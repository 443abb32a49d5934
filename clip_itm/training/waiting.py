"""How much of a training loop's time goes into waiting for its next batch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waiting:
    """Wall time in `reading` as a share of all time since the first `reading`, without what is `paused`.

    On a GPU, whose work the loop does not wait for, it is an upper bound: the GPU may still be busy with earlier steps.
    """

    def __init__(self):
        self.waited = self.total = 0.0
        self._taken = (0.0, 0.0)
        self._since: float | None = None

    def _pass(self) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.total += now - self._since
        self._since = now

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._pass()
        before = self.total
        try:
            yield
        finally:
            self._pass()
            self.waited += self.total - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it, no time counts."""
        if self._since is None:
            yield
            return
        self._pass()
        self._since = None
        try:
            yield
        finally:
            self._since = time.perf_counter()

    @property
    def share(self) -> float:
        """The share of all time so far; 0 before there is any."""
        return self.waited / self.total if self.total else 0.0

    def take(self) -> float:
        """The share of the time since the last call."""
        if self._since is not None:
            self._pass()
        waited, total = self.waited - self._taken[0], self.total - self._taken[1]
        self._taken = (self.waited, self.total)
        return waited / total if total > 0 else 0.0
