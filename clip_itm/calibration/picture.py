"""Pictures of a judgement: scores of pairs next to those of made mismatches, and expected against observed."""

from pathlib import Path

import numpy as np

from clip_itm.calibration.estimate import Judgement
from clip_itm.calibration.reliability import calibration_error, reliability
from clip_itm.evaluation.plot import COLORS, INK, drawing, has_matplotlib

PAIRS, WRONG = COLORS[0], COLORS[1]
Z95 = 1.96


def draw_judgement(judgement: Judgement, path: Path) -> bool:
    """Write a PNG: how many pairs and mismatches have which score, and the probability that a pair is right.

    Returns False, and writes nothing, if matplotlib is missing.
    """
    if not has_matplotlib():
        return False
    with drawing(path, 1, (7.2, 5.0), heights=(3, 1.3)) as (scores, probability):
        draw_scores(scores, judgement)
        draw_probability(probability, judgement)
        sentence = judgement.sentence
        scores.set_title(sentence[0].upper() + sentence[1:], loc="left", fontsize=11, color=INK)
    return True


def draw_scores(axes, judgement: Judgement) -> None:
    """Draw both groups in the same bins: mismatches as an outline, and filled, scaled to the share of wrong pairs."""
    z, z0, share = judgement.z, judgement.z0, judgement.share
    low, high = np.quantile(np.concatenate([z, z0]), (0.0005, 0.9995))
    bins = np.linspace(low, high, 61)
    pairs, made = (100 * np.histogram(np.clip(x, low, high), bins)[0] / len(x) for x in (z, z0))
    axes.stairs(pairs, bins, fill=True, color=PAIRS, alpha=0.25)
    axes.stairs(pairs, bins, color=PAIRS, linewidth=1.6, label="pairs")
    axes.stairs(made, bins, color=WRONG, linewidth=1.2, linestyle=(0, (3, 2)), label="mismatches that were made")
    if share > 0:
        axes.stairs(share * made, bins, fill=True, color=WRONG, alpha=0.5, label=f"{100 * share:.1f} % of them")
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1.2 * max(pairs.max(), made.max()))
    axes.set_ylabel("in a bin (%)", fontsize=9)
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=3)


def draw_probability(axes, judgement: Judgement) -> None:
    """Draw the probability that a pair is right against its score, without the evidence of siblings."""
    order = np.argsort(judgement.z)
    axes.plot(judgement.z[order], judgement.weights_before_siblings[order], color=INK, linewidth=1.6)
    axes.set_ylim(-0.05, 1.05)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_ylabel("right with\nprobability", fontsize=9)
    axes.set_xlabel("score: the more to the right, the more suspicious", fontsize=9)


def draw_reliability(probability: np.ndarray, is_right: np.ndarray, path: Path) -> bool:
    """Write a PNG: observed against expected, with 95 % intervals, and how many pairs have which probability.

    `probability` [N] that a pair is right, `is_right` bool [N], the truth. Returns False, and writes nothing, if
    matplotlib is missing.
    """
    if not has_matplotlib():
        return False
    found = reliability(probability, is_right)
    pairs, expected, observed = map(np.array, zip(*found, strict=True))
    low, high = wilson(observed, pairs)
    with drawing(path, 2, (9.0, 4.2)) as (curve, counts):
        curve.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (3, 2)))
        reach = np.clip([observed - low, high - observed], 0, None)
        curve.errorbar(expected, observed, reach, color=PAIRS, marker="o", markersize=5, elinewidth=1, capsize=2.5)
        curve.set_xlim(-0.02, 1.02)
        curve.set_ylim(-0.02, 1.02)
        curve.set_aspect("equal")
        curve.set_xlabel("probability of being right, mean of a bin", fontsize=9)
        curve.set_ylabel("right in truth, fraction of the bin", fontsize=9)
        error = calibration_error(probability, is_right)
        curve.set_title(f"expected calibration error {error:.3f}", loc="left", fontsize=10)
        bins = np.linspace(0, 1, 21)
        for group, name, color in ((is_right, "right", PAIRS), (~is_right, "wrong", WRONG)):
            number = np.histogram(probability[group], bins)[0]
            counts.stairs(number, bins, color=color, linewidth=1.4, label=f"{name} ({group.sum():,})")
            counts.stairs(number, bins, color=color, alpha=0.15, fill=True)
        counts.set_yscale("log")
        counts.set_ylim(0.7, 4 * len(is_right))
        counts.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        counts.minorticks_off()
        counts.set_xlabel("probability of being right", fontsize=9)
        counts.set_title("pairs in a bin", loc="left", fontsize=10)
        counts.legend(frameon=False, fontsize=9, loc="upper center", ncols=2)
    return True


def wilson(fraction: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a fraction [n] observed among `count` [n] (Wilson, JASA 1927)."""
    middle = (fraction + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    reach = Z95 / (1 + Z95**2 / count) * np.sqrt(fraction * (1 - fraction) / count + Z95**2 / (4 * count**2))
    return middle - reach, middle + reach
