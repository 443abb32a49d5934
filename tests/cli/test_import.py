"""Released CLIP and NPC checkpoints, in the layout of their programs, as models of this package."""

import hashlib
import json
import pickle
import zipfile

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import build_model_from_openai_state_dict
from transformers import AutoModel, AutoProcessor

from clip_itm.backbones.build import build_backbone
from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.backbones.openai_checkpoint import OpenAICheckpoint, openclip_config, openclip_name, read_checkpoint
from clip_itm.cli import main
from support.tiny_backbones import CAPTIONS, PHOTOS

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
TOWERS = {
    "vit": {"image_size": 48, "layers": 2, "width": 64, "patch_size": 16},
    "resnet": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
}
NUMBERS = {"input_resolution": 48, "context_length": 20, "vocab_size": 49408}


def weights(tower: str) -> dict[str, torch.Tensor]:
    """Random weights and statistics of a tiny CLIP; open_clip keeps OpenAI's names."""
    generator = torch.Generator().manual_seed(0)
    model = open_clip.CLIP(24, TOWERS[tower], TEXT, quick_gelu=True)
    state = {}
    for name, value in model.state_dict().items():
        noise = 0.2 * torch.rand(value.shape, generator=generator)
        state[name] = value if value.dtype == torch.int64 else noise + value
    return state


def save(path, state, prefix: str = "", **more) -> str:
    """As the released programs do: weights, number and name, and an optimiser with its moments."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([parameter], lr=2e-7)
    optimizer.step()
    content = {"epoch": 3, "name": "NPC", "state_dict": {prefix + name: value for name, value in state.items()}}
    torch.save(content | {"optimizer": optimizer.state_dict()} | more, path)
    return str(path)


def load(folder):
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@torch.no_grad()
def test_golden_clip(golden, tmp_path, capsys):
    arrays = golden("npc_tiny_clip")
    state = {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("sd.")}
    file, out = save(tmp_path / "epoch3.pt", state), tmp_path / "model"
    assert main(["import", file, "--out", str(out)]) == 2
    assert "width 32 of the text tower is no multiple of 64" in capsys.readouterr().err
    assert main(["import", file, "--out", str(out), "--text-heads", "5"]) == 2
    assert "cannot be divided among 5 heads" in capsys.readouterr().err
    assert main(["import", file, "--out", str(out), "--text-heads", "4"]) == 0
    printed = capsys.readouterr().out
    assert "no architecture of OpenAI" in printed
    assert "ViT with patches of 16, width 128, layers 1, photos of 32 pixels" in printed
    assert "tokens (49408) are not those of this model" in printed

    model, _ = load(out)
    tokens = torch.from_numpy(arrays["tokens"]).long()
    images = model.backbone.image_trunk(torch.from_numpy(arrays["images"])).pooled
    texts = model.backbone.text_trunk(tokens, torch.ones_like(tokens)).pooled
    np.testing.assert_allclose(images, arrays["image_features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(texts, arrays["text_features"], rtol=1e-4, atol=1e-5)
    images = model.encode_images(torch.from_numpy(arrays["images"]))
    texts = model.encode_texts(tokens, torch.ones_like(tokens))
    logits = model.head.scale() * model.head.similarity(images, texts)
    np.testing.assert_allclose(logits, arrays["logits_per_image"], rtol=1e-4, atol=1e-4)

    source = json.loads((out / "imported_from.json").read_text())
    assert source["sha256"] == hashlib.sha256((tmp_path / "epoch3.pt").read_bytes()).hexdigest()
    assert (source["file"], source["epoch"], source["name"]) == ("epoch3.pt", 3, "NPC")
    assert source["architecture"]["vision_cfg"]["width"] == 128


@torch.no_grad()
@pytest.mark.parametrize("tower", TOWERS)
def test_every_layout_is_the_model_that_open_clip_builds(tower, tmp_path):
    """Weights in float16, with OpenAI's numbers beside them and the prefix of DistributedDataParallel."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in weights(tower).items()}
    numbers = {name: torch.tensor(number) for name, number in NUMBERS.items()}
    file = save(tmp_path / "epoch3.pt", numbers | state, prefix="module.")
    assert main(["import", file, "--out", str(tmp_path / "model")]) == 0
    model, processor = load(tmp_path / "model")
    twin = build_model_from_openai_state_dict(dict(state)).float()

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.equal(value, state[name].to(value)) for name, value in model.backbone.model.state_dict().items())
    pixels = processor(images=PHOTOS)["pixel_values"]
    size = TOWERS[tower]["image_size"]
    assert pixels.shape == (4, 3, size, size)
    torch.testing.assert_close(model.encode_images(pixels), twin.encode_image(pixels, normalize=True))
    batch = processor(text=CAPTIONS)
    padded = torch.zeros(4, TEXT["context_length"], dtype=torch.int64)
    padded[:, : batch["input_ids"].shape[1]] = batch["input_ids"]
    torch.testing.assert_close(model.encode_texts(**batch), twin.encode_text(padded, normalize=True))
    assert model.head.scale().item() == pytest.approx(state["logit_scale"].float().exp().item())


