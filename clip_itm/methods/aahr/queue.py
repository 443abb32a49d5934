"""The momentum queues of AAHR: keys of earlier batches as more negatives (MoCo; docs/papers/aahr.md 8).

L_b = CE([q_i . k_t, q_i . Queue_t] / tau, 0) + CE([q_t . k_i, q_t . Queue_i] / tau, 0)      all of unit length
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.distributed import gather_constant


class KeyQueue:
    """The latest keys of images and captions, `images` and `texts` [M, D], and the `ids` int64 [M] of their images.

    `caption_ids` int64 [M] are equal for equal captions, or -1 if none are written. `pointer` is the row of the next
    key, `count` the number of keys so far, at most M. Every process holds all of them, and they stay equal. They are on
    the device of the keys that are written.
    """

    def __init__(self, length: int, width: int):
        self.images, self.texts = torch.zeros(length, width), torch.zeros(length, width)
        self.ids, self.caption_ids = torch.full((2, length), -1)
        self.pointer = self.count = 0

    @property
    def is_full(self) -> bool:
        """Whether all M rows hold a key."""
        return self.count == len(self.ids)

    @torch.no_grad()
    def write(self, images: Tensor, texts: Tensor, image_ids: Tensor, caption_ids: Tensor | None = None) -> None:
        """Replace the oldest keys with those [b, D] of all processes, in order of processes."""
        images, texts, image_ids = (gather_constant(rows.detach()) for rows in (images, texts, image_ids))
        self.move_to(images)
        positions = (self.pointer + torch.arange(len(images), device=images.device)) % len(self.ids)
        self.images[positions], self.texts[positions] = F.normalize(images, dim=1), F.normalize(texts, dim=1)
        self.ids[positions] = image_ids
        if caption_ids is not None:
            self.caption_ids[positions] = gather_constant(caption_ids)
        self.pointer = (self.pointer + len(images)) % len(self.ids)
        self.count = min(self.count + len(images), len(self.ids))

    def move_to(self, keys: Tensor) -> None:
        """Move to the device and dtype of `keys`."""
        self.images, self.texts = self.images.to(keys), self.texts.to(keys)
        self.ids, self.caption_ids = self.ids.to(keys.device), self.caption_ids.to(keys.device)

    def state_dict(self) -> dict[str, Tensor]:
        state = {name: getattr(self, name).cpu().clone() for name in ("images", "texts", "ids")}
        if (self.caption_ids >= 0).any():
            state["caption_ids"] = self.caption_ids.cpu().clone()
        return state | {"place": torch.tensor([self.pointer, self.count])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a `state_dict()`. Raises ValueError if it is that of a queue of another size."""
        if state["images"].shape != self.images.shape:
            raise ValueError(
                f"the stored queue has the shape {list(state['images'].shape)}, this run's {list(self.images.shape)} "
                "(head.queue_length, head.embed_dim); resume with the recipe that the checkpoint was made with"
            )
        self.images, self.texts, self.ids = (state[name].clone() for name in ("images", "texts", "ids"))
        if "caption_ids" in state:
            self.caption_ids = state["caption_ids"].clone()
        self.pointer, self.count = state["place"].tolist()


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy [b] of each query [b, D] with its own key [b, D] among the `queue` [M, D].

    `mask` bool [b, M]: True for keys of the queue that are not negatives of the query.

    Example:
        >>> queries = torch.eye(2)
        >>> info_nce(queries, keys=queries, queue=-queries, temperature=1.0)
        tensor([0.4076, 0.4076])
    """
    queries, keys, queue = (F.normalize(rows, dim=1) for rows in (queries, keys, queue))
    own, others = (queries * keys).sum(dim=1, keepdim=True), queries @ queue.T
    if mask is not None:
        others = others.masked_fill(mask, -torch.inf)
    logits = torch.cat([own, others], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device), reduction="none")
