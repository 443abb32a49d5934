"""Files behind fsspec (s3://, hf://, gs://, memory://): what is there, a stream of one, and ranges through a cache.

The cache is a folder of files, one for each range (a photo), bounded in size: the photos that were read longest ago go
first. Several processes may share it: a file appears whole, one that is gone is fetched again, and only one process at
a time clears. Its place and its limit are in the environment, because loader processes have to know them.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from clip_itm.files import clear_temporary, temporary_name
from clip_itm.lock import locked

PLACE, LIMIT = "CLIP_ITM_REMOTE_CACHE", "CLIP_ITM_REMOTE_CACHE_BYTES"
READ_AHEAD = 2**23  # bytes that a stream asks for at once
CLEARED_TO = 0.8  # of the limit
SHARE = 0.05  # of the limit, which a process may write before it checks whether the cache is full
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "az": "azure"}


def is_remote(path: str) -> bool:
    """Whether a name is a URL of fsspec."""
    return "://" in path


def filesystem(url: str) -> Any:
    """The file system of a URL, for this process. Raises ValueError, saying what to install."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        advice = f"; pip install 'clip-itm[{EXTRAS[protocol]}]'" if protocol in EXTRAS else ""
        raise ValueError(f"{protocol}:// cannot be read here ({error}){advice}") from None


def remote_files(url: str) -> dict[str, tuple[int, str]]:
    """{URL: (size, stamp)} of the files that a URL names: itself, what is below it, or what fits it as a glob."""
    protocol = url.partition("://")[0]
    system = filesystem(url)
    try:
        if "*" in url or "?" in url or "[" in url:
            found = system.glob(url, detail=True)
        else:
            found = system.find(url, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:  # from the library of the storage: no rights, no network, no such bucket
        raise ValueError(f"{url}: cannot be listed ({error})") from None
    return {
        f"{protocol}://{name.removeprefix(f'{protocol}://')}": (int(info["size"]), _stamp(info))
        for name, info in found.items()
        if info["type"] == "file"
    }


def _stamp(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "blob_id", "md5Hash", "mtime", "LastModified", "created"):
        if info.get(key):
            return str(info[key])
    return ""


def open_remote(url: str) -> BinaryIO:
    """A file to be read once from its beginning."""
    return filesystem(url).open(url, "rb", block_size=READ_AHEAD, cache_type="readahead")


def use_cache(folder: Path, limit: int) -> None:
    """From now on, keep what this process and its children read in `folder`, at most about `limit` bytes."""
    os.environ[PLACE], os.environ[LIMIT] = str(folder), str(limit)


def read_range(url: str, offset: int, size: int, xxh3: str) -> bytes:
    """`size` bytes of a remote file, from the cache or into it. `xxh3` is the XXH3-64 of the expected bytes.

    Other bytes are returned, for the caller to refuse, but not kept.
    """
    place = os.environ.get(PLACE)
    kept = None if place is None else Path(place) / xxh3[:2] / f"{xxh3}-{size}"
    if kept is not None:
        with suppress(OSError):
            content = kept.read_bytes()
            if xxhash.xxh3_64_hexdigest(content) == xxh3:
                os.utime(kept)
                return content
    content = filesystem(url).cat_file(url, start=offset, end=offset + size)
    if kept is not None and xxhash.xxh3_64_hexdigest(content) == xxh3:
        _keep(kept, content)
    return content


_written = 0  # bytes that this process wrote since it last checked


def _keep(kept: Path, content: bytes) -> None:
    global _written
    temporary = kept.with_name(temporary_name(kept.name))
    with suppress(OSError):  # a full disk: the photo is read all the same
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, kept)
    _written += len(content)
    limit = int(os.environ.get(LIMIT, 0))
    if _written > SHARE * limit:
        _written = 0
        with suppress(ValueError):  # another process is clearing it
            clear(kept.parents[1], limit)


def clear(folder: Path, limit: int) -> int:
    """Delete what was read longest ago, down to `CLEARED_TO` of `limit` bytes; returns the bytes left.

    Deletes nothing below `limit`. Raises ValueError while another process does it.
    """
    with locked(folder, "clear the cache of remote photos"):
        found = []
        for part in os.scandir(folder):
            if part.is_dir() and len(part.name) == 2:
                clear_temporary(Path(part.path))
                for file in os.scandir(part.path):
                    with suppress(OSError):  # deleted meanwhile
                        status = file.stat()
                        found.append((status.st_mtime_ns, status.st_size, file.path))
        total = sum(size for _, size, _ in found)
        if total > limit:
            for _, size, path in sorted(found):
                if total <= CLEARED_TO * limit:
                    break
                with suppress(OSError):
                    os.unlink(path)
                total -= size
        return total
