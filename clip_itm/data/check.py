"""What is in a data set and what is wrong with it: decodes every image (or reads its regions), checks every caption."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import StringIO

import numpy as np
from datasets import Dataset
from ftfy.badness import is_bad
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm.auto import tqdm

from clip_itm.data.image_check import ReadImages, image_identity, image_name
from clip_itm.data.image_facts import EXTREME, EXTREME_RATIO, SMALLEST_SIDE, ImageFacts, inspect_image
from clip_itm.data.load import split_problems
from clip_itm.data.rows import Split
from clip_itm.data.skipped import find_absent, notes, shown
from clip_itm.visible import counted, visible

TOKEN_BATCH = 1000


@dataclass
class SplitReport:
    """What was found in one split. Lists name images (file or id) and captions (id, mostly file:line)."""

    images: int
    captions: int
    sha256: str
    captions_per_image: dict[int, int]  # number of captions -> number of images
    length: dict[str, float]  # of captions: mean, median, p99, max, in `length_unit`
    length_unit: str  # "tokens" or "words"
    cut_captions: int | None = None  # longer than `max_tokens`; None if no tokenizer was given
    max_tokens: int | None = None
    skipped: list[str] = field(default_factory=list)  # missing images, by skip_missing
    skipped_broken: list[str] = field(default_factory=list)  # by skip_broken
    missing: list[str] = field(default_factory=list)
    zero_sized: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    odd_captions: dict[str, list[str]] = field(default_factory=dict)  # wrong encoding and the like -> captions
    formats: dict[str, int] = field(default_factory=dict)
    traits: dict[str, list[str]] = field(default_factory=dict)  # CMYK, greyscale, ... -> images
    regions: str | None = None  # precomputed regions per image: their number, width and type
    damaged_regions: list[str] = field(default_factory=list)  # images whose features are all zero or not all finite


@dataclass
class CheckReport:
    """What `check_splits` found: `problems` prevent training, `leaks` make metrics meaningless, `warnings` do neither.

    `duplicates` are groups of byte-identical images; those that several splits share are leaks.
    """

    splits: dict[str, SplitReport] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether training can start: no problems and no leaks."""
        return not self.problems and not self.leaks

    def as_dict(self) -> dict:
        """The report as plain JSON."""
        return {"ok": self.ok, **asdict(self)}

    def as_text(self) -> str:
        """The report for a terminal: a table with a column per split, then warnings, leaks, problems and a verdict."""
        output = StringIO()
        console = Console(file=output, width=120, highlight=False)
        if self.splits:
            console.print(self._table())
        for title, lines in (("warning", self.warnings), ("LEAK", self.leaks), ("PROBLEM", self.problems)):
            for line in lines:
                console.print(Text(visible(f"{title}: {line}", kept="\n")), soft_wrap=True)
        console.print(self._verdict())
        return output.getvalue()

    def _verdict(self) -> str:
        if self.problems:
            return f"Training would fail: {len(self.problems)} problems."
        return "Training would be judged by photos of another split." if self.leaks else "Training can start."

    def _table(self) -> Table:
        table = Table("")
        for name in self.splits:
            table.add_column(Text(visible(name)))
        columns = [_cells(report) for report in self.splits.values()]
        for label in dict.fromkeys(label for cells in columns for label in cells):
            table.add_row(Text(visible(label)), *(cells.get(label, "0") for cells in columns))
        return table


