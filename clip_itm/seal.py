"""A checksum at the end of a file, where readers of npy, npz, JPEG and PNG do not look: it travels with the file.

content  |  MARK  |  XXH3-128 of the content, 16 bytes
"""

import os
from pathlib import Path

import xxhash

from clip_itm.digests import checksum_of

MARK = b"\nclip_itm xxh3\n"
LENGTH = len(MARK) + 16
ZIP_END = b"PK\5\6" + bytes(18)  # of an archive without a comment; the last two bytes are the comment's length


def sealed(content: bytes) -> bytes:
    """The content with its seal.

    Example:
        >>> opened(sealed(b"content")), opened(b"content without a seal")
        ((b'content', True), (b'content without a seal', None))
    """
    return content + MARK + xxhash.xxh3_128_digest(content)


def opened(data: bytes) -> tuple[bytes, bool | None]:
    """The content before the seal, and whether it is what was sealed (None if there is no seal)."""
    content, seal = data[:-LENGTH], data[-LENGTH:]
    if not seal.startswith(MARK):
        return data, None
    return content, seal[len(MARK) :] == xxhash.xxh3_128_digest(content)


def image_in(data: bytes) -> bytes | None:
    """The sealed JPEG or PNG, empty if an empty content was sealed; None for a damaged one.

    Images of an earlier clip_itm have no seal: of those only the end is checked.
    """
    content, whole = opened(data)
    if whole is None:
        return data if data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82")) else None
    return content if whole else None


def seal(path: str | Path) -> None:
    """Append the seal to a file that has none."""
    digest = bytes.fromhex(checksum_of(path))
    with Path(path).open("ab") as file:
        file.write(MARK + digest)


def seal_zip(path: str | Path) -> None:
    """Append the seal to a zip archive (npz), as its comment."""
    with Path(path).open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(LENGTH.to_bytes(2, "little"))
    seal(path)


def is_whole_zip(path: str | Path) -> bool | None:
    """`is_whole` of a zip archive; False also for one with another comment than a seal, or without its end."""
    whole = is_whole(path)
    if whole is None and os.path.getsize(path) >= len(ZIP_END):
        with Path(path).open("rb") as file:
            is_zip = file.read(4) == b"PK\3\4"
            file.seek(-len(ZIP_END), os.SEEK_END)
            end = file.read()
        if is_zip and not (end[:4] == ZIP_END[:4] and end[-2:] == ZIP_END[-2:]):
            return False
    return whole


def is_whole(path: str | Path) -> bool | None:
    """Whether a file is what was sealed; None if it has no seal."""
    size = os.path.getsize(path)
    if size < LENGTH:
        return None
    with Path(path).open("rb") as file:
        file.seek(size - LENGTH)
        seal = file.read()
    if not seal.startswith(MARK):
        return None
    return bytes.fromhex(checksum_of(path, size - LENGTH)) == seal[len(MARK) :]
