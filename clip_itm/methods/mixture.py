"""Tells clean pairs from wrong ones by their losses: a mixture of two normal distributions (docs/papers/npc.md 4.1)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Mixture:
    """Two normal components over losses, the one with the smaller mean (the clean pairs) first; arrays float64 [2]."""

    means: np.ndarray
    variances: np.ndarray
    weights: np.ndarray

    def clean_posterior(self, losses: np.ndarray) -> np.ndarray:
        """Responsibility of the clean component, float64 [N], for losses [N].

        As published, and not monotone: a wide wrong component takes even very small losses from a narrow clean one.
        """
        losses = np.asarray(losses, dtype=np.float64)[..., None]
        log_density = np.log(self.weights) - (np.log(self.variances) + (losses - self.means) ** 2 / self.variances) / 2
        return np.exp(-np.logaddexp(0, log_density[..., 1] - log_density[..., 0]))

    def monotone_clean_posterior(self, losses: np.ndarray) -> np.ndarray:
        """The same, but never rising with the loss, for ranking suspects: float64 [N], for losses [N].

        Losses below the clean mean count as the clean mean. If the clean component is the wider one, its posterior
        would rise again far above the other; losses beyond that turning point count as the turning point.
        """
        (clean, noisy), (clean_variance, noisy_variance) = self.means, self.variances
        turning = np.inf
        if clean_variance > noisy_variance:
            turning = noisy + (noisy - clean) * noisy_variance / (clean_variance - noisy_variance)
        return self.clean_posterior(np.clip(np.asarray(losses, dtype=np.float64), clean, turning))


def fit_mixture(losses: np.ndarray, seed: int = 0) -> Mixture:
    """Fit a mixture to raw `losses` [N] with the published settings: k-means start drawn with `seed`, tolerance 1e-2.

    Raises ValueError if losses are not finite, or all the same.

    Example:
        >>> losses = np.array([0.1, 0.2, 0.3, 4.0, 4.2])
        >>> mixture = fit_mixture(losses)
        >>> mixture.means.round(2)
        array([0.2, 4.1])
        >>> mixture.clean_posterior(losses).round(2)
        array([1., 1., 1., 0., 0.])
    """
    from sklearn.mixture import GaussianMixture

    losses = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(losses).all():
        raise ValueError(f"{np.sum(~np.isfinite(losses))} of {len(losses)} losses are not finite; the model diverged")
    if len(np.unique(losses)) < 2:
        raise ValueError(f"{len(losses)} losses are all the same and cannot be split into clean and wrong pairs")
    fitted = GaussianMixture(2, max_iter=100, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(losses[:, None])
    by_mean = np.argsort(fitted.means_[:, 0], kind="stable")
    return Mixture(fitted.means_[by_mean, 0], fitted.covariances_[by_mean, 0, 0], fitted.weights_[by_mean])
