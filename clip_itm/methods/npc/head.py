"""NPC: negative pre-aware cross-modal matching (Zhang et al., AAAI 2024; docs/papers/npc.md)."""

from clip_itm.methods.clip.head import ClipHead


class NpcHead(ClipHead):
    """The plain contrastive head; what NPC adds happens around it, in `NpcStep` and in the memory bank.

    Its `loss` is the plain one, which the warm-up uses.
    """

    citation = (
        "@inproceedings{zhang2024npc, author={Zhang, Xu and Li, Hao and Ye, Mang}, "
        "title={Negative Pre-aware for Noisy Cross-Modal Matching}, booktitle={AAAI}, year={2024}}"
    )

    @classmethod
    def build(cls, config, widths, initial_logit_scale=None, initial_logit_bias=None) -> "NpcHead":
        return cls(config, initial_logit_scale)
