"""AAHR as the rest of the package sees it: a trainer with momentum encoders."""

from clip_itm.methods.aahr.trainer import STATE, AahrTrainer
from clip_itm.methods.method import Method


class AahrMethod(Method):
    state_files = (STATE,)
    has_unused_parameters = True  # behind a gate that is still closed nothing has a gradient

    def trainer(self, data, encoder, training, **engine) -> AahrTrainer:
        return AahrTrainer(**engine)
