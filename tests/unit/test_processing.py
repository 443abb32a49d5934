"""The processor: token ids as in OpenAI's tokenizer, padding and masks, cleaning, preprocessing, saving and loading."""

import unicodedata

import ftfy
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from PIL import Image
from transformers import CLIPImageProcessor

from clip_itm.backbones.build import build_processor
from clip_itm.backbones.configuration import OpenClipBackbone, TimmWordsBackbone
from clip_itm.backbones.openclip_source import openai_tokenizer
from clip_itm.backbones.words import word_tokenizer
from clip_itm.processing import ItmProcessor, clean_text

# resized for 32 and for 224 it is 15 and 107 pixels too long: a centre that is rounded down is one pixel apart
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 74, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def processor() -> ItmProcessor:
    return build_processor(OpenClipBackbone(model="ViT-B-32-quickgelu"), None)


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer()


def padded(batch, length: int = 77) -> torch.Tensor:
    return torch.nn.functional.pad(batch["input_ids"], (0, length - batch["input_ids"].shape[1]))


def test_golden_token_ids(golden, processor):
    arrays = golden("npc_tokenizer")
    batch = processor(text=[str(caption) for caption in arrays["captions"]])
    np.testing.assert_array_equal(padded(batch), arrays["tokens"])
    lengths = (arrays["tokens"] == 49407).argmax(1) + 1
    np.testing.assert_array_equal(batch["attention_mask"].sum(1), lengths)


@pytest.mark.parametrize("name", ["coco", "f30k", "cc"])
def test_golden_tokens_of_training_pairs(golden, processor, name):
    arrays = golden("npc_dataset_layout")
    batch = processor(text=arrays[f"{name}_caps_lines"].tolist())
    np.testing.assert_array_equal(padded(batch), arrays[f"{name}_train_tokens"][:, 0])


def test_batches_are_as_wide_as_their_longest_caption(processor):
    batch = processor(text=["a dog", "a dog runs over the grass"])
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].tolist() == [[1] * 4 + [0] * 4, [1] * 8]
    assert processor(text="a dog")["input_ids"].tolist() == [[49406, 320, 1929, 49407]]


def test_the_mask_knows_padding_from_the_token_with_the_same_id(processor):
    # "!" before other punctuation is token 0, which is also the padding
    batch = processor(text=["!1", "a dog and a cat"])
    assert 0 not in batch["input_ids"][1]
    mixed = processor(text=["wow !\u00bf?", "a dog and a cat in the sun with a ball"])
    inside = mixed["input_ids"][0][mixed["attention_mask"][0].bool()]
    assert 0 in inside
    assert inside[-1] == 49407


def test_cut_captions_keep_their_end_token(processor, reference):
    long = "a dog " * 100
    batch = processor(text=[long])
    assert batch["input_ids"].shape == (1, 77)
    assert torch.equal(batch["input_ids"], reference([long]))
    assert batch["input_ids"][0, -1] == 49407


# of all assigned characters, this one alone comes out differently (Unicode lower-cases it to a letter)
LETTERS = st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S", "Z"), exclude_characters="\u0345")
WORDS = st.sampled_from(["don't", "it's", "!!!", "&amp;", "&quot;", "naïve", "  ", "#1", "I'LL", "…", "\u2019s", "ﬁsh"])


@given(st.lists(st.one_of(WORDS, st.text(LETTERS, max_size=12)), max_size=8).map(" ".join))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_the_ids_of_open_clip(processor, reference, text):
    # ftfy may read mojibake as characters that newer versions of Unicode alone know as letters
    assume(all(unicodedata.category(letter) != "Cn" for letter in ftfy.fix_text(text)))
    assert torch.equal(padded(processor(text=[text])), reference([text]))


@pytest.mark.slow
@pytest.mark.real_data
def test_all_flickr8k_captions_give_the_ids_of_open_clip(real_data, processor, reference):
    lines = (real_data / "flickr8k" / "captions.txt").read_text(encoding="utf-8").splitlines()[1:]
    captions = [line.split(",", 1)[1].strip('"') for line in lines]
    assert len(captions) == 40455
    for start in range(0, len(captions), 4096):
        block = captions[start : start + 4096]
        assert torch.equal(padded(processor(text=block)), reference(block))


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(deadline=None)
def test_cleaning_is_that_of_open_clip(text):
    for how in ("whitespace", "lower", "canonicalize"):
        assert clean_text(text, how) == get_clean_fn(how)(text)
    assert clean_text(text, "none") == text


