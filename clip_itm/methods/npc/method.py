"""NPC as the rest of the package sees it: a memory bank, and a trainer that builds or receives one."""

from functools import partial

from clip_itm.methods.method import Method
from clip_itm.methods.npc.bank import MemoryBank
from clip_itm.methods.npc.trainer import BANK, STATE, NpcTrainer, make_bank
from clip_itm.training.clean_probability import CleanProbability, probabilities_of


class NpcMethod(Method):
    history = ("method_epoch", "bank_clean")
    state_files = (BANK, STATE)

    bank: MemoryBank | None = None  # the one that `head.bank` names
    found: CleanProbability | None = None  # what `head.weights` names

    def open(self, noise, pairs) -> None:
        """Raises ValueError for weights or a bank of other pairs, or a bank of another `head.rho`."""
        if self.section.weights is not None:
            self.found = probabilities_of(noise, self.section.weights, "head.weights")
        if self.section.bank is None:
            return
        bank, rho = MemoryBank.load(self.section.bank), self.section.rho
        bank.check(noise, pairs)
        if bank.rho is not None and bank.rho != rho:
            raise ValueError(
                f"head.rho is {rho:g}, and {self.section.bank} was built with {bank.rho:g}: write head.rho: "
                f"{bank.rho:g}, or rebuild it (`clip-itm bank build --rho {rho:g}`)"
            )
        self.bank = bank

    def caution(self, random_part) -> str | None:
        if self.bank is not None or self.section.warmup_epochs or not random_part:
            return None
        return (
            f"{random_part} of this backbone starts from random weights, and the memory bank would be built with them: "
            "set head.warmup_epochs, or name a bank of a trained model (head.bank, `clip-itm bank build --run DIR`)"
        )

    @property
    def provenance(self) -> dict[str, str]:
        read = {"bank": self.bank, "weights": self.found}
        return {name: part.sha256 for name, part in read.items() if part is not None}

    def trainer(self, data, encoder, training, **engine) -> NpcTrainer:
        build = partial(make_bank, self.section, training.seed, data, encoder, self.found)
        return NpcTrainer(
            **engine,
            build_bank=build if self.bank is None else lambda: self.bank,
            is_clean=data.noise.truth(data.train.pairs),
            label=data.train.pairs.label,
        )
