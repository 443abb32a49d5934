"""What one process cannot do, all of them hear of."""

import json

import pytest

from support.processes import launch


@pytest.mark.slow
def test_two_processes_agree_that_they_cannot_begin_and_that_they_cannot_save(tmp_path):
    found = {}
    launch(2, "-m", "support.distributed.failures", str(tmp_path), str(tmp_path / "found"))
    for path in tmp_path.glob("found-*.json"):
        found[path.name] = json.loads(path.read_text())
    assert len(found) == 2
    for said in found.values():
        assert (
            "is being written by this very process" in said["locked"] or "is being written by process" in said["locked"]
        )
        assert "checkpoint-2 could not be written: No space left on device" in said["full"]
        assert "checkpoint-1 is whole" in said["full"]
        assert said["steps"] == 3
        assert "at step 2: training stops" in said["diverged"]
