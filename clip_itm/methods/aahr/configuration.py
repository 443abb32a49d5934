"""`head:` section of AAHR."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from clip_itm.methods.section import HeadSection, MaskedCaption

Share = Annotated[float, Field(ge=0, lt=1)]

# what the released program computes, apparently by mistake (docs/papers/aahr.md 16, numbers 2, 6, 13; 5; 8; 11)
RELEASED = {"mask_padding": False, "mask_same_image": False, "momentum_mode": "train", "clamp_distance": False}


class AahrHeadConfig(HeadSection):
    """Ambiguity-aware, high-order relations: global-guided pooling, prototypes, an instance graph, momentum queues."""

    kind: Literal["aahr"] = "aahr"
    preset: Literal["aahr", "aahr_release"] = Field(
        "aahr", description="the method as the paper describes it, or as released (with other defaults below)"
    )

    embed_dim: PositiveInt = Field(1024, description="width D of the embeddings")
    num_heads: PositiveInt = Field(16, description="attention heads of both transformers")
    dropout: Share = Field(0.1, description="in both transformers")
    image_projection: Literal["linear", "mlp"] = Field(
        "linear", description="of image tokens; mlp: linear + MLP with batch norm, as published for regions"
    )
    token_dropout: Share = Field(0.2, description="fraction of image tokens that training drops")
    pooling_heads: PositiveInt = Field(8, description="full-width heads of the global-guided pooling")
    max_k: PositiveInt = Field(2, description="largest values per dimension that the residual pooling averages")
    beta: Annotated[float, Field(ge=0, le=1)] = Field(0.8, description="weight of the residual pooling")
    mask_padding: bool = Field(
        True, description="padding takes no part in pooling, batch norm and relevance; aahr_release: false"
    )
    normalize_output: bool = Field(False, description="embeddings of unit length: cosine instead of dot product")

    margin: NonNegativeFloat = Field(0.2, description="of the sampled triplet loss")
    distance_cutoff: Annotated[float, Field(gt=0.5, le=2)] = Field(
        1.7, description="negatives at this distance or beyond are never drawn (published: Flickr30K 1.7, COCO 1.9)"
    )
    clamp_distance: bool = Field(
        True, description="negatives with scores above 1 can be drawn, too; aahr_release: false"
    )
    reference_batch: PositiveInt = Field(
        128,
        description="published batch size, at which sums of hinges and gates in steps are as published (COCO: 256)",
    )

    prototypes: PositiveInt = Field(384, description="number K of prototypes (COCO: 768)")
    prototype_temperature: PositiveFloat = Field(0.1, description="of the softmax over prototypes")
    sinkhorn_epsilon: PositiveFloat = Field(0.1, description="smoothness of the balanced assignment to prototypes")
    sinkhorn_iterations: PositiveInt = Field(3, le=1000, description="steps that balance the assignment")
    prototype_weight: NonNegativeFloat = Field(0.2, description="of the prototypes' term in the loss")
    prototypes_after: NonNegativeFloat | None = Field(
        None, description="epochs before prototypes take part; default: 2200 steps of reference_batch pairs"
    )

    graph_after: NonNegativeFloat | None = Field(
        None, description="epochs before the graph takes part; default: 8000 steps of reference_batch pairs"
    )
    graph_dropout: Share = Field(0.6, description="in the graph convolutions")
    graph_bias: NonNegativeFloat = Field(1.0, description="weight of relevance in the graph's attention (COCO: 1.5)")
    neighbours: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="fraction of the batch that each photo and caption is connected to"
    )
    edge: Literal["mean", "mlp"] = Field(
        "mean", description="relevance across modalities: the mean of fragment scores, or plus an MLP of the best ten"
    )
    regulariser_weight: NonNegativeFloat = Field(10.0, description="of the relevance; trains only with edge: mlp")

    queue_length: PositiveInt = Field(2048, description="keys of earlier batches")
    queue_temperature: PositiveFloat = Field(0.07, description="of the softmax over the queue")
    queue_weight: NonNegativeFloat = Field(1.0, description="of the queue's term in the loss; 0: no queue")
    queue_query: Literal["local", "fused"] = Field(
        "local", description="embedding that is compared with the (fused) keys; local as published"
    )
    mask_same_image: bool = Field(
        True, description="keys of the query's own photo are not negatives; aahr_release: false"
    )
    same_caption: MaskedCaption = "negative"
    momentum: Share = Field(0.999, description="weight of the old weights in the momentum encoders")
    momentum_mode: Literal["eval", "train"] = Field(
        "eval", description="mode of the momentum encoders; aahr_release: train, with dropout in the keys"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_preset(cls, values):
        if isinstance(values, dict) and values.get("preset") == "aahr_release":
            return RELEASED | values
        return values

    def conflict(self, training) -> str | None:
        if self.embed_dim % self.num_heads:
            return f"head.num_heads: {self.num_heads} heads do not divide head.embed_dim {self.embed_dim}"
        if self.queue_weight and self.queue_length < training.contrastive_batch:
            return (
                f"head.queue_length: {self.queue_length} keys do not hold one batch of {training.contrastive_batch} "
                f"pairs (training.{training.names_of_batch}); use a multiple of it"
            )
        for name in ("prototypes_after", "graph_after"):
            value = getattr(self, name)
            if value is not None and value >= training.epochs:
                return f"head.{name}: {value:g} epochs are all that the run has (training.epochs {training.epochs})"
        return None
