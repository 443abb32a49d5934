"""CRCL as the rest of the package sees it: a trainer that keeps a label for each pair."""

from functools import partial

from clip_itm.methods.crcl.trainer import STATE, CrclTrainer, first_labels
from clip_itm.methods.method import Method
from clip_itm.training.clean_probability import CleanProbability, probabilities_of


class CrclMethod(Method):
    state_files = (STATE,)

    found: CleanProbability | None = None  # what `head.weights` names

    def open(self, noise, pairs) -> None:
        """Raises ValueError for weights of other pairs."""
        if self.section.weights is not None:
            self.found = probabilities_of(noise, self.section.weights, "head.weights")

    @property
    def provenance(self) -> dict[str, str]:
        return {} if self.found is None else {"weights": self.found.sha256}

    def trainer(self, data, encoder, training, **engine) -> CrclTrainer:
        return CrclTrainer(
            **engine,
            first_labels=partial(first_labels, self.section, training, data, encoder, self.found),
            is_clean=data.noise.truth(data.train.pairs),
            noise_sha256=data.noise.sha256,
            label=data.train.pairs.label,
        )
