"""Treebank words, published vocabularies and their restricted reader, word corruption and region augmentation."""

import json
import pickle
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import CLIPImageProcessor

from clip_itm.backbones.build import build_backbone, build_processor
from clip_itm.backbones.configuration import RegionsBackbone, TimmWordsBackbone
from clip_itm.backbones.corruption import corrupt_words
from clip_itm.backbones.region_encoders import erase_regions, keep_regions
from clip_itm.backbones.vocabulary import caption_tokenizer, count_words, read_vocabulary, treebank_splitter
from clip_itm.data.batches import PairDataset
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.region_features import RegionFeatures
from clip_itm.data.rows import ROW_FEATURES, Split
from clip_itm.data.tokens import CaptionTokens
from clip_itm.processing import ItmProcessor
from support.region_data import write_bert, write_vocabulary

CAPTIONS = ["A dog and two cats.", "the dog", "a man near the trees and the hat"]
TREEBANK = [  # as NLTK's word_tokenize cuts the lower-cased caption
    ("A dog runs.", "a dog runs ."),
    ("A man's dog isn't here", "a man 's dog is n't here"),
    ("They're here, we'll go; I'd say I've been", "they 're here , we 'll go ; i 'd say i 've been"),
    ("the dogs' bowl", "the dogs ' bowl"),
    ('He reads "no parking" (twice).', "he reads `` no parking '' ( twice ) ."),
    ('"Stop" it says', "`` stop '' it says"),
    ("One dog. Two cats sit.", "one dog . two cats sit ."),
    ("Mr. Smith and a U.S. flag", "mr. smith and a u.s. flag"),
    ("a 5:30 train, 1,000 people: many", "a 5:30 train , 1,000 people : many"),
    ("wait... what?!", "wait ... what ? !"),
    ("cannot gonna wanna gimme", "can not gon na wan na gim me"),
    ("50% off $3 @ x & y #1 * a--b", "50 % off $ 3 @ x & y # 1 * a -- b"),
    ("an o'clock t-shirt", "an o'clock t-shirt"),
    ("'tis a photo", "'t is a photo"),
    ("two [blue] {red} <green> hats", "two [ blue ] { red } < green > hats"),
    ("It's a man 's hat .", "it 's a man 's hat ."),
]


@pytest.mark.parametrize(("caption", "words"), TREEBANK)
def test_treebank(caption, words):
    normalizer, splitter = treebank_splitter()
    assert [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption))] == words.split()


def test_published_ids(tmp_path):
    """Start, words, end; unknown words are 3, the mask token comes last; saved and loaded it is the same."""
    words = read_vocabulary(write_vocabulary(tmp_path / "vocab.json"))
    assert words["<mask>"] == len(words) - 1 == json.loads((tmp_path / "vocab.json").read_text())["idx"]
    config = RegionsBackbone(vocabulary=str(tmp_path / "vocab.json"))
    processor = build_processor(config, None)
    captions = ["The dog isn't a CAT.", "zebra"]
    expected = [[1, *(words[word] for word in ["the", "dog", "is", "n't", "a", "cat", "."]), 2], [1, 3, 2]]
    assert processor.tokenize(captions) == expected
    assert processor.special_token_ids == [1, 2]
    processor.save_pretrained(tmp_path / "saved")
    loaded = ItmProcessor.from_pretrained(tmp_path / "saved")
    assert loaded.tokenize(captions) == expected
    assert loaded(text=captions)["input_ids"][1].tolist() == [1, 3, 2, *[0] * 6]
    cut = ItmProcessor(loaded.image_processor, caption_tokenizer(words, 4), max_length=4)
    assert cut.tokenize(captions)[0] == [*expected[0][:3], 2]
    backbone = build_backbone(config, processor=processor)
    assert (backbone.config.vocab_size, backbone.config.mask_token_id) == (len(words), words["<mask>"])


def test_counted_vocabulary():
    words = count_words(["a dog's hat", "A dog", "the dog"], min_count=2)
    assert words == {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4, "a": 5, "<mask>": 6}
    with pytest.raises(ValueError, match=r"no word occurs 9 times in the 1 training captions: lower backbone.min_word"):
        count_words(["a dog"], min_count=9)
    with pytest.raises(ValueError, match=r"regions takes its vocabulary from backbone.vocabulary or the training"):
        build_processor(RegionsBackbone(), None)


class Vocabulary:
    """Stands for the class of the published programs."""


