"""The review without a browser: orders, groups, progress, and what HTTP lets in and out."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("gradio", reason="the app needs gradio: pip install 'clip-itm[app]'")

from datasets import Dataset, DatasetDict, Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from clip_itm.data.configuration import HubData
from clip_itm.data.mark_file import MarkFile
from clip_itm.data.marks import Mark, append_marks, pair_hash, read_marks
from clip_itm.pages import render
from clip_itm.retrieval.app_audit import AuditTable
from clip_itm.retrieval.app_guard import LARGEST_REQUEST, Guard, Names
from clip_itm.retrieval.app_uploads import Uploads
from clip_itm.retrieval.review import List, NoSuchPairError, Review
from clip_itm.retrieval.review_routes import MOST_MARKS, review_routes
from support.hostile import HOSTILE, assert_no_markup
from support.tiny_app import write_audit, write_review

TIME = "2026-11-30T18:55:00.001+00:00"


@pytest.fixture
def review(tmp_path) -> Review:
    write_review(tmp_path / "audit.parquet")
    return Review(AuditTable.load(tmp_path), MarkFile(tmp_path / "marks.jsonl"))


@pytest.fixture
def client(review, tmp_path) -> TestClient:
    app = Guard(Starlette(routes=review_routes(review)), Names.of("127.0.0.1"), Uploads(tmp_path / "none"))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def place_of(client) -> str:
    page = client.get("/review").text
    return page.partition('data-place="')[2].partition('"')[0]


def send(client, marks, **query):
    query = {"place": place_of(client), **query}
    return client.post("/review/marks", params=query, json=marks)


def mark(pair: str, kind: str = "wrong", **more) -> dict:
    return {"pair": pair, "mark": kind, "author": "ana", "time": TIME, **more}


def shown(review, *places, order="worst", group="", **more) -> list[str]:
    return [pair["pair"] for pair in review.pairs(List(order, group), *places, **more)]


def test_worst_first_leaves_out_what_is_marked(review):
    hashes = review.hashes.to_pylist()
    assert shown(review, 0, 5) == hashes[:5]
    review.add([Mark(hashes[1], "wrong"), Mark(hashes[3], "skipped")])
    assert shown(review, 0, 3, unmarked=True) == [hashes[0], hashes[2], hashes[4]]
    assert [pair["place"] for pair in review.pairs(List(), 1, 2, unmarked=True)] == [2, 4]
    assert shown(review, 3, 2, backwards=True) == [hashes[3], hashes[2]]
    assert shown(review, 3, 2, backwards=True, unmarked=True) == [hashes[2], hashes[0]]
    assert shown(review, 60, 5) == []
    assert len(shown(review, 0, 10**9)) == 20


def test_progress_and_what_is_left(review):
    hashes, p = review.hashes.to_pylist(), np.arange(60) / 59
    before = review.state(List())
    assert before["suspects"] == {"pairs": 30, "marked": 0}
    assert before["left"] == {"pairs": 60, "wrong": pytest.approx((1 - p).sum())}
    review.add([Mark(hashes[0], "wrong"), Mark(hashes[40], "fixed", text="a"), Mark(hashes[2], "skipped")])
    state = review.state(List("worst", "interface"))
    assert state["all"] == {"pairs": 60, "marked": 3}
    assert state["suspects"] == {"pairs": 30, "marked": 2}
    assert state["list"] == {"pairs": 15, "marked": 0}
    assert state["marks"] == {"wrong": 1, "fixed": 1, "skipped": 1}
    decided = np.isin(np.arange(60), [0, 40])
    assert state["left"] == {"pairs": 58, "wrong": pytest.approx((1 - p)[~decided].sum())}


def test_the_most_informative_are_nearest_to_the_line(review):
    found = [pair["probability"] for pair in review.pairs(List("informative"), 0, 6)]
    assert sorted(np.abs(np.array(found) - 0.5)) == pytest.approx(np.abs(np.array([29, 30, 28, 31, 27, 32]) / 59 - 0.5))


def test_a_sample_is_the_same_after_a_restart_and_counts_its_own_marks_only(review, tmp_path):
    """What was marked because it was suspicious is shown once more: left out it would make the rest look too good."""
    sample = shown(review, 0, 20, order="sample")
    again = Review(AuditTable.load(tmp_path), MarkFile(tmp_path / "marks.jsonl"))
    assert shown(again, 0, 20, order="sample") == sample != shown(review, 0, 20)
    review.add([Mark(sample[0], "wrong"), Mark(sample[1], "right", sampled=True)])
    assert shown(review, 0, 2, order="sample", unmarked=True) == [sample[0], sample[2]]
    assert review.state(List("sample"))["list"] == {"pairs": 60, "marked": 1}
    written = read_marks(tmp_path / "marks.jsonl")
    assert [found.sampled for found in written] == [False, True]
    assert written[0].weight is None
    assert written[1].weight == dict(zip(sample, again._weights.values(), strict=False))[sample[1]] > 0


def test_the_sample_stays_what_it_is_when_marks_are_heeded(review, tmp_path):
    """They change the probabilities and the order of the table, and not what was judged."""
    table = pq.read_table(tmp_path / "audit.parquet")
    judged = {"judged_probability": table["clean_probability"], "judged_rank": table["rank"]}
    for name, column in judged.items():
        table = table.append_column(name, column)
    changed = table.set_column(table.column_names.index("clean_probability"), "clean_probability", pa.array([0.5] * 60))
    changed = changed.take(np.random.default_rng(0).permutation(60))
    pq.write_table(changed, tmp_path / "audit.parquet")
    again = Review(AuditTable.load(tmp_path), MarkFile(tmp_path / "marks.jsonl"))
    assert shown(again, 0, 20, order="sample") == shown(review, 0, 20, order="sample")
    assert shown(again, 0, 20) != shown(review, 0, 20)


def test_groups_say_how_many_and_their_members(review):
    captions = review.table["caption"].to_pylist()
    members = [k for k, caption in enumerate(captions) if caption == "click to enlarge"]
    assert review.groups() == [{"group": "interface", "text": "", "pairs": 15, "marked": 0}]
    review.add([Mark(review.hashes[members[0]].as_py(), "right")])
    expected = [review.hashes[k].as_py() for k in members[1:]]
    assert review.members(List("worst", "interface")) == {"pairs": expected, "more": 0}
    assert shown(review, 0, 3, group="interface", unmarked=True) == expected[:3]
    assert review.members(List("worst", "other")) == {"pairs": [], "more": 0}


def test_a_caption_that_many_of_a_group_share_is_a_group_within_it(tmp_path):
    table = pq.read_table(write_review(tmp_path / "audit.parquet"))
    captions = ["one text" if k < 12 else f"text {k}" for k in range(60)]
    table = table.set_column(table.column_names.index("caption"), "caption", pa.array(captions))
    groups = pa.array([["same"]] * 40 + [["same", "more"]] * 10 + [None] * 10, pa.list_(pa.string()))
    table = table.set_column(table.column_names.index("groups"), "groups", groups)
    pq.write_table(table, tmp_path / "audit.parquet")
    review = Review(AuditTable.load(tmp_path), MarkFile(tmp_path / "marks.jsonl"))
    counts = [(group["group"], group["text"], group["pairs"]) for group in review.groups()]
    assert counts == [("same", "", 50), ("same", "one text", 12), ("more", "", 10)]
    assert len(review.members(List("worst", "same", "one text"))["pairs"]) == 12


def test_an_audit_of_an_earlier_version_has_pairs_and_no_groups(tmp_path):
    write_audit(tmp_path / "audit.parquet")
    review = Review(AuditTable.load(tmp_path), MarkFile(tmp_path / "marks.jsonl"))
    assert review.hashes[1].as_py() == pair_hash("image 1", "two cats 1")
    assert review.groups() == []
    assert review.pairs(List(), 0, 1)[0]["suggestions"] == []


def test_a_mark_is_in_the_file_before_it_is_answered(client, review, tmp_path):
    pair = review.hashes[0].as_py()
    answer = send(client, [mark(pair, "fixed", text=" a mug ")], pair=pair)
    assert answer.status_code == 200
    assert answer.json()["said"][pair]["mark"] == "fixed"
    assert answer.json()["all"] == {"pairs": 60, "marked": 1}
    (written,) = read_marks(tmp_path / "marks.jsonl")
    row = review.table.slice(0, 1).to_pylist()[0]
    assert written == Mark(pair, "fixed", row["image_id"], row["caption"], "a mug", "ana", TIME)
    assert send(client, [mark(pair, "fixed", text=" a mug ")]).status_code == 200
    assert len(read_marks(tmp_path / "marks.jsonl")) == 1
    append_marks(tmp_path / "marks.jsonl", [Mark(pair, "right", author="ben")])  # another program
    assert client.get("/review/state", params={"pair": pair}).json()["said"][pair]["author"] == "ben"


def test_what_a_browser_says_of_a_pair_beside_its_mark_is_not_believed(client, review, tmp_path):
    pair = review.hashes[7].as_py()
    foreign = {"image_id": "/etc/passwd", "caption": "other", "weight": 1e9, "rank": 3, "sampled": True}
    assert send(client, [mark(pair, text="not fixed", **foreign)]).status_code == 200
    (written,) = read_marks(tmp_path / "marks.jsonl")
    assert (written.image_id, written.caption, written.text) == ("image 7", review.table["caption"][7].as_py(), None)
    assert written.weight == review._weights[pair]


def test_unknown_pairs_are_refused_and_named_and_nothing_is_written(client, review, tmp_path):
    pair = review.hashes[0].as_py()
    answer = send(client, [mark(pair), mark("0" * 32), mark("../../etc/passwd")])
    assert answer.status_code == 404
    assert answer.json()["pairs"] == ["0" * 32, "../../etc/passwd"]
    assert not (tmp_path / "marks.jsonl").exists()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"{}", "expected a list of marks"),
        (b'"right"', "expected a list of marks"),
        (b"[3]", "expected a list of marks"),
        (b"[{}]", "it has no 'pair'"),
        (b'[{"pair": 3, "mark": "right"}]', "pair is 3"),
        (b'[{"pair": "a", "mark": "good"}]', "mark is 'good'"),
        (b'[{"pair": "a", "mark": ["right"]}]', "mark is"),
        (b'[{"pair": "a", "mark": "fixed"}]', "has no text"),
        (b'[{"pair": "a", "mark": "right", "author": {}}]', "author is {}"),
        (b'[{"pair": "a", "mark": "right", "time": "yesterday"}]', "time is 'yesterday'"),
        (b'[{"pair": "a", "mark": "right", "time": "2026-11-30T18:55:00"}]', "with a time zone"),
        (b'[{"pair": "a", "mark": "fixed", "text": "\\ud800"}]', "text is no text"),
        (json.dumps([mark("a", "fixed", text="x" * 10_001)]).encode(), "10,001 characters"),
        (json.dumps([mark("a", author="x" * 101)]).encode(), "101 characters"),
        (json.dumps([{"pair": "a", "mark": "right"}] * (MOST_MARKS + 1)).encode(), "1,001 marks are too many"),
    ],
)
def test_what_is_no_list_of_marks_is_refused(client, tmp_path, body, why):
    headers = {"Content-Type": "application/json"}
    answer = client.post("/review/marks", params={"place": place_of(client)}, content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert why in answer.json()["why"]
    assert not (tmp_path / "marks.jsonl").exists()


def test_large_foreign_and_unasked_requests_are_refused(client, review, tmp_path):
    body = [mark(review.hashes[0].as_py())]
    place = place_of(client)

    def status(url="/review/marks", **more):
        return client.post(url, **{"params": {"place": place}, "json": body, **more}).status_code

    assert status(content=b"[" + b" " * LARGEST_REQUEST, json=None) == 413
    assert status(content=iter([b"[", b"]"]), json=None) == 411
    assert status(headers={"Origin": "http://evil.example"}) == 403
    assert status(headers={"Origin": "null"}) == 403
    assert status(headers={"Host": "evil.example"}) == 400
    assert status(data={"pair": "a"}, json=None) == 415  # a form of another page needs no leave
    assert status(content=b"[]", json=None, headers={"Content-Type": "text/plain"}) == 415
    assert status(params={}) == 409
    assert status(params={"place": "other"}) == 409
    assert client.get("/review/marks").status_code == 405
    assert client.post("/review").status_code == 405
    for path in ("/review", "/review/pairs", "/review/photos/a/small"):
        assert client.get(path, headers={"Origin": "http://evil.example"}).status_code == 403
    assert not (tmp_path / "marks.jsonl").exists()
    assert status() == 200


def test_photos_are_those_of_the_pairs_and_no_others(client, review, tmp_path):
    hashes = review.hashes.to_pylist()
    for size, side in (("small", 640), ("large", 1600)):
        answer = client.get(f"/review/photos/{hashes[0]}/{size}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        assert answer.content[:2] == b"\xff\xd8", side
    wrong = [hashes[-2], hashes[2], "0" * 32, "..%2f..%2fetc%2fpasswd", "%00", "red.jpg", str(tmp_path / "red.jpg")]
    for name in wrong:  # the file is gone; the data set holds it
        answer = client.get(f"/review/photos/{name}/small")
        assert answer.status_code == 404
        assert str(tmp_path) not in answer.text
    assert client.get(f"/review/photos/{hashes[0]}/huge").status_code == 404
    assert client.get(f"/review/photos/{hashes[0]}").status_code == 404


@pytest.mark.parametrize("is_there", [True, False])
def test_photos_that_the_data_set_holds_are_read_from_it(is_there, tmp_path):
    path, folder = write_review(tmp_path / "audit.parquet"), tmp_path / "products"
    images = [{"path": None, "bytes": (tmp_path / "red.jpg").read_bytes()}, {"path": None, "bytes": b"words"}]
    held = Dataset.from_dict({"image": images, "caption": ["a mug", "a cup"], "id": ["image 2", "image 5"]})
    DatasetDict(train=held.cast_column("image", Image())).save_to_disk(folder)
    section = HubData(path=str(folder), image_id_column="id", val_fraction=0, test_fraction=0)
    made_from = {"data": section.model_dump_json(), "split": "train"}
    pq.write_table(pq.read_table(path).replace_schema_metadata(made_from), path)
    if not is_there:
        shutil.rmtree(folder)
    review = Review(AuditTable.load(path), MarkFile(tmp_path / "marks.jsonl"))
    hashes = review.hashes.to_pylist()
    assert [pair["has_photo"] for pair in review.pairs(List("worst"), 0, 3)] == [True, True, True]
    if is_there:
        assert review.photo(hashes[2], 64)[:2] == b"\xff\xd8"
    else:
        with pytest.warns(UserWarning, match="cannot be shown: "):
            assert review.audit.held.jpeg("image 2", 64) is None
        assert review.audit.held.jpeg("image 2", 64) is None  # without reading, and warning, again
    for row in (5, 8):  # damaged; not in the data any more
        with pytest.raises(NoSuchPairError, match="cannot be read"):
            review.photo(hashes[row], 64)


def test_a_photo_that_is_damaged_is_told_without_its_path(client, review, tmp_path):
    (tmp_path / "red.jpg").write_bytes(b"words")
    answer = client.get(f"/review/photos/{review.hashes[0].as_py()}/small")
    assert (answer.status_code, answer.json()["why"]) == (404, "the photo cannot be read")


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"order": "best"}, "order is 'best'"),
        ({"start": "-1"}, "start is '-1'"),
        ({"start": "1e3"}, "start is '1e3'"),
        ({"start": "9" * 40}, "expected a whole number"),
        ({"count": "²"}, "count is"),
    ],
)
def test_queries_that_make_no_sense_are_refused(client, query, why):
    answer = client.get("/review/pairs", params={"start": "0", "count": "1", **query})
    assert answer.status_code == 400
    assert why in answer.json()["why"]


def test_a_file_of_marks_that_was_spoilt_is_told_without_its_path_and_nothing_is_added(client, review, tmp_path):
    (tmp_path / "marks.jsonl").write_text("words\n")
    for answer in (client.get("/review/state"), send(client, [mark(review.hashes[0].as_py())])):
        assert answer.status_code == 400
        assert answer.json()["why"].startswith("marks.jsonl, line 1: expected a mark")
    assert (tmp_path / "marks.jsonl").read_text() == "words\n"


def test_a_disk_that_is_full_is_told(client, review, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clip_itm.data.mark_file.append_marks", full)
    answer = send(client, [mark(review.hashes[0].as_py())])
    assert (answer.status_code, answer.json()["why"]) == (507, "marks.jsonl: No space left on device")


def test_the_page_has_no_text_of_others_in_it_and_asks_nobody_else(client, review, tmp_path):
    answer = client.get("/review")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert_no_markup(answer.text)
    assert "connect-src 'self'" in answer.text
    assert str(tmp_path) not in answer.text
    assert not [caption for caption in review.table["caption"].to_pylist() if caption in answer.text]
    names = {"title": "", "pairs": 1, "orders": {}, "place": "", "file": HOSTILE, "user": HOSTILE}
    assert_no_markup(render("review_page.html", **names))


def test_text_of_others_arrives_as_it_is(client, tmp_path):
    """The script of the page shows it as text (tests/cli/app/test_review_browser.py)."""
    found = client.get("/review/pairs", params={"start": "4", "count": "1"})
    assert found.headers["content-type"] == "application/json"
    assert found.json()["pairs"][0]["caption"] == "<i>cat</i> 4"
