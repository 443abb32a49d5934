"""XXH3-128 of files: finds damage at the speed of memory, and is no defence against malice."""

from pathlib import Path

try:
    import xxhash
except ImportError:  # in the code beside a checkpoint, which loads without this package: nothing is checked there
    xxhash = None

BLOCK = 2**22  # bytes


def checksum_of(path: str | Path, end: int | None = None) -> str:
    """Of a file's content, in hexadecimal; of its first `end` bytes."""
    digest, left = xxhash.xxh3_128(), end
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK if left is None else min(BLOCK, left)):
            digest.update(block)
            left = None if left is None else left - len(block)
    return digest.hexdigest()
