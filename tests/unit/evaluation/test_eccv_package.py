"""ECCV Caption and CxC: figures equal to those of the package `eccv_caption` itself, where it is installed."""

import warnings

import numpy as np
import pytest
import torch

from clip_itm.evaluation import judgements
from clip_itm.evaluation.precision_result import PRECISIONS
from clip_itm.evaluation.protocols import evaluate_retrieval
from clip_itm.evaluation.recall import RECALLS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that ujson is not installed
        module = pytest.importorskip("eccv_caption", reason="eccv_caption is not installed (extra: eccv)")
        return module.Metrics()


def test_the_lists_are_whole():
    pytest.importorskip("eccv_caption", reason="eccv_caption is not installed (extra: eccv)")
    folder = judgements.package_data("eccv")
    photos, captions = judgements.coco_test_ids(folder)
    assert photos[:3].tolist() == [391895, 60623, 483108]
    assert (np.diff(captions, axis=1) > 0).all()  # the order of captions is that of their numbers
    assert (len(np.unique(photos)), captions.shape) == (5000, (5000, 5))
    own = judgements.read_lists(folder / "original_image_to_caption.json")
    assert all(sorted(own[photo]) == row for photo, row in zip(photos.tolist(), captions.tolist(), strict=True))


def answers(queries, candidates, number_of_query, number_of_candidate, wanted, bonus=None) -> dict:
    """The first 60 answers of the wanted queries by number; `bonus` [Q, C] of the wanted decides between equals."""
    rows = np.flatnonzero(np.isin(number_of_query, list(wanted)))
    found = []
    for start in range(0, len(rows), 1000):
        scores = queries[rows[start : start + 1000]] @ candidates.T
        found.append(torch.topk(scores if bonus is None else scores + bonus[start : start + 1000], 60).indices)
    found = number_of_candidate[torch.cat(found).numpy()]
    return dict(zip(number_of_query[rows].tolist(), found.tolist(), strict=True))


def figures(package, i2t, t2i, *targets) -> dict:
    found = package.compute_all_metrics(i2t, t2i, target_metrics=targets, Ks=(1, 5, 10))
    return {f"{way}_{name.partition('_')[2]}": value for name, ways in found.items() for way, value in ways.items()}


ECCV = ("eccv_map_at_r", "eccv_rprecision", "eccv_r1")


def coco_embeddings(noise: float):
    """Photos and captions of the test split in mixed order, float64, so that rounding decides nothing."""
    rng = np.random.default_rng(3)
    photos, captions = judgements.coco_test_ids(judgements.package_data("eccv"))
    order, mixed = rng.permutation(5000), rng.permutation(25000)
    owner = np.argsort(order)[np.arange(25000) // 5][mixed]
    images = rng.normal(size=(5000, 12))
    texts = images[owner] + noise * rng.normal(size=(25000, 12))
    ids = {"image_ids": photos[order].astype(str).tolist(), "caption_ids": captions.ravel()[mixed].astype(str).tolist()}
    return torch.from_numpy(images), torch.from_numpy(texts), owner, photos[order], captions.ravel()[mixed], ids


@pytest.mark.parametrize(
    ("protocol", "noise", "names", "targets"),
    [("eccv", 0.4, PRECISIONS, ECCV), ("eccv", 1e3, PRECISIONS, ECCV), ("cxc", 0.8, RECALLS, ("cxc_recalls",))],
)
def test_equal_to_the_package(package, protocol, noise, names, targets):
    images, texts, owner, photos, captions, ids = coco_embeddings(noise)
    found = evaluate_retrieval(images, texts, owner, [protocol], bootstrap=0, **ids)[protocol].metrics
    judged = getattr(package, f"{protocol}_gts")
    i2t = answers(images, texts, photos, captions, judged["i2t"])
    t2i = answers(texts, images, captions, photos, judged["t2i"])
    expected = figures(package, i2t, t2i, *targets)
    for name in names:
        assert found[name] / 100 == pytest.approx(expected[name], abs=1e-6), name
    assert (found["t2i_r1"] > 5) == (noise < 1)


def test_equal_to_the_package_with_ties(package):
    """Small integers: optimistic figures put the right ones of equal scores first, pessimistic ones put them last."""
    images, texts, owner, photos, captions, ids = coco_embeddings(1.0)
    images, texts = (x.clamp(-2, 2).round().float() for x in (images, texts))
    with pytest.warns(UserWarning, match="equal scores decide"):
        result = evaluate_retrieval(images, texts, owner, ["eccv"], bootstrap=0, **ids)["eccv"]
    gts = package.eccv_gts
    right = [
        torch.from_numpy(
            np.stack([np.isin(candidates, gts[way][int(query)]) for query in queries if int(query) in gts[way]])
        ).float()
        for way, queries, candidates in (("i2t", photos, captions), ("t2i", captions, photos))
    ]
    for sign, gap in ((0.25, 0), (-0.25, 1)):
        i2t = answers(images, texts, photos, captions, gts["i2t"], sign * right[0])
        t2i = answers(texts, images, captions, photos, gts["t2i"], sign * right[1])
        expected = figures(package, i2t, t2i, *ECCV)
        for name in PRECISIONS:
            found = result.metrics[name] - gap * result.tie_gap[name]
            assert found / 100 == pytest.approx(expected[name], abs=1e-6), name
    assert result.tie_gap["i2t_map_at_r"] > 0.3


def test_order_stands_for_the_numbers_of_captions(package):
    """Ids as of SCAN's files give the same right answers as COCO's numbers; sixth captions are left out."""
    folder = judgements.package_data("eccv")
    photos, captions = judgements.coco_test_ids(folder)
    image_ids = photos.astype(str).tolist()
    owner, lines = torch.arange(25000) // 5, [f"test_caps.txt:{k}" for k in range(25000)]
    by_order = judgements.judged_split(torch.empty(5000, 0), torch.empty(25000, 0), owner, image_ids, lines, "cxc")
    ids = captions.astype(str)
    sixth = np.concatenate([ids, np.full((5000, 1), "1")], axis=1).ravel().tolist()
    by_number = judgements.judged_split(
        torch.empty(5000, 0), torch.empty(30000, 0), torch.arange(30000) // 6, image_ids, sixth, "cxc"
    )
    assert by_number.caption_image.equal(owner)
    for name in ("image_to_text", "text_to_image"):
        for one, other in zip(getattr(by_order, name), getattr(by_number, name), strict=True):
            assert one.equal(other)
    assert len(by_order.text_to_image.query) == 24_972
