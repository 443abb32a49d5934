"""NPC's memory bank: losses, mixture, nearest clean pairs, and its file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Pairs
from clip_itm.methods.mixture import Mixture, fit_mixture
from clip_itm.methods.npc.bank import MemoryBank, build_bank, nearest_pairs
from clip_itm.methods.pair_losses import pair_losses
from support.data_folders import make_pairs


@pytest.fixture
def released(golden):
    """The golden arrays, with unit vectors: a photo each, five captions per photo."""
    arrays = golden("npc_memory_bank")
    pairs_per_photo = int(arrays["num_anns"])
    return arrays | {
        "images": F.normalize(torch.from_numpy(arrays["img_feat"][::pairs_per_photo]), dim=1),
        "texts": F.normalize(torch.from_numpy(arrays["txt_feat"]), dim=1),
        "pair_image": np.repeat(np.arange(len(arrays["image_ids"])), pairs_per_photo),
        "source": np.arange(len(arrays["txt_feat"])),
        "scale": float(np.exp(arrays["logit_scale"])),
    }


def world(seed: int, photos: int = 30, per_photo: int = 5, width: int = 16, ratio: float = 0.4):
    """Unit vectors in which a caption lies near its photo, and noise."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(photos, width, generator=generator), dim=1)
    pairs = make_pairs([per_photo] * photos)
    texts = images[torch.from_numpy(pairs.image)]
    texts = F.normalize(texts + 0.1 * torch.randn(len(pairs), width, generator=generator), dim=1)
    return images, texts, pairs, CaptionNoise.draw(pairs, ratio, "caption", seed)


def bank_of(seed: int = 0, rho: float = 0.99, **kwargs) -> tuple[MemoryBank, CaptionNoise, Pairs]:
    images, texts, pairs, noise = world(seed, **kwargs)
    bank = build_bank(images, texts, pairs.image, noise.source, 20.0, rho, "a test", noise.sha256, batch_size=64)
    return bank, noise, pairs


# Losses and mixture


def test_losses_mixture_and_clean_sets_of_the_released_builder(released):
    losses = pair_losses(
        *(released[name] for name in ("images", "texts", "pair_image", "source", "scale")),
        batch_size=int(released["batch_size"]),
        seed=None,
    )
    np.testing.assert_allclose(losses, released["loss"], rtol=0, atol=1e-4)
    mixture = fit_mixture(losses, seed=99)
    np.testing.assert_allclose(mixture.means, released["gmm_means"], rtol=2e-2)
    np.testing.assert_allclose(mixture.variances, released["gmm_vars"], rtol=2e-2)
    np.testing.assert_allclose(mixture.weights, released["gmm_weights"], rtol=2e-2)
    posterior = mixture.clean_posterior(losses)
    np.testing.assert_allclose(posterior, released["clean_posterior"], rtol=0, atol=1e-3)
    for rho, name in ((0.9, "clean_idx_090"), (0.99, "clean_idx_099")):
        differing = np.setxor1d(np.flatnonzero(posterior > rho), released[name])
        assert (np.abs(posterior[differing] - rho) < 1e-3).all()


@given(count=st.integers(1, 40), batch_size=st.integers(1, 15), seed=st.none() | st.integers(0, 9))
def test_losses_are_those_of_every_batch_written_out(count, batch_size, seed):
    generator = np.random.default_rng(count)
    images, texts = (F.normalize(torch.from_numpy(generator.normal(size=(n, 6))).float(), dim=1) for n in (7, count))
    pair_image, source = generator.integers(0, 7, count), generator.permutation(count)
    losses = pair_losses(images, texts, pair_image, source, 5.0, batch_size, seed)
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    for start in range(0, count, batch_size):
        own = order[start : start + batch_size]
        batch = own if seed is None else order[max(0, min(start, count - batch_size)) : start + batch_size]
        assert seed is None or len(batch) == min(count, batch_size), "a loss depends on the size of its batch"
        scores = 5.0 * images[pair_image[batch]].double().numpy() @ texts[source[batch]].double().numpy().T
        for row, pair in enumerate(batch):
            if pair not in own:
                continue
            expected = (np.log(np.exp(scores[row]).sum()) + np.log(np.exp(scores[:, row]).sum())) / 2 - scores[row, row]
            assert losses[pair] == pytest.approx(expected, abs=1e-5)


