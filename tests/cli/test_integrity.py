"""Every file of a run, damaged in every way: found by verify and by whatever reads it, or of no consequence."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from clip_itm import stand_ins
from clip_itm.checksums import CHECKSUMS, check_files
from clip_itm.cli import main
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.data.noise import CaptionNoise
from clip_itm.files import is_temporary
from clip_itm.methods.npc.bank import MemoryBank
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.recipe import load_recipe
from clip_itm.runs.resume import last_own_checkpoint
from clip_itm.runs.setup import prepare
from clip_itm.runs.train import train
from clip_itm.seal import LENGTH
from clip_itm.training.checkpoints import checkpoints
from clip_itm.verify import verify
from support.damage import DAMAGES, KILLS, damaged, flip, in_child, kill_at, seconds_of, status_of
from support.killed_runs import EPOCHS, HEADS
from support.tiny import tiny_recipe

# made to be changed, or drawn for people after everything else
NOT_COVERED = ("README.md", "curves.png", "written.json", CHECKSUMS)
KINDS = [pytest.param(name, marks=[] if name == "clip" else pytest.mark.slow) for name in HEADS]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Finished runs with two checkpoints, one a head, made when a test first asks for it."""
    runs: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in runs:
            head = HEADS[kind] | ({"warmup_epochs": 0} if kind == "npc" else {})
            training = {"epochs": EPOCHS[kind], "max_steps": 4, "save_every": 2, "evaluate_every": 2}
            recipe = tiny_recipe(tmp_path_factory.mktemp(kind), head=head, training=training)
            train(recipe)
            runs[kind] = Path(recipe.output_dir)
        return runs[kind]

    return run


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_COVERED]


