"""`clip-itm import`: a released CLIP or NPC checkpoint as a model folder."""

import argparse
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "import",
        help="turn a released CLIP or NPC checkpoint into a model folder",
        description="Read the weights of a .pt file with OpenAI's names (the programs of CLIP_ITM and NPC save such) "
        "without executing anything in it, recognise the architecture, and write a folder that `clip-itm evaluate` "
        "and from_pretrained load.",
        allow_abbrev=False,
    )
    parser.add_argument("file", help="the checkpoint, such as epoch4.pt")
    parser.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist or is empty")
    parser.add_argument(
        "--text-heads",
        type=int,
        metavar="N",
        help="attention heads of the text tower (default: width / 64, as in every CLIP that was released)",
    )


def run(args: argparse.Namespace) -> int:
    if args.overrides:
        raise ValueError(f"{args.overrides[0]}: an import takes no keys of a recipe; clip-itm evaluate does")
    import_checkpoint(args.file, args.out, args.text_heads)
    return 0


def import_checkpoint(file: str | Path, out: str | Path, text_heads: int | None = None) -> None:
    """Write the CLIP in `file` as an `ItmModel` with its processor into the folder `out`, and say what it is.

    `imported_from.json` in `out` names the source: file, sha256, epoch, name, architecture. Raises `ValueError` for a
    file that holds no CLIP, and where `out` is not empty.
    """
    import hashlib

    from transformers.utils.logging import disable_progress_bar

    from clip_itm.backbones.build import build_processor
    from clip_itm.backbones.openai_checkpoint import describe, load_backbone, openclip_name, read_checkpoint
    from clip_itm.configuration import ItmConfig
    from clip_itm.files import is_free, write_json
    from clip_itm.heads.configuration import ClipHeadConfig
    from clip_itm.model import ItmModel

    file, out = Path(file), Path(out)
    if not is_free(out):
        raise ValueError(f"{out} exists and is not empty: choose another folder, or delete it")
    checkpoint = read_checkpoint(file)
    backbone = load_backbone(checkpoint, text_heads)
    processor = build_processor(backbone.config, None)
    head = ClipHeadConfig(same_photo="negative")  # as these programs train
    config = ItmConfig(backbone=backbone.config.model_dump(mode="json"), head=head.model_dump(mode="json"))
    model = ItmModel(config, backbone=backbone)

    architecture = backbone.config.model_config_dict["model_cfg"]
    name = openclip_name(architecture)
    print(f"{file}: {f'recognised as {name}' if name else 'no architecture of OpenAI'}\n{describe(architecture)}")
    if architecture["text_cfg"]["vocab_size"] != len(processor.tokenizer):
        print(f"the processor's tokens ({len(processor.tokenizer)}) are not those of this model: give it your own")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    disable_progress_bar()
    model.save_pretrained(out)
    processor.save_pretrained(out)
    source = {"file": file.name, "sha256": digest, "epoch": checkpoint.epoch, "name": checkpoint.name}
    write_json(out / "imported_from.json", {**source, "recognised_as": name, "architecture": architecture})
    print(f"saved in {out}")