@given(count=st.integers(2, 30), kinds=st.integers(1, 6), seed=st.integers(0, 9))
def test_equal_captions_of_other_images_are_no_negatives_in_losses(count, kinds, seed):
    generator = np.random.default_rng(seed)
    images, texts = (F.normalize(torch.from_numpy(generator.normal(size=(n, 6))).float(), dim=1) for n in (7, count))
    pair_image, captions = generator.integers(0, 7, count), generator.integers(0, kinds, count)
    found = pair_losses(images, texts, pair_image, np.arange(count), 5.0, count, seed, captions=captions)
    scores = 5.0 * images[pair_image].double().numpy() @ texts.double().numpy().T
    for pair in range(count):
        kept = [j for j in range(count) if captions[j] != captions[pair] or pair_image[j] == pair_image[pair]]
        both = np.log(np.exp(scores[pair, kept]).sum()) + np.log(np.exp(scores[kept, pair]).sum())
        assert found[pair] == pytest.approx(both / 2 - scores[pair, pair], abs=1e-5)


def test_siblings_meet_in_dataset_order_and_rarely_in_a_permutation():
    images, texts, pairs, noise = world(0, photos=100, ratio=0)
    ordered, drawn = (pair_losses(images, texts, pairs.image, noise.source, 20.0, 50, seed) for seed in (None, 0))
    assert ordered.min() >= np.log(5) / 2
    assert np.median(drawn) < np.log(5) / 2


def test_posterior_is_that_of_the_fitted_mixture():
    from sklearn.mixture import GaussianMixture

    generator = np.random.default_rng(0)
    losses = np.concatenate([generator.normal(1, 0.2, 300), generator.normal(6, 2, 200)])
    fitted = GaussianMixture(2, max_iter=100, tol=1e-2, reg_covar=5e-4, random_state=3).fit(losses[:, None])
    expected = fitted.predict_proba(losses[:, None])[:, np.argmin(fitted.means_[:, 0])]
    mixture = fit_mixture(losses, seed=3)
    np.testing.assert_allclose(mixture.clean_posterior(losses), expected, atol=1e-12)
    assert mixture.means[0] < mixture.means[1]
    assert mixture.clean_posterior(np.array([1e6, -1e6])).tolist() == [0, 0]


@given(
    means=st.tuples(st.floats(0, 5), st.floats(0, 10)),
    deviations=st.tuples(st.floats(0.05, 4), st.floats(0.05, 4)),
    weight=st.floats(0.05, 0.95),
    losses=st.lists(st.floats(-5, 30), min_size=2, max_size=40),
)
def test_monotone_posterior_never_rises_with_the_loss(means, deviations, weight, losses):
    mixture = Mixture(np.sort(means), np.square(deviations), np.array([weight, 1 - weight]))
    losses = np.sort(losses)
    monotone = mixture.monotone_clean_posterior(losses)
    assert (np.diff(monotone) <= 1e-9).all()
    between = (losses >= mixture.means[0]) & (losses <= mixture.means[1])
    np.testing.assert_array_equal(monotone[between], mixture.clean_posterior(losses)[between])


def test_the_published_posterior_turns_on_both_sides():
    narrow = Mixture(np.array([1.0, 3.0]), np.array([0.01, 4.0]), np.array([0.5, 0.5]))
    assert narrow.clean_posterior([0.0]) < 0.01 < 0.9 < narrow.clean_posterior([1.0])
    assert narrow.monotone_clean_posterior([0.0]) == narrow.clean_posterior([1.0])
    wide = Mixture(np.array([1.0, 3.0]), np.array([4.0, 0.01]), np.array([0.5, 0.5]))
    assert wide.clean_posterior([6.0]) > 0.9 > 0.1 > wide.clean_posterior([3.0])
    assert wide.monotone_clean_posterior([6.0]) <= wide.clean_posterior([3.0])


def test_losses_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="3 losses are all the same"):
        fit_mixture(np.array([1.5, 1.5, 1.5]))
    with pytest.raises(ValueError, match="2 of 4 losses are not finite"):
        fit_mixture(np.array([1.0, np.nan, np.inf, 2.0]))


# Nearest pairs


