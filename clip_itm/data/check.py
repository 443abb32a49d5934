"""What is in a data set and what is wrong with it: every photo decoded or its regions read, every caption seen."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import StringIO

import numpy as np
from ftfy.badness import is_bad
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from clip_itm.data.images import SIXTEEN_BIT_MODES, TRANSPARENT_MODES, is_turned, naming_photo, open_image, to_rgb
from clip_itm.data.load import find_absent, notes, shown, split_problems
from clip_itm.data.rows import Split

TOKEN_BATCH = 1000
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class PhotoFacts:
    """One photo: digest of its bytes, what is wrong with it, and what is unusual about it."""

    digest: str | None = None
    problem: str | None = None  # "truncated" or "unreadable"
    message: str = ""
    format: str = "unknown"
    traits: tuple[str, ...] = ()  # greyscale, palette, CMYK, 16-bit, transparent, EXIF-rotated


@dataclass
class SplitReport:
    """One split. Lists name photos (file or id) and captions (id, mostly file:line)."""

    photos: int
    captions: int
    sha256: str
    captions_per_photo: dict[int, int]  # number of captions -> number of photos
    length: dict[str, float]  # of captions: mean, median, p99, max, in `length_unit`
    length_unit: str  # "tokens" or "words"
    cut_captions: int | None = None  # longer than `max_tokens`; None where no tokenizer was given
    max_tokens: int | None = None
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    zero_sized: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    odd_captions: dict[str, list[str]] = field(default_factory=dict)  # wrong encoding and the like -> captions
    formats: dict[str, int] = field(default_factory=dict)
    traits: dict[str, list[str]] = field(default_factory=dict)  # CMYK, greyscale, ... -> photos
    regions: str | None = None  # of a photo, where there are precomputed ones: number, width, type
    damaged_regions: list[str] = field(default_factory=list)  # photos whose features are not finite or all zero


@dataclass
class CheckReport:
    """`problems` make training fail, `warnings` do not; `duplicates` are groups of byte-identical photos."""

    splits: dict[str, SplitReport] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict:
        return {"ok": self.ok, **asdict(self)}

    def as_text(self) -> str:
        output = StringIO()
        console = Console(file=output, width=120, highlight=False)
        if self.splits:
            console.print(self._table())
        for title, lines in (("warning", self.warnings), ("PROBLEM", self.problems)):
            for line in lines:
                console.print(f"{title}: {line}", markup=False, soft_wrap=True)
        console.print("Training can start." if self.ok else f"Training would fail: {len(self.problems)} problems.")
        return output.getvalue()

    def _table(self) -> Table:
        table = Table("", *self.splits)
        columns = [_cells(report) for report in self.splits.values()]
        for label in dict.fromkeys(label for cells in columns for label in cells):
            table.add_row(label, *(cells.get(label, "0") for cells in columns))
        return table


def check_splits(
    splits: dict[str, Split],
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    max_tokens: int | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> CheckReport:
    """Look at everything in `splits` (from `load_splits(config, verify=False)`).

    `count_tokens` gives the length of every caption of a list in tokens, special ones included, before cutting to
    `max_tokens`; without it lengths are in words. Photos are decoded by `workers` threads (default: one a core).
    """
    report = CheckReport(problems=split_problems(splits))
    for name in ("train", "val"):  # the best checkpoint is chosen on val
        if splits and name not in splits:
            report.problems.append(f"there is no {name} split, only {', '.join(splits)}")
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)  # digest -> (split, photo)
    for name, split in splits.items():
        report.splits[name] = own = _describe_captions(split, count_tokens, max_tokens, progress)
        if split.regions is not None:
            _check_regions(own, split, progress)
            report.problems += _photo_problems(name, own)
            report.warnings += _split_warnings(name, own)
            continue
        absent = {photo.row: photo for photo in find_absent(split.rows)}
        own.zero_sized = [photo.photo for photo in absent.values() if photo.is_empty]
        own.missing = [photo.photo for photo in absent.values() if not photo.is_empty]
        present = [row for row in range(len(split)) if row not in absent]
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            facts = pool.map(lambda row, rows=split.rows: _inspect_row(rows, row), present)
            for photo, fact in tqdm(facts, desc=f"photos of {name}", total=len(present), disable=not progress):
                _count_photo(own, photo, fact)
                if fact.digest is not None:
                    places[fact.digest].append((name, photo))
        report.problems += _photo_problems(name, own)
        report.warnings += _split_warnings(name, own)
    for same in places.values():
        if len(same) > 1:
            report.duplicates.append([f"{name}: {photo}" for name, photo in same])
            across = len({name for name, _ in same}) > 1
            text = "in different splits (evaluation sees training photos)" if across else f"in split {same[0][0]}"
            report.warnings.append(f"byte-identical photos {text}: {', '.join(report.duplicates[-1])}")
    report.warnings += dict.fromkeys(note for split in splits.values() for note in notes(split))
    return report


def _check_regions(report: SplitReport, split: Split, progress: bool) -> None:
    features = split.regions.features
    report.regions = f"{features.shape[1]} x {features.shape[2]} {features.dtype}"
    ids = split.pairs.image_ids
    with tqdm(desc=f"regions of {split.name}", total=len(split), disable=not progress) as bar:
        for read, damaged in split.regions.damaged():
            report.damaged_regions += [ids[photo].as_py() for photo in damaged]
            bar.update(read)


def inspect_photo(image: dict) -> PhotoFacts:
    """Decode a row's `image` completely and say what it is."""
    data = image["bytes"]
    if data is None:
        with open(image["path"], "rb") as file:
            data = file.read()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    kind, traits = "unknown", ()
    try:
        with naming_photo(image):
            opened = open_image({"path": image["path"], "bytes": data})
            kind = opened.format
            opened.load()
            traits = _traits(opened, data)
            to_rgb(opened)
    except ValueError as error:
        problem = "truncated" if "truncated" in str(error).lower() else "unreadable"
        return PhotoFacts(digest, problem, str(error), kind, traits)
    return PhotoFacts(digest, format=kind, traits=traits)


