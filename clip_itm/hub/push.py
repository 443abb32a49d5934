"""Pushing a model with its indexes to the Hub."""

from collections.abc import Sequence
from pathlib import Path

from clip_itm.files import model_folder
from clip_itm.model import ItmModel
from clip_itm.retrieval.index import LocalIndex
from clip_itm.retrieval.storage import index_files
from clip_itm.runs.publish import Files, model_files
from clip_itm.weights import model_sha256


def files_with_indexes(
    place: Path, repo: str, indexes: Sequence[Path] = (), shown: bool = False, licence: str | None = None
) -> Files:
    """What a push puts into `repo`: a model as in `model_files`, and `indexes` under index/.

    `shown`: a Space will show the images of the indexes. Raises ValueError as `model_files` does, and if an index is
    damaged, of another model, or cannot be shown.

    Example::

        files = files_with_indexes(Path("runs/my"), "me/my-model", [Path("gallery")])
        upload(files, "me/my-model", message="Upload model with clip-itm")
    """
    files = model_files(place, repo, licence)
    return files | (_index_files(indexes, model_folder(place), shown) if indexes else {})


def _index_files(indexes: Sequence[Path], model: Path, shown: bool) -> Files:
    """Indexes of images under index/image, of captions under index/text."""
    sha256 = model_sha256(ItmModel.from_pretrained(model))
    positions: dict[str, Path] = {}
    files: Files = {}
    for place in indexes:
        index = LocalIndex.load(place, sha256, verify=True)
        if index.modality in positions:
            raise ValueError(f"{positions[index.modality]} and {place} are both indexes of {index.modality}s; give one")
        if shown and index.modality == "image" and any(item.thumbnail is None for item in index.items()):
            raise ValueError(
                f"{place}: a Space has none of these photos, only what is in the index; make it with "
                "`clip-itm index --thumbnails`"
            )
        positions[index.modality] = place
        files |= {f"index/{index.modality}/{path.name}": path for path in index_files(place)}
    return files
