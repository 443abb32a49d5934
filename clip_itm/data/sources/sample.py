"""The embedded data set: drawn scenes of coloured shapes, each described in five different ways.

Two or three shapes of eight colours and two sizes are on one of five backgrounds. A caption describes everything, or
only a part, the way people do, in varying words; so a tiny model learns retrieval from 2,000 scenes in about a minute,
and wrong captions hurt it as they do on photos. Scene n of a split depends on (seed, split, n) alone: a larger data set
begins with the smaller one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from math import cos, hypot, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from clip_itm.data.configuration import SampleData
from clip_itm.data.rows import SPLIT_NAMES, Split
from clip_itm.data.sources.builder import CaptionedImages, Rows

OVERSAMPLING = 4  # shapes are drawn larger and averaged down: smooth edges from integer arithmetic alone

COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (250, 204, 21),
    "green": (34, 139, 60),
    "blue": (37, 99, 215),
    "purple": (126, 48, 168),
    "pink": (244, 114, 182),
    "brown": (121, 74, 38),
}
SHAPES = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "ring": ("ring", "hoop"),
}
SIZES = {"small": ("small", "little"), "large": ("large", "big")}
RADIUS = {"small": 0.125, "large": 0.19}  # of the picture's side
BACKGROUNDS = {
    "plain": ("a white background", "plain ground"),
    "dark": ("a dark background", "black ground"),
    "striped": ("a striped background", "stripes"),
    "checkered": ("a checkered background", "a chessboard pattern"),
    "dotted": ("a dotted background", "dots"),
}
TINTS = {
    "plain": (238, 238, 238),
    "dark": (32, 32, 38),
    "striped": (188, 208, 236),
    "checkered": (200, 226, 190),
    "dotted": (240, 218, 178),
}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class Shape:
    """One shape of a scene; `x`, `y` is its centre as fractions of the image's side, from the upper left corner."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """What an image shows and its captions describe."""

    shapes: tuple[Shape, ...]
    background: str


def load(data: SampleData) -> dict[str, Split]:
    """Scenes drawn from `seed`: train, val and test in the sizes of the section."""
    return SampleImages(data).load()


class SampleImages(CaptionedImages):
    """Drawn scenes with their captions; images are stored as PNGs in the rows."""

    def split_rows(self) -> dict[str, Rows]:
        """One row per scene, each drawn from (seed, split, index)."""
        return {split: self._rows(split) for split in SPLIT_NAMES}

    def _rows(self, split: str) -> Iterator[dict]:
        for index in range(getattr(self.data, f"{split}_images")):
            generator = np.random.default_rng([self.data.seed, SPLIT_NAMES.index(split), index])
            scene = draw_scene(generator)
            captions = captions_for(scene, generator)
            name = f"{split}-{index:05d}"
            yield {
                "image": {"path": None, "bytes": png(paint(scene, self.data.image_size, generator))},
                "image_id": name,
                "captions": captions,
                "caption_ids": [f"{name}#{k}" for k in range(len(captions))],
            }


def draw_scene(generator: np.random.Generator) -> Scene:
    """Two or three shapes that do not touch, no two of the same kind and colour; redrawn until this holds."""
    count = 2 + int(generator.random() < 0.2)
    while True:
        shapes = tuple(draw_shape(generator) for _ in range(count))
        apart = all(
            hypot(a.x - b.x, a.y - b.y) > 1.1 * (RADIUS[a.size] + RADIUS[b.size]) + 0.03
            for a, b in combinations(shapes, 2)
        )
        if apart and len({(shape.kind, shape.colour) for shape in shapes}) == count:
            return Scene(shapes, pick(generator, BACKGROUNDS))


def draw_shape(generator: np.random.Generator) -> Shape:
    """A random shape, anywhere in the image."""
    kind, colour, size = pick(generator, SHAPES), pick(generator, COLOURS), pick(generator, SIZES)
    # Centres are near those of an 8 x 8 grid: a small ViT, which sees the image in patches, learns shapes sooner.
    x, y = (generator.integers(1, 7, size=2) + 0.5) / 8 + generator.uniform(-0.015, 0.015, size=2)
    return Shape(kind, colour, size, float(x), float(y), angle=generator.uniform(-0.1, 0.1))


def pick(generator: np.random.Generator, choices):
    """One of the choices (for a dictionary, one of its keys), each with the same probability."""
    return list(choices)[generator.integers(len(choices))]


# Words


