"""Near-duplicates: copies of photos are found, others are not; links and groups against plain twins."""

import io
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

from clip_itm.auditing import duplicates
from clip_itm.auditing.duplicates import across, equal_texts, gather, near_bits, near_hashes, near_vectors, threshold_of
from clip_itm.auditing.photo_hash import PhotoHashes
from clip_itm.data.rows import ROW_FEATURES


def picture(seed, size=(160, 120)):
    """Large and small shapes on a gradient, as photos have them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[1], : size[0]] / max(size)
    pixels = 128 + 40 * rng.normal(size=3) * rows[..., None] + 40 * rng.normal(size=3) * columns[..., None]
    for _ in range(14):
        x, y, radius = rng.uniform(0, 1), rng.uniform(0, 0.75), rng.uniform(0.04, 0.25)
        pixels[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] += 70 * rng.normal(size=3)
    return Image.fromarray((pixels + rng.normal(size=pixels.shape)).clip(0, 255).astype(np.uint8))


def compressed(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


COPIES = {
    "half": lambda image: image.resize((80, 60)),
    "larger": lambda image: image.resize((400, 300)),
    "another shape": lambda image: image.resize((160, 160)),
    "compressed": lambda image: compressed(image, 15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "cropped": lambda image: image.crop((2, 2, 158, 118)),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_are_near(change):
    photos = [picture(seed) for seed in range(40)]
    hashes = PhotoHashes.of_images([*photos, *map(change, photos)])
    links = {tuple(link) for link in near_hashes(hashes).tolist()}
    right = {(n, n + 40) for n in range(40)}
    assert len(right & links) >= 37
    assert not links - right


def test_other_photos_are_not_near():
    hashes = PhotoHashes.of_images([picture(seed) for seed in range(300)])
    assert len(near_hashes(hashes)) == 0


def test_flat_and_tiny_photos_are_near_to_nothing():
    flat = [Image.new("RGB", (100, 100), grey) for grey in ("white", "white", "black", "grey")]
    noisy = Image.fromarray(np.random.default_rng(0).integers(126, 130, (100, 100, 3), dtype=np.uint8))
    tiny = [Image.new("RGB", (5, 200)), picture(0, (6, 6))]
    hashes = PhotoHashes.of_images([*flat, noisy, noisy, *tiny, *tiny, picture(0)])
    assert hashes.usable.tolist() == [False] * 10 + [True]
    assert len(near_hashes(hashes)) == 0


def test_photos_of_rows_in_files_and_in_the_data_set(tmp_path):
    from datasets import Dataset

    picture(1).save(tmp_path / "a.png")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    file = io.BytesIO()
    picture(1).save(file, "JPEG", quality=60)
    images = [
        {"path": str(tmp_path / "a.png"), "bytes": None},
        {"path": str(tmp_path / "broken.jpg"), "bytes": None},
        {"path": None, "bytes": file.getvalue()},
    ]
    rows = [{"image": image, "image_id": "x", "captions": ["a"], "caption_ids": ["x"]} for image in images]
    hashes = PhotoHashes.of_rows(Dataset.from_list(rows, features=ROW_FEATURES), workers=2)
    assert hashes.usable.tolist() == [True, False, True]
    assert near_hashes(hashes).tolist() == [[0, 2]]
    assert len(PhotoHashes.joined([hashes, hashes])) == 6
    assert len(PhotoHashes.joined([])) == 0


@pytest.mark.parametrize("radius", [0, 1, 4, 8])
@pytest.mark.parametrize("compared", [2**22, 7])
def test_near_bits_are_those_of_all_with_all(monkeypatch, radius, compared):
    monkeypatch.setattr(duplicates, "COMPARED", compared)
    rng = np.random.default_rng(radius)
    centres = rng.integers(2**63, size=30, dtype=np.uint64)
    bits = np.repeat(centres, 6)
    for number in range(len(bits)):
        for place in rng.integers(63, size=rng.integers(7)):
            bits[number] ^= np.uint64(1) << np.uint64(place)
    bits = np.unique(bits)
    found = [tuple(sorted(link)) for link in near_bits(bits, radius).tolist()]
    twin = {
        (i, j) for i, j in combinations(range(len(bits)), 2) if bin(int(bits[i]) ^ int(bits[j])).count("1") <= radius
    }
    assert len(found) == len(set(found)), "each link once"
    assert set(found) == twin
    assert radius == 0 or twin


def test_one_hash_on_many_photos_is_no_square():
    one = PhotoHashes.of_images([picture(3)])
    hashes = PhotoHashes.joined([one] * 3000)
    assert near_hashes(hashes).tolist() == [[0, n] for n in range(1, 3000)]
    assert [len(members) for members in gather(near_hashes(hashes), 3000)] == [3000]


@pytest.mark.parametrize(("rows", "columns"), [(1024, 4096), (7, 11), (16, 1)])
def test_near_vectors_are_those_of_all_with_all(monkeypatch, rows, columns):
    monkeypatch.setattr(duplicates, "ROWS", rows)
    monkeypatch.setattr(duplicates, "COLUMNS", columns)
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(30, 16, generator=rng)
    vectors = F.normalize((centres.repeat(3, 1) + 0.2 * torch.randn(90, 16, generator=rng)), dim=1)
    group = np.arange(90) // 2
    cosine = vectors @ vectors.T
    for own in (None, group):
        twin = [
            [i, j] for i, j in combinations(range(90), 2) if cosine[i, j] >= 0.95 and (own is None or own[i] != own[j])
        ]
        assert near_vectors(vectors, 0.95, own).tolist() == twin
    assert len(twin) > 20
    assert near_vectors(vectors[:1], 0.9).tolist() == []
    assert near_vectors(vectors[:0], 0.9).tolist() == []


def test_many_equal_vectors_are_one_group_in_bounded_memory():
    vectors = F.normalize(torch.ones(2000, 8), dim=1)  # two blocks
    links = near_vectors(vectors, 0.99)
    assert len(links) < 2000 * duplicates.LINKS
    assert [len(members) for members in gather(links, 2000)] == [2000]


def test_a_threshold_from_the_vectors_themselves():
    rng = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(500, 32, generator=rng) + 1, dim=1)
    cosine = (vectors @ vectors.T).fill_diagonal_(-1)
    tenth = cosine.topk(10, dim=1).values[:, -1].median()
    assert threshold_of(vectors) == pytest.approx(float(1 - (1 - tenth) / 8), abs=1e-6)
    assert threshold_of(vectors[:5]) == 1
    assert len(near_vectors(vectors, threshold_of(vectors))) == 0
    copies = F.normalize(vectors + 0.02 * torch.randn(vectors.shape, generator=rng), dim=1)
    both = torch.cat([vectors, copies])
    assert near_vectors(both, threshold_of(both)).tolist() == [[n, n + 500] for n in range(500)]


def test_groups_are_stars():
    chain = np.array([[n, n + 1] for n in range(9)])
    groups = gather(chain, 10)
    for members in groups:
        near = {tuple(link) for link in chain.tolist()}
        assert any(all(m == c or (min(m, c), max(m, c)) in near for m in members) for c in members)
    assert [members.tolist() for members in groups] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [members.tolist() for members in gather(np.array([[4, 2], [2, 3], [0, 5]]), 6)] == [[0, 5], [2, 3, 4]]
    assert gather(np.empty((0, 2), dtype=np.int64), 3) == []


def twin_gather(links, count):
    near = {n: set() for n in range(count)}
    for a, b in links.tolist():
        near[a].add(b)
        near[b].add(a)
    groups = []
    while any(near.values()):
        centre = max(near, key=lambda n: (len(near[n]), -n))
        members = {centre, *near[centre]}
        groups.append(sorted(members))
        near = {n: others - members for n, others in near.items() if n not in members}
    return sorted(groups)


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_those_of_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    links = rng.integers(30, size=(40, 2))
    links = links[links[:, 0] != links[:, 1]]
    assert [members.tolist() for members in gather(links, 30)] == twin_gather(links, 30)


def test_equal_texts_and_splits():
    assert equal_texts(np.array([5, 3, 5, 3, 5, 1])).tolist() == [[0, 2], [1, 3], [0, 4]]
    assert equal_texts(np.arange(3)).tolist() == []
    groups = [np.array([0, 1]), np.array([1, 3])]
    assert [members.tolist() for members in across(groups, np.array(["train", "train", "val", "val"]))] == [[1, 3]]


@pytest.mark.real_data
def test_the_one_copy_among_real_photos_is_found(real_data):
    files = sorted((real_data / "flickr8k/images").glob("*.jpg"))
    names = ["2851198725_37b6027625", "3050606344_af711c726c"]
    some = sorted({*files[::4], *(file for file in files if file.stem.startswith(tuple(names)))})
    hashes = PhotoHashes.of_images([Image.open(file).convert("RGB") for file in some])
    assert hashes.usable.all()
    assert [[some[n].stem for n in link] for link in near_hashes(hashes)] == [names]
