"""Drawing, saving and describing caption noise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_itm.data.configuration import NoiseSection
from clip_itm.data.load_noise import load_noise
from clip_itm.data.noise import CaptionNoise
from support.data_folders import make_pairs


@pytest.mark.parametrize("case", "abc")
def test_caption_level_reproduces_the_published_procedure(golden, case):
    arrays = {name[2:]: value for name, value in golden("npc_noise").items() if name.startswith(case)}
    pairs = make_pairs([5] * (len(arrays["captions"]) // 5), arrays["captions"].tolist())
    noise = CaptionNoise.draw(pairs, float(arrays["ratio"]), "caption", int(arrays["seed"]))
    np.testing.assert_array_equal(noise.source, arrays["source_index"])
    assert noise.apply(pairs).to_pylist() == arrays["noisy"].tolist()
    slots = arrays["slots"]
    kept = np.setdiff1d(np.arange(len(pairs)), slots)
    np.testing.assert_array_equal(noise.source[kept], kept)


def test_the_global_generator_is_left_alone():
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    CaptionNoise.draw(make_pairs([5] * 20), 0.6, "caption", 1)
    CaptionNoise.draw(make_pairs([5] * 20), 0.6, "image", 1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_image_level_with_equal_counts_is_the_published_scheme_per_photo(golden):
    # With one caption per photo the published index generator draws photo numbers: caption i goes with photo index[i].
    arrays = golden("crcl_noise_index")
    index = arrays["gen2_index"]
    noise = CaptionNoise.draw(
        make_pairs([1] * len(index)), float(arrays["gen2_ratio"]), "image", int(arrays["gen2_seed"])
    )
    np.testing.assert_array_equal(index[noise.source], np.arange(len(index)))
    of_five = CaptionNoise.draw(make_pairs([5] * len(index)), float(arrays["gen2_ratio"]), "image", 7)
    np.testing.assert_array_equal(of_five.source.reshape(-1, 5), noise.source[:, None] * 5 + np.arange(5))


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=40).filter(any),
    ratio=st.floats(0, 1),
    level=st.sampled_from(["caption", "image"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_caption_is_used_once_and_no_more_move_than_asked(counts, ratio, level, seed):
    pairs = make_pairs(counts)
    noise = CaptionNoise.draw(pairs, ratio, level, seed)
    assert sorted(noise.source) == list(range(len(pairs)))
    moved = noise.source != np.arange(len(pairs))
    if level == "caption":
        assert moved.sum() <= int(ratio * len(pairs))
        return
    assert len(set(pairs.image[moved])) <= int(ratio * len(counts))
    origin = pairs.image[noise.source]
    for photo, count in enumerate(counts):
        assert len(set(origin[pairs.image == photo])) == min(count, 1), "captions of a photo stay together"
        np.testing.assert_array_equal(np.diff(noise.source[pairs.image == photo]), 1)


def test_draws_depend_on_seed_and_ratio_only_through_the_arguments():
    pairs = make_pairs([5] * 100)
    draw = CaptionNoise.draw(pairs, 0.4, "caption", 5)
    assert draw.sha256 == CaptionNoise.draw(pairs, 0.4, "caption", 5).sha256
    assert draw.sha256 != CaptionNoise.draw(pairs, 0.4, "caption", 6).sha256
    assert draw.sha256 != CaptionNoise.draw(make_pairs([5] * 100, ["x"] * 500), 0.4, "caption", 5).sha256
    assert CaptionNoise.draw(pairs, 0.0, "caption", 5).sha256 == CaptionNoise.clean(pairs).sha256


def test_statistics_count_what_is_true():
    # Photos 0 and 1 have two captions each, photo 2 has three; captions 1 and 4 are worded alike.
    pairs = make_pairs([2, 2, 3], ["a", "b", "c", "d", "b", "e", "f"])
    source = np.array([1, 4, 2, 3, 0, 6, 5])
    noise = CaptionNoise(source, 0.5, "caption", 0, pairs.captions_sha256)
    np.testing.assert_array_equal(noise.is_clean(pairs), [True, False, True, True, False, True, True])
    statistics = noise.statistics(pairs)
    assert statistics["other_caption"] == pytest.approx(5 / 7)
    assert statistics["other_text"] == pytest.approx(4 / 7)
    assert statistics["other_image"] == pytest.approx(2 / 7)
    assert statistics["images_by_right_captions"] == pytest.approx([0, 1 / 3, 2 / 3, 0])
    assert statistics["ratio"] == 0.5


def test_true_noise_is_near_the_nominal_ratio():
    pairs = make_pairs([5] * 4000)
    for level in ("caption", "image"):
        share = CaptionNoise.draw(pairs, 0.4, level, 99).statistics(pairs)["other_image"]
        assert 0.395 < share <= 0.4


def test_saved_noise_reads_back_the_same(tmp_path):
    pairs = make_pairs([5] * 30)
    path = tmp_path / "deep" / "noise.npz"
    for noise in (CaptionNoise.draw(pairs, 0.6, "image", 7), CaptionNoise.clean(pairs)):
        noise.save(path)
        noise.save(path)  # the same content again is no mistake
        again = CaptionNoise.load(path)
        np.testing.assert_array_equal(again.source, noise.source)
        assert (again.ratio, again.level, again.seed) == (noise.ratio, noise.level, noise.seed)
        assert again.sha256 == noise.sha256
        assert again.source.dtype == np.int64
        assert list(path.parent.iterdir()) == [path], "no temporary file stays"
        path.unlink()


def test_saving_never_overwrites_other_content(tmp_path):
    pairs = make_pairs([5] * 30)
    path = tmp_path / "noise.npz"
    CaptionNoise.draw(pairs, 0.6, "caption", 7).save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"noise\.npz holds other noise"):
        CaptionNoise.draw(pairs, 0.6, "caption", 8).save(path)
    assert path.read_bytes() == before
    path.write_text("my notes")
    with pytest.raises(ValueError, match="is no noise file"):
        CaptionNoise.draw(pairs, 0.6, "caption", 8).save(path)
    assert path.read_text() == "my notes"
    with pytest.raises(ValueError, match=r"saved as \.npz"):
        CaptionNoise.clean(pairs).save(tmp_path / "noise.npy")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"hello"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "noise.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"noise\.npz is no noise file"):
        CaptionNoise.load(path)


def test_changed_files_are_noticed(tmp_path):
    path = tmp_path / "noise.npz"
    CaptionNoise.draw(make_pairs([5] * 30), 0.6, "caption", 7).save(path)
    with np.load(path) as arrays:
        stored = dict(arrays)
    stored["source"] = stored["source"][::-1]
    np.savez(path, **stored)
    with pytest.raises(ValueError, match="changed or damaged"):
        CaptionNoise.load(path)
    np.savez(path, source=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="is no noise file"):
        CaptionNoise.load(path)


def test_noise_of_other_captions_is_refused_with_both_hashes():
    pairs, others = make_pairs([5] * 10), make_pairs([5] * 12)
    noise = CaptionNoise.draw(pairs, 0.4, "caption", 1)
    for use in (noise.check, noise.apply, noise.is_clean, noise.statistics):
        with pytest.raises(ValueError, match=f"{pairs.captions_sha256}.*{others.captions_sha256}"):
            use(others)


def test_load_noise_draws_or_reads_what_the_recipe_says(tmp_path):
    pairs = make_pairs([5] * 20)
    drawn = load_noise(NoiseSection(ratio=0.4, seed=3), pairs)
    path = str(tmp_path / "noise.npz")
    drawn.save(path)
    assert load_noise(NoiseSection(file=path), pairs).sha256 == drawn.sha256
    assert load_noise(NoiseSection(file=path, sha256=drawn.sha256), pairs).sha256 == drawn.sha256
    assert load_noise(NoiseSection(), pairs).is_clean(pairs).all()
    with pytest.raises(ValueError, match=rf"noise\.sha256 is abc.*{drawn.sha256}"):
        load_noise(NoiseSection(ratio=0.4, seed=3, sha256="abc"), pairs)
    with pytest.raises(ValueError, match="exclude each other"):
        load_noise(NoiseSection(file=path, ratio=0.4), pairs)
    with pytest.raises(ValueError, match=r"noise\.npz: .*other training captions"):
        load_noise(NoiseSection(file=path), make_pairs([4] * 20))
    with pytest.raises(ValueError, match="does not exist"):
        load_noise(NoiseSection(file=str(tmp_path / "nothing.npz")), pairs)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        CaptionNoise.draw(make_pairs([5]), 1.5, "caption", 0)
    with pytest.raises(ValueError, match="'neighbour' or 'noun', got 'photo'"):
        CaptionNoise.draw(make_pairs([5]), 0.5, "photo", 0)
