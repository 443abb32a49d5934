"""ECCV Caption and CxC: ranks of all right answers, and what surrounds them, on lists for 12 photos."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from clip_itm.cli import main
from clip_itm.data.configuration import CocoData
from clip_itm.data.load import load_splits
from clip_itm.evaluation import judgements
from clip_itm.evaluation.judged_ranking import ABSENT, PositiveRanks, rank_all
from clip_itm.evaluation.precision_result import (
    PRECISIONS,
    PrecisionResult,
    bootstrap_precisions,
    query_precisions,
)
from clip_itm.evaluation.protocols import evaluate_retrieval
from clip_itm.evaluation.recall import RECALLS
from clip_itm.evaluation.report import markdown_table, terminal_table
from clip_itm.runs.card_data import card_data
from clip_itm.runs.compare import Cell, add_differences, summarise
from clip_itm.runs.compare_tables import markdown, table_lines
from support.data_folders import photo, write
from support.tiny import tiny_recipe

PHOTOS = 12


@pytest.fixture
def lists(tmp_path, monkeypatch) -> Path:
    """A folder like the package's for 12 photos of five captions; every query has right answers of other photos."""
    folder = tmp_path / "package"
    folder.mkdir()
    photos = np.array([900, 20, 711, 58, 301, 402, 77, 5, 614, 233, 150, 999])
    captions = 1000 + np.sort(np.random.default_rng(1).permutation(500)[: 5 * PHOTOS].reshape(PHOTOS, 5), axis=1)
    np.save(folder / "coco_test_ids.npy", captions.ravel())
    of_captions = {int(caption): [int(photos[row])] for row in range(PHOTOS) for caption in captions[row]}
    right_captions = {
        int(photos[k]): captions[[k, (k + 3) % PHOTOS]].ravel().tolist() for k in (4, 0, 7, 9, 2, 11, 5, 6)
    }
    right_captions[int(photos[0])].append(77_777)  # a sixth caption, which no gallery has
    right_photos = {int(captions[k, k % 5]): photos[[k, (k + 1) % PHOTOS]].tolist() for k in (8, 0, 11, 2, 10, 5, 7)}
    most_captions = {int(c): photos[[k, (k + 1) % PHOTOS]].tolist() for k in range(PHOTOS) for c in captions[k, :4]}
    every_photo = {int(photos[k]): captions[[k, (k + 5) % PHOTOS]].ravel().tolist() for k in range(PHOTOS)}
    for name, content in {
        "original_caption_to_image": of_captions,
        "eccv_image_to_caption": right_captions,
        "eccv_caption_to_image": right_photos,
        "cxc_image_to_caption": every_photo,
        "cxc_caption_to_image": most_captions,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(judgements, "package_data", lambda name: folder)
    return folder


def embeddings(num_images=PHOTOS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(5 * num_images) // 5
    images = torch.randn(num_images, 6, generator=generator)
    return images, images[owner] + 2 * torch.randn(len(owner), 6, generator=generator), owner


def names(lists: Path) -> dict[str, list[str]]:
    photos, captions = judgements.coco_test_ids(lists)
    return {"image_ids": list(map(str, photos)), "caption_ids": list(map(str, captions.ravel()))}


# the arithmetic -------------------------------------------------------------------------------------------------------


def sorted_ranks(scores: np.ndarray, right: set[int], last: bool) -> list[int]:
    """Ranks of the right answers by sorting; among equal scores they stand first, or last."""
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], (k in right) == last))
    return [rank for rank, k in enumerate(order, 1) if k in right]


def test_ranks_of_all_right_answers_are_those_of_a_sort():
    rng = np.random.default_rng(0)
    for most, candidates in ((3, 40), (5, 60), (6, 9)):
        scores = rng.integers(0, 12, (50, candidates)).astype(np.float32)  # full of ties
        right = [set(rng.choice(candidates, rng.integers(0, most + 1), replace=False).tolist()) for _ in scores]
        row = torch.tensor([k for k, each in enumerate(right) for _ in each])
        column = torch.tensor([each for answers in right for each in sorted(answers)])
        both = rank_all(torch.from_numpy(scores), row, column, most).numpy()
        for last, ranks in zip((False, True), both, strict=True):
            for found, values, answers in zip(ranks.tolist(), scores, right, strict=True):
                expected = sorted_ranks(values, answers, last)
                assert found[len(answers) :] == [ABSENT] * (most - len(answers))
                for one, other in zip(found, expected, strict=False):
                    assert one == other or (one > most and other > most)


