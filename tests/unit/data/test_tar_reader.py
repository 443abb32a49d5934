"""The members of a tar, beside what `tarfile` finds in it."""

import io
import tarfile
from contextlib import suppress

import pytest

from clip_itm.data.formats.tar_reader import Entry, TarError, entries

NAMES = ["a.jpg", "b c.txt", "ü.png", "d" * 99 + "/" + "e" * 40 + ".jpg", "f" * 120 + ".webp", "日" * 60 + "/x.json"]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def archive(form: int, names=NAMES, **about) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 500 * number  # 0, less than a block, a block and more
            for key, value in about.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(bytes([number]) * member.size))
    return file.getvalue()


def found_in(content: bytes) -> list[Entry]:
    return list(entries(io.BytesIO(content), len(content)))


def by_tarfile(content: bytes) -> list[Entry]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [Entry(one.name, one.offset_data, one.size) for one in tar if one.isreg()]


@pytest.mark.parametrize("form", FORMATS)
def test_names_places_and_sizes_are_those_of_tarfile(form):
    names = NAMES[:4] if form == "ustar" else NAMES  # it has no room for the others
    content = archive(FORMATS[form], names)
    assert found_in(content) == by_tarfile(content)
    assert [entry.name for entry in found_in(content)] == names


def test_what_is_no_file_is_passed_over():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (("folder", b"5"), ("link", b"2"), ("hard", b"1"), ("pipe", b"6")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "x.jpg"
            tar.addfile(member)
        member = tarfile.TarInfo("x.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert [entry.name for entry in found_in(file.getvalue())] == ["x.jpg"]


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_a_size_in_base_256():
    content = archive(tarfile.GNU_FORMAT, ["a.jpg", "b.jpg"])
    header = bytearray(content[512:1024])
    header[124:136] = b"\x80" + (500).to_bytes(11, "big")
    content = content[:512] + with_checksum(header) + content[1024:]
    assert found_in(content) == by_tarfile(content) == [Entry("a.jpg", 512, 0), Entry("b.jpg", 1024, 500)]


def test_the_size_of_a_pax_header_counts():
    content = archive(tarfile.PAX_FORMAT, ["a.jpg", "b.jpg"], pax_headers={"size": "500"})
    second = content.index(b"b.jpg")
    header = bytearray(content[second : second + 512])
    header[124:136] = b"00000000000\0"
    content = content[:1536].replace(b"size=500", b"size=000") + content[1536:second] + with_checksum(header)
    content += bytes([1]) * 500 + bytes(12 + 1024)
    assert [entry.size for entry in found_in(content)] == [0, 500] == [entry.size for entry in by_tarfile(content)]


@pytest.mark.parametrize("form", FORMATS)
def test_a_tar_that_was_cut_is_told_wherever_that_was(form):
    content = archive(FORMATS[form], NAMES[:4])
    end = len(content.rstrip(b"\0"))
    whole = found_in(content)
    for length in range(1, (end + 511) // 512 * 512, 97):
        found = []
        with pytest.raises(TarError):
            found.extend(entries(io.BytesIO(content[:length]), length))
        assert found == whole[: len(found)]
    for length in range(512, end, 512):  # between two members, too
        with pytest.raises(TarError):
            found_in(content[:length])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b"no tar at all" * 100, "this is no tar"),
        (b"\x1f\x8b" + bytes(600), "gzip file and no plain tar"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd file and no plain tar"),
    ],
)
def test_other_files_are_told(content, told):
    with pytest.raises(TarError, match=told):
        found_in(content)


def test_every_damaged_byte_of_a_header_is_noticed_or_harmless():
    content = archive(tarfile.GNU_FORMAT, NAMES[:4])
    whole = found_in(content)
    for place in range(0, 512, 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        with suppress(TarError):
            assert found_in(bytes(damaged)) == whole, place  # only within the checksum's own unused bytes


def test_an_empty_tar_has_no_members():
    assert found_in(archive(tarfile.PAX_FORMAT, [])) == []
