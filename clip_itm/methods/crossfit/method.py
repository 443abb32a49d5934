"""Crossfit as the rest of the package sees it: a trainer that judges the pairs before it trains on them."""

from clip_itm.methods.crossfit.trainer import WEIGHTS, CrossfitTrainer
from clip_itm.methods.method import Method
from clip_itm.training.clean_probability import CleanProbability, probabilities_of


class CrossfitMethod(Method):
    history = ("wrong_share_high",)
    state_files = (WEIGHTS,)

    found: CleanProbability | None = None  # what `head.weights` names

    def open(self, noise, pairs) -> None:
        """Raises ValueError for weights of other pairs, and for folds of a single image."""
        images, folds = len(pairs.image_ids), self.section.folds
        if self.section.trains_folds and images < 2 * folds:
            raise ValueError(
                f"head.folds: {folds} folds of {images} photos: each needs two, as mismatches are made of captions of "
                "other photos; "
                + (f"write at most {images // 2}" if images > 3 else "add photos, or write 0 for a pretrained model")
            )
        if self.section.weights is not None:
            self.found = probabilities_of(noise, self.section.weights, "head.weights")

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
