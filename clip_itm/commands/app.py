"""`clip-itm app`: a page in the browser that searches, compares and browses."""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from clip_itm.visible import say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "app",
        help="search in the browser",
        description="Serve a page: search by text and by photo, a heat map of photos against captions, and an audit "
        "to browse and review. It needs no network, and shows only what is indexed and audited. Needs the extra app.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", help="run folder, model folder, or the name of a model on the Hub; not needed to review an --audit"
    )
    parser.add_argument(
        "--index",
        action="append",
        default=[],
        metavar="DIR",
        help="index of photos or captions that clip-itm index made with this model; repeat it for one of each",
    )
    parser.add_argument(
        "--audit", metavar="PATH", help="a run that was audited, the folder of an audit, or its audit.parquet"
    )
    parser.add_argument(
        "--marks", metavar="FILE", help="where the review keeps its marks (default: marks.jsonl next to audit.parquet)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: also for other machines (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer under this name, such as that of a proxy; may be repeated (default: only the names of this "
        "machine)",
    )
    parser.add_argument("--share", action="store_true", help="open it to the world, through a tunnel of gradio.live")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, else the CPU)")


def run(args: argparse.Namespace) -> int:
    if args.overrides:
        raise ValueError(f"{args.overrides[0]}: the app takes no keys of a recipe")
    if not 0 < args.port < 65536:
        raise ValueError(f"--port is {args.port}; expected 1 to 65535")
    if args.model is None and (args.audit is None or args.index):
        raise ValueError("say what to serve: a --model that searches, or an --audit to review")
    if args.model is None and args.share:
        raise ValueError(
            "--share needs a --model; a review alone can be opened to the network (--host), and not to the world"
        )
    if args.marks is not None and args.audit is None:
        raise ValueError("--marks are those of an --audit: say which")
    if find_spec("gradio") is None:
        raise ValueError("the app needs gradio: pip install 'clip-itm[app]'")

    from clip_itm.files import require_model
    from clip_itm.retrieval.app_guard import Names

    Names.of(args.host, args.allow_host)
    if args.model is not None:
        require_model(args.model)

    review = None if args.audit is None else review_of(Path(args.audit), args.marks)
    if review is not None:
        say(f"marks are kept in {review.file.path}")
    if args.model is None:
        from clip_itm.retrieval.review_server import serve_review

        serve_review(review, args.host, args.port, args.allow_host)
        return 0

    from clip_itm.retrieval.app import build_app, serve
    from clip_itm.retrieval.review_routes import review_routes

    app = build_app(pipeline_of(args.model, args.device, args.index), review and review.audit)
    serve(app, args.host, args.port, args.share, args.allow_host, review_routes(review) if review else ())
    return 0


def review_of(audit: Path, marks: str | None):
    """The `Review` of an audit. Raises ValueError if it is not an audit, or if marks cannot be kept."""
    from clip_itm.data.mark_file import MarkFile
    from clip_itm.retrieval.app_audit import AuditTable, audit_file
    from clip_itm.retrieval.review import Review

    table = AuditTable.load(audit)
    file = Path(marks) if marks else audit_file(audit).with_name("marks.jsonl")
    place = file if file.exists() else file.parent
    if file.is_dir() or not place.exists() or not os.access(place, os.W_OK):
        raise ValueError(f"{file}: marks cannot be kept there; name a file in a folder that can be written (--marks)")
    return Review(table, MarkFile(file))


def pipeline_of(model: str, device: str | None, indexes: list[str]):
    """The pipeline of a model with its indexes. Raises ValueError for an index that is not one of the model's."""
    from clip_itm.retrieval.pipeline import load_pipeline

    pipe = load_pipeline(model, device)
    galleries: dict[str, str] = {}
    for where in indexes:
        index = pipe.load_index(where)
        if index.modality in galleries:
            raise ValueError(
                f"{galleries[index.modality]} and {where} are both indexes of {index.modality}s; give one of each kind"
            )
        if not len(index):
            raise ValueError(f"{where}: there is nothing in this index; add to it with clip-itm index")
        galleries[index.modality] = where
    return pipe
