"""From Python: arguments are another spelling of a recipe, and a run from its saved recipe is the same to the bit."""

import inspect
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

import clip_itm
from clip_itm import ItmModel, ItmTrainer, Recipe, audit, evaluate, load_model, load_recipe, train
from clip_itm.backbones.blocks import parameters
from clip_itm.backbones.configuration import OpenClipBackbone, TransformersBackbone
from clip_itm.data.configuration import NoiseSection
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.methods.npc.configuration import NpcHeadConfig
from clip_itm.runs.build import val_metrics
from clip_itm.runs.start import started_model
from clip_itm.section import RecipeError
from clip_itm.training.encode import Embeddings
from clip_itm.training.folder import other_files
from support.paths import ROOT
from support.tiny import TINY_CLIP, tiny_recipe

TRAINING = {"batch_size": 32, "learning_rate": 1e-3, "trackers": [], "epochs": 2, "log_every": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    (folder / "tiny_clip.json").write_text(json.dumps(TINY_CLIP))
    return folder


@pytest.fixture(scope="module")
def drawn(place) -> DatasetDict:
    """Drawn scenes as a data set of the Hub has them: an image and its captions per row."""
    recipe = tiny_recipe(place)
    features = Features({"image": ImageFeature(), "sentences": [Value("string")], "author": Value("string")})
    splits = {}
    for name, split in load_splits(recipe.data).items():
        rows = [{"image": row["image"], "sentences": row["captions"], "author": "me"} for row in split.rows]
        splits[name] = Dataset.from_list(rows, features=features)
    return DatasetDict(splits)


def backbone(place: Path) -> dict:
    return {"kind": "open_clip", "model": str(place / "tiny_clip.json")}


def keys(place: Path, **others) -> dict:
    return {**TRAINING, "cache_dir": str(place / "cache"), "evaluation": {"bootstrap": 20}, "noise": 0.4, **others}


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_same_run(one: Path, other: Path, same_data_folder: bool = True) -> None:
    first, second = (load_file(run / "best" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    for result in results:
        del result["seconds"], result["waiting"], result["provenance"]
        if not same_data_folder:
            del result["recipe_sha256"]
        for entry in result["val_history"]:
            for name in ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"):
                entry.pop(name, None)
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def trained(place, drawn):
    """A run from Python on a DatasetDict: the trainer, its model before training, and that model's embeddings then."""
    model = load_model(backbone(place))
    before = model.encode(["a red circle"])
    trainer = ItmTrainer(model, drawn, output_dir=place / "run", **keys(place))
    trainer.train()
    return trainer, model, before


@pytest.mark.slow
def test_a_run_from_its_saved_recipe_is_the_same_to_the_bit(trained, place):
    trainer, _, _ = trained
    saved = load_recipe(place / "run" / "recipe.yaml")
    assert saved == trainer.recipe
    assert saved.sha256 == trainer.recipe.sha256
    train(load_recipe(place / "run" / "recipe.yaml", ["--output_dir", str(place / "again")]))
    assert_same_run(place / "run", place / "again")


@pytest.mark.slow
def test_the_model_that_was_given_is_the_one_that_was_trained(trained, place):
    trainer, model, before = trained
    assert trainer.model is model
    best = load_file(place / "run" / "best" / "model.safetensors")
    assert all(torch.equal(best[name], value.cpu()) for name, value in model.state_dict().items())
    after = model.encode(["a red circle"])
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(after, ItmModel.from_pretrained(place / "run" / "best").encode(["a red circle"]))


@pytest.mark.slow
def test_evaluation_in_memory_gives_the_figures_of_the_run(trained, place, drawn):
    trainer, model, _ = trained
    expected = json.loads((place / "run" / "results.json").read_text())["best"]["all"]["metrics"]
    found = evaluate(model, trainer.data["test"], bootstrap=20, cache_dir=place / "cache")
    assert found["all"].metrics == expected
    given = evaluate(place / "run", drawn["test"], bootstrap=0, cache_dir=place / "cache")
    assert given["all"].metrics == expected
    assert f"{expected['rsum']:.1f}" in str(found)
    rows = [(Image.open(io.BytesIO(png_of(row))), row["sentences"]) for row in undecoded(drawn["test"])]
    assert evaluate(model, rows, bootstrap=0, cache_dir=place / "cache")["all"].metrics == expected
    with pytest.raises(ValueError, match=r"these are the splits train, val, test; choose one"):
        evaluate(model, drawn)


def undecoded(rows: Dataset) -> Dataset:
    return rows.cast_column("image", ImageFeature(decode=False))


def png_of(row: dict) -> bytes:
    file = io.BytesIO()
    read_image(row["image"]).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_the_audit_of_a_trainer_lists_the_worst(trained):
    trainer, _, _ = trained
    found = audit(trainer)
    suspects = found.head(7)
    assert [row["rank"] for row in suspects] == [1, 2, 3, 4, 5, 6, 7]
    assert suspects == found.scored.slice(0, 7).to_pylist()
    assert suspects[0]["caption"].split()[0] in str(suspects)


@pytest.mark.slow
def test_data_in_memory_are_kept_as_they_were_given(trained, place, drawn):
    kept = clip_itm.runs.trainer.load_splits(trained[0].recipe.data)
    for name, split in kept.items():
        assert [row["image"]["bytes"] for row in split.rows] == [
            row["image"]["bytes"] for row in undecoded(drawn[name])
        ]
    assert other_files(place / "run") == []


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_and_no_other_one(trained, place, drawn):
    before = files_of(place / "run")
    again = ItmTrainer(backbone(place), drawn, output_dir=place / "run", **keys(place))
    assert again.recipe == trained[0].recipe
    again.train()
    assert files_of(place / "run") == before
    fewer = DatasetDict({**drawn, "train": drawn["train"].select(range(30))})
    for arguments, wrong in (
        ((fewer, keys(place)), "holds a run on other data"),
        ((drawn, keys(place, learning_rate=1e-4)), r"of another recipe \(different: training.learning_rate\)"),
        ((drawn, keys(place, noise=0.2)), r"different: noise.ratio"),
    ):
        with pytest.raises(ValueError, match=wrong):
            ItmTrainer(backbone(place), arguments[0], output_dir=place / "run", **arguments[1]).train()
    with pytest.raises(ValueError, match="in the folder of this run, which would replace it"):
        ItmTrainer(trained[1], drawn, output_dir=place / "run", **keys(place)).train(overwrite=True)
    assert files_of(place / "run") == before


@pytest.mark.slow
def test_training_starts_from_a_trained_model(trained, place, drawn):
    """Freezing and adapters may differ, weights and temperature go along, other towers are refused."""
    run, texts = str(place / "run"), ["a red circle", "a blue square"]
    plain, frozen = load_model(run), load_model(run, freeze_text=True)
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in frozen.state_dict().items())
    assert not any(part.requires_grad for part in parameters(frozen.backbone.text_blocks()))
    adapted = load_model(run, lora={"rank": 2})
    assert any("lora_A" in name for name in adapted.state_dict())
    np.testing.assert_allclose(adapted.encode(texts), plain.encode(texts), atol=1e-6)
    for model, freezes in ((plain, False), (frozen, True), (run, False)):
        recipe = ItmTrainer(model, drawn, "npc", output_dir=place / "second").recipe
        assert recipe.start_from == run
        assert recipe.backbone.freeze_text == freezes
        assert (recipe.base_models, recipe.random_part) == ([run], None)
    for kind in ("npc", "crcl"):
        model, _ = started_model(OpenClipBackbone(**backbone(place)), ItmTrainer(run, drawn, kind).recipe.head, run)
        np.testing.assert_array_equal(model.encode(texts), plain.encode(texts))
        assert kind == "crcl" or model.head.scale().item() == pytest.approx(plain.head.scale().item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"was made with backbone.model .*tiny_clip.json', and the recipe says 'ViT-B"):
        started_model(OpenClipBackbone(model="ViT-B-32"), plain.head.config, run)
    with pytest.raises(ValueError, match=r"has towers of backbone.kind open_clip, and the recipe names transformers"):
        started_model(TransformersBackbone(model="some/clip"), plain.head.config, run)


class Stops(TrainerCallback):
    """An end in the middle of an epoch, as a kill would have it."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 8:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_end(trained, place, drawn):
    def make(**more):
        return ItmTrainer(backbone(place), drawn, output_dir=place / "stopped", **keys(place), **more)

    with pytest.raises(KeyboardInterrupt):
        make(callbacks=[Stops()]).train()
    assert (place / "stopped" / "data" / "dataset_dict.json").is_file()
    provenance = json.loads((place / "stopped" / "provenance.json").read_text())
    assert provenance["python"] == [f"{__name__}.Stops"]
    fewer = DatasetDict({**drawn, "train": drawn["train"].select(range(30))})
    with pytest.raises(ValueError, match="holds a run on other data"):
        ItmTrainer(backbone(place), fewer, output_dir=place / "stopped", **keys(place)).train()
    make().train()
    assert_same_run(place / "run", place / "stopped", same_data_folder=False)


@pytest.mark.slow
def test_a_changed_model_and_rows_in_memory_are_kept_too(place, drawn):
    """Weights that the user changed, rows of a list, a hash split, a method with its own trainer, early stopping."""
    model = load_model(backbone(place), seed=3)
    with torch.no_grad():
        model.backbone.model.text_projection.mul_(1.5)
    changed = model.backbone.model.text_projection.detach().clone()
    rows = [
        {"img": Image.open(io.BytesIO(png_of(row))), "text": row["sentences"][0]} for row in undecoded(drawn["train"])
    ]
    trainer = ItmTrainer(
        model,
        rows,
        {"kind": "npc", "warmup_epochs": 1, "rho": 0.5},
        output_dir=place / "changed",
        callbacks=[EarlyStoppingCallback(5, 0.5)],
        compute_metrics=lambda embeddings, ranks: {"mean_rank": float(ranks.text_to_image.mean())},
        report_to="none",
        image_column="img",
        val_fraction=0.25,
        **{**keys(place), "batch_size": 8, "epochs": 2},
    )
    recipe = trainer.recipe
    assert recipe.start_from == str(place / "changed" / "start")
    assert (recipe.training.early_stopping_patience, recipe.training.early_stopping_threshold) == (5, 0.5)
    assert recipe.training.trackers == ()
    results = trainer.train()
    start = load_file(place / "changed" / "start" / "model.safetensors")
    torch.testing.assert_close(start["backbone.model.text_projection"], changed.cpu(), rtol=0, atol=0)
    assert all(entry["eval_mean_rank"] > 0 for entry in results["val_history"])
    assert set(trainer.data) == {"train", "val", "test"}
    assert other_files(place / "changed") == []
    saved = load_recipe(place / "changed" / "recipe.yaml", ["--output_dir", str(place / "changed_again")])
    again = train(saved)
    for entry in results["val_history"]:
        del entry["eval_mean_rank"]
    assert again["best"] == results["best"]
    first, second = (load_file(place / run / "best" / "model.safetensors") for run in ("changed", "changed_again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    provenance = json.loads((place / "changed_again" / "provenance.json").read_text())
    assert provenance["start"] == json.loads((place / "changed" / "provenance.json").read_text())["start"]


@pytest.mark.slow
@pytest.mark.parametrize(("evaluate_every", "end"), [(None, 12), (4, 8)])
def test_early_stopping_ends_a_run_once(tmp_path, evaluate_every, end):
    """Nothing gets better by 1,000, so the second evaluation after the first checkpoint ends it, and stays the end."""
    training = {"epochs": 4, "early_stopping_patience": 1, "early_stopping_threshold": 1000}
    recipe = tiny_recipe(tmp_path, training={**training, "evaluate_every": evaluate_every})
    run = Path(recipe.output_dir)
    results = train(recipe)
    assert results["steps"] == end
    assert [entry["step"] for entry in results["val_history"]] == [0, end // 2, end]
    assert (run / f"checkpoint-{end}").is_dir()
    (run / "results.json").unlink()  # as of a run that was killed at its very end
    again = train(recipe)
    for result in (results, again):
        del result["seconds"], result["waiting"]
    assert again == results


def example(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    return text[text.index("```python\nfrom datasets import") + len("```python\n") :].partition("```")[0]


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(place, drawn, tmp_path):
    code = example("docs/python.md")
    assert code == example("README.md")
    assert len(code.splitlines()) <= 15
    (tmp_path / "a.png").write_bytes(png_of(undecoded(drawn["test"])[0]))
    for written, here in (
        ('"openai/clip-vit-base-patch32"', repr(backbone(place))),
        ('load_dataset("me/products")', "drawn"),
        ('method="npc"', 'method={"kind": "npc", "rho": 0.5}'),  # drawn scenes tell less than products
        ("epochs=3", f"epochs=3, batch_size=32, trackers=[], cache_dir={str(place / 'cache')!r}"),
        ('"runs/products"', repr(str(tmp_path / "products"))),
        ('["a.jpg", "b.jpg"]', repr([str(tmp_path / "a.png")] * 2)),
    ):
        assert code.count(written) == 1
        code = code.replace(written, here)
    names = {"drawn": drawn}
    exec(code, names)
    assert names["trainer"].recipe.head.kind == "npc"
    assert len(names["suspects"]) == 20
    assert names["images"].shape == (2, 16)
    assert names["texts"].shape == (1, 16)


# Two spellings


def test_arguments_and_a_recipe_are_two_spellings(place, drawn, tmp_path):
    written = tiny_recipe(
        tmp_path,
        noise={"ratio": 0.4},
        head={"kind": "npc", "rho": 0.5},
        training={"epochs": 3, "warmup": 0.2, "early_stopping_patience": 2},
        evaluation={"bootstrap": 20, "protocols": ["all"]},
    )
    section = dict(written.backbone)
    common = {
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "warmup": 0.2,
        "log_every": 2,
        "early_stopping_patience": 2,
        "output_dir": written.output_dir,
        "evaluation": {"bootstrap": 20, "protocols": ["all"]},
    }
    spellings = [
        ItmTrainer(section, written.data, {"kind": "npc", "rho": 0.5}, noise=0.4, trackers=[], **common),
        ItmTrainer(
            written.backbone,
            written.data.model_dump(),
            NpcHeadConfig(rho=0.5),
            noise=NoiseSection(ratio=0.4),
            report_to="none",
            **common,
        ),
        ItmTrainer.from_recipe(written),
    ]
    for trainer in spellings:
        assert trainer.recipe == written
        assert trainer.recipe.sha256 == written.sha256
    defaults = ItmTrainer(backbone(place), drawn).recipe
    assert defaults.training == Recipe.model_fields["training"].default
    assert defaults.output_dir == "runs/run"
    assert defaults.data.path == "runs/run/data"
    assert (defaults.data.image_column, defaults.data.caption_column) == ("image", "sentences")


def test_new_keys_leave_hashes_of_recipes_as_they_were(tmp_path):
    recipe = tiny_recipe(tmp_path)
    content = recipe.model_dump(mode="json")
    assert {"start_from"} <= content.keys()
    other = recipe.model_copy(update={"training": recipe.training.model_copy(update={"early_stopping_threshold": 1.0})})
    assert other.sha256 == recipe.sha256, "without patience it says nothing"
    for change in ({"start_from": "runs/a"}, {"training": {**content["training"], "early_stopping_patience": 2}}):
        assert Recipe.model_validate({**content, **change}).sha256 != recipe.sha256


# What is wrong is told


ROW = {"image": np.zeros((8, 8, 3), np.uint8), "caption": "a mug"}


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ([], "data: there are no rows in it"),
        ({}, "data: an empty dict; expected a Dataset"),
        ({"train": []}, "split train: there are no rows in it"),
        (3, "data: int is no data set; expected a Dataset"),
        ([{"image": ROW["image"]}], r'data, row 0: expected {"image": ..., "caption": ...} or \(image, caption\)'),
        ([ROW, {"image": "a.jpg"}], 'data, row 1: expected {"image": ..., "caption": ...} as in row 0'),
        ([ROW, (ROW["image"], "a mug")], "data, row 1: expected"),
        ([ROW, {**ROW, "caption": None}], "data, row 1: expected a caption or a list of captions, found None"),
        ([ROW, {**ROW, "caption": " "}], "data, row 1: expected a caption or a list of captions, found ' '"),
        ([ROW, {**ROW, "caption": [1]}], r"data, row 1: expected a caption or a list of captions, found \[1\]"),
        ([ROW, {**ROW, "image": 7}], "data, row 1: int is no image; expected a PIL image"),
        ([ROW, {**ROW, "image": np.zeros((8, 8))}], r"data, row 1: .*an array \[8, 8\] of float64 is not a photo"),
        (["a.jpg"], "data, row 0: expected"),
        ("no/such/folder", "data: there is no folder no/such/folder"),
        (
            Dataset.from_dict({"image": ["a.jpg"], "what": ["x"]}),
            "which column holds the captions is not known; name it",
        ),
        (Dataset.from_dict({"a": ["a.jpg"], "caption": ["x"]}), "which column holds the images is not known; name it"),
        (
            {"train": Dataset.from_dict({"image": ["a"], "text": ["x"]}), "val": [ROW]},
            "split val has the columns image, caption, split train has image, text",
        ),
    ],
)
def test_data_that_are_none_are_refused(place, data, wrong):
    with pytest.raises(ValueError, match=wrong):
        ItmTrainer(backbone(place), data)


def test_an_image_that_cannot_be_read_is_named(place, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    rows = [*((image, "a mug") for image in noise), (tmp_path / "broken.jpg", "a cup")]
    trainer = ItmTrainer(backbone(place), rows, output_dir=tmp_path / "run", **keys(place))
    with pytest.raises(ValueError, match=r"broken.jpg: this is not a photo that Pillow can read"):
        trainer.train()
    with pytest.raises(ValueError, match=r"broken.jpg: this is not a photo that Pillow can read"):
        evaluate(load_model(backbone(place)), rows)


def test_unknown_arguments_name_their_neighbours(place, drawn):
    with pytest.raises(RecipeError, match=r"epoch: unknown argument; did you mean 'epochs'\? \(known here: epochs, "):
        ItmTrainer(backbone(place), drawn, epoch=3)
    with pytest.raises(RecipeError, match="caption_colum: unknown argument; did you mean 'caption_column'"):
        ItmTrainer(backbone(place), drawn, caption_colum="text")
    section = {"source": "folder", "root": "photos"}
    with pytest.raises(RecipeError, match="captions: unknown argument"):
        ItmTrainer(backbone(place), section, captions="a.csv")
    with pytest.raises(RecipeError, match=r"training.epochs: .* found 'three'"):
        ItmTrainer(backbone(place), drawn, epochs="three")
    with pytest.raises(RecipeError, match=r"head.kind: expected one of clip, .* found 'npcc'"):
        ItmTrainer(backbone(place), drawn, "npcc")
    with pytest.raises(RecipeError, match=r"backbone.modell: unknown key; did you mean 'model'"):
        load_model({"kind": "open_clip", "modell": "ViT-B-32"})
    with pytest.raises(RecipeError, match="early_stopping_patience: the EarlyStoppingCallback says otherwise"):
        ItmTrainer(backbone(place), drawn, early_stopping_patience=3, callbacks=[EarlyStoppingCallback(2)])


def test_models_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for model, wrong in (
        (tmp_path / "empty", "holds no model; expected a run"),
        ("ViT-B-32", "an architecture needs weights: ViT-B-32:TAG"),
        ("./nothing", "nothing: there is no such folder"),
        (7, "int is no model"),
    ):
        with pytest.raises(ValueError, match=wrong):
            load_model(model)


def test_weights_that_were_frozen_by_hand_are_refused(place, drawn):
    model = load_model(backbone(place))
    model.backbone.model.text_projection.requires_grad_(False)
    with pytest.raises(ValueError, match="were frozen or thawed by hand, which no recipe says"):
        ItmTrainer(model, drawn)


def test_files_of_a_user_are_neither_replaced_nor_deleted(place, drawn, tmp_path):
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"data is in the way: this run did not write it; move it away"):
        ItmTrainer(backbone(place), drawn, output_dir=tmp_path / "run", **keys(place)).train()
    assert (tmp_path / "run" / "data" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (3, "compute_metrics gave 3; expected a dict"),
        ({"rsum": 1.0}, "gives rsum, which is there already"),
        ({"mine": "much"}, "expected a dict of numbers by name"),
    ],
)
def test_metrics_of_a_user_that_are_none_are_refused(place, given, wrong):
    vectors = torch.eye(16)[:4]
    embeddings = Embeddings(vectors, vectors, torch.arange(4))
    model = load_model(backbone(place))
    assert val_metrics(model, embeddings, lambda embeddings, ranks: {"mine": ranks.text_to_image.max()})["mine"] == 1
    with pytest.raises(ValueError, match=wrong):
        val_metrics(model, embeddings, lambda embeddings, ranks: given)


# encode


def test_encode_takes_images_and_texts_in_every_form(place, tmp_path):
    model = load_model(backbone(place))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    forms = [image, str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(image), (tmp_path / "a.png").read_bytes()]
    encoded = model.train().encode(forms, batch_size=2)
    assert model.training
    assert encoded.shape == (5, 16)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, np.repeat(encoded[:1], 5, axis=0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), 1, atol=1e-6)
    expected = model.eval().encode_images(**model.processor(images=[image])).detach()
    torch.testing.assert_close(model.encode([image], convert_to="torch"), expected)
    texts = model.encode(["a red mug", "two", "a red mug"], batch_size=1, progress=True)
    np.testing.assert_array_equal(texts[0], texts[2])
    np.testing.assert_allclose(model.encode("a red mug"), texts[0], atol=1e-6)
    expected = model.encode_texts(**model.processor(text=["a red mug"])).detach()
    torch.testing.assert_close(torch.from_numpy(texts[:1]), expected)
    for wrong, message in (
        ([], "there is nothing to encode"),
        (["a mug", image], "images or texts, not both: number 0 is text, number 1 is image"),
        ([3], "int is neither a text nor a photo"),
        (["none.jpg"], "none.jpg: there is no such photo"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode(wrong)
    with pytest.raises(ValueError, match="convert_to: expected numpy or torch, found 'list'"):
        model.encode("a mug", convert_to="list")


# The public surface


def test_the_public_surface_is_listed_and_documented():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    listed = {name for names in clip_itm._MODULES.values() for name in names}
    assert listed == set(clip_itm.__all__)
    for name in clip_itm.__all__:
        assert f"`{name}" in page, name
        assert inspect.getdoc(getattr(clip_itm, name)), name


@pytest.mark.parametrize(
    "name",
    [
        "load_model",
        "evaluate",
        "audit",
        "load_recipe",
        "train",
        "ItmTrainer",
        "ItmTrainer.train",
        "ItmTrainer.from_recipe",
        "ItmModel.encode",
    ],
)
def test_what_users_call_says_its_arguments_its_errors_and_an_example(name):
    called = clip_itm
    for part in name.split("."):
        called = getattr(called, part)
    described, named = inspect.getdoc(called), inspect.signature(called).parameters
    arguments = [argument for argument, one in named.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    assert [one for one in arguments if one != "self" and f"{one}" not in described] == []
    assert "Raises" in described
    assert ">>> " in described
