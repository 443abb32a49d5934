"""The robust head as the rest of the package sees it: with q: auto, a trainer that estimates it."""

from clip_itm.methods.method import Method
from clip_itm.methods.robust.trainer import STATE, RobustTrainer
from clip_itm.training.trainer import PairTrainer


class RobustMethod(Method):
    history = ("q",)
    state_files = (STATE,)

    def caution(self, random_part) -> str | None:
        section = self.section
        if section.q != "auto" or section.q_epochs or not random_part:
            return None
        return (
            f"{random_part} of this backbone starts from random weights, and with head.q_epochs: 0 this model says how "
            "many captions are wrong: it will take all for wrong; use head.q_epochs: 1"
        )

    def trainer(self, data, encoder, training, **engine) -> PairTrainer:
        if self.section.q != "auto":
            return super().trainer(data, encoder, training, **engine)
        return RobustTrainer(**engine, data=data, encoder=encoder)
