"""The line between two models: its ends are the models, its figures the evaluator's, its choice made on val."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from clip_itm.cli import main
from clip_itm.commands.interpolate import alphas
from clip_itm.data.class_folder import read_class_folder
from clip_itm.evaluation.zero_shot import class_vectors, top1_accuracy
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import load_recipe
from clip_itm.runs.interpolate import Line, Point, choose, float_state, set_weights
from clip_itm.runs.train import train
from clip_itm.similarity.cosine import Cosine
from support.tiny import tiny_recipe

CLASSES = ("blue_box", "green", "red_mug")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs, and photos of three classes (three, two and four of them)."""
    folder = tmp_path_factory.mktemp("interpolate")
    train(tiny_recipe(folder, training={"epochs": 2}))
    generator = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / "classes" / name).mkdir(parents=True)
        for photo in range((3, 2, 4)[number]):
            pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            pixels[..., 2 - number] += 150
            Image.fromarray(pixels).save(folder / "classes" / name / f"{photo}.png")
    (folder / "templates.txt").write_text("a photo of a {}.\n{} on a table\n")
    return folder


def interpolate(folder, *words) -> int:
    return main(["interpolate", "--tuned", str(folder / "run"), *map(str, words)])


def ends(folder) -> tuple[dict, dict]:
    """The weights before training, and those of the best checkpoint."""
    line = Line(load_recipe(folder / "run"), None, folder / "run" / "best")
    return line.base, ItmModel.from_pretrained(folder / "run" / "best").state_dict()


# weights --------------------------------------------------------------------------------------------------------------


class Tower(torch.nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.norm = torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)
        self.norm(self.layer(torch.randn(8, 64)))
        self.norm.num_batches_tracked += seed


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_points_of_the_line(alpha):
    base, tuned, model = float_state(Tower(1)), float_state(Tower(2)), Tower(3)
    set_weights(model, base, tuned, alpha)
    for name, value in model.state_dict().items():
        if alpha in (0, 1) and value.is_floating_point():
            assert torch.equal(value, (base, tuned)[int(alpha)][name])
        if value.is_floating_point():
            torch.testing.assert_close(value, (1 - alpha) * base[name] + alpha * tuned[name], rtol=1e-5, atol=1e-6)
    assert model.norm.num_batches_tracked == tuned["norm.num_batches_tracked"]
    set_weights(model, tuned, tuned, alpha)
    assert all(torch.equal(value, tuned[name]) for name, value in model.state_dict().items())


def test_states_are_float32_copies():
    tower = Tower(0).bfloat16()
    state = float_state(tower)
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    tower.layer.weight.data.zero_()
    assert state["layer.weight"].abs().sum() > 0


# the command ----------------------------------------------------------------------------------------------------------


def test_the_ends_are_base_and_tuned_with_the_figures_of_the_run(trained, tmp_path, capsys):
    assert interpolate(trained, "--out", tmp_path / "out", "--alphas", "0:1:0.5") == 0
    printed = capsys.readouterr().out
    assert "val rsum" in printed
    assert "best rsum on val" in printed
    content = json.loads((tmp_path / "out" / "interpolation.json").read_text())
    results = json.loads((trained / "run" / "results.json").read_text())
    first, middle, last = content["points"]
    assert [first["alpha"], middle["alpha"], last["alpha"]] == [0, 0.5, 1]
    assert first["results"] == results["zero_shot"]
    assert last["results"] == results["best"]
    assert first["val"]["rsum"] == results["val_history"][0]["eval_rsum"]
    assert last["val"]["rsum"] == results["best_val_rsum"]
    best = max(content["points"], key=lambda point: point["val"]["rsum"])
    assert content["chosen"] == {"alpha": best["alpha"], "by": "best rsum on val"}
    assert (tmp_path / "out" / "interpolation.png").stat().st_size > 10_000


def test_the_chosen_model_is_that_point(trained, tmp_path):
    """Made by hand from the two ends; `clip-itm evaluate` finds the figures of the table."""
    out = tmp_path / "out"
    assert interpolate(trained, "--out", out, "--alphas", "0.5:0.5:1", "--choose", "0.5") == 0
    base, tuned = ends(trained)
    model = ItmModel.from_pretrained(out / "model")
    assert model.state_dict().keys() == tuned.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, 0.5 * base[name] + 0.5 * tuned[name], rtol=1e-5, atol=1e-7)
    assert main(["evaluate", str(out / "model"), "--json", str(tmp_path / "results.json")]) == 0
    evaluated = json.loads((tmp_path / "results.json").read_text())
    content = json.loads((out / "interpolation.json").read_text())
    assert evaluated["all"] == content["points"][0]["results"]["all"]
    assert json.loads((out / "model" / "interpolated_from.json").read_text())["alpha"] == 0.5
    assert content["chosen"] == {"alpha": 0.5, "by": "hand"}


