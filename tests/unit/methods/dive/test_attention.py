"""Slot attention of DivE against golden numbers, positions, and padding that must not matter."""

import numpy as np
import pytest
import torch

from clip_itm.methods.dive.configuration import SlotsSection
from clip_itm.methods.dive.positions import Positions, sine, sine_grid
from clip_itm.methods.dive.set_attention import SlotBlock, slot_shares, token_weights
from support.dive_golden import BLOCK, FINAL, LAYER, load

EXACT = {"rtol": 1e-8, "atol": 1e-9}
OF_TABLES = {"rtol": 1e-6, "atol": 1e-6}  # sines are float32, and those of another library


def block_of(elements=4, width=16, token_width=12, positions="none", **section) -> SlotBlock:
    return SlotBlock(SlotsSection(dropout=0, **section), elements, width, token_width, positions).double()


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("dive_slot_block")


@pytest.fixture(scope="module")
def padded(arrays):
    """Tokens whose padding is zero, and their mask."""
    mask = torch.arange(7) < torch.tensor(arrays["lengths"])[:, None]
    assert not mask.all()
    return torch.tensor(arrays["local"]).double() * mask[..., None], mask


def test_golden_tied(arrays):
    block = load(block_of(), arrays, BLOCK, "tied_")
    tokens = torch.tensor(arrays["local"]).double().requires_grad_()
    layer, before = block.layers[0], block.slots.expand(3, -1, -1)
    keys, _ = layer.keys_values(tokens, None)
    assert len(arrays["tied_states"]) == block.iterations
    for iteration, (slots, weights) in enumerate(block.states(tokens)):
        shares = slot_shares(layer.scores(before, keys)).detach()
        np.testing.assert_allclose(shares, arrays["tied_attn_slots"][iteration], **EXACT)
        np.testing.assert_allclose(shares.sum(2), 1)
        np.testing.assert_allclose(token_weights(shares), arrays["tied_attn_norm"][iteration], **EXACT)
        np.testing.assert_allclose(weights.detach(), arrays["tied_attn_norm"][iteration], **EXACT)
        np.testing.assert_allclose(slots.detach(), arrays["tied_states"][iteration], **EXACT)
        before = slots
    out, _ = block(tokens)
    np.testing.assert_allclose(out.detach(), arrays["tied_out"], **EXACT)
    (torch.tensor(arrays["cot"]) * out).sum().backward()
    np.testing.assert_allclose(tokens.grad, arrays["tied_grad_local"], **EXACT)
    np.testing.assert_allclose(block.slots.grad, arrays["tied_grad_slots"], **EXACT)
    np.testing.assert_allclose(layer.key.weight.grad.sum(0), arrays["tied_grad_wk_rowsum"], **EXACT)
    np.testing.assert_allclose(layer.ffn[0].bias.grad, arrays["tied_grad_ff1_b"], **EXACT)


@pytest.mark.parametrize("positions", ["none", "sine"])
@pytest.mark.parametrize("mode", ["correct", "leaky"])
def test_golden_mask(arrays, padded, positions, mode):
    block = block_of(positions=positions, compat_leaky_mask=mode == "leaky")
    load(block, arrays, BLOCK, "tied_")
    name = f"{'' if positions == 'none' else 'pos1d_'}masked_{mode}_out"
    found = block(*padded)[0].detach().numpy()
    np.testing.assert_allclose(found, arrays[name], **(EXACT if positions == "none" else OF_TABLES))
    other = "leaky" if mode == "correct" else "correct"
    assert np.abs(found - arrays[name.replace(mode, other)]).max() > 0.01


def test_golden_positions(arrays):
    tokens, grid = (torch.tensor(arrays[name]).double() for name in ("local", "grid_local"))
    np.testing.assert_allclose(sine(torch.arange(1, 8), 7, 12), arrays["pos1d_table"], atol=1e-6)
    np.testing.assert_allclose(sine_grid(3, 2, 12), arrays["pos2d_table"], atol=1e-6)
    for positions, features, name in (("sine", tokens, "pos1d_out"), ("none", grid.flatten(1, 2), "grid_out")):
        block = load(block_of(positions=positions), arrays, BLOCK, "tied_")
        np.testing.assert_allclose(block(features)[0].detach(), arrays[name], **OF_TABLES, err_msg=name)


def test_golden_grid_positions(arrays, monkeypatch):
    block = load(block_of(positions="sine_grid"), arrays, BLOCK, "tied_")
    # the golden grid is 3 x 2; tokens of the toolkit's backbones are square
    monkeypatch.setattr(Positions, "_grid", lambda self, mask: sine_grid(3, 2, 12))
    found = block(torch.tensor(arrays["grid_local"]).double().flatten(1, 2))[0]
    np.testing.assert_allclose(found.detach(), arrays["grid_pos2d_out"], **OF_TABLES)


