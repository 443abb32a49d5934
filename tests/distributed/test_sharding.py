"""Weights in parts (FSDP2), in two gloo processes: equal to one process, killed and resumed, saved whole, searched."""

import json
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_itm.cli import main
from clip_itm.distributed import asks_for_parts, process_state, takes_layers_apart
from clip_itm.model import ItmModel
from clip_itm.runs.launch import parts_weights
from clip_itm.training.checkpoints import checkpoints, last_complete_checkpoint
from support.distributed.run import SECTIONS
from support.killed_runs import HEADS, assert_same_end, recipe_of
from support.processes import assert_same_run, launch, start

PARTS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in SECTIONS if not name.startswith("aahr")])
def test_a_run_in_parts_equals_one_process(tmp_path, method):
    """Whole epochs in float64; `clip-all`: average, gradient cache, clipping, frozen blocks, rates of their own."""
    found = {}
    for processes, environment in ((1, {}), (2, PARTS)):
        out = tmp_path / f"{processes}.safetensors"
        launch(processes, "-m", "support.distributed.run", method, str(tmp_path), str(out), **environment)
        found[processes] = load_file(out)
    assert_same_run(method, found[1], found[2])


@pytest.mark.slow
def test_layers_that_stay_together_for_a_step_change_no_bit(tmp_path):
    """What `recipes/accelerate/zero2.yaml` asks for."""
    found = []
    for apart in ("true", "false"):
        out = tmp_path / f"{apart}.safetensors"
        environment = PARTS | {"FSDP_RESHARD_AFTER_FORWARD": apart}
        launch(2, "-m", "support.distributed.run", "clip", str(tmp_path), str(out), **environment)
        found.append(load_file(out))
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(value, found[1][name]) for name, value in found[0].items())


def test_layers_are_taken_apart_unless_the_launch_says_otherwise(monkeypatch):
    assert takes_layers_apart()
    for value, expected in {"true": True, "FULL_SHARD": True, "false": False}.items():
        monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", value)
        assert takes_layers_apart() is expected


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip", "npc"])
def test_a_run_in_parts_is_killed_resumed_exported_and_searched(tmp_path, method):
    recipe = recipe_of(tmp_path / method, method, evaluate_every=4)
    recipe = recipe.with_overrides("--training.ema", "0.9", "--training.epochs", "3")
    words = {}
    for name in ("whole", "killed"):
        place = tmp_path / f"{name}.yaml"
        place.write_text(recipe.with_overrides("--output_dir", str(tmp_path / name)).to_yaml(), encoding="utf-8")
        words[name] = ["-m", "clip_itm.cli", "train", str(place)]
    launch(2, *words["whole"], **PARTS)

    processes = start(2, *words["killed"], **PARTS)
    while not checkpoints(tmp_path / "killed"):
        assert all(process.poll() is None for process in processes), processes[0].output
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    assert "resuming from" in launch(2, *words["killed"], **PARTS)
    assert_same_end(tmp_path / "killed", tmp_path / "whole", method)
    results = json.loads((tmp_path / "killed" / "results.json").read_text(encoding="utf-8"))
    assert results["provenance"]["machine"]["processes"] == 2

    best, index, found = tmp_path / "killed" / "best", tmp_path / "index", tmp_path / "found.json"
    assert [path.name for path in best.glob("*.safetensors")] == ["model.safetensors"]
    own = load_file(last_complete_checkpoint(tmp_path / "killed") / "model.safetensors")
    assert {name: value.shape for name, value in own.items()} == {
        name: tuple(value.shape) for name, value in ItmModel.from_pretrained(best).state_dict().items()
    }
    assert main(["index", str(best), "--split", "test", "--out", str(index)]) == 0
    assert main(["search", str(best), str(index), "a dog", "--top-k", "3", "--json", str(found)]) == 0
    assert len(json.loads(found.read_text(encoding="utf-8"))[0]["results"]) == 3


def test_what_is_not_fsdp2_is_refused(monkeypatch):
    for name, value in PARTS.items():
        monkeypatch.setenv(name, value)
    assert asks_for_parts()
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ValueError, match="FSDP_OFFLOAD_PARAMS: weights stay on their devices"):
        process_state()
    monkeypatch.delenv("FSDP_VERSION")
    with pytest.raises(ValueError, match=r"FSDP_VERSION=1: .*fsdp_version: 2"):
        process_state()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert not asks_for_parts()


@pytest.mark.parametrize(("method", "reason"), [("aahr", "momentum encoders")])
def test_a_method_that_needs_whole_weights_says_why(tmp_path, monkeypatch, method, reason):
    for name, value in PARTS.items():
        monkeypatch.setenv(name, value)
    recipe = recipe_of(tmp_path / method, method, None)
    with pytest.raises(ValueError, match=f"head.kind {method}: its weights cannot be cut in parts.*{reason}"):
        parts_weights(recipe)


def test_a_gradient_cache_that_torch_cannot_cut_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_itm.runs.launch.asks_for_parts", lambda: True)
    monkeypatch.setattr("clip_itm.runs.launch.COMPUTES_ALONE", False)
    recipe = recipe_of(tmp_path / "clip", "clip", None)
    assert not parts_weights(recipe)
    with pytest.raises(ValueError, match=r"cache_chunk .*torch 2\.15"):
        parts_weights(recipe.with_overrides("--training.cache_chunk", "4"))


def test_every_method_but_one_can_be_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_itm.runs.launch.asks_for_parts", lambda: True)
    for method in HEADS.keys() - {"aahr"}:
        assert not parts_weights(recipe_of(tmp_path / method, method, None)), "one process has nothing to cut"
