"""CRCL as the rest of the package sees it: a trainer that keeps a label for each pair."""

from functools import partial

from clip_itm.methods.crcl.trainer import STATE, CrclTrainer, first_labels
from clip_itm.methods.method import Method


class CrclMethod(Method):
    state_files = (STATE,)

    def trainer(self, data, encoder, training, **engine) -> CrclTrainer:
        return CrclTrainer(
            **engine,
            first_labels=partial(first_labels, self.section, training, data, encoder),
            is_clean=data.noise.truth(data.train.pairs),
            noise_sha256=data.noise.sha256,
        )
