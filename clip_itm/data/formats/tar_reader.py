"""The members of a tar in one pass from its beginning, at the speed of the disk.

`tarfile` makes an object of forty attributes for each member, at several times the cost, and takes a truncated file for
a whole one. POSIX (ustar and pax), GNU and old V7 archives are read; links, folders and devices are passed over.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
LONGEST_NAME = 2**20  # bytes of a header that names the member after it
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}


class TarError(ValueError):
    """A file that is not a tar, or a tar that is cut or damaged."""


class Entry(NamedTuple):
    """A regular file of a tar: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


def entries(file: BinaryIO, length: int) -> Iterator[Entry]:
    """The regular files of a tar of `length` bytes, in order; the caller may read each, or not, before the next.

    Raises TarError, which says where, for a header that is not one and for a tar that was cut.
    """
    if not length:
        raise TarError("the file is empty (0 bytes)")
    place, name, size = 0, None, None  # the last two: from the header before
    while place < length:
        file.seek(place)
        header = file.read(BLOCK)
        if len(header) == BLOCK and not header.strip(b"\0"):
            return  # a block of zeros ends a tar
        if len(header) < BLOCK or not _is_header(header):
            raise TarError(_no_header(header, place))
        kind, own = header[156:157], _number(header[124:136])
        offset = place + BLOCK
        if own < 0 or (offset + own > length and kind in b"0\x007LKxg"):
            raise TarError(f"it ends at byte {length:,}, in the middle of {_name(header)!r} (was it cut?)")
        if kind in (b"L", b"x", b"g"):
            content = file.read(_bounded(own, place))
            if kind == b"L":
                name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == b"x":
                found = _pax(content, place)
                name, size = found.get("path", name), int(found["size"]) if "size" in found else size
                if any(key.startswith("GNU.sparse.") for key in found):
                    raise TarError(f"the member at byte {place:,} is sparse; write the tar with `tar --format=pax`")
        elif kind == b"S":
            raise TarError(f"the member at byte {place:,} is sparse; write the tar without `tar --sparse`")
        elif kind != b"K":
            own = own if size is None else size
            if kind in b"0\x007":
                if offset + own > length:
                    raise TarError(f"it ends at byte {length:,}, in the middle of {name or _name(header)!r}")
                if not (name or _name(header)).endswith("/"):  # how V7 writes a folder
                    yield Entry(name or _name(header), offset, own)
            elif kind in b"123456":
                own = 0
            name, size = None, None
        place = offset + -(-own // BLOCK) * BLOCK
    raise TarError(f"it ends at byte {length:,} without the two blocks of zeros that end a tar (cut, or still written)")


def _is_header(header: bytes) -> bool:
    """Whether the checksum of a header is right; some old programs add up signed bytes."""
    try:
        stated = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        return False
    total = sum(header) - sum(header[148:156]) + 8 * 32
    return stated == total or stated == total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _no_header(header: bytes, place: int) -> str:
    if place:
        return f"what is at byte {place:,} is no header of a member: the file is damaged or was cut"
    for begin, kind in COMPRESSED.items():
        if header.startswith(begin):
            return f"this is a {kind} file and no plain tar, so nothing can be found in it; unpack it first"
    return "this is no tar"


def _number(field: bytes) -> int:
    """An octal number, or one of GNU in base 256."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise TarError(f"the size of a member is {field!r}, which is no number") from None


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _bounded(size: int, place: int) -> int:
    if size > LONGEST_NAME:
        raise TarError(f"the header at byte {place:,} announces {size:,} bytes of names: the file is damaged")
    return size


def _pax(content: bytes, place: int) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE` of a pax header."""
    found: dict[str, str] = {}
    while content:
        try:
            length = int(content.split(b" ", 1)[0])
            record, content = content[:length], content[length:]
            key, value = record.split(b" ", 1)[1].removesuffix(b"\n").split(b"=", 1)
            if length < 5:
                raise ValueError
        except (ValueError, IndexError):
            raise TarError(f"the pax header at byte {place:,} cannot be read: the file is damaged") from None
        found[key.decode()] = value.decode("utf-8", "surrogateescape")
    return found
