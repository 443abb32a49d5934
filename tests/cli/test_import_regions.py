"""`clip-itm import` of VSE-infinity, SAF and SGR checkpoints: golden similarities of the loaded folder."""

import argparse
import pickle

import numpy as np
import pytest
import torch

from clip_itm.cli import main
from clip_itm.model import ItmModel
from clip_itm.processing import ItmProcessor

WORDS = ["<pad>", "<start>", "<end>", "<unk>", *(f"word{number}" for number in range(25))]


def part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): torch.tensor(arrays[name]) for name in arrays if name.startswith(prefix)}


def save(folder, *parts, count: int = 29):
    """A checkpoint as the programs write it, and a vocabulary whose mask token has the last embedding."""
    content = {"epoch": 3, "model": list(parts), "best_rsum": 1.0, "opt": argparse.Namespace(margin=0.2), "Eiters": 7}
    torch.save(content, folder / "model_best.pth.tar")
    words = {word: number for number, word in enumerate(WORDS[:count])}
    (folder / "vocab.json").write_text(f'{{"word2idx": {words!s}, "idx": {count}}}'.replace("'", '"'))
    return ["import", str(folder / "model_best.pth.tar"), "--vocabulary", str(folder / "vocab.json"), "--out"]


def first(lengths, width: int) -> torch.Tensor:
    return torch.arange(width) < torch.as_tensor(lengths)[:, None]


@torch.no_grad()
def similarities(folder, regions, region_lengths, ids, lengths) -> torch.Tensor:
    model = ItmModel.from_pretrained(folder).eval()
    regions, ids = torch.tensor(regions), torch.tensor(ids)
    images = model.encode_images(image_tokens=regions, image_mask=first(region_lengths, regions.shape[1]))
    texts = model.encode_texts(ids, first(lengths, ids.shape[1]))
    return model.head.similarity(images, texts)


def test_vse_infinity(golden, tmp_path, capsys):
    """Its states as DataParallel saves them, whose prefix goes."""
    arrays = golden("crcl_vse_encoders")
    states = (part(arrays, prefix) for prefix in ("img_param_", "txt_param_"))
    command = save(tmp_path, *({f"module.{name}": value for name, value in state.items()} for state in states))
    assert main([*command, str(tmp_path / "model")]) == 0
    assert "recognised as VSE-infinity, regions of 24, embeddings of 16" in capsys.readouterr().out
    inputs = (arrays[name] for name in ("images", "image_lengths", "captions", "caption_lengths"))
    found = similarities(tmp_path / "model", *inputs)
    np.testing.assert_allclose(found, arrays["sims_eval"], rtol=1e-4, atol=1e-5)
    assert ItmProcessor.from_pretrained(tmp_path / "model").tokenize(["word3 else"]) == [[1, 7, 3, 2]]


@pytest.mark.parametrize("kind", ["SAF", "SGR"])
def test_sgraf(golden, tmp_path, kind):
    arrays = golden("crcl_saf_sgr")
    command = save(tmp_path, *(part(arrays, prefix) for prefix in ("img_param_", "txt_param_", f"{kind}_param_")))
    assert main([*command, str(tmp_path / "model")]) == 0
    found = similarities(tmp_path / "model", arrays["regions"], [36] * 4, arrays["captions"], arrays["caption_lengths"])
    np.testing.assert_allclose(found, arrays[f"{kind}_sims_eval"], rtol=1e-4, atol=1e-5)


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_refused(golden, tmp_path, capsys):
    arrays = golden("crcl_vse_encoders")
    image, text = part(arrays, "img_param_"), part(arrays, "txt_param_")
    command = save(tmp_path, image, text, count=20)
    assert main([*command, str(tmp_path / "model")]) == 2
    assert "has 20 words, and" in capsys.readouterr().err
    for broken, message in (
        ([image, text | {"other.weight": text["embed.weight"]}], "a weight other.weight"),
        ([{}, text], "it has no fc.weight"),
        ([without(image, "mlp.layers.1.weight"), text], "some of its weights do not go with the others"),
        ([image], "expected a dictionary whose `model` is a list of state dictionaries"),
    ):
        command = save(tmp_path, *broken)
        assert main([*command, str(tmp_path / "model")]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "model_best.pth.tar").write_bytes(pickle.dumps(Hostile(), protocol=2))
    assert main([*command, str(tmp_path / "model")]) == 2
    told = capsys.readouterr()
    assert "refused, and nothing in it was executed: it asks for print" in told.err
    assert "weights_only" not in told.err
    assert "executed" not in told.out
    assert not (tmp_path / "model").exists()
