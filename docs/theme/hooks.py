"""What MkDocs does not do by itself: pages from elsewhere in the repository, and those that are made of the program.

`<!-- keys: head -->` in a page becomes the tables of these keys of a recipe, `<!-- commands -->` the verbs and their
options. Links to files that are no pages, such as code, become their names.
"""

import argparse
import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from clip_itm.cli import make_parser
from clip_itm.key_list import Group, list_keys, title
from clip_itm.recipe import Recipe

ROOT = Path(__file__).parents[2]
FROM_ELSEWHERE = {  # files of the repository that are pages, too
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    **{path.relative_to(ROOT).as_posix(): path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/**/*.md")},
}
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCED = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere."""
    for name, page in FROM_ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is made of the program, and mend links that lead out of docs/."""
    own = page.file.src_uri
    source = next((name for name, place in FROM_ELSEWHERE.items() if place == own), f"docs/{own}")
    markdown = re.sub(r"<!-- keys: (\S+) -->", lambda found: "\n".join(key_tables(found[1])), markdown)
    markdown = markdown.replace("<!-- commands -->", "\n".join(command_pages()))
    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(lambda found: mended(found[1], found[2], source, own), part) for part in parts[::2]]
    return "".join(parts)


def mended(label: str, target: str, source: str, own: str) -> str:
    """A link of the file `source` of the repository, for the page `own`; its label alone where it leads to no page."""
    path, hash_sign, anchor = target.partition("#")
    if not path or "://" in target or target.startswith("mailto:"):
        return f"[{label}]({target})"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if path == "README.md":
        path = "docs/index.md"
    place = FROM_ELSEWHERE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if place is None:
        if not (ROOT / path).exists():
            raise ValueError(f"{source}: {target} leads nowhere")
        return label if "`" in label else f"{label} (`{path}`)"
    return f"[{label}]({posixpath.relpath(place, posixpath.dirname(own) or '.')}{hash_sign}{anchor})"


def key_tables(section: str) -> Iterator[str]:
    """Markdown of the keys of one section of a recipe and of those below it ("recipe": those at the top)."""
    above = None
    for group in list_keys(Recipe):
        if group.section.partition(".")[0] == (section if section != "recipe" else ""):
            if (heading := title(group)) != above:
                yield from ("", f"### {heading}", "")
                yield from (f"- {code(kind)}: {escaped(meaning)}" for kind, meaning in group.choices.items())
                yield from ("", "| key | takes | default | meaning |", "|---|---|---|---|")
            yield from key_rows(group)
            above = heading


def key_rows(group: Group) -> Iterator[str]:
    owners = "-".join((*group.of, *group.kinds))
    for key in group.keys:
        anchor = f"{key.name}-{owners}" if owners else key.name
        default = "required" if key.default is None else code(key.default)
        meaning = "what the others depend on, see above" if group.choices else escaped(key.meaning)
        takes = ", ".join(map(code, key.values))
        yield f'| <span id="{anchor}">{code(key.name.rpartition(".")[2])}</span> | {takes} | {default} | {meaning} |'


def code(text: str) -> str:
    """As code within a cell."""
    return f"<code>{escaped(text)}</code>"


def escaped(text: str) -> str:
    """As text within a cell: no markup; code between backticks stays."""
    parts = html.escape(text, quote=False).split("`")
    marked = [re.sub(r"([\\*_|\[\]{}])", lambda found: f"&#{ord(found[1])};", part) for part in parts]
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(marked))


def command_pages() -> Iterator[str]:
    """Markdown of every verb of `clip-itm`, with what it takes."""
    for verb, parser, summary in verbs_of(make_parser()):
        yield from ("", f"## {verb}", "")
        actions = list(verbs_of(parser))
        yield parser.description or f"{summary[:1].upper()}{summary[1:]}."
        yield from usage(parser) if not actions else ()
        for action, below, about in actions:
            yield from ("", f"### {verb} {action}", "", below.description or f"{about[:1].upper()}{about[1:]}.")
            yield from usage(below)


def verbs_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Name, parser and one line for each verb of a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for entry in action._choices_actions:
                yield entry.dest, action.choices[entry.dest], entry.help or ""


def usage(parser: argparse.ArgumentParser) -> Iterator[str]:
    text = re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).replace(" [-h]", "").strip()
    yield from ("", "```text", text, "```", "", "| argument | meaning |", "|---|---|")
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            yield f"| {code(invocation(action))} | {escaped(meaning(action))} |"


def invocation(action: argparse.Action) -> str:
    """An argument as it is written: --out FOLDER, recipe."""
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices:
        value = "{" + ", ".join(map(str, action.choices)) + "}"
    if action.nargs == 0:
        return ", ".join(action.option_strings)
    return " ".join((*action.option_strings, value if isinstance(value, str) else " ".join(value)))


def meaning(action: argparse.Action) -> str:
    """The help of an argument, with its default filled in."""
    return (action.help or "") % {"default": action.default, "dest": action.dest, "choices": action.choices}
