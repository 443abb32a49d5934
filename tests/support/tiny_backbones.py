"""Tiny random models of every kind of backbone, saved as their makers save them; and what tests do with them."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from clip_itm.backbones.base import Backbone
from clip_itm.backbones.blocks import parameters
from clip_itm.backbones.build import build_backbone, build_processor
from clip_itm.backbones.configuration import (
    BackboneConfig,
    BertVitBackbone,
    OpenClipBackbone,
    TimmWordsBackbone,
    TransformersBackbone,
)
from clip_itm.backbones.openclip_source import openai_tokenizer
from clip_itm.processing import ItmProcessor

CAPTIONS = ["a dog runs over the grass", "two cats", "a child on a red bike in the sun", "the dog"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for caption in CAPTIONS for word in caption.split()})]
SIZE = 32
VIT = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TRANSFORMER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = {"height": SIZE, "width": SIZE}
PHOTOS = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (40, 56, 3), dtype=np.uint8)) for k in range(4)]

KINDS = [
    "open_clip",
    "open_clip-resnet",
    "open_clip-timm",
    "open_clip-siglip",
    "open_clip-bert",
    "clip",
    "siglip",
    "siglip2",
    "bert-vit",
    "bag",
    "gru",
    "transformer",
    "sentence",
]
# towers of which every part is a transformer block
TRANSFORMERS = ["open_clip", "open_clip-timm", "open_clip-siglip", "open_clip-bert", "clip", "siglip"]
TRANSFORMERS += ["siglip2", "bert-vit"]


def tiny_config(kind: str, folder: Path, **options) -> BackboneConfig:
    """The section of a tiny backbone; what it names is made in `folder`. `options` are fields of the section."""
    if kind.startswith("open_clip"):
        return OpenClipBackbone(model=str(_open_clip_file(kind, folder)), **options)
    if kind in ("clip", "siglip", "siglip2"):
        make = {"clip": _clip, "siglip": _siglip, "siglip2": _siglip2}[kind]
        return TransformersBackbone(model=str(make(folder)), **options)
    if kind == "bert-vit":
        return BertVitBackbone(text_model=str(_bert(folder)), vision_model=str(_vit(folder)), embed_dim=16, **options)
    sizes = {"embed_dim": 16, "word_dim": 12, "text_hidden": 20, "min_word_count": 1, "image_size": SIZE}
    if kind == "sentence":  # an encoder of sentences and an MLP behind it
        del sizes["word_dim"]
        kind, options = "bert", {"text_model": str(_bert(folder)), "text_projection": "mlp", **options}
    defaults = {"image_model": "test_efficientnet", "image_pretrained": False, "text_encoder": kind}
    return TimmWordsBackbone(**{**sizes, **defaults, **options})


def tiny_backbone(kind: str, folder: Path, seed: int = 0, **options) -> tuple[Backbone, ItmProcessor]:
    config = tiny_config(kind, folder, **options)
    processor = build_processor(config, CAPTIONS)
    torch.manual_seed(seed)
    return build_backbone(config, processor=processor), processor


def _open_clip_file(kind: str, folder: Path) -> Path:
    model = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}
    if kind == "open_clip-resnet":
        model["vision_cfg"] = {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    if kind == "open_clip-timm":
        model["vision_cfg"] = {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"}
    if kind == "open_clip-siglip":
        name = str(_word_tokenizer(folder))
        model["text_cfg"] = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        model["text_cfg"] |= {
            "context_length": 16,
            "hf_tokenizer_name": name,
            "tokenizer_kwargs": {"clean": "canonicalize"},
        }
        model |= {"custom_text": True, "init_logit_bias": -10}
    if kind == "open_clip-bert":
        name = str(_bert(folder))
        model["text_cfg"] = {"hf_model_name": name, "hf_tokenizer_name": name, "hf_proj_type": "linear"}
        model["text_cfg"]["hf_pooler_type"] = "mean_pooler"
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(model))
    return path


def _clip(folder: Path) -> Path:
    if (folder / "clip").exists():
        return folder / "clip"
    text = {**TRANSFORMER, "max_position_embeddings": 24, "eos_token_id": 49407, "bos_token_id": 49406}
    vision = {**TRANSFORMER, "image_size": SIZE, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder / "clip")
    openai_tokenizer().save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE).save_pretrained(folder / "clip")
    return folder / "clip"


def _siglip(folder: Path) -> Path:
    if (folder / "siglip").exists():
        return folder / "siglip"
    text = {**TRANSFORMER, "vocab_size": len(VOCABULARY), "max_position_embeddings": 16, "projection_size": 32}
    vision = {**TRANSFORMER, "image_size": SIZE, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder / "siglip")
    SiglipImageProcessor(size=SQUARE).save_pretrained(folder / "siglip")
    return _word_tokenizer(folder / "siglip")


def _siglip2(folder: Path) -> Path:
    """Of variable resolution: positions are a grid of 4 x 4, photos have 12 patches of 8 x 8 pixels."""
    if (folder / "siglip2").exists():
        return folder / "siglip2"
    tokenizer = _gemma_tokenizer()
    text = {**TRANSFORMER, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**TRANSFORMER, "num_patches": 16, "patch_size": 8}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder / "siglip2")
    Siglip2ImageProcessor(patch_size=8, max_num_patches=12).save_pretrained(folder / "siglip2")
    tokenizer.save_pretrained(folder / "siglip2")
    return folder / "siglip2"


def _gemma_tokenizer() -> Siglip2Tokenizer:
    """The class that transformers takes for SigLIP 2; a space belongs to the word behind it, words are one token."""
    words = [f"▁{word}" for word in VOCABULARY[4:]] + [caption.split()[0] for caption in CAPTIONS]
    merges = list(dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word))))
    pieces = dict.fromkeys([*VOCABULARY[:4], *sorted(set("".join(words))), *map("".join, merges)])
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    tokenizer = Siglip2Tokenizer(
        {piece: number for number, piece in enumerate(pieces)}, merges, mask_token="[UNK]", **specials
    )
    ending = processors.TemplateProcessing(single="$0 [SEP]", special_tokens=[("[SEP]", 3)])
    tokenizer.backend_tokenizer.post_processor = ending
    return tokenizer


def _word_tokenizer(folder: Path) -> Path:
    """Words, then an end token, and padding; like SigLIP's, without a start token."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$0 [SEP]", special_tokens=[("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", model_max_length=16
    ).save_pretrained(folder)
    return folder