def test_precisions_by_hand():
    """Right answers at 1, 3 and 4 of R = 4, the fourth out of reach; a query that finds nothing."""
    found = query_precisions(np.array([[1, 3, 4, ABSENT], [3, 4, ABSENT, ABSENT]]), np.array([4, 2]))
    np.testing.assert_allclose(found, [[1, (1 / 1 + 2 / 3 + 3 / 4) / 4, 3 / 4], [0, 0, 0]])


def test_bootstrap_is_the_mean_over_drawn_photos():
    rng = np.random.default_rng(2)
    both = [
        PositiveRanks(ranks, ranks, np.full(len(photo), 3), photo)
        for photo in (np.arange(9), np.repeat(np.arange(3, 12), 2))
        for ranks in [np.sort(rng.permutation(8 * len(photo)).reshape(len(photo), 8)[:, :3] % 6 + 1, axis=1)]
    ]
    draws = bootstrap_precisions(both, 30, seed=4)
    generator = np.random.default_rng(4)
    for replicate in range(30):
        drawn = generator.integers(12, size=12)
        for direction, each in zip(("i2t", "t2i"), both, strict=True):
            queries = np.concatenate([np.flatnonzero(each.image == number) for number in drawn])
            expected = 100 * query_precisions(each.ranks[queries], each.total[queries]).mean(axis=0)
            found = [draws[f"{direction}_{name}"][replicate] for name in ("r1", "map_at_r", "rprecision")]
            np.testing.assert_allclose(found, expected)


# the gallery ----------------------------------------------------------------------------------------------------------


def test_blocks_and_order_change_nothing(lists):
    images, texts, owner = embeddings()
    ids = names(lists)
    expected = evaluate_retrieval(images, texts, owner, ["eccv", "cxc"], bootstrap=0, **ids)
    in_blocks = evaluate_retrieval(images, texts, owner, ["eccv", "cxc"], bootstrap=0, block_size=3, **ids)
    generator = torch.Generator().manual_seed(7)
    photo_order, caption_order = torch.randperm(PHOTOS, generator=generator), torch.randperm(60, generator=generator)
    mixed = evaluate_retrieval(
        images[photo_order],
        texts[caption_order],
        photo_order.argsort()[owner[caption_order]],
        ["eccv", "cxc"],
        bootstrap=0,
        image_ids=[ids["image_ids"][k] for k in photo_order],
        caption_ids=[ids["caption_ids"][k] for k in caption_order],
    )
    for name, result in expected.items():
        assert in_blocks[name].metrics == result.metrics
        assert mixed[name].metrics == pytest.approx(result.metrics)
    assert 0 < expected["eccv"].metrics["i2t_map_at_r"] < expected["eccv"].metrics["i2t_rprecision"] < 100


def test_another_similarity_is_asked_in_the_same_order(lists):
    images, texts, owner = embeddings()
    for name in ("eccv", "cxc"):
        one, other = (
            evaluate_retrieval(images, texts, owner, [name], similarity, bootstrap=0, **names(lists))[name].metrics
            for similarity in (None, lambda i, t: torch.einsum("id,td->it", i, t))
        )
        assert one == other


def karpathy_folder(root: Path, lists: Path) -> None:
    """The photos in Karpathy's layout; those of even number have a sixth caption."""
    photos, captions = judgements.coco_test_ids(lists)
    images = []
    for number, own in zip(photos.tolist(), captions.tolist(), strict=True):
        photo(root / "val2014" / f"COCO_val2014_{number:012d}.jpg", grey=number % 256)
        sentences = [{"raw": f"caption {k}", "sentid": k} for k in own + [80_000 + number] * (number % 2 == 0)]
        image = {"cocoid": number, "filename": f"COCO_val2014_{number:012d}.jpg", "filepath": "val2014"}
        images.append({**image, "split": "test", "sentences": sentences})
    (root / "dataset_coco.json").write_text(json.dumps({"images": images}))


def scan_folder(root: Path, lists: Path) -> None:
    photos, captions = judgements.coco_test_ids(lists)
    for number in photos:
        photo(root / "images" / f"COCO_2014_{number:012d}.jpg")
    write(root / "annotations/scan_split/test_ids.txt", list(map(str, photos)))
    write(root / "annotations/scan_split/test_caps.txt", [f"caption {k}" for k in captions.ravel()])