def check_splits(
    splits: dict[str, Split],
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    max_tokens: int | None = None,
    progress: bool = True,
    workers: int | None = None,
    read_images: ReadImages | None = None,
) -> CheckReport:
    """Check everything in `splits` (from `load_splits(config, verify=False)`).

    `count_tokens` gives the length of each caption of a list in tokens, special ones included, before cutting to
    `max_tokens`; if None, lengths are in words. Images are decoded by `workers` threads (default: one per core); those
    that could be read are recorded in `read_images`, so that training need not check them again.

    Example:
        >>> import tempfile
        >>> from clip_itm.data.configuration import SampleData
        >>> from clip_itm.data.load import load_splits
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = SampleData(train_images=2, val_images=1, test_images=1, cache_dir=folder)
        ...     check_splits(load_splits(data, verify=False), progress=False).ok
        True
    """
    report = CheckReport(problems=split_problems(splits))
    for name in ("train", "val"):  # the best checkpoint is chosen on val
        if splits and name not in splits:
            report.problems.append(f"there is no {name} split, only {', '.join(splits)}")
    occurrences: dict[str, list[tuple[str, str]]] = defaultdict(list)  # digest -> (split, image)
    for name, split in splits.items():
        report.splits[name] = own = _describe_captions(split, count_tokens, max_tokens, progress)
        if split.regions is not None:
            _check_regions(own, split, progress)
        else:
            for shown_name, facts in _check_images(own, split, progress, workers, read_images):
                if facts.digest is not None:
                    occurrences[facts.digest].append((name, shown_name))
        report.problems += _image_problems(name, own)
        report.warnings += _split_warnings(name, own)
    _report_duplicates(report, occurrences)
    report.warnings += dict.fromkeys(note for split in splits.values() for note in notes(split))
    return report


def _check_images(
    report: SplitReport, split: Split, progress: bool, workers: int | None, read_images: ReadImages | None
) -> Iterator[tuple[str, ImageFacts]]:
    absent = {found.row: found for found in find_absent(split.rows)}
    report.zero_sized = [found.name for found in absent.values() if found.reason == "0 bytes"]
    report.missing = [str(found) for found in absent.values() if found.reason != "0 bytes"]
    present = [row for row in range(len(split)) if row not in absent]
    whole = []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        inspected = pool.map(lambda row: _inspect_row(split.rows, row), present)
        bar = tqdm(inspected, desc=f"photos of {split.name}", total=len(present), disable=not progress)
        for shown_name, identity, facts in bar:
            _count_image(report, shown_name, facts)
            if facts.problem is None:
                whole.append(identity)
            yield shown_name, facts
    if read_images is not None:
        read_images.keep(whole)


def _check_regions(report: SplitReport, split: Split, progress: bool) -> None:
    features = split.regions.features
    report.regions = f"{features.shape[1]} x {features.shape[2]} {features.dtype}"
    ids = split.pairs.image_ids
    with tqdm(desc=f"regions of {split.name}", total=len(split), disable=not progress) as bar:
        for read, damaged in split.regions.damaged():
            report.damaged_regions += [ids[shown_name].as_py() for shown_name in damaged]
            bar.update(read)


def _report_duplicates(report: CheckReport, occurrences: dict[str, list[tuple[str, str]]]) -> None:
    within, shared = defaultdict(list), defaultdict(list)
    for same in occurrences.values():
        if len(same) < 2:
            continue
        report.duplicates.append([f"{name}: {shown_name}" for name, shown_name in same])
        names = tuple(dict.fromkeys(name for name, _ in same))
        if len(names) == 1:
            within[names[0]].append(" = ".join(shown_name for _, shown_name in same))
        else:
            shared[names].append(" = ".join(report.duplicates[-1]))
    for name, groups in within.items():
        report.warnings.append(f"byte-identical photos in split {name}: {shown(groups)}")
    for names, groups in shared.items():
        report.leaks.append(
            f"{counted(len(groups), 'photo is', 'photos are')} in split {' and in split '.join(names)}, byte by "
            f"byte ({shown(groups)}); remove "
            "them from all but one, or choose the splits by a column or by lists of photos"
        )


def _inspect_row(rows: Dataset, row: int) -> tuple[str, bytes | None, ImageFacts]:
    stored = rows[row]
    shown_name = image_name(stored)
    image = stored["image"] | {"path": shown_name}
    identity = image_identity(image)  # before decoding, so that an image replaced meanwhile does not count as known
    return shown_name, identity, inspect_image(image)


def _count_image(report: SplitReport, shown_name: str, facts: ImageFacts) -> None:
    report.formats[facts.format] = report.formats.get(facts.format, 0) + 1
    if facts.problem is not None:
        getattr(report, facts.problem).append(facts.message)
    for trait in facts.traits:
        report.traits.setdefault(trait, []).append(shown_name)


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
        images=len(split),
        captions=len(captions),
        sha256=split.sha256,
        captions_per_image={int(count): images for count, images in sorted(Counter(counts.tolist()).items())},
        length={name: float(value) for name, value in length.items()},
        length_unit="tokens" if count_tokens else "words",
        cut_captions=int((lengths > max_tokens).sum()) if count_tokens and max_tokens else None,
        max_tokens=max_tokens,
        skipped=list(split.missing),
        skipped_broken=[f"{item} ({reason})" for item, kind, reason in split.skipped if kind == "broken"],
        odd_captions=dict(odd),
    )


