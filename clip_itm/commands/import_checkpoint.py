"""`clip-itm import`: a released checkpoint of CLIP, NPC, or a program on region features as a model folder."""

import argparse
from pathlib import Path

from clip_itm.commands.output import OutputFolder
from clip_itm.visible import say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "import",
        help="turn a released checkpoint (CLIP, NPC, VSE-infinity, SGRAF, CRCL) into a model folder",
        description="Read the weights of a .pt file with OpenAI's names (as the programs of CLIP_ITM and NPC save it) "
        "without executing anything in it, recognise the architecture, and write a folder that `clip-itm evaluate` "
        "and from_pretrained load. With --vocabulary, the file is from VSE-infinity, SGRAF or CRCL on regions.",
        allow_abbrev=False,
    )
    parser.add_argument("file", help="the checkpoint, such as epoch4.pt")
    parser.add_argument(
        "--out", required=True, type=OutputFolder, metavar="DIR", help="a folder that does not exist or is empty"
    )
    parser.add_argument(
        "--text-heads",
        type=int,
        metavar="N",
        help="attention heads of the text tower (default: width / 64, as in every released CLIP)",
    )
    parser.add_argument(
        "--vocabulary", metavar="FILE", help="the vocabulary (.json, .pkl) that a model on region features belongs to"
    )


def run(args: argparse.Namespace) -> int:
    if args.overrides:
        raise ValueError(f"{args.overrides[0]}: an import takes no keys of a recipe; clip-itm evaluate does")
    if not Path(args.file).exists():  # reported before torch is imported
        raise ValueError(f"{args.file} does not exist; expected the file of a checkpoint, such as epoch4.pt")
    if args.vocabulary is None:
        import_checkpoint(args.file, args.out, args.text_heads)
    elif args.text_heads is not None:
        raise ValueError("--text-heads belongs to CLIP, --vocabulary to models on region features: leave one out")
    else:
        import_regions(args.file, args.vocabulary, args.out)
    return 0


def import_checkpoint(file: str | Path, out: str | Path, text_heads: int | None = None) -> None:
    """Write the CLIP in `file` as an `ItmModel` with its processor into the folder `out`, and say what it is.

    `imported_from.json` in `out` names the source: file, sha256, epoch, name, architecture. Raises `ValueError` if the
    file does not hold a CLIP, or `out` is not empty.
    """
    from clip_itm.backbones.build import build_processor
    from clip_itm.backbones.openai_checkpoint import load_backbone, openclip_name, read_checkpoint, tower_name
    from clip_itm.configuration import ItmConfig
    from clip_itm.files import require_free
    from clip_itm.methods.clip.configuration import ClipHeadConfig
    from clip_itm.model import ItmModel

    file, out = Path(file), Path(out)
    require_free(out)
    checkpoint = read_checkpoint(file)
    backbone = load_backbone(checkpoint, text_heads)
    processor = build_processor(backbone.config, None)
    head = ClipHeadConfig(same_image="negative")  # as these programs train
    config = ItmConfig(backbone=backbone.config.model_dump(mode="json"), head=head.model_dump(mode="json"))
    model = ItmModel(config, backbone=backbone)

    architecture = backbone.config.model_config_dict["model_cfg"]
    name = openclip_name(architecture)
    say(f"{file}: {f'recognised as {name}' if name else 'no architecture of OpenAI'}\n{tower_name(architecture)}")
    if architecture["text_cfg"]["vocab_size"] != len(processor.tokenizer):
        say(f"the processor's tokens ({len(processor.tokenizer)}) are not those of this model: give it your own")
    source = {"epoch": checkpoint.epoch, "name": checkpoint.name, "recognised_as": name, "architecture": architecture}
    _save(model, processor, file, out, source)


def import_regions(file: str | Path, vocabulary: str | Path, out: str | Path) -> None:
    """Write the VSE-infinity, SAF or SGR model in `file` as an `ItmModel` with its processor into the folder `out`.

    Its architecture is inferred from the shapes of the weights. Raises `ValueError` for another kind of file, for a
    vocabulary of another size, and if `out` is not empty.
    """
    from pydantic import TypeAdapter

    from clip_itm.backbones.build import build_backbone, build_processor
    from clip_itm.backbones.published_regions import load_parts, regions_section, regions_state
    from clip_itm.configuration import ItmConfig
    from clip_itm.files import require_free
    from clip_itm.kinds import IMPORTED_REGIONS
    from clip_itm.methods.configuration import HeadConfig
    from clip_itm.model import ItmModel
    from clip_itm.similarity.sgraf_checkpoint import similarity_section, similarity_state

    file, out = Path(file), Path(out)
    require_free(out)
    image, text, *similarity = load_parts(file)
    section = regions_section(image, text, vocabulary=str(vocabulary))
    if not similarity and section.pooling != "gpo":
        raise ValueError(f"{file}: neither GPO nor a similarity network in it: its weights do not tell how it compares")
    processor = build_processor(section, None)
    # programs that corrupt no words have no row for the mask token, which is the last one
    if len(processor.tokenizer) - section.vocab_size not in (0, 1):
        raise ValueError(
            f"{vocabulary} has {len(processor.tokenizer) - 1} words, and {file} has embeddings for "
            f"{section.vocab_size}: they do not belong together"
        )
    tokens = {
        "special_token_ids": processor.special_token_ids,
        "hidden_word_id": processor.hidden_word_id,
        "mask_token_id": processor.tokenizer.mask_token_id,
    }
    backbone = build_backbone(section.model_copy(update=tokens), weights=False)
    _load(backbone, regions_state(image, text), file)
    head = TypeAdapter(HeadConfig).validate_python(
        {"kind": IMPORTED_REGIONS} | ({"similarity": similarity_section(similarity[0])} if similarity else {})
    )
    config = ItmConfig(backbone=backbone.config.model_dump(mode="json"), head=head.model_dump(mode="json"))
    model = ItmModel(config, backbone=backbone)
    if similarity:
        _load(model.head.similarity, similarity_state(similarity[0]), file)
    name = head.similarity.kind.upper() if similarity else "VSE-infinity"
    say(f"{file}: recognised as {name}, regions of {section.region_dim}, embeddings of {section.embed_dim}")
    _save(model, processor, file, out, {"recognised_as": name})


def _load(module, state: dict, file: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file}: some of its weights do not go with the others: {error}") from None


def _save(model, processor, file: Path, out: Path, source: dict) -> None:
    import hashlib

    from transformers.utils.logging import disable_progress_bar

    from clip_itm.checksums import write_checksums
    from clip_itm.files import filling, write_json

    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    disable_progress_bar()
    with filling(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_json(folder / "imported_from.json", {"file": file.name, "sha256": digest, **source})
        write_checksums(folder)
    say(f"saved in {out}")
