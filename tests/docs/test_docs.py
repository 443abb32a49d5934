"""The documentation is true: commands parse, recipes exist and are valid, links lead somewhere, code runs."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest

from clip_itm.cli import main, make_parser, split_overrides
from clip_itm.data.images import read_image
from clip_itm.data.load import load_splits
from clip_itm.recipe import load_recipe, parse_recipe
from clip_itm.runs.setup import make_model
from support.paths import ROOT
from support.tiny import tiny_recipe

NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("recipes/**/*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `clip-itm ...` and of every launch of recipes/*.py in the pages and recipes."""
    found = []
    pages = [page for page in PAGES if page.name != "bad_input.md"]  # answers, not commands
    for page in [*pages, *ROOT.glob("recipes/*.py"), *ROOT.glob("recipes/*/*.yaml"), ROOT / "accelerate_config.yaml"]:
        text = page.read_text().replace("\\\n#", "").replace("\\\n", "")
        for line in re.findall(r"(?:^ *|`|# {2,})((?:clip-itm|accelerate launch) [^`\n]+)", text, re.M):
            words = shlex.split(line, comments=True)
            if words[0] == "accelerate":
                script = next((number for number, word in enumerate(words) if word.endswith(".py")), None)
                if script is None:
                    continue
                words = ["clip-itm", Path(words[script]).stem, *words[script + 1 :]]
            if len(words) > 2 and not words[2].isupper():
                found.append((page.relative_to(ROOT).as_posix(), words[1:]))
    return found


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_commands_parse_and_their_recipes_are_valid(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    own, overrides = split_overrides(words)
    if "--help" in own:
        return
    args = make_parser().parse_args(own)
    for name in ("recipe", "recipes", "what"):
        value = getattr(args, name, None) or []
        for file in [value] if isinstance(value, str) else value:
            if file.startswith("recipes/"):
                assert load_recipe(file, overrides).output_dir


def test_there_are_commands_to_check():
    pages = {page for page, _ in commands()}
    assert {"README.md", "docs/training.md", "docs/noise.md", "recipes/train.py"} <= pages
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/**/*.md")} <= pages, "a table without one"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_yaml_of_the_readme_is_a_recipe():
    import yaml

    for block in blocks(ROOT / "README.md", "yaml"):
        assert parse_recipe(yaml.safe_load(block), "README.md").data.source == "folder"


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path, capsys):
    """The same verbs on the smallest sample, and the code that searches."""
    recipe = tiny_recipe(tmp_path, training={"max_steps": 2})
    file = tmp_path / "my.yaml"
    file.write_text(recipe.to_yaml())
    (tmp_path / "photos").mkdir()
    for row in load_splits(recipe.data)["test"].rows:
        read_image(row["image"]).save(tmp_path / "photos" / f"{row['image_id']}.png")
    folder, photos, gallery = (str(tmp_path / name) for name in ("run", "photos", "gallery"))
    for words in (
        ["data", "check", str(file)],
        ["train", str(file)],
        ["evaluate", folder, "--plot", str(tmp_path / "recall.png")],
        ["noise", "make", str(file), "--out", str(tmp_path / "noise.npz")],
        ["noise", "info", str(tmp_path / "noise.npz"), str(file)],
        ["compare", str(file), "--noise", "0", "--seeds", "0", "--out", str(tmp_path / "grid")],
        ["index", folder, photos, "--out", gallery],
        ["search", folder, gallery, "a red mug", "--montage", str(tmp_path / "mugs.png")],
        ["push", folder, "me/my-clip", "--index", gallery, "--dry-run"],
        ["export", folder, "--to", "open_clip", "--out", str(tmp_path / "exported")],
        ["interpolate", "--tuned", folder, "--out", str(tmp_path / "line"), "--alphas", "0:1:0.5"],
    ):
        assert main(words) == 0, words
    for page in ("README.md", "docs/retrieval.md"):
        code = next(block for block in blocks(ROOT / page, "python") if "pipe.index" in block)
        code = (
            code.replace("runs/my/best", f"{folder}/best")
            .replace('"photos"', repr(photos))
            .replace('"gallery"', repr(str(tmp_path / f"gallery of {Path(page).stem}")))
        )
        names = {}
        exec(code, names)
        assert len(names["pipe"]("a red mug", top_k=100)) == 12


def test_the_code_about_groups_and_suggestions_runs(tmp_path, capsys):
    """On the sample, with a tiny model in the place of the reader's run."""
    recipe = tiny_recipe(tmp_path)
    splits = load_splits(recipe.data)
    model, model.processor = make_model(recipe, splits)
    names = {"recipe": recipe, "model": model}
    first, second = blocks(ROOT / "docs/groups.md", "python")
    exec(first.replace('load_recipe("recipes/sample/clip.yaml")', "recipe"), names)
    assert len(names["hashes"]) == sum(map(len, splits.values()))
    capsys.readouterr()
    exec(second.replace('load_model("runs/my")', "model"), names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names["suspects"]) > 0
    assert all(" -> " in line for line in lines)
    assert names["found"].index.shape == (len(lines), 5)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_with_small_outputs(notebook):
    """`make notebooks` runs them; what they show is asserted in their own cells, and stored by notebooks/store.py."""
    stored = nbformat.read(notebook, as_version=nbformat.NO_CONVERT)
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert stored.metadata.kernelspec.name == "python3", "the kernel of the environment that runs them"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert notebook.stat().st_size < 1_000_000
    assert {cell.execution_count for cell in code} == {None}
    assert "importlib.util.find_spec" in code[0].source, "the cell that installs where nothing is installed"
    assert not any("widgets" in part.metadata for part in (stored, *stored.cells))
    assert re.search(r"^ *assert ", "\n".join(cell.source for cell in code), re.M), "a fact that can fail"


def test_notebooks_name_no_folder_of_a_machine_and_link_to_files():
    assert len(NOTEBOOKS) == 5
    for notebook in NOTEBOOKS:
        text = notebook.read_text()
        assert not re.search(r"[\"'( ](/|~/|[A-Z]:\\\\)\w", text), notebook.name
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (notebook.parent / link).is_file(), link