def test_both_layouts_of_coco_give_the_same_gallery(lists, tmp_path):
    """Karpathy's file names captions by number, SCAN's lines only by their order."""
    galleries, numbers_of_pairs = [], []
    for layout, make in (("karpathy", karpathy_folder), ("scan_split", scan_folder)):
        make(tmp_path / layout, lists)
        data = CocoData(root=str(tmp_path / layout), layout=layout, cache_dir=str(tmp_path / "cache"))
        pairs = load_splits(data)["test"].pairs
        numbers_of_pairs.append(len(pairs))
        galleries.append(
            judgements.judged_split(
                torch.empty(PHOTOS, 0),
                torch.tensor([[int(caption.split()[1])] for caption in pairs.captions.to_pylist()]),
                torch.from_numpy(pairs.image),
                pairs.image_ids.to_pylist(),
                pairs.caption_ids.to_pylist(),
                "eccv",
            )
        )
    first, second = galleries
    assert numbers_of_pairs[0] > numbers_of_pairs[1] == 60
    for gallery in galleries:
        assert gallery.texts.ravel().tolist() == np.load(lists / "coco_test_ids.npy").tolist()
    for name in ("image_to_text", "text_to_image"):
        for one, other in zip(getattr(first, name), getattr(second, name), strict=True):
            assert one.tolist() == other.tolist()
    right = json.loads((lists / "eccv_image_to_caption.json").read_text())
    photos = judgements.coco_test_ids(lists)[0]
    for k, query in enumerate(first.image_to_text.query):
        answers = first.image_to_text.candidate[first.image_to_text.row == k]
        wanted = right[str(photos[query])]
        assert set(first.texts[answers].ravel().tolist()) == set(wanted) - {77_777}
        assert first.image_to_text.total[k] == len(wanted)


