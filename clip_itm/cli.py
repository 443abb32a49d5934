"""`clip-itm <verb>`. Heavy imports wait until a verb runs, so that `--help` answers at once."""

import os
import re
import select
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version

from clip_itm.allocator import keep_freed_memory
from clip_itm.commands import (
    app,
    audit,
    compare,
    data,
    doctor,
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
from clip_itm.commands.parser import Parser, without_unknown
from clip_itm.kinds import COMMANDS as OF_METHODS
from clip_itm.visible import say, visible

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "data": data,
    "noise": noise,
    **{verb: import_module(f"clip_itm.methods.{kind}.command") for verb, kind in OF_METHODS.items()},
    "audit": audit,
    "import": import_checkpoint,
    "index": index,
    "search": search,
    "app": app,
    "export": export,
    "interpolate": interpolate,
    "push": push,
    "verify": verify,
    "doctor": doctor,
}

MISTAKE, FAULT = 2, 3  # exit statuses: by the user, by this program
INTERRUPTED, BROKEN_PIPE = 130, 141  # as of any program that a signal ends
LESS_MEMORY = "lower training.batch_size, evaluation.batch_size or data.num_workers"
NO_UTF8 = "this locale has ASCII only: set PYTHONUTF8=1, or LC_ALL to a UTF-8 one, such as C.UTF-8"
PLEASE_REPORT = "this is a fault of clip-itm: please report it, with the traceback that CLIP_ITM_DEBUG=1 shows"


def make_parser() -> Parser:
    """The parser of `clip-itm` with all its verbs."""
    parser = Parser(
        prog="clip-itm",
        description="Fine-tune CLIP for image-text matching when some of the captions are wrong.",
        epilog="Every key of a recipe can be set after a verb: --noise.ratio 0.4 --training.batch_size 128 "
        "(all of them: clip-itm train --help).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"clip-itm {version('clip-itm')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for command in COMMANDS.values():
        command.add_parser(verbs)
    return parser


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Command words, and recipe overrides (`--section.key VALUE`, `--section.key=VALUE`), in any order."""
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
    """Run one command.

    Exit status: 0; 1, the answer is no; 2, a user's mistake, reported without a traceback; 3, a fault of this program;
    130 after Ctrl-C; 141 if nobody reads the output any more.
    """
    keep_freed_memory()
    warnings.formatwarning = _warning
    # read when torch is loaded: waiting OpenMP threads leave the cores to others instead of spinning
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings("ignore", message="Detected pickle protocol")  # of a file that is refused
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader processes are forked; it would warn at every fork
    with suppress(AttributeError, ValueError):  # file names may hold bytes, and the terminal may know ASCII only
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(sys.argv[1:] if words is None else words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        with suppress(OSError, ValueError):  # else Python complains when it flushes once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _run(words: list[str]) -> int:
    own, overrides = split_overrides(words)
    args = without_unknown(make_parser(), own)
    args.overrides = overrides
    try:
        with outputs_of(args):
            return COMMANDS[args.verb].run(args) or 0
    except KeyboardInterrupt:
        say(f"\n{_stopped(args)}", sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("CLIP_ITM_DEBUG") or (isinstance(error, BrokenPipeError) and _nobody_reads()):
            raise
        status, told = _told(error)
        say(f"clip-itm {args.verb}: {told}", sys.stderr)
        return status
    finally:
        if "torch.distributed" in sys.modules:
            from clip_itm.distributed import leave_process_group

            leave_process_group()


def _warning(message, *args, **kwargs) -> str:
    return visible(f"warning: {message}\n", kept="\n")


def _told(error: Exception) -> tuple[int, str]:
    """Exit status and message; without the traceback that a loader process packs into it."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return MISTAKE, f"there is not enough memory ({text.splitlines()[0] if text else 'MemoryError'}); {LESS_MEMORY}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return MISTAKE, f"{os.fsdecode(error.filename)}: {error.strerror.lower()}"
    if isinstance(error, UnicodeEncodeError) and error.encoding == "ascii":
        return MISTAKE, f"{error.object!r}: {NO_UTF8}"
    if isinstance(error, ValueError | OSError):
        return MISTAKE, text.rpartition("\nValueError: ")[2].strip() if "Original Traceback" in text else text
    if found := re.search(r"\(os error (\d+)\)", text):  # of a library in Rust, such as safetensors on a full disk
        return MISTAKE, f"{os.strerror(int(found[1])).lower()} ({text})"
    return FAULT, f"{type(error).__name__}: {text or 'no message'}\n{PLEASE_REPORT}"


def _stopped(args) -> str:
    """What happened to the work that Ctrl-C ended."""
    command = COMMANDS[args.verb]
    with suppress(Exception):  # a second Ctrl-C, or a recipe that is gone
        if hasattr(command, "stopped"):
            return command.stopped(args)
    return "stopped"


def _nobody_reads() -> bool:
    """Whether standard output or error goes into a pipe whose reader is gone."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
