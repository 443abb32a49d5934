"""Training with AAHR: several processes against one, momentum encoders, and the state beside a checkpoint."""

import pytest
import torch
from safetensors.torch import load_file

from clip_itm.methods.aahr.trainer import STATE, AahrTrainer, MomentumEncoders
from clip_itm.model import ItmModel
from clip_itm.runs.build import make_trainer
from clip_itm.runs.setup import make_encoder, make_model, prepare
from support.tiny import tiny_recipe

HEAD = {
    "kind": "aahr",
    "embed_dim": 16,
    "num_heads": 2,
    "pooling_heads": 2,
    "prototypes": 8,
    "queue_length": 64,
    "reference_batch": 32,
    "prototypes_after": 0.5,
    "graph_after": 0.5,
}


def trainer_of(folder, **sections) -> AahrTrainer:
    folder.mkdir(exist_ok=True)
    head = HEAD | sections.pop("head", {})
    recipe = tiny_recipe(folder, head=head, **sections)
    prepared = prepare(recipe)
    data = prepared.data
    model, processor = make_model(recipe, data.splits)
    return make_trainer(recipe, *prepared, make_encoder(recipe, model, processor), resuming=False)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_momentum_encoders_follow(tmp_path, mode):
    trainer = trainer_of(tmp_path, backbone={"freeze_image": True})
    model = trainer.model.train()
    momentum = MomentumEncoders(model, 0.75, mode)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert set(momentum.names) == {name for name in trained if "criterion" not in name}
    start = {name: value.clone() for name, value in momentum.state_dict().items()}
    with torch.no_grad():
        for name in momentum.names:
            model.get_parameter(name).add_(1)
    momentum.follow()
    for name in momentum.names:
        torch.testing.assert_close(momentum.copy.get_parameter(name), start[name] + 0.25)
    assert not any(value.requires_grad for value in momentum.copy.parameters())
    assert momentum.copy.training == (mode == "train")
    assert model.head.criterion.training
    frozen = next(name for name, value in model.named_parameters() if not value.requires_grad)
    assert momentum.copy.get_parameter(frozen) is model.get_parameter(frozen), "what is frozen is not kept twice"


def test_a_run_and_its_state(tmp_path):
    """What a saved model leaves out is beside the checkpoint and comes back as it was."""
    trainer = trainer_of(tmp_path / "one", training={"epochs": 1})
    trainer.train()
    criterion = trainer.criterion
    assert criterion.step == 6
    assert criterion.queue.is_full
    assert criterion.gates == (3, 3)
    folder = tmp_path / "one" / "run" / "checkpoint-6"
    assert not any("criterion" in name for name in load_file(folder / "model.safetensors"))
    state = load_file(folder / STATE)
    torch.testing.assert_close(state["criterion.prototypes"], criterion.prototypes.detach(), rtol=0, atol=0)
    other = trainer_of(tmp_path / "two", training={"epochs": 1})
    other.load_method_state(folder)
    other.save_method_state(tmp_path)
    again = load_file(tmp_path / STATE)
    assert again.keys() == state.keys()
    assert {name.split(".")[0] for name in again} == {"criterion", "queue", "momentum", "step"}
    assert all(torch.equal(again[name], value) for name, value in state.items())
    assert other.criterion.step == 6
    loaded = ItmModel.from_pretrained(folder)
    for name, value in trainer.model.head.similarity.state_dict().items():
        torch.testing.assert_close(loaded.head.similarity.state_dict()[name], value, rtol=0, atol=0)


def test_gates_that_never_open_are_named(tmp_path):
    with pytest.warns(UserWarning, match=r"head.graph_after: AAHR's graph would begin after 8000 batches.* has 18; "):
        trainer_of(tmp_path, head={"graph_after": None})
