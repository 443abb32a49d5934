"""The folder of a run: which files in it are the run's own, and its checkpoints.

`written.json` names every file that the run wrote or is about to write, so that nothing else is ever deleted; if it
names the `written.json` of a subfolder, that list counts, too. Folders (checkpoints, best/) are filled under a
temporary name and renamed when they are whole.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from clip_itm.checksums import CHECKSUMS, add_checksums, write_checksums
from clip_itm.distributed import by_first
from clip_itm.files import is_free, is_temporary, temporary_name, write_json
from clip_itm.lock import LOCK_FILE, locked

MANIFEST, STATE, RESULTS, SKIPPED = "written.json", "trainer_state.json", "results.json", "skipped.json"
# what a method works out before training: files, and folders of runs that have a written.json of their own
PREPARED = "prepared"
# what every run writes besides its folders, and what some runs and `clip-itm audit` add
FIRST = ("recipe.yaml", "provenance.json", "noise.npz", RESULTS, MANIFEST, CHECKSUMS)
ADDED = (
    *("bank.npz", "clean_probability.npz", "pair_scores.png", "pair_calibration.png", SKIPPED),
    *("audit/audit.parquet", "audit/audit.html"),
)
OWN = (*FIRST, *ADDED)
# what counts as a run's own without a written.json: the run is of an earlier version, or the list was lost
EARLIER = re.compile(
    r"""(?x)
    (recipe\.yaml | (noise|bank|clean_probability)\.npz | (provenance|results|checksums|left_out|skipped)\.json
    | ranks_(best|last)/[a-z0-9-]+\.npz
    | audit/audit\.(parquet|html)
    | (best | checkpoint-[0-9]+)/
      ( (config|generation_config|processor_config|preprocessor_config|tokenizer|tokenizer_config|vocab
        |special_tokens_map|added_tokens|provenance|trainer_state|checksums|model\.safetensors\.index)\.json
      | (model(-[0-9]+-of-[0-9]+)?|labels|npc_state|aahr_state|unaveraged)\.safetensors
      | clip_itm_[a-z_0-9]+\.py | (requirements|vocab|merges)\.txt | chat_template\.jinja
      | recipe\.yaml | (noise|bank)\.npz | README\.md | curves\.png
      | (optimizer|scheduler|scaler)\.pt | rng_state(_[0-9]+)?\.pth | training_args\.bin
      )
    )"""
)
# TensorBoard opens its files by itself: runs/MonthDay_Hour-Minute-Second_HOST/
LOGS = re.compile(r"runs/[^/]+_\d\d-\d\d-\d\d_[^/]+/events\.out\.tfevents\.[^/]+")


@contextmanager
def held(folder: Path, doing: str, key: str = "output_dir") -> Iterator[None]:
    """`locked` by the first process; all of them raise ValueError if that fails.

    A folder that was made for the lock is removed again if it stays empty. `key` is the setting that names the folder.
    """
    with ExitStack() as stack:

        def hold() -> None:
            require_folder(folder, key)
            if not folder.exists():
                stack.callback(remove_empty, folder)
            stack.enter_context(locked(folder, doing))

        by_first(hold)
        yield


def require_folder(folder: Path, key: str) -> None:
    """Raises ValueError if a file is in the way of the folder."""
    for path in (folder, *folder.parents):
        if os.path.lexists(path) and not path.is_dir():
            where = "" if path == folder else f", in {folder},"
            raise ValueError(f"{key}: {path}{where} is not a folder; name a folder, or one that does not exist yet")


def remove_empty(folder: Path) -> None:
    with suppress(OSError):  # there is something in it
        folder.rmdir()


class Watched:
    """A run folder that has to stay during the run; it is not made again if somebody deletes it."""

    def __init__(self, run: Path):
        self.run, self.began_as = run, os.stat(run)
        self.marks = [run / name for name in ("recipe.yaml", "provenance.json") if (run / name).is_file()]

    def require(self) -> None:
        """Raises ValueError if the folder is gone, empty or another one."""
        with suppress(OSError):
            if os.path.samestat(self.began_as, os.stat(self.run)) and all(mark.is_file() for mark in self.marks):
                return
        raise ValueError(
            f"{self.run} was deleted or replaced while the run was going on: training stops, and nothing is left to "
            "resume from; start again, with another output_dir if somebody else uses this one"
        )


# What is the run's own


def own_files(run: Path) -> set[str]:
    """Files in `run`, relative to it, that the run wrote."""
    return set(_own(run, list(_files(run))))


def other_files(run: Path) -> list[str]:
    """All other files in `run`, relative to it, sorted."""
    found = list(_files(run))
    return sorted(set(found) - set(_own(run, found)))


def record(run: Path, names: Iterable[str]) -> None:
    """Note files that the run is about to write."""
    write_json(run / MANIFEST, {"files": sorted(own_files(run) | _manifest(run) | set(names))})


def record_added(run: Path, *names: str) -> None:
    """The same for files that only some runs write; does nothing for runs of an earlier version, which have no list."""
    if is_recorded(run):
        record(run, names)


def is_recorded(run: Path) -> bool:
    """Whether the run has a list of its files."""
    return (run / MANIFEST).is_file()


def delete(run: Path, names: Iterable[str] | None = None) -> None:
    """Delete files that the run wrote (all of them, or those of `names`) and the folders that are then empty.

    What marks a run as finished or a checkpoint as whole goes first (checksums before the files they cover) and the
    list last, so that an interrupted deletion can be repeated.
    """
    own = own_files(run)
    names = own if names is None else own & set(names)
    marks = {CHECKSUMS: 0, RESULTS: 1, STATE: 2}
    lists = {name: 1 + (name == MANIFEST) for name in names if Path(name).name == MANIFEST}
    for name in sorted(names, key=lambda name: (lists.get(name, 0), marks.get(Path(name).name, 3))):
        (run / name).unlink(missing_ok=True)
    for folder in sorted({parent for name in names for parent in Path(name).parents} - {Path(".")}, reverse=True):
        remove_empty(run / folder)
    if names and is_recorded(run):
        write_json(run / MANIFEST, {"files": sorted(_manifest(run) - names)})


def require_room(run: Path, anew: bool) -> None:
    """Raises ValueError naming what is in the way of a run in this folder; `anew`: the run there will be deleted."""
    if not run.is_dir():
        return
    others, own = other_files(run), own_files(run)
    # without a list, only a folder that holds nothing else is known to be a run's
    if others and anew and not own:
        raise ValueError(
            f"{run} is not a run of clip-itm: --overwrite does not delete it (it holds {_some(others)}); choose "
            "another output_dir"
        )
    if others and own and (anew or not is_recorded(run)):
        raise ValueError(
            f"{run} holds {_some(others)}, which no run of clip-itm wrote: only what a run wrote is deleted or "
            "replaced; move it away, or choose another output_dir"
        )
    folders = ("best", "ranks_best", "ranks_last", PREPARED)
    if taken := [name for name in others if name in OWN or name.split("/")[0] in folders]:
        raise ValueError(f"{run} holds {_some(taken)}, where a run writes; move it away, or choose another output_dir")


def _manifest(run: Path) -> set[str]:
    try:
        names = json.loads((run / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {str(name) for name in names}
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{run / MANIFEST} is damaged ({error!r}), so it is not known which files here belong to the run; choose "
            "another output_dir"
        ) from None


def _own(run: Path, found: list[str]) -> list[str]:
    if is_recorded(run):
        written = _manifest(run)
        for name in [name for name in written if name.endswith(f"/{MANIFEST}")]:
            inner = Path(name).parent
            written |= {(inner / file).as_posix() for file in _manifest(run / inner)}
        return [name for name in found if name in written or name == MANIFEST or LOGS.fullmatch(name)]
    if "recipe.yaml" in found and "provenance.json" in found:
        return [name for name in found if EARLIER.fullmatch(name) or LOGS.fullmatch(name)]
    return []


def _files(folder: Path) -> Iterator[str]:
    """All files below, and links to folders, but neither locks nor half-written files."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_temporary(Path(name))]
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        for name in (*files, *links):
            if name != LOCK_FILE and not is_temporary(Path(name)):
                yield Path(os.path.relpath(os.path.join(where, name), folder)).as_posix()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


