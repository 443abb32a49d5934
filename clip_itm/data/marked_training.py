"""Marks as labels of training pairs: a split with fixed captions, and weights and labels of the pairs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value

from clip_itm.data.marked_pairs import MarkedPairs
from clip_itm.data.marks import marks_of_pairs, read_marks
from clip_itm.data.noise import CaptionNoise
from clip_itm.data.rows import Split


def with_marks(
    splits: dict[str, Split], noise: CaptionNoise, file: str | Path | None
) -> tuple[dict[str, Split], CaptionNoise]:
    """The splits and noise of a run whose recipe has `data.marks: file`; without `file`, the given ones.

    Marks are of the captions that pairs got, so they are matched after noise. In the training split, a pair marked
    wrong has weight 0 and label 0; a pair marked right, or whose caption was fixed, has label 1, and the fixed text
    replaces its caption. All of that is in the split's hash. Raises ValueError for a file that does not exist, that
    holds no marks, or whose marks are all of other pairs, and for fixed texts if several pairs got one caption.

    noise: as it was drawn, or as a run with these marks saved it.
    """
    if file is None:
        return splits, noise
    train, marks = splits["train"], read_marks(file)
    noise = replace(noise, captions_sha256=train.pairs.captions_sha256)
    marked = MarkedPairs.of(train.pairs, noise, marks)
    if not marked.marks and (count := len(marks_of_pairs(marks))):
        raise ValueError(
            f"data.marks: none of the {count} pairs in {file} is a pair of these training captions; name the marks of "
            "these data (and the noise that they were made under), or leave the key out"
        )
    if np.isnan(marked.label).all():
        return splits, noise
    if marked.texts and train.regions is not None and train.regions.caption_file is not None:
        raise ValueError(
            f"data.marks: {file} has fixed captions, and data.global_vectors reads vectors that were made of the "
            "captions as they were: leave one of them out"
        )
    captions = _fixed(train, noise, marked, file)
    labels = marked.labels.astype(np.float32)
    labels[list(marked.texts)] = 1
    split = _split(train, captions, labels)
    facts = {"sha256": marked.sha256, **marked.counts, "unmatched": marked.unmatched, "train_sha256": train.sha256}
    noise = replace(noise, captions_sha256=split.pairs.captions_sha256)
    return {**splits, "train": replace(split, marks=facts)}, noise


def _fixed(train: Split, noise: CaptionNoise, marked: MarkedPairs, file: str | Path) -> list[str]:
    """Captions by number, with fixed texts in place of those that the marked pairs got."""
    captions = train.pairs.captions.to_pylist()
    users = np.bincount(noise.source, minlength=len(captions))
    for pair, text in marked.texts.items():
        number = noise.source[pair]
        if users[number] > 1:
            raise ValueError(
                f"data.marks: {file} fixes a caption that noise.level {noise.level} gave to {users[number]} pairs "
                f"({captions[number]!r}), and would change all of them. Let the audit write these texts, where each "
                f"pair has its own (--marks {file} --by-marks --clean-to DIR), and train on that folder without noise"
            )
        captions[number] = text
    return captions


def _split(train: Split, captions: list[str], labels: np.ndarray) -> Split:
    """The split with these captions and labels, and weight 0 where a label is 0."""
    pairs, rows = train.pairs, train.rows
    weight = np.ones(len(pairs), dtype=np.float32) if pairs.weight is None else pairs.weight
    ends = np.cumsum(np.bincount(pairs.image, minlength=len(rows)))
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    columns = {"captions": pa.array(captions, pa.string()), "caption_labels": pa.array(labels)}
    if pairs.weight is not None or (labels == 0).any():
        columns["caption_weights"] = pa.array(np.where(labels == 0, np.float32(0), weight))
    kinds = Features({name: List(Value("string" if name == "captions" else "float32")) for name in columns})
    rows = rows.remove_columns([name for name in columns if name in rows.column_names])
    for name, values in columns.items():
        lists = pa.ListArray.from_arrays(offsets, values)
        rows = rows.add_column(name, lists.to_pylist(), feature=kinds[name])
    return replace(train, rows=rows)
