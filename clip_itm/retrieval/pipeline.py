"""`ImageTextRetrievalPipeline`: index images or captions once, then search them by text or image.

pipe = pipeline("image-text-retrieval", model="runs/my/best")
pipe.index("images", folder="gallery")              # encodes what is new, and keeps it in the folder
pipe("a dog in the snow", top_k=5)                  # [{"id", "score", "rank", "image"}, ...]
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils.logging import disable_progress_bar

from clip_itm.files import model_folder
from clip_itm.lock import locked
from clip_itm.model import ItmModel
from clip_itm.offline import require_source
from clip_itm.processing import ItmProcessor
from clip_itm.retrieval.base import SearchIndex
from clip_itm.retrieval.index import LocalIndex, open_index
from clip_itm.retrieval.indexing import Changes, Indexer
from clip_itm.retrieval.memory_pipeline import RetrievalPipeline
from clip_itm.retrieval.qdrant import SCHEME, QdrantIndex
from clip_itm.retrieval.sources import make_source
from clip_itm.retrieval.storage import committed, require_index_folder
from clip_itm.task import TASK
from clip_itm.visible import counted
from clip_itm.weights import model_sha256

SHOWN = 20  # of what is left out; `changes` has all


class ImageTextRetrievalPipeline(RetrievalPipeline):
    """A `RetrievalPipeline` whose indexes are stored, brought up to date, and approximate if they are large.

    `galleries` maps "image" and "text" to the index that is searched, once `index` or `load_index` has set it.
    """

    galleries: dict[str, SearchIndex]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.changes: Changes | None = None  # what the last call of `index` did
        self._model_sha256: str | None = None

    @property
    def model_sha256(self) -> str:
        """Hash of the model, which its indexes carry."""
        if self._model_sha256 is None:
            self._model_sha256 = model_sha256(self.model)
        return self._model_sha256

    def index(
        self,
        gallery: Any,
        modality: str | None = None,
        *,
        folder: str | Path | None = None,
        kind: str | None = None,
        dtype: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        skip_broken: bool = False,
        thumbnails: bool = False,
        prune: bool = False,
    ) -> SearchIndex:
        """Encode images or captions, and search them from now on.

        gallery, modality: see `make_source`: a folder of images, a list of images or of captions, a data set.
        folder: where the index is stored (or the address of a Qdrant collection, see `open_index`). What is already
            there and has not changed is not encoded again, so the same call adds what is new and continues after an
            interruption. Afterwards `changes` says what it did.
        kind, dtype: of a new index, see `LocalIndex` (default: auto, float32).
        num_workers: processes that read images.
        skip_broken: leave out images and captions that cannot be read, with a warning; default: ValueError.
        thumbnails: keep a small JPEG of every image in the index (otherwise only of images that have no file).
        prune: delete what is in the index but not in the gallery.

        Raises ValueError for a gallery that is empty or mixed, and for an index of another model, modality or kind.

        Example::

            pipe = load_pipeline("runs/my/best")
            pipe.index("photos", folder="gallery")
            pipe("a dog in the snow", top_k=5)
        """
        source = make_source(gallery, modality)
        with _held(folder):
            index = self._open(folder, source.modality, kind, dtype)
            save = partial(index.write, folder) if folder is not None and isinstance(index, LocalIndex) else None
            options = {"batch_size": batch_size, "num_workers": num_workers, "thumbnails": thumbnails}
            self.changes = Indexer(self, index, save, skip_broken=skip_broken, **options).update(source, prune)
        if skipped := self.changes.skipped:
            rest = [f"and {len(skipped) - SHOWN:,} more"] if len(skipped) > SHOWN else []
            shown = "\n  ".join([*skipped[:SHOWN], *rest])
            noun, use = ("photo", "read") if source.modality == "image" else ("caption", "used")
            found = counted(len(skipped), f"{noun} cannot be {use} and is", f"{noun}s cannot be {use} and are")
            warnings.warn(f"{found} left out:\n  {shown}", stacklevel=2)
        self.galleries[source.modality] = index
        return index

    def load_index(self, where: str | Path | SearchIndex) -> SearchIndex:
        """Search a stored index from now on. Raises ValueError if another model made it.

        Example::

            pipe = load_pipeline("runs/my/best")
            pipe.load_index("gallery")
            pipe.search(["a dog in the snow"], top_k=5)
        """
        index = where if isinstance(where, SearchIndex) else open_index(where, self.model_sha256)
        self.galleries[index.modality] = index
        return index

    def _open(self, where: str | Path | None, modality: str, kind: str | None, dtype: str | None) -> SearchIndex:
        """The index at `where`, or a new one."""
        if str(where).startswith(SCHEME):
            if kind or dtype:
                raise ValueError(f"{where}: a Qdrant collection chooses its own index; leave kind and dtype out")
            return QdrantIndex(str(where), modality, self.model_sha256)
        if where is None or committed(Path(where)) is None:
            return LocalIndex(modality, self.model_sha256, kind or "auto", dtype or "float32")
        index = LocalIndex.load(where, self.model_sha256)
        for name, asked in (("modality", modality), ("kind", kind), ("dtype", dtype)):
            if asked not in (None, getattr(index, name)):
                raise ValueError(
                    f"{where} is an index of {name} {getattr(index, name)}, not {asked}; choose another folder"
                )
        return index


def load_pipeline(model: str | Path, device: str | None = None) -> ImageTextRetrievalPipeline:
    """The pipeline of a run folder (its best model), a model folder, or the name of a model on the Hub.

    `device`: "cpu", "cuda:1", ... (default: the first GPU, else the CPU). Raises ValueError if it cannot be loaded.
    """
    require_source(model)
    path_or_repo = str(model_folder(model) if Path(model).exists() else model)
    disable_progress_bar()  # of loading weights, which takes a second
    try:
        parts = ItmModel.from_pretrained(path_or_repo), ItmProcessor.from_pretrained(path_or_repo)
        return ImageTextRetrievalPipeline(
            parts[0], processor=parts[1], task=TASK, device=torch.device(device) if device else None
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{model}: cannot load this model: {error}") from None


def _held(folder: str | Path | None) -> AbstractContextManager:
    """The lock of an index, taken before it is read; a Qdrant collection takes several writers."""
    if folder is None or str(folder).startswith(SCHEME):
        return nullcontext()
    require_index_folder(Path(folder))
    return locked(folder, "index")


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=ImageTextRetrievalPipeline, pt_model=AutoModel, type="multimodal"
)
