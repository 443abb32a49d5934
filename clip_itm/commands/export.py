"""`clip-itm export MODEL --to open_clip | transformers | onnx`: a model for programs that do not know this package."""

import argparse
from pathlib import Path

from clip_itm.commands.output import OutputFolder


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "export",
        help="write a model as a native open_clip or transformers folder, or as ONNX",
        description="Write the towers, the temperature and the preprocessing of a run's best model, or of a saved "
        "model, so that they load without this package. The result is loaded again and has to give the same "
        "embeddings. Adapters (LoRA) are merged into the weights.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="run folder or model folder")
    parser.add_argument("--to", required=True, choices=("open_clip", "transformers", "onnx"), help="onnx: extra onnx")
    parser.add_argument(
        "--out", required=True, type=OutputFolder, metavar="DIR", help="a folder that does not exist or is empty"
    )


def run(args: argparse.Namespace) -> int:
    if args.overrides:
        raise ValueError(f"{args.overrides[0]}: an export takes no keys of a recipe")

    from clip_itm.files import model_folder, require_free

    model_folder(args.model)  # reported before torch is imported, as is a folder that is taken
    require_free(Path(args.out))

    from transformers.utils.logging import disable_progress_bar

    from clip_itm.hub.export import export
    from clip_itm.visible import say

    disable_progress_bar()
    difference = export(args.model, args.to, args.out)
    say(f"saved in {args.out}; loaded again, its embeddings differ by at most {difference:.1g} (how: its README.md)")
    return 0