def _inspect_row(rows, row: int) -> tuple[str, PhotoFacts]:
    stored = rows[row]
    photo = stored["image"]["path"] or stored["image_id"]
    try:
        return photo, inspect_photo(stored["image"])
    except OSError as error:  # no permission, a vanished mount
        return photo, PhotoFacts(problem="unreadable", message=f"{photo}: {error.strerror}")


def _traits(image, data: bytes) -> tuple[str, ...]:
    # Pillow opens 16-bit colour PNGs as 8-bit RGB; only the header tells
    sixteen_bit = image.mode in SIXTEEN_BIT_MODES or (data[:8] == PNG_SIGNATURE and data[24:25] == b"\x10")
    found = {
        "greyscale": image.mode in ("1", "L", "LA", "La", *SIXTEEN_BIT_MODES),
        "palette": image.mode in ("P", "PA"),
        "CMYK": image.mode == "CMYK",
        "16-bit": sixteen_bit,
        "transparent": image.mode in TRANSPARENT_MODES or "transparency" in image.info,
        "EXIF-rotated": is_turned(image),
    }
    return tuple(trait for trait, is_there in found.items() if is_there)


def _count_photo(report: SplitReport, photo: str, facts: PhotoFacts) -> None:
    report.formats[facts.format] = report.formats.get(facts.format, 0) + 1
    if facts.problem is not None:
        getattr(report, facts.problem).append(facts.message)
    for trait in facts.traits:
        report.traits.setdefault(trait, []).append(photo)