def caption_oddity(caption: str) -> str | None:
    """The sign that a caption was read in a wrong encoding or holds more than text; None for a normal one.

    Example:
        >>> caption_oddity("a cafÃ©")
        'mojibake (UTF-8 read as another encoding)'
    """
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


def _image_problems(name: str, report: SplitReport) -> list[str]:
    problems = []
    for label, images in (("missing", report.missing), ("empty (0 bytes)", report.zero_sized)):
        if images:
            advice = "put them there or set data.skip_missing: true"
            problems.append(
                f"split {name}: {counted(len(images), 'photo is', 'photos are')} {label}: {shown(images)}; {advice}"
            )
    for label, images in (("truncated", report.truncated), ("unreadable", report.unreadable)):
        if images:
            listed = shown(images, separator="\n  ")
            problems.append(
                f"split {name}: {counted(len(images), 'photo is', 'photos are')} {label}:\n  {listed}\n"
                "  put good copies there or set data.skip_broken: true"
            )
    if report.damaged_regions:
        problems.append(
            f"split {name}: {counted(len(report.damaged_regions), 'photo has', 'photos have')} features that "
            "are not finite or all zero: "
            f"{shown(report.damaged_regions)}; extract them anew"
        )
    return problems


def _split_warnings(name: str, report: SplitReport) -> list[str]:
    warnings = []
    if report.skipped:
        count = counted(len(report.skipped), "missing photo is", "missing photos are")
        warnings.append(f"split {name}: {count} left out: {shown(report.skipped)}")
    if report.skipped_broken:
        count = counted(len(report.skipped_broken), "unreadable photo is", "unreadable photos are") + " left out"
        warnings.append(f"split {name}: {count}: {shown(report.skipped_broken)}")
    if extreme := report.traits.get(EXTREME):
        warnings.append(
            f"split {name}: {counted(len(extreme), 'photo has', 'photos have')} a side of less than "
            f"{SMALLEST_SIDE} pixels, or one more than "
            f"{EXTREME_RATIO} times as long as the other: {shown(extreme)}"
        )
    if report.cut_captions:
        warnings.append(
            f"split {name}: {counted(report.cut_captions, 'caption is', 'captions are')} cut to "
            f"{report.max_tokens} tokens"
        )
    for oddity, captions in report.odd_captions.items():
        warnings.append(
            f"split {name}: {counted(len(captions), 'caption has', 'captions have')} {oddity}: {shown(captions)}"
        )
    return warnings


def _cells(report: SplitReport) -> dict[str, str]:
    """Label -> text of one column of the table."""
    per_image = ", ".join(f"{count}: {images}" for count, images in report.captions_per_image.items())
    cells = {"hash": report.sha256[:12], "images": str(report.images), "captions": str(report.captions)}
    cells["captions per photo: photos"] = per_image
    length = report.length
    summary = f"{length['mean']:.1f} / {length['median']:.0f} / {length['p99']:.0f} / {length['max']:.0f}"
    cells[f"{report.length_unit} mean / median / 99 % / max"] = summary
    if report.cut_captions is not None:
        cells[f"captions over {report.max_tokens} tokens"] = str(report.cut_captions)
    if report.regions is not None:
        return cells | {"regions per photo": report.regions, "damaged photos": str(len(report.damaged_regions))}
    cells |= {f"{kind} files": str(count) for kind, count in sorted(report.formats.items())}
    cells |= {f"{trait} photos": str(len(images)) for trait, images in report.traits.items()}
    if report.skipped_broken:
        cells["left out as broken"] = str(len(report.skipped_broken))
    for label in ("skipped", "missing", "zero_sized", "unreadable", "truncated"):
        cells[f"{label.replace('_', ' ')} photos"] = str(len(getattr(report, label)))
    return cells
