"""Pooling of regions and words against golden numbers, and what it must not depend on; batch norm over valid rows."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from clip_itm.backbones.masked_batch_norm import MaskedBatchNorm
from clip_itm.backbones.pooling import GeneralisedPooling, make_pooling, rank_codes
from clip_itm.backbones.region_encoders import RegionEncoder

KINDS = ["mean", "max", "gpo", "attention"]


def first(lengths, width: int) -> torch.Tensor:
    return torch.arange(width) < torch.as_tensor(lengths)[:, None]


def load_gpo(arrays: dict[str, np.ndarray], prefix: str) -> GeneralisedPooling:
    """Published GPO parameters, named with points or with underscores."""
    pooling = GeneralisedPooling()
    names = {name: prefix + name for name in pooling.state_dict()}
    state = {name: arrays.get(key, arrays.get(key.replace(".", "_"))) for name, key in names.items()}
    pooling.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return pooling


@pytest.mark.parametrize("case", "ab")
def test_golden_of_crcl(golden, case):
    arrays = golden("crcl_gpo")
    pooling = load_gpo(arrays, f"{case}_param_")
    features = torch.tensor(arrays[f"{case}_features"], requires_grad=True)
    lengths = torch.from_numpy(arrays[f"{case}_lengths"])
    pooled = pooling(features, first(lengths, features.shape[1]))
    pooled.backward(torch.from_numpy(arrays[f"{case}_upstream"]))
    found = {
        "pooled": pooled.detach(),
        "weights": pooling.weights(lengths, features.shape[1]).detach()[:, : lengths.max(), None],
        "grad_features": features.grad,
        "grad_gru_weight_ih_l0": pooling.gru.weight_ih_l0.grad,
        "grad_linear_weight": pooling.linear.weight.grad,
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, arrays[f"{case}_{name}"], rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(rank_codes(11, 32), arrays["pe_table"], rtol=1e-6, atol=1e-6)


def test_golden_of_gpo(golden):
    arrays = golden("gpo_pool")
    pooling = load_gpo(arrays, "w_")
    features = torch.tensor(arrays["features"], requires_grad=True)
    pooled = pooling(features, first(arrays["lengths"], 9))
    (pooled * torch.from_numpy(arrays["cotangent"])).sum().backward()
    found = {"pooled": pooled, "grad_features": features.grad, "position_encoding": rank_codes(9, 32)}
    found |= {f"grad_{name.replace('.', '_')}": value.grad for name, value in pooling.named_parameters()}
    for kind, lengths in (("", arrays["lengths"]), ("_short", arrays["lengths_short"])):
        lengths = torch.from_numpy(lengths)
        found[f"weights{kind}"] = pooling.weights(lengths, 9)[:, : lengths.max(), None]
    found["pooled_short"] = pooling(features, first(arrays["lengths_short"], 9))
    assert len(found) == 15
    for name, value in found.items():
        tolerance = 1e-4 * (1 + np.abs(arrays[name]).max())
        np.testing.assert_allclose(value.detach(), arrays[name], rtol=0, atol=tolerance, err_msg=name)


def test_golden_image_head(golden):
    """Region encoder of the GPO baseline, padding rows counted by its batch norm, as released."""
    arrays = golden("gpo_image_head")
    encoder, pooling = RegionEncoder("mlp", 12, 16, norm_padding=True), load_gpo(arrays, "w_gpool_")
    names = {
        "linear": "fc",
        "mlp.hidden": "mlp_layers_0",
        "mlp.output": "mlp_layers_1",
        "mlp.norm": "mlp_bns_0",
    }
    state = {name: name.rpartition(".") for name in encoder.state_dict()}
    state = {name: torch.from_numpy(arrays[f"w_{names[owner]}_{leaf}"]) for name, (owner, _, leaf) in state.items()}
    encoder.load_state_dict(state)
    features = torch.tensor(arrays["features"], requires_grad=True)
    mask = first(arrays["lengths"], 9)

    def encode() -> torch.Tensor:
        return nn.functional.normalize(pooling(encoder(features, mask), mask), dim=-1)

    trained = encode()
    (trained * torch.from_numpy(arrays["cotangent"])).sum().backward()
    norm = encoder.mlp.norm
    found = {"train_out": trained, "running_mean_after": norm.running_mean, "running_var_after": norm.running_var}
    encoder.eval()
    found["eval_out"] = encode()
    for name, value in found.items():
        np.testing.assert_allclose(value.detach(), arrays[name], rtol=1e-4, atol=1e-5, err_msg=name)
    # the encoder zeroes what the mask leaves out, so no gradient reaches padding; the release has one there
    np.testing.assert_allclose(features.grad[mask], arrays["train_grad_features"][mask.numpy()], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_mask_leaves_out_has_no_influence(kind):
    """Holes in the mask, garbage under it, more padding and other samples change nothing; an empty set gives zeros."""
    generator = torch.Generator().manual_seed(0)
    pooling = make_pooling(kind, 6).double()
    tokens = torch.randn(5, 7, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 7, generator=generator) < 0.6
    mask[0], mask[1, 3] = False, True
    clean = tokens.masked_fill(~mask[..., None], 0).requires_grad_()
    pooled = pooling(clean, mask)
    pooled.square().sum().backward()
    assert (pooled[0] == 0).all()
    assert (clean.grad[~mask] == 0).all()
    assert clean.grad.isfinite().all()
    garbage = nn.functional.pad(tokens.masked_fill(~mask[..., None], 1e6), (0, 0, 0, 3), value=-1e6)
    torch.testing.assert_close(pooling(garbage, nn.functional.pad(mask, (0, 3))), pooled)
    alone = [pooling(tokens[k : k + 1, mask[k]], mask[k : k + 1, mask[k]]) for k in range(1, 5)]
    torch.testing.assert_close(torch.cat(alone), pooled[1:])
    order = torch.randperm(7, generator=generator)
    torch.testing.assert_close(pooling(clean[:, order], mask[:, order]), pooled)


def test_gpo_lies_between_mean_and_maximum():
    pooling = GeneralisedPooling()
    tokens, mask = torch.randn(3, 5, 4), first([1, 3, 5], 5)
    torch.testing.assert_close(pooling(tokens, mask)[0], tokens[0, 0])
    torch.testing.assert_close(pooling.weights(mask.sum(dim=1), 5).sum(dim=1), torch.ones(3))
    with torch.no_grad():
        pooling.linear.weight.zero_()
    torch.testing.assert_close(pooling(tokens, mask), make_pooling("mean", 4)(tokens, mask))


@pytest.mark.parametrize("width", [8, 48])
def test_gpo_with_codes_of_another_width(width, monkeypatch):
    """All golden numbers are of codes of 32; one set at a time, in loops."""
    monkeypatch.setattr("clip_itm.backbones.pooling.CODE_WIDTH", width)
    torch.manual_seed(0)
    pooling = GeneralisedPooling().double()
    tokens, lengths = torch.randn(3, 6, 4, dtype=torch.float64), [1, 4, 6]
    pooled = pooling(tokens, first(lengths, 6))
    for row, length in enumerate(lengths):
        codes = torch.empty(length, width, dtype=torch.float64)
        for position in range(length):
            for pair in range(width // 2):
                angle = position / 10000 ** (2 * pair / width)
                codes[position, 2 * pair], codes[position, 2 * pair + 1] = math.sin(angle), math.cos(angle)
        states, _ = pooling.gru(codes)
        forward, backward = states[:, :width], states[:, width:]
        weights = (pooling.linear((forward + backward) / 2)[:, 0] / 0.1).softmax(dim=0)
        ranked = tokens[row, :length].sort(dim=0, descending=True).values
        torch.testing.assert_close(pooled[row], weights @ ranked)


def test_unknown_pooling():
    with pytest.raises(ValueError, match="pooling: expected mean, max, gpo or attention, found 'sum'"):
        make_pooling("sum", 4)


def test_batch_norm_is_that_of_torch_over_valid_rows():
    """Values, gradients, running statistics and evaluation; without a mask over all rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) < 0.7
    upstream = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    for counted in (mask, None):
        norm, twin = MaskedBatchNorm(3).double(), nn.BatchNorm1d(3).double()
        chosen = torch.ones_like(mask) if counted is None else counted
        ours, theirs = rows.clone().requires_grad_(), rows.clone().requires_grad_()
        for _ in range(2):
            found, expected = norm(ours, counted)[chosen], twin(theirs[chosen])
            torch.testing.assert_close(found, expected)
            (found * upstream[chosen]).sum().backward()
            (expected * upstream[chosen]).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
        torch.testing.assert_close(norm.weight.grad, twin.weight.grad)
        torch.testing.assert_close(norm.bias.grad, twin.bias.grad)
        torch.testing.assert_close(norm.running_mean, twin.running_mean)
        torch.testing.assert_close(norm.running_var, twin.running_var)
        torch.testing.assert_close(norm.eval()(rows)[chosen], twin.eval()(rows[chosen]))


def test_batch_norm_of_next_to_nothing():
    norm = MaskedBatchNorm(2)
    found = norm(torch.randn(2, 3, 2), torch.zeros(2, 3, dtype=torch.bool))
    assert found.isfinite().all()
    norm(torch.randn(1, 2), torch.ones(1, dtype=torch.bool))
    assert (norm.running_mean == 0).all()
    assert (norm.running_var == 1).all()


def test_batch_norm_is_float32_under_autocast():
    norm = MaskedBatchNorm(2)
    rows = 1000 + torch.randn(64, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(rows).dtype == torch.float32
