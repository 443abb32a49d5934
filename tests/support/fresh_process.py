"""A process without this package loads what it is told, and says what came out: for tests of what is saved and pushed.

python fresh_process.py JOB.json       JOB: {"models": [...], "photo": PATH, "captions": [...], "top_k": K,
                                       "again": FOLDER or None, "out": FILE.npz,
                                       "hide": whether this package is installed here}

Every model (a folder, or a name on the Hub) is loaded with `trust_remote_code=True`, by itself and as a pipeline; with
"again" it is also saved there, and the copy is what counts. Written are arrays NUMBER/images, NUMBER/texts, NUMBER/ids
and NUMBER/scores.
"""

import json
import sys
from pathlib import Path

HIDDEN = "clip_itm"


class Hide:
    """Import this package, and fail, as where it is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(job: dict) -> None:
    import numpy as np
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor, pipeline

    found = {}
    photo = Image.open(job["photo"]).convert("RGB")
    for number, name in enumerate(job["models"]):
        model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        if job["again"] is not None:
            name = str(Path(job["again"]) / str(number))
            model.save_pretrained(name)
            processor.save_pretrained(name)
            model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        with torch.inference_mode():
            found[f"{number}/images"] = model.encode_images(**processor(images=[photo])).numpy()
            found[f"{number}/texts"] = model.encode_texts(**processor(text=job["captions"])).numpy()
        pipe = pipeline("image-text-retrieval", model=name, trust_remote_code=True)
        for options in ({"folder": "index"}, {"kind": "hnsw"}):
            told = ""
            try:
                pipe.index(job["captions"], **options)
            except ValueError as error:
                told = str(error)
            assert "need the package clip-itm" in told, options
        pipe.index(job["captions"])
        hits = pipe(photo, top_k=job["top_k"])
        found[f"{number}/ids"] = np.array([hit["id"] for hit in hits])
        found[f"{number}/scores"] = np.array([hit["score"] for hit in hits])
        for made in (model, processor, pipe):
            assert type(made).__module__.startswith("transformers_modules."), type(made)
    assert not [module for module in sys.modules if module.split(".")[0] == HIDDEN]
    np.savez(job["out"], **found)


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if job["hide"]:
        sys.meta_path.insert(0, Hide())
    main(job)
