"""The tab that browses an audit."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.tiny_app import write_audit

pytest.importorskip("gradio", reason="the app needs gradio: pip install 'clip-itm[app]'")

from clip_itm.retrieval.app import audit_page
from clip_itm.retrieval.app_audit import AuditTable


@pytest.fixture
def table(tmp_path) -> AuditTable:
    return AuditTable.load(write_audit(tmp_path / "audit.parquet"))


@pytest.mark.parametrize("words", ["", "red", "RED cat", "(mug)", "%", "<i>", ".", "dog"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.5), (0.5, 0.2), (1, 1)])
def test_filter_is_that_of_a_loop_over_the_rows(table, words, low, high):
    expected = [
        number
        for number, row in enumerate(table.table.to_pylist())
        if all(word.lower() in row["caption"].lower() for word in words.split())
        and low <= row["clean_probability"] <= high
    ]
    assert table.matching(words, low, high).tolist() == expected


def test_pages_have_24_pairs_and_end_at_the_first_and_the_last(table):
    for step, page, number, shown in ((0, 1, 1, 24), (1, 1, 2, 24), (1, 2, 3, 12), (1, 3, 3, 12), (-1, 1, 1, 24)):
        found, cards = audit_page(table, step, page, "", 0, 1)
        assert (found, cards.count("<li>")) == (number, shown)
        assert f"60 of 60 pairs, most suspicious first; page {number} of 3" in cards
    assert audit_page(table, 0, 99, "", 0, 1)[0] == 3
    assert audit_page(table, 0, None, "", 0, 1)[0] == 1
    assert ">photo image 0<br>caption caption 0<" in audit_page(table, 0, 1, "", 0, 1)[1]
    assert ">photo image 24<" in audit_page(table, 0, 2, "", 0, 1)[1]
    assert '"figures">25 · ' in audit_page(table, 0, 2, "", 0, 1)[1]


def test_a_card_has_photo_caption_probability_and_truth(table):
    cards = audit_page(table, 0, 1, "", 0, 1)[1].split("<li>")[1:]
    assert "data:image/jpeg" in cards[0]
    assert all("no photo" in card for card in (cards[1], cards[2]))  # it is gone; the data set holds it itself
    assert "✗ wrong" in cards[0]
    assert "✓ right" in cards[1]
    assert "probability &lt; 0.001" in cards[0]
    assert "probability 0.017" in cards[1]
    assert "&lt;i&gt;cat&lt;/i&gt; 4" in cards[4]
    assert "<i>" not in "".join(cards)


def test_a_truth_that_nobody_knows_is_not_told(tmp_path):
    table = AuditTable.load(write_audit(tmp_path / "audit.parquet", known=False))
    cards = audit_page(table, 0, 1, "", 0, 1)[1]
    assert "wrong" not in cards
    assert "right" not in cards


def test_no_match_says_so(table):
    assert "None of 60 pairs" in audit_page(table, 1, 2, "dog", 0, 1)[1]


def test_the_folder_of_the_run_does_as_well(tmp_path):
    (tmp_path / "run" / "audit").mkdir(parents=True)
    write_audit(tmp_path / "run" / "audit" / "audit.parquet")
    assert len(AuditTable.load(tmp_path / "run")) == 60


def test_other_files_are_refused(tmp_path):
    (tmp_path / "words.parquet").write_text("words")
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "other.parquet")
    for name, why in (
        ("none.parquet", "no such audit"),
        ("words.parquet", "not a Parquet"),
        ("other.parquet", "image_id"),
    ):
        with pytest.raises(ValueError, match=why):
            AuditTable.load(tmp_path / name)
