"""What a recipe's text and overrides stand for: text as it is written, bounds, every key once."""

import ast
import subprocess
import sys
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clip_itm.keys import all_keys, all_members, is_text, members, section_types
from clip_itm.recipe import Recipe, RecipeError, load_recipe, parse_recipe
from clip_itm.section import LARGEST, Section
from clip_itm.yaml_text import read_yaml
from support.paths import ROOT

MINIMAL = {"data": {"source": "sample"}, "backbone": {"kind": "open_clip"}}
KINDS = {  # a recipe in which a text key may be set
    "data": {
        "folder": {"source": "folder", "root": "r"},
        "hub": {"source": "hub", "path": "p"},
        "coco": {"source": "coco", "root": "r"},
    },
    "backbone": {"open_clip": {"kind": "open_clip"}, "bert-vit": {"kind": "bert-vit"}},
}
ODD_WORDS = [
    "runs/exp #2", "007", "12:30", "1.10", "no", "2024-01-01", "~", "[a]", "{a: b}", " a ", "- x", "a: b", "*x", "&x",
    "!x", "'", '"', "'x'", "1e5", "0x1F", "true", "nulls", "NULL", "a\nb", "#", "%", "@", "`", "über", "-1", "--x", "=",
    "a=b", "|", ">", "\t", ".inf", "<<",
]  # fmt: skip
LETTERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
TEXT_KEYS = [  # of plain text, in the recipes above
    ("output_dir", MINIMAL),
    ("noise.file", MINIMAL),
    ("backbone.model", MINIMAL),
    ("backbone.text_model", {**MINIMAL, "backbone": KINDS["backbone"]["bert-vit"]}),
    ("data.root", {**MINIMAL, "data": KINDS["data"]["folder"]}),
    ("data.captions", {**MINIMAL, "data": KINDS["data"]["folder"]}),
    ("data.cache_dir", {**MINIMAL, "data": KINDS["data"]["coco"]}),
    ("data.path", {**MINIMAL, "data": KINDS["data"]["hub"]}),
    ("data.image_column", {**MINIMAL, "data": KINDS["data"]["hub"]}),
    ("data.split_files.train", {**MINIMAL, "data": KINDS["data"]["folder"]}),
    ("head.bank", {**MINIMAL, "head": {"kind": "npc"}}),
]


def value_at(recipe: Recipe, key: str):
    value = recipe
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


@pytest.mark.parametrize(("key", "content"), TEXT_KEYS, ids=[key for key, _ in TEXT_KEYS])
def test_any_text_is_taken_as_it_is(key, content):
    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(ODD_WORDS) | LETTERS)
    def check(word):
        if word == "null":
            return
        recipe = parse_recipe(content, "r")
        assert value_at(recipe.with_overrides(f"--{key}={word}"), key) == word
        if not (word.startswith("--") and len(word) > 2):
            assert value_at(recipe.with_overrides(f"--{key}", word), key) == word
        again = parse_recipe(yaml.safe_load(recipe.with_overrides(f"--{key}={word}").to_yaml()), "r")
        assert value_at(again, key) == word

    check()


@pytest.mark.parametrize("word", [word for word in ODD_WORDS if "\n" not in word])
def test_the_command_line_hands_text_through(word):
    from clip_itm.cli import split_overrides

    own, overrides = split_overrides(["train", "r.yaml", f"--output_dir={word}", "--overwrite"])
    assert own == ["train", "r.yaml", "--overwrite"]
    assert parse_recipe(MINIMAL, "r").with_overrides(*overrides).output_dir == word


def test_null_and_nothing_unset_what_may_be_unset():
    recipe = parse_recipe({**MINIMAL, "noise": {"file": "x"}, "data": KINDS["data"]["folder"]}, "r")
    for word in ("null", ""):
        assert recipe.with_overrides(f"--noise.file={word}").noise.file is None
        assert recipe.with_overrides(f"--data.split_files={word}").data.split_files is None
        assert recipe.with_overrides(f"--training.max_steps={word}").training.max_steps is None
    assert recipe.with_overrides("--output_dir=null").output_dir == "null"
    with pytest.raises(RecipeError, match="output_dir: string should have at least 1 character"):
        recipe.with_overrides("--output_dir=")


@pytest.mark.parametrize(
    "word", ["007", "12:30", "1.10", "no", "2024-01-01", "0x1F", "1e5", "2024-13-45", "yes", ".5", "1_000", "+1"]
)
def test_a_recipe_file_says_what_is_written_in_it(tmp_path, word):
    file = tmp_path / "r.yaml"
    file.write_text(
        f"output_dir: {word}\ndata:\n  source: folder\n  root: {word}\n  caption_columns: [{word}, {word}]\n"
        f"  split_files: {{train: {word}}}\nbackbone: {{kind: open_clip, pretrained: {word}}}\n",
        encoding="utf-8",
    )
    recipe = load_recipe(file, ["--noise.file", word, "--data.image_column", word])
    assert (recipe.output_dir, recipe.data.root, recipe.data.caption_columns) == (word, word, [word, word])
    assert (recipe.data.split_files, recipe.backbone.pretrained) == ({"train": word}, word)
    assert (recipe.noise.file, recipe.data.image_column) == (word, word)
    assert recipe.with_overrides("--data.caption_columns", f"[{word}, b]").data.caption_columns == [word, "b"]
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(file) == recipe


