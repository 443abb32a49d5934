"""`clip-itm bank build | import | info`."""

import re
import warnings

import numpy as np
import pytest
import torch

from clip_itm.backbones.configuration import OpenClipBackbone, TimmWordsBackbone, TransformersBackbone
from clip_itm.cli import main
from clip_itm.data.noise import CaptionNoise
from clip_itm.evaluation.detection import auc
from clip_itm.methods.npc.bank import MemoryBank, build_bank
from clip_itm.recipe import load_recipe
from clip_itm.runs.setup import load_data, make_encoder, make_model
from support.data_folders import photo, write
from support.tiny import tiny_recipe


def cells(output: str) -> dict[str, str]:
    return dict(re.findall(r"│ (.+?) +│ (.+?) +│", output))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe, and what a finished run of it leaves behind (its model with other weights than at step 0)."""
    folder = tmp_path_factory.mktemp("bank")
    recipe = tiny_recipe(folder)
    (folder / "my.yaml").write_text(recipe.to_yaml())
    data = load_data(recipe)
    model, processor = make_model(recipe, data.splits)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.5)
    best = folder / "run" / "best"
    model.save_pretrained(best)
    processor.save_pretrained(best)
    (best / "recipe.yaml").write_text(recipe.to_yaml())
    data.noise.save(best / "noise.npz")
    return folder


@pytest.fixture
def place(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return folder


def test_build_is_the_bank_of_the_model_before_training(place, capsys):
    with pytest.warns(UserWarning, match=r"starts from random weights.*head\.warmup_epochs.*--run DIR"):
        assert main(["bank", "build", str(place / "my.yaml"), "--rho", "0.5", "--training.seed", "3"]) == 0
    told = cells(capsys.readouterr().out)

    recipe = load_recipe(place / "my.yaml", ["--training.seed", "3"])
    data = load_data(recipe)
    model, processor = make_model(recipe, data.splits)
    embeddings = make_encoder(recipe, model, processor).encode(data.train)
    expected = build_bank(
        embeddings.images,
        embeddings.texts,
        data.train.pairs.image,
        data.noise.source,
        model.head.scale().item(),
        0.5,
        "",
        data.noise.sha256,
        seed=3,
    )
    bank = MemoryBank.load("bank.npz")
    bank.check(data.noise, data.train.pairs)
    assert bank.sha256 == expected.sha256 == told["sha256"]
    assert recipe.sha256[:12] in bank.model
    is_clean = data.noise.is_clean(data.train.pairs)
    share = f"{len(bank.clean)} ({len(bank.clean) / 200:.1%})"
    assert told["training pairs"] == "200"
    assert told["clean pairs (posterior above 0.5)"] == share
    assert told["left out below the clean mean"] == str(bank.below_clean_mean_rejected)
    assert told["AUC of the loss against the injected noise"] == f"{auc(bank.losses, ~is_clean):.3f}"
    assert told["right captions among the clean pairs"].startswith(f"{is_clean[bank.clean].mean():.1%} ")

    assert main(["bank", "info", "bank.npz"]) == 0
    again = cells(capsys.readouterr().out)
    assert again.items() <= told.items()
    assert set(told) - set(again) == {
        "right captions among the clean pairs",
        "AUC of the loss against the injected noise",
    }


def test_build_with_a_run_takes_its_model_and_its_noise(place, capsys):
    run = str(place / "run")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*random weights")
        assert main(["bank", "build", "--run", run, "--rho", "0.5", "--out", "run.npz"]) == 0
    bank = MemoryBank.load("run.npz")
    noise = CaptionNoise.load(place / "run" / "best" / "noise.npz")
    assert bank.noise_sha256 == noise.sha256
    assert bank.model.startswith(f"best model of {run}")
    with pytest.warns(UserWarning, match="random"):
        main(["bank", "build", str(place / "my.yaml"), "--rho", "0.5", "--out", "before.npz"])
    assert bank.sha256 != MemoryBank.load("before.npz").sha256
    capsys.readouterr()
    assert main(["bank", "build", "--run", run, "--noise.ratio", "0.2", "--out", "other.npz"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert main(["bank", "build", "--run", str(place), "--out", "other.npz"]) == 2
    assert "this run is not finished (it has no best/)" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_what_stops_a_build(place, tmp_path, capsys):
    assert main(["bank", "build", str(place / "my.yaml"), "--rho", "0.9999"]) == 2
    told = capsys.readouterr().err
    assert "no pair is certain enough to be clean" in told
    assert "lower head.rho (`clip-itm bank build --rho`)" in told
    assert not (tmp_path / "bank.npz").exists()
    (tmp_path / "bank.npz").write_text("something")
    assert main(["bank", "build", str(place / "my.yaml")]) == 2
    assert "bank.npz already exists" in capsys.readouterr().err
    assert main(["bank", "build", str(place / "my.yaml"), "--out", "bank.npy"]) == 2
    assert "saved as .npz" in capsys.readouterr().err
    for words in (["bank", "build"], ["bank", "build", "my.yaml", "--run", "runs/x"]):
        with pytest.raises(SystemExit):
            main(words)
    assert main(["bank", "info", "bank.npz"]) == 2
    assert "bank.npz is not a memory bank" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_rho_comes_from_the_head_of_the_recipe(place, capsys):
    words = ["bank", "build", str(place / "my.yaml"), "--head.kind", "npc", "--head.rho", "0.4"]
    assert main(words) == 0
    assert MemoryBank.load("bank.npz").rho == 0.4


def test_published_files_become_a_bank(golden, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arrays = {name.removeprefix("coco_"): value for name, value in golden("npc_dataset_layout").items()}
    lists = tmp_path / "coco" / "annotations" / "scan_split"
    photos = {"train": arrays["ids_lines"].tolist(), "dev": ["1"]}
    for split, image_ids in photos.items():
        write(lists / f"{split}_ids.txt", image_ids)
        write(lists / f"{split}_caps.txt", arrays["caps_lines"].tolist()[: 5 * len(image_ids)])
    for image_id in [*photos["train"], *photos["dev"]]:
        photo(tmp_path / "coco" / "images" / f"COCO_2014_{int(image_id):012d}.jpg")
    published = tmp_path / "coco" / "annotations" / "memory_bank"
    published.mkdir()
    for kind in ("img", "txt"):
        (published / f"0.4_mbank_{kind}_idx.npy").write_bytes(arrays[f"bank_{kind}_npy"].tobytes())
    write(
        tmp_path / "my.yaml",
        ["data: {source: coco, root: coco, cache_dir: cache}", "noise: {ratio: 0.4}", "backbone: {kind: timm-words}"],
    )
    words = ["bank", "import", "coco", "--recipe", "my.yaml", "--out", "bank.npz"]
    assert main(words) == 0
    told = cells(capsys.readouterr().out)
    bank = MemoryBank.load("bank.npz")
    np.testing.assert_array_equal(bank.image_entry, arrays["bank_img"])
    np.testing.assert_array_equal(bank.caption_entry, arrays["bank_txt"])
    recipe = load_recipe("my.yaml")
    data = load_data(recipe)
    bank.check(data.noise, data.train.pairs)
    assert told["photos"] == "6"
    assert "another program" in told["built by"]

    words[-1] = "other.npz"
    assert main([*words, "--noise.ratio", "0.2"]) == 2
    assert "no 0.2_mbank_img_idx.npy" in capsys.readouterr().err
    noisy = data.noise.apply(data.train.pairs).to_pylist()
    write(tmp_path / "0.4_noise_train_caps.txt", noisy)
    from_file = ["--noise.file", "0.4_noise_train_caps.txt", "--noise.ratio", "0"]
    assert main([*words, *from_file]) == 2
    assert "give --ratio" in capsys.readouterr().err
    assert main([*words, *from_file, "--ratio", "0.4"]) == 0
    assert MemoryBank.load("other.npz").sha256 == bank.sha256
    words[-1] = "third.npz"
    assert main([*words, "--data.max_images", "3"]) == 2
    assert "not in the training split: 3 photos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backbone", "part"),
    [
        (TimmWordsBackbone(), "the text tower"),
        (OpenClipBackbone(model="tiny.json"), "all"),
        (OpenClipBackbone(model="tiny.json", image_weights="tower.safetensors"), "the text tower"),
        (OpenClipBackbone(pretrained="openai"), None),
        (OpenClipBackbone(model="hf-hub:laion/model"), None),
        (TransformersBackbone(model="openai/clip"), None),
        (TransformersBackbone(model="openai/clip", from_scratch=True), "all"),
    ],
)
def test_backbones_from_scratch_are_known(backbone, part):
    assert backbone.random_part == part