def test_golden_untied(arrays):
    names = {"_slots": "slots"} | {f"_{name}": own for name, own in FINAL.items()}
    names |= {f"{n}_{name}": f"layers.{n}.{own}" for n in range(2) for name, own in LAYER.items()}
    block = block_of(width=8, token_width=6, iterations=2, tied=False, activation="relu", ffn_mult=2)
    load(block, arrays, names, "untied")
    found, _ = block(torch.tensor(arrays["untied_local"]).double())
    np.testing.assert_allclose(found.detach(), arrays["untied_out"], **EXACT)


def test_golden_post_norm(arrays):
    shared = {f"0_{name}": f"layers.0.{own}" for name, own in LAYER.items() if not name.startswith("ln_")}
    names = {"_slots": "slots"} | shared
    for n in range(2):
        for norm, own in (("post1", "attention_norms"), ("post2", "ffn_norms")):
            names |= {f"{n}_{norm}_w": f"{own}.{n}.weight", f"{n}_{norm}_b": f"{own}.{n}.bias"}
    block = load(
        block_of(width=8, token_width=6, iterations=2, norm="post", ffn_mult=2),
        arrays,
        names,
        "post",
    )
    found, _ = block(torch.tensor(arrays["untied_local"]).double())
    np.testing.assert_allclose(found.detach(), arrays["post_out"], **EXACT)


@pytest.mark.parametrize("positions", ["none", "sine", "learned", "sine_grid", "learned_grid"])
def test_padding_does_not_matter(positions):
    """A set depends on the item's own tokens: not on how far the batch is padded, nor with what."""
    torch.manual_seed(0)
    block = block_of(heads=2, head_dim=8, positions=positions)
    tokens = torch.randn(2, 9, 12, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    alone = block(tokens[1:, : 9 if "grid" in positions else 4], mask[1:, : 9 if "grid" in positions else 4])[0]
    for filling in (0.0, 3.0):
        padding = torch.full_like(tokens[:, :1], filling)
        found = block(torch.where(mask[..., None], tokens, padding), mask)[0]
        torch.testing.assert_close(found[1:], alone, rtol=1e-12, atol=1e-12)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_gaps_close_up():
    """Words that were left out (word dropout) count neither in attention nor in positions."""
    torch.manual_seed(0)
    block = block_of(heads=2, head_dim=8, positions="sine")
    tokens = torch.randn(1, 6, 12, dtype=torch.float64)
    kept = torch.tensor([[True, False, True, True, False, True]])
    torch.testing.assert_close(block(tokens, kept)[0], block(tokens[:, kept[0]])[0], rtol=1e-12, atol=1e-12)


def test_order_of_tokens_and_of_slots():
    torch.manual_seed(0)
    block = block_of(heads=2, head_dim=8)
    tokens, order = torch.randn(3, 6, 12, dtype=torch.float64), torch.randperm(6)
    found, weights = block(tokens)
    shuffled, shuffled_weights = block(tokens[:, order])
    torch.testing.assert_close(shuffled, found)
    torch.testing.assert_close(shuffled_weights, weights[..., order])
    block.slots.data = block.slots.data.flip(0)
    torch.testing.assert_close(block(tokens)[0].flip(1), found)


def test_tied_layers_make_keys_once():
    """Keys of tied layers are made once, and untied copies with the same weights find the same slots."""
    torch.manual_seed(0)
    tied, untied = (block_of(heads=2, head_dim=8, iterations=3, tied=tied) for tied in (True, False))
    calls = []
    tied.layers[0].key.register_forward_hook(lambda *_: calls.append(1))
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    found, _ = tied(tokens)
    assert len(calls) == 1
    untied.slots.data = tied.slots.data
    for layer in untied.layers:
        layer.load_state_dict(tied.layers[0].state_dict())
    torch.testing.assert_close(untied(tokens)[0], found)


def test_caption_without_words_is_finite():
    torch.manual_seed(0)
    block = block_of(heads=2, head_dim=8, positions="sine")
    tokens = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    out, weights = block(tokens, torch.tensor([[True] * 5, [False] * 5]))
    out.sum().backward()
    assert (weights[1] == 0).all()
    assert out.isfinite().all()
    assert (tokens.grad[1] == 0).all()


def test_one_slot_takes_the_mean():
    shares = slot_shares(torch.randn(2, 3, 1, 5), torch.arange(5) < torch.tensor([[5], [2]]))
    expected = torch.tensor([[0.2] * 5, [0.5, 0.5, 0, 0, 0]])
    torch.testing.assert_close(token_weights(shares)[:, 0, 0], expected)


@pytest.mark.parametrize(
    ("kind", "channels", "tokens", "message"),
    [
        ("sine", 7, 3, "width divisible by 2, not 7"),
        ("sine_grid", 6, 9, "width divisible by 4, not 6"),
        ("sine_grid", 8, 6, "square grid of tokens, not 6"),
        ("learned", 8, 101, "up to 100 tokens, not 101"),
        ("learned_grid", 8, 51**2, "up to 50 tokens per side, not 51"),
    ],
)
def test_positions_that_do_not_fit(kind, channels, tokens, message):
    with pytest.raises(ValueError, match=message):
        Positions(kind, channels)(torch.ones(1, tokens, dtype=torch.bool))
