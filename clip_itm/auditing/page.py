"""Groups and the most suspicious pairs of an audit as one HTML file: images inside, no network, no mouse needed."""

import numpy as np

from clip_itm.auditing.group_page import nothing_found, shown_groups, with_examples
from clip_itm.auditing.sampling import THRESHOLD
from clip_itm.auditing.suggested import Suggested
from clip_itm.auditing.table import Audit
from clip_itm.auditing.thumbnails import make_thumbnails
from clip_itm.auditing.words import ADVICE, BLIND_ADVICE, FEW_ADVICE, TRAINED, WEAK_ADVICE
from clip_itm.pages import render
from clip_itm.visible import counted

SIDE, LARGE = 176, 480  # pixels of photos, and of those that stay sharp when they are enlarged
ENLARGED = 100  # worst pairs, which also show photos that are not proposed: all 500 would make a page of 30 MB


def audit_page(audit: Audit, top: int) -> str:
    """The page of all groups and of the `top` most suspicious pairs.

    Pairs that are certainly right are left out, which is all of them if no wrong captions were found. An image that
    cannot be read leaves an empty place.
    """
    groups, more_groups = shown_groups(audit)
    rows = audit.table.slice(0, min(top, audit.doubted)).to_pylist()
    for place, row in enumerate(rows):
        row |= {
            "image": int(audit.split.pairs.image[row["pair"]]),
            "others": _siblings(audit, row["pair"]),
            "suggested": _suggested(audit, row["pair"], with_photos=place < ENLARGED),
        }
    found = [answer.index for row in rows if row["suggested"] for answer in row["suggested"].photos]
    images = [row["image"] for row in rows]
    small = make_thumbnails(audit.photos, [*images[ENLARGED:], *found], SIDE)
    large = make_thumbnails(audit.photos, images[:ENLARGED], LARGE)
    for place, row in enumerate(rows):
        row["jpeg"] = (large if place < ENLARGED else small)[row["image"]]
    return render(
        "audit.html",
        title=f"Suspicious captions: {audit.title}",
        pairs=len(audit.split.pairs),
        split=audit.name,
        method=audit.clean.method,
        sentence=audit.sentence,
        trained=TRAINED if audit.is_lower_bound else "",
        facts=facts_of(audit),
        scores=lines_of_scores(audit),
        number_of_scores=len(audit.estimate.scores),
        groups=with_examples(audit, groups),
        more_groups=more_groups,
        no_groups=nothing_found(audit),
        rows=rows,
        jpegs=small,
        truth_is_known=audit.known_wrong is not None,
    )


def _siblings(audit: Audit, pair: int) -> list[tuple[str, float]]:
    """The other captions of the photo of a pair, and how likely they are right."""
    image = audit.split.pairs.image
    start, end = np.searchsorted(image, [image[pair], image[pair] + 1])
    return [(audit.captions[k], audit.clean.values[k]) for k in range(start, end) if k != pair]


def _suggested(audit: Audit, pair: int, with_photos: bool) -> Suggested | None:
    """What is suggested for a pair; only those photos that are proposed, unless `with_photos`."""
    found = audit.suggestions.get(pair)
    if found is None or with_photos:
        return found
    return found._replace(photos=[answer for answer in found.photos if answer.is_proposed])


def facts_of(audit: Audit) -> list[tuple[str, str]]:
    """What the header of the page and the table in the terminal say: name and value."""
    noise, pairs, found = audit.noise, len(audit.clean.values), audit.found
    drawn = f"{noise.ratio:g} ({noise.level} level), {noise.sha256[:12]}" if noise.ratio else "none drawn"
    facts = [
        ("data", f"{audit.source}, {counted(pairs, 'pair')} of {counted(len(audit.split), 'photo')}"),
        ("noise", drawn),
        ("judged by", audit.clean.method),
        ("wrong", audit.sentence),
    ]
    if audit.marked is not None:
        facts.append(("marks", audit.marks_in_words))
    if audit.is_by_marks:
        facts.append(("wrong without marks", audit.sentence_without_marks))
    if audit.is_lower_bound:
        facts.append(("trained on them", f"{TRAINED}; {ADVICE}"))
    if audit.is_blind:
        facts.append(("caution", FEW_ADVICE if audit.share[0] == 0 else BLIND_ADVICE))
    if audit.estimate.is_weak and not audit.is_by_marks:
        facts.append(("caution", WEAK_ADVICE))
    facts.append((f"probability below {THRESHOLD:g}", percent(audit.suspects, pairs)))
    facts += [(f"no score {name}", why) for name, why in audit.estimate.missing.items()]
    if audit.embeddings is None:
        facts.append(("no suggestions", "this model compares more than two vectors"))
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

    Agreement: the fraction of the worst pairs of the default score that is among a score's own worst.
    """
    figures = audit.figures()
    known = [name for name in ("auc", "precision", "ece") if any(name in row for row in figures)]
    lines = [("score", "probability", "agreement", *(name.upper() if len(name) == 3 else name for name in known))]
    for number, row in enumerate(figures):
        score = audit.estimate.scores[row["score"]]
        said = "calibrated" if row["calibrated"] else f"none: {score.why}"
        if number == 0:
            said = f"{_of_default(audit)}; the default"
        agreement = "" if row["agreement"] is None else f"{row['agreement']:.1%}"
        cells = ("" if row.get(name) is None else f"{row[name]:.3f}" for name in known)
        lines.append((row["score"], said, agreement, *cells))
    return lines


def _of_default(audit: Audit) -> str:
    """What the probabilities of the default score are."""
    if audit.estimate.is_weak:
        return "by marks" if audit.is_by_marks else "none: how many are wrong is not known"
    return "too high" if audit.is_lower_bound else "calibrated"


def percent(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"
