"""The images nearest to each image."""

import numpy as np
import pytest
import torch

from clip_itm.data.region_features import RegionFeatures
from clip_itm.runs import neighbours
from clip_itm.runs.neighbours import kept_nearest_images, mean_regions, nearest_images


def brute_force(vectors: np.ndarray, count: int) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for row, own in enumerate(unit):
        cosines = np.round(unit @ own, 9)
        cosines[row] = -np.inf
        found.append(np.sort(np.argsort(-cosines, kind="stable")[: min(count, len(unit) - 1)]))
    return np.array(found)


@pytest.mark.parametrize("count", [1, 3, 40, 1000])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_nearest_are_those_of_a_full_sort(monkeypatch, count, block):
    """Some images are there three times: ties go to the first ones, whatever the blocks are."""
    vectors = np.random.default_rng(0).normal(size=(60, 8))
    vectors[20:40] = vectors[:20]
    vectors[40:50] = 3 * vectors[:10]
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 8 * 60 * block)
    monkeypatch.setattr(neighbours, "ROWS", block)
    found = nearest_images(torch.tensor(vectors), count)
    np.testing.assert_array_equal(found, brute_force(vectors, count))


def test_one_image_has_no_neighbour():
    assert nearest_images(torch.ones(1, 4), 5).shape == (1, 0)


def test_they_are_found_once_for_the_same_vectors(monkeypatch, tmp_path):
    vectors = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    first = kept_nearest_images(vectors, 3, tmp_path)
    np.testing.assert_array_equal(first, nearest_images(vectors, 3))
    found = []
    monkeypatch.setattr(neighbours, "nearest_images", lambda *args: found.append(args) or nearest_images(*args))
    np.testing.assert_array_equal(kept_nearest_images(vectors, 3, tmp_path), first)
    assert not found
    kept_nearest_images(vectors, 4, tmp_path)
    kept_nearest_images(vectors + 1, 3, tmp_path)
    assert len(found) == 2
    file = next(tmp_path.glob("neighbours-*-4.npy"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="damaged"):
        again = kept_nearest_images(vectors, 4, tmp_path)
    np.testing.assert_array_equal(again, nearest_images(vectors, 4))
    with pytest.raises(ValueError, match="features of 1 photo is not finite"):
        kept_nearest_images(torch.cat([vectors, torch.full((1, 4), torch.nan)]), 3, tmp_path)


def test_the_mean_of_regions_leaves_padding_out(tmp_path):
    regions = np.random.default_rng(0).normal(size=(300, 4, 6)).astype(np.float32)
    regions[::2, 2:] = 0
    np.save(tmp_path / "train_ims.npy", regions)
    features = RegionFeatures(tmp_path / "train_ims.npy", 1, np.arange(300)[::-1].copy(), np.arange(300))
    expected = regions.astype(np.float64).sum(axis=1) / (regions != 0).any(axis=2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mean_regions(features, 300).numpy(), expected[::-1], rtol=1e-5, atol=1e-6)
