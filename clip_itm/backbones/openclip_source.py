"""What an open_clip model name stands for: its configuration, its weights, its tokenizer and image processing.

`model_config_dict` of the section holds what an `open_clip_config.json` holds, `model_cfg` and `preprocess_cfg`, and
also `hf_config`, the configuration of a Hugging Face text tower, so that it can be rebuilt without the Hub.
"""

import difflib
import gzip
import logging
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from transformers import AutoTokenizer, CLIPTokenizer

from clip_itm.backbones.configuration import OpenClipBackbone
from clip_itm.backbones.positions import stretched
from clip_itm.image_processing import OpenClipImageProcessor
from clip_itm.loading import loading
from clip_itm.processing import ItmProcessor
from clip_itm.reading import read_json, reason

log = logging.getLogger(__name__)


def find_config(config: OpenClipBackbone) -> dict[str, Any]:
    """`model_cfg` and `preprocess_cfg` of what `config.model` names."""
    name = config.model
    if name.startswith("local-dir:"):
        source = _read_json(Path(name.removeprefix("local-dir:")) / "open_clip_config.json")
    elif name.startswith("hf-hub:"):
        try:
            source = _read_json(
                Path(download_pretrained_from_hf(name.removeprefix("hf-hub:"), "open_clip_config.json"))
            )
        except FileNotFoundError as error:
            raise ValueError(f"{name}: cannot load open_clip_config.json from the Hub: {error}") from error
    elif name.endswith(".json"):
        source = _read_json(Path(name))
        if "model_cfg" not in source:
            source = {"model_cfg": source}
    else:
        source = _builtin_config(name, config.pretrained)
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(source.get("model_cfg", {}))
    if missing:
        raise ValueError(f"{name}: an open_clip model configuration needs {', '.join(sorted(missing))}")
    return source


def with_context_length(source: dict[str, Any], length: int | None, name: str) -> dict[str, Any]:
    """`source` of the model `name` with `length` text positions (None: as many as it has).

    Raises ValueError if there are none that could be stretched.
    """
    if length is None:
        return source
    text = source["model_cfg"]["text_cfg"]
    if "hf_model_name" in text:
        raise ValueError(
            f"backbone.context_length: the text tower of {name} is {text['hf_model_name']}, whose positions are its "
            "own; leave it out, or choose a CLIP such as ViT-B-32-quickgelu"
        )
    if _has_fixed_length(text) or text.get("text_arch", "clip") != "clip":
        raise ValueError(
            f"backbone.context_length: the text tower of {name} has no learned positions that could be stretched, or "
            "reads every caption at one length; leave it out, or choose a CLIP such as ViT-B-32-quickgelu"
        )
    stretched(torch.zeros(text.get("context_length", 77), 1), length)  # says what is wrong before anything is built
    return {**source, "model_cfg": {**source["model_cfg"], "text_cfg": {**text, "context_length": length}}}


def _has_fixed_length(text: dict[str, Any]) -> bool:
    """Whether a tower pools at a fixed position or reads the padding after the words."""
    return "hf_model_name" not in text and (text.get("no_causal_mask", False) or text.get("pool_type") == "last")


def _builtin_config(name: str, tag: str | None) -> dict[str, Any]:
    model = open_clip.get_model_config(name)
    if model is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        raise ValueError(
            f"{name}: open_clip knows no such model (near: {', '.join(near)}); `open_clip.list_models()` has all"
        )
    if tag is None or Path(tag).is_file():
        return {"model_cfg": model}
    pretrained = open_clip.get_pretrained_cfg(name, tag)
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise ValueError(f"{tag}: {name} has no such pretrained tag, and no weights file is there (tags: {tags})")
    wanted = bool(pretrained.get("quick_gelu", False))
    if wanted != bool(model.get("quick_gelu", False)):
        log.warning(
            "%s with %s: these weights were trained %s QuickGELU; built so", name, tag, "with" if wanted else "without"
        )
        model["quick_gelu"] = wanted
    known = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    return {"model_cfg": model, "preprocess_cfg": {key: pretrained[key] for key in known if key in pretrained}}


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, "an open_clip configuration")


