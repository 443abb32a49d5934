"""The command line: quick to answer, and mistakes end in one line and status 2."""

import os
import subprocess
import sys

import pytest

from clip_itm.cli import COMMANDS, main, split_overrides


def test_help_imports_nothing_heavy():
    code = (
        "import sys, clip_itm.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: assert not {'pydantic', 'yaml', 'numpy'} & set(sys.modules)\n"
        "for words in (['train'], ['data', 'check'], ['noise', 'make']):\n"
        "    try: cli.main([*words, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'open_clip', 'pyarrow', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--training.batch_size" in done.stdout


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert "usage: clip-itm" in capsys.readouterr().out


def test_overrides_may_stand_anywhere():
    own, overrides = split_overrides(
        ["compare", "--training.epochs", "2", "a.yaml", "--noise", "0", "0.4", "--noise.seed=3", "--output_dir", "x"]
    )
    assert own == ["compare", "a.yaml", "--noise", "0", "0.4"]
    assert overrides == ["--training.epochs", "2", "--noise.seed=3", "--output_dir", "x"]


def test_a_mistake_is_one_line_and_status_2(capsys):
    assert main(["train", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.startswith("clip-itm train: nowhere.yaml: cannot read the recipe")


def test_unknown_options_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "recipes/sample/clip.yaml", "--epochs", "3"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --epochs" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_are_passive_from_before_torch_is_loaded(given, expected):
    code = (
        "import os, sys; from clip_itm.cli import main; from clip_itm.commands import train\n"
        "train.run = lambda args: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "main(['train', 'recipe.yaml'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == f"{expected} False\n", done.stderr
