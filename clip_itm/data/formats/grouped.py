"""Rows of one image joined into one row, in Arrow: a shard has a row for each caption, or an image several times."""

import numpy as np
import pyarrow as pa
import xxhash

LISTS = ("captions", "caption_ids", "caption_weights")
AT_ONCE = 10_000  # strings that are Python objects at the same time


def string_hashes(strings: pa.ChunkedArray) -> np.ndarray:
    """XXH3-64 of every string, uint64 [N]: eight bytes of a name that would take sixty as an object."""
    hashes = np.empty(len(strings), dtype=np.uint64)
    for start in range(0, len(strings), AT_ONCE):
        part = strings.slice(start, AT_ONCE).to_pylist()
        hashes[start : start + len(part)] = [xxhash.xxh3_64_intdigest(string.encode()) for string in part]
    return hashes


def repeated(hashes: np.ndarray) -> np.ndarray:
    """bool [N]: whether a value occurs more than once."""
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order[1:]] == hashes[order[:-1]]
    found = np.zeros(len(hashes), dtype=bool)
    found[order[1:][equal]] = found[order[:-1][equal]] = True
    return found


def one_row_per_image(table: pa.Table) -> pa.Table:
    """The table with a row for each `image_id`, at the place of its first row, with the captions of all its rows.

    Columns other than the lists of captions are those of the first row.

    Example:
        >>> rows = {"image_id": ["a", "b", "a"], "captions": [["one"], ["two"], ["three", "four"]]}
        >>> one_row_per_image(pa.table(rows)).to_pydict()
        {'image_id': ['a', 'b'], 'captions': [['one', 'three', 'four'], ['two']]}
    """
    encoded = table["image_id"].combine_chunks().dictionary_encode()  # numbered in order of first appearance
    group = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.argsort(group, kind="stable")
    first = order[np.searchsorted(group[order], np.arange(len(encoded.dictionary)))]
    joined = table.take(pa.array(first))
    for name in LISTS:
        if name in table.column_names:
            lists = table[name].take(pa.array(order)).combine_chunks()
            counts = np.bincount(group[order], weights=lists.value_lengths().to_numpy(zero_copy_only=False))
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            column = pa.ListArray.from_arrays(pa.array(offsets), lists.flatten()).cast(table.schema.field(name).type)
            joined = joined.set_column(joined.column_names.index(name), table.schema.field(name), column)
    return joined
