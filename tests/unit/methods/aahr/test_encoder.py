"""The encoder of AAHR against golden numbers, and what padding and batch mates must not change."""

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_itm.backbones.features import Features, FeatureWidths
from clip_itm.methods.aahr.encoder import GuidedPooling, TokenEncoder, max_k
from clip_itm.methods.aahr.head import FusedDotProduct
from support.aahr_golden import encoder_state, pooling_state, small_config, tensors


def assert_close(found: Tensor, expected: Tensor) -> None:
    """The tolerance of the golden arrays, which are float32."""
    expected = expected.numpy()
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-4 * (1 + np.abs(expected).max()))


def mask_of(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width) < lengths[:, None]


def golden_sides(golden, **config) -> tuple[dict[str, Tensor], dict[str, tuple[TokenEncoder, Features]]]:
    """The arrays, and both encoders in evaluation mode with their inputs."""
    arrays = tensors(golden("aahr_encoder"))
    config = small_config(**config)
    sides = {
        "img": (TokenEncoder(config, 20, 12, "mlp"), "regions", "clip_image", "region_lengths"),
        "txt": (TokenEncoder(config, 14, 12), "word_states", "clip_text", "word_lengths"),
    }
    found = {}
    for side, (encoder, tokens, pooled, lengths) in sides.items():
        encoder.double().load_state_dict(encoder_state(arrays, side))
        features = Features(arrays[pooled], arrays[tokens], mask_of(arrays[lengths], arrays[tokens].shape[1]))
        found[side] = encoder.eval(), features
    return arrays, found


@pytest.mark.parametrize("side", ["img", "txt"])
def test_golden_encoder(golden, side):
    """Padding masked: every sample of the padded batch is as it is alone."""
    arrays, sides = golden_sides(golden)
    encoder, features = sides[side]
    found = encoder(features)
    assert_close(found.fused, arrays[f"{side}_fused_clean"])
    assert_close(found.local, arrays[f"{side}_local_clean"])
    kept = features.mask[..., None]
    assert_close(found.fragments * kept, arrays[f"{side}_prepool"] * kept)
    assert not found.fragments.requires_grad


@pytest.mark.parametrize("side", ["img", "txt"])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_golden_encoder_as_released(golden, side, with_gradient):
    """Softmax over padding, too, with or without gradient."""
    arrays, sides = golden_sides(golden, preset="aahr_release")
    encoder, features = sides[side]
    with torch.set_grad_enabled(with_gradient):
        found = encoder(features)
    assert_close(found.fused, arrays[f"{side}_fused_padded"])
    assert_close(found.local, arrays[f"{side}_local_padded"])
    assert_close(found.fragments, arrays[f"{side}_prepool"])
    assert (found.local - arrays[f"{side}_local_clean"]).abs().max() > 1e-3


def test_golden_similarity_and_gradient(golden):
    arrays, sides = golden_sides(golden)
    similarity = FusedDotProduct(small_config(), FeatureWidths(12, 20, 14))
    (image_encoder, images), (text_encoder, texts) = sides["img"], sides["txt"]
    similarity.image_encoder, similarity.text_encoder = image_encoder, text_encoder
    images.tokens.requires_grad_()
    embedded = similarity.embed_images(images)
    assert_close(similarity(embedded, similarity.embed_texts(texts)), arrays["similarity_clean"])
    (embedded * arrays["cotangent"]).sum().backward()
    assert_close(images.tokens.grad, arrays["img_grad_regions_clean"])
    assert images.tokens.grad[images.mask].abs().max() > 1e-3
    assert (images.tokens.grad[~images.mask] == 0).all()


def test_golden_pooling(golden):
    arrays = tensors(golden("aahr_pooling"))
    pooling = GuidedPooling(32, 8).double()
    pooling.load_state_dict(pooling_state(arrays, "att_"))
    tokens = arrays["locals"]
    found = pooling(arrays["global_query"], tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
    assert_close(found, arrays["att_out"])
    assert_close(max_k(tokens, mask_of(arrays["maxk_lengths"], tokens.shape[1]), 2), arrays["maxk_out"])


def test_golden_gate(golden):
    arrays = tensors(golden("aahr_pooling"))
    encoder = TokenEncoder(small_config(), 20, 12).double()
    encoder.gate.load_state_dict({part: arrays[f"gate_fc_gate_{part}"] for part in ("weight", "bias")})
    found = encoder.fuse(arrays["gate_local"], arrays["gate_global"])
    assert_close(found, arrays["gate_out"])
    assert (found.norm(dim=1) - 1).abs().max() > 0.05, "the fused vector is not normalised again"
    encoder.config = small_config(normalize_output=True)
    torch.testing.assert_close(
        encoder.fuse(arrays["gate_local"], arrays["gate_global"]).norm(dim=1), torch.ones(6).double()
    )


def features(rows: int, places: int, lengths: list[int], seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, places, 20, generator=generator, dtype=torch.float64)
    pooled = torch.randn(rows, 12, generator=generator, dtype=torch.float64)
    return Features(pooled, tokens, mask_of(torch.tensor(lengths), places))


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(projection, training):
    """More padding, whatever it holds; in training mode the statistics of batch norm do not see it, either."""
    batch = features(5, 9, [9, 4, 1, 2, 6])
    encoder = TokenEncoder(small_config(), 20, 12, projection).double().train(training)
    found = encoder(batch)
    longer = torch.cat([batch.tokens, torch.full((5, 3, 20), 7.0, dtype=torch.float64)], dim=1)
    longer[:, :9][~batch.mask] = -3.0
    again = encoder(Features(batch.pooled, longer, torch.cat([batch.mask, torch.zeros(5, 3, dtype=torch.bool)], dim=1)))
    torch.testing.assert_close(again.fused, found.fused)
    torch.testing.assert_close(again.local, found.local)


def test_embeddings_do_not_depend_on_the_batch():
    batch = features(5, 9, [9, 4, 1, 2, 6])
    encoder = TokenEncoder(small_config(), 20, 12, "mlp").double().eval()
    whole = encoder(batch).fused
    for row, length in enumerate([9, 4, 1, 2, 6]):
        alone = Features(batch.pooled[row : row + 1], batch.tokens[row : row + 1, :length])
        torch.testing.assert_close(encoder(alone).fused[0], whole[row])


def test_max_k_takes_as_many_as_there_are():
    tokens = torch.tensor([[[1.0], [5.0], [3.0]], [[4.0], [9.0], [9.0]], [[9.0], [9.0], [9.0]]])
    mask = mask_of(torch.tensor([3, 1, 0]), 3)
    assert max_k(tokens, mask, 2)[:, 0].tolist() == [4, 4, 0]
    assert max_k(tokens[:1], mask[:1], 8)[:, 0].tolist() == [3]


def test_a_caption_without_words_is_finite():
    batch = features(3, 4, [4, 0, 2])
    encoder = TokenEncoder(small_config(), 20, 12).double()
    batch.tokens.requires_grad_()
    fused = encoder(batch).fused
    fused.sum().backward()
    assert fused.isfinite().all()
    assert batch.tokens.grad.isfinite().all()


def test_training_leaves_tokens_out():
    batch = features(64, 10, [10] * 64)
    encoder = TokenEncoder(small_config(), 20, 12).double()
    torch.manual_seed(0)
    kept = encoder(batch, token_dropout=0.2).mask
    assert 0.75 < kept.double().mean() < 0.85
    assert kept.any(dim=1).all()
    assert encoder.eval()(batch, token_dropout=0.2).mask.all()
    assert encoder.train()(features(64, 1, [1] * 64), token_dropout=0.9).mask.all()
