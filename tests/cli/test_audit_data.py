"""`clip-itm audit DATA --model MODEL`: data without a run, and what `--clean-to` refuses to leave out."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_itm import audit, load_model
from clip_itm.auditing import judging
from clip_itm.cli import main
from clip_itm.data.configuration import FolderData
from clip_itm.data.load import load_splits
from clip_itm.retrieval.app_audit import AuditTable
from support.tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`model`, tiny and random, and `photos`: 40 of them, one or two captions each, a quarter in val."""
    folder = tmp_path_factory.mktemp("audited")
    save_tiny_model(folder)
    (folder / "photos").mkdir()
    generator, rows = np.random.default_rng(0), []
    for number in range(40):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
            folder / f"photos/{number:02d}.png"
        )
        captions = [f"photo {number}", f"number {number}"][: 1 + number % 2]
        rows.append(
            {"file_name": f"{number:02d}.png", "captions": captions, "split": "val" if number % 4 == 3 else "train"}
        )
    (folder / "photos" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(place: Path, *words: str, data: str = "photos", model: str = "model") -> int:
    cache = ["--data.cache_dir", str(place / "cache")]
    return main(["audit", str(place / data), "--model", str(place / model), *cache, *words])


def splits_of(folder: Path, cache: Path):
    return load_splits(FolderData(root=str(folder), cache_dir=str(cache)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_is_judged_by_a_model_that_saw_none_of_it(here, place, capsys, split):
    assert run(place, "--split", split) == 0
    table = pq.read_table(here / "audit" / "audit.parquet")
    pairs = splits_of(place / "photos", place / "cache")[split].pairs
    assert sorted(table["caption"].to_pylist()) == sorted(pairs.captions.to_pylist())
    assert {"score_crossfit", "probability_crossfit", "score_clip", "score_rank", "score_siblings", "doubted_by"} <= {
        *table.column_names
    }
    assert set(table["trained_on"].to_pylist()) == {False}
    assert table["known_wrong"].null_count == len(pairs)
    told = capsys.readouterr().out
    assert f"photos: {split} captions" in told
    assert "crossfit" in told
    assert "trained on them" not in told
    assert (here / "audit" / "audit.html").is_file()


def test_the_table_counts_the_scores_that_doubt_a_pair(place):
    found = audit(place / "photos", place / "model", "--data.cache_dir", str(place / "cache"))
    count = round(found.estimate.share * len(found.clean.values))
    expected = np.zeros(len(found.clean.values), dtype=int)
    for name, score in found.estimate.scores.items():
        known = np.nan_to_num(score.suspicion, nan=-np.inf)
        order = found.clean.order() if name == "crossfit" else np.argsort(-known, kind="stable")
        expected[order[:count]] += 1
    table = found.table.to_pandas().sort_values("pair")
    np.testing.assert_array_equal(table["doubted_by"], expected)
    for row in found.figures():
        assert row["score"] == "crossfit" or row["agreement"] is None or 0 <= row["agreement"] <= 1


def test_embeddings_are_kept_and_used_again(here, place, monkeypatch):
    monkeypatch.setattr("clip_itm.training.kept_embeddings.PART", 7)
    assert run(place, "--data.cache_dir", str(here / "cache")) == 0
    first = pq.read_table(here / "audit" / "audit.parquet")
    kept = sorted((here / "cache" / "embeddings").iterdir())
    assert kept
    monkeypatch.setattr("clip_itm.training.encoder.Encoder.encode_some", None)
    assert run(place, "--data.cache_dir", str(here / "cache")) == 0
    assert pq.read_table(here / "audit" / "audit.parquet").equals(first)
    with kept[0].open("r+b") as file:  # damage is found, and the part made again
        file.seek(200)
        file.write(b"damage")
    with pytest.warns(UserWarning, match="encoded again"):
        assert run(place, "--data.cache_dir", str(here / "cache")) == 3
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run(place, "--data.cache_dir", str(here / "cache")) == 0
    assert pq.read_table(here / "audit" / "audit.parquet")["caption"].equals(first["caption"])


def test_a_recipe_brings_its_noise(here, place):
    recipe = here / "recipe.yaml"
    recipe.write_text(
        f"data: {{source: folder, root: {place / 'photos'}, cache_dir: {place / 'cache'}}}\n"
        f"backbone: {{kind: open_clip, model: {place / 'tiny.json'}}}\nnoise: {{ratio: 0.5}}\n"
    )
    assert main(["audit", str(recipe), "--model", str(place / "model")]) == 0
    wrong = pq.read_table(here / "audit" / "audit.parquet")["known_wrong"].to_pylist()
    assert 0.3 < np.mean(wrong) < 0.6
    assert main(["audit", str(recipe), "--model", str(place / "model"), "--noise.ratio", "0"]) == 0
    assert pq.read_table(here / "audit" / "audit.parquet")["known_wrong"].null_count == len(wrong)


def test_photos_that_the_data_set_holds_are_shown_by_the_app(here, place):
    recipe = here / "recipe.yaml"
    sizes = "train_images: 12, val_images: 4, test_images: 4, image_size: 32"
    recipe.write_text(
        f"data: {{source: sample, {sizes}, cache_dir: {place / 'cache'}}}\n"
        f"backbone: {{kind: open_clip, model: {place / 'tiny.json'}}}\n"
    )
    assert main(["audit", str(recipe), "--model", str(place / "model"), "--split", "val"]) == 0
    table = AuditTable.load(here / "audit")
    assert table.table["image"].null_count == len(table) == 20
    shown = {image_id: table.held.jpeg(image_id, 64) for image_id in table.table["image_id"].to_pylist()}
    assert len(shown) == 4
    assert all(jpeg[:2] == b"\xff\xd8" for jpeg in shown.values())
    assert table.held.jpeg("no such photo", 64) is None


def test_from_python_with_data_in_memory(place):
    split = splits_of(place / "photos", place / "cache")["train"]
    model = load_model(place / "model")
    rows = [{"image": row["image"]["path"], "caption": caption} for row in split.rows for caption in row["captions"]]
    by_split, by_rows = audit(split, model, cache_dir=place / "cache"), audit(rows, model, cache_dir=place / "cache")
    by_name = audit(place / "photos", place / "model", "--data.cache_dir", str(place / "cache"))
    assert by_split.share == by_name.share
    np.testing.assert_allclose(by_split.clean.values, by_name.clean.values, atol=1e-5)
    assert len(by_rows.clean.values) == len(split.pairs)
    with pytest.raises(ValueError, match="these are the splits a, b; choose one"):
        audit({"a": rows[:4], "b": rows[4:]}, model)
    with pytest.raises(ValueError, match="these data have train, val"):
        audit(place / "photos", model, "--data.cache_dir", str(place / "cache"), split="test")


# what is told before anything is loaded ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to audit: DATA with --model, or the --run"),
        (["photos", "--run", "run"], "say what to audit"),
        (["photos"], "DATA is judged by a --model"),
        (["--run", "run", "--model", "m"], "--model judges DATA"),
        (["nowhere", "--model", "m/m"], "nowhere: there is no such folder or recipe (of the Hub: hub:nowhere)"),
        (["./nowhere", "--model", "m/m"], "./nowhere: there is no such folder or recipe; expected"),
        (["photos", "--model", "nothing"], "--model nothing: there is no such folder"),
        (["photos", "--model", "./nothing"], "./nothing: there is no such folder"),
        (["photos", "--model", "m", "--data.rooot", "x"], "data.rooot: unknown key; did you mean 'root'?"),
        (["hub:no/such", "--model", "ViT-B-32:openai"], "data.path: no/such: it was not downloaded before"),
        (["photos", "--model", "m", "--force"], "say where with --clean-to"),
    ],
)
def test_mistakes_are_told_at_once(here, place, monkeypatch, capsys, words, message):
    monkeypatch.setattr(judging, "load_splits", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [str(place / word) if word == "photos" else word for word in words]
    assert main(["audit", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_split_that_is_not_there_is_told(here, place, capsys):
    assert run(place, "--split", "test") == 2
    assert "--split test: these data have train, val" in capsys.readouterr().err


# cleaning -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def judgement(monkeypatch):
    """A function that replaces what the model says of the training pairs: values, and the share that was found."""

    def put(values, share):
        real = judging.judge_split

        def judged(*args, **keys):
            found = real(*args, **keys)
            score = judging.PairScore(-np.asarray(values, dtype=np.float64), np.asarray(values, dtype=np.float64))
            numbers = dict(zip(("share", "low", "high"), share, strict=True))
            return judging.replace(found, scores={"crossfit": score}, **numbers)

        monkeypatch.setattr(judging, "judge_split", judged)

    return put


PAIRS = 40  # of 30 training photos: photos 0, 2, 4, ... have one caption, 1, 5, 9, ... two


def doubting(*pairs: int) -> np.ndarray:
    values = np.linspace(0.9, 0.99, PAIRS)
    values[list(pairs)] = np.linspace(0.01, 0.3, len(pairs))
    return values


def cleaned(here: Path):
    return json.loads((here / "cleaned" / "cleaned.json").read_text())


def test_clean_data_are_written_whole(here, place, judgement, capsys):
    judgement(np.ones(PAIRS), (0.0, 0.0, 0.008))
    assert run(place, "--clean-to", "cleaned") == 0
    told = capsys.readouterr().out
    assert "no wrong captions found (0 to 0.8 %)" in told
    assert f"cleaned: {PAIRS} train pairs, all of them: no wrong captions found" in told
    assert cleaned(here)["dropped_pairs"] == 0
    assert cleaned(here)["rule"] == {"share_found": 0.0}
    before, after = splits_of(place / "photos", place / "cache"), splits_of(here / "cleaned", here / "cache")
    assert {name: split.sha256 for name, split in after.items()} == {
        name: split.sha256 for name, split in before.items()
    }
    page = (here / "audit" / "audit.html").read_text()
    assert "There are no single pairs to show" in page
    assert "<form" not in page
    assert "data-rank" not in page
    assert run(place, "--clean-to", "again", "--drop-fraction", "0.1") == 2
    assert (
        "4 pairs would be left out (10.0%), and by the interval at most 1 (0.8%) are wrong" in capsys.readouterr().err
    )
    assert not (here / "again").exists()


def test_the_share_that_was_found_is_left_out(here, place, judgement, capsys):
    two = [1, 5]  # of photos 1 and 5, which have two captions
    judgement(doubting(*two), (0.05, 0.02, 0.1))
    assert run(place, "--clean-to", "cleaned") == 0
    assert cleaned(here)["dropped_pairs"] == 2
    assert cleaned(here)["rule"] == {"share_found": 0.05}
    assert cleaned(here)["wrong_share"] == {"share": 0.05, "low": 0.02, "high": 0.1}
    told = capsys.readouterr().out
    gone, stay = told.index("left out, nearest to the line first"), told.index("kept, nearest to the line first")
    captions = splits_of(place / "photos", place / "cache")["train"].pairs.captions.to_pylist()
    assert all(captions[k] in told[gone:stay] for k in two)
    assert captions[0] in told[stay:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--drop-fraction", "0.2"],
            "8 pairs would be left out (20.0%), and by the interval at most 4 (10.0%) are wrong",
        ),
        (["--below", "0.92"], "by the interval at most 4"),
        (["--below", "0.5"], "1 photo would lose its last caption and be left out (00.png)"),
    ],
)
def test_too_much_is_refused_without_force(here, place, judgement, capsys, words, message):
    judgement(doubting(0, 1), (0.05, 0.02, 0.1))
    assert run(place, "--clean-to", "cleaned", *words) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert "--force" in told.err
    assert "left out, nearest to the line first" in told.out, "they are shown before"
    assert not (here / "cleaned").exists()
    assert run(place, "--clean-to", "cleaned", *words, "--force") == 0
    assert cleaned(here)["rule"]["force"] is True


def test_a_judge_that_knows_nothing_cleans_nothing(here, place, judgement, capsys):
    judgement(doubting(1), (0.9, 0.8, 1.0))
    assert run(place, "--clean-to", "cleaned", "--below", "0.5") == 2
    assert "cannot tell pairs from mismatches" in capsys.readouterr().err


def test_another_split_is_cleaned_alone(here, place, judgement):
    judgement(np.linspace(0.1, 1, 20), (0.05, 0.02, 0.1))
    assert run(place, "--split", "val", "--clean-to", "cleaned") == 0
    before, after = splits_of(place / "photos", place / "cache"), splits_of(here / "cleaned", here / "cache")
    assert after["train"].sha256 == before["train"].sha256
    assert len(after["val"].pairs) == len(before["val"].pairs) - 1
    assert {"data", "model", "val_sha256"} <= cleaned(here).keys()


def test_a_weak_judge_says_that_it_does_not_know(here, place, monkeypatch, capsys):
    """Of noise no judge can tell; here every judge is called weak."""
    monkeypatch.setattr("clip_itm.calibration.estimate.WEAK", -1e9)
    monkeypatch.setattr("clip_itm.calibration.estimate.BLIND", 2.0)
    share = replace_share(monkeypatch, 0.4)
    assert run(place, "--clean-to", "cleaned") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"not known (0 to {100 * share[2]:.1f} %)" in told
    assert "the model knows such photos too little" in told
    assert "none: how many are wrong is not known; the default" in told
    assert "calibrated │" not in told
    assert "calibrated; the default" not in told
    assert "none of them is suspicious" in told
    assert json.loads((here / "cleaned/cleaned.json").read_text())["dropped_pairs"] == 0


def replace_share(monkeypatch, share: float) -> tuple[float, float, float]:
    """Whatever the scores: this share is found."""
    found = (share, share / 2, share + 0.1)
    monkeypatch.setattr("clip_itm.calibration.estimate.wrong_share", lambda *_: found[0])
    monkeypatch.setattr("clip_itm.calibration.estimate.share_interval", lambda *_: found[1:])
    return found
