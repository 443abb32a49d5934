"""Image-text retrieval recall as a module of the `evaluate` library; `README.md` beside this file has an example.

Captions and images differ in number, and everything that `evaluate` collects must have one length: the captions'
embeddings and their image numbers are collected (in batches, if need be), the images' embeddings come with `compute`.
"""

import datasets
import evaluate
import torch

from clip_itm.evaluation.protocols import evaluate_retrieval

_DESCRIPTION = """\
Recall at 1, 5 and 10 in percent, median and mean rank of both directions of image-text retrieval, rsum and mean_r1.
Any number of captions per photo. Ties count as won; tie_gap tells how much the recalls would fall if they were lost."""

_KWARGS_DESCRIPTION = """
Args:
    predictions: caption embeddings, one list of D floats per caption.
    references: number of the photo of each caption, 0 .. number of photos - 1.
    image_embeddings: photo embeddings [number of photos, D], given to `compute` (they do not pass through Arrow).
    protocol: "all" (default), "flickr-1k", "coco-1k" or "coco-5k".
    bootstrap: replicates of the bootstrap for 95 % intervals (default 0: none).
    seed: seed of the bootstrap.
    normalize: divide embeddings by their length, so that scores are cosines (default True).
Returns:
    the metrics (i2t_r1, ..., t2i_mean_rank, rsum, mean_r1), `tie_gap`, and `intervals` where asked for.
"""

_CITATION = ""  # recall at K has no single source


class ImageTextRecall(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        image_embeddings=None,
        protocol="all",
        bootstrap=0,
        seed=0,
        normalize=True,
    ) -> dict:
        if image_embeddings is None:
            raise ValueError("image_embeddings is missing: pass the photo embeddings to compute(image_embeddings=...)")
        images = torch.as_tensor(image_embeddings).float()
        texts = torch.tensor(predictions, dtype=torch.float32)
        if normalize:
            images, texts = (torch.nn.functional.normalize(x, dim=-1) for x in (images, texts))
        result = evaluate_retrieval(
            images, texts, torch.tensor(references), protocols=[protocol], bootstrap=bootstrap, seed=seed
        )[protocol]
        output = {**result.metrics, "tie_gap": result.tie_gap}
        return output | {"intervals": result.intervals} if bootstrap else output
