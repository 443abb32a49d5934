"""Which pairs meet in a batch, and what a batch holds."""

import pickle
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset as Rows
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from clip_itm.data.batches import PairDataset
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import ROW_FEATURES, Split
from clip_itm.data.sampler import PairBatchSampler, count_batches, draw_batches

# Which pairs


def most_batches_by_flow(counts: list[int], batch_size: int, per_image: int) -> int:
    """Brute force: the largest M for which a flow photos -> batches fills M batches (unit augmenting paths)."""
    batches = 0
    while _fills(counts, batches + 1, batch_size, per_image):
        batches += 1
    return batches


def _fills(counts, batches, batch_size, per_image) -> bool:
    placed = np.zeros((len(counts), batches), dtype=int)

    def give(photo, seen) -> bool:
        for batch in range(batches):
            if batch in seen or placed[photo, batch] == per_image:
                continue
            seen.add(batch)
            if placed[:, batch].sum() < batch_size:
                placed[photo, batch] += 1
                return True
            for other in np.flatnonzero(placed[:, batch]):
                if other != photo and give(other, seen):
                    placed[other, batch] -= 1
                    placed[photo, batch] += 1
                    return True
        return False

    for photo, count in enumerate(counts):
        for _ in range(count):
            give(photo, set())
    return bool((placed.sum(axis=0) == batch_size).all())


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    batch_size=st.integers(1, 12),
    per_image=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=400)
def test_every_batch_is_full_and_no_photo_exceeds_its_share(counts, batch_size, per_image, seed):
    per_image = min(per_image, batch_size)
    image = np.repeat(np.arange(len(counts)), counts)
    drawn = draw_batches(image, batch_size, per_image, np.random.default_rng(seed))
    assert drawn.shape == (count_batches(image, batch_size, per_image), batch_size)
    assert len(np.unique(drawn)) == drawn.size
    for batch in drawn:
        photos = image[batch]
        assert np.bincount(photos).max() <= per_image
        if max(counts) <= len(drawn):
            assert np.sum(np.diff(photos) != 0) + 1 == len(np.unique(photos)), "pairs of a photo stand side by side"


@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any),
    batch_size=st.integers(1, 6),
    per_image=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_no_other_way_of_batching_loses_fewer_pairs(counts, batch_size, per_image):
    per_image = min(per_image, batch_size)
    image = np.repeat(np.arange(len(counts)), counts)
    found = count_batches(image, batch_size, per_image)
    best = most_batches_by_flow(counts, batch_size, per_image)
    assert found <= best
    if batch_size % per_image == 0 or max(counts) <= found + 1:
        assert found == best


@pytest.mark.parametrize(("mode", "per_image"), [("unique", 1), ("grouped", 2), ("grouped", 3), ("grouped", 5)])
def test_real_sizes_lose_less_than_one_batch_in_about_a_second(mode, per_image):
    image = np.repeat(np.arange(29_000), np.random.default_rng(0).choice([4, 5, 5, 5, 6], 29_000))
    sampler = PairBatchSampler(image, mode, 256, per_image)
    start = time.perf_counter()
    drawn = np.array(list(sampler))
    assert time.perf_counter() - start < 5
    assert len(sampler) == len(drawn) == len(image) // 256
    for batch in drawn:
        assert np.bincount(image[batch]).max() <= per_image


def test_grouped_batches_keep_photos_whole():
    image = np.repeat(np.arange(2_000), 5)
    for batch_size in (100, 128):
        drawn = draw_batches(image, batch_size, 5, np.random.default_rng(1))
        per_batch = [len(np.unique(image[batch])) for batch in drawn]
        # 128 = 25 photos of 5 captions and 3 places that no whole photo fills: at most two more photos
        assert max(per_batch) <= batch_size // 5 + (2 if batch_size % 5 else 0)


