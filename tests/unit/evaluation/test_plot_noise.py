"""The picture of a comparison."""

import pytest
from PIL import Image

from clip_itm.evaluation.plot_noise import plot_noise, spread

ROWS = [
    {
        "method": method,
        "noise": noise,
        "level": "caption",
        "rsum": 200 - 100 * noise + gain * noise,
        "rsum_std": 2.0,
        "seeds": 3,
    }
    for method, gain in (("clip", 0), ("npc", 40))
    for noise in (0.4, 0.0)
]


def test_a_picture_of_every_method(tmp_path):
    pytest.importorskip("matplotlib")
    assert plot_noise(ROWS, tmp_path / "both.png", "two methods")
    assert plot_noise(ROWS[:2], tmp_path / "one.png", "one method")
    pictures = [Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("both", "one")]
    orange = [
        sum(count for count, color in picture.getcolors(2**20) if color == (224, 123, 57)) for picture in pictures
    ]
    assert orange[0] > 300
    assert orange[1] == 0


def test_every_level_with_several_ratios_has_a_panel(tmp_path):
    """No noise is of every level; what has one ratio alone makes no line."""
    pytest.importorskip("matplotlib")
    image = [row | {"level": "image"} for row in ROWS if row["noise"]]
    assert plot_noise([*ROWS, *image], tmp_path / "two.png", "two levels")
    assert plot_noise(ROWS, tmp_path / "one.png", "one level")
    widths = [Image.open(tmp_path / f"{name}.png").width for name in ("one", "two")]
    assert widths[1] > 1.3 * widths[0]
    clean, noisy = ([row for row in ROWS if bool(row["noise"]) is noise] for noise in (False, True))
    assert not plot_noise([*noisy, *image], tmp_path / "none.png", "one ratio each")
    assert plot_noise([*clean, *image], tmp_path / "image.png", "one level")
    assert Image.open(tmp_path / "image.png").width == widths[0]


def test_one_noise_ratio_makes_no_picture(tmp_path):
    assert not plot_noise(ROWS[::2], tmp_path / "none.png", "one ratio")
    assert not (tmp_path / "none.png").exists()


def test_names_at_the_ends_of_lines_do_not_overlap():
    assert spread([10, 20, 40], gap=5) == [10, 20, 40]
    assert spread([10, 10], gap=5) == [7.5, 12.5]
    assert spread([1, 10, 11, 14], gap=5) == pytest.approx([1, 20 / 3, 35 / 3, 50 / 3])
