"""Word vocabularies of SCAN and its successors, and a tokenizer that cuts captions into their words.

Published vocabularies are a JSON file or a pickled object with `word2idx`, `idx2word` and `idx`, the next free id
(docs/papers/crcl.md 7.3). Weights and vocabulary belong together: the order of words cannot be recreated from the
captions. Ids: 0 padding, 1 start, 2 end, 3 unknown, and the mask token of word corruption comes last.

Captions are lower-cased and split as by NLTK's `word_tokenize`: into sentences, whose last period is a word, and then
by the rules of the Penn Treebank (`isn't` is `is` and `n't`, `man's` is `man` and `'s`, quotes become `` and '').
"""

import pickle
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from clip_itm.backbones.words import frequent_words
from clip_itm.reading import read_json

PAD, START, END, UNKNOWN, MASK = "<pad>", "<start>", "<end>", "<unk>", "<mask>"

# words that keep their period if another word follows
ABBREVIATIONS = ("mr", "mrs", "ms", "dr", "st", "jr", "sr", "vs", "prof", "lt", "col", "gen", "sgt", "co", "inc", "ltd")
NO_ABBREVIATION = r"(?<!\b\w)" + "".join(rf"(?<!\b{word})" for word in ABBREVIATIONS)
WORD_ENDS = r"(?=$|[\s,:;.?!@#$%&*()\[\]{}<>»”’]|--|'')"
TREEBANK = "|".join(
    (
        r"\.{2,}",
        rf"(?<=[^.\s]){NO_ABBREVIATION}\.(?=[\])}}>\"'»”’]*\s)",
        r"(?<=[^.])\.(?=[\])}>\"'»”’\s]*$)",
        r"[;@#$%&?!*\[\](){}<>«“‘„»”’]",
        r"[:,](?!\d)",
        r"--",
        r"``",
        r"''",
        rf"(?<=[^'\s])(?:'s|'m|'d|'ll|'re|'ve|n't|'){WORD_ENDS}",
        r"\bcan(?=not\b)|\bgim(?=me\b)|\blem(?=me\b)|\bgot(?=ta\b)|\bgon(?=na\b)|\bwan(?=na\b)|\bmore(?='n\b)",
        r"\bd(?='ye\b)|(?:(?<=\s)|\A)'t(?=is\b|was\b)",
    )
)


def treebank_splitter() -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """Lower-case and quotes; then words and punctuation marks."""
    opening = normalizers.Replace(Regex(r"(?<=[ (\[{<])(?:\"|'')|\A\""), " `` ")
    normalizer = normalizers.Sequence([normalizers.Lowercase(), opening, normalizers.Replace('"', " '' ")])
    split = pre_tokenizers.Split(Regex(TREEBANK), behavior="isolated")
    return normalizer, pre_tokenizers.Sequence([split, pre_tokenizers.WhitespaceSplit()])


def caption_tokenizer(vocabulary: dict[str, int], max_words: int) -> PreTrainedTokenizerFast:
    """`<start> words <end>`, cut to `max_words` tokens in all; words that are not in `vocabulary` are <unk>."""
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = treebank_splitter()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $0 {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        mask_token=MASK,
        model_max_length=max_words,
        padding_side="right",
    )


def count_words(captions: list[str], min_count: int) -> dict[str, int]:
    """The vocabulary of `captions`: words that occur at least `min_count` times, by descending frequency."""
    kept = frequent_words(captions, *treebank_splitter(), min_count)
    words = [PAD, START, END, UNKNOWN, *kept, MASK]
    return {word: number for number, word in enumerate(words)}


def read_vocabulary(path: str | Path) -> dict[str, int]:
    """Word -> id of a published file (.json, or a pickle of which nothing is executed), with the mask token.

    Raises ValueError if the ids are not 0, 1, 2, ... or the first four words are not those of these vocabularies.
    """
    path = Path(path).expanduser()
    content = read_json(path, "a vocabulary") if path.suffix == ".json" else _unpickle(path)
    words = content.get("word2idx") if isinstance(content, dict) else None
    if not isinstance(words, dict) or not all(type(number) is int for number in words.values()):
        raise ValueError(f"{path}: expected a vocabulary with word2idx, a mapping of words to ids")
    if sorted(words.values()) != list(range(len(words))):
        raise ValueError(f"{path}: the ids of word2idx are not 0 to {len(words) - 1}, each once")
    first = sorted(words, key=words.get)[:4]
    if first != [PAD, START, END, UNKNOWN]:
        raise ValueError(f"{path}: expected the ids 0 to 3 for {PAD}, {START}, {END}, {UNKNOWN}, found {first}")
    return words if MASK in words else {**words, MASK: len(words)}


class _VocabularyUnpickler(pickle.Unpickler):
    """Reads one object of a class called Vocabulary: its attributes are dictionaries, text and numbers."""

    def find_class(self, module: str, name: str):
        if name == "Vocabulary":
            return self.vocabulary
        if (module, name) in (("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor")):
            return self.reconstruct
        if (module, name) in (("__builtin__", "object"), ("builtins", "object")):
            return object
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.vocabulary = type("Vocabulary", (), {})

    def reconstruct(self, kind, base, state):
        """What pickles of old protocols call to make an object."""
        if kind is not self.vocabulary:
            raise pickle.UnpicklingError("it makes another object than a vocabulary")
        return self.vocabulary()


def _unpickle(path: Path) -> dict:
    try:
        with path.open("rb") as file:
            reader = _VocabularyUnpickler(file)
            content = reader.load()
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except Exception as error:  # a broken or hostile file may raise anything
        raise ValueError(
            f"{path}: no pickled vocabulary, and nothing in it was executed: {error}; expected an object of a class "
            "Vocabulary with word2idx, or a JSON file with it"
        ) from None
    if not isinstance(content, reader.vocabulary):
        raise ValueError(f"{path}: expected a pickled object of a class Vocabulary, found {type(content).__name__}")
    return vars(content)
