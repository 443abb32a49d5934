"""`clip-itm audit`: what it says of a run, the page, and the cleaned data set, which trains like any other."""

import base64
import hashlib
import json
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clip_itm.auditing import judging
from clip_itm.cli import main
from clip_itm.data.cleaned import write_cleaned
from clip_itm.data.configuration import FolderData, SampleData
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import load_recipe
from clip_itm.runs.train import train
from clip_itm.training.clean_probability import FILE, CleanProbability
from clip_itm.training.folder import other_files, own_files
from support.tiny import tiny_recipe

HOSTILE = '</script><script>alert("{title}")</script> & <b>it\'s</b>'
SHARE = (0.5, 0.3, 0.9)  # of what is given in the place of the estimate
SPLITS = ["train"] * 24 + ["val"] * 6 + ["test"] * 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two steps on a folder with 24, 6 and 6 photos, two captions each; half of the captions are shuffled."""
    folder = tmp_path_factory.mktemp("audit")
    photos = folder / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(SPLITS):
        Image.fromarray(generator.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(photos / f"{number:02d}.jpg")
        captions = [f"photo {number}", f"{HOSTILE} {number}"]
        rows.append({"file_name": f"{number:02d}.jpg", "captions": captions, "split": split})
    (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tiny_recipe(folder, training={"max_steps": 2, "batch_size": 16}, noise={"ratio": 0.5})
    data = {"source": "folder", "root": str(photos), "cache_dir": str(folder / "cache")}
    train(recipe.model_copy(update={"data": FolderData(**data)}))
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy that a test may change; the estimate is kept from the first audit of it on."""
    return shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*", "audit"))


def audit(run: Path, *words: str) -> int:
    return main(["audit", "--run", str(run), *words])


def pairs_of(run: Path):
    return load_splits(load_recipe(run).data)["train"].pairs, CaptionNoise.load(run / "noise.npz")


# probabilities --------------------------------------------------------------------------------------------------------


def made(values, ranking) -> CleanProbability:
    return CleanProbability(np.array(values, np.float32), np.array(ranking, np.float32), "by hand", "00")


def test_order_is_by_probability_then_ranking_then_number():
    clean = made([0.5, 0.1, 0.5, 0.1, 0.5], [1, 7, -1, 7, 1])
    assert clean.order().tolist() == [1, 3, 2, 0, 4]
    assert clean.order().dtype == np.int64
    assert clean.suspicion().tolist() == [-2, 0, -1, 0, -2]


def test_probabilities_survive_a_file_and_damage_is_told(tmp_path):
    clean = made([0.25, 1], [-3, -0.5])
    clean.save(tmp_path / "clean.npz")
    loaded = CleanProbability.load(tmp_path / "clean.npz")
    assert (loaded.values == clean.values).all()
    assert (loaded.ranking == clean.ranking).all()
    assert loaded.values.dtype == loaded.ranking.dtype == np.float32
    assert (loaded.method, loaded.noise_sha256) == ("by hand", "00")
    (tmp_path / "clean.npz").write_bytes((tmp_path / "clean.npz").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"clean.npz was changed or damaged"):
        CleanProbability.load(tmp_path / "clean.npz")


@pytest.mark.parametrize(("values", "ranking"), [([1.5], [0]), ([np.nan], [0]), ([1], [np.nan]), ([1, 1], [0])])
def test_impossible_probabilities_are_refused(values, ranking):
    with pytest.raises(ValueError, match=r"expected|must lie between"):
        made(values, ranking)


