"""AAHR as the rest of the package sees it: a trainer with momentum encoders."""

from clip_itm.methods.aahr.trainer import STATE, AahrTrainer
from clip_itm.methods.method import Method


class AahrMethod(Method):
    state_files = (STATE,)
    keeps_whole = "its momentum encoders are a second model, which every process needs whole"

    def trainer(self, data, encoder, training, **engine) -> AahrTrainer:
        return AahrTrainer(**engine)
