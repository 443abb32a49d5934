"""A Gradio Space that shows a pushed model: a few lines around `build_app`, and the source of this package."""

import json
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import yaml

from clip_itm.task import TASK


def space_files(model: str, revision: str | None = None, with_index: bool = False) -> dict[str, bytes | Path]:
    """Content by path, for a Space that loads `model` from the Hub and, `with_index`, its indexes.

    The package is included as source, so that the Space need not find it in a package index. Raises ValueError if
    gradio is not installed: the Space runs the version that is installed here.
    """
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        raise ValueError("a Space needs the app: pip install 'clip-itm[app]'") from None
    package = Path(__file__).parents[1]
    source = {
        f"clip_itm/{path.relative_to(package).as_posix()}": path
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    needed = [line for line in requires("clip-itm") or [] if ";" not in line]
    if with_index:  # which may need faiss
        needed += [line.split(";")[0] for line in requires("clip-itm") or [] if 'extra == "search"' in line]
    return {
        "README.md": _readme(model, gradio).encode(),
        "app.py": _app(model, revision, with_index).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in sorted(needed)).encode(),
        **source,
    }


def _readme(model: str, gradio: str) -> str:
    metadata = {
        "title": model.split("/")[-1],
        "emoji": "🔎",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": gradio,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "models": [model],
        "tags": [TASK],
        "license": "apache-2.0",
    }
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()}
---
Search photos with sentences and captions with photos, by [{model}](https://huggingface.co/{model}). `clip_itm/` is the
source of the package that made both.
"""


def _app(model: str, revision: str | None, with_index: bool) -> str:
    where = f'"{model}"' + ("" if revision is None else f", revision={json.dumps(revision)}")
    load_indexes = """
for index in sorted(Path(folder, "index").iterdir()):
    pipe.load_index(index)"""
    return f'''"""Made by `clip-itm push --space`."""

from pathlib import Path

from huggingface_hub import snapshot_download

from clip_itm.retrieval.app import build_app, serve
from clip_itm.retrieval.pipeline import load_pipeline

folder = snapshot_download({where})
pipe = load_pipeline(folder){load_indexes * with_index}
serve(build_app(pipe))
'''