def test_another_base_and_keys_of_the_recipe(trained, tmp_path):
    checkpoint = sorted((trained / "run").glob("checkpoint-*"))[0]
    words = ["--base", checkpoint, "--alphas", "0:1:1", "--evaluation.split", "val", "--evaluation.bootstrap", "0"]
    assert interpolate(trained, "--out", tmp_path / "out", *words) == 0
    content = json.loads((tmp_path / "out" / "interpolation.json").read_text())
    history = json.loads((trained / "run" / "results.json").read_text())["val_history"]
    step = int(checkpoint.name.split("-")[1])
    expected = next(entry["eval_rsum"] for entry in history if entry["step"] == step)
    assert content["split"] == "val"
    assert content["points"][0]["results"]["all"]["metrics"]["rsum"] == expected == content["points"][0]["val"]["rsum"]


@torch.no_grad()
def test_zero_shot_accuracy_is_that_of_loops_over_photos_and_prompts(trained, tmp_path, capsys):
    (tmp_path / "names.csv").write_text("folder,name\ngreen,green ball\nred_mug,red cup\nblue_box,blue box\n")
    words = ["--zeroshot", trained / "classes", "--templates", trained / "templates.txt", "--choose", "both"]
    words += ["--classes", tmp_path / "names.csv", "--alphas", "0:1:0.5"]
    assert interpolate(trained, "--out", tmp_path / "out", *words) == 0
    assert "top-1 (9 photos)" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "interpolation.json").read_text())
    assert content["zero_shot"]["classes"] == ["blue box", "green ball", "red cup"]

    model = ItmModel.from_pretrained(trained / "run" / "best").eval()
    processor = ItmProcessor.from_pretrained(trained / "run" / "best")
    vectors = []
    for name in content["zero_shot"]["classes"]:
        total = torch.zeros(16)
        for template in ("a photo of a {}.", "{} on a table"):
            total += model.encode_texts(**processor(text=template.format(name)))[0]
        vectors.append(total / total.norm())
    right = 0
    for number, name in enumerate(CLASSES):
        for path in (trained / "classes" / name).iterdir():
            pixels = processor(images=[Image.open(path)])["pixel_values"]
            cosines = [float(model.encode_images(pixels)[0] @ vector) for vector in vectors]
            right += int(np.argmax(cosines)) == number
    assert content["points"][-1]["zero_shot"] == pytest.approx(100 * right / 9)

    means = [(point["val"]["rsum"] / 6 + point["zero_shot"]) / 2 for point in content["points"]]
    assert content["chosen"]["alpha"] == content["points"][int(np.argmax(means))]["alpha"]
    assert "no independent figure" in content["chosen"]["by"]


@pytest.mark.slow
def test_adapters_are_merged_before_weights_are_mixed(tmp_path):
    """A and B of an adapter must not be mixed one by one: at alpha the change is alpha times B A."""
    train(tiny_recipe(tmp_path, backbone={"lora": {"rank": 2, "alpha": 8}}, training={"max_steps": 3}))
    base, _ = ends(tmp_path)
    assert interpolate(tmp_path, "--out", tmp_path / "out", "--alphas", "0.5:0.5:1", "--choose", "0.5") == 0
    tuned = ItmModel.from_pretrained(tmp_path / "run" / "best").without_lora().state_dict()
    model = ItmModel.from_pretrained(tmp_path / "out" / "model")
    assert model.config.backbone["lora"] is None
    moved = 0.0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, (base[name] + tuned[name]) / 2, rtol=1e-5, atol=1e-6)
        moved += (tuned[name] - base[name]).abs().sum().item()
    assert moved > 0


# choosing, classes, alphas --------------------------------------------------------------------------------------------


def test_choosing_looks_at_dev_and_never_at_the_final_split():
    figures = [(0.0, 300.0, 90.0, 100.0), (0.5, 320.0, 80.0, 500.0), (1.0, 320.0, 20.0, 600.0)]
    points = [
        Point(alpha, {"rsum": dev}, {"all": {"metrics": {"rsum": final}}}, zero) for alpha, dev, zero, final in figures
    ]
    assert choose(points, "val").alpha == 0.5  # of two equal ones that closer to the base
    assert choose(points, "both").alpha == 0.0
    assert choose(points, 1.0).alpha == 1.0


