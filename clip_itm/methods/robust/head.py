"""A bounded contrastive loss on any similarity: gce, rince, sce, tal."""

import math

from torch import Tensor

from clip_itm.methods.clip.head import ClipHead
from clip_itm.methods.robust.configuration import FIRST_Q, TAL_TEMPERATURE, BoundedLossSection
from clip_itm.methods.robust.loss import LossOptions, bounded_losses
from clip_itm.methods.scores import global_scores, local_targets, same_caption, same_image
from clip_itm.similarity.base import Similarity


class RobustHead(ClipHead):
    """A similarity, trained by a loss under which improbable pairs pull less than under the plain one.

    The temperature is learned with gce and sce, as in the plain head. With rince and tal it stays where it starts, as
    published: a lower one makes both smaller, whatever the model knows. `options` are those of the losses; if q is
    auto, training replaces it.

    Raises ValueError if exponentials of rince would overflow at the pretrained temperature.
    """

    citation = (
        "@inproceedings{zhang2018gce, author={Zhang, Zhilu and Sabuncu, Mert R.}, title={Generalized Cross Entropy "
        "Loss for Training Deep Neural Networks with Noisy Labels}, booktitle={NeurIPS}, year={2018}}\n"
        "@inproceedings{chuang2022rince, author={Chuang, Ching-Yao and Hjelm, R Devon and Wang, Xin and others}, "
        "title={Robust Contrastive Learning against Noisy Views}, booktitle={CVPR}, year={2022}}\n"
        "@inproceedings{wang2019sce, author={Wang, Yisen and Ma, Xingjun and Chen, Zaiyi and others}, "
        "title={Symmetric Cross Entropy for Robust Learning with Noisy Labels}, booktitle={ICCV}, year={2019}}\n"
        "@inproceedings{qin2024rde, author={Qin, Yang and Chen, Yingke and Peng, Dezhong and Peng, Xi and Zhou, Joey "
        "Tianyi and Hu, Peng}, title={Noisy-Correspondence Learning for Text-to-Image Person Re-identification}, "
        "booktitle={CVPR}, year={2024}}"
    )

    def __init__(
        self,
        config: BoundedLossSection,
        initial_logit_scale: float | None = None,
        similarity: Similarity | None = None,
    ):
        if "tal" in config.loss_names:
            initial_logit_scale = -math.log(TAL_TEMPERATURE)
        super().__init__(config, initial_logit_scale, similarity)
        self.logit_scale.requires_grad_(config.learns_temperature)
        q = FIRST_Q if config.q == "auto" else config.q
        self.options = LossOptions(
            q, config.rince_lambda, config.sce_cross_entropy, config.sce_reverse, config.tal_margin
        )
        if problem := config.overflow(float(self.scale().detach())):
            raise ValueError(problem)

    def losses_of(
        self, loss: str, images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor | None = None
    ) -> Tensor:
        """The loss called `loss` of each local pair against the global batch, [b]; arguments as in `Head.loss`."""
        rows, columns = global_scores(self.similarity, images, texts)
        of_image = same_image(rows, None if self.config.same_image == "negative" else image_ids)
        mode, caption_mode, targets = self.config.same_image, self.config.same_caption, local_targets(rows)
        equal = same_caption(rows, image_ids, caption_ids, caption_mode)
        return bounded_losses(
            loss, rows, columns, targets, of_image, mode, self.scale(), self.options, equal, caption_mode
        )

    def losses(self, images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor | None = None) -> Tensor:
        return self.losses_of(self.config.loss, images, texts, image_ids, caption_ids)
