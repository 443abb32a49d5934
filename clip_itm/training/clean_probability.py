"""How likely it is that each training caption belongs to its image, as a run sees it.

Methods for wrong captions estimate this while they train, and the run keeps it in a file; for any other run it is
estimated afterwards (`auditing/estimate.py`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_itm.calibration.reliability import calibration_error
from clip_itm.data.noise import CaptionNoise
from clip_itm.evaluation.detection import auc, precision_at
from clip_itm.files import reading_arrays, save_arrays

FILE = "clean_probability.npz"


@dataclass(frozen=True, eq=False)
class CleanProbability:
    """`values` float32 [N] in [0, 1]: probability that the caption that pair k got belongs to its image.

    `ranking` float32 [N] orders pairs of equal probability (higher is cleaner), such as minus the loss; `method` says
    in one sentence how it was estimated; `noise_sha256` names the pairs (`CaptionNoise.sha256`). `share`: the share of
    wrong pairs and the ends of its 95 % interval, if it was estimated; `is_weak`: the judge could not tell the share
    (`Judgement`). Raises ValueError for other shapes, values outside [0, 1], and NaN.

    Example:
        >>> values, ranking = np.array([0.9, 0.1, 0.9]), np.array([1.0, 0.0, 2.0])
        >>> clean = CleanProbability(values, ranking, method="by hand", noise_sha256="")
        >>> clean.order()
        array([1, 0, 2])
    """

    values: np.ndarray
    ranking: np.ndarray
    method: str
    noise_sha256: str
    share: tuple[float, float, float] | None = None
    is_weak: bool = False

    def __post_init__(self):
        if self.values.shape != self.ranking.shape or self.values.ndim != 1:
            raise ValueError(f"expected values [N] and ranking [N], got {self.values.shape} and {self.ranking.shape}")
        if not ((self.values >= 0) & (self.values <= 1)).all() or np.isnan(self.ranking).any():
            raise ValueError("probabilities must lie between 0 and 1, and no ranking may be NaN")

    def order(self) -> np.ndarray:
        """Indices of pairs int64 [N], most suspicious first: by probability, then ranking, then index."""
        return np.lexsort((self.ranking, self.values))

    def suspicion(self) -> np.ndarray:
        """Scores int64 [N], higher is more suspicious, in the order of `order()`; pairs equal in both share one."""
        order = self.order()
        values, ranking = self.values[order], self.ranking[order]
        is_new = (values[1:] != values[:-1]) | (ranking[1:] != ranking[:-1])
        suspicion = np.empty(len(order), dtype=np.int64)
        suspicion[order] = -np.cumsum([0, *is_new])
        return suspicion

    @property
    def is_calibrated(self) -> bool:
        """Whether the share has an interval: then probabilities come from made mismatches, not from a guess."""
        return self.share is not None and self.share[1] < self.share[2]

    @property
    def sha256(self) -> str:
        """Hash of the probabilities, their order and the pairs."""
        digest = hashlib.sha256(self.noise_sha256.encode())
        for array in (self.values, self.ranking):
            digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write an npz without pickle."""
        save_arrays(
            path,
            **({} if self.share is None else {"share": np.array(self.share)}),
            **({"is_weak": np.array(True)} if self.is_weak else {}),
            values=self.values.astype(np.float32),
            ranking=self.ranking.astype(np.float32),
            method=self.method,
            noise_sha256=self.noise_sha256,
        )

    @classmethod
    def load(cls, path: str | Path, advice: str = "delete it") -> "CleanProbability":
        """Read what `save` wrote. Raises ValueError, with `advice`, if the file is something else or is damaged."""
        with reading_arrays(
            path,
            missing=f"{path}: there is no such file",
            wrong=f"{path} holds no clean probabilities ({{error}}); {advice}",
        ) as arrays:
            return cls(
                values=arrays["values"].astype(np.float32, casting="safe"),
                ranking=arrays["ranking"].astype(np.float32, casting="safe"),
                method=str(arrays["method"]),
                noise_sha256=str(arrays["noise_sha256"]),
                share=tuple(map(float, arrays["share"])) if "share" in arrays else None,
                is_weak="is_weak" in arrays,
            )


def probabilities_of(noise: CaptionNoise, file: str, key: str) -> CleanProbability:
    """The content of `file`, named by `key` of the recipe. Raises ValueError if it belongs to other training pairs."""
    try:
        found = CleanProbability.load(file, advice="name the clean_probability.npz of a run")
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if found.noise_sha256 != noise.sha256 or len(found.values) != len(noise.source):
        raise ValueError(
            f"{key}: {file} belongs to other training pairs ({len(found.values)} with noise "
            f"{found.noise_sha256[:12]}; these are {len(noise.source)} with noise {noise.sha256[:12]}); use the data "
            "and the noise that it belongs to"
        )
    return found


def wrong_pairs_found(clean: CleanProbability, known_wrong: np.ndarray | None) -> dict[str, float | int] | None:
    """How well probabilities find the wrong pairs, `known_wrong` bool [N].

    `wrong`: the number of wrong pairs; `auc`: of finding them; `precision`: the fraction of wrong pairs among the
    `wrong` most suspicious ones; `ece`: the calibration error of the probabilities. None if the truth is not known, or
    all pairs are right.
    """
    if known_wrong is None or not known_wrong.any():
        return None
    suspicion, wrong = clean.suspicion(), int(known_wrong.sum())
    return {
        "wrong": wrong,
        "auc": auc(suspicion, known_wrong),
        "precision": precision_at(suspicion, known_wrong, wrong),
        "ece": calibration_error(clean.values, ~known_wrong),
    }


def share_found(clean: CleanProbability, known_wrong: np.ndarray | None) -> dict[str, float | None] | None:
    """The `share` of wrong pairs, the ends `low` and `high` of its interval, and the `true` share if it is known.

    None if the method does not estimate it. The `share` of a weak judge is None.
    """
    if clean.share is None:
        return None
    share, low, high = clean.share
    true = None if known_wrong is None else float(known_wrong.mean())
    return {"share": None if clean.is_weak else share, "low": low, "high": high, "true": true}