def pickled(path, protocol: int = 2, **attributes):
    vocabulary = Vocabulary()
    vars(vocabulary).update(attributes)
    path.write_bytes(pickle.dumps(vocabulary, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_vocabulary(tmp_path, protocol):
    content = json.loads(write_vocabulary(tmp_path / "vocab.json").read_text())
    names = {int(number): word for number, word in content["idx2word"].items()}
    path = pickled(tmp_path / "vocab.pkl", protocol, word2idx=content["word2idx"], idx2word=names, idx=content["idx"])
    assert read_vocabulary(path) == read_vocabulary(tmp_path / "vocab.json")


def test_a_pickle_of_python_2(tmp_path):
    """Module names of old pickles, and text as bytes."""
    path = tmp_path / "vocab.pkl"
    words = "".join(f"S'{word}'\nI{number}\ns" for number, word in enumerate(("<pad>", "<start>", "<end>", "<unk>")))
    path.write_bytes(
        f"ccopy_reg\n_reconstructor\n(cvocab\nVocabulary\nc__builtin__\nobject\nNtR(dS'word2idx'\n(d{words}sb.".encode()
    )
    assert list(read_vocabulary(path)) == ["<pad>", "<start>", "<end>", "<unk>", "<mask>"]


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_of_a_pickle_is_executed(tmp_path, capsys):
    path = pickled(tmp_path / "hostile.pkl", word2idx=Hostile())
    with pytest.raises(ValueError, match=r"hostile.pkl: no pickled .*asks for (builtins|__builtin__).print"):
        read_vocabulary(path)
    (tmp_path / "call.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"it asks for posix.system"):
        read_vocabulary(tmp_path / "call.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="expected a pickled object of a class Vocabulary, found list"):
        read_vocabulary(tmp_path / "list.pkl")
    (tmp_path / "torn.pkl").write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"torn.pkl: no pickled vocabulary"):
        read_vocabulary(tmp_path / "torn.pkl")
    assert "executed" not in capsys.readouterr().out


def test_bad_vocabularies(tmp_path):
    path = tmp_path / "vocab.json"
    for content, message in (
        ({"idx": 3}, "expected a vocabulary with word2idx"),
        ({"word2idx": {"<pad>": 0, "a": 2}}, "the ids of word2idx are not 0 to 1, each once"),
        ({"word2idx": {"a": 0, "b": 1, "c": 2, "d": 3}}, "expected the ids 0 to 3 for <pad>"),
        ({"word2idx": {"<pad>": "0"}}, "a mapping of words to ids"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_vocabulary(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_vocabulary(path)
    with pytest.raises(ValueError, match=r"none.json: there is no such file"):
        read_vocabulary(tmp_path / "none.json")


def test_golden_word_corruption(golden):
    """Draws in the published order: one per token, and an id behind it where the token is replaced at random."""
    arrays = golden("crcl_augment")
    ids, vocab_size = arrays["cap_ids"], int(arrays["vocab_size"])
    draws, random_ids = np.zeros(ids.shape), np.zeros(ids.shape, dtype=np.int64)
    for row, seed in enumerate(arrays["cap_seed"].tolist()):
        generator = random.Random(seed)
        for place in range(int((ids[row] >= 0).sum())):
            draws[row, place] = generator.random()
            if 0.1 <= draws[row, place] < 0.12:
                random_ids[row, place] = generator.randrange(vocab_size)
    mask = torch.tensor(ids >= 0)
    draws, random_ids, mask_id = torch.tensor(draws), torch.tensor(random_ids), int(arrays["mask_id"])
    found, kept = corrupt_words(torch.tensor(ids).clamp(min=0), mask, mask, draws, random_ids, mask_id, 0.2)
    expected = arrays["cap_ids_augmented"]
    width = found.shape[1]
    assert width == int((expected >= 0).sum(axis=1).max())
    np.testing.assert_array_equal(found.masked_fill(~kept, -1), expected[:, :width])
    assert (expected[:, width:] == -1).all()


def test_golden_region_augmentation(golden):
    arrays = golden("crcl_augment")
    draws = np.stack([np.random.RandomState(seed).rand(36) for seed in arrays["region_seed"].tolist()])
    draws = torch.tensor(draws)
    everything = torch.ones(draws.shape, dtype=torch.bool)
    np.testing.assert_array_equal(keep_regions(everything, draws, 0.2), arrays["region_kept_drop_variant"])
    regions = torch.tensor(arrays["regions"]).expand(len(draws), -1, -1)
    erased = erase_regions(regions, draws, 0.2)
    np.testing.assert_allclose(erased, arrays["regions_erase_variant"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(regions[0], arrays["regions"])  # not in place


def test_golden_batch(golden, tmp_path, monkeypatch):
    """A training batch of the published items, asked for in the published order (towers do not need it)."""
    arrays = golden("crcl_augment")
    pairs = 40
    regions, captions = np.zeros((pairs, 6, 3), dtype=np.float32), ["1"] * pairs
    for item in range(5):
        number, own = int(arrays[f"item{item}_id"]), arrays[f"item{item}_regions"]
        regions[number, : len(own)] = own
        captions[number] = " ".join(map(str, arrays[f"item{item}_tokens"]))
    np.save(tmp_path / "regions.npy", regions)
    rows = {
        "image": [None] * pairs,
        "image_id": [f"{number}" for number in range(pairs)],
        "captions": [[caption] for caption in captions],
        "caption_ids": [[f"{number}#0"] for number in range(pairs)],
    }
    features = RegionFeatures(tmp_path / "regions.npy", 1, np.arange(pairs), np.arange(pairs))
    split = Split("train", Dataset.from_dict(rows, features=ROW_FEATURES), regions=features)
    processor = ItmProcessor(CLIPImageProcessor(), caption_tokenizer(count_words(CAPTIONS, 1), 20))
    monkeypatch.setattr(processor, "tokenize", lambda texts: [[int(word) for word in text.split()] for text in texts])
    tokens = CaptionTokens(split.pairs.captions, processor)
    dataset = PairDataset(split, CaptionNoise.clean(split.pairs), processor, tokens=tokens)
    batch = dataset.__getitems__(arrays["batch_ids"].tolist())
    np.testing.assert_array_equal(batch["pair_ids"], arrays["batch_ids"])
    np.testing.assert_array_equal(batch["input_ids"], arrays["batch_tokens"])
    np.testing.assert_array_equal(batch["attention_mask"].sum(dim=1), arrays["batch_token_lengths"])
    np.testing.assert_array_equal(batch["image_tokens"][batch["image_index"]], arrays["batch_images"])
    np.testing.assert_array_equal(batch["image_mask"].sum(dim=1), arrays["batch_image_lengths"])


def test_corruption_never_empties_a_caption():
    """All draws delete: the word with the largest one stays; start and end tokens do where they must not be touched."""
    ids = torch.tensor([[1, 7, 8, 9, 2], [1, 7, 2, 0, 0]])
    mask = ids > 0
    draws = torch.tensor([[0.19, 0.13, 0.17, 0.15, 0.12], [0.13, 0.14, 0.15, 0.9, 0.9]])
    random_ids = torch.zeros_like(ids)
    words = mask & (ids > 2)
    found, kept = corrupt_words(ids, mask, words, draws, random_ids, 5, 0.2)
    assert found.masked_fill(~kept, 0).tolist() == [[1, 8, 2], [1, 7, 2]]
    found, kept = corrupt_words(ids, mask, mask, draws, random_ids, 5, 0.2)
    assert found.masked_fill(~kept, 0).tolist() == [[1], [2]]
    kept = keep_regions(mask, draws.fill_(0.1).scatter_(1, torch.tensor([[2], [4]]), 0.15), 0.2)
    assert kept.sum(dim=1).tolist() == [1, 3]  # the largest draw, or all of equal ones; never padding
    assert not kept[1, 3:].any()


def test_pieces_of_a_word_meet_one_fate():
    ids = torch.tensor([[1, 10, 11, 12, 13, 2]])
    continues = torch.tensor([[False, False, True, True, False, False]])
    words = torch.tensor([[False, True, True, True, True, False]])
    random_ids = torch.tensor([[20, 21, 22, 23, 24, 25]])

    def corrupted(draw: float) -> list[int]:
        draws = torch.tensor([[0.0, draw, 0.9, 0.01, 0.5, 0.0]])
        found, kept = corrupt_words(ids, ids > 0, words, draws, random_ids, 5, 0.2, continues)
        return found[kept].tolist()

    assert corrupted(0.05) == [1, 5, 5, 5, 13, 2]
    assert corrupted(0.11) == [1, 21, 22, 23, 13, 2]
    assert corrupted(0.15) == [1, 13, 2]
    assert corrupted(0.25) == [1, 10, 11, 12, 13, 2]


def test_shares_of_corruption():
    ids = torch.full((2000, 20), 7)
    mask = torch.ones_like(ids, dtype=torch.bool)
    torch.manual_seed(0)
    found, kept = corrupt_words(ids, mask, mask, torch.rand(ids.shape), torch.full_like(ids, 9), 5, 0.2)
    shares = [float(((found == number) & kept).sum()) / ids.numel() for number in (5, 9)]
    assert shares == pytest.approx([0.1, 0.02], abs=0.005)
    assert 1 - float(kept.sum()) / ids.numel() == pytest.approx(0.08, abs=0.005)


def region_backbone(tmp_path, **options):
    config = RegionsBackbone(
        region_dim=20, embed_dim=16, text_encoder="bert", text_model=str(write_bert(tmp_path / "bert")), **options
    )
    return build_backbone(config, processor=build_processor(config, None)), build_processor(config, None)


def test_bert(tmp_path):
    """Padding changes nothing; blocks freeze; the resolved section rebuilds it without files; pieces stay known."""
    torch.manual_seed(0)
    backbone, processor = region_backbone(tmp_path, word_corruption=0.2, text_pooling="first", freeze_text_blocks=1)
    backbone.output_tokens = True
    assert backbone.widths == type(backbone.widths)(16, 16, 16)
    batch = processor(text=CAPTIONS)
    backbone.eval()
    features = backbone.text_trunk(batch["input_ids"], batch["attention_mask"])
    alone = processor(text=CAPTIONS[1])
    alone = backbone.text_trunk(alone["input_ids"], alone["attention_mask"])
    torch.testing.assert_close(features.pooled[1], alone.pooled[0])
    torch.testing.assert_close(features.tokens[1, : alone.tokens.shape[1]], alone.tokens[0])
    assert (features.tokens[1, alone.tokens.shape[1] :] == 0).all()
    pieces = processor.tokenizer.convert_tokens_to_ids(["dog", "##s", "s"])
    assert backbone.continues_word[pieces].tolist() == [False, True, False]
    assert backbone.continues_word.sum() == 1
    assert backbone.config.mask_token_id == 4
    assert backbone.train().text_trunk(batch["input_ids"], batch["attention_mask"]).mask[:, :2].all()
    backbone.eval()
    assert len(backbone.text_blocks()) == 4
    again = build_backbone(backbone.config, weights=False)
    again.load_state_dict(backbone.state_dict())
    found = again.eval().text_trunk(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(found.pooled, features.pooled)


def test_bert_on_a_grid(tmp_path):
    """timm-words with BERT, and with the GRU whose directions are averaged: DivE's setting over raw photos."""
    for options in (
        {"text_encoder": "bert", "text_model": str(write_bert(tmp_path / "bert"))},
        {"text_encoder": "bigru"},
    ):
        config = TimmWordsBackbone(
            image_model="test_efficientnet", image_pretrained=False, embed_dim=16, min_word_count=1, **options
        )
        processor = build_processor(config, CAPTIONS)
        backbone = build_backbone(config, processor=processor)
        backbone.output_tokens = True
        batch = processor(text=CAPTIONS)
        features = backbone.eval().text_trunk(batch["input_ids"], batch["attention_mask"])
        assert features.pooled.shape == (len(CAPTIONS), 16)
        assert features.tokens.shape[2] == backbone.widths.text_tokens == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_image": True}, "freeze_image: the towers of regions start from random weights"),
        ({"word_dropout": 0.1}, "word_dropout: regions corrupt words the published way"),
        ({"text_encoder": "bert", "text_projection": "mlp"}, "text_projection mlp: it belongs to timm-words"),
        ({"text_encoder": "bert", "word_dim": 200}, "word_dim: it belongs to text_encoder gru; leave it out"),
        ({"text_model": "bert-large"}, "text_model: it belongs to text_encoder bert; leave it out"),
        ({"text_encoder": "bert", "text_pooling": "last"}, "text_pooling last: final states are those of"),
        ({"text_pooling": "first"}, "text_pooling first: the first token is one of text_encoder bert"),
        ({"corrupt_ends": True}, "corrupt_ends: without word_corruption it does nothing"),
        ({"image_encoder": "linear", "norm_padding": True}, "norm_padding: only image_encoder mlp and residual"),
        ({"global_dim": 512, "pooling": "max"}, "pooling: with global_dim nothing is pooled"),
        ({"image_encoder": "none"}, "image_encoder none leaves regions of width 2048"),
        ({"vocabulary": "v.json", "min_word_count": 2}, "min_word_count: vocabulary says which words"),
    ],
)
def test_options_that_would_do_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        RegionsBackbone(**options)


def test_it_reads_regions(tmp_path):
    backbone, _ = region_backbone(tmp_path)
    with pytest.raises(ValueError, match="this model reads precomputed regions, no photos"):
        backbone.image_trunk(torch.zeros(1, 3, 8, 8))