def test_other_splits_are_refused(lists):
    images, texts, owner = embeddings()
    ids = names(lists)
    for changed, message in (
        ({"image_ids": None}, "eccv needs the COCO numbers .* pass image_ids and caption_ids"),
        ({"image_ids": ["sample_1", *ids["image_ids"][1:]]}, r"of the 12 photos of this split 11 .*'sample_1' is not"),
        ({"image_ids": ["20", *ids["image_ids"][1:]]}, "each once and named by its COCO number"),
        ({"image_ids": ["9" * 30, *ids["image_ids"][1:]]}, "11 are among them"),
        ({"caption_ids": ["1", *ids["caption_ids"][1:]]}, "needs the 60 captions .*59 of them are among the 60"),
        ({"caption_ids": ids["caption_ids"][::-1]}, "0 of them are among"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_retrieval(images, texts, owner, ["eccv"], **(ids | changed))
    short = {"image_ids": ids["image_ids"], "caption_ids": [f"caps.txt:{k}" for k in range(55)]}
    with pytest.raises(ValueError, match=r"55 of them are among the 55 captions"):
        evaluate_retrieval(images, texts[:55], owner[:55], ["cxc"], **short)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(judgements, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'clip-itm\[eccv\]'"):
        evaluate_retrieval(*embeddings(), ["eccv"], image_ids=[], caption_ids=[])


# results --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(lists) -> dict:
    return evaluate_retrieval(*embeddings(), ["cxc", "eccv"], bootstrap=50, **names(lists))


def test_result_is_json_and_survives_a_file(results, tmp_path):
    result = results["eccv"]
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain == result.as_dict()
    assert (plain["images"], plain["captions"]) == (8, 7)
    assert set(plain["metrics"]) == set(plain["intervals"]) == set(plain["tie_gap"]) == set(PRECISIONS)
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high
    result.save(tmp_path / "eccv.npz")
    assert PrecisionResult.load(tmp_path / "eccv.npz").as_dict() == plain
    results["cxc"].save(tmp_path / "cxc.npz")
    with pytest.raises(ValueError, match=r"cxc\.npz holds no ranks of all right answers"):
        PrecisionResult.load(tmp_path / "cxc.npz")


def test_ties_are_told(lists):
    images, texts, owner = embeddings()
    with pytest.warns(UserWarning, match="eccv: equal scores decide i2t_r1.* is 100.00 if ties count as won"):
        result = evaluate_retrieval(images, 0 * texts, owner, ["eccv"], bootstrap=0, **names(lists))["eccv"]
    assert result.metrics["i2t_rprecision"] > 90  # the caption outside of the gallery is never found
    assert result.tie_gap["t2i_rprecision"] == result.metrics["t2i_rprecision"] == 100


def test_tables_have_the_columns_of_all_their_rows(results, tmp_path):
    rows = [("clip", result.as_dict()) for result in results.values()]
    lines = markdown_table(rows, intervals=False).splitlines()
    columns = " | ".join(["R@1", "R@5", "R@10", "mAP@R", "R-Precision"])
    assert lines[0] == f"| method | protocol | i2t {columns} | t2i {columns} | rsum |"
    cxc, eccv = (line.strip("| ").split(" | ")[2:] for line in lines[2:4])
    assert cxc[3:5] == cxc[8:10] == ["-", "-"]
    assert eccv[1:3] == eccv[6:8] == ["-", "-"]
    assert eccv[3] == f"{results['eccv'].metrics['i2t_map_at_r']:.1f}"
    assert eccv[-1] == "-"
    assert lines[-1].startswith("cxc: 12 photos, 48 captions; eccv: 8 photos, 7 captions; rsum: ")
    assert "; ranges: " in lines[-1]
    with (tmp_path / "out.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=160).print(terminal_table(rows))
    assert eccv[3] in (tmp_path / "out.txt").read_text(encoding="utf-8")


def test_compare_and_card_show_what_a_protocol_has(results, tmp_path):
    plain = {name: result.as_dict() | {"images": 1000} for name, result in results.items()}  # not too few for a card
    cells = []
    for method in ("clip", "dive"):
        for stage in ("best", "last"):
            results["cxc"].save(tmp_path / method / f"ranks_{stage}" / "cxc.npz")
        content = {
            "zero_shot": plain,
            "best": plain,
            "last": plain,
            "split": "test",
            "noise": {"sha256": "0" * 64, "level": "caption"},
            "seconds": 1.0,
        }
        content["provenance"] = {
            "machine": {"processes": 1, "device": "cpu"},
            "versions": {"torch": "2"},
            "splits": {"test": {"sha256": "1"}},
        }
        cells.append(Cell(method, 0.0, 0, content, tmp_path / method))
    rows = summarise(cells)
    add_differences(rows, cells)
    eccv = [row for row in rows if row["protocol"] == "eccv"]
    header, first, _ = table_lines(eccv, "best")
    assert header[2:5] == ["i2t R@1", "mAP@R", "R-Precision"]
    assert first[3] == f"{results['eccv'].metrics['i2t_map_at_r']:.1f}"
    assert not any("rsum_difference" in row for row in eccv)
    assert any("rsum_difference" in row for row in rows)
    assert "## recall on test (eccv), best checkpoint by val, percent" in markdown(rows, cells)

    found = card_data(tiny_recipe(tmp_path), cells[0].results).eval_results
    values = {(result.dataset_config, result.metric_name): result for result in found}
    assert len(values) == len(found) == len(RECALLS) + 1 + len(PRECISIONS)
    result = values["eccv", "Image to text mAP@R"]
    assert (result.metric_type, result.metric_value) == ("map_at_r", round(plain["eccv"]["metrics"]["i2t_map_at_r"], 2))
    assert values["cxc", "Sum of the six recalls"].metric_type == "rsum"


def test_evaluate_command(lists, tmp_path, capsys):
    karpathy_folder(tmp_path / "coco", lists)
    content = tiny_recipe(tmp_path).model_dump(mode="json")
    content["data"] = {"source": "coco", "root": str(tmp_path / "coco"), "cache_dir": str(tmp_path / "cache")}
    recipe = tmp_path / "clip.yaml"
    recipe.write_text(json.dumps(content))
    out, picture = tmp_path / "out.json", tmp_path / "cxc.png"
    asked = ["--evaluation.protocols", "[cxc, eccv]"]
    assert main(["evaluate", str(recipe), *asked, "--json", str(out), "--plot", str(picture)]) == 0
    found = json.loads(out.read_text())
    assert set(found["eccv"]["metrics"]) == set(PRECISIONS)
    assert f"{found['eccv']['metrics']['i2t_map_at_r']:.1f}" in capsys.readouterr().out
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    assert main(["evaluate", str(recipe), "--evaluation.protocols", "[eccv]", "--plot", str(picture)]) == 2
    assert "name another one as well" in capsys.readouterr().err
