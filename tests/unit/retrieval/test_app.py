"""The functions behind the page of `clip-itm app`, without a server."""

import re
import socket
import sys
from pathlib import Path

import pytest

from clip_itm.cli import main
from support.tiny_app import IMAGES, indexed_pipeline, tiny_pipeline, write_bomb
from support.tiny_backbones import CAPTIONS, PHOTOS

gr = pytest.importorskip("gradio", reason="the app needs gradio: pip install 'clip-itm[app]'")

from clip_itm.retrieval import app as app_module  # noqa: E402
from clip_itm.retrieval.app import (  # noqa: E402
    build_app,
    compare_all,
    find_by_image,
    find_by_text,
    search_target,
    serve,
    told_on_page,
)
from clip_itm.retrieval.app_html import thumbnail  # noqa: E402
from clip_itm.retrieval.items import Item  # noqa: E402


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return indexed_pipeline(tmp_path_factory.mktemp("app"))


@pytest.fixture
def uploads(tmp_path, monkeypatch) -> Path:
    """The folder where gradio keeps uploads, with the four photos in it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    for number, photo in enumerate(PHOTOS):
        photo.save(tmp_path / "uploads" / f"{number}.png")
    return tmp_path / "uploads"


def similarity(pipe, captions):
    """[photos, captions] by the model alone."""
    photos = pipe.embed([{"image": photo} for photo in PHOTOS])
    return photos @ pipe.model.encode_texts(**pipe.processor(text=captions)).detach().T


def test_photos_for_a_sentence_in_the_order_of_their_similarity(pipe):
    scores = similarity(pipe, ["two cats"])[:, 0]
    page = find_by_text(pipe, "image", " two cats\n", 3)
    order = scores.argsort(descending=True)[:3].tolist()
    shown = re.findall(r'<p class="figures">(\d+) · <span>(\S+)</span></p>\n<p class="ids">(.*?)</p>', page)
    names = [IMAGES[number].replace("<b>", "&lt;b&gt;") for number in order]
    assert shown == [
        (str(k + 1), f"{scores[n]:.3f}", name) for k, (n, name) in enumerate(zip(order, names, strict=True))
    ]
    assert page.count("data:image/jpeg;base64,") == 3
    assert "Photos for “two cats”" in page


def test_captions_for_a_photo_in_the_order_of_their_similarity(pipe, uploads):
    scores = similarity(pipe, CAPTIONS)[1]
    page = find_by_image(pipe, "text", str(uploads / "1.png"), 4)
    rows = re.findall(r'<tr><td class="number">(\d+)</td><td.*?>(.*?)</td><td title="(\d)">(.*?)</td>', page)
    order = scores.argsort(descending=True).tolist()
    assert rows == [(str(k + 1), f"{scores[n]:.3f}", str(n), CAPTIONS[n]) for k, n in enumerate(order)]
    assert "Captions for 1.png" in page


def test_more_results_than_the_gallery_has_are_all(pipe):
    assert find_by_text(pipe, "image", "a dog", 50).count("<li>") == 4


@pytest.mark.parametrize("typed", ["{folder}/photos/0.png", "http://localhost:1/0.png", "0.png", "<script>.gif"])
def test_what_is_typed_is_text_and_never_a_path_or_an_address(pipe, uploads, typed, monkeypatch):
    def refuse(value):
        raise AssertionError(f"{value} was read")

    typed = typed.format(folder=Path(next(pipe.galleries["image"].items()).path).parents[1])
    read = app_module.read_upload
    monkeypatch.setattr("clip_itm.data.inputs.load_image", refuse)
    page = find_by_text(pipe, "image", typed, 2)
    assert page.count("<li>") == 2
    assert "<script>" not in page
    monkeypatch.undo()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    photos = [(str(uploads / "0.png"), None)]
    embedded = pipe.embed([read(photos[0][0])]) @ pipe.embed([{"text": typed}]).T
    assert f">{embedded.item():.3f} " in compare_all(pipe, photos, typed)


@pytest.mark.parametrize("outside", ["/etc/hostname", "photos/0.png", "uploads/../photos/0.png", "uploads/none.png"])
def test_a_request_cannot_name_a_file_that_was_not_uploaded(pipe, uploads, outside):
    (uploads.parent / "photos").mkdir()
    PHOTOS[0].save(uploads.parent / "photos" / "0.png")
    path = str(uploads.parent / outside)
    for ask in (
        lambda: find_by_image(pipe, "text", path, 3),
        lambda: compare_all(pipe, [(path, None)], "a dog"),
    ):
        with pytest.raises(ValueError, match="was not uploaded"):
            ask()


def test_a_link_among_the_uploads_leads_nowhere(pipe, uploads):
    PHOTOS[0].save(uploads.parent / "secret.png")
    (uploads / "link.png").symlink_to(uploads.parent / "secret.png")
    with pytest.raises(ValueError, match="was not uploaded"):
        find_by_image(pipe, "text", str(uploads / "link.png"), 3)


def test_bad_uploads_become_messages(pipe, uploads):
    find = told_on_page(lambda path: find_by_image(pipe, "text", path, 3))
    (uploads / "torn.png").write_bytes((uploads / "0.png").read_bytes()[:400])
    (uploads / "words.png").write_text("no photo")
    (uploads / "empty.png").touch()
    for name, why in (("torn", "cannot be decoded"), ("words", "not a photo"), ("empty", "empty"), ("bomb", "10000 x")):
        if name == "bomb":
            with pytest.warns(match="decompression bomb"):
                page = find(str(write_bomb(uploads / "bomb.png")))
        else:
            page = find(str(uploads / f"{name}.png"))
        assert f'role="status">{name}.png: ' in page
        assert why in page
        assert str(uploads) not in page
    assert "Drop or paste a photo" in find(None)
    assert "Type a sentence" in told_on_page(lambda text: find_by_text(pipe, "image", text, 3))("  ")


def test_a_photo_that_is_gone_leaves_a_place_with_its_id(tmp_path, pipe):
    PHOTOS[0].save(tmp_path / "here.png")
    gone = Item("gone", path=str(tmp_path / "gone.png"))
    assert thumbnail(gone) is None
    assert thumbnail(Item("here", path=str(tmp_path / "here.png"))).startswith(b"\xff\xd8")
    assert thumbnail(Item("kept", thumbnail=thumbnail(Item("here", path=str(tmp_path / "here.png")))))
    assert thumbnail(Item("elsewhere", path="http://localhost:1/a.png")) is None
    other = tiny_pipeline(tmp_path)
    other.index({"gone": tmp_path / "here.png"})
    (tmp_path / "here.png").rename(tmp_path / "moved.png")
    thumbnail.cache_clear()
    page = find_by_text(other, "image", "a dog", 1)
    assert '<div class="gone">no photo</div>' in page
    assert '<p class="ids">gone</p>' in page


def test_heat_map_has_the_similarities_of_the_head_and_marks_the_best(pipe, uploads):
    captions = [*CAPTIONS, "a <b>dog</b>"]
    page = compare_all(pipe, [(str(uploads / f"{k}.png"), None) for k in range(4)], "\n\n".join(captions))
    scores = similarity(pipe, captions)
    rows = re.findall(r'(?s)<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    assert [caption for caption, _ in rows] == [*CAPTIONS, "a &lt;b&gt;dog&lt;/b&gt;"]
    for number, (_, cells) in enumerate(rows):
        for photo, cell in enumerate(re.findall("<td.*?</td>", cells)):
            assert f">{scores[photo, number]:.3f}" in cell
            assert ("◆" in cell) == (scores[:, number].argmax() == photo)
            assert ("▲" in cell) == (scores[photo].argmax() == number)
    heat = [float(value) for value in re.findall(r"--heat: (\S+?)\"", page)]
    assert (min(heat), max(heat)) == (0, 1)


def test_heat_map_marks_all_that_share_the_best(pipe, uploads):
    page = compare_all(pipe, [(str(uploads / "0.png"), None)] * 2, "a dog\na dog")
    assert page.count("◆ ") == page.count("▲ ") == 1  # the legend
    assert page.count("◆</span>") == page.count("▲</span>") == 4


@pytest.mark.parametrize(
    ("photos", "captions", "why"),
    [(9, 1, "9 photos are too many"), (1, 13, "13 captions are too many"), (0, 1, "at least one"), (1, 0, "at least")],
)
def test_heat_map_says_what_it_takes(pipe, uploads, photos, captions, why):
    with pytest.raises(ValueError, match=why):
        compare_all(pipe, [(str(uploads / "0.png"), None)] * photos, "\n".join(["a dog"] * captions))


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("indexed", "by_text", "by_image"),
    [
        (("image", "text"), "image", "text"),
        (("image",), "image", "like"),
        (("text",), "like", "text"),
        ((), None, None),
    ],
)
def test_a_query_searches_the_other_kind_else_its_own_where_the_head_can(
    pipe, indexed, by_text, by_image, plain, monkeypatch
):
    monkeypatch.setattr(pipe, "galleries", {kind: pipe.galleries[kind] for kind in indexed})
    monkeypatch.setattr(pipe.model.head.similarity, "is_dot_product", plain)
    assert search_target(pipe, "text") == (("text" if plain else None) if by_text == "like" else by_text)
    assert search_target(pipe, "image") == (("image" if plain else None) if by_image == "like" else by_image)
    app = build_app(pipe)
    found = [block.label for block in app.blocks.values() if isinstance(block, gr.Tab)]
    assert found == [
        name for name, kind in (("By text", "text"), ("By photo", "image")) if search_target(pipe, kind)
    ] + ["Heat map"]
    head = next(block.value for block in app.blocks.values() if isinstance(block, gr.HTML))
    assert ("Search by text needs an index of photos" in head) == (search_target(pipe, "text") is None)
    assert ("Search by photo needs an index of captions" in head) == (search_target(pipe, "image") is None)


def test_similar_photos_where_only_photos_are_indexed(pipe, uploads):
    page = find_by_image(pipe, "image", str(uploads / "3.png"), 2)
    assert re.search(r'1 · <span>1\.000</span></p>\n<p class="ids">3\.png<', page)


def test_nothing_of_the_page_is_sent_elsewhere(pipe):
    app = build_app(pipe)
    assert app.analytics_enabled is False
    assert not list(Path(app_module.__file__).parent.glob("*.pyi")), "gradio writes stubs for subclasses of components"


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", "--model", "runs/my"]) == 2
    assert "pip install 'clip-itm[app]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_an_error_of_the_user(pipe):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="choose another --port"):
            serve(build_app(pipe), "127.0.0.1", taken.getsockname()[1])