def test_numbers_lists_and_mappings_are_read_as_their_type():
    recipe = parse_recipe(MINIMAL, "r").with_overrides(
        "--training.batch_size=010", "--training.learning_rate", "2e-5", "--training.activation_checkpointing", "yes",
        "--training.betas", "[0.5, 0.9]", "--training.lr_multipliers.head", "10",
        "--training.lr_multipliers.backbone.image_tower", "0.1", "--backbone.lora", "{rank: 4}",
    )  # fmt: skip
    training = recipe.training
    assert (training.batch_size, training.learning_rate, training.activation_checkpointing) == (10, 2e-5, True)
    assert training.betas == (0.5, 0.9)
    assert training.lr_multipliers == {"head": 10, "backbone.image_tower": 0.1}
    assert recipe.backbone.lora.rank == 4
    timm = parse_recipe({**MINIMAL, "backbone": {"kind": "timm-words"}}, "r")
    assert timm.with_overrides("--backbone.image_kwargs.pad_type", "same").backbone.image_kwargs == {"pad_type": "same"}


@pytest.mark.parametrize(
    ("key", "word", "expected"),
    [
        ("training.batch_size", "12:30", "training.batch_size: input should be a valid integer"),
        ("training.batch_size", "9" * 5000, "training.batch_size:"),
        ("training.seed", "9" * 50, "training.seed:"),
        ("training.epochs", str(LARGEST + 1), "training.epochs: no number of a recipe is larger than"),
        ("training.learning_rate", "nan", "training.learning_rate: input should be a finite number"),
        ("training.warmup", ".inf", "training.warmup:"),
        ("training.warmup", "inf", "training.warmup: input should be a finite number"),
        ("training.betas", "[2, 3]", "training.betas.0: input should be less than 1"),
        ("training.betas", "[0.9, .nan]", "training.betas.1: input should be a finite number"),
        ("training.lr_multipliers", "{head: .inf}", "training.lr_multipliers.head: input should be a finite"),
        ("training.activation_checkpointing", "maybe", "training.activation_checkpointing: input should be a valid b"),
        ("evaluation.bootstrap", "1000000000", "evaluation.bootstrap: more than 100,000 resamples"),
        ("output_dir", "a\0b", "output_dir: there is a NUL in it"),
        ("output_dir", "runs/\udcff", "output_dir: input should be a valid string"),
        ("head.kind", "\udcff", "head.kind: expected one of clip"),
        ("training.decay_at", "[1", "--training.decay_at: not valid YAML"),
        ("training.decay_at", "[" * 100_000, "--training.decay_at: nested deeper than"),
        ("training.decay_at", f"[{'9' * 5000}]", "a number of 5,000 digits is too large"),
        ("backbone.image_kwargs", "{a: '\udcff'}", "--backbone.image_kwargs: not valid YAML"),
        ("nothing.here", "[", "--nothing.here: not valid YAML"),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_key(key, word, expected):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL, "r.yaml").with_overrides(f"--{key}={word}")
    said = str(caught.value)
    assert expected in said
    assert len(said) < 700
    said.encode()  # can be printed anywhere


NESTED = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NESTED, "stand for more than 100,000 values"),
        ("a: &a {x: 1}\nb: &b {<<: [" + ", ".join(["*a"] * 200_000) + "]}\n", "stand for more than 100,000 values"),
        ("data: &d {root: *d}\n", "an anchor that stands inside itself"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("{a: " * 100_000, "nested deeper than 64 levels"),
        ("- " * 100_000, "nested deeper than 64 levels"),
        ("\n".join("  " * n + f"k{n}:" for n in range(100)), "nested deeper than 64 levels"),
        ("training:\n  seed: " + "9" * 5000, "line 2: training.seed: a number of 5,000 digits is too large"),
        (
            "training:\n  seed: 1\n  epochs: 2\n  seed: 3\n",
            "line 4: training.seed stands there twice (first in l",
        ),
        (
            "backbone: {kind: open_clip}\ntraining: {seed: 1}\ntraining: {epochs: 1}\n",
            "line 3: training stands there",
        ),
        ("data: {source: folder, root: a, root: b}\n", "line 1: data.root stands there twice"),
        ("training: {seed: 1, ? [a] : 2}\n", "line 1: the name of a key is a word"),
        ("training: !!python/object:os.system {}\n", "not valid YAML"),
        ("training: {seed: !!int x}\n", "not valid YAML"),
        ("training: {seed: !!timestamp x}\n", "not valid YAML"),
        ('backbone: {kind: open_clip}\noutput_dir: "a\\ud800"\n', "output_dir: input should be a valid string"),
        ('backbone: {kind: open_clip}\noutput_dir: "a\\0b"\n', "output_dir: there is a NUL in it"),
        (
            'backbone: {kind: timm-words, image_kwargs: {a: "\\ud800"}}\n',
            "image_kwargs: there is a byte",
        ),
        ("backbone: {kind: open_clip}\nnoise: {seed: 4294967296}\n", "noise.seed:"),
        ("backbone: {kind: open_clip}\ntraining: {seed: 4294967296}\n", "training.seed:"),
        ("backbone: {kind: open_clip}\ntraining: {betas: [2, 3]}\n", "training.betas.0: input should be less than 1"),
        ("backbone: {kind: open_clip}\ntraining: {warmup: .inf}\n", "training.warmup: input should be a finite number"),
        ("a: \x07\n", "not valid YAML"),
        ("x" * 2**21, "larger than 1,048,576 bytes"),
    ],
    ids=range(24),
)
def test_a_file_beyond_bounds_is_told_by_name(tmp_path, text, expected):
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_bytes_that_are_not_utf8_are_told_by_their_line(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_bytes("# für\nseed: 1\noutput_dir: fü".encode("latin1"))
    with pytest.raises(RecipeError, match=r"r.yaml, line 1: byte 0xfc is not UTF-8"):
        load_recipe(file)


def test_anchors_and_merges_within_bounds_are_fine(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "data: &d {source: folder, root: 007}\nbackbone: {kind: open_clip}\noutput_dir: &o 2024-01-01\n"
        "noise: {file: *o}\ntraining: {<<: {seed: 3, epochs: 2}, seed: 4}\n",
        encoding="utf-8",
    )
    recipe = load_recipe(file)
    assert (recipe.data.root, recipe.output_dir, recipe.noise.file) == ("007", "2024-01-01", "2024-01-01")
    assert (recipe.training.seed, recipe.training.epochs) == (4, 2)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text("[]{}:,&*!|>'\"-? \n#%@`<ab0.~"))
