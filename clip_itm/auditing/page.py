"""The most suspicious pairs of an audit as one HTML file: images inside, no network, usable without a mouse."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm.auto import tqdm

from clip_itm.auditing.table import THRESHOLD, Audit
from clip_itm.data.images import read_image, small_jpeg
from clip_itm.pages import render

SIDE = 176  # longer side of an image on the page, pixels


def audit_page(audit: Audit, top: int) -> str:
    """The page of the `top` most suspicious pairs. An image that cannot be read leaves an empty place."""
    pairs, captions = audit.train.pairs, audit.noise.apply(audit.train.pairs)
    rows = audit.table.slice(0, top).to_pylist()
    images = pairs.image[[row["pair"] for row in rows]]
    thumbnails = make_thumbnails(audit, np.unique(images))
    for row, image in zip(rows, images.tolist(), strict=True):
        start, end = np.searchsorted(pairs.image, [image, image + 1])
        others = [(captions[k].as_py(), audit.clean.values[k]) for k in range(start, end) if k != row["pair"]]
        row |= {"image": image, "jpeg": thumbnails[image], "others": others}
    return render(
        "audit.html",
        title=f"Suspicious captions: {audit.run}",
        pairs=len(pairs),
        method=audit.clean.method,
        facts=facts_of(audit),
        rows=rows,
        truth_is_known=audit.known_wrong is not None,
    )


def facts_of(audit: Audit) -> list[tuple[str, str]]:
    """What the header of the page and the table in the terminal say of a run: name and value."""
    noise, pairs, found = audit.noise, len(audit.clean.values), audit.found
    facts = [
        ("method", audit.recipe.head.kind),
        ("data", f"{audit.recipe.data.source}, {pairs:,} pairs of {len(audit.train):,} photos"),
        ("noise", f"{noise.ratio:g} ({noise.level} level), {noise.sha256[:12]}" if noise.ratio else "none drawn"),
        (f"probability below {THRESHOLD:g}", percent(audit.suspects, pairs)),
    ]
    if audit.clean.share is not None:
        share, low, high = (100 * part for part in audit.clean.share)
        facts.append(("wrong, by the run's own estimate", f"{share:.1f} % ({low:.1f} to {high:.1f} %)"))
    if found is None:
        return [*facts, ("really wrong", "not known" if audit.known_wrong is None else "none")]
    return [
        *facts,
        ("really wrong", percent(found["wrong"], pairs)),
        ("AUC", "not defined: all are wrong" if found["auc"] is None else f"{found['auc']:.3f}"),
        (f"precision among the {found['wrong']:,} most suspicious", f"{found['precision']:.1%}"),
    ]


def percent(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def make_thumbnails(audit: Audit, indices: np.ndarray) -> dict[int, bytes | None]:
    """JPEG bytes of images of the training split by number; None where one cannot be read."""
    images = audit.train.rows.select_columns(["image"])

    def thumbnail(index: int) -> bytes | None:
        try:
            return small_jpeg(read_image(images[index]["image"], draft_size=SIDE), SIDE)
        except ValueError:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = tqdm(pool.map(thumbnail, indices.tolist()), total=len(indices), desc="small photos", leave=False)
        return dict(zip(indices.tolist(), made, strict=True))
