"""Which files of a folder are photos, and what is told about those that cannot be read."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_itm.data import image_names
from clip_itm.data.class_folder import read_class_folder
from clip_itm.data.image_names import find_images, is_image_name, is_utf8, missing_decoder, printable
from clip_itm.data.images import read_image

LITTER = (
    "._dog.jpg",
    ".DS_Store",
    "Thumbs.db",
    ".hidden.png",
    ".ipynb_checkpoints/dog-checkpoint.jpg",
    "__MACOSX/dog.jpg",
    "__MACOSX/._dog.jpg",
    "@eaDir/dog.jpg/SYNOPHOTO_THUMB_M.jpg",
    "notes.txt",
    "dog.jpg.part",
)


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(folder).files]


def test_photos_of_all_formats_in_folders_below_and_no_litter(tmp_path):
    photos = ["a.jpg", "B.JPG", "b.jpeg", "c.jpe", "d.jfif", "e.png", "f.webp", "g.bmp", "h.gif", "i.tif", "j.tiff"]
    put(tmp_path, *photos, "below/k.avif", "below/l.heic", "below/further/m.HEIF", *LITTER)
    expected = sorted([*photos, "below/k.avif", "below/l.heic", "below/further/m.HEIF"], key=Path)
    assert found(tmp_path) == expected
    assert find_images(tmp_path).skipped == []


def test_a_folder_that_is_hidden_itself_is_searched_when_it_is_asked_for(tmp_path):
    put(tmp_path, ".cache/a.jpg", ".cache/.b.jpg")
    assert found(tmp_path / ".cache") == ["a.jpg"]


def test_linked_folders_are_read_once_and_circles_end(tmp_path):
    put(tmp_path, "set/own/a.jpg", "elsewhere/b.jpg")
    folder = tmp_path / "set"
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "a_link_before_own").symlink_to(folder / "own")
    (folder / "own" / "up").symlink_to(folder)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    assert found(folder) == ["again/b.jpg", "own/a.jpg"]
    (folder / "photo.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    assert found(folder) == ["again/b.jpg", "own/a.jpg", "photo.jpg"]


def test_what_looks_like_a_photo_and_is_none_is_named(tmp_path):
    put(tmp_path, "a.jpg", "folder.jpg/b.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert found(tmp_path) == ["a.jpg", "folder.jpg/b.jpg"]
    assert find_images(tmp_path).skipped == [
        f"{tmp_path}/gone.jpg: the link leads nowhere",
        f"{tmp_path}/pipe.jpg: this is no regular file",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_without_permission_is_named(tmp_path):
    put(tmp_path, "a.jpg", "locked/b.jpg")
    (tmp_path / "locked").chmod(0)
    try:
        assert find_images(tmp_path).skipped == [f"{tmp_path}/locked: this folder cannot be read (Permission denied)"]
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_formats_without_their_decoder_name_the_package(tmp_path, monkeypatch):
    put(tmp_path, "a.heic", "b.HEIF", "c.avif", "d.jpg")
    monkeypatch.setattr(image_names, "find_spec", lambda name: None)
    monkeypatch.setattr(image_names.features, "check", lambda name: False)
    photos = find_images(tmp_path)
    assert [path.name for path in photos.files] == ["d.jpg"]
    assert [sentence.split(": ")[1] for sentence in photos.skipped] == [
        "HEIC photos need the package pillow-heif (pip install pillow-heif)",
        "HEIF photos need the package pillow-heif (pip install pillow-heif)",
        "AVIF photos need Pillow 11.3 or newer (pip install --upgrade pillow)",
    ]
    with pytest.raises(ValueError, match=r"a\.heic: this is not a photo that Pillow can read; HEIC photos need the pa"):
        read_image({"path": str(tmp_path / "a.heic"), "bytes": b"no photo"})


@pytest.mark.parametrize("suffix", [".heic", ".avif", ".jfif", ".jpe"])
def test_rarer_formats_are_read(tmp_path, suffix):
    assert missing_decoder(f"a{suffix}") is None
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    photo = read_image({"path": str(path), "bytes": None})
    assert photo.size == (40, 30)
    assert abs(photo.getpixel((20, 15))[0] - 200) < 8


def test_names_that_are_not_utf8_are_found_and_can_be_shown(tmp_path):
    put(tmp_path, "a.jpg")
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg"), "wb"):
        pass
    names = [path.name for path in find_images(tmp_path).files]
    assert [(is_utf8(name), printable(name)) for name in names] == [(True, "a.jpg"), (False, r"caf\xe9.jpg")]


@given(st.text(st.characters(), max_size=20))
def test_every_name_can_be_shown_and_stored(name):
    printable(name).encode()
    assert is_image_name(f"{name}.JPG")
    if is_utf8(name):
        assert printable(name) == name.replace(r"\udc", r"\x")


def test_class_folders_hold_photos_only(tmp_path, caplog):
    put(tmp_path, "cat/a.jpg", "cat/b.jfif", "dog/c.avif", *(f"cat/{name}" for name in LITTER))
    put(tmp_path, "__MACOSX/cat/._a.jpg", ".git/x.png")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    classes = read_class_folder(tmp_path)
    assert classes.names == ["cat", "dog"]
    assert [Path(row["image"]["path"]).name for row in classes.rows] == ["a.jpg", "b.jfif", "c.avif"]
    assert "pipe.png: this is no regular file" in caplog.text


def test_a_class_whose_photos_cannot_be_read_says_why(tmp_path, monkeypatch):
    put(tmp_path, "cat/a.jpg", "dog/b.heic")
    monkeypatch.setattr(image_names, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"dog: this class has no photos .*left out: .*b\.heic: HEIC photos need"):
        read_class_folder(tmp_path)
