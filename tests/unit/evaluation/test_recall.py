"""Recall, intervals, protocols and saved results against golden arrays and direct computation."""

import json
import math
import warnings
from typing import get_args

import numpy as np
import pytest
import torch

from clip_itm.evaluation.configuration import ProtocolName
from clip_itm.evaluation.protocols import PROTOCOLS, evaluate_retrieval
from clip_itm.evaluation.ranking import compute_ranks
from clip_itm.evaluation.recall import (
    RECALLS,
    bootstrap_recalls,
    fold_replicates,
    mean_metrics,
    paired_difference,
    paired_difference_of_runs,
    recall_metrics,
    tie_gaps,
)
from clip_itm.evaluation.result import RetrievalResult
from support.paths import GOLDEN

CRCL_COLUMNS = [f"{d}_{m}" for d in ("i2t", "t2i") for m in ("r1", "r5", "r10", "median_rank", "mean_rank")] + ["rsum"]


def matrix_ranks(scores, owner):
    scores = torch.as_tensor(scores)
    rows, columns = torch.arange(scores.shape[0]), torch.arange(scores.shape[1])
    return compute_ranks(rows, columns, owner, lambda i, t: scores[i][:, t])


def random_ranks(seed=0, num_images=60, noise=1.0):
    """Photos with 0 to 4 captions each, as embeddings near their photo."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(num_images).repeat_interleave(torch.randint(0, 5, (num_images,), generator=generator))
    images = torch.randn(num_images, 12, generator=generator)
    texts = images[owner] + noise * torch.randn(len(owner), 12, generator=generator)
    return compute_ranks(images, texts, owner)


@pytest.fixture(scope="module")
def npc_1k5k():
    golden = np.load(GOLDEN / "npc_retrieval_1k5k.npz")
    images, texts = (
        torch.nn.functional.normalize(torch.from_numpy(golden[name]).float(), dim=1) for name in ("img", "txt")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eight dimensions stored in float16: a few exact ties are expected
        return golden, evaluate_retrieval(images, texts, torch.arange(25000) // 5, ["coco-1k", "coco-5k"], bootstrap=0)


@pytest.mark.parametrize("prefix", ["five", "one"])
def test_npc_retrieval_golden(prefix):
    golden = np.load(GOLDEN / "npc_retrieval.npz")
    scores = golden[f"{prefix}_sim"]
    metrics = recall_metrics(matrix_ranks(scores, np.repeat(np.arange(len(scores)), golden[f"{prefix}_num_anns"])))
    np.testing.assert_allclose([metrics[n] for n in (*RECALLS, "mean_r1")], golden[f"{prefix}_metrics"], atol=1e-3)


def test_tied_golden_is_bracketed():
    golden = np.load(GOLDEN / "npc_retrieval.npz")
    scores, owner = golden["ties_sim"], np.repeat(np.arange(30), 5)
    ranks = matrix_ranks(scores, owner)
    optimistic, pessimistic = recall_metrics(ranks), recall_metrics(ranks, pessimistic=True)
    np.testing.assert_allclose([optimistic[name] for name in RECALLS], golden["ties_optimistic"], atol=1e-9)

    # The golden pessimistic i2t rank counts all scores >= the best, the photo's own equal captions among them; here
    # these are no rivals, because finding any of them is a success. Adding them back gives the golden figures.
    own = scores.reshape(30, 30, 5)[np.arange(30), np.arange(30)]
    own_equals = (own == own.max(1, keepdims=True)).sum(1) - 1
    assert own_equals.any()
    golden_rank = ranks.image_to_text_pessimistic + own_equals
    np.testing.assert_allclose([100 * np.mean(golden_rank <= k) for k in (1, 5, 10)], golden["ties_pessimistic"][:3])
    np.testing.assert_allclose([pessimistic[n] for n in RECALLS[3:]], golden["ties_pessimistic"][3:], atol=1e-9)

    unstable_sort = golden["ties_reference_one_run"][:6]
    gaps = tie_gaps([ranks])
    for name, one_run in zip(RECALLS, unstable_sort, strict=True):
        assert pessimistic[name] - 1e-3 <= one_run <= optimistic[name] + 1e-3
        assert gaps[name] == pytest.approx(optimistic[name] - pessimistic[name])


@pytest.mark.parametrize("prefix", ["five", "one"])
@pytest.mark.parametrize("model", ["a", "b", "avg"])
def test_crcl_metrics_golden(prefix, model):
    golden = np.load(GOLDEN / "crcl_metrics.npz")
    both = {name: golden[f"{prefix}_sims_{name}"].astype(np.float64) for name in ("a", "b")}
    scores = (both["a"] + both["b"]) / 2 if model == "avg" else both[model]
    metrics = recall_metrics(matrix_ranks(scores, np.repeat(np.arange(len(scores)), golden[f"{prefix}_per"])))
    expected = [*golden[f"{prefix}_{model}_i2t"], *golden[f"{prefix}_{model}_t2i"], golden[f"{prefix}_{model}_rsum"]]
    np.testing.assert_allclose([metrics[name] for name in CRCL_COLUMNS], expected, atol=1e-9)


def test_scan_recall_golden():
    golden = np.load(GOLDEN / "scan_recall.npz")
    scores = golden["S"].astype(np.float64)
    ranks = matrix_ranks(scores, np.arange(100) // 5)
    assert (ranks.image_to_text - 1).tolist() == golden["i2t_ranks"].tolist()
    assert (ranks.text_to_image - 1).tolist() == golden["t2i_ranks"].tolist()
    metrics = recall_metrics(ranks)
    expected = [*golden["i2t_metrics"], *golden["t2i_metrics"], golden["rsum"]]
    np.testing.assert_allclose([metrics[name] for name in CRCL_COLUMNS], expected, atol=1e-9)
    assert scores.argmax(axis=1).tolist() == golden["i2t_top1"].tolist()
    assert scores.argmax(axis=0).tolist() == golden["t2i_top1"].tolist()


def test_npc_1k_and_5k_golden(npc_1k5k):
    golden, results = npc_1k5k
    names = (*RECALLS, "mean_r1")
    folds = [recall_metrics(ranks) for ranks in results["coco-1k"].folds]
    # At most one query of each fold may differ (float32 summation order): 0.1 points for photos, 0.02 for captions.
    one_query = np.array([0.1, 0.1, 0.1, 0.02, 0.02, 0.02, 0.06]) + 1e-4
    off = np.abs(np.array([[fold[name] for name in names] for fold in folds]) - golden["fold_metrics"])
    assert (off <= one_query).all()
    average = results["coco-1k"].metrics
    np.testing.assert_allclose([average[name] for name in RECALLS], golden["avg_metrics"], atol=0.05)
    assert average["mean_r1"] == pytest.approx(float(golden["mean_r1_1k"]), abs=0.05)
    full = results["coco-5k"].metrics
    np.testing.assert_allclose([full[name] for name in names], golden["metrics_5k"], atol=0.05)


def test_t2i_r10_is_not_the_copy_of_i2t_r10(npc_1k5k):
    """The defect behind published COCO-1K tables."""
    golden, results = npc_1k5k
    metrics = results["coco-1k"].metrics
    assert golden["released_avg_metrics"][5] == golden["released_avg_metrics"][2]
    assert metrics["t2i_r10"] == pytest.approx(golden["avg_metrics"][5], abs=0.05)
    assert abs(metrics["t2i_r10"] - golden["released_avg_metrics"][5]) > 3


def test_crcl_folds_golden():
    golden = np.load(GOLDEN / "crcl_retrieval_folds.npz")
    images, texts = (torch.from_numpy(golden[name]).double() for name in ("img", "cap"))
    owner = torch.arange(25000) // 5
    results = evaluate_retrieval(images, texts, owner, ["coco-1k", "coco-5k"], bootstrap=0)
    folds = [[recall_metrics(ranks)[name] for name in CRCL_COLUMNS] for ranks in results["coco-1k"].folds]
    np.testing.assert_allclose(folds, golden["fold_metrics"], atol=1e-9)
    np.testing.assert_allclose([results["coco-1k"].metrics[n] for n in CRCL_COLUMNS], golden["fold_mean"], atol=1e-9)
    np.testing.assert_allclose([results["coco-5k"].metrics[n] for n in CRCL_COLUMNS], golden["full_metrics"], atol=1e-9)


def test_bootstrap_is_recall_of_the_resampled_photos():
    """Every replicate equals plain means over the drawn photos and their captions, drawn again by the same seed."""
    ranks = random_ranks()
    replicated = fold_replicates(ranks, 20, np.random.default_rng(3))
    generator = np.random.default_rng(3)
    photos = len(ranks.query_image)
    for row in replicated:
        drawn = generator.integers(photos, size=photos)
        captions = np.concatenate([np.flatnonzero(ranks.caption_image == ranks.query_image[p]) for p in drawn])
        expected = [100 * np.mean(ranks.image_to_text[drawn] <= k) for k in (1, 5, 10)]
        expected += [100 * np.mean(ranks.text_to_image[captions] <= k) for k in (1, 5, 10)]
        np.testing.assert_allclose(row, expected)


def test_interval_has_the_width_of_a_binomial():
    ranks = random_ranks(num_images=1500, noise=1.2)
    result = RetrievalResult.from_ranks("all", [ranks], replicates=2000)
    share, queries = result.metrics["i2t_r1"] / 100, len(ranks.query_image)
    low, high = result.intervals["i2t_r1"]
    assert high - low == pytest.approx(2 * 1.96 * 100 * math.sqrt(share * (1 - share) / queries), rel=0.1)
    assert set(result.intervals) == {*RECALLS, "rsum", "mean_r1"}
    for name, (low, high) in result.intervals.items():
        assert low < result.metrics[name] < high


def test_folds_are_resampled_apart_and_averaged():
    folds = [random_ranks(seed) for seed in (1, 2)]
    together = bootstrap_recalls(folds, 50, seed=5)
    generator = np.random.default_rng(5)
    apart = [fold_replicates(ranks, 50, generator) for ranks in folds]
    np.testing.assert_allclose(np.stack([together[n] for n in RECALLS], 1), (apart[0] + apart[1]) / 2)
    assert mean_metrics(folds)["rsum"] == pytest.approx(np.mean([recall_metrics(ranks)["rsum"] for ranks in folds]))


def test_paired_difference():
    better, worse = random_ranks(noise=0.5), random_ranks(noise=1.5)
    difference = paired_difference([worse], [better], replicates=300)
    assert difference["rsum"].value == pytest.approx(recall_metrics(better)["rsum"] - recall_metrics(worse)["rsum"])
    assert 0 < difference["rsum"].low < difference["rsum"].value < difference["rsum"].high
    assert paired_difference([worse], [worse], replicates=10)["rsum"] == (0, 0, 0)
    mirrored = paired_difference([better], [worse], replicates=300)["rsum"]
    assert mirrored == pytest.approx((-difference["rsum"].value, -difference["rsum"].high, -difference["rsum"].low))


def test_difference_between_the_means_of_several_runs():
    first = [[random_ranks(noise=1.5)], [random_ranks(noise=1.0)]]
    second = [[random_ranks(noise=0.5)], [random_ranks(noise=0.8)]]
    value, low, high = paired_difference_of_runs(first, second, replicates=200)["rsum"]
    each = [paired_difference(a, b, replicates=200)["rsum"].value for a, b in zip(first, second, strict=True)]
    assert value == pytest.approx(sum(each) / 2)
    assert low < value < high
    draws = [np.mean([bootstrap_recalls(folds, 200, 0)["rsum"] for folds in runs], axis=0) for runs in (first, second)]
    assert (low, high) == pytest.approx(tuple(np.percentile(draws[1] - draws[0], [2.5, 97.5])))


def test_pairing_narrows_the_interval():
    first = random_ranks(num_images=300, noise=1.0)
    second = matrix_like(first)
    paired = paired_difference([first], [second], replicates=400)["rsum"]
    alone = [bootstrap_recalls([ranks], 400, seed) for ranks, seed in ((first, 1), (second, 2))]
    unpaired = np.percentile(alone[1]["rsum"] - alone[0]["rsum"], [2.5, 97.5])
    assert paired.high - paired.low < 0.7 * (unpaired[1] - unpaired[0])


def matrix_like(ranks):
    """The same queries, every tenth rank one worse: a method that is nearly the same."""
    worse = {
        name: getattr(ranks, name) + (np.arange(len(getattr(ranks, name))) % 10 == 0)
        for name in ("image_to_text", "text_to_image")
    }
    return type(ranks)(**(vars(ranks) | worse))


def test_paired_difference_refuses_other_queries():
    with pytest.raises(ValueError, match="not of the same queries"):
        paired_difference([random_ranks(1)], [random_ranks(2)])
    with pytest.raises(ValueError, match="not of the same queries"):
        paired_difference([random_ranks(1)], [random_ranks(1), random_ranks(1)])
    with pytest.raises(ValueError, match="0 bootstrap replicates"):
        paired_difference([random_ranks(1)], [random_ranks(1)], replicates=0)


def test_ties_are_warned_of():
    images = torch.eye(4)[[0, 1, 2, 2]]  # two photos that the model cannot tell apart
    with pytest.warns(UserWarning, match="all: equal scores decide i2t_r1, t2i_r1; .* is 100.00 .* and 50.00"):
        result = evaluate_retrieval(images, images, torch.arange(4), bootstrap=0)["all"]
    assert result.tie_gap["i2t_r1"] == 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_retrieval(torch.eye(4), torch.eye(4), torch.arange(4), bootstrap=0)


def test_published_protocols_take_the_first_five_captions():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1000, 8, generator=generator)
    owner = torch.arange(1000).repeat_interleave(5)
    texts = images[owner] + torch.randn(5000, 8, generator=generator)
    extra = torch.tensor([3, 3, 700])
    longer, more = torch.cat([texts, 9 * images[extra]]), torch.cat([owner, extra])
    shuffled = torch.randperm(1000, generator=generator)  # any order of photos in the caption list
    order = torch.cat([torch.arange(p * 5, p * 5 + 5) for p in shuffled] + [torch.arange(5000, 5003)])
    expected = evaluate_retrieval(images, texts, owner, ["flickr-1k"], bootstrap=0)["flickr-1k"]
    result = evaluate_retrieval(images, longer[order], more[order], ["flickr-1k"], bootstrap=0)["flickr-1k"]
    assert result.num_captions == 5000
    assert result.metrics == expected.metrics
    everything = evaluate_retrieval(images, longer, more, bootstrap=0)["all"]
    assert everything.num_captions == 5003


@pytest.mark.parametrize(
    ("num_images", "per", "protocols", "message"),
    [
        (10, 5, ["flickr-1k"], "flickr-1k is defined for 1000 photos, and this split has 10"),
        (1000, 5, ["all", "coco-1k"], "coco-1k is defined for 5000 photos, and this split has 1000"),
        (4999, 5, ["coco-5k"], "this split has 4999"),
        (1000, 4, ["flickr-1k"], "1,000 photos have fewer, the first is photo 0 with 4"),
        (10, 5, ["coco1k"], "unknown protocols.*all, flickr-1k, coco-1k, coco-5k"),
        (10, 5, "all", "expected a list"),
    ],
)
def test_protocols_refuse_other_splits(num_images, per, protocols, message):
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(
            torch.ones(num_images, 2), torch.ones(num_images * per, 2), torch.arange(num_images * per) // per, protocols
        )


def test_result_is_json_and_survives_a_file(tmp_path):
    folds = [random_ranks(1), random_ranks(2)]
    result = RetrievalResult.from_ranks("coco-1k", folds, replicates=40, seed=9)
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain == result.as_dict()
    assert len(plain["folds"]) == 2
    assert plain["captions"] == sum(len(ranks.caption_image) for ranks in folds)

    result.save(tmp_path / "deep" / "ranks.npz")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["ranks.npz"]
    loaded = RetrievalResult.load(tmp_path / "deep" / "ranks.npz")
    assert loaded.as_dict() == result.as_dict()
    for before, after in zip(folds, loaded.folds, strict=True):
        for name, values in vars(before).items():
            assert np.array_equal(values, getattr(after, name)), name


def test_load_refuses_another_file(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz holds no ranks"):
        RetrievalResult.load(tmp_path / "other.npz")


def test_a_recipe_knows_the_protocols_that_there_are():
    assert list(PROTOCOLS) == list(get_args(ProtocolName))
    assert all(PROTOCOLS[name].name == name for name in PROTOCOLS)
    with_recall = {name for name, protocol in PROTOCOLS.items() if protocol.has_recall}
    assert with_recall == set(PROTOCOLS) - {"eccv"}