def test_a_plain_run_is_judged_by_its_best_model_beside_made_mismatches(run):
    assert not (run / FILE).exists()
    recipe = load_recipe(run)
    split, noise = load_splits(recipe.data)["train"], CaptionNoise.load(run / "noise.npz")
    found = judging.audit_run(run)
    model, processor = ItmModel.from_pretrained(run / "best").eval(), ItmProcessor.from_pretrained(run / "best")
    photos = [read_image(row["image"]) for row in split.rows]
    with torch.inference_mode():
        images = model.encode_images(processor(images=photos, return_tensors="pt")["pixel_values"])
        tokens = processor(text=noise.apply(split.pairs).to_pylist(), return_tensors="pt")
        texts = model.encode_texts(tokens["input_ids"], tokens["attention_mask"])
        scores = model.head.scale() * images @ texts.T
    image = torch.from_numpy(split.pairs.image)
    own = scores[image, torch.arange(48)]
    z = (scores.logsumexp(0) - np.log(24) + (scores.logsumexp(1) - np.log(48))[image]) / 2 - own
    order = np.argsort(-found.clean.ranking)
    assert np.corrcoef(-found.clean.ranking, z.numpy())[0, 1] == pytest.approx(1, abs=1e-4)
    assert (np.diff(found.estimate.scores["crossfit"].suspicion[order]) >= 0).all()
    np.testing.assert_allclose(found.estimate.scores["clip"].suspicion, -(own / model.head.scale()).detach(), atol=1e-4)
    assert set(found.estimate.scores) == {"crossfit", "clip", "rank", "lemon", "loss", "siblings"}
    assert found.clean.noise_sha256 == noise.sha256
    assert found.clean.is_calibrated
    assert found.is_trained
    assert "trained on these pairs" in found.clean.method
    only_ranks = [name for name, score in found.estimate.scores.items() if score.probability is None]
    assert only_ranks == ["clip", "rank", "lemon", "loss", "siblings"], "a model that has seen them claims little"


def test_what_an_audit_leaves_in_a_run_is_found_again_and_belongs_to_its_noise(run, capsys):
    assert audit(run) == 0
    first = CleanProbability.load(run / FILE)
    assert audit(run) == 0
    kept = CleanProbability.load(run / FILE)
    assert kept.sha256 == first.sha256
    CleanProbability(kept.values, kept.ranking, kept.method, "other").save(run / FILE)
    assert audit(run) == 2
    assert "belongs to other training pairs" in capsys.readouterr().err


def test_the_mixture_of_an_earlier_version_is_judged_anew(run):
    _, noise = pairs_of(run)
    old = f"{judging.MIXTURE}, pair by pair in random batches of 256"
    CleanProbability(np.zeros(48, np.float32), np.zeros(48, np.float32), old, noise.sha256).save(run / FILE)
    assert audit(run) == 0
    assert CleanProbability.load(run / FILE).is_calibrated


def test_an_estimate_that_nobody_calibrated_only_ranks(run):
    _, noise = pairs_of(run)
    values = np.linspace(0, 1, 48, dtype=np.float32)
    CleanProbability(values, values, "posterior of a mixture", noise.sha256).save(run / FILE)
    found = judging.audit_run(run)
    assert found.estimate.default == "crossfit"
    assert found.estimate.scores["kept"].probability is None
    assert np.argmax(found.estimate.scores["kept"].suspicion) == 0
    assert "probability_kept" not in found.table.column_names
    assert CleanProbability.load(run / FILE).method == "posterior of a mixture", "what the run kept stays"


# table and page -------------------------------------------------------------------------------------------------------


def known_clean(run: Path, values=None) -> CleanProbability:
    """Probabilities in the place of the estimate, so that a test knows what must come out."""
    _, noise = pairs_of(run)
    values = np.random.default_rng(1).random(48) if values is None else values
    clean = CleanProbability(np.float32(values), np.zeros(48, np.float32), "by <hand>", noise.sha256, SHARE)
    clean.save(run / FILE)
    return clean


def test_all_pairs_are_listed_as_the_run_saw_them(run, capsys):
    clean = known_clean(run)
    assert audit(run) == 0
    rows = pq.read_table(run / "audit" / "audit.parquet").to_pylist()
    pairs, noise = pairs_of(run)
    assert [row["rank"] for row in rows] == list(range(1, 49))
    assert [row["pair"] for row in rows] == np.argsort(clean.values, kind="stable").tolist()
    for row in rows:
        k, source = row["pair"], noise.source[row["pair"]]
        assert row["image_id"] == f"{k // 2:02d}.jpg"
        assert Path(row["image"]) == Path(load_recipe(run).data.root, row["image_id"])
        assert row["caption"] == pairs.captions[int(source)].as_py()
        assert row["caption_id"] == f"metadata.jsonl:{source // 2 + 1}:{source % 2}"
        assert row["clean_probability"] == clean.values[k]
        assert row["known_wrong"] is bool(source // 2 != k // 2)
        assert row["method"] == "by <hand>"
    wrong, values = np.array([row["known_wrong"] for row in rows]), np.sort(clean.values)
    good = [bad < right for bad in values[wrong] for right in values[~wrong]]
    out = capsys.readouterr().out
    assert f"{np.mean(good):.3f}" in out
    assert f"precision among the {wrong.sum()} most suspicious" in out
    assert f"{wrong[: wrong.sum()].mean():.1%}" in out
    assert f"{(values < 0.5).sum()} ({(values < 0.5).mean():.1%})" in out


class Page(HTMLParser):
    """Elements that matter, by what they say."""

    def __init__(self, path: Path):
        super().__init__()
        self.opened, self.cards, self.texts, self.images, self.attributes = [], [], {}, [], []
        self.is_new = False  # the card: its first photo is that of the pair, later ones are suggested
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.opened.append(tag)
        self.attributes += [(tag, *item) for item in attributes.items()]
        self.place = attributes.get("class") or tag
        if tag == "li" and "data-rank" in attributes:
            self.cards.append(attributes)
            self.is_new = True
        if tag == "img" and self.is_new:
            self.images.append(attributes)
            self.is_new = False

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.place, []).append(data)