@pytest.mark.parametrize("rho", ["090", "099"])
def test_intended_banks(released, rho):
    clean = released[f"clean_idx_{rho}"]
    images, texts, pair_image = (released[name] for name in ("images", "texts", "pair_image"))
    for kind, queries, keys in (("img", images, images[pair_image[clean]]), ("txt", texts, texts[clean])):
        found, expected = nearest_pairs(queries, keys, clean), released[f"bank_{kind}_{rho}"]
        vectors = queries if kind == "txt" else images[pair_image]
        cosine, largest = ((queries.double() * vectors[pairs].double()).sum(1).numpy() for pairs in (found, expected))
        np.testing.assert_allclose(cosine, largest, rtol=0, atol=1e-6)
        assert np.isin(found, clean).all()
        if rho == "090":
            np.testing.assert_allclose(cosine, released[f"cos_max_{kind}_090"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(nearest_pairs(texts, texts[clean], clean)[clean], clean)


def test_the_released_bank_is_not_by_cosine(released):
    """Its bank side has the raw lengths (docs/papers/npc.md 4.2): most of its caption entries are not the nearest."""
    clean, texts = released["clean_idx_090"], released["texts"]
    raw = torch.from_numpy(released["txt_feat"])[clean]
    np.testing.assert_array_equal(clean[(texts @ raw.T).argmax(dim=1).numpy()], released["released_bank_txt"])
    same = nearest_pairs(texts, raw, clean) == released["released_bank_txt"]
    assert same.mean() < 0.4
    assert np.mean(released["released_bank_txt"][clean] == clean) < 0.4


@settings(deadline=None)
@given(
    keys=st.lists(st.tuples(*[st.integers(-2, 2)] * 3).filter(any), min_size=1, max_size=30),
    queries=st.lists(st.tuples(*[st.integers(-2, 2)] * 3).filter(any), min_size=1, max_size=12),
    block=st.integers(1, 8),
)
def test_nearest_pairs_is_exhaustive_search(keys, queries, block):
    pairs = 3 * np.arange(len(keys)) + 1
    keys, queries = torch.tensor(keys).float(), torch.tensor(queries).float()
    found = nearest_pairs(queries, keys, pairs, block)
    cosine = (F.normalize(queries.double(), dim=1) @ F.normalize(keys.double(), dim=1).T).numpy()
    for query, pair in enumerate(found):
        key = int((pair - 1) // 3)
        assert cosine[query, key] >= cosine[query].max() - 1e-6
        assert not any(torch.equal(keys[key], earlier) for earlier in keys[:key])
        equal = [number for number, row in enumerate(keys) if torch.equal(row, queries[query])]
        assert not equal or key == equal[0]


def test_equal_vectors_give_the_lowest_pair_in_spite_of_rounding():
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(40, 512, generator=generator), dim=1)
    keys = vectors.repeat(7, 1)[torch.randperm(280, generator=generator)]
    queries = torch.cat([vectors, F.normalize(vectors + 0.01 * torch.randn(40, 512, generator=generator), dim=1)])
    first = [int((keys == vector).all(dim=1).nonzero()[0]) for vector in vectors]
    for block in (3, 64, 4096):
        np.testing.assert_array_equal(nearest_pairs(queries, keys, np.arange(280), block), first + first)


def test_exact_ties_of_different_vectors_give_the_lowest_pair():
    keys = torch.eye(6)[[5, 3, 0, 1, 3, 0]]
    queries = F.normalize(torch.tensor([[1.0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]), dim=1)
    for block in (1, 2, 4096):
        np.testing.assert_array_equal(nearest_pairs(queries, keys, np.array([2, 4, 5, 7, 8, 9]), block), [4, 5, 2])


def test_minus_zero_is_zero():
    keys = torch.tensor([[1.0, 0.0], [1.0, -0.0]])
    np.testing.assert_array_equal(nearest_pairs(keys.flip(0), keys, np.array([3, 5])), [3, 3])


# Building, saving, checking


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), ratio=st.sampled_from([0.2, 0.4, 0.6]))
def test_a_bank_holds_whole_clean_pairs_nearest_to_photo_and_caption(seed, ratio):
    images, texts, pairs, noise = world(seed, ratio=ratio)
    bank = build_bank(images, texts, pairs.image, noise.source, 20.0, 0.8, "a test", noise.sha256, batch_size=64)
    clean = bank.clean
    np.testing.assert_array_equal(clean, np.flatnonzero(bank.posterior > 0.8))
    captions = texts[noise.source]
    for queries, keys, entries in (
        (images, images[pairs.image[clean]], bank.image_entry),
        (captions, captions[clean], bank.caption_entry),
    ):
        assert np.isin(entries, clean).all()
        cosine = (queries.double() @ keys.double().T).numpy()
        chosen = cosine[np.arange(len(queries)), np.searchsorted(clean, entries)]
        np.testing.assert_allclose(chosen, cosine.max(axis=1), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(bank.caption_entry[clean], clean)
    assert noise.is_clean(pairs)[clean].mean() > noise.is_clean(pairs).mean()
    bank.check(noise, pairs)


def test_the_same_pairs_give_the_same_bank_and_other_noise_another():
    first, again, other = bank_of()[0], bank_of()[0], bank_of(ratio=0.6)[0]
    assert first.sha256 == again.sha256 != other.sha256


def test_an_empty_clean_set_says_what_to_lower():
    with pytest.raises(ValueError, match=r"largest posterior of 150 .* head\.rho is 0\.9999999; lower head\.rho"):
        bank_of(rho=0.9999999)
    with pytest.raises(ValueError, match=r"head\.rho must lie between 0 and 1, got 99"):
        bank_of(rho=99)


def test_small_losses_that_fail_the_posterior_are_counted():
    mixture = Mixture(np.array([1.0, 3.0]), np.array([0.01, 4.0]), np.array([0.5, 0.5]))
    losses = np.array([0.1, 0.2, 0.95, 1.0, 2.5], dtype=np.float32)
    posterior = mixture.clean_posterior(losses).astype(np.float32)
    entries = np.zeros(5, dtype=np.int64)
    bank = MemoryBank(entries, entries, 0.8, "a test", "", losses=losses, posterior=posterior, mixture=mixture)
    np.testing.assert_array_equal(bank.clean, [2, 3])
    assert bank.below_clean_mean_rejected == 2
    assert MemoryBank(entries, entries, None, "a test", "").below_clean_mean_rejected is None


def test_a_saved_bank_comes_back_whole(tmp_path):
    bank, noise, pairs = bank_of()
    bare = MemoryBank(bank.image_entry, bank.caption_entry, None, "elsewhere", noise.sha256)
    for number, one in enumerate((bank, bare)):
        path = tmp_path / f"{number}.npz"
        one.save(path)
        again = MemoryBank.load(path)
        for name in ("sha256", "noise_sha256", "model", "rho", "seed", "batch_size", "below_clean_mean_rejected"):
            assert getattr(again, name) == getattr(one, name), name
        again.check(noise, pairs)
        for name in ("image_entry", "caption_entry", "losses", "posterior"):
            expected, found = getattr(one, name), getattr(again, name)
            np.testing.assert_array_equal(found, expected)
            assert found is expected is None or found.dtype == expected.dtype
    whole = MemoryBank.load(tmp_path / "0.npz")
    np.testing.assert_array_equal(whole.clean, bank.clean)
    for name in ("means", "variances", "weights"):
        np.testing.assert_array_equal(getattr(whole.mixture, name), getattr(bank.mixture, name))
    assert again.mixture is None


def test_files_that_are_no_bank_are_named(tmp_path):
    path = tmp_path / "bank.npz"
    with pytest.raises(ValueError, match=r"bank\.npz does not exist"):
        MemoryBank.load(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"bank\.npz is not a memory bank .*bank import"):
        MemoryBank.load(path)
    np.savez(path, image_entry=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"bank\.npz is not a memory bank"):
        MemoryBank.load(path)
    bank, noise, _ = bank_of()
    noise.save(tmp_path / "noise.npz")
    with pytest.raises(ValueError, match=r"noise\.npz is not a memory bank"):
        MemoryBank.load(tmp_path / "noise.npz")
    bank.save(path)
    with np.load(path) as arrays:
        stored = dict(arrays)
    np.savez(path, **{**stored, "caption_entry": stored["caption_entry"][::-1]})
    with pytest.raises(ValueError, match="changed or damaged"):
        MemoryBank.load(path)
    with pytest.raises(ValueError, match=r"saved as \.npz"):
        bank.save(tmp_path / "bank.npy")


def test_a_bank_of_other_pairs_is_refused():
    bank, noise, pairs = bank_of()
    other = CaptionNoise.draw(pairs, 0.6, "caption", 0)
    with pytest.raises(ValueError, match=rf"other noise: it names {noise.sha256}.*{other.sha256}; rebuild it"):
        bank.check(other, pairs)
    bare = MemoryBank(bank.image_entry[:-1], bank.caption_entry, None, "elsewhere", noise.sha256)
    with pytest.raises(ValueError, match="entries for 29 photos, the training split has 30"):
        bare.check(noise, pairs)
    bare = MemoryBank(bank.image_entry, np.where(bank.caption_entry < 5, 150, 1), None, "elsewhere", noise.sha256)
    with pytest.raises(ValueError, match="is pair 150, but training pairs are numbered 0 to 149"):
        bare.check(noise, pairs)
