"""Zero-shot accuracy of a model on photos in folders of classes."""

import torch
from torch import nn

from clip_itm.data.class_folder import ClassFolder
from clip_itm.evaluation.zero_shot import class_vectors, top1_accuracy
from clip_itm.processing import ItmProcessor
from clip_itm.training.encode import encode_captions, encode_images


def require_vectors(model: nn.Module, key: str) -> None:
    """Raises ValueError, naming the setting `key`, if a model compares more than two vectors."""
    if not model.head.similarity.is_dot_product:
        raise ValueError(
            f"{key}: the head {model.head.config.kind} compares by more than the cosine of two vectors, and the mean "
            f"of prompts is a vector; leave {key} out"
        )


@torch.inference_mode()
def zero_shot_accuracy(
    model: nn.Module,
    processor: ItmProcessor,
    classes: ClassFolder,
    batch_size: int,
    num_workers: int = 0,
    precision: torch.dtype | None = None,
) -> float:
    """Percent of the photos whose class the model (an `ItmModel`) ranks first, under autocast to `precision`."""
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, dtype=precision, enabled=precision is not None):
            images = encode_images(
                model.encode_images,
                classes.rows,
                processor,
                model.device,
                batch_size,
                num_workers,
                description="photos of the classes",
            )
            prompts = encode_captions(
                model.encode_texts, classes.prompts, processor, model.device, batch_size, "prompts"
            )
    finally:
        model.train(was_training)
    vectors = class_vectors(prompts.view(len(classes.names), len(classes.templates), -1))
    return top1_accuracy(images, vectors, torch.tensor(classes.labels))