def processor_of_size(size: int) -> ItmProcessor:
    """That of OpenAI's models, for photos of another size."""
    made = build_processor(OpenClipBackbone(model="ViT-B-32-quickgelu"), None).image_processor
    small = CLIPImageProcessor.from_dict(
        {**made.to_dict(), "size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    )
    return ItmProcessor(small, openai_tokenizer())


@pytest.mark.parametrize("mode", ["rgb", "gray", "rgba"])
def test_golden_preprocessing(golden, mode):
    arrays = golden("npc_image_preprocess")
    size = int(arrays["n_px"])
    processor = processor_of_size(size)
    pixels = processor(images=[Image.fromarray(arrays[f"{mode}_in"])])["pixel_values"]
    assert pixels.shape == (1, 3, size, size)
    difference = np.abs(pixels[0].numpy() - arrays[f"{mode}_out"])
    assert difference.max() <= 0.03
    assert (difference < 1e-5).mean() >= 0.99


@pytest.mark.parametrize("turned", [False, True])
def test_the_centre_is_cut_where_open_clip_cuts_it(turned):
    """The golden photos are 44 x 32 when they are resized, which are cut alike however the middle is rounded."""
    image = PHOTO.transpose(Image.Transpose.ROTATE_90) if turned else PHOTO
    processor = processor_of_size(32)
    images = processor.image_processor
    reference = open_clip.image_transform(32, False, mean=images.image_mean, std=images.image_std)
    torch.testing.assert_close(processor(images=[image])["pixel_values"][0], reference(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-L-14-336", "RN50x4"])
def test_size_follows_the_model(name):
    processor = build_processor(OpenClipBackbone(model=name), None)
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    assert processor(images=[PHOTO, PHOTO])["pixel_values"].shape == (2, 3, size, size)


@pytest.mark.parametrize("kind", ["open_clip", "words"])
def test_saved_and_loaded(tmp_path, processor, kind):
    captions = ["A dog!", "a dog on the grass", "the grass, the dog"]
    if kind == "words":
        processor = build_processor(TimmWordsBackbone(image_size=32, min_word_count=1), captions)
    processor.save_pretrained(tmp_path)
    loaded = ItmProcessor.from_pretrained(tmp_path)
    texts = [*captions, "", "Wow !¿? don't, a CAT &amp; " + "a dog " * 90]
    before, after = processor(images=[PHOTO], text=texts), loaded(images=[PHOTO], text=texts)
    assert set(before) == {"pixel_values", "input_ids", "attention_mask"}
    for key in before:
        assert torch.equal(before[key], after[key]), key
    for name in (
        "text_cleaning",
        "max_length",
        "pad_token_id",
        "pad_to_max_length",
        "special_token_ids",
        "hidden_word_id",
    ):
        assert getattr(loaded, name) == getattr(processor, name), name


def test_words_in_a_fixed_order():
    captions = ["The dog, the dog!", "a cat and the dog", "zebra"]
    tokenizer = word_tokenizer(captions, min_count=1, max_words=5)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert words == ["[PAD]", "[UNK]", "dog", "the", "!", ",", "a", "and", "cat", "zebra"]
    assert word_tokenizer(captions[::-1], 1, 5).get_vocab() == tokenizer.get_vocab()
    assert len(word_tokenizer(captions, min_count=3, max_words=5)) == 4
    processor = ItmProcessor(CLIPImageProcessor(), tokenizer, max_length=5)
    batch = processor(text=["DOG,cat? horse", "the the the the the dog", ""])
    assert batch["input_ids"].tolist() == [[2, 5, 8, 1, 1], [3, 3, 3, 3, 3], [1, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1] * 5, [1, 0, 0, 0, 0]]


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"lower backbone\.min_word_count"):
        word_tokenizer(["a dog", "the cat"], min_count=2, max_words=5)
    with pytest.raises(ValueError, match="text_cleaning: expected none"):
        ItmProcessor(CLIPImageProcessor(), openai_tokenizer(), text_cleaning="upper")
    with pytest.raises(ValueError, match=r"vocabulary from the training captions.*build_processor"):
        build_processor(TimmWordsBackbone(), None)
