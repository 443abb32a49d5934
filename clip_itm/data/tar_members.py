"""A photo in a tar, named by one string: the tar, where in it the photo is, a checksum, and the photo's own name.

    /data/00000.tar#1536+20480+6c0f1d2a9b3e4f50/000000012.jpg

takes the place of a file's path, so that rows, caches and messages need no special case, and the photo is read without
searching. The checksum is that of the photo, so what is known about a photo stays true when its tar is moved.
"""

import os
import re
from typing import NamedTuple

import xxhash

MEMBER = r"#\d+\+\d+\+[0-9a-f]{16}/"
_PLACE = re.compile(r"(?P<tar>.+)#(?P<offset>\d+)\+(?P<size>\d+)\+(?P<xxh3>[0-9a-f]{16})/(?P<name>.*)", re.DOTALL)


class TarMember(NamedTuple):
    """`size` bytes of the file `tar` (a path, or a URL of fsspec) from `offset` on, and their XXH3-64."""

    tar: str
    offset: int
    size: int
    xxh3: str
    name: str

    @property
    def path(self) -> str:
        """The string that stands for it in a row."""
        return f"{self.tar}#{self.offset}+{self.size}+{self.xxh3}/{self.name}"

    @property
    def identity(self) -> str:
        """A string that is the same wherever the same photo is."""
        return f"{self.size}+{self.xxh3}"


def tar_member(path: str | os.PathLike | None) -> TarMember | None:
    """The member that a string from `TarMember.path` names; None for any other.

    Example:
        >>> tar_member("/data/00000.tar#1536+20480+6c0f1d2a9b3e4f50/000000012.jpg").offset
        1536
        >>> tar_member("/data/photo #1.jpg") is None
        True
    """
    if not isinstance(path, str) or "#" not in path:
        return None
    found = _PLACE.fullmatch(path)
    if found is None:
        return None
    return TarMember(found["tar"], int(found["offset"]), int(found["size"]), found["xxh3"], found["name"])


def member_bytes(member: TarMember) -> bytes:
    """The bytes of a photo in a tar. Raises OSError if the tar cannot be read, ValueError if it has changed."""
    if "://" in member.tar:
        from clip_itm.data.remote import read_range

        content = read_range(member.tar, member.offset, member.size, member.xxh3)
    else:
        with open(member.tar, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), member.size, member.offset)
    if xxhash.xxh3_64_hexdigest(content) != member.xxh3:
        raise ValueError(
            f"{member.tar} has changed since its photos were listed; start again, after `touch` where its time of "
            "change is the old one"
        )
    return content