def said_by_verify(folder: Path) -> str:
    return "\n".join(damage for part in verify(folder) for damage in part.damages)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_names_every_damaged_file_of_a_run(run_of, kind):
    run = run_of(kind)
    assert main(["verify", str(run)]) == 0
    for number, path in enumerate(files_of(run)):
        if path.stat().st_size == 0:
            continue
        for name in (list(DAMAGES)[number % 3], "flipped"):
            with damaged(path, DAMAGES[name], seed=number):
                assert str(path) in said_by_verify(path.parent), name
    for path in sorted(run.rglob(CHECKSUMS)):
        with damaged(path, DAMAGES["truncated"]):
            assert str(path) in said_by_verify(path.parent)
    assert said_by_verify(run) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_whole_files_only(run_of, kind):
    run = run_of(kind)
    recipe = load_recipe(run)
    provenance = prepare(recipe).provenance
    first, last = checkpoints(run)[-2:]
    assert last_own_checkpoint(recipe, run, provenance) == last
    states = {"npc": "npc_state.safetensors", "crcl": "labels.safetensors", "aahr": "aahr_state.safetensors"}
    assert kind not in states or (last / states[kind]).is_file()
    found = [path for path in files_of(last) if path.suffix != ".py"]
    assert {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"} <= {path.name for path in found}
    for number, path in enumerate(found):
        for name, damage in DAMAGES.items():
            with damaged(path, damage, seed=number), pytest.raises(ValueError, match=r"restore|Restore") as error:
                last_own_checkpoint(recipe, run, provenance)
            assert path.name in str(error.value), name
        own, others = path.read_bytes(), (first / path.name).read_bytes()
        if own != others:  # a file of the neighbour, whole but of another step
            with (
                damaged(path, lambda path, seed, others=others: path.write_bytes(others)),
                pytest.raises(ValueError, match=path.name),
            ):
                last_own_checkpoint(recipe, run, provenance)
    assert last_own_checkpoint(recipe, run, provenance) == last


def test_a_damaged_checkpoint_is_told_with_what_to_do_and_stays(run_of, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(run_of("clip"), run)
    (run / "results.json").unlink()
    shutil.copy(run / "recipe.yaml", tmp_path / "recipe.yaml")
    words = ["train", str(tmp_path / "recipe.yaml"), "--output_dir", str(run)]
    for name in ("optimizer.pt", "trainer_state.json"):
        with damaged(run / "checkpoint-4" / name, flip):
            assert main(words) == 2
            told = capsys.readouterr().err
            assert f"checkpoint-4/{name}" in told
            assert f"delete {run}/checkpoint-4 to go on from checkpoint-2" in told
            assert (run / "checkpoint-4").is_dir()
    assert main(words) == 0
    assert (run / "results.json").is_file()
    assert said_by_verify(run) == ""


def embeddings(folder: Path) -> np.ndarray:
    """What every consumer of a saved model begins with."""
    load_recipe(folder)
    check_files(folder, ("provenance.json",))
    CaptionNoise.load(folder / "noise.npz")
    model, processor = ItmModel.from_pretrained(folder).eval(), ItmProcessor.from_pretrained(folder)
    return model.encode_texts(**processor(text=["a red circle", "two blue squares"])).detach().numpy()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_damage_of_a_saved_model_is_silent(run_of):
    best = run_of("clip") / "best"
    right = embeddings(best)
    for number, path in enumerate(files_of(best)):
        names = DAMAGES if path.suffix != ".py" else ["flipped"]
        for name in names:
            with damaged(path, DAMAGES[name], seed=number):
                if path.name == "requirements.txt":  # for people and for pip
                    np.testing.assert_array_equal(embeddings(best), right)
                    continue
                with pytest.raises((ValueError, OSError), match=path.name):
                    embeddings(best)


@pytest.fixture
def gallery(run_of, tmp_path):
    run = run_of("clip")
    (tmp_path / "photos").mkdir()
    for row in load_splits(load_recipe(run).data)["test"].rows:
        read_image(row["image"]).save(tmp_path / "photos" / f"{row['image_id']}.png")
    assert main(["index", str(run), str(tmp_path / "photos"), "--out", str(tmp_path / "gallery")]) == 0
    return tmp_path / "gallery"


def test_every_command_that_reads_a_run_names_its_damaged_file(run_of, gallery, tmp_path, capsys):
    run = run_of("clip")
    commands = {
        "evaluate": ["evaluate", str(run)],
        "audit": ["audit", "--run", str(run), "--out", str(tmp_path / "audit")],
        "search": ["search", str(run), str(gallery), "a circle"],
        "interpolate": ["interpolate", "--tuned", str(run), "--out", str(tmp_path / "line")],
        "export": ["export", str(run), "--to", "open_clip", "--out", str(tmp_path / "export")],
        "push": ["push", str(run), "me/mine", "--dry-run"],
        "bank build": ["bank", "build", "--run", str(run), "--out", str(tmp_path / "bank.npz")],
        "train": ["train", str(run / "recipe.yaml")],
    }
    for name, words in commands.items():
        bad = run / "results.json" if name == "train" else run / "best" / "model.safetensors"
        with damaged(bad, flip):
            assert main(words) == 2, name
        assert bad.name in capsys.readouterr().err, name
    left = {path.name for path in tmp_path.iterdir()} - {"photos", "gallery"}
    assert left <= {"audit"}
    with damaged(run / "noise.npz", flip):
        assert main(commands["audit"]) == 2
    with damaged(run / "ranks_best" / "all.npz", flip):
        assert main(["verify", str(run)]) == 1


def test_verify_names_every_damaged_file_of_an_index(gallery):
    assert main(["verify", str(gallery)]) == 0
    for number, path in enumerate(files_of(gallery)):
        for damage in DAMAGES.values():
            with damaged(path, damage, seed=number):
                if path.name == "index.json":  # unreadable, or no longer known as one of an index
                    assert main(["verify", str(gallery)]) in (1, 2)
                else:
                    assert path.name in said_by_verify(gallery)


def test_where_checksums_cannot_be_computed_models_are_loaded_and_old_ones_go(run_of, tmp_path, monkeypatch):
    """In a checkpoint, where this package is not."""
    shutil.copytree(run_of("clip") / "best", tmp_path / "best")
    for name in ("checked_meanwhile", "loading", "recording"):
        monkeypatch.setattr(f"clip_itm.model.{name}", getattr(stand_ins, name))
    model = ItmModel.from_pretrained(tmp_path / "best")
    model.save_pretrained(tmp_path / "best")
    assert not (tmp_path / "best" / CHECKSUMS).exists()


def test_a_run_of_an_earlier_version_has_no_checksums_and_works(run_of, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_of("clip"), run)
    for path in run.rglob(CHECKSUMS):
        path.unlink()
    for path in run.rglob("*.npz"):
        content = path.read_bytes()[:-LENGTH]
        path.write_bytes(content[:-2] + b"\0\0")  # the seal was the comment of the archive
    assert main(["verify", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    (run / "results.json").unlink()
    shutil.copy(run / "recipe.yaml", tmp_path / "recipe.yaml")
    assert main(["train", str(tmp_path / "recipe.yaml"), "--output_dir", str(run)]) == 0
    assert json.loads((run / "results.json").read_text())["steps"] == 4


def test_a_model_that_somebody_edits_says_how_to_accept_it(run_of, tmp_path):
    model = tmp_path / "mine"
    ItmModel.from_pretrained(run_of("clip") / "best").save_pretrained(model)
    (model / "notes.txt").write_text("my own, written later")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config, indent=1))
    with pytest.raises(ValueError, match=r"config\.json has .*if you changed it on purpose, delete .*checksums\.json"):
        ItmModel.from_pretrained(model)
    (model / CHECKSUMS).unlink()
    ItmModel.from_pretrained(model)


def test_saving_again_renews_checksums_and_leaves_a_users_files_out(run_of, tmp_path):
    best = run_of("clip") / "best"
    model, processor = ItmModel.from_pretrained(best), ItmProcessor.from_pretrained(best)
    tmp_path.joinpath("notes.txt").write_text("mine")
    os.utime(tmp_path / "notes.txt", (1, 1))
    for step in (1.0, 2.0):
        model.head.logit_scale.data.fill_(step)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        assert ItmModel.from_pretrained(tmp_path).head.logit_scale == step
    (tmp_path / "notes.txt").write_text("mine, and changed")
    assert main(["verify", str(tmp_path)]) == 0
    assert "notes.txt" not in json.loads((tmp_path / CHECKSUMS).read_text())["files"]


@pytest.mark.slow
def test_no_damage_of_a_bank_or_of_noise_is_silent(run_of, tmp_path):
    run = run_of("npc")
    for source, load in ((run / "checkpoint-4" / "bank.npz", MemoryBank.load), (run / "noise.npz", CaptionNoise.load)):
        path = tmp_path / source.name
        shutil.copy(source, path)
        load(path)
        for seed in range(60):
            for damage in DAMAGES.values():
                with damaged(path, damage, seed), pytest.raises(ValueError, match=path.name):
                    load(path)


# Killed at any moment, and two at once


def assert_whole(place: Path) -> None:
    assert said_by_verify(place) == ""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["audit", "bank", "noise"])
def test_a_command_that_is_killed_at_any_moment_does_its_work_the_next_time(run_of, tmp_path, what):
    run = tmp_path / "run"
    shutil.copytree(run_of("clip"), run)
    out = tmp_path / "out"
    words = {
        "audit": ["audit", "--run", str(run), "--out", str(out)],
        "bank": ["bank", "build", "--run", str(run), "--rho", "0.01", "--out", str(out / "bank.npz")],
        "noise": ["noise", "make", str(run / "recipe.yaml"), "--out", str(out / "noise.npz")],
    }[what]

    def results() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir() if not is_temporary(path)}

    def clear() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if what == "audit":
            (run / "clean_probability.npz").unlink(missing_ok=True)
            (run / CHECKSUMS).unlink(missing_ok=True)

    clear()
    seconds, draw, hit = seconds_of(lambda: main(words)), np.random.default_rng(0), 0
    expected = results()
    for _ in range(KILLS):
        clear()
        hit += kill_at(float(draw.uniform(0, seconds)), lambda: main(words))
        assert_whole(run)
        if out.is_dir():  # what is there is whole
            assert results().items() <= expected.items()
        if not (out / f"{what}.npz").exists():  # neither noise nor a bank is made twice
            assert status_of(in_child(lambda: main(words))) == 0
        assert results() == expected
        assert not [path for path in (*out.iterdir(), *run.iterdir()) if is_temporary(path)]
    assert hit


@pytest.mark.slow
def test_two_audits_and_two_builders_of_a_bank_at_once(run_of, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_of("clip"), run)
    audit = ["audit", "--run", str(run)]
    assert [status_of(pid) for pid in [in_child(lambda: main(audit)) for _ in range(2)]] == [0, 0]
    bank = ["bank", "build", "--run", str(run), "--rho", "0.01", "--out", str(tmp_path / "bank.npz")]
    ended = sorted(status_of(pid) for pid in [in_child(lambda: main(bank)) for _ in range(2)])
    assert ended in ([0, 2], [0, 0])
    assert ended == [0, 2], "the second would have replaced the first one's"
    MemoryBank.load(tmp_path / "bank.npz")
    assert_whole(run)
    assert not [path for path in run.rglob("*") if is_temporary(path)]


def test_files_of_others_that_are_called_like_arrays_are_no_damage(run_of, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(run_of("clip"), folder / "run")
    (folder / "notes.npz").write_text("of the user")
    (folder / "notes.npy").write_text("of the user")
    assert said_by_verify(folder) == ""
    for name in ("empty.npz", "empty.npy"):
        (folder / name).touch()
        assert name in said_by_verify(folder)
