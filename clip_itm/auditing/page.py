"""The most suspicious pairs of an audit as one HTML file: images inside, no network, usable without a mouse."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm.auto import tqdm

from clip_itm.auditing.table import ADVICE, BLIND_ADVICE, THRESHOLD, TRAINED, Audit
from clip_itm.data.images import read_image, small_jpeg
from clip_itm.pages import render

SIDE = 176  # longer side of an image on the page, pixels


def audit_page(audit: Audit, top: int) -> str:
    """The page of the `top` most suspicious pairs, without any that is certainly right: so of none, where no wrong
    captions were found. An image that cannot be read leaves an empty place."""
    pairs, captions = audit.split.pairs, audit.noise.apply(audit.split.pairs)
    rows = list(audit.head(top))
    images = pairs.image[[row["pair"] for row in rows]] if rows else np.empty(0, dtype=np.int64)
    thumbnails = make_thumbnails(audit, np.unique(images))
    for row, image in zip(rows, images.tolist(), strict=True):
        start, end = np.searchsorted(pairs.image, [image, image + 1])
        others = [(captions[k].as_py(), audit.clean.values[k]) for k in range(start, end) if k != row["pair"]]
        row |= {"image": image, "jpeg": thumbnails[image], "others": others}
    return render(
        "audit.html",
        title=f"Suspicious captions: {audit.title}",
        pairs=len(pairs),
        split=audit.name,
        method=audit.clean.method,
        sentence=audit.sentence,
        trained=TRAINED if audit.is_trained else "",
        facts=facts_of(audit),
        scores=lines_of_scores(audit),
        number_of_scores=len(audit.estimate.scores),
        rows=rows,
        truth_is_known=audit.known_wrong is not None,
    )


def facts_of(audit: Audit) -> list[tuple[str, str]]:
    """What the header of the page and the table in the terminal say: name and value."""
    noise, pairs, found = audit.noise, len(audit.clean.values), audit.found
    drawn = f"{noise.ratio:g} ({noise.level} level), {noise.sha256[:12]}" if noise.ratio else "none drawn"
    facts = [
        ("data", f"{audit.source}, {pairs:,} pairs of {len(audit.split):,} photos"),
        ("noise", drawn),
        ("judged by", audit.clean.method),
        ("wrong", audit.sentence),
    ]
    if audit.is_trained:
        facts.append(("trained on them", f"{TRAINED}; {ADVICE}"))
    if audit.is_blind:
        facts.append(("caution", BLIND_ADVICE))
    facts.append((f"probability below {THRESHOLD:g}", percent(audit.suspects, pairs)))
    facts += [(f"no score {name}", why) for name, why in audit.estimate.missing.items()]
    if found is None:
        return [*facts, ("really wrong", "not known" if audit.known_wrong is None else "none")]
    return [
        *facts,
        ("really wrong", percent(found["wrong"], pairs)),
        ("AUC", "not defined: all are wrong" if found["auc"] is None else f"{found['auc']:.3f}"),
        (f"precision among the {found['wrong']:,} most suspicious", f"{found['precision']:.1%}"),
    ]


def lines_of_scores(audit: Audit) -> list[tuple[str, ...]]:
    """A table of the scores side by side, the default first, with a header.

    Agreement: the part of the worst pairs of the default score that are among a score's own worst.
    """
    figures = audit.figures()
    known = [name for name in ("auc", "precision", "ece") if any(name in row for row in figures)]
    lines = [("score", "probability", "agreement", *(name.upper() if len(name) == 3 else name for name in known))]
    for number, row in enumerate(figures):
        score = audit.estimate.scores[row["score"]]
        said = "calibrated" if row["calibrated"] else f"none: {score.why}"
        if number == 0:
            said = "too high; the default" if audit.is_trained else "calibrated; the default"
        agreement = "" if row["agreement"] is None else f"{row['agreement']:.1%}"
        cells = ("" if row.get(name) is None else f"{row[name]:.3f}" for name in known)
        lines.append((row["score"], said, agreement, *cells))
    return lines


def percent(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def make_thumbnails(audit: Audit, indices: np.ndarray) -> dict[int, bytes | None]:
    """JPEG bytes of images of the split by number; None where one cannot be read."""
    images = audit.split.rows.select_columns(["image"])

    def thumbnail(index: int) -> bytes | None:
        try:
            return small_jpeg(read_image(images[index]["image"], draft_size=SIDE), SIDE)
        except ValueError:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = tqdm(pool.map(thumbnail, indices.tolist()), total=len(indices), desc="small photos", leave=False)
        return dict(zip(indices.tolist(), made, strict=True))
