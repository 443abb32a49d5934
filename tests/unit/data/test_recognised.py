"""What a folder, a file, a glob or a URL is taken for."""

import pytest

from clip_itm.data.recognised import recognised


@pytest.mark.parametrize(
    ("files", "source"),
    [
        (["metadata.csv", "a.jpg"], "folder"),
        (["Captions.TSV", "a.tar"], "folder"),
        (["a.jpg", "b/c.png"], "folder"),
        ([], "folder"),
        (["00000.tar", "00000.parquet", "00000_stats.json"], "webdataset"),
        (["x/y/00000.tar.gz"], "webdataset"),
        (["data/train-00000-of-00001.parquet", "README.md"], "parquet"),
        (["a/b.jpg", "a/b.txt"], "text_files"),
        (["a/b.jpg", "a/c.txt"], "folder"),
        (["a.jpg", "backup.tar"], "folder"),
        ([".hidden/00000.tar", "a.jpg"], "folder"),
        (["dataset_dict.json", "train/a.arrow"], "hub"),
    ],
)
def test_folders(tmp_path, files, source):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = recognised(tmp_path)
    assert found.section == {"source": source, "path" if source == "hub" else "root": str(tmp_path)}
    assert found.sentence


def test_files_patterns_and_urls(tmp_path):
    (tmp_path / "a.tar").touch()
    assert recognised(tmp_path / "a.tar").section["source"] == "webdataset"
    assert recognised("data/{00..12}.tar").section == {"source": "webdataset", "root": "data/{00..12}.tar"}
    assert recognised("data/*.parquet").section["source"] == "parquet"
    assert recognised("s3://bucket/tars").section["source"] == "webdataset"
    assert recognised("hf://datasets/a/b/*.parquet").section["source"] == "parquet"
    for name in ("nowhere.tar", "openai/clip", "recipe.yaml", str(tmp_path / "nothing")):
        assert recognised(name) is None
