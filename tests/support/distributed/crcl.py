"""Run by torchrun in test_crcl.py: two CRCL steps on one global batch, saved by the first process.

torchrun --nproc_per_node 2 -m support.distributed.crcl GOLDEN.npz OUT.npz
"""

import sys
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from clip_itm.distributed import gather_constant, num_processes, process_index
from clip_itm.methods.crcl.labels import LabelStore, phase_of, refine
from clip_itm.methods.crcl.loss import crcl_loss, match_both_ways, matching_probability
from clip_itm.methods.scores import global_scores
from clip_itm.similarity.cosine import Cosine
from support.processes import save_from_first

IMAGE_IDS = torch.tensor([0, 1, 0, 2, 3, 0, 4, 4, 5, 5, 1, 2])  # photos repeat within a process and across them
CASES = {  # temperature, image_ids, softmax_set; sets of 4 lie across the borders of 2 and 4 processes
    "t05": (0.05, None, None),
    "t01": (0.01, None, None),
    "masked": (0.05, IMAGE_IDS, None),
    "sets": (0.05, IMAGE_IDS, 4),
}


def two_steps(golden: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    """A step on the golden batch, then one on the same pairs dealt to other processes, in epoch 3 of the first piece.

    Everything is in the order of the global batch; the gradients are those of the mean over it.
    """
    temperature, image_ids, softmax_set = CASES[case]
    images, captions, ids = (torch.tensor(golden[name]) for name in ("img_feat", "txt_feat", "ids"))
    store = LabelStore(len(golden["store_before"]), torch.tensor(golden["store_before"]))
    share = len(ids) // num_processes()
    found = {}
    for step, order in enumerate((torch.arange(len(ids)), torch.arange(len(ids)).roll(5))):
        own = order[process_index() * share :][:share]
        features = [rows[own].double().requires_grad_() for rows in (images, captions)]
        rows, columns, targets = match_both_ways(
            *global_scores(Cosine(), *(F.normalize(rows, dim=-1) for rows in features)),
            temperature,
            None if image_ids is None else image_ids[own],
            softmax_set,
        )
        p = matching_probability(rows, columns)
        used, written = refine(store.read(ids[own]), p, phase_of(3, [30], 2), float(golden["alpha"]), 0.1)
        store.write(ids[own], written, p)
        loss, *_ = crcl_loss(rows, columns, used, targets, float(golden["lam"]))
        loss.backward()
        values = {"p_pair": p, "y_used": used, "grad_img": features[0].grad, "grad_txt": features[1].grad}
        values = {name: gather_constant(value) for name, value in values.items()}
        values["grad_img"], values["grad_txt"] = (values[name] / num_processes() for name in ("grad_img", "grad_txt"))
        values["total"] = gather_constant(loss.detach()[None]).mean()
        copies = gather_constant(torch.stack([store.labels, store.probabilities])[None])
        assert copies.nan_to_num(nan=-1).unique(dim=0).shape[0] == 1, "the copies of the store differ"
        values["store_after"], values["probabilities_after"] = copies[0].unbind()
        found |= {f"{case}_{step}_{name}": value.numpy().copy() for name, value in values.items()}
    return found


def all_cases(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for case in CASES:
        found |= two_steps(golden, case)
    return found


if __name__ == "__main__":
    with np.load(sys.argv[1], allow_pickle=False) as arrays:
        save_from_first(partial(all_cases, dict(arrays)), sys.argv[2])
