"""The command line at its edges: did you mean, pipes that nobody reads, Ctrl-C, faults of the program, no network."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_itm import cli, offline
from clip_itm.commands import compare, search, train
from support.paths import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trian r.yaml", "did you mean train?"),
        ("noise mak r.yaml", "did you mean make?"),
        ("export m --to onyx --out x", "did you mean onnx?"),
        ("train r.yaml --batch_size 5", "did you mean --training.batch_size or --evaluation.batch_size?"),
        ("train r.yaml --batch-size=5", "did you mean --training.batch_size or --evaluation.batch_size?"),
        ("train r.yaml --output-dir x", "did you mean --output_dir?"),
        ("train r.yaml --learning-rate 1", "did you mean --training.learning_rate?"),
        ("train r.yaml --overwite", "did you mean --overwrite?"),
        ("train r.yaml --head npc", "did you mean --head.kind?"),
        ("index m g --out x --batchsize 3", "did you mean --batch-size?"),
        ("search m i q --top_k 3", "did you mean --top-k?"),
    ],
)
def test_did_you_mean(words, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("words", ["xyzzy r.yaml", "train r.yaml --xyzzy", "search m i q --learning_rate 3"])
def test_nothing_near_is_not_guessed(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert "did you mean" not in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("clip-itm ")


@pytest.mark.parametrize("printed", ["'x' * 10**6", "'x'"])
def test_a_pipe_that_nobody_reads_is_silent(printed):
    code = f"""import sys; from clip_itm import cli
cli.COMMANDS["search"].run = lambda args: print({printed})
sys.exit(cli.main(["search", "m", "i", "q"]))"""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_something_else_is_told(monkeypatch, capsys):
    def run(args):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(train, "run", run)
    assert cli.main(["train", "r.yaml"]) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_a_fault_of_the_program_is_no_mistake_of_the_user(monkeypatch, capsys):
    def run(args):
        raise KeyError("something")

    monkeypatch.setattr(train, "run", run)
    assert cli.main(["train", "r.yaml"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("clip-itm train: KeyError: 'something'")
    assert "please report it" in said
    monkeypatch.setenv("CLIP_ITM_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["train", "r.yaml"])


def test_too_little_memory_is_told(monkeypatch, capsys):
    def run(args):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(train, "run", run)
    assert cli.main(["train", "r.yaml"]) == 2
    assert "not enough memory (Unable to allocate 9 TiB); lower training.batch_size" in capsys.readouterr().err


def test_ctrl_c_promises_only_what_is_there(monkeypatch, capsys, tmp_path):
    def run(args):
        raise KeyboardInterrupt

    recipe = tmp_path / "r.yaml"
    run_folder = tmp_path / "run"
    recipe.write_text(
        f"output_dir: {run_folder}\ndata: {{source: sample}}\nbackbone: {{kind: open_clip}}\n", encoding="utf-8"
    )
    monkeypatch.setattr(train, "run", run)

    def said() -> str:
        assert cli.main(["train", str(recipe)]) == 130
        return capsys.readouterr().err

    assert "stopped before the first checkpoint: the same command begins anew" in said()
    (run_folder / "checkpoint-7").mkdir(parents=True)
    assert "begins anew" in said()
    (run_folder / "checkpoint-7" / "trainer_state.json").write_text("{}", encoding="utf-8")
    assert f"goes on from the last checkpoint ({run_folder / 'checkpoint-7'})" in said()
    (run_folder / "results.json").write_text("{}", encoding="utf-8")
    assert "the run is finished" in said()
    assert "begins anew" in compare.stopped(argparse.Namespace(out=str(tmp_path / "none")))
    monkeypatch.setattr(cli.COMMANDS["search"], "run", run)
    assert cli.main(["search", "m", "i", "q"]) == 130
    assert capsys.readouterr().err.strip() == "stopped"


@pytest.mark.parametrize("name", ["./x", "/x/y", "~/x", "a/b/c", "x/", "here/x", "a\\b", Path("x")])
def test_paths_are_never_asked_of_the_hub(name, monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(offline, "hub_answers", lambda: pytest.fail("asked"))
    with pytest.raises(ValueError, match="there is no such folder"):
        offline.require_source(name)


def test_names_are_looked_for_in_the_cache_and_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(offline, "hub_answers", lambda: True)
    offline.require_source("org/name")
    monkeypatch.setattr(offline, "hub_answers", lambda: False)
    with pytest.raises(ValueError, match=r"org/name: there is no such folder here, and the Hub .* cannot be reached"):
        offline.require_source("org/name")
    (tmp_path / "hub" / "models--org--name").mkdir(parents=True)
    offline.require_source("org/name")
    assert offline.is_offline()  # so that the libraries take what is there, and ask nobody
    monkeypatch.delenv("HF_HUB_OFFLINE")


def test_a_host_that_does_not_answer_is_given_up_in_seconds(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    offline.hub_answers.cache_clear()
    assert not offline.hub_answers()
    offline.hub_answers.cache_clear()


def test_paths_that_are_not_there_are_told_before_torch_is_imported(tmp_path):
    tries = [
        *("train nope.yaml", "evaluate runs/nope", "compare nope.yaml", "audit --run ./nope", "verify nope"),
        *("import nope.pt --out out", "data check nope.yaml", "data float16 nope --out out"),
        *("search ./nope out dog", "app --model ./nope", "export ./nope --to onnx --out out"),
        *("interpolate --tuned nope --out out", "noise make nope.yaml --out out"),
    ]
    code = (
        "import sys; from clip_itm.cli import main\n"
        f"for words in {tries}:\n"
        "    status = main(words.split())\n"
        "    print(words, status, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{words} 2 False" for words in tries], done.stderr
    assert done.stderr.count("nope") >= len(tries)
    assert not list(tmp_path.iterdir())


def test_a_query_in_a_locale_that_cannot_read_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert search._as_typed("naïve 犬") == "naïve 犬"
    assert search._as_typed("naïve 犬".encode().decode("ascii", "surrogateescape")) == "naïve 犬"
    stored = os.fsdecode(b"caf\xe9.jpg")
    with pytest.raises(ValueError, match="expected a query in UTF-8, or the path of a photo"):
        search._as_typed(stored)
    Path(stored).touch()
    assert search._as_typed(stored) == stored


def test_a_full_disk_met_by_a_library_in_rust_is_no_fault(capsys, monkeypatch):
    from safetensors import SafetensorError

    from clip_itm import cli

    def full(args):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(cli.COMMANDS["verify"], "run", full)
    assert cli.main(["verify", "."]) == 2
    told = capsys.readouterr().err
    assert "clip-itm verify: no space left on device" in told
    assert "report" not in told
