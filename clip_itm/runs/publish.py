"""Pushing to the Hub: what goes into a repository, checked before anything is sent, and one commit."""

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from clip_itm.checksums import CHECKSUMS, check_files, read_checksums
from clip_itm.files import model_folder
from clip_itm.methods.method import state_files
from clip_itm.reading import read_json
from clip_itm.runs.card import PLACE, bare_card, with_licence
from clip_itm.runs.folder import RunFolder

CLEANED = "cleaned.json"  # of `data/cleaned.py`
SHARD = re.compile(r"data/(train|val|test)-\d{5}-of-\d{5}\.parquet")

Files = dict[str, Path | bytes]  # path in the repository -> a file here, or its content

KEPT = (".json", ".jinja", ".md", ".model", ".npz", ".png", ".py", ".safetensors", ".txt", ".yaml")
# part of a checkpoint; only training needs it
TRAINING_STATE = "trainer_state.json"


def model_files(where: Path, repo: str, licence: str | None = None) -> Files:
    """What a push of a run (its best model) or of a saved model puts into `repo`.

    `licence`: of the weights, for the card; default: what the card says. Raises ValueError for a wrong name, a run that
    is not finished, and a folder without a complete model.
    """
    check_name(repo)
    check_licence(licence)
    folder = model_folder(where)
    if folder != where:
        RunFolder(where).require_finished()
    config = _check_model(folder)
    check_files(folder)
    training_state = {TRAINING_STATE, *state_files()}
    files: Files = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.suffix in KEPT and path.name not in training_state and not path.name.startswith(".")
    }
    if kept := read_checksums(folder):
        kept["files"] = {name: entry for name, entry in kept["files"].items() if name in files}
        files[CHECKSUMS] = (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()
    card = _card(folder, config).replace(PLACE, repo)
    files["README.md"] = (card if licence is None else with_licence(card, licence)).encode()
    return files


def check_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise ValueError(f"{repo!r} is no name of a repository, such as me/my-model: {error}") from None


def check_licence(name: str | None) -> None:
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
        raise ValueError(
            f"--license {name!r}: expected the name of a licence as the Hub writes it, such as mit, apache-2.0, "
            "cc-by-nc-4.0 (all of them: https://huggingface.co/docs/hub/repositories-licenses)"
        )


def _check_model(folder: Path) -> dict:
    """Its config.json; ValueError if something that loading needs is missing."""
    config = read_json(folder / "config.json", "the configuration of a model")
    if config.get("model_type") != "clip_itm":
        found = config.get("model_type")
        raise ValueError(f"{folder}: a model of type {found!r}; only models of clip_itm (type 'clip_itm') are pushed")
    if "auto_map" not in config:
        raise ValueError(
            f"{folder}: this model was saved without its code and would not load elsewhere; load it and its processor "
            "and save both once more (save_pretrained)"
        )
    classes = [*config["auto_map"].values(), *(task["impl"] for task in config.get("custom_pipelines", {}).values())]
    wanted = ["processor_config.json", *(f"{name.split('.')[0]}.py" for name in classes)]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if not any(folder.glob("model*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise ValueError(f"{folder}: this model is not whole, it lacks {', '.join(missing)}; save or download it again")
    return config


def _card(folder: Path, config: dict) -> str:
    if (folder / "README.md").is_file():
        return (folder / "README.md").read_text(encoding="utf-8")
    origin = folder / "imported_from.json"
    return bare_card(config, read_json(origin, "a JSON file of a model") if origin.is_file() else None)


def log_in(token: str | None = None) -> str:
    """The name of the account; ValueError if nobody is logged in or the Hub does not answer."""
    try:
        return HfApi(token=token).whoami()["name"]
    except LocalTokenNotFoundError:
        raise ValueError("not logged in to the Hub: run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        raise ValueError(f"the Hub refuses this token: {error}; run `hf auth login` again, or set HF_TOKEN") from None
    except Exception as error:  # whatever the HTTP library raises for a host that cannot be reached
        raise ValueError(f"the Hub cannot be reached: {error}") from error


def upload(
    files: Files,
    repo: str,
    *,
    message: str,
    kind: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    deleted: Iterable[str] = (),
) -> CommitInfo:
    """One commit with all `files` to `repo` of `kind` ("model", "space" or "dataset"), created if need be.

    `private`: whether a new repository is (None: the account's default); `revision`: a branch, created if need be;
    `deleted`: files to delete there.
    """
    api = HfApi(token=token)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    operations += [CommitOperationDelete(name) for name in deleted]
    try:
        sdk = "gradio" if kind == "space" else None
        repo = api.create_repo(repo, repo_type=kind, private=private, space_sdk=sdk, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")  # the index
            return api.create_commit(repo, operations, commit_message=message, repo_type=kind, revision=revision)
    except Exception as error:  # of the Hub, of the HTTP library or of one of the ways to upload
        raise ValueError(f"{repo}: the push failed, and the last commit there stands: {error}") from error


def publish_run(
    run: Path,
    repo: str,
    *,
    message: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """The best model of a finished run, with its card, in one commit."""
    files = model_files(run, repo)
    log_in(token)
    return upload(files, repo, message=message, private=private, revision=revision, token=token)


def data_repo_files(repo: str, token: str | None = None) -> set[str]:
    """The files of a data set of the Hub; none if it does not exist.

    Raises ValueError for a wrong name, if nobody is logged in, and for a repository that holds anything but cleaned
    data.
    """
    check_name(repo)
    log_in(token)
    try:
        there = set(HfApi(token=token).list_repo_files(repo, repo_type="dataset"))
    except (RepositoryNotFoundError, RevisionNotFoundError):  # the latter: nothing was ever committed
        return set()
    except Exception as error:  # of the Hub, or of the HTTP library
        raise ValueError(f"{repo}: the Hub cannot say what is in it: {error}") from error
    others = there - {".gitattributes", "README.md"}
    if others and CLEANED not in there:
        raise ValueError(f"{repo} holds {min(others)}, which no push of cleaned data wrote: choose another name")
    return there


def push_data(
    folder: Path,
    repo: str,
    *,
    message: str = "Cleaned by clip-itm audit",
    private: bool = True,
    token: str | None = None,
) -> CommitInfo:
    """Push a cleaned data set in the layout "datasets" (`data/cleaned.py`) to the Hub, in one commit.

    In an existing repository only what an earlier push wrote is replaced, and its card stays; a new one is private
    unless `private` is False. Raises ValueError for another folder, and as `data_repo_files` does.
    """
    shards = sorted((folder / "data").glob("*.parquet"))
    if not (folder / CLEANED).is_file() or not shards:
        raise ValueError(f"{folder} is no cleaned data set in Parquet files: write it with --clean-as datasets")
    there = data_repo_files(repo, token)
    files: Files = {f"data/{path.name}": path for path in shards}
    files |= {name: folder / name for name in (CLEANED, "README.md") if name == CLEANED or name not in there}
    old = [name for name in there - files.keys() if SHARD.fullmatch(name)]
    return upload(files, repo, message=message, kind="dataset", private=private, token=token, deleted=sorted(old))