def test_class_vectors_and_accuracy_by_hand():
    prompts = torch.tensor([[[3.0, 0.0], [0.0, 5.0]], [[0.0, -2.0], [0.0, -1.0]]])
    vectors = class_vectors(prompts)
    torch.testing.assert_close(vectors, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.6, -0.8]])
    assert top1_accuracy(images, vectors, torch.tensor([0, 0, 1, 0])) == 75


def test_class_folders(trained, tmp_path):
    found = read_class_folder(trained / "classes", trained / "templates.txt")
    assert (found.names, found.labels) == (["blue box", "green", "red mug"], [0] * 3 + [1] * 2 + [2] * 4)
    assert found.prompts.to_pylist()[:3] == ["a photo of a blue box.", "blue box on a table", "a photo of a green."]


def test_alphas():
    assert alphas("0:1:0.1") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert alphas("0.25:0.9:0.25") == [0.25, 0.5, 0.75]


# bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["0:1", "a:b:c", "0:2:0.5", "1:0:0.1", "0:1:0"])
def test_bad_alphas(word, trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        interpolate(trained, "--out", tmp_path / "out", "--alphas", word)
    assert "expected" in capsys.readouterr().err


def test_bad_words_are_told_before_anything_is_evaluated(trained, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    shutil.copytree(trained / "classes", tmp_path / "empty")
    (tmp_path / "empty" / "zebra").mkdir()
    (tmp_path / "names.csv").write_text("folder,name\ngreen,green\nred_mug,mug\n")
    (tmp_path / "more.csv").write_text("folder,name\ngreen,green\nred_mug,mug\nblue_box,box\ncat,cat\n")
    (tmp_path / "templates.txt").write_text("a photo of a {}.\na photo\n")
    new, classes = ["--out", tmp_path / "new"], ["--zeroshot", trained / "classes"]
    cases = [
        (["--out", tmp_path / "full"], "full exists and is not empty"),
        ([*new, "--base", tmp_path / "nowhere"], "nowhere: there is no such folder; expected a run folder"),
        ([*new, "--choose", "0.25"], "--choose 0.25 is not one of the alphas (0, 0.1,"),
        ([*new, "--choose", "both"], "--choose both need a zero-shot set"),
        ([*new, "--templates", tmp_path / "templates.txt"], "name it with --zeroshot"),
        ([*new, "--zeroshot", tmp_path / "one"], "at least two classes"),
        ([*new, "--zeroshot", tmp_path / "nowhere"], "at least two classes"),
        ([*new, "--zeroshot", tmp_path / "empty"], "zebra: this class has no photos"),
        ([*new, *classes, "--classes", tmp_path / "names.csv"], "no name for 1 classes, such as 'blue_box'"),
        ([*new, *classes, "--classes", tmp_path / "more.csv"], "no folder 1 classes, such as 'cat'"),
        ([*new, *classes, "--templates", tmp_path / "templates.txt"], "templates.txt, line 2: expected a sentence"),
    ]
    for words, answer in cases:
        assert interpolate(trained, *words) == 2, answer
        assert answer in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_models_that_have_no_line_between_them(trained, tmp_path, capsys):
    other = tiny_recipe(tmp_path, head={"kind": "crcl"}, training={"max_steps": 1})
    ItmModel.from_backbone(other.backbone, other.head).save_pretrained(tmp_path / "crcl")
    assert interpolate(trained, "--out", tmp_path / "new", "--base", tmp_path / "crcl") == 2
    assert "1 weight is in one of the two models only, such as head.logit_scale" in capsys.readouterr().err
    file = tmp_path / "tiny_clip.json"
    file.write_text(file.read_text().replace('"context_length": 24', '"context_length": 20'))
    ItmModel.from_backbone(other.backbone).save_pretrained(tmp_path / "short")
    assert interpolate(trained, "--out", tmp_path / "new", "--base", tmp_path / "short") == 2
    answer = capsys.readouterr().err
    assert "positional_embedding is [20, 16] there and [24, 16] in the tuned model" in answer


def test_a_model_without_recipe_needs_a_base(trained, tmp_path, capsys):
    shutil.copytree(trained / "run" / "best", tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").unlink()
    words = ["interpolate", "--tuned", str(tmp_path / "model"), "--out", str(tmp_path / "new")]
    assert main(words) == 2
    assert "name it with --base" in capsys.readouterr().err
    assert main([*words, "--base", str(trained / "run")]) == 2
    assert "say what to evaluate it on" in capsys.readouterr().err


def test_prompts_need_a_similarity_of_vectors(trained, monkeypatch):
    monkeypatch.setattr(Cosine, "is_dot_product", False)
    classes = read_class_folder(trained / "classes")
    with pytest.raises(ValueError, match="the mean of prompts is a vector"):
        Line(load_recipe(trained / "run"), None, trained / "run" / "best", classes)
