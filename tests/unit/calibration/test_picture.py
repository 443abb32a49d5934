"""Pictures of a judgement: what is in them, and where there is no matplotlib."""

import sys

import numpy as np
import pytest
from PIL import Image

from clip_itm.calibration.estimate import judge
from clip_itm.calibration.picture import draw_judgement, draw_probability, draw_reliability, draw_scores, wilson
from support.two_groups import simulated_folds


@pytest.fixture(scope="module", params=[0.0, 0.3, 1.0])
def judged(request):
    folds, count, is_right = simulated_folds(np.random.default_rng(0), request.param, (100, 80))
    return judge(folds, count, seed=0), is_right


def test_pictures_are_written(judged, tmp_path):
    pytest.importorskip("matplotlib")
    judgement, is_right = judged
    assert draw_judgement(judgement, tmp_path / "scores.png")
    assert draw_reliability(judgement.weights, is_right, tmp_path / "reliability.png")
    for name in ("scores", "reliability"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG"
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(2**24)) > 50


def test_without_matplotlib_nothing_is_written(judged, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    judgement, is_right = judged
    assert not draw_judgement(judgement, tmp_path / "scores.png")
    assert not draw_reliability(judgement.weights, is_right, tmp_path / "reliability.png")
    assert not list(tmp_path.iterdir())


def test_bars_are_percent_of_each_group_and_of_the_wrong_ones(judged):
    figure = pytest.importorskip("matplotlib.figure")
    judgement, _ = judged
    axes, below = figure.Figure().subplots(2, 1)
    draw_scores(axes, judgement)
    totals = {patch.get_label(): patch.get_data().values.sum() for patch in axes.patches}
    assert totals["pairs"] == pytest.approx(100)
    assert totals["mismatches that were made"] == pytest.approx(100)
    share = 100 * judgement.share
    assert (f"{share:.1f} % of them" in totals) == (share > 0)
    assert share == 0 or totals[f"{share:.1f} % of them"] == pytest.approx(share)
    draw_probability(below, judgement)
    assert (np.diff(below.lines[0].get_ydata()) <= 0).all()


def test_the_interval_of_a_fraction():
    low, high = wilson(np.array([0.0, 0.5, 1.0]), np.array([10, 10, 10]))
    assert low == pytest.approx([0, 0.2366, 0.7225], abs=1e-4)
    assert high == pytest.approx([0.2775, 0.7634, 1], abs=1e-4)
