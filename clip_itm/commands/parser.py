"""The parser of the command line, which suggests the nearest known word for an unknown one."""

import argparse
import difflib
import re

from clip_itm.visible import visible

MOST_SHOWN = 4
WITHOUT_RECIPE = ("app", "doctor", "export", "import", "push", "search", "verify")


class Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest choice. Its `epilog` may be a function, called when help is shown."""

    def format_help(self) -> str:
        if callable(self.epilog):
            self.epilog = self.epilog()
        return super().format_help()

    def error(self, message: str):
        """Name the nearest verb or choice for one that does not exist, then exit as usual."""
        found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL)
        if found:
            near = difflib.get_close_matches(found[1], re.findall(r"[\w.-]+", found[2]), n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        super().error(message)

    def exit(self, status: int = 0, message: str | None = None):
        """Exit as usual, with what was typed quoted visibly."""
        super().exit(status, message and visible(message, kept="\n"))


def without_unknown(parser: Parser, words: list[str]) -> argparse.Namespace:
    """The parsed words; an unknown option ends the program with what may have been meant."""
    args, unknown = parser.parse_known_args(words)
    if unknown:
        flag = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
        keys = [] if args.verb in WITHOUT_RECIPE else _recipe_keys()
        near = did_you_mean(flag, _options(parser, words), keys) if flag else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return args


def _recipe_keys() -> list[str]:
    from clip_itm.keys import all_keys  # here, so that `--help` and commands without a recipe do not wait for it
    from clip_itm.recipe import Recipe

    return list(dict.fromkeys(f"--{key}" for key, _ in all_keys(Recipe)))


def _options(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """The options of the verb that `words` name."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [
                option for word in words if word in action.choices for option in _options(action.choices[word], words)
            ]
        found += [word for word in action.option_strings if word.startswith("--")]
    return found


def did_you_mean(flag: str, options: list[str], keys: list[str]) -> list[str]:
    """The options, else the recipe keys, with the same last word as `flag`; without any, those nearest to it."""
    if inner := [key for key in keys if key.startswith(f"{flag}.")]:
        return [key for key in inner if key.endswith((".kind", ".source"))][:1] or inner[:MOST_SHOWN]  # of a section
    leaf = _leaf(flag)
    if leaf not in map(_leaf, [*options, *keys]):
        near = difflib.get_close_matches(leaf, map(_leaf, [*options, *keys]), n=1, cutoff=0.75)
        leaf = near[0] if near else None
    found = [option for option in options if _leaf(option) == leaf]
    return (found or [key for key in keys if _leaf(key) == leaf])[:MOST_SHOWN]


def _leaf(flag: str) -> str:
    return flag.rpartition(".")[2].lstrip("-").replace("-", "_")
