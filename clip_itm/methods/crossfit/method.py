"""Crossfit as the rest of the package sees it: a trainer that judges the pairs before it trains on them."""

from clip_itm.methods.crossfit.trainer import WEIGHTS, CrossfitTrainer
from clip_itm.methods.method import Method
from clip_itm.training.clean_probability import CleanProbability


class CrossfitMethod(Method):
    history = ("wrong_share",)
    state_files = (WEIGHTS,)

    found: CleanProbability | None = None  # what `head.weights` names

    def open(self, noise, pairs) -> None:
        """Raises ValueError for weights of other pairs."""
        file = self.section.weights
        if file is None:
            return
        self.found = CleanProbability.load(file)
        if self.found.noise_sha256 != noise.sha256 or len(self.found.values) != len(noise.source):
            raise ValueError(
                f"head.weights: {file} belongs to other training pairs ({len(self.found.values)} with noise "
                f"{self.found.noise_sha256[:12]}; these are {len(noise.source)} with noise {noise.sha256[:12]})"
            )

    def caution(self, random_part) -> str | None:
        section = self.section
        if section.folds or section.weights is not None or section.estimate == "truth" or not random_part:
            return None
        return (
            f"{random_part} of this backbone starts from random weights, and with head.folds: 0 this model judges the "
            "pairs: it will find nothing, and the run will be a plain one; use head.folds: 2"
        )

    @property
    def provenance(self) -> dict[str, str]:
        return {} if self.found is None else {"weights": self.found.sha256}

    def trainer(self, data, encoder, training, **engine) -> CrossfitTrainer:
        return CrossfitTrainer(**engine, data=data, encoder=encoder, found=self.found)