def captions_for(scene: Scene, generator: np.random.Generator) -> list[str]:
    """Five captions: everything, a relation, its reverse with the background, a list, one shape with its position."""
    first, second, *others = (scene.shapes[k] for k in generator.permutation(len(scene.shapes)))

    def say(shape: Shape, size: bool = True) -> str:
        return name(shape, generator, size)

    def relation(shape: Shape, other: Shape) -> str:
        return pick(generator, RELATIONS[direction(shape, other)])

    def ground() -> str:
        return pick(generator, BACKGROUNDS[scene.background])

    count = {2: ("two shapes", "a pair of things"), 3: ("three shapes", "a trio of things")}[len(scene.shapes)]
    last = others[0] if others else second
    return [
        " and ".join(say(shape) for shape in (first, second, *others)) + f" on {ground()}",
        f"{say(first)} {relation(first, second)} {say(second)}",
        f"{pick(generator, ('there is', 'we see'))} {say(second, size=False)} {relation(second, first)} "
        f"{say(first, size=False)} on {ground()}",
        f"{pick(generator, count)} on {ground()}: " + ", ".join(say(shape, size=False) for shape in scene.shapes),
        f"{say(last)} {place(last, generator)}, {say(first, size=False)} elsewhere, {ground()}",
    ]


def name(shape: Shape, generator: np.random.Generator, size: bool) -> str:
    """A shape in words, such as "a little red disc"; without the size "a red disc"."""
    words = [shape.colour, pick(generator, SHAPES[shape.kind])]
    if size:
        words.insert(0, pick(generator, SIZES[shape.size]))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def direction(shape: Shape, other: Shape) -> str:
    """Where `shape` is as seen from `other`, along the axis on which they are further apart."""
    dx, dy = shape.x - other.x, shape.y - other.y
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def place(shape: Shape, generator: np.random.Generator) -> str:
    """Where in the image a shape is, in words."""
    column = "left" if shape.x < 0.36 else "right" if shape.x > 0.64 else ""
    row = "top" if shape.y < 0.36 else "bottom" if shape.y > 0.64 else ""
    if row and column:
        return pick(generator, (f"in the {row} {column} corner", f"at the {row} {column}"))
    if row or column:
        return pick(generator, (f"near the {row or column}", f"at the {row or column}"))
    return pick(generator, ("in the middle", "in the centre"))


# Pixels


def paint(scene: Scene, side: int, generator: np.random.Generator) -> Image.Image:
    """The scene as an RGB image of `side` x `side` pixels, with slightly varying tints."""
    canvas = _background(scene.background, side * OVERSAMPLING, generator)
    draw = ImageDraw.Draw(canvas)
    for shape in scene.shapes:
        tint = tuple(np.clip(np.array(COLOURS[shape.colour]) + generator.integers(-12, 13, 3), 0, 255).tolist())
        _draw_shape(draw, shape, side * OVERSAMPLING, tint)
    return canvas.reduce(OVERSAMPLING)


def png(image: Image.Image) -> bytes:
    """An image encoded as PNG."""
    encoded = BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def _background(kind: str, side: int, generator: np.random.Generator) -> Image.Image:
    light = np.array(TINTS[kind]) + generator.integers(-8, 9, 3)
    shade = np.maximum(light - 36, 0)
    width = max(1, side // int(generator.integers(7, 11)))
    phase_x, phase_y = generator.integers(0, 2 * width, 2)
    x, y = (np.arange(side) + phase_x)[None, :], (np.arange(side) + phase_y)[:, None]
    pattern = {
        "plain": lambda: np.zeros((side, side), bool),
        "dark": lambda: np.zeros((side, side), bool),
        "striped": lambda: (x + y) // width % 2 == 1,
        "checkered": lambda: (x // width + y // width) % 2 == 1,
        "dotted": lambda: 4 * ((x % (2 * width) - width) ** 2 + (y % (2 * width) - width) ** 2) < width**2,
    }[kind]()
    canvas = Image.new("RGB", (side, side), tuple(light.tolist()))
    canvas.paste(tuple(shade.tolist()), (0, 0), Image.fromarray(pattern))
    return canvas


def _draw_shape(draw: ImageDraw.ImageDraw, shape: Shape, side: int, tint: tuple[int, int, int]) -> None:
    x, y, radius = round(shape.x * side), round(shape.y * side), round(RADIUS[shape.size] * side)
    box = (x - radius, y - radius, x + radius, y + radius)

    def corners(*directions: float) -> list[tuple[int, int]]:
        reach = 1.2 * radius  # roughly the area of the circle
        return [(round(x + reach * sin(shape.angle + a)), round(y - reach * cos(shape.angle + a))) for a in directions]

    match shape.kind:
        case "circle":
            draw.ellipse(box, fill=tint)
        case "ring":
            draw.ellipse(box, outline=tint, width=round(0.42 * radius))
        case "square":
            draw.polygon(corners(*(pi * (2 * k + 1) / 4 for k in range(4))), fill=tint)
        case "triangle":
            draw.polygon(corners(*(pi * 2 * k / 3 for k in range(3))), fill=tint)
