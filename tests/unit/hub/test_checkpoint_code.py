"""The code of a checkpoint: what is written beside the weights, and that it loads without this package."""

import ast
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from clip_itm import tree_shaking
from clip_itm.backbones.section import LoraSection
from clip_itm.checkpoint_code import code_files
from clip_itm.configuration import ItmConfig
from clip_itm.kinds import METHODS
from clip_itm.methods.aahr.configuration import AahrHeadConfig
from clip_itm.methods.clip.configuration import ClipHeadConfig
from clip_itm.methods.configuration import HeadConfig
from clip_itm.methods.crcl.configuration import CrclHeadConfig
from clip_itm.methods.dive.configuration import DiveHeadConfig
from clip_itm.methods.npc.configuration import NpcHeadConfig
from clip_itm.methods.triplet.configuration import TripletHeadConfig
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor
from clip_itm.retrieval.pipeline import ImageTextRetrievalPipeline
from clip_itm.similarity.configuration import ScanSection
from clip_itm.task import TASK
from support.fresh_loads import assert_same, inside, run_fresh, save
from support.tiny import HEADS as SMALL
from support.tiny_backbones import PHOTOS

pytestmark = pytest.mark.slow

TOWERS = {"open_clip": "OpenClip", "transformers": "Transformers", "bert-vit": "BertVit", "timm-words": "TimmWords"}
HEADS = ("clip", "npc", "crcl", "dive", "aahr", "polyloss", "triplet", "siglip", "robust", "crossfit", "osa")
ALWAYS = {"PIL", "ftfy", "numpy", "pydantic", "torch", "transformers"}
OWN = {"open_clip": {"open_clip"}, "timm-words": {"timm"}}


@pytest.fixture
def photo(tmp_path) -> Path:
    PHOTOS[0].save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", TOWERS)
def test_the_code_of_a_kind_is_flat_complete_and_demands_only_what_it_uses_at_once(kind, head, tmp_path):
    files = code_files(kind, head)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    demanded = {package for name in files for package in get_imports(tmp_path / name)} - sys.stdlib_module_names
    assert demanded == ALWAYS | OWN.get(kind, set())
    defined = classes(files["clip_itm_backbones.py"])
    assert {tower for tower in TOWERS.values() if tower in defined} == {TOWERS[kind]}
    assert {name for name in defined if f"{name}Backbone" in defined} == {TOWERS[kind]}
    defined = classes(files["clip_itm_methods.py"])
    plain, bounded = {"ClipHead"}, {"ClipHead", "RobustHead"}
    uses = {"npc": plain, "robust": plain, "crossfit": bounded, "osa": bounded}.get(head, set())
    own = {f"{METHODS[head]}Head", "Head"}
    assert {name for name in defined if name.endswith("Head")} == own | uses
    assert {name for name in defined if name.endswith("HeadConfig")} == {f"{METHODS[head]}HeadConfig"}
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("clip_itm") or node.level == 1, name
        assert "Apache-2.0" in "".join(text.splitlines()[:2])


def classes(text: str) -> set[str]:
    return {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("kind", [*TOWERS, "regions"])
def test_every_name_in_the_code_is_defined_in_it(kind, tmp_path):
    """Also within functions, which loading a model does not run."""
    for head, similarity in [*product(HEADS, ("cosine", "scan", "saf", "sgr")), ("dive", "smooth_chamfer")]:
        folder = tmp_path / f"{head}-{similarity}"
        folder.mkdir()
        for name, text in code_files(kind, head, similarity).items():
            (folder / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_a_room_that_uses_a_name_for_two_things_is_written_module_by_module(monkeypatch, tmp_path):
    def clash(room, name, source, flat):
        if flat == "clip_itm_methods":
            raise tree_shaking.ClashError(flat)

    monkeypatch.setattr(tree_shaking, "_bind", clash)
    files = code_files.__wrapped__("open_clip", "npc")
    assert {"clip_itm_methods_npc_head.py", "clip_itm_methods_clip_head.py", "clip_itm_backbones.py"} <= files.keys()
    assert "clip_itm_methods.py" not in files
    assert "from .clip_itm_methods_clip_head import ClipHead\n" in files["clip_itm_methods_npc_head.py"]
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert {alias.name for alias in node.names} <= bound(files[f"{node.module}.py"]), name


def bound(text: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(text)))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_the_code_of_a_checkpoint_is_small_enough_to_be_read():
    files = code_files("open_clip", "clip")
    assert len(files) <= 25
    assert sum(text.count("\n") for text in files.values()) <= 2600


@pytest.mark.parametrize("similarity", ["cosine", "scan", "saf", "sgr"])
def test_only_the_similarity_of_the_checkpoint_goes_along(similarity):
    files = code_files("open_clip", "triplet", similarity)
    for other in {"scan", "saf", "sgr"}:
        names = {other.capitalize(), f"{other.capitalize()}Section"}
        assert (names & classes(files["clip_itm_similarity.py"])) == (names if other == similarity else set())


@pytest.mark.parametrize("entry", ["clip_itm_model.py", "clip_itm_retrieval.py", "clip_itm_processing.py"])
def test_transformers_finds_all_that_a_module_needs(entry, tmp_path):
    files = code_files("open_clip", "npc")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = {Path(path).name for path in get_relative_import_files(tmp_path / entry)} | {entry}
    waiting, needed = [entry], set()
    while waiting:
        needed.add(name := waiting.pop())
        for node in ast.walk(ast.parse(files[name])):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                modules = [node.module] if node.module else [alias.name for alias in node.names]
                waiting += [f"{module}.py" for module in modules if f"{module}.py" not in needed]
    assert needed <= found <= set(files)
    if entry == "clip_itm_model.py":  # what is saved again is whole
        assert found == set(files)


def test_other_kinds_are_refused_with_a_sentence(tmp_path):
    files = code_files("bert-vit", "clip")
    assert "the code of this checkpoint is for 'bert-vit' alone" in files["clip_itm_backbones.py"]
    assert "register(" not in files["clip_itm_model.py"] + files["clip_itm_retrieval.py"]
    assert files["clip_itm_configuration.py"] != code_files("bert-vit", "npc")["clip_itm_configuration.py"]


def test_a_saved_model_names_its_code_and_is_the_same_every_time(tmp_path):
    first, second = save(tmp_path / "a", "bag"), save(tmp_path / "b", "bag")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names if name.endswith(".py"))
    config = json.loads((first / "config.json").read_text())
    places = [*config["auto_map"].values(), config["custom_pipelines"][TASK]["impl"]]
    places += json.loads((first / "processor_config.json").read_text())["auto_map"].values()
    for place in places:
        module, name = place.split(".")
        assert f"class {name}(" in (first / f"{module}.py").read_text()
    requirements = (first / "requirements.txt").read_text().split()
    assert "timm>=1.0.31" in requirements
    assert "ftfy>=6.3" in requirements
    assert not [
        line for line in requirements if line.startswith(("open_clip", "peft", "accelerate", "pyarrow", "xxhash"))
    ]


