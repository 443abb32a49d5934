"""Which pairs a cleaned data set leaves out, whether the estimate allows that, the pairs beside the line, and the data.

from clip_itm.auditing.cleaning import clean
from clip_itm.runs.publish import push_data

found = audit("photos", "openai/clip-vit-base-patch32")
clean(found, "cleaned", layout="datasets")
push_data(Path("cleaned"), "me/products-cleaned")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_itm.auditing.leaving_out import LeftOut, left_out, said
from clip_itm.auditing.table import Audit
from clip_itm.auditing.words import BLIND_ADVICE
from clip_itm.data.cleaned import write_cleaned
from clip_itm.visible import counted

SHOWN = 10  # pairs on each side of the line


def kept_pairs(
    audit: Audit,
    below: float | None = None,
    drop_fraction: float | None = None,
    down_weight: bool = False,
    budget: int | None = None,
    by_marks: bool = False,
) -> tuple[np.ndarray, dict[str, Any]]:
    """bool [N], which pairs stay, and the rule as `cleaned.json` has it.

    below: pairs with a lower probability go. drop_fraction: this share goes, the most suspicious pairs. down_weight:
    none goes. by_marks: pairs marked wrong go. Without any of these, as many pairs go as the estimate finds wrong, but
    at most `budget`. Raises ValueError for `by_marks` without a mark of these pairs.

    Whatever the rule, pairs marked wrong go first, and those marked right or fixed stay.
    """
    count = len(audit.clean.values)
    keep = np.ones(count, dtype=bool)
    if down_weight:
        return keep, {"down_weight": True}
    goes, stays = said(audit)
    if by_marks:
        if audit.marked is None or not audit.marked.marks:
            lost = 0 if audit.marked is None else audit.marked.unmatched
            found = f"all {lost:,} marks are of other pairs" if lost else "there are no marks"
            raise ValueError(
                f"--by-marks: {found}; name the marks of these data (and of the captions as they were judged)"
            )
        return ~goes, {"by_marks": True}
    if below is not None:
        return (audit.clean.values >= below) & ~goes | stays, {"below": below}
    order = audit.clean.order()
    order = order[~stays[order]]
    order = np.concatenate([order[goes[order]], order[~goes[order]]])
    share = audit.estimate.share if drop_fraction is None else drop_fraction
    dropped = round(share * count)
    if budget is not None:
        dropped = min(dropped, budget)
    elif drop_fraction is None:
        dropped = max(dropped, int(goes.sum()))
    keep[order[:dropped]] = False
    rule: dict[str, Any] = {"share_found": share} if drop_fraction is None else {"drop_fraction": drop_fraction}
    return keep, rule | ({} if budget is None else {"budget": budget})


def objections(audit: Audit, keep: np.ndarray, out: LeftOut) -> list[str]:
    """Objections to leaving out these pairs, a sentence each; none if all is well.

    keep: bool [N]. out: what is also left out because of its groups; these pairs do not count towards the interval, and
    photos that go as copies may lose all captions.
    """
    found, dropped = [], int((~keep).sum())
    doubtful = ~keep & ~said(audit)[0]  # for the others, a person said so
    allowed = int(np.ceil(audit.most * len(keep)))
    if dropped > allowed:
        found.append(
            f"{counted(dropped, 'pair would', 'pairs would')} be left out ({dropped / len(keep):.1%}), and by "
            f"the interval at most {allowed:,} "
            f"({audit.most:.1%}) are wrong"
        )
    if audit.is_blind and doubtful.any():
        found.append(BLIND_ADVICE)
    images, stays = audit.split.pairs.image, keep & ~out.pairs
    lost = np.setdiff1d(images[doubtful | out.pairs], images[stays])
    lost = lost[~out.images[lost]]
    if len(lost):
        first = audit.split.pairs.image_ids[int(lost[0])].as_py()
        found.append(
            f"1 photo would lose its last caption and be left out ({first})"
            if len(lost) == 1
            else f"{len(lost):,} photos would lose their last caption and be left out, such as {first}"
        )
    return found


def beside_the_line(audit: Audit, keep: np.ndarray, shown: int = SHOWN) -> tuple[list[dict], list[dict]]:
    """Rows of the table: the last ones that go and the first ones that stay, both nearest to the line first."""
    order = audit.clean.order()
    stays = keep[order]
    last = np.flatnonzero(~stays)[::-1][:shown]
    first = np.flatnonzero(stays)[:shown]
    return tuple(audit.scored.take(rows).to_pylist() for rows in (last, first))


def clean(
    audit: Audit,
    folder: str | Path,
    layout: str = "folder",
    *,
    below: float | None = None,
    drop_fraction: float | None = None,
    down_weight: bool = False,
    budget: int | None = None,
    by_marks: bool = False,
    leave_out: Sequence[str] = (),
    copy_images: bool = False,
    force: bool = False,
) -> dict[str, int]:
    """Write the data without the pairs that `kept_pairs` leaves out into an empty folder: see `write_kept`."""
    keep, rule = kept_pairs(audit, below, drop_fraction, down_weight, budget, by_marks)
    settings = {"down_weight": down_weight, "copy_images": copy_images, "force": force}
    return write_kept(audit, keep, rule, left_out(audit, leave_out), Path(folder), layout, **settings)


def write_kept(
    audit: Audit,
    keep: np.ndarray,
    rule: dict[str, Any],
    out: LeftOut,
    folder: Path,
    layout: str = "folder",
    *,
    down_weight: bool = False,
    copy_images: bool = False,
    force: bool = False,
) -> dict[str, int]:
    """Write the pairs of `keep` bool [N] in a layout (`data/cleaned_layouts.py`); returns counts of pairs and photos.

    rule: how `keep` was made. out: what also goes because of its groups (`left_out`). down_weight: captions are
    weighted by their probability. Raises ValueError with the `objections`, unless `force`.
    """
    against = objections(audit, keep, out) if keep.any() else []
    if against and not force:
        raise ValueError(
            f"{'; '.join(against)}. Look at them first; leave out fewer (--budget, --drop-fraction, --below), keep all "
            "by their weight (--down-weight), or do it with --force"
        )
    keep = keep & ~out.pairs
    values, weight = audit.clean.values.copy(), audit.split.pairs.weight
    fixed = {} if audit.marked is None else audit.marked.texts
    values[list(fixed)] = 1
    if down_weight:
        weight = values if weight is None else weight * values
    origin = {
        **({"data": audit.title, "model": audit.model} if audit.run is None else {"run": str(audit.run.absolute())}),
        "recipe_sha256": audit.recipe_sha256,
        "noise_sha256": audit.noise.sha256,
        f"{audit.name}_sha256": audit.split.sha256,
        "method": audit.clean.method,
        "trained_on": audit.is_trained,
        "wrong_share": dict(zip(("share", "low", "high"), audit.share, strict=True)),
        "rule": rule | ({"leave_out": out.kinds} if out.kinds else {}) | ({"force": True} if against else {}),
    }
    if audit.marked is not None:
        origin["marks"] = {**audit.marked.counts, "unmatched": audit.marked.unmatched, "sha256": audit.marked.sha256}
    if (wrong := audit.known_wrong) is not None:
        wrong = wrong.copy()
        wrong[list(fixed)] = False
        origin["known_wrong"] = {"kept": int((wrong & keep).sum()), "dropped": int((wrong & ~keep).sum())}
    settings = {"cleaned": audit.name, "layout": layout, "fixed": fixed}
    return write_cleaned(folder, audit.splits, audit.noise, keep, weight, origin, copy_images, **settings)
