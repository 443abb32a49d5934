"""`RetrievalPipeline`: images and captions encoded and searched in memory, exactly. It is saved with a checkpoint.

pipe = pipeline("image-text-retrieval", model="me/my-model", trust_remote_code=True)
pipe.index(["a.jpg", "b.jpg"])
pipe("a dog in the snow", top_k=5)                  # [{"id", "score", "rank", "image"}, ...]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline

from clip_itm.data.inputs import embed_all, modality_of, model_inputs
from clip_itm.retrieval.items import Hit, Item
from clip_itm.retrieval.memory_index import MemoryIndex
from clip_itm.retrieval.sources import list_source

SMALLEST_SHORTLIST = 200  # candidates of a head that ranks by more than one vector


class RetrievalPipeline(Pipeline):
    """Search images by text, captions by image, and like by like, under the similarity of the model's own head.

    `galleries` maps "image" and "text" to the index that is searched, once `index` has set it. The package clip-itm has
    a pipeline on top of it, whose indexes are stored, added to, and approximate if they are large.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.eval()
        _settle_precision(self.model)
        self.galleries: dict[str, Any] = {}

    def index(self, gallery: Any, modality: str | None = None, *, batch_size: int = 64, **options) -> MemoryIndex:
        """Encode images or captions, and search them from now on, in memory and exactly.

        gallery: a list of images (see `modality_of`) or of captions, or a mapping from ids to them. modality: "image"
        or "text", recognised by default. Raises ValueError for whatever only the pipeline of the package takes.
        """
        if options or isinstance(gallery, str | Path) or hasattr(gallery, "column_names"):
            what = ", ".join(options) or f"a gallery of type {type(gallery).__name__}"
            raise ValueError(
                f"{what}: the pipeline of a checkpoint searches lists of photos or captions, exactly and in memory; "
                "folders, data sets, stored and approximate indexes need the package clip-itm: its README says how to "
                "install it"
            )
        source = list_source(gallery, modality)
        if source.modality == "text":
            items = [Item(id, caption=caption) for id, caption in zip(source.ids, source.entries, strict=True)]
            embeddings = self.embed([{"text": caption} for caption in source.entries], batch_size)
        else:
            items = [Item(id, path) for id, path in zip(source.ids, source.paths, strict=True)]
            embeddings = self.embed([{"image": image} for image in source.entries], batch_size)
        index = MemoryIndex(source.modality, items, embeddings, self.vectors_of(embeddings))
        self.galleries[source.modality] = index
        return index

    def load_index(self, where: str | Path) -> MemoryIndex:
        """Raises ValueError: a stored index needs the package."""
        raise ValueError(f"{where}: stored indexes need the package clip-itm: its README says how to install it")

    def __call__(self, queries: Any, top_k: int = 5, target: str | None = None, **options):
        """The best `top_k` items for a query, best first; a list of such lists for a list of queries.

        See `search`. A result is {"id", "score", "rank", "image": path or None} or {"id", "score", "rank", "caption"}.
        """
        single = not isinstance(queries, list | tuple)
        found = self.search([queries] if single else queries, top_k, target, **options)
        answers = [[_result(hit) for hit in hits] for hits in found]
        return answers[0] if single else answers

    def search(
        self,
        queries: Sequence[Any],
        top_k: int = 5,
        target: str | None = None,
        batch_size: int = 64,
        shortlist: int | None = None,
    ) -> list[list[Hit]]:
        """The best `top_k` items for each query; all items if `top_k` is larger than the gallery.

        queries: texts and images, see `modality_of`. target: the gallery to search, "image" or "text"; by default the
        kind that the query is not, or the only one there is. shortlist: candidates that a head with several vectors per
        item ranks exactly (default: 10 * top_k, at least 200). Raises ValueError without an index, and for a query
        that is neither text nor image.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; expected at least 1")
        kinds = [modality_of(query) for query in queries]
        answers: list[list[Hit]] = [[] for _ in queries]
        for kind in dict.fromkeys(kinds):
            rows = [row for row, other in enumerate(kinds) if other == kind]
            goal = self._target(kind, target)  # an error before anything is encoded
            embeddings = self.embed([queries[row] for row in rows], batch_size)
            found = self.postprocess(embeddings, kind=kind, target=goal, top_k=top_k, shortlist=shortlist)
            for row, hits in zip(rows, found, strict=True):
                answers[row] = hits
        return answers

    def embed(self, queries: Sequence[Any], batch_size: int = 64, progress=None) -> Tensor:
        """Embeddings [n, ...] float32 on the CPU; see `embed_all`."""
        return embed_all(lambda batch: self.forward(self.preprocess(batch)), queries, batch_size, progress)

    def _target(self, kind: str, target: str | None) -> str:
        if target is None:
            other = "image" if kind == "text" else "text"
            target = other if other in self.galleries or not self.galleries else kind
        if target not in self.galleries:
            raise ValueError(
                f"no {target}s are indexed: call pipe.index(...) or pipe.load_index(...) first"
                + (f" (indexed: {', '.join(self.galleries)}s)" if self.galleries else "")
            )
        return target

    def vectors_of(self, embeddings: Tensor) -> Tensor | None:
        """The vectors [n, D] that the index compares, if they differ from the embeddings [n, ...], else None."""
        similarity = self.model.head.similarity
        return None if similarity.is_dot_product else similarity.vectors(embeddings)

    def _rerank(self, query: Tensor, hits: list[Hit], kind: str, index, top_k: int) -> list[Hit]:
        """The `top_k` of a shortlist under the head's own similarity; ranks count within the shortlist."""
        if kind == index.modality:
            raise ValueError(
                f"this head ({self.model.config.head['kind']}) compares photos with captions only; search the others"
            )
        candidates = index.embeddings_of([hit.item.id for hit in hits])
        pair = (candidates, query[None]) if kind == "text" else (query[None], candidates)
        scores = self.similarity(*pair).flatten()
        best = torch.sort(scores, descending=True, stable=True)
        return [
            Hit(hits[row].item, score, 1 + int((scores > score).sum()))
            for score, row in zip(best.values[:top_k].tolist(), best.indices[:top_k].tolist(), strict=True)
        ]

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Float32 [images, texts] on the CPU, from embeddings of images and of texts, by the head's own rule."""
        with torch.inference_mode():
            return self.model.head.similarity(images.to(self.device), texts.to(self.device)).float().cpu()

    # What `transformers.Pipeline` requires: one batch of one modality

    def _sanitize_parameters(self, **parameters):
        return {}, {}, parameters

    def preprocess(self, queries: Sequence[Any]) -> dict[str, Tensor]:
        return model_inputs(queries, self.processor)

    def _forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model.embed(**inputs)

    def postprocess(self, embeddings: Tensor, *, kind, target, top_k, shortlist=None) -> list[list[Hit]]:
        index = self.galleries[target]
        if self.model.head.similarity.is_dot_product:
            return index.search(embeddings, top_k)
        wide = max(top_k, shortlist or max(SMALLEST_SHORTLIST, 10 * top_k))
        candidates = index.search(self.model.head.similarity.vectors(embeddings), wide)
        pairs = zip(embeddings, candidates, strict=True)
        return [self._rerank(query, hits, kind, index, top_k) for query, hits in pairs]

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Model and processor, with the code that loads them anywhere; indexes have folders of their own."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _result(hit: Hit) -> dict:
    item = hit.item
    content = {"image": item.path} if item.caption is None else {"caption": item.caption}
    return {"id": item.id, "score": hit.score, "rank": hit.rank, **content}


def _settle_precision(model) -> None:
    """Put the towers wholly in the type that was asked for (transformers loads its own in float32 all the same), and
    the head, which is small, in float32."""
    types = {parameter.dtype for parameter in model.parameters()} | {model.config.dtype}
    model.backbone.to(next((half for half in (torch.float16, torch.bfloat16) if half in types), torch.float32))
    model.head.float()