@torch.no_grad()
def test_plain_state_dicts_and_old_files(tmp_path):
    state = weights("vit")
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pt")
    for name in ("plain", "old"):
        assert main(["import", str(tmp_path / f"{name}.pt"), "--out", str(tmp_path / name)]) == 0
        source = json.loads((tmp_path / name / "imported_from.json").read_text())
        assert (source["epoch"], source["name"]) == (None, None)
        model, _ = load(tmp_path / name)
        assert all(torch.equal(value, state[key]) for key, value in model.backbone.model.state_dict().items())


def test_released_architectures_are_recognised(tmp_path):
    names = [name for name in open_clip.list_openai_models() if not name.endswith("-quickgelu")]
    assert len(names) == 9
    for name in names:
        with torch.device("meta"):
            state = open_clip.CLIP(**open_clip.get_model_config(name)).state_dict()
        config = openclip_config(OpenAICheckpoint(tmp_path, state, None, None))
        assert openclip_name(config) == f"{name}-quickgelu"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle"])
def test_nothing_in_a_file_is_executed(layout, tmp_path, capsys):
    file, trace = tmp_path / "bad.pt", tmp_path / "executed"
    if layout == "pickle":
        file.write_bytes(pickle.dumps(Bomb(trace), protocol=2))
    else:
        content = {"state_dict": weights("vit"), "args": Bomb(trace)}
        torch.save(content, file, _use_new_zipfile_serialization=layout == "zip")
    assert main(["import", str(file), "--out", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert "bad.pt: refused, and nothing in it was executed: it asks for io.open." in error
    assert "weights_only" not in error
    assert not trace.exists()
    assert not (tmp_path / "model").exists()
    with file.open("rb") as stream:  # the bomb is one
        pickle.load(stream) if layout == "pickle" else torch.load(stream, weights_only=False)
    assert trace.exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_files_that_are_no_checkpoint(tmp_path, capsys):
    state = weights("vit")
    save(tmp_path / "whole.pt", state)
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("hello world")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"state_dict": {"fc.weight": torch.ones(2)}}, tmp_path / "resnet.pt")
    torch.save({"state_dict": {}}, tmp_path / "none.pt")
    torch.save({"text.token_embedding.weight": torch.ones(2)}, tmp_path / "custom.pt")
    changes = {
        "missing": {"ln_final.weight": None},
        "projection": {"text_projection": None},
        "scale": {"logit_scale": None},
        "extra": {"fusion.weight": torch.ones(2)},
        "positions": {"visual.positional_embedding": torch.ones(9, 64)},
        "shape": {"visual.conv1.weight": torch.ones(64, 3)},
        "number": {"positional_embedding": torch.tensor(1.0)},
        "narrow": {"visual.conv1.weight": torch.ones(40, 3, 16, 16)},
    }
    for name, change in changes.items():
        changed = {key: value for key, value in (state | change).items() if value is not None}
        save(tmp_path / f"{name}.pt", changed)
    expected = {
        "nowhere.pt": "nowhere.pt does not exist",
        "": "is a folder; expected the file of a checkpoint",
        "half.pt": "no file of torch.save, or not all of it",
        "text.pt": "no file of torch.save, or not all of it",
        "empty.pt": "no file of torch.save, or not all of it",
        "script.pt": "a program of TorchScript",
        "list.pt": "expected a state dict",
        "resnet.pt": "no CLIP under OpenAI's names in it; expected weights such as visual.conv1.weight and "
        "token_embedding.weight, found fc.weight",
        "none.pt": "found nothing",
        "custom.pt": "found text.token_embedding.weight",
        "missing.pt": "ln_final.weight",
        "projection.pt": "the weight text_projection of CLIP is missing",
        "scale.pt": "the weight logit_scale of CLIP (one number) is missing",
        "extra.pt": "fusion.weight",
        "positions.pt": "8 image positions are no square",
        "shape.pt": "these shapes do not tell a CLIP",
        "number.pt": "these shapes do not tell a CLIP",
        "narrow.pt": "width 40 of the image tower is no multiple of 64",
    }
    for name, message in expected.items():
        assert main(["import", str(tmp_path / name), "--out", str(tmp_path / "model")]) == 2, name
        error = capsys.readouterr().err
        assert message in error
        assert str(tmp_path / name) in error
    assert not (tmp_path / "model").exists()


