"""A tiny data set of regions in the exact published layout, for the tests of several files.

Every photo shows three of twelve things, every thing is a direction of the features and a word, so that a model can
learn it.
"""

import json
from pathlib import Path

import numpy as np
from transformers import BertConfig, BertModel, BertTokenizer

REGIONS, WIDTH = 36, 20
THINGS = ["dog", "man", "ball", "tree", "car", "hat", "boat", "cat", "bike", "sign", "child", "field"]
PATTERNS = [
    "A {} is near a {} and a {}.",
    "the {}, the {} and the {}",
    "a {} with a {}. it isn't far from the {}",
    'a photo says "{}", {} or {}',
    "two people look at a {} , a {} and the {}'s shadow",
]
PHOTOS = {"train": 40, "dev": 12, "test": 10}


def write_regions(
    root: Path,
    photos: dict[str, int] | None = None,
    repeated: tuple[str, ...] = ("dev", "test"),
    dtype: type = np.float32,
    vectors: int | None = None,
    captions_per_image: int = 5,
    tsv: bool = False,
) -> Path:
    """SCAN's layout below `root`: train with a row per photo, `repeated` splits with a row per caption, as published.

    `vectors`: width of vectors of another model (`..._clip_ims.npy`, `..._clip_caps.npy`); `tsv`: CC152K's captions.
    """
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(len(THINGS), WIDTH))
    words = generator.normal(size=(len(THINGS), vectors or 1))
    start = 0
    for name, count in (photos or PHOTOS).items():
        shown = np.stack([generator.permutation(len(THINGS))[:3] for _ in range(count)])
        features = directions[shown].repeat(REGIONS // 3, axis=1) + 0.3 * generator.normal(size=(count, REGIONS, WIDTH))
        captions = [
            pattern.format(*(THINGS[thing] for thing in generator.permutation(own)))
            for own in shown
            for pattern in PATTERNS[:captions_per_image]
        ]
        rows = captions_per_image if name in repeated else 1
        np.save(root / f"{name}_ims.npy", features.astype(dtype).repeat(rows, axis=0))
        ids = [str(1000 + start + photo) for photo in range(count)]
        (root / f"{name}_ids.txt").write_text("".join(f"{image_id}\n" for image_id in ids for _ in range(rows)))
        if tsv:
            lines = (f"{ids[k // captions_per_image]}\t{caption}\n" for k, caption in enumerate(captions))
        else:
            lines = (f"{caption}\n" for caption in captions)
        (root / f"{name}_caps.{'tsv' if tsv else 'txt'}").write_text("".join(lines), encoding="utf-8")
        if vectors:
            means = words[shown].mean(axis=1)
            np.save(root / f"{name}_clip_ims.npy", means.astype(np.float32))
            noisy = means.repeat(captions_per_image, axis=0)
            np.save(
                root / f"{name}_clip_caps.npy", (noisy + 0.1 * generator.normal(size=noisy.shape)).astype(np.float32)
            )
        start += count
    return root


def write_vocabulary(path: Path) -> Path:
    """A published vocabulary of some of the words, as JSON."""
    words = ["<pad>", "<start>", "<end>", "<unk>", "a", "the", ".", ",", "and", "is", "n't", "'s", "``", "''", *THINGS]
    content = {
        "word2idx": {word: number for number, word in enumerate(words)},
        "idx2word": {str(number): word for number, word in enumerate(words)},
        "idx": len(words),
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_bert(folder: Path) -> Path:
    """A tiny random BERT whose words are those of the captions; "dogs" and "cats" have two pieces."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for pattern in PATTERNS for word in pattern.lower().replace("{}", "").split()})
    vocabulary = dict.fromkeys([*special, *THINGS, "##s", *words, *".,'\"tis"])
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, vocab_size=len(vocabulary))).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