def _describe_captions(split: Split, count_tokens, max_tokens: int | None, progress: bool) -> SplitReport:
    pairs = split.pairs
    captions, caption_ids = pairs.captions.to_pylist(), pairs.caption_ids.to_pylist()
    counts = np.bincount(pairs.image, minlength=len(split))
    batches = range(0, len(captions), TOKEN_BATCH)
    lengths = []
    for start in tqdm(batches, desc=f"captions of {split.name}", disable=not progress):
        batch = captions[start : start + TOKEN_BATCH]
        lengths += count_tokens(batch) if count_tokens else [len(caption.split()) for caption in batch]
    lengths = np.array(lengths or [0])
    odd = defaultdict(list)
    for caption, caption_id in zip(captions, caption_ids, strict=True):
        if oddity := caption_oddity(caption):
            odd[oddity].append(caption_id)
    length = {
        "mean": lengths.mean(),
        "median": np.median(lengths),
        "p99": np.quantile(lengths, 0.99),
        "max": lengths.max(),
    }
    return SplitReport(
        photos=len(split),
        captions=len(captions),
        sha256=split.sha256,
        captions_per_photo={int(count): photos for count, photos in sorted(Counter(counts.tolist()).items())},
        length={name: float(value) for name, value in length.items()},
        length_unit="tokens" if count_tokens else "words",
        cut_captions=int((lengths > max_tokens).sum()) if count_tokens and max_tokens else None,
        max_tokens=max_tokens,
        left_out=list(split.missing),
        odd_captions=dict(odd),
    )


def caption_oddity(caption: str) -> str | None:
    """What shows that a caption was read in a wrong encoding or holds more than text; None for a normal one."""
    if caption.isascii() and caption.isprintable():
        return None
    if "\ufffd" in caption:
        return "replacement characters (bytes lost in a conversion)"
    if "\ufeff" in caption:
        return "byte order marks"
    if is_bad(caption):
        return "mojibake (UTF-8 read as another encoding)"
    if any(character < " " for character in caption):
        return "control characters or line breaks"
    return None


def _photo_problems(name: str, report: SplitReport) -> list[str]:
    problems = []
    for label, photos in (("missing", report.missing), ("empty (0 bytes)", report.zero_sized)):
        if photos:
            advice = "put them there or set data.skip_missing: true"
            problems.append(f"split {name}: {len(photos)} photos are {label}: {shown(photos)}; {advice}")
    for label, photos in (("truncated", report.truncated), ("unreadable", report.unreadable)):
        if photos:
            problems.append(f"split {name}: {len(photos)} photos are {label}:\n  " + shown(photos, separator="\n  "))
    if report.damaged_regions:
        problems.append(
            f"split {name}: {len(report.damaged_regions)} photos have features that are not finite or all zero: "
            f"{shown(report.damaged_regions)}; extract them anew"
        )
    return problems


def _split_warnings(name: str, report: SplitReport) -> list[str]:
    warnings = []
    if report.left_out:
        warnings.append(f"split {name}: {len(report.left_out)} missing photos are left out: {shown(report.left_out)}")
    if report.cut_captions:
        warnings.append(f"split {name}: {report.cut_captions} captions are cut to {report.max_tokens} tokens")
    for oddity, captions in report.odd_captions.items():
        warnings.append(f"split {name}: {len(captions)} captions have {oddity}: {shown(captions)}")
    return warnings


def _cells(report: SplitReport) -> dict[str, str]:
    """Label -> text of one column of the table."""
    per_photo = ", ".join(f"{count}: {photos}" for count, photos in report.captions_per_photo.items())
    cells = {"hash": report.sha256[:12], "photos": str(report.photos), "captions": str(report.captions)}
    cells["captions a photo: photos"] = per_photo
    length = report.length
    summary = f"{length['mean']:.1f} / {length['median']:.0f} / {length['p99']:.0f} / {length['max']:.0f}"
    cells[f"{report.length_unit} mean / median / 99 % / max"] = summary
    if report.cut_captions is not None:
        cells[f"captions over {report.max_tokens} tokens"] = str(report.cut_captions)
    if report.regions is not None:
        return cells | {"regions a photo": report.regions, "damaged photos": str(len(report.damaged_regions))}
    cells |= {f"{kind} files": str(count) for kind, count in sorted(report.formats.items())}
    cells |= {f"{trait} photos": str(len(photos)) for trait, photos in report.traits.items()}
    for label in ("left_out", "missing", "zero_sized", "unreadable", "truncated"):
        cells[f"{label.replace('_', ' ')} photos"] = str(len(getattr(report, label)))
    return cells
