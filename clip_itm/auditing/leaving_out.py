"""Pairs that a cleaned data set leaves out because of their groups, whatever their probability."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_itm.auditing.groups import KINDS
from clip_itm.auditing.table import Audit


@dataclass(frozen=True, eq=False)
class LeftOut:
    """What is left out because of its groups: `pairs` bool [N] and `images` bool [P] (with all captions, on purpose).

    `kinds`: how many pairs of each kind.
    """

    pairs: np.ndarray
    images: np.ndarray
    kinds: dict[str, int]


def require_kinds(kinds: Sequence[str]) -> None:
    """Raise ValueError for an unknown kind of group."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        names = ", ".join(f'"{kind}"' if " " in kind else kind for kind in KINDS)
        raise ValueError(f"--leave-out {unknown[0]}: there are no groups of this kind; expected {names}")


def said(audit: Audit) -> tuple[np.ndarray, np.ndarray]:
    """bool [N] each: pairs marked wrong, which go, and pairs marked right or fixed, which stay."""
    goes, stays = np.zeros((2, len(audit.clean.values)), dtype=bool)
    if audit.marked is not None:
        kinds = np.array([mark.mark for mark in audit.marked.marks], dtype=str)
        goes[audit.marked.pair[kinds == "wrong"]] = True
        stays[audit.marked.pair[np.isin(kinds, ("right", "fixed"))]] = True
    return goes, stays


def left_out(audit: Audit, kinds: Sequence[str]) -> LeftOut:
    """The pairs of all groups of some `kinds` (of `KINDS`).

    Photos of which another split has a copy go with all their captions; of copies within the split, the photo stays
    whose captions are the most probable on average. Captions marked right or fixed stay if their photo does.
    """
    image, values = audit.split.pairs.image, audit.clean.values
    out = LeftOut(np.zeros(len(image), dtype=bool), np.zeros(len(audit.split), dtype=bool), {})
    stays = said(audit)[1]
    trust = np.bincount(image, values, len(out.images)) / np.maximum(1, np.bincount(image, minlength=len(out.images)))
    for kind in dict.fromkeys(kinds):
        before = out.pairs.copy()
        for group in audit.groups:
            if group.kind == kind == "copies":
                for part in group.parts:
                    there = part[~out.images[part]]  # a leak among them is gone already
                    out.images[np.delete(there, trust[there].argmax()) if len(there) else there] = True
            elif group.kind == kind == "leak":
                out.images[image[group.pairs]] = True
            elif group.kind == kind:
                out.pairs[group.pairs] = True
        out.pairs[out.images[image]] = True
        out.pairs[stays & ~out.images[image]] = False
        out.kinds[kind] = int((out.pairs & ~before).sum())
    return out
