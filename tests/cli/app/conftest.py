"""The app in a process of its own, served for several tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.app_process import address_of, start
from support.forks import Forked
from support.tiny_app import indexed_pipeline, write_audit


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """model/, images/, texts/ (indexes), photos/ and audit.parquet."""
    place = tmp_path_factory.mktemp("app")
    pipe = indexed_pipeline(place)
    pipe.save_pretrained(place / "model")
    for kind, name in (("image", "images"), ("text", "texts")):
        pipe.galleries[kind].save(place / name)
    write_audit(place / "audit.parquet")
    return place


@pytest.fixture(scope="module")
def server(place) -> Iterator[Forked]:
    """The command in a process of its own, which serves at `address`."""
    process = start(place, "--model", "model", "--index", "images", "--index", "texts", "--audit", "audit.parquet")
    yield process
    process.kill()


@pytest.fixture(scope="module")
def address(server) -> str:
    return address_of(server)
