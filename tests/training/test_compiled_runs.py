"""Runs whose towers are compiled: the weights of runs that are not, within rounding, and a resumed run to the bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_itm.recipe import Recipe
from clip_itm.runs.train import train
from clip_itm.training.checkpoints import last_complete_checkpoint
from support.killed_runs import HEADS, STEPS, assert_same_end, interrupt_at
from support.tiny import tiny_recipe


@pytest.fixture(autouse=True)
def _forgets_programs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def recipe_of(folder: Path, method: str, backbone: dict | None = None, **training) -> Recipe:
    folder.mkdir()
    training = {"epochs": 2, "save_every": 2, "cache_chunk": 12, "precision": "fp32", **training}
    return tiny_recipe(folder, head=HEADS[method], backbone=backbone or {}, training=training)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip", "npc"])
def test_a_compiled_run_ends_where_the_plain_one_does(tmp_path, method):
    plain, compiled = (recipe_of(tmp_path / f"{on}", method, compile=on) for on in (False, True))
    assert plain.sha256 != compiled.sha256
    train(plain)
    train(compiled)
    expected, found = (
        load_file(last_complete_checkpoint(Path(recipe.output_dir)) / "model.safetensors")
        for recipe in (plain, compiled)
    )
    assert list(found) == list(expected)
    for name, value in expected.items():
        if not name.endswith("in_proj_bias"):  # those of keys have no gradient but rounding, which Adam makes steps of
            torch.testing.assert_close(
                found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
            )
    assert any(not torch.equal(found[name], value) for name, value in expected.items()), "nothing was compiled"


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_bit(tmp_path):
    dropout = {"word_dropout": 0.2, "image_dropout": 0.2}
    whole, interrupted = (recipe_of(tmp_path / name, "clip", dropout, compile=True) for name in ("whole", "stopped"))
    train(whole)
    interrupt_at(STEPS + 2, interrupted)
    torch._dynamo.reset()  # as another process
    train(interrupted)
    assert_same_end(Path(interrupted.output_dir), Path(whole.output_dir), "clip")
