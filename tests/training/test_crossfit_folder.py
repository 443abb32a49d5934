"""What a run of crossfit leaves in its folder, and what is done with it: verify, audit, Python, exports, damage."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clip_itm import ItmTrainer, audit, load_model
from clip_itm.cli import main
from clip_itm.hub.export import export
from clip_itm.methods.crossfit import trainer as crossfit
from clip_itm.model import ItmModel
from clip_itm.recipe import Recipe
from clip_itm.runs.train import train
from clip_itm.training.clean_probability import CleanProbability
from clip_itm.training.folder import other_files
from support.damage import DAMAGES, damaged
from support.tiny import tiny_recipe

KEPT = ("prepared/pair_weights.npz", "pair_scores.png", "pair_calibration.png", "clean_probability.npz")
VALUES = np.linspace(0.02, 1, 200).astype(np.float32)
pytestmark = pytest.mark.filterwarnings("ignore:.*(12 photos|starts from random)")


def recipe_of(folder: Path) -> Recipe:
    return tiny_recipe(folder, head={"kind": "crossfit", "folds": 0}, training={"epochs": 1})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that has found weights between 0 and 1 (made mismatches find nothing in so few photos)."""
    recipe = recipe_of(tmp_path_factory.mktemp("crossfit"))
    original = crossfit.from_judgement

    def found(judgement):
        noise = original(judgement).noise_sha256
        return CleanProbability(VALUES, VALUES, "cross-fit, in a test", noise, share=(0.5, 0.4, 0.6))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossfit, "from_judgement", found)
        train(recipe)
    return Path(recipe.output_dir)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of its folder, for what changes it."""
    return Path(shutil.copytree(finished.parent, tmp_path / "place")) / "run"


@pytest.mark.parametrize("name", KEPT)
def test_verify_names_what_is_damaged(run, name, capsys):
    assert main(["verify", str(run)]) == 0
    capsys.readouterr()
    for number, damage in enumerate(DAMAGES):
        with damaged(run / name, DAMAGES[damage], seed=number):
            assert main(["verify", str(run)]) == 1, damage
        assert f"DAMAGED  {run / name}" in capsys.readouterr().out
    assert main(["verify", str(run)]) == 0


def test_the_audit_shows_the_weights_of_the_run(run, capsys):
    assert main(["audit", "--run", str(run), "--top", "20"]) == 0
    told = capsys.readouterr().out
    assert "50.0 % (40.0 to 60.0 %)" in told
    table = pq.read_table(run / "audit" / "audit.parquet")
    np.testing.assert_array_equal(table["clean_probability"].to_numpy(), np.sort(VALUES))
    assert set(table["method"].to_pylist()) == {"cross-fit, in a test"}
    page = (run / "audit" / "audit.html").read_text()
    assert "cross-fit, in a test" in page
    assert "50.0 % (40.0 to 60.0 %)" in page


def test_from_python(tmp_path):
    """The same run, its audit and its weights, without a recipe file."""
    recipe = recipe_of(tmp_path)
    model = load_model(recipe.backbone.model_dump(mode="json"))
    trainer = ItmTrainer(
        model,
        recipe.data.model_dump(mode="json"),
        method={"kind": "crossfit", "folds": 0},
        noise=0.4,
        evaluation={"bootstrap": 0},
        output_dir=tmp_path / "python",
        batch_size=32,
        epochs=1,
        learning_rate=1e-3,
        report_to="none",
    )
    results = trainer.train()
    assert results["wrong_share"]["true"] == pytest.approx(0.4, abs=0.05)  # some captions came back to their photo
    found = audit(trainer)
    assert found.clean.share == tuple(results["wrong_share"][key] for key in ("share", "low", "high"))
    kept = CleanProbability.load(tmp_path / "python" / "prepared" / "pair_weights.npz")
    np.testing.assert_array_equal(found.clean.values, kept.values)
    assert len(found.head(5)) == 5
    named = ItmTrainer(model, recipe.data.model_dump(mode="json"), method="crossfit", output_dir=tmp_path / "other")
    assert named.recipe.head.folds == 2


def test_a_file_of_the_user_is_named_and_never_deleted(run, capsys):
    recipe = run / "recipe.yaml"
    shutil.copy(recipe, run.parent / "my.yaml")
    own = run / "prepared" / "notes.txt"
    own.write_text("mine")
    words = ["train", str(run.parent / "my.yaml"), "--output_dir", str(run)]
    assert main([*words, "--overwrite"]) == 2
    told = capsys.readouterr().err
    assert "prepared/notes.txt, which no run of clip-itm wrote" in told
    assert own.read_text() == "mine"
    assert (run / "results.json").is_file()
    (run / "results.json").unlink()  # as a run that goes on
    assert main(words) == 2
    assert "prepared/notes.txt, where a run writes; move it away" in capsys.readouterr().err
    assert own.read_text() == "mine"


def test_weights_that_were_damaged_before_they_were_used_are_told(tmp_path, monkeypatch):
    recipe = recipe_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(crossfit.CrossfitTrainer, "_use", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    run = Path(recipe.output_dir)
    file = run / "prepared" / "pair_weights.npz"
    for number, damage in enumerate(DAMAGES.values()):
        with damaged(file, damage, seed=number), pytest.raises(ValueError, match=r"prepared/pair_weights\.npz"):
            train(recipe)
    train(recipe)
    assert other_files(run) == []


def test_an_export_is_that_of_the_plain_head(run, tmp_path):
    assert export(run, "open_clip", tmp_path / "exported") < 1e-5
    assert ItmModel.from_pretrained(run / "best").head.is_plain
