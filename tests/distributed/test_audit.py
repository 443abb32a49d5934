"""An audit in two processes, as `accelerate launch -m clip_itm.cli audit` starts them, against one."""

import json

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from clip_itm import load_model
from support.processes import launch
from support.tiny import TINY_CLIP


def test_an_audit_in_two_processes_equals_one(tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_CLIP))
    model = load_model({"kind": "open_clip", "model": str(tmp_path / "tiny.json")})
    model.save_pretrained(tmp_path / "model")
    model.processor.save_pretrained(tmp_path / "model")
    photos, generator, rows = tmp_path / "photos", np.random.default_rng(0), []
    photos.mkdir()
    for number in range(21):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(photos / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": [f"photo {number}", "a thing"], "split": "train"})
    (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = []
    for processes in (1, 2):
        out, cache = tmp_path / f"out{processes}", tmp_path / f"cache{processes}"
        words = ["audit", str(photos), "--model", str(tmp_path / "model"), "--data.cache_dir", str(cache)]
        words += ["--out", str(out), "--clean-to", str(out / "clean"), "--down-weight"]
        launch(processes, "-m", "clip_itm.cli", *words)
        assert (out / "clean" / "metadata.jsonl").is_file()
        tables.append(pq.read_table(out / "audit.parquet").to_pandas().sort_values("pair"))
    for name in ("score_crossfit", "score_clip", "score_rank", "clean_probability"):
        np.testing.assert_allclose(tables[1][name], tables[0][name], atol=1e-4, err_msg=name)
