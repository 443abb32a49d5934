"""Which pairs a cleaned data set leaves out, whether the estimate allows that, and the pairs beside the line."""

from typing import Any

import numpy as np

from clip_itm.auditing.table import BLIND_ADVICE, Audit

SHOWN = 10  # pairs on each side of the line


def kept_pairs(
    audit: Audit, below: float | None = None, drop_fraction: float | None = None, down_weight: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """bool [N], which pairs stay, and the rule in words of `cleaned.json`.

    below: those of a lower probability go. drop_fraction: that share goes, the most suspicious ones. down_weight: none
    goes. Without any of them, as many go as there are wrong ones by the estimate.
    """
    keep = np.ones(len(audit.clean.values), dtype=bool)
    if down_weight:
        return keep, {"down_weight": True}
    if below is not None:
        return audit.clean.values >= below, {"below": below}
    share = audit.estimate.share if drop_fraction is None else drop_fraction
    keep[audit.clean.order()[: round(share * len(keep))]] = False
    return keep, {"share_found": share} if drop_fraction is None else {"drop_fraction": drop_fraction}


def objections(audit: Audit, keep: np.ndarray) -> list[str]:
    """What speaks against leaving out the pairs that are not kept (bool [N]): a sentence each, none if all is well."""
    found, dropped = [], int((~keep).sum())
    allowed = int(np.ceil(audit.most * len(keep)))
    if dropped > allowed:
        found.append(
            f"{dropped:,} pairs would be left out ({dropped / len(keep):.1%}), and by the interval at most {allowed:,} "
            f"({audit.most:.1%}) are wrong"
        )
    if audit.is_blind and dropped:
        found.append(BLIND_ADVICE)
    images = audit.split.pairs.image
    lost = np.setdiff1d(images[~keep], images[keep])
    if len(lost):
        first = audit.split.pairs.image_ids[int(lost[0])].as_py()
        found.append(
            f"1 photo would lose its last caption and be left out ({first})"
            if len(lost) == 1
            else f"{len(lost):,} photos would lose their last caption and be left out, such as {first}"
        )
    return found


def beside_the_line(audit: Audit, keep: np.ndarray, shown: int = SHOWN) -> tuple[list[dict], list[dict]]:
    """Rows of the table: the last ones that go, and the first ones that stay, both nearest to the line first."""
    order = audit.clean.order()
    stays = keep[order]
    last = np.flatnonzero(~stays)[::-1][:shown]
    first = np.flatnonzero(stays)[:shown]
    return tuple(audit.table.take(rows).to_pylist() for rows in (last, first))
