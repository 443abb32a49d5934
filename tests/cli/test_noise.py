"""`clip-itm noise make | info | import`."""

import numpy as np
import pytest

from clip_itm.cli import main
from clip_itm.data.configuration import SampleData
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from support.tiny import tiny_recipe

PHOTOS = {"train_images": 20, "val_images": 2, "test_images": 2, "image_size": 16}


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    data = {"source": "sample", "cache_dir": str(tmp_path / "cache"), **PHOTOS}
    lines = [f"  {key}: {value}" for key, value in data.items()]
    (tmp_path / "recipe.yaml").write_text("\n".join(["data:", *lines, "backbone: {kind: timm-words}"]))
    return "recipe.yaml"


def pairs_of(tmp_path):
    return load_splits(SampleData(cache_dir=str(tmp_path / "cache"), **PHOTOS))["train"].pairs


def table(output: str) -> dict[str, str]:
    rows = (line.rsplit("  ", 1) for line in output.splitlines() if "  " in line)
    return {label.strip(): value for label, value in rows}


def test_make_draws_what_the_recipe_says_and_info_tells_the_truth(recipe, tmp_path, capsys):
    assert main(["noise", "make", recipe, "--out", "noise.npz", "--noise.ratio", "0.5", "--noise.seed", "7"]) == 0
    made = table(capsys.readouterr().out)
    pairs = pairs_of(tmp_path)
    noise = CaptionNoise.load("noise.npz")
    assert noise.sha256 == CaptionNoise.draw(pairs, 0.5, "caption", 7).sha256
    assert main(["noise", "info", "noise.npz", recipe]) == 0
    told = table(capsys.readouterr().out)
    assert told == made
    assert told["training pairs"] == "100"
    assert told["nominal ratio"] == "0.5"
    assert told["sha256"] == noise.sha256
    assert told["pairs with a caption of another photo"] == f"{1 - noise.is_clean(pairs).mean():.3%}"
    kept = [float(told[f"photos that keep {c} right caption{'s' * (c != 1)}"].rstrip("%")) for c in range(6)]
    right = noise.is_clean(pairs).reshape(20, 5).sum(axis=1)
    assert kept == pytest.approx([100 * np.mean(right == c) for c in range(6)], abs=1e-3)


def test_facts_of_the_harder_levels_are_shown(recipe, tmp_path, capsys):
    assert main(["noise", "make", recipe, "--out", "noun.npz", "--noise.ratio", "0.5", "--noise.level", "noun"]) == 0
    made = table(capsys.readouterr().out)
    lonely = CaptionNoise.load("noun.npz").details["without_noun"]
    assert made["pairs without a noun in common, shuffled"] == str(lonely)
    (tmp_path / "tiny.yaml").write_text(tiny_recipe(tmp_path, noise={"ratio": 0.5, "neighbours": 7}).to_yaml())
    assert main(["noise", "make", "tiny.yaml", "--out", "near.npz", "--noise.level", "neighbour"]) == 0
    made = table(capsys.readouterr().out)
    assert main(["noise", "info", "near.npz"]) == 0
    told = table(capsys.readouterr().out)
    assert made.items() >= told.items()
    assert told["level"] == "neighbour"
    assert told["nearest photos, one of whose captions is drawn"] == "7"
    assert told["nearest by the features of"] == "random weights"
    assert made["pairs with a caption of another photo"] == "50.000%"


def test_info_without_data_prints_what_the_file_says(recipe, capsys):
    main(["noise", "make", recipe, "--out", "noise.npz", "--noise.ratio", "0.5", "--noise.level", "image"])
    capsys.readouterr()
    assert main(["noise", "info", "noise.npz"]) == 0
    told = table(capsys.readouterr().out)
    assert told["level"] == "image"
    assert told["seed"] == "99"
    assert "photos" not in told


@pytest.mark.parametrize("suffix", ["npy", "txt"])
def test_import_gives_a_file_that_training_reads(recipe, tmp_path, capsys, suffix):
    pairs = pairs_of(tmp_path)
    noise = CaptionNoise.draw(pairs, 0.6, "caption", 1)
    if suffix == "npy":
        np.save("published.npy", pairs.image[np.argsort(noise.source)])
    else:
        (tmp_path / "published.txt").write_text("".join(f"{line}\n" for line in noise.apply(pairs).to_pylist()))
    assert main(["noise", "import", f"published.{suffix}", recipe, "--out", "noise.npz"]) == 0
    assert table(capsys.readouterr().out)["seed"] == "not drawn here"
    saved = CaptionNoise.load("noise.npz")
    if suffix == "npy":  # right captions of a photo may stand in other slots of it
        photo_captions = lambda noise: set(zip(pairs.image.tolist(), noise.source.tolist(), strict=True))  # noqa: E731
        assert photo_captions(saved) == photo_captions(noise)
    else:
        assert saved.apply(pairs) == noise.apply(pairs)


def test_mistakes_are_told_in_one_line_without_a_traceback(recipe, capsys):
    np.save("index.npy", np.zeros(100, dtype=np.int64))
    for words, message in [
        (["noise", "info", "nothing.npz"], "noise file nothing.npz does not exist"),
        (["noise", "info", "index.npy"], "give a recipe"),
        (["noise", "import", "index.npy", recipe, "--out", "a.npz"], "photo 0 is used for 100 captions but has 5"),
        (["noise", "make", recipe, "--out", "a.txt"], "saved as .npz"),
        (["noise", "make", recipe, "--out", "a.npz", "--noise.ratio", "1.5"], "noise.ratio"),
    ]:
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert main(["noise", "make", recipe, "--out", "a.npz", "--noise.ratio", "0.5"]) == 0
    assert main(["noise", "make", recipe, "--out", "a.npz", "--noise.ratio", "0.4"]) == 2
    assert "holds other noise" in capsys.readouterr().err
