"""`clip-itm index MODEL GALLERY --out DIR`: encode images or captions once, so that they can be searched."""

import argparse
import warnings
from pathlib import Path

from clip_itm.visible import counted, say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "index",
        help="encode a folder of photos, or captions, for search",
        description="Encode a gallery with a model and keep it in a folder. The same command adds what is new, and "
        "resumes after an interruption. GALLERY is a folder of photos (with the folders below it) or of tars, or a "
        "file of captions (.txt: one per line; .csv, .tsv, .jsonl, .json: a column of captions). Without it, --split "
        "takes a split of the model's own data; keys such as --data.root say where they are now.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="run folder, model folder, or the name of a model on the Hub")
    parser.add_argument("gallery", nargs="?", help="folder of photos or file of captions")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the index, or qdrant+http://HOST:PORT/NAME"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), help="a split of the model's own data")
    parser.add_argument("--of", choices=("photos", "captions"), help="which side of the split (default: photos)")
    parser.add_argument("--kind", choices=("auto", "exact", "hnsw", "ivf-pq"), help="default: auto, by size")
    parser.add_argument("--dtype", choices=("float32", "float16"), help="type of stored vectors (default: float32)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--num-workers", type=int, default=0, metavar="N", help="processes that read photos")
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out photos and captions that cannot be read, and name them",
    )
    parser.add_argument(
        "--thumbnails", action="store_true", help="keep small photos in the index, to show it on other machines"
    )
    parser.add_argument("--prune", action="store_true", help="remove items that are no longer in the gallery")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, else the CPU)")


def run(args: argparse.Namespace) -> int:
    if (args.gallery is None) == (args.split is None):
        raise ValueError(
            "say what to index: a folder of photos or a file of captions, or --split of the model's own data"
        )
    if args.of and args.split is None:
        raise ValueError("--of chooses a side of --split; a folder has photos, a file has captions")
    if args.overrides and args.split is None:
        raise ValueError(f"{args.overrides[0]}: keys of a recipe say where a --split is; a folder needs none")
    for name in ("batch_size", "num_workers"):
        if getattr(args, name) < (name == "batch_size"):
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected a positive number")
    _check_out(args.out)
    from clip_itm.files import require_model

    require_model(args.model)
    gallery = _given(Path(args.gallery), args.skip_broken) if args.gallery else None

    from clip_itm.retrieval.pipeline import load_pipeline

    if args.split:
        gallery = _split(args)
    modality = "text" if args.of == "captions" or isinstance(gallery, dict) else "image"
    pipe = load_pipeline(args.model, args.device)
    index = pipe.index(
        gallery,
        modality,
        folder=args.out,
        kind=args.kind,
        dtype=args.dtype,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        skip_broken=args.skip_broken,
        thumbnails=args.thumbnails,
        prune=args.prune,
    )
    say(f"{args.out}: {len(index):,} {'photos' if modality == 'image' else 'captions'}; {index.note}")
    say(f"this run: {pipe.changes}")
    say(f'search it: clip-itm search {args.model} {args.out} "a dog in the snow"')
    return 0


def stopped(args: argparse.Namespace) -> str:
    """What to say when Ctrl-C has stopped the indexing."""
    return f"stopped; what {args.out} holds is whole, and the same command adds the rest"


def _check_out(out: str) -> None:
    """Raise ValueError, before anything is loaded, for a folder with other content or one that is being written."""
    if out.startswith("qdrant+"):
        return
    from clip_itm.lock import locked
    from clip_itm.retrieval.storage import require_index_folder

    require_index_folder(Path(out))
    if Path(out).is_dir():
        with locked(out, "index"):
            pass


def _given(gallery: Path, skip_broken: bool):
    """The folder, or the captions of a file by id. Raises ValueError, naming file and line."""
    if gallery.is_dir():
        from clip_itm.retrieval.images import image_files
        from clip_itm.retrieval.sources import holds_shards

        if not holds_shards(gallery):
            image_files(gallery)
        return gallery
    if not gallery.exists():
        raise ValueError(f"{gallery}: there is no such folder of photos or file of captions")
    from clip_itm.data.caption_file import read_caption_file

    skipped: list[str] = []
    captions = read_caption_file(gallery, skipped if skip_broken else None)
    if skipped:
        from clip_itm.data.skipped import shown

        lines = shown(skipped, separator="\n  ")
        warnings.warn(
            f"{counted(len(skipped), 'caption cannot be used and is', 'captions cannot be used and are')} left "
            f"out:\n  {lines}",
            stacklevel=1,
        )
    return captions


def _split(args: argparse.Namespace):
    from clip_itm.data.load import load_splits
    from clip_itm.files import model_folder
    from clip_itm.recipe import load_recipe

    splits = load_splits(load_recipe(model_folder(args.model), args.overrides).data)
    if args.split not in splits:
        raise ValueError(f"--split {args.split}: these data have {', '.join(splits)}")
    return splits[args.split].rows
