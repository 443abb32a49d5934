"""OSA as the rest of the package sees it: a trainer that looks at all pairs once."""

from clip_itm.methods.method import Method
from clip_itm.methods.osa.trainer import STATE, OsaTrainer


class OsaMethod(Method):
    history = ("boundary",)
    state_files = (STATE,)

    def caution(self, random_part) -> str | None:
        if self.section.warmup_epochs or not random_part:
            return None
        return (
            f"{random_part} of this backbone starts from random weights, and would be part of the estimator that gives "
            "the pairs their weights: set head.warmup_epochs"
        )

    def trainer(self, data, encoder, training, **engine) -> OsaTrainer:
        """Raises ValueError if `released` has no pixels to fill with noise."""
        if self.section.weights == "released" and data.train.regions is not None:
            raise ValueError(
                "head.weights: released takes beta from images of noise, and these data are precomputed regions; use "
                "head.weights: intended"
            )
        return OsaTrainer(**engine, data=data, encoder=encoder)