def test_unique_batches_mix_photos_anew_in_every_epoch():
    image = np.repeat(np.arange(400), 5)
    sampler = PairBatchSampler(image, "unique", 40, seed=3)
    together = np.zeros((400, 400))
    for epoch in range(30):
        sampler.set_epoch(epoch)
        for batch in sampler:
            together[np.ix_(image[batch], image[batch])] += 1
    meetings = together[np.triu_indices(400, 1)]
    # 30 epochs, 50 batches of 40: each pair of photos should meet 30 * 50 * (40 * 39) / (400 * 399) times.
    assert meetings.mean() == pytest.approx(30 * 50 * 40 * 39 / (400 * 399), rel=0.01)
    assert meetings.max() < 40
    assert meetings.min() > 0


@pytest.mark.parametrize("mode", ["random", "unique", "grouped"])
def test_order_depends_on_seed_and_epoch_alone(mode):
    image = np.repeat(np.arange(60), 5)

    def batches(seed, epoch):
        np.random.seed(seed + epoch)  # the global generator must not matter
        sampler = PairBatchSampler(image, mode, 20, 3, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(1, 2) == batches(1, 2)
    assert batches(1, 2) != batches(1, 3)
    assert batches(1, 2) != batches(2, 2)
    assert len({len(batches(1, epoch)) for epoch in range(20)}) == 1


@pytest.mark.parametrize("mode", ["random", "unique", "grouped"])
def test_ranks_share_the_global_batches_in_contiguous_rows(mode):
    image = np.repeat(np.arange(60), 5)
    whole = list(PairBatchSampler(image, mode, 24, 2, seed=5))
    shares = [PairBatchSampler(image, mode, 24, 2, seed=5, rank=rank, world_size=4) for rank in range(4)]
    assert [share.batch_size for share in shares] == [6] * 4
    assert all(len(share) == len(whole) for share in shares)
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch == [pair for part in parts for pair in part]
        assert all(type(pair) is int for pair in batch)


@pytest.mark.parametrize("mode", ["random", "unique", "grouped"])
def test_some_of_the_pairs_fill_as_many_batches_as_are_asked_for(mode):
    """Epochs of eleven batches over pairs that fill fewer or more: one stream of passes, cut into epochs."""
    image = np.repeat(np.arange(60), 5)
    for count in (60, 120, 299, 300):
        pairs = np.sort(np.random.default_rng(count).permutation(300)[:count])
        once = PairBatchSampler(image, mode, 20, 3, seed=5, pairs=pairs)
        assert len(once) == count_batches(np.unique(image[pairs], return_inverse=True)[1], 20, once.per_image)
        sampler = PairBatchSampler(image, mode, 20, 3, seed=5).of(pairs, num_batches=11)
        drawn = np.concatenate([sampler.draw(epoch) for epoch in range(7)])
        passes = np.concatenate([once.draw(number) for number in range(-(-77 // len(once)))])
        assert len(sampler) == 11
        np.testing.assert_array_equal(drawn, passes[:77])
        assert np.isin(drawn, pairs).all()
        if mode == "unique":
            assert all(len(set(image[batch])) == 20 for batch in drawn)


@pytest.mark.parametrize("mode", ["random", "unique", "grouped"])
def test_all_of_the_pairs_are_the_same_batches(mode):
    image = np.repeat(np.arange(60), 5)
    whole = PairBatchSampler(image, mode, 20, 3, seed=5)
    for sampler in (whole.of(np.arange(300)), whole.of(np.arange(300), num_batches=len(whole))):
        np.testing.assert_array_equal(sampler.draw(4), whole.draw(4))


def test_impossible_batches_are_errors_that_name_the_key():
    image = np.repeat(np.arange(6), 5)
    with pytest.raises(ValueError, match=r"training\.batch_size 31 is larger than the training split \(30 pairs\)"):
        PairBatchSampler(image, "random", 31)
    with pytest.raises(
        ValueError, match=r"training\.batch_size 7 with training\.batches: unique .* 6 photos .* give 6"
    ):
        PairBatchSampler(image, "unique", 7)
    with pytest.raises(ValueError, match=r"grouped can take 2 captions of a photo, .* give 12 such pairs"):
        PairBatchSampler(image, "grouped", 14, 2)
    with pytest.raises(ValueError, match=r"training\.batch_size 10 does not divide among 4 processes; use 8 or"):
        PairBatchSampler(image, "random", 10, world_size=4)
    assert len(PairBatchSampler(image, "unique", 6)) == 5
    assert len(PairBatchSampler(image, "grouped", 12, 2)) == 2
    assert len(PairBatchSampler(image, "grouped", 30, 5)) == 1


# What a batch holds


class TinyProcessor:
    """The processor contract with one number per photo and per character."""

    def __init__(self):
        self.seen = []

    def __call__(self, images=None, text=None, return_tensors=None):
        assert return_tensors == "pt"
        if images is not None:
            self.seen.append(images)
            pixels = [torch.from_numpy(np.array(image.resize((2, 2)), dtype=np.float32)) for image in images]
            return {"pixel_values": torch.stack(pixels).permute(0, 3, 1, 2)}
        longest = max(map(len, text))
        ids = torch.tensor([[ord(letter) for letter in line] + [0] * (longest - len(line)) for line in text])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.fixture
def split(tmp_path) -> Split:
    rows = {name: [] for name in ROW_FEATURES}
    for photo, count in enumerate([2, 3, 1]):
        path = tmp_path / f"{photo}.png"
        pixels = np.full((20, 30, 3), photo * 40, dtype=np.uint8)
        pixels[..., 1] = np.arange(30)
        Image.fromarray(pixels).save(path)
        rows["image"].append({"path": str(path), "bytes": None})
        rows["image_id"].append(str(photo))
        rows["captions"].append([f"{photo}{'x' * (photo + k)}" for k in range(count)])
        rows["caption_ids"].append([f"{photo}#{k}" for k in range(count)])
    return Split("train", Rows.from_dict(rows, features=ROW_FEATURES))


def test_a_batch_reads_each_photo_once_and_carries_the_noisy_captions(split):
    processor = TinyProcessor()
    noise = CaptionNoise.draw(split.pairs, 1.0, "caption", 0)
    batch = PairDataset(split, noise, processor).__getitems__([5, 2, 0, 4])
    assert [len(images) for images in processor.seen] == [3]
    assert batch["pixel_values"].shape == (3, 3, 2, 2)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [80, 40, 0], "in order of first appearance"
    assert batch["image_index"].tolist() == [0, 1, 2, 1]
    assert batch["pair_ids"].tolist() == [5, 2, 0, 4]
    assert batch["image_ids"].tolist() == [2, 1, 0, 1]
    captions = noise.apply(split.pairs).take(pa.array([5, 2, 0, 4])).to_pylist()
    read = ["".join(chr(i) for i in row if i) for row in batch["input_ids"].tolist()]
    assert read == captions != [split.pairs.captions[k].as_py() for k in (5, 2, 0, 4)]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, max(map(len, captions)))
    for name in ("image_index", "pair_ids", "image_ids"):
        assert batch[name].dtype == torch.int64


@given(pairs=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True))
def test_photo_rows_show_the_photo_of_the_pair(pairs):
    image = np.array([0, 0, 1, 1, 1, 2])
    captions = pa.array(list("abcdef"))
    pairs_index = SimpleNamespace(
        image=image, captions=captions, captions_sha256="", image_ids=pa.array(list("xyz")), weight=None
    )
    dataset = PairDataset(
        SimpleNamespace(pairs=pairs_index, rows=None, regions=None),
        CaptionNoise(np.arange(6)[::-1].copy(), 1.0, "caption", None, ""),
        processor=None,
        image_features={"image_features": np.array([[0.0], [10.0], [20.0]], dtype=np.float32)},
        text_features=np.arange(6, dtype=np.float32)[:, None],
    )
    batch = dataset.__getitems__(pairs)
    expected = [10.0 * image[pair] for pair in pairs]
    assert batch["image_features"][batch["image_index"], 0].tolist() == expected
    assert len(batch["image_features"]) == len(set(expected))
    assert batch["text_features"][:, 0].tolist() == [5.0 - pair for pair in pairs], "features of the noisy captions"
    assert "pixel_values" not in batch
    assert "input_ids" not in batch


def test_memory_mapped_features_are_read_by_row(split, tmp_path):
    np.save(tmp_path / "features.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    dataset = PairDataset(
        split, CaptionNoise.clean(split.pairs), TinyProcessor(), image_features={"image_features": features}
    )
    batch = dataset.__getitems__([3, 5])
    assert batch["image_features"].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_noise_of_other_captions_is_refused(split):
    with pytest.raises(ValueError, match="other training captions"):
        PairDataset(split, CaptionNoise(np.arange(6), 0, "caption", 0, "abc"), TinyProcessor())


def test_random_crops_depend_on_seed_epoch_and_photo_alone(split):
    def crops(seed, epoch, pairs):
        processor = TinyProcessor()
        dataset = PairDataset(split, CaptionNoise.clean(split.pairs), processor, random_crop=0.3, seed=seed)
        dataset.set_epoch(epoch)
        dataset.__getitems__(pairs)
        return {image.getpixel((0, 0))[0]: (image.size, image.tobytes()) for image in processor.seen[0]}

    first = crops(0, 1, [0, 2, 5])
    assert first == crops(0, 1, [5, 2, 0])
    assert first[40] == crops(0, 1, [3])[40]
    assert first != crops(0, 2, [0, 2, 5])
    assert first != crops(1, 1, [0, 2, 5])
    for epoch in range(20):
        for size, _ in crops(0, epoch, [0, 2, 5]).values():
            assert 0.3 * 0.85 <= size[0] * size[1] / (20 * 30) <= 1
            assert size[0] / size[1] == pytest.approx(1.5, rel=0.1)


def test_no_crop_leaves_the_photo_alone(split):
    processor = TinyProcessor()
    PairDataset(split, CaptionNoise.clean(split.pairs), processor).__getitems__([0])
    assert processor.seen[0][0].size == (30, 20)


def test_spawned_workers_give_the_same_batches_and_see_the_epoch(split):
    dataset = PairDataset(split, CaptionNoise.clean(split.pairs), TinyProcessor(), random_crop=0.3)
    sampler = PairBatchSampler(split.pairs.image, "unique", 2, seed=1)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=as_it_is,
        num_workers=1,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        dataset.set_epoch(epoch)
        from_worker = list(loader)
        direct = [dataset.__getitems__(pairs) for pairs in sampler]
        assert len(from_worker) == len(direct) == len(sampler)
        for left, right in zip(from_worker, direct, strict=True):
            assert left.keys() == right.keys()
            assert all(torch.equal(left[name], right[name]) for name in left)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.__getitems__([0])["pixel_values"], dataset.__getitems__([0])["pixel_values"])


def as_it_is(batch):
    return batch


# What a memory adds to a batch


def with_memory(counts: list[int], source: np.ndarray, memory: tuple[np.ndarray, np.ndarray]) -> PairDataset:
    """Photo k has the feature 10 k, caption k the feature k; nothing is read, every number can be told."""
    image = np.repeat(np.arange(len(counts)), counts)
    names = pa.array([str(number) for number in range(len(image))])
    pairs = SimpleNamespace(image=image, captions=names, captions_sha256="", image_ids=names, weight=None)
    dataset = PairDataset(
        SimpleNamespace(pairs=pairs, rows=None, regions=None),
        CaptionNoise(source, 1.0, "caption", None, ""),
        processor=None,
        image_features={"image_features": 10 * np.arange(len(counts), dtype=np.float32)[:, None]},
        text_features=np.arange(len(image), dtype=np.float32)[:, None],
    )
    dataset.memory = memory
    return dataset


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    repeats=st.booleans(),
)
def test_the_entries_of_every_pair_come_along_each_photo_and_caption_once(counts, seed, repeats):
    generator = np.random.default_rng(seed)
    count = sum(counts)
    # imported noise may give a caption to several pairs
    source = generator.integers(count, size=count) if repeats else generator.permutation(count)
    image_entry, caption_entry = generator.integers(count, size=len(counts)), generator.integers(count, size=count)
    dataset = with_memory(counts, source, (image_entry, caption_entry))
    image = dataset.pair_image
    pairs = generator.permutation(count)[: generator.integers(1, count + 1)]
    batch = dataset.__getitems__(pairs.tolist())

    entries = [image_entry[image[pair]] for pair in pairs] + [caption_entry[pair] for pair in pairs]
    photos = torch.cat([batch["image_features"], batch["memory_image_features"]])[:, 0]
    captions = torch.cat([batch["text_features"], batch["memory_text_features"]])[:, 0]
    assert photos[batch["memory_image_index"]].tolist() == [10 * image[entry] for entry in entries]
    assert captions[batch["memory_caption"]].tolist() == [source[entry] for entry in entries]
    assert batch["memory_image_ids"].tolist() == [image[entry] for entry in entries]
    assert len(photos.unique()) == len(photos)
    own = [source[pair] for pair in pairs]
    assert captions[: len(own)].tolist() == own, "the captions of the batch are a row for each pair"
    added = captions[len(own) :].tolist()
    assert len(set(added)) == len(added)
    assert not set(added) & set(own)

    dataset.caption_numbers = 100 + source // 2
    numbered = dataset.__getitems__(pairs.tolist())
    assert numbered["caption_ids"].tolist() == [100 + number // 2 for number in own]
    assert numbered["memory_caption_ids"].tolist() == [100 + source[entry] // 2 for entry in entries]
    assert numbered.keys() - batch.keys() == {"caption_ids", "memory_caption_ids"}
    dataset.caption_numbers = None

    dataset.memory = None
    plain = dataset.__getitems__(pairs.tolist())
    assert plain.keys() == {name for name in batch if not name.startswith("memory_")}
    assert all(torch.equal(plain[name], batch[name]) for name in plain)


def test_entries_that_are_all_in_the_batch_add_nothing_to_read(split):
    processor = TinyProcessor()
    dataset = PairDataset(split, CaptionNoise.clean(split.pairs), processor)
    dataset.memory = (np.array([1, 2, 2]), np.array([0, 1, 2, 2, 1, 0]))
    batch = dataset.__getitems__([1, 2, 0])
    assert [len(images) for images in processor.seen] == [2]
    assert batch["memory_image_index"].tolist() == [0, 1, 0, 0, 1, 0]
    assert batch["memory_caption"].tolist() == [0, 1, 0, 0, 1, 2]
    for name in ("pixel_values", "input_ids", "attention_mask"):
        assert batch[f"memory_{name}"].shape == (0, *batch[name].shape[1:])
        assert batch[f"memory_{name}"].dtype == batch[name].dtype


def test_entries_are_read_with_the_batch_at_one_width(split):
    processor = TinyProcessor()
    noise = CaptionNoise.draw(split.pairs, 1.0, "caption", 0)
    dataset = PairDataset(split, noise, processor, random_crop=0.3)
    dataset.memory = (np.array([5, 5, 5]), np.array([0, 3, 5, 5, 5, 5]))
    batch = dataset.__getitems__([1])
    assert [len(images) for images in processor.seen] == [3], "photos 0, 2 and 1 in one call"
    assert (len(batch["pixel_values"]), len(batch["memory_pixel_values"])) == (1, 2)
    assert batch["input_ids"].shape[1] == batch["memory_input_ids"].shape[1]
    texts = torch.cat([batch["input_ids"], batch["memory_input_ids"]])[batch["memory_caption"]]
    read = ["".join(chr(letter) for letter in row if letter) for row in texts.tolist()]
    assert read == noise.apply(split.pairs).take(pa.array([5, 3])).to_pylist()
    # a photo is cropped as it would be as a photo of the batch
    alone = PairDataset(split, noise, processor, random_crop=0.3).__getitems__([5, 3])
    photos = torch.cat([batch["pixel_values"], batch["memory_pixel_values"]])[batch["memory_image_index"]]
    assert torch.equal(photos, alone["pixel_values"][alone["image_index"]])
