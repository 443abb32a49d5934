"""`clip-itm app`: a page in the browser that searches, compares and browses."""

import argparse
from importlib.util import find_spec
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "app",
        help="search in the browser",
        description="Serve a page: search by text and by photo, a heat map of photos against captions, and an audit "
        "to browse. It needs no network, and shows nothing but what is indexed and audited. Needs the extra app.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="run folder, model folder, or the name of a model on the Hub")
    parser.add_argument(
        "--index",
        action="append",
        default=[],
        metavar="DIR",
        help="index of photos or of captions that clip-itm index made with this model; twice for one of each",
    )
    parser.add_argument("--audit", metavar="PATH", help="a run that was audited, or its audit.parquet")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines, too (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer under this name, such as that of a proxy; may be given again (default: only under the names "
        "of this machine)",
    )
    parser.add_argument("--share", action="store_true", help="open it to the world, through a tunnel of gradio.live")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, else the CPU)")


def run(args: argparse.Namespace) -> int:
    if args.overrides:
        raise ValueError(f"{args.overrides[0]}: the app takes no keys of a recipe")
    if not 0 < args.port < 65536:
        raise ValueError(f"--port is {args.port}; expected 1 to 65535")
    if find_spec("gradio") is None:
        raise ValueError("the app needs gradio: pip install 'clip-itm[app]'")

    from clip_itm.files import require_model
    from clip_itm.retrieval.app_guard import Names

    Names.of(args.host, args.allow_host)
    require_model(args.model)

    from clip_itm.retrieval.app import build_app, serve
    from clip_itm.retrieval.pipeline import load_pipeline

    pipe = load_pipeline(args.model, args.device)
    galleries: dict[str, str] = {}
    for where in args.index:
        index = pipe.load_index(where)
        if index.modality in galleries:
            raise ValueError(
                f"{galleries[index.modality]} and {where} are both indexes of {index.modality}s; give one of each kind"
            )
        if not len(index):
            raise ValueError(f"{where}: there is nothing in this index; add to it with clip-itm index")
        galleries[index.modality] = where
    app = build_app(pipe, None if args.audit is None else Path(args.audit))
    serve(app, args.host, args.port, args.share, args.allow_host)
    return 0
