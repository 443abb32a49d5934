"""Published noise files, read as caption noise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.data.configuration import NoiseSection
from clip_itm.data.load_noise import load_noise
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.noise_import import from_captions, from_image_index, import_noise
from support.data_folders import make_pairs


def photo_caption_set(noise, pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.image.tolist(), noise.source.tolist(), strict=True))


def published_cases(arrays):
    for name in ("percap", "grouped", "perimg"):
        yield arrays[f"{name}_index"], arrays[f"{name}_image_used"], arrays[f"{name}_is_clean"], 12, 5
    for name in ("gen0", "gen1", "gen2"):
        index, clean = arrays[f"{name}_index"], arrays[f"{name}_is_clean_correct"]
        yield index, index, clean, int(arrays[f"{name}_n_images"]), int(arrays[f"{name}_captions_per_image"])


def test_published_indices_give_the_same_photo_caption_pairs_and_clean_flags(golden):
    for index, image_used, is_clean, num_images, per_photo in published_cases(golden("crcl_noise_index")):
        pairs = make_pairs([per_photo] * num_images)
        noise = from_image_index(index, pairs)
        expected = set(zip(image_used.tolist(), range(len(pairs)), strict=True))
        assert photo_caption_set(noise, pairs) == expected
        flag_of_caption = np.empty(len(pairs), dtype=np.int64)
        flag_of_caption[noise.source] = noise.is_clean(pairs)
        np.testing.assert_array_equal(flag_of_caption, is_clean)
        stays = is_clean.astype(bool)
        np.testing.assert_array_equal(noise.source[stays], np.flatnonzero(stays))
        assert noise.level == ("caption" if image_used is index and per_photo > 1 else noise.level)


def test_level_tells_whether_captions_moved_together(golden):
    arrays = golden("crcl_noise_index")
    pairs = make_pairs([5] * 12)
    levels = {name: from_image_index(arrays[f"{name}_index"], pairs).level for name in ("percap", "grouped", "perimg")}
    assert levels == {"percap": "caption", "grouped": "image", "perimg": "image"}


@pytest.mark.parametrize("case", ["gen0", "gen1", "gen2"])
def test_the_published_generator_is_our_draw_read_the_other_way(golden, case):
    # It sends caption slots[j] to the photo of caption moved[j]; our draw gives pair slots[j] the caption moved[j].
    arrays = golden("crcl_noise_index")
    pairs = make_pairs([int(arrays[f"{case}_captions_per_image"])] * int(arrays[f"{case}_n_images"]))
    draw = CaptionNoise.draw(pairs, float(arrays[f"{case}_ratio"]), "caption", int(arrays[f"{case}_seed"]))
    np.testing.assert_array_equal(pairs.image[draw.source], arrays[f"{case}_index"])


@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=30), ratio=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_draw_written_as_photo_index_comes_back_as_the_same_pairs(counts, ratio, seed):
    pairs = make_pairs(counts)
    noise = CaptionNoise.draw(pairs, ratio, "caption", seed)
    index = np.empty(len(pairs), dtype=np.int64)
    index[noise.source] = pairs.image
    again = from_image_index(index, pairs)
    assert photo_caption_set(again, pairs) == photo_caption_set(noise, pairs)
    np.testing.assert_array_equal(again.is_clean(pairs), again.source == np.arange(len(pairs)))


def test_a_draw_per_photo_equals_its_published_index():
    pairs = make_pairs([5] * 50)
    noise = CaptionNoise.draw(pairs, 0.4, "image", 99)
    index = np.empty(50, dtype=np.int64)
    index[noise.source[::5] // 5] = np.arange(50)
    again = from_image_index(index, pairs)
    np.testing.assert_array_equal(again.source, noise.source)
    assert again.level == "image"
    assert again.seed is None


def test_impossible_indices_are_named(golden):
    pairs = make_pairs([5] * 12)
    index = golden("crcl_noise_index")["percap_index"].copy()
    with pytest.raises(ValueError, match=r"index\.npy: expected 60 whole numbers .* or 12"):
        from_image_index(index[:-1], pairs, "index.npy")
    with pytest.raises(ValueError, match="type float64"):
        from_image_index(index.astype(np.float64), pairs)
    changed = index.copy()
    changed[7] = 12
    with pytest.raises(ValueError, match="entry 7 is 12, but photos are numbered 0 to 11"):
        from_image_index(changed, pairs)
    changed[7] = 3
    with pytest.raises(ValueError, match=r"photo 1 is used for 4 captions but has 5 \(2 such photos\)"):
        from_image_index(changed, pairs)


@pytest.mark.parametrize("case", "abc")
def test_noisy_caption_files_are_matched_back(golden, tmp_path, case):
    arrays = golden("npc_noise")
    captions, noisy, source = (arrays[f"{case}_{name}"] for name in ("captions", "noisy", "source_index"))
    pairs = make_pairs([5] * (len(captions) // 5), captions.tolist())
    path = tmp_path / f"{arrays[f'{case}_ratio']}_noise_train_caps.txt"
    path.write_text("".join(f"{line}\n" for line in noisy), encoding="utf-8")
    noise = load_noise(NoiseSection(file=str(path)), pairs)
    assert noise.apply(pairs).to_pylist() == noisy.tolist()
    np.testing.assert_array_equal(noise.source, source)
    assert noise.ratio == np.mean(source != np.arange(len(source)))


def test_same_wordings_stay_in_place_then_go_in_order():
    pairs = make_pairs([2, 2, 2], ["dog", "dog", "cat", "dog", "bird", "cat"])
    noise = from_captions(["dog", "cat", "dog", "bird", "dog ", "cat"], pairs)
    # Captions 0 and 5 stay; of the other dogs (1, 3) the first goes to pair 2, the next to pair 4.
    np.testing.assert_array_equal(noise.source, [0, 2, 1, 4, 3, 5])
    reused = from_captions(["dog", "dog", "dog", "dog", "dog", "dog"], pairs)
    np.testing.assert_array_equal(reused.source, [0, 1, 0, 3, 0, 0])


@given(
    captions=st.lists(st.sampled_from("abcde"), min_size=1, max_size=40), ratio=st.floats(0, 1), seed=st.integers(0, 9)
)
def test_matching_gives_back_the_text_and_uses_every_caption_once(captions, ratio, seed):
    pairs = make_pairs([1] * len(captions), captions)
    drawn = CaptionNoise.draw(pairs, ratio, "caption", seed)
    noise = from_captions(drawn.apply(pairs).to_pylist(), pairs)
    assert noise.apply(pairs).to_pylist() == drawn.apply(pairs).to_pylist()
    assert sorted(noise.source) == list(range(len(captions)))
    moved = int(np.sum(noise.source != np.arange(len(captions))))
    assert moved == round(drawn.statistics(pairs)["other_text"] * len(captions))


def test_wrong_caption_files_are_named(tmp_path):
    pairs = make_pairs([1, 1, 1], ["a dog", "a\u2028cat", "a bird"])
    path = tmp_path / "0.4_noise_train_caps.txt"
    path.write_text("a dog\na bird\na\u2028cat\n", encoding="utf-8")
    np.testing.assert_array_equal(import_noise(path, pairs).source, [0, 2, 1])
    path.write_text("a dog\na fish\na bird\n")
    with pytest.raises(ValueError, match=r"noise_train_caps\.txt, line 2: 'a fish' is no caption"):
        import_noise(path, pairs)
    path.write_text("a dog\na bird\n")
    with pytest.raises(ValueError, match=r"noise_train_caps\.txt: 2 lines, but the training split has 3"):
        import_noise(path, pairs)
    path.write_text("a dog\na bird\na bird\n" * 2)
    with pytest.raises(ValueError, match=r"6 lines.*run twice"):
        import_noise(path, pairs)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="is not UTF-8"):
        import_noise(path, pairs)


def test_files_that_could_run_code_are_refused(tmp_path):
    pairs = make_pairs([1, 1])
    path = tmp_path / "index.npy"
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"index\.npy holds pickled Python objects"):
        import_noise(path, pairs)
    path.write_bytes(b"\x80\x04hello")
    with pytest.raises(ValueError, match=r"index\.npy is no \.npy file"):
        import_noise(path, pairs)
    np.save(path, np.array([1, 0]))
    np.testing.assert_array_equal(import_noise(path, pairs).source, [1, 0])
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"index\.npy is a damaged"):
        import_noise(path, pairs)
    with pytest.raises(ValueError, match=r"expected \.npz"):
        import_noise(tmp_path / "index.csv", pairs)
    with pytest.raises(ValueError, match="does not exist"):
        import_noise(tmp_path / "nothing.npy", pairs)