# Folders that appear when they are whole


@contextmanager
def staged(run: Path, name: str) -> Iterator[Path]:
    """A temporary folder in `run` to fill, which becomes `run`/`name` at the end."""
    temporary = run / temporary_name(name)
    try:
        temporary.mkdir()
        yield temporary
        commit(run, temporary, name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def commit(run: Path, temporary: Path, name: str) -> None:
    """Give a filled folder its checksums and its name, replacing an earlier one of the run.

    Raises ValueError if something that the run did not write has that name.
    """
    write_checksums(temporary)
    delete(run, [own for own in own_files(run) if own.startswith(f"{name}/")])
    record(run, [f"{name}/{file}" for file in _files(temporary)])
    if os.path.islink(run / name) or (os.path.lexists(run / name) and not is_free(run / name)):
        raise ValueError(f"{run / name} is in the way: this run did not write it; move it away")
    os.replace(temporary, run / name)


def failed_write(error: BaseException) -> str | None:
    """Why a file could not be written, if that is what `error` says (each library has its own way), else None."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError) or "(os error " in str(error):  # of libraries in Rust
        return str(error)
    if isinstance(error, RuntimeError) and re.search("inline_container|StreamWriter|Parent directory", str(error)):
        return "a file could not be written to its end; is the disk full?"  # torch.save
    return None


def seal_run(run: Path) -> None:
    """Write checksums of the run's files, except checkpoints and best/, which have their own."""
    names = [name for name in own_files(run) if name in OWN or name.startswith("ranks_")]
    add_checksums(run, [name for name in names if name not in (CHECKSUMS, MANIFEST)])