def test_the_page_shows_the_worst_pairs_and_runs_no_script_of_a_caption(run):
    clean = known_clean(run)
    assert audit(run, "--top", "30", "--out", str(run / "elsewhere")) == 0
    page = Page(run / "elsewhere" / "audit.html")
    pairs, noise = pairs_of(run)
    worst = clean.order()[:30]
    captions = noise.apply(pairs).to_pylist()
    shown = page.texts["caption"][-30:]
    assert shown == [captions[k] for k in worst], "after those of the groups"
    assert any("<script>" in caption for caption in page.texts["caption"])
    assert page.opened.count("script") == 1
    assert "b" not in page.opened
    assert [card["data-truth"] for card in page.cards] == [
        "right" if right else "wrong" for right in noise.is_clean(pairs)[worst]
    ]
    assert [float(card["data-probability"]) for card in page.cards] == pytest.approx(clean.values[worst])
    assert len(page.images) == 30
    for image, k in zip(page.images, worst, strict=True):
        kind, _, data = image["src"].partition("base64,")
        assert kind == "data:image/jpeg;"
        assert image["alt"] == f"photo {k // 2:02d}.jpg"
        assert Image.open(BytesIO(base64.b64decode(data))).size == (48, 32)
    assert page.texts["summary"].count("1 other caption of this photo") == 30
    assert page.texts["summary"].count("all scores") == 1
    text = (run / "elsewhere" / "audit.html").read_text()
    script = text.partition("<script>")[2].partition("</script>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in text
    assert "by &lt;hand&gt;" in text
    assert not [value for _, name, value in page.attributes if name in ("src", "href") and value[:5] != "data:"]


def test_the_picture_shows_the_worst_pairs(run, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'clip-itm[plot]'")
    known_clean(run)
    assert audit(run, "--picture", str(tmp_path / "worst.png")) == 0
    assert f"picture: {tmp_path / 'worst.png'}" in capsys.readouterr().out
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.width > picture.height > 600  # three rows of four


def test_nothing_is_called_wrong_where_no_noise_was_drawn(run, capsys):
    pairs, _ = pairs_of(run)
    (run / "noise.npz").unlink()
    clean = CaptionNoise.clean(pairs)
    clean.save(run / "noise.npz")
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["noise"]["sha256"] = clean.sha256
    (run / "provenance.json").write_text(json.dumps(provenance))
    (run / "checksums.json").unlink()
    known_clean(run)
    assert audit(run, "--clean-to", str(run / "clean"), "--force") == 0
    assert pq.read_table(run / "audit" / "audit.parquet")["known_wrong"].null_count == 48
    assert "not known" in capsys.readouterr().out
    page = Page(run / "audit" / "audit.html")
    assert {card["data-truth"] for card in page.cards} == {""}
    assert ("input", "name", "truth") not in page.attributes
    assert "known_wrong" not in json.loads((run / "clean" / "cleaned.json").read_text())


# cleaned data ---------------------------------------------------------------------------------------------------------


def cleaned(run: Path, *words: str):
    """The cleaned folder, loaded, beside the original splits."""
    folder = run / "cleaned"
    assert audit(run, "--clean-to", str(folder), "--force", *words) == 0
    splits = load_splits(FolderData(root=str(folder), cache_dir=str(run / "cache")))
    return splits, load_splits(load_recipe(run).data), json.loads((folder / "cleaned.json").read_text())


def held(split) -> dict[tuple[str, str], str]:
    """(photo id, caption id) -> caption of every pair."""
    pairs = split.pairs
    photos = pairs.image_ids.take(pairs.image).to_pylist()
    return dict(zip(zip(photos, pairs.caption_ids.to_pylist(), strict=True), pairs.captions.to_pylist(), strict=True))


def as_seen(run: Path, keep: np.ndarray) -> dict[tuple[str, str], str]:
    pairs, noise = pairs_of(run)
    ids, captions = pairs.caption_ids.to_pylist(), pairs.captions.to_pylist()
    return {(f"{k // 2:02d}.jpg", ids[noise.source[k]]): captions[noise.source[k]] for k in np.flatnonzero(keep)}


@pytest.mark.parametrize("words", [[], ["--below", "0.8"], ["--drop-fraction", "0.25"]])
def test_the_cleaned_folder_has_the_rest_with_the_ids_of_the_original(run, words):
    clean = known_clean(run)
    keep = clean.values >= 0.8
    if words[:1] != ["--below"]:
        keep = np.ones(48, bool)
        keep[np.argsort(clean.values)[: 12 if words else 24]] = False  # else the share that was found, a half
    splits, before, note = cleaned(run, *words)
    assert held(splits["train"]) == as_seen(run, keep)
    assert splits["train"].pairs.weight is None
    for name in ("val", "test"):
        assert splits[name].sha256 == before[name].sha256
    first = splits["train"].rows[0]
    assert Path(first["image"]["path"]).name == first["image_id"], "photos are not copied"
    photos_left = len({k // 2 for k in np.flatnonzero(keep)})
    assert (note["kept_pairs"], note["dropped_pairs"]) == (keep.sum(), 48 - keep.sum())
    assert (note["kept_images"], note["dropped_images"]) == (photos_left, 24 - photos_left)
    pairs, noise = pairs_of(run)
    wrong = ~noise.is_clean(pairs)
    assert note["known_wrong"] == {"kept": (wrong & keep).sum(), "dropped": (wrong & ~keep).sum()}
    assert note["noise_sha256"] == noise.sha256
    assert note["recipe_sha256"] == load_recipe(run).sha256


def test_down_weighting_keeps_all_pairs_and_weighs_them(run):
    clean = known_clean(run, np.round(np.linspace(0, 1, 48), 4))
    splits, before, note = cleaned(run, "--down-weight")
    assert held(splits["train"]) == as_seen(run, np.ones(48, bool))
    np.testing.assert_allclose(splits["train"].pairs.weight, clean.values, atol=1e-6)
    assert splits["val"].sha256 == before["val"].sha256
    assert note["rule"] == {"down_weight": True}
    assert note["dropped_pairs"] == 0


def test_copied_photos_move_with_the_folder(run):
    known_clean(run)
    splits, _, _ = cleaned(run, "--copy")
    moved = shutil.move(run / "cleaned", run / "moved")
    again = load_splits(FolderData(root=str(moved), cache_dir=str(run / "cache")))
    assert again["train"].sha256 == splits["train"].sha256
    for row in again["train"].rows:
        assert Path(row["image"]["path"]).is_relative_to(moved)
        original = Path(load_recipe(run).data.root, row["image_id"])
        assert Path(row["image"]["path"]).read_bytes() == original.read_bytes()


def test_photos_stored_as_bytes_become_files(tmp_path):
    sizes = {"train_images": 6, "val_images": 2, "test_images": 2, "image_size": 16, "cache_dir": str(tmp_path / "c")}
    splits = load_splits(SampleData(**sizes))
    keep = np.arange(30) >= 5  # the first photo loses all
    noise = CaptionNoise.clean(splits["train"].pairs)
    counts = write_cleaned(tmp_path / "out", splits, noise, keep, None, {})
    assert counts == {"kept_pairs": 25, "dropped_pairs": 5, "kept_images": 5, "dropped_images": 1}
    again = load_splits(FolderData(root=str(tmp_path / "out"), cache_dir=str(tmp_path / "c")))
    assert again["train"].rows["image_id"][:] == splits["train"].rows["image_id"][1:]
    assert again["test"].sha256 == splits["test"].sha256
    for row, other in zip(again["train"].rows, splits["train"].rows.select(range(1, 6)), strict=True):
        assert read_image(row["image"]).tobytes() == read_image(other["image"]).tobytes()


@pytest.mark.parametrize("words", [[], ["--down-weight"]])
def test_the_cleaned_folder_trains(run, words):
    """The recipe of the run with another root, and no noise: the captions carry it already."""
    known_clean(run, np.round(np.linspace(0, 1, 48), 4))
    splits, _, note = cleaned(run, *words)
    folder = run / "again"
    overrides = ["--data.source", "folder", "--data.root", str(run / "cleaned"), "--noise.ratio", "0"]
    assert main(["train", str(run / "recipe.yaml"), *overrides, "--output_dir", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["provenance"]["splits"]["train"]["sha256"] == splits["train"].sha256
    assert results["provenance"]["splits"]["train"]["captions"] == note["kept_pairs"]


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["audit.html", "audit.parquet"])
@pytest.mark.parametrize("place", ["run/audit", "elsewhere"])
def test_files_of_these_names_that_no_audit_wrote_stay(run, monkeypatch, capsys, name, place):
    monkeypatch.chdir(run.parent)
    Path(place).mkdir()
    if name.endswith("parquet"):
        pq.write_table(pa.table({"mine": [1]}), Path(place, name))
    else:
        Path(place, name).write_text("mine", encoding="utf-8")
    before = Path(place, name).read_bytes()
    assert main(["audit", "--run", "run", *([] if place == "run/audit" else ["--out", place])]) == 2
    assert f"{place}/{name} was written by no audit" in capsys.readouterr().err
    assert [path.read_bytes() for path in Path(place).iterdir()] == [before]


def test_a_folder_of_one_of_these_names_is_told_before_anything_is_judged(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    assert main(["audit", "--run", "run", "--out", "judged"]) == 0
    page = Path("judged", "audit.html")
    page.unlink()
    page.mkdir()
    assert main(["audit", "--run", "run", "--out", "judged"]) == 2
    assert "judged/audit.html was written by no audit" in capsys.readouterr().err
    assert page.is_dir()


def test_what_an_audit_adds_to_a_run_is_the_runs_own(run):
    assert audit(run) == audit(run) == 0  # the second one replaces what the first one wrote
    assert other_files(run) == []
    assert {"audit/audit.parquet", "audit/audit.html", FILE} <= own_files(run)


def test_what_is_written_for_other_programs_is_the_runs_own_too(run):
    words = "--write", "csv", "label-studio", "fiftyone"
    assert audit(run, *words) == audit(run, *words) == 0
    assert other_files(run) == []
    assert {"audit/audit.csv", "audit/fiftyone/labels.json", "audit/label-studio/labeling.xml"} <= own_files(run)


def test_mistakes_are_told_before_anything_is_computed(run, monkeypatch, capsys):
    monkeypatch.setattr(judging, "judge_split", None)
    (run / "taken").mkdir()
    (run / "taken" / "mine.txt").write_text("keep me")
    for words, message in [
        (["--clean-to", str(run / "taken")], "taken is not an empty folder"),
        (["--below", "0.3"], "say where with --clean-to"),
        (["--data.root", str(run)], "none of metadata.jsonl"),
    ]:
        assert audit(run, *words) == 2
        assert message in capsys.readouterr().err
    for words in (["--top", "0"], ["--clean-to", "x", "--drop-fraction", "40"], ["--below", "0.1", "--down-weight"]):
        with pytest.raises(SystemExit):
            audit(run, *words)
    assert (run / "taken" / "mine.txt").read_text() == "keep me"


def test_a_run_that_is_not_finished_or_whose_data_changed_is_told(run, capsys):
    (run / "results.json").rename(run / "results.away")
    assert audit(run) == 2
    assert "this run is not finished (it has no results.json)" in capsys.readouterr().err
    (run / "results.away").rename(run / "results.json")
    photos = shutil.copytree(load_recipe(run).data.root, run / "photos")
    table = photos / "metadata.jsonl"
    table.write_text(table.read_text().replace("photo 3", "photo three"))
    assert audit(run, "--data.root", str(photos)) == 2
    assert "the training split is another one" in capsys.readouterr().err


def test_a_threshold_that_leaves_nothing_is_told(run, capsys):
    known_clean(run, np.zeros(48))
    assert audit(run, "--clean-to", str(run / "cleaned"), "--below", "0.5") == 2
    assert "no training pair is left" in capsys.readouterr().err
