"""NPC's frozen memory: for every image and every caption, the nearest pair that is surely clean (docs/papers/npc.md 4).

    l[k]    loss of pair k under one model, in seeded batches
    p[k]    posterior of the low-loss component of a mixture fitted to all l, or a weight from elsewhere
    C       = {k : p[k] > rho}
    entry of an image    the pair of C whose image is nearest to it
    entry of a caption   the pair of C whose caption is nearest to it

An entry is a whole pair, "nearest" is by cosine, and a clean pair may be its own entry. The released builder does not
normalise the bank side, so that entries with long vectors win; that defect is not repeated.
"""

import hashlib
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_itm.files import is_stream, reading_arrays, save_arrays
from clip_itm.methods.mixture import Mixture, fit_mixture
from clip_itm.methods.pair_losses import pair_losses
from clip_itm.precision import exact_float32

if TYPE_CHECKING:
    from clip_itm.data.noise import CaptionNoise
    from clip_itm.data.rows import Pairs

BLOCK = 4096  # queries and keys scored at once: 64 MiB of float32


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """For every image and caption of a training split of N pairs, the index of its memory pair, the "entry".

    `image_entry` int64 [images], `caption_entry` int64 [N]: the entry of each image, and of the caption that each
    pair got. `noise_sha256` names these captions (`CaptionNoise.sha256`), `model` the weights behind the embeddings.
    The rest is None in banks that were not built here: threshold `rho`; `seed` of permutation and mixture;
    `batch_size` of the losses; `losses` and `posterior` float32 [N]; `mixture`, also None if weights were given.
    """

    image_entry: np.ndarray
    caption_entry: np.ndarray
    rho: float | None
    model: str
    noise_sha256: str
    seed: int | None = None
    batch_size: int | None = None
    losses: np.ndarray | None = None
    posterior: np.ndarray | None = None
    mixture: Mixture | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of the entries and of the captions they belong to."""
        digest = hashlib.sha256(self.noise_sha256.encode())
        for entries in (self.image_entry, self.caption_entry):
            digest.update(f" {len(entries)} ".encode() + entries.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def clean(self) -> np.ndarray | None:
        """The clean set C, int64 indices of pairs in ascending order; None if unknown."""
        return None if self.posterior is None else np.flatnonzero(self.posterior > self.rho)

    @property
    def below_clean_mean_rejected(self) -> int | None:
        """How many pairs below the clean mean are not in C, because the posterior is not monotone; None if unknown."""
        if self.mixture is None:
            return None
        return int(np.sum((self.losses < self.mixture.means[0]) & (self.posterior <= self.rho)))

    def check(self, noise: "CaptionNoise", pairs: "Pairs") -> None:
        """Raise ValueError unless this bank belongs to these training pairs with the captions they got."""
        advice = "rebuild it with `clip-itm bank build`, or use the data and noise that it belongs to"
        if self.noise_sha256 != noise.sha256:
            raise ValueError(
                f"this memory bank was built for other noise: it names {self.noise_sha256}, the training pairs have "
                f"{noise.sha256}; {advice}"
            )
        for what, entries, expected in (
            ("photos", self.image_entry, len(pairs.image_ids)),
            ("captions", self.caption_entry, len(pairs)),
        ):
            if len(entries) != expected:
                raise ValueError(
                    f"this memory bank has entries for {len(entries)} {what}, the training split has {expected} of "
                    f"them; {advice}"
                )
            outside = np.flatnonzero((entries < 0) | (entries >= len(pairs)))
            if len(outside):
                raise ValueError(
                    f"this memory bank is wrong: entry {outside[0]} of its {what} is pair {entries[outside[0]]}, but "
                    f"training pairs are numbered 0 to {len(pairs) - 1} ({len(outside)} such entries); {advice}"
                )

    def save(self, path: str | Path, exclusive: bool = False) -> None:
        """Write an npz without pickle. An existing file is replaced; with `exclusive` it raises FileExistsError.

        Raises ValueError if `path` does not end with .npz.
        """
        path = Path(path)
        if path.suffix != ".npz" and not is_stream(path):
            raise ValueError(f"{path}: a memory bank is saved as .npz")
        header = ("image_entry", "caption_entry", "model", "noise_sha256", "sha256")
        optional = ("rho", "seed", "batch_size", "losses", "posterior")
        content = {name: getattr(self, name) for name in header + optional if getattr(self, name) is not None}
        content |= {f"mixture_{name}": value for name, value in (vars(self.mixture) if self.mixture else {}).items()}
        save_arrays(path, exclusive, **content)

    @classmethod
    def load(cls, path: str | Path) -> "MemoryBank":
        """Read what `save` wrote. Raises ValueError if the file is not a memory bank, or was changed."""
        wrong = (
            f"{path} is not a memory bank of clip-itm ({{error}}); published pairs of .npy files are read by "
            "`clip-itm bank import`"
        )
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise ValueError(wrong.replace("{error}", "it is not an npz archive"))
        with reading_arrays(path, missing=f"memory bank {path} does not exist", wrong=wrong) as stored:
            names = [name for name in stored if name.startswith("mixture_")]
            mixture = {name.removeprefix("mixture_"): stored.pop(name) for name in names}
            sha256 = str(stored.pop("sha256"))
            entries = [stored.pop(name).astype(np.int64, casting="safe") for name in ("image_entry", "caption_entry")]
            rest = {name: value.item() if value.ndim == 0 else value for name, value in stored.items()}
            bank = cls(*entries, **{"rho": None, **rest}, mixture=Mixture(**mixture) if mixture else None)
            matches = bank.sha256 == sha256
        if not matches:
            raise ValueError(f"{path} was changed or damaged: it names sha256 {sha256}, holds {bank.sha256}")
        return bank


def build_bank(
    images: Tensor,
    texts: Tensor,
    pair_image: np.ndarray,
    source: np.ndarray,
    scale: float,
    rho: float,
    model: str,
    noise_sha256: str,
    batch_size: int = 256,
    seed: int = 0,
    weights: np.ndarray | None = None,
    captions: np.ndarray | None = None,
    label: np.ndarray | None = None,
) -> MemoryBank:
    """The bank of training pairs whose images and captions have the embeddings `images` [Ni, D] and `texts` [Nt, D].

    Pair k is image `pair_image[k]` with caption `source[k]` (int64 [N]); rows have unit length and may be on a GPU,
    where the search then runs. `scale` multiplies cosines in the losses; `model` and `noise_sha256` are kept as they
    are. `weights` float32 [N]: the probability that a pair is right, in place of the posterior of a mixture; for
    `captions` see `pair_losses`. `label` [N]: `Pairs.label`, which overrides both. Raises ValueError if no pair exceeds
    `rho`.

    Example:
        >>> index = np.arange(8)
        >>> captions = torch.eye(8)[[0, 1, 2, 3, 4, 5, 7, 6]]  # pairs 6 and 7 have each other's caption
        >>> bank = build_bank(torch.eye(8), captions, index, index, scale=10.0, rho=0.99, model="toy", noise_sha256="")
        >>> bank.clean
        array([0, 1, 2, 3, 4, 5])
    """
    if not 0 < rho < 1:
        raise ValueError(f"head.rho must lie between 0 and 1, got {rho}")
    losses = pair_losses(images, texts, pair_image, source, scale, batch_size, seed, captions=captions)
    mixture = fit_mixture(losses, seed) if weights is None else None
    posterior = mixture.clean_posterior(losses).astype(np.float32) if weights is None else weights
    if label is not None:
        posterior = np.where(np.isnan(label), posterior, label).astype(np.float32)
    clean = np.flatnonzero(posterior > rho)
    if not len(clean):
        what, why = "posterior", ". Data without wrong captions, or an untrained model, give such a mixture"
        if weights is not None:
            what, why = "weight", ", or give other weights"
        raise ValueError(
            f"no pair is certain enough to be clean: the largest {what} of {len(posterior)} training pairs is "
            f"{posterior.max():.4f}, and head.rho is {rho}; lower head.rho (`clip-itm bank build --rho`) below that"
            f"{why}"
        )
    # every caption is searched for once, also those that several pairs or none got
    return MemoryBank(
        image_entry=nearest_pairs(images, images[torch.from_numpy(pair_image[clean])], clean),
        caption_entry=nearest_pairs(texts, texts[torch.from_numpy(source[clean])], clean)[source],
        rho=float(rho),
        model=model,
        noise_sha256=noise_sha256,
        seed=seed,
        batch_size=batch_size,
        losses=losses,
        posterior=posterior,
        mixture=mixture,
    )


def nearest_pairs(queries: Tensor, keys: Tensor, key_pairs: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """For each query, the pair of the key with the largest cosine: int64 [Q]; the lowest pair among equal ones.

    `queries` [Q, D], `keys` [K, D] on the same device, `key_pairs` int64 [K] ascending. Equal keys are scored once and
    a query that equals a key takes that key: the same dot product in another block may be rounded differently, which
    must not decide between them.

    Example:
        >>> nearest_pairs(torch.tensor([[0.1, 1.0]]), torch.eye(2), key_pairs=np.array([4, 7]))
        array([7])
    """
    indices: dict[bytes, int] = {}
    group = np.array([indices.setdefault(row, len(indices)) for rows in (keys, queries) for row in _row_hashes(rows)])
    of_keys, of_queries = np.split(group, [len(keys)])
    first = np.unique(group, return_index=True)[1]  # row of each group's first member; the groups of keys come first
    num_keys = of_keys.max() + 1
    first_keys, first_queries = np.split(first, [num_keys])
    found = _largest_cosine(
        queries[torch.from_numpy(first_queries - len(keys))], keys[torch.from_numpy(first_keys)], block
    )
    return key_pairs[first_keys][np.concatenate([np.arange(num_keys), found])[of_queries]]


def _row_hashes(rows: Tensor):
    """A hash of 16 bytes for each row."""
    for row in np.ascontiguousarray(rows.float().cpu().numpy() + np.float32(0)):  # -0.0 becomes 0.0
        yield hashlib.blake2b(row, digest_size=16).digest()


def _largest_cosine(queries: Tensor, keys: Tensor, block: int) -> np.ndarray:
    """Index of the nearest key for each query, int64 [Q]; `block` x `block` scores exist at once."""
    queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
    nearest = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    largest = torch.full((len(queries),), -torch.inf, device=queries.device)
    with torch.inference_mode(), exact_float32(queries.device):
        for rows in (slice(start, start + block) for start in range(0, len(queries), block)):
            for start in range(0, len(keys), block):
                score, key = (queries[rows] @ keys[start : start + block].T).max(dim=1)
                better = score > largest[rows]
                largest[rows] = torch.where(better, score, largest[rows])
                nearest[rows] = torch.where(better, start + key, nearest[rows])
    return nearest.cpu().numpy()
