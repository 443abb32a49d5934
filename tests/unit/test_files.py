"""Files that are written whole: links, devices and FIFOs, leftovers of killed writers, locks and checksums."""

import json
import os
import subprocess
import sys
import threading

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_itm import lock
from clip_itm.checksums import CHECKSUMS, check_files, checksum_of, damages, write_checksums
from clip_itm.files import filling, is_free, is_temporary, replacing, temporary_name, write_text
from clip_itm.lock import LOCK_FILE, locked

HOLD = """
import sys, time
from clip_itm.lock import locked
with locked(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(60)
"""


def other_process(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def dead_name(stem, suffix=""):
    """The temporary name of a process that has ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return temporary_name(stem, suffix).replace(f"-{os.getpid()}-", f"-{gone.pid}-")


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "far" / "real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "far" / "real.json").read_text() == "new"


def test_a_link_to_nothing_makes_its_target(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"


def test_a_fifo_and_a_device_are_written_into(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_text()))
    reader.start()
    write_text(tmp_path / "fifo", "through the pipe")
    reader.join(10)
    assert read == ["through the pipe"]
    assert (tmp_path / "fifo").is_fifo()
    before = os.stat("/dev/null")
    write_text("/dev/null", "away")
    assert os.stat("/dev/null").st_rdev == before.st_rdev


def test_a_stream_that_takes_nothing_is_named():
    with pytest.raises(OSError, match="/dev/full"):
        write_text("/dev/full", "text")


def test_a_link_that_leads_to_itself_stays(tmp_path):
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(ValueError, match=r"loop\.json is a link that leads to itself"):
        write_text(tmp_path / "loop.json", "text")
    assert os.readlink(tmp_path / "loop.json") == "loop.json"


def test_a_dash_is_standard_output(tmp_path, monkeypatch, capfdbinary):
    monkeypatch.chdir(tmp_path)
    write_text("-", "text")
    assert capfdbinary.readouterr().out == b"text"
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "out.json").mkdir()
    with pytest.raises(ValueError, match=r"out\.json is a folder"):
        write_text(tmp_path / "out.json", "text")


def test_leftovers_of_dead_writers_are_cleared_and_nothing_else(tmp_path):
    dead, alive = tmp_path / dead_name("a", ".json"), tmp_path / temporary_name("b", ".json")
    users = [tmp_path / name for name in (".a.tmp.json", ".bashrc", "a.12345678-1-1.tmp", "x.tmp")]
    for path in (dead, alive, *users):
        path.write_text("half")
    (tmp_path / dead_name("folder")).mkdir()
    with replacing(tmp_path / "c.json") as temporary:
        assert is_temporary(temporary)
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [alive.name, "c.json", *(path.name for path in users)]
    )


def test_a_folder_with_leftovers_of_a_killed_writer_is_free(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / LOCK_FILE).write_text("{}")
    (folder / dead_name("a")).write_text("half")
    assert is_free(folder)
    with filling(folder) as temporary:
        (temporary / "file").write_text("whole")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_two_writers_of_a_folder(tmp_path):
    first = other_process(tmp_path)
    try:
        owner = rf"is being written by process {first.pid} on .*clip-itm train"
        with pytest.raises(ValueError, match=owner), locked(tmp_path, "index"):
            pass
    finally:
        first.kill()
        first.wait()
    with locked(tmp_path, "index"):  # the lock went with its process
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        with pytest.raises(ValueError, match="this very process"), locked(tmp_path, "index"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_second_thread_while_the_first_is_still_taking_the_lock(tmp_path, monkeypatch):
    real = lock._lock

    def late(path, folder):
        monkeypatch.setattr(lock, "_lock", real)
        with pytest.raises(ValueError, match="this very process"), locked(folder, "index"):
            pass
        return real(path, folder)

    monkeypatch.setattr(lock, "_lock", late)
    with locked(tmp_path, "index"):
        assert (tmp_path / LOCK_FILE).exists()
    assert not list(tmp_path.iterdir())


def test_a_locked_folder_may_vanish(tmp_path):
    with locked(tmp_path / "run", "train"):
        (tmp_path / "run" / LOCK_FILE).unlink()
        (tmp_path / "run").rmdir()
    with locked(tmp_path / "run", "train"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not list((tmp_path / "run").iterdir())


@settings(max_examples=30, deadline=None)
@given(content=st.binary(min_size=1, max_size=300), data=st.data())
def test_every_change_of_a_file_is_found(tmp_path_factory, content, data):
    folder = tmp_path_factory.mktemp("kept")
    (folder / "below").mkdir()
    path = folder / "below" / "weights.bin"
    path.write_bytes(content)
    write_checksums(folder)
    check_files(folder)
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"weights\.bin is not what was written"):
        check_files(folder)
    assert not damages(folder, ["another"])
    path.write_bytes(content[:-1])
    assert "bytes, not" in damages(folder)[0]
    path.unlink()
    assert damages(folder) == [f"{path} is missing"]


def test_checksums_leave_out_what_people_change_and_folders_of_their_own(tmp_path):
    for name in ("README.md", "a", LOCK_FILE, temporary_name("b"), "kept/c", "kept/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path / "kept")
    write_checksums(tmp_path, also={"step": 3})
    written = json.loads((tmp_path / CHECKSUMS).read_text())
    assert (written["step"], list(written["files"])) == (3, ["a"])
    assert checksum_of(tmp_path / "a") == xxhash.xxh3_128(b"a").hexdigest()
    (tmp_path / CHECKSUMS).write_text('{"files": ')
    with pytest.raises(ValueError, match="is damaged"):
        check_files(tmp_path)


def test_an_existing_empty_folder_is_filled_and_stays_the_same(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    before = os.stat(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    for name in (".", str(tmp_path / "link")):
        with filling(name) as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / "file").write_text("whole")
            assert is_free(tmp_path / "empty")
        assert os.path.samestat(before, os.stat(tmp_path / "empty"))
        assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["below"]
        (tmp_path / "empty" / "below" / "file").unlink()
        (tmp_path / "empty" / "below").rmdir()
    with pytest.raises(IsADirectoryError), filling(tmp_path / "empty") as temporary:
        temporary.write_text("half")
    assert not list((tmp_path / "empty").iterdir())