def test_no_text_of_a_recipe_is_a_traceback(text):
    def parse() -> Recipe:
        content = read_yaml(text, "r.yaml", [Recipe])
        return parse_recipe(content if isinstance(content, dict) else {}, "r.yaml")

    with pytest.raises(RecipeError, match=r"r\.yaml"):  # none of them says where the data are
        parse()


def test_a_key_takes_text_under_every_kind_or_under_none():
    """Overrides are read before it is known which kind they choose; words that YAML leaves alone may be mixed."""
    by_key: dict[str, set[bool]] = {}
    for key, annotations in all_keys(Recipe):
        words = [word for member in all_members(annotations) for word in get_args(member)]
        if words and all(isinstance(word, str) and yaml.safe_load(word) == word for word in words):
            continue
        by_key.setdefault(key, set()).add(is_text(annotations))
    assert not [key for key, found in by_key.items() if len(found) > 1]
    assert by_key["data.root"] == {True}
    assert by_key["training.epochs"] == {False}


def sections(owner: type[Section]) -> set[type[Section]]:
    inner = {section for field in owner.model_fields.values() for section in section_types(field.annotation)}
    return {owner, *(deeper for section in inner for deeper in sections(section))}


def test_every_number_of_every_section_has_bounds():
    tried = 0
    for section in sections(Recipe):
        for name, field in section.model_fields.items():
            for number in {int: [10**30], float: [float("nan"), float("inf")]}.get(_number(field.annotation), []):
                with pytest.raises(ValidationError) as caught:
                    section.model_validate({name: number})
                assert [problem for problem in caught.value.errors() if problem["loc"] == (name,)], (section, name)
                tried += 1
    assert tried > 100


def _number(annotation) -> type | None:
    """int or float, where a key takes nothing else but None."""
    found = {member for member in members(annotation) if member is not type(None)}
    return found.pop() if len(found) == 1 else None


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "POSIX"}])
def test_files_are_utf8_whatever_the_locale_is(tmp_path, locale):
    file = tmp_path / "r.yaml"
    file.write_text("# für\nbackbone: {kind: open_clip, modell: größer}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "clip_itm.cli", "train", str(file)],
        capture_output=True,
        env={"PATH": "", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT), **locale},
    )
    assert done.returncode == 2
    assert b"backbone.modell: unknown key; did you mean 'model'?" in done.stderr
    assert b"Traceback" not in done.stderr


def test_every_text_file_of_the_package_is_utf8():
    """ruff (PLW1514) finds these calls only where it can tell that the object is a path."""
    found = []
    root = ROOT
    for file in [*root.glob("clip_itm/**/*.py"), *root.glob("benchmarks/**/*.py"), *root.glob("recipes/**/*.py")]:
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", None))
            modes = {word.value for word in (call.args[:2] if name else []) if isinstance(word, ast.Constant)}
            opens = name == "open" and modes & {"r", "w", "a", "rt", "wt"}
            plain = name == "open" and getattr(call.func, "id", None) == "open" and len(call.args) == 1
            if name in ("read_text", "write_text") or opens or plain:
                if name != "open" and isinstance(call.func, ast.Name):
                    continue  # functions of clip_itm
                if getattr(getattr(call.func, "value", None), "id", None) == "distribution":
                    continue  # of importlib.metadata, which reads UTF-8
                if not any(keyword.arg == "encoding" for keyword in call.keywords):
                    found.append(f"{file.name}:{call.lineno}")
    assert not found
