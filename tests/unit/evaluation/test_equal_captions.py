"""Ranks where every image of an equal caption is right for it, against loops over the whole matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.evaluation.configuration import EvaluationSection
from clip_itm.evaluation.equal_captions import EqualCaptions, right_answers
from clip_itm.evaluation.protocol import EmbeddedSplit
from clip_itm.evaluation.protocols import evaluate_retrieval
from clip_itm.evaluation.report import markdown_table, terminal_table
from clip_itm.evaluation.result import RetrievalResult


@st.composite
def splits(draw) -> tuple[np.ndarray, np.ndarray, int]:
    """Image and text of up to 20 captions, and the number of images, of which some have none."""
    images, count = draw(st.integers(1, 8)), draw(st.integers(1, 20))
    owner = draw(st.lists(st.integers(0, images - 1), min_size=count, max_size=count))
    text = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    return np.array(owner), np.array(text), images


@given(splits(), st.integers(0, 99), st.booleans(), st.sampled_from([None, 1, 3]))
def test_ranks_are_those_of_loops(split, seed, ties, block_size):
    owner, text, num_images = split
    generator = np.random.default_rng(seed)
    draw = (lambda *shape: generator.integers(-1, 2, shape)) if ties else (lambda *shape: generator.normal(size=shape))
    images, texts = (torch.tensor(draw(n, 5), dtype=torch.float64) for n in (num_images, len(owner)))
    scores = (images @ texts.T).numpy()
    protocol = EqualCaptions(text)
    (part,) = protocol.select(EmbeddedSplit(images, texts, torch.from_numpy(owner)))
    ranks = protocol.rank(part, None, block_size, None)
    texts_of = [{text[c] for c in range(len(owner)) if owner[c] == i} for i in range(num_images)]
    assert ranks.query_image.tolist() == [i for i in range(num_images) if texts_of[i]]
    assert ranks.caption_image.tolist() == owner.tolist()
    for place, i in enumerate(ranks.query_image.tolist()):
        right = [c for c in range(len(owner)) if text[c] in texts_of[i]]
        check(ranks.image_to_text[place], ranks.image_to_text_pessimistic[place], scores[i], right)
    for c in range(len(owner)):
        right = [i for i in range(num_images) if text[c] in texts_of[i]]
        check(ranks.text_to_image[c], ranks.text_to_image_pessimistic[c], scores[:, c], right)


def check(best: int, worst: int, scores: np.ndarray, right: list[int]) -> None:
    top = max(scores[right])
    assert best == 1 + sum(score > top for score in scores)
    assert worst == 1 + sum(score >= top for place, score in enumerate(scores) if place not in right)


@given(splits())
def test_right_answers_are_symmetric_and_hold_each_once(split):
    owner, text, _ = split
    to_texts, to_images = right_answers(owner, np.unique(text, return_inverse=True)[1])
    one = {(int(to_texts.query[r]), int(c)) for r, c in zip(to_texts.row, to_texts.candidate, strict=True)}
    other = {(int(c), int(to_images.query[r])) for r, c in zip(to_images.row, to_images.candidate, strict=True)}
    assert one == other
    assert (
        len(one) == len(to_texts.row) == len(to_images.row) == int(to_texts.total.sum()) == int(to_images.total.sum())
    )
    assert {(i, c) for c, i in enumerate(owner.tolist())} <= one
    for positives in (to_texts, to_images):
        assert positives.row.tolist() == sorted(positives.row.tolist())


def test_captions_that_differ_give_the_figures_of_all():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(30, 8, generator=generator), torch.randn(90, 8, generator=generator)
    owner = torch.arange(90) // 3
    plain = evaluate_retrieval(images, texts, owner)["all"]
    found = evaluate_retrieval(images, texts, owner, caption_numbers=np.arange(90)[::-1])["all"]
    assert found.metrics == plain.metrics
    assert found.intervals == plain.intervals
    assert found.tie_gap == plain.tie_gap
    repeated = evaluate_retrieval(images, texts, owner, caption_numbers=np.arange(90) % 12)["all"]
    assert repeated.metrics["rsum"] > plain.metrics["rsum"]


def test_photos_of_one_caption_are_all_found_and_the_result_says_why(tmp_path):
    """Four mugs with one caption: alone, a perfect model is right once in four times."""
    images = torch.eye(3)[[0, 0, 0, 0, 1, 2]] + 0.01 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    texts = torch.eye(3)[[0, 0, 0, 0, 1, 2]]
    plain = evaluate_retrieval(images, texts, torch.arange(6), bootstrap=0)["all"]
    found = evaluate_retrieval(images, texts, torch.arange(6), bootstrap=0, caption_numbers=[7, 7, 7, 7, 1, 2])["all"]
    assert plain.metrics["t2i_r1"] == 50
    assert found.metrics["t2i_r1"] == found.metrics["i2t_r1"] == 100
    assert found.tie_gap["rsum"] == 0, "equal captions are no rivals of each other"
    assert found.as_dict()["protocol"] == "all, equal captions right"
    rows = [("CLIP", found.as_dict())]
    assert "all, equal captions right: 6 photos, 6 captions" in markdown_table(rows)
    assert "all, equal captions right: 6 photos, 6 captions" in str(terminal_table(rows).caption)
    assert "equal captions right |" in markdown_table([("plain", plain.as_dict()), *rows])
    found.save(tmp_path / "ranks.npz")
    assert RetrievalResult.load(tmp_path / "ranks.npz").as_dict() == found.as_dict()


@pytest.mark.parametrize("protocols", [["flickr-1k"], ["all", "coco-5k"], ["eccv"], ["coco-1k"], ["cxc"]])
def test_published_protocols_refuse_it(protocols):
    told = r"same_caption: under the protocol .* only a caption's own photo is right; use the protocol all"
    with pytest.raises(ValueError, match=told):
        EvaluationSection(protocols=protocols, same_caption=True)
    with pytest.raises(ValueError, match=told):
        evaluate_retrieval(torch.eye(3), torch.eye(3), torch.arange(3), protocols, caption_numbers=[0, 1, 2])
    assert EvaluationSection(protocols=protocols, same_caption=False)


def test_numbers_of_other_captions_are_refused():
    with pytest.raises(ValueError, match="there are 2 numbers of captions for 3 captions"):
        evaluate_retrieval(torch.eye(3), torch.eye(3), torch.arange(3), caption_numbers=[0, 1])
