"""A region data set in float16: the same rows to half precision, in half the space; interrupted and refused."""

import numpy as np
import pytest

from clip_itm.cli import main
from clip_itm.data.region_storage import store_in_half_precision
from support.region_data import write_regions


def test_a_copy_in_half_precision_goes_on_where_it_was_interrupted(tmp_path, capsys):
    write_regions(tmp_path / "full")
    assert main(["data", "float16", str(tmp_path / "full"), "--out", str(tmp_path / "half")]) == 0
    assert "GB" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "full").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "half").iterdir())
    for name in names:
        one, other = tmp_path / "full" / name, tmp_path / "half" / name
        if name.endswith("_ims.npy"):
            assert np.load(other).dtype == np.float16
            np.testing.assert_allclose(np.load(other), np.load(one), rtol=1e-3, atol=1e-6)
        else:
            assert other.read_bytes() == one.read_bytes()
    (tmp_path / "half" / "dev_ims.npy").unlink()
    before = (tmp_path / "half" / "train_ims.npy").stat().st_mtime_ns
    assert [path.name for path in store_in_half_precision(tmp_path / "full", tmp_path / "half")] == ["dev_ims.npy"]
    assert (tmp_path / "half" / "train_ims.npy").stat().st_mtime_ns == before


def test_what_cannot_be_stored_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["data", "float16", str(tmp_path / "empty"), "--out", str(tmp_path / "half")]) == 2
    assert "found no *_ims.npy" in capsys.readouterr().err
    write_regions(tmp_path / "full")
    with pytest.raises(ValueError, match="a folder of its own"):
        store_in_half_precision(tmp_path / "full", tmp_path / "full")
    array = np.load(tmp_path / "full" / "train_ims.npy")
    array[3, 0, 0] = 1e6
    np.save(tmp_path / "full" / "train_ims.npy", array)
    with pytest.raises(ValueError, match=r"train_ims\.npy, row 3: a value beyond"):
        store_in_half_precision(tmp_path / "full", tmp_path / "half")
    assert not list((tmp_path / "half").glob("*train_ims*")), "nothing half-written is left"
