"""`clip-itm <verb>`. Heavy imports wait until a verb runs, so that `--help` answers at once."""

import argparse
import os
import sys
import warnings

from clip_itm.commands import (
    app,
    audit,
    bank,
    compare,
    data,
    evaluate,
    export,
    import_checkpoint,
    index,
    interpolate,
    noise,
    push,
    search,
    train,
    verify,
)
from clip_itm.commands.output import outputs_of
from clip_itm.memory import keep_freed_memory

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "data": data,
    "noise": noise,
    "bank": bank,
    "audit": audit,
    "import": import_checkpoint,
    "index": index,
    "search": search,
    "app": app,
    "export": export,
    "interpolate": interpolate,
    "push": push,
    "verify": verify,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clip-itm",
        description="Fine-tune CLIP for image-text matching when some of the captions are wrong.",
        epilog="Every key of a recipe can be set behind a verb: --noise.ratio 0.4 --training.batch_size 128 "
        "(all of them: clip-itm train --help).",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for command in COMMANDS.values():
        command.add_parser(verbs)
    return parser


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Command words, and recipe overrides (`--section.key VALUE`, `--section.key=VALUE`), wherever they stand."""
    own, overrides = [], []
    rest = iter(words)
    for word in rest:
        key, equals, _ = word.partition("=")
        if key.startswith("--") and ("." in key or key == "--output_dir"):
            overrides.append(word)
            if not equals and (value := next(rest, None)) is not None:
                overrides.append(value)
        else:
            own.append(word)
    return own, overrides


def main(words: list[str] | None = None) -> int:
    """Run one command. Exit status: 0, 1 (the answer is no), 2 (a user's mistake, told without a traceback)."""
    keep_freed_memory()
    warnings.formatwarning = lambda message, *args, **kwargs: f"warning: {message}\n"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader processes are forked; it would warn at every fork
    own, overrides = split_overrides(sys.argv[1:] if words is None else words)
    args = make_parser().parse_args(own)
    args.overrides = overrides
    try:
        with outputs_of(args):
            return COMMANDS[args.verb].run(args) or 0
    except (ValueError, OSError) as error:
        if os.environ.get("CLIP_ITM_DEBUG"):
            raise
        print(f"clip-itm {args.verb}: {_told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        if "torch.distributed" in sys.modules:
            from clip_itm.distributed import leave_process_group

            leave_process_group()


def _told(error: Exception) -> str:
    """The message; without the traceback that a loader process packs into it."""
    text = str(error)
    return text.rpartition("\nValueError: ")[2].strip() if "Original Traceback" in text else text


if __name__ == "__main__":
    sys.exit(main())
