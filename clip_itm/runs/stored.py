"""What a run keeps in files, read back: an error names the file that does not hold what the run wrote."""

from pathlib import Path

from clip_itm.reading import read_json, reading

# names of version 0.1.0 and those of today; the values are unchanged
RENAMED = {"best_dev_rsum": "best_val_rsum", "dev_history": "val_history", "photos": "images", "left_out": "skipped"}
STAGES = ("zero_shot", "best", "last")
OF_RESULT = ("protocol", "images", "captions", "metrics", "intervals", "tie_gap", "folds", "bootstrap")


def read_results(path: Path) -> dict:
    """`results.json` of a finished run."""
    what, keys = "the results of a run", (*STAGES, "split", "noise", "seed", "best_step", "best_val_rsum")
    remedy = "delete it and give the command of the run again, which then goes on from the last checkpoint"
    with reading(path, what, remedy):
        content = _with_new_names(read_json(path, what, (), remedy))
        for key in keys:
            content[key]
        content["val_history"][0]["eval_rsum"], content["val_history"][0]["step"]
        for stage in STAGES:
            for result in content[stage].values():
                for key in OF_RESULT:
                    result[key]
    return content


def read_provenance(path: Path) -> dict:
    """`provenance.json` of a run, a checkpoint or a model."""
    what = "the provenance of a run"
    with reading(path, what):
        content = _with_new_names(read_json(path, what, ("recipe_sha256", "versions")))
        content["noise"]["sha256"], content["noise"]["ratio"]
        for split in content["splits"].values():
            split["sha256"]
    return content


def _with_new_names(content: dict) -> dict:
    return {
        RENAMED.get(name, name): _with_new_names(value) if isinstance(value, dict) else value
        for name, value in content.items()
    }