def _bert(folder: Path) -> Path:
    if (folder / "bert").exists():
        return folder / "bert"
    words = [*VOCABULARY, "[MASK]"]
    config = BertConfig(**TRANSFORMER, vocab_size=len(words), max_position_embeddings=24)
    BertModel(config).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "bert" / "vocab.txt"), model_max_length=24).save_pretrained(folder / "bert")
    return folder / "bert"


def _vit(folder: Path) -> Path:
    if (folder / "vit").exists():
        return folder / "vit"
    ViTModel(ViTConfig(**TRANSFORMER, image_size=SIZE, patch_size=16)).save_pretrained(folder / "vit")
    ViTImageProcessor(size=SQUARE).save_pretrained(folder / "vit")
    return folder / "vit"


def batch_of(processor) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """What an image trunk takes of the photos by name, and what a text trunk takes of the captions."""
    captions = processor(text=CAPTIONS)
    return dict(processor(images=PHOTOS)), captions["input_ids"], captions["attention_mask"]


def embed(backbone, batch) -> tuple[torch.Tensor, torch.Tensor]:
    photos, input_ids, attention_mask = batch
    images = backbone.image_neck(backbone.image_trunk(**photos))
    texts = backbone.text_neck(backbone.text_trunk(input_ids, attention_mask))
    return images.pooled, texts.pooled


def gradients(backbone, batch) -> dict[str, torch.Tensor]:
    backbone.zero_grad()
    images, texts = embed(backbone, batch)
    ((images * images.detach().roll(1, 0)).sum() + (images @ texts.T).logsumexp(1).sum()).backward()
    return {name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.grad is not None}


def trunk_names(backbone, blocks) -> set[str]:
    inside = {id(parameter) for parameter in parameters(blocks)}
    return {name for name, parameter in backbone.named_parameters() if id(parameter) in inside}


def dropout_free(backbone) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
