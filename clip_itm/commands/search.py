"""`clip-itm search MODEL INDEX QUERY...`: the best images or captions of an index, as a table, a page or a picture."""

import argparse
import os
from pathlib import Path

from clip_itm.commands.output import OutputFile


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "search",
        help="search an index by text or photo",
        description="A query is text, or the path or URL of a photo (ending like the name of a photo file).",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="the model that made the index: run folder, model folder or name on the Hub")
    parser.add_argument("index", help="folder of clip-itm index, or qdrant+http://HOST:PORT/NAME")
    parser.add_argument("queries", nargs="*", metavar="QUERY", help="text, or a photo")
    parser.add_argument("--queries-from", metavar="FILE", help="one query per line")
    parser.add_argument("--top-k", type=int, default=10, metavar="K", help="results per query (default: 10)")
    parser.add_argument("--json", type=OutputFile, metavar="FILE", help="write the results here as JSON")
    parser.add_argument("--html", type=OutputFile, metavar="FILE", help="write a page that shows the results")
    parser.add_argument(
        "--montage", type=OutputFile, metavar="FILE", help="draw the results of each query as a row of photos (.png)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, else the CPU)")


def _as_typed(query: str) -> str:
    """A query with characters that an ASCII locale could not read; names of images stay as the system has them."""
    try:
        query.encode()
    except UnicodeEncodeError:
        if os.path.exists(query):
            return query
        try:
            return os.fsencode(query).decode()
        except UnicodeError:
            raise ValueError(f"{query!r}: expected a query in UTF-8, or the path of a photo") from None
    return query


def _require_model_and_index(args: argparse.Namespace) -> None:
    """Raise ValueError for what is missing, before anything heavy is imported."""
    from clip_itm.files import require_model

    require_model(args.model)
    if not args.index.startswith("qdrant+") and not Path(args.index).is_dir():
        raise ValueError(f"{args.index}: there is no such folder; expected an index, which clip-itm index makes")


def run(args: argparse.Namespace) -> int:
    if args.overrides:
        raise ValueError(f"{args.overrides[0]}: a search takes no keys of a recipe")
    from clip_itm.files import is_stream

    queries = [_as_typed(query) for query in args.queries]
    if args.queries_from:
        from clip_itm.data.formats.annotation_files import read_lines

        queries += [line.strip() for line in read_lines(Path(args.queries_from)) if line.strip()]
    _require_model_and_index(args)
    if not queries:
        raise ValueError("nothing to search for: give a QUERY, or a file of them with --queries-from")
    if args.top_k < 1:
        raise ValueError(f"--top-k is {args.top_k}; expected at least 1")
    if args.montage and not is_stream(args.montage) and not args.montage.lower().endswith((".png", ".jpg", ".webp")):
        raise ValueError(f"--montage {args.montage}: expected a picture, such as {args.montage}.png")

    from clip_itm.commands.terminal import print_results
    from clip_itm.files import write_json, write_text
    from clip_itm.retrieval.pipeline import load_pipeline
    from clip_itm.retrieval.show import Answer, draw_montage, results_page
    from clip_itm.visible import say

    pipe = load_pipeline(args.model, args.device)
    index = pipe.load_index(args.index)
    found = pipe.search(queries, args.top_k, index.modality)
    answers = [Answer(query, hits) for query, hits in zip(queries, found, strict=True)]
    for answer in answers:
        print_results(answer.query, [(hit.rank, hit.score, answer.label(hit)) for hit in answer.hits])
        print()
    if args.json:
        write_json(args.json, [answer.as_dict() for answer in answers])
    if args.html:
        write_text(args.html, results_page(answers, f"{args.index}: {len(index):,} {index.modality}s"))
        say(f"page: {args.html}")
    if args.montage:
        draw_montage(answers, args.montage)
        say(f"picture: {args.montage}")
    return 0