def find_weights(config: OpenClipBackbone) -> Path | None:
    """The weights of both towers, downloaded where they have to be."""
    try:
        if config.model.startswith("hf-hub:"):
            return Path(download_pretrained_from_hf(config.model.removeprefix("hf-hub:")))
        if config.model.startswith("local-dir:"):
            return _weights_in(Path(config.model.removeprefix("local-dir:")))
        if config.pretrained is None:
            return None
        if Path(config.pretrained).is_file():
            return Path(config.pretrained)
        path = open_clip.download_pretrained(open_clip.get_pretrained_cfg(config.model, config.pretrained))
        if not path:
            raise FileNotFoundError(f"{config.pretrained} is no file")
        return Path(path)
    except Exception as error:
        raise ValueError(
            f"{config.model} ({config.pretrained or 'its own weights'}): cannot get the weights: {reason(error)}. "
            "Without network, give a weights file as backbone.pretrained, or a folder as backbone.model: local-dir:PATH"
        ) from error


def _weights_in(folder: Path) -> Path:
    stems = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
    names = [stem + suffix for suffix in (".safetensors", ".bin", ".pth") for stem in stems]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")


def processor(config: OpenClipBackbone, captions: list[str] | None = None) -> ItmProcessor:
    """See `build_processor`."""
    source = config.model_config_dict or with_context_length(find_config(config), config.context_length, config.model)
    text = source["model_cfg"]["text_cfg"]
    max_length = text.get("context_length", 77)
    fixed = _has_fixed_length(text)  # captions keep their full length
    images = _image_processor(source)
    if "hf_tokenizer_name" not in text:
        tokenizer = openai_tokenizer(max_length)
        return ItmProcessor(images, tokenizer, "lower", max_length, pad_token_id=0, pad_to_max_length=fixed)
    options = dict(text.get("tokenizer_kwargs") or {})
    cleaning = options.pop("clean", "whitespace")
    if text.get("tokenizer_mode") or options.pop("strip_sep_token", False):
        raise ValueError(
            f"{config.model}: its tokenizer works in a mode that is not supported (tokenizer_mode, strip_sep_token)"
        )
    local = config.model.removeprefix("local-dir:")
    name = text["hf_tokenizer_name"] if local == config.model else local
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if config.context_length is not None:
        tokenizer.model_max_length = max_length
    return ItmProcessor(images, tokenizer, cleaning, max_length, pad_to_max_length=fixed)


def openai_tokenizer(max_length: int = 77) -> CLIPTokenizer:
    """The byte-pair tokenizer of OpenAI's CLIP, from the vocabulary that open_clip ships.

    Its text has to be cleaned first ("lower"), and padded with 0: the vocabulary has no token for padding alone.
    """
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _image_processor(source: dict[str, Any]) -> OpenClipImageProcessor:
    """What `open_clip.image_transform` does for inference."""
    options = source.get("preprocess_cfg") or {}
    size = source["model_cfg"]["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    mode = options.get("resize_mode") or "shortest"
    if mode not in ("shortest", "longest", "squash"):
        raise ValueError(f"preprocess_cfg: expected resize_mode shortest, longest or squash, found {mode!r}")
    target = {"height": height, "width": width}
    bilinear = options.get("interpolation") == "bilinear"
    mean, std = (
        list(value) if isinstance(value, list | tuple) else [value] * 3
        for value in (
            options.get("mean") or open_clip.OPENAI_DATASET_MEAN,
            options.get("std") or open_clip.OPENAI_DATASET_STD,
        )
    )
    if mode == "shortest" and height != width:  # open_clip always uses bicubic interpolation for it
        bilinear = False
    return OpenClipImageProcessor(
        size={"shortest_edge": height} if mode == "shortest" and height == width else target,
        do_center_crop=mode != "squash",
        crop_size=target,
        resample=2 if bilinear else 3,
        image_mean=mean,
        image_std=std,
        resize_mode=mode if mode == "longest" or (mode == "shortest" and height != width) else None,
        fill_color=options.get("fill_color") or None,
    )