def test_adapters_ask_for_peft(tmp_path):
    assert "peft>=0.21" in (save(tmp_path / "a", "clip", lora=LoraSection()) / "requirements.txt").read_text().split()


def test_here_the_classes_of_this_package_win(tmp_path):
    folder = save(tmp_path / "a", "bag")
    for trust in (None, True):
        assert type(AutoModel.from_pretrained(folder, trust_remote_code=trust)) is ItmModel
        assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=trust)) is ItmProcessor
        assert type(pipeline(TASK, model=str(folder), trust_remote_code=trust)) is ImageTextRetrievalPipeline
    ItmConfig.from_pretrained(folder).save_pretrained(tmp_path / "config")
    assert (tmp_path / "config" / "config.json").read_text() == (folder / "config.json").read_text()


@pytest.mark.slow
def test_models_load_side_by_side_in_a_process_without_this_package(tmp_path, photo):
    """One after the other, all kinds of code in folders of one name; saved again there, they are still whole."""
    folders = [
        save(tmp_path / "a", "open_clip", NpcHeadConfig()),
        save(tmp_path / "b", "bert-vit", CrclHeadConfig()),
        save(tmp_path / "c", "bag", ClipHeadConfig(temperature=0.05)),
    ]
    assert_whole(folders, tmp_path, photo)


@pytest.mark.slow
def test_more_kinds_load_in_a_process_without_this_package(tmp_path, photo):
    folders = [
        save(tmp_path / "a", "siglip", lora=LoraSection()),
        save(tmp_path / "b", "open_clip-bert"),
        save(tmp_path / "c", "open_clip-timm"),
        save(tmp_path / "d", "gru"),
        save(tmp_path / "h", "sentence", freeze_text=True),
        save(tmp_path / "e", "open_clip", DiveHeadConfig(image_elements=2, residual="gated")),
        save(tmp_path / "f", "bag", AahrHeadConfig(embed_dim=16, num_heads=2)),
        save(tmp_path / "g", "clip", TripletHeadConfig(similarity=ScanSection(token_dim=8, max_words=12))),
    ]
    assert_whole(folders, tmp_path, photo)


@pytest.mark.slow
def test_every_method_loads_in_a_process_without_this_package(tmp_path, photo):
    """Building a head again asks its section for what only some methods have."""
    sections = [TypeAdapter(HeadConfig).validate_python(SMALL.get(kind, {"kind": kind})) for kind in METHODS]
    assert_whole([save(tmp_path / section.kind, "bag", section) for section in sections], tmp_path, photo)


def assert_whole(folders: list[Path], tmp_path: Path, photo: Path) -> None:
    found = run_fresh(tmp_path, [str(folder) for folder in folders], photo, tmp_path / "again")
    for folder, result in zip(folders, found, strict=True):
        assert_same(result, inside(folder, Image.open(photo).convert("RGB")))
    for number, folder in enumerate(folders):
        code = {path.name for path in folder.glob("clip_itm_*.py")}
        assert {path.name for path in (tmp_path / "again" / str(number)).glob("clip_itm_*.py")} == code