def test_only_an_empty_folder_is_written_to(tmp_path, capsys):
    file = save(tmp_path / "epoch3.pt", weights("vit"))
    (tmp_path / "model").mkdir()
    assert main(["import", file, "--out", str(tmp_path / "model")]) == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "model").iterdir())
    capsys.readouterr()
    for out, why in (("model", "model exists and is not empty"), ("epoch3.pt", "epoch3.pt is no folder")):
        assert main(["import", file, "--out", str(tmp_path / out)]) == 2
        assert why in capsys.readouterr().err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "model").iterdir()) == before
    assert main(["import", file, "--out", str(tmp_path / "other"), "--data.root", "photos"]) == 2
    assert "--data.root: an import takes no keys of a recipe" in capsys.readouterr().err


def test_evaluate_an_imported_model(tmp_path, capsys):
    """The table is that of the model, not of its architecture; the data come from the command line."""
    torch.manual_seed(0)
    file, out = save(tmp_path / "epoch3.pt", weights("vit")), str(tmp_path / "model")
    assert main(["import", file, "--out", out]) == 0
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "config.json names no backbone, so this is not a model of clip-itm" in capsys.readouterr().err
    assert main(["evaluate", out]) == 2
    assert "say what to evaluate it on, such as --data.source coco --data.root FOLDER" in capsys.readouterr().err
    data = ["--data.source", "sample", "--data.image_size", "32", "--data.cache_dir", str(tmp_path / "cache")]
    data += [word for split in ("train", "val", "test") for word in (f"--data.{split}_images", "12")]
    words = [*data, "--evaluation.bootstrap", "0", "--json", str(tmp_path / "results.json")]
    assert main(["evaluate", out, *words, "--data.rot", "1"]) == 2
    assert "data.rot: unknown key" in capsys.readouterr().err
    assert main(["evaluate", out, *words]) == 0
    assert "recall on test of sample (12 photos, 60 captions)" in " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["imported_from"]["name"] == "NPC"

    # the same weights as the start of a recipe
    (tmp_path / "tiny.json").write_text(json.dumps(results["imported_from"]["architecture"]))
    recipe = {"backbone": {"kind": "open_clip", "model": str(tmp_path / "tiny.json"), "pretrained": file}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))
    assert main(["evaluate", str(tmp_path / "tiny.yaml"), *words]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["all"]["metrics"] == results["all"]["metrics"]


def test_the_file_can_start_a_training(tmp_path):
    """`backbone.pretrained` takes it, too: open_clip reads the released layout, weights only."""
    state = weights("resnet")
    file = save(tmp_path / "epoch3.pt", state, prefix="module.")
    (tmp_path / "tiny.json").write_text(json.dumps(openclip_config(read_checkpoint(file))))
    backbone = build_backbone(OpenClipBackbone(model=str(tmp_path / "tiny.json"), pretrained=file))
    assert all(torch.equal(value, state[name]) for name, value in backbone.model.state_dict().items())
