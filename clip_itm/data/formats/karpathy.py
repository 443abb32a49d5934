"""Karpathy's JSON (`dataset_coco.json`, `dataset_flickr30k.json`, ...): images with sentences and a split each."""

from collections.abc import Callable
from pathlib import Path

from clip_itm.data.formats.annotation_files import check_text, read_json
from clip_itm.data.formats.cells import captions_of
from clip_itm.data.formats.splits import split_name
from clip_itm.data.rows import image_row


def read_karpathy(path: Path, locate: Callable[[dict], tuple[str, str]]) -> dict[str, list[dict]]:
    """Rows by split; `restval` counts as train. `locate` gives the image file and image id of an entry of `images`."""
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise ValueError(f"{path}: expected an object with a list `images` (Karpathy's layout)")
    splits: dict[str, list[dict]] = {}
    for number, image in enumerate(data["images"]):
        try:
            split = split_name(image["split"], f"{path}, images[{number}].split")
            file, image_id = locate(image)
            check_text(file, f"{path}, images[{number}]")
            captions = captions_of([sentence["raw"] for sentence in image["sentences"]], f"{path}, images[{number}]")
            caption_ids = [str(sentence["sentid"]) for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: images[{number}] is not as in Karpathy's files ({error!r})") from None
        splits.setdefault(split, []).append(image_row(file, image_id, captions, caption_ids))
    return splits
