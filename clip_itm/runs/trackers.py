"""Which trackers can be used here."""

from collections.abc import Sequence
from importlib.util import find_spec


def available_trackers(trackers: Sequence[str]) -> list[str]:
    """Trackers for the Trainer; a named one that is not installed is an error, `auto` takes those that are."""
    found = [name for name in ("tensorboard", "trackio") if "auto" in trackers and find_spec(name)]
    for name in trackers:
        if name != "auto" and not find_spec(name):
            raise ValueError(f"training.trackers: {name} is not installed: pip install {name}")
    return list(dict.fromkeys([*found, *(name for name in trackers if name != "auto")]))
