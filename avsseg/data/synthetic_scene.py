"""What is in a rendered scene and how it moves: drawn once from the seed, painted at any time and any size.

World coordinates: y down, -1..1 over the picture's height; x to the right, -aspect..aspect. Times in seconds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.synthetic_draws import LOOK_ALIKE, Split, generator, pick
from avsseg.data.synthetic_shapes import CLASSES, Parameters, Plane, Texture, draw_texture
from avsseg.data.synthetic_sound import Timbre, draw_timbre

NOBODY = -1
WORLD_MARGIN = 1.5
ASPECTS = (1.0, 4 / 3, 16 / 9)
MOST_BESIDE_A_LOOK_ALIKE = 3


@dataclass(frozen=True)
class Motion:
    """A path: straight drift plus a slow swing, with an optional entrance and exit through the nearer side."""

    anchor: tuple[float, float]
    drift: tuple[float, float]
    swing: tuple[float, float]
    swing_hz: float
    phase: float
    spin: float
    turn: float
    enters_s: float
    leaves_s: float
    side: float

    def position(self, time_s: float) -> tuple[float, float]:
        """World (x, y) at a time."""
        angle = 2 * np.pi * self.swing_hz * time_s + self.phase
        outside = 1 - _ease(time_s - self.enters_s) + _ease(time_s - self.leaves_s)
        x = self.anchor[0] + self.drift[0] * time_s + self.swing[0] * np.sin(angle) + self.side * outside
        return float(x), float(self.anchor[1] + self.drift[1] * time_s + self.swing[1] * np.cos(angle))

    def rotation(self, time_s: float) -> float:
        """Radians at a time."""
        return self.turn + self.spin * time_s


@dataclass(frozen=True)
class SceneObject:
    """One visible object; its class decides its shape family and the family of its voice, unless it is `silent`."""

    class_index: int
    parameters: Parameters
    texture: Texture
    outline: tuple[float, float, float] | None
    radius: float
    stretch: float
    motion: Motion
    timbre: Timbre
    silent: bool = False


@dataclass(frozen=True)
class Camera:
    """Pan and zoom of the whole picture."""

    pan: tuple[float, float]
    pan_hz: float
    zoom: float
    zoom_hz: float
    phase: float

    def view(self, time_s: float) -> tuple[float, float, float]:
        """World centre x, y and zoom at a time."""
        angle = 2 * np.pi * self.pan_hz * time_s + self.phase
        zoom = 1 + self.zoom * np.sin(2 * np.pi * self.zoom_hz * time_s + 2 * self.phase)
        return float(self.pan[0] * np.sin(angle)), float(self.pan[1] * np.cos(angle)), float(zoom)


@dataclass(frozen=True)
class Photometry:
    """What the sensor and the codec do to a picture."""

    gain: float
    offset: float
    noise: float
    jpeg_quality: int


@dataclass(frozen=True)
class SceneSettings:
    """Ranges of the scenes. Sound modes are weights of how the sources of a clip are chosen.

    `look_alikes` is the share of scenes, of those with room, in which one more object wears the texture and the
    colours of another and never sounds.
    """

    objects: tuple[int, int] = (1, 4)
    clutter: tuple[int, int] = (3, 9)
    radius: tuple[float, float] = (0.32, 0.52)
    entrances: float = 0.25
    look_alikes: float = 0.0
    sound_modes: dict[str, float] = field(
        default_factory=lambda: {
            "single": 0.25,
            "turns": 0.25,
            "together": 0.2,
            "independent": 0.15,
            "off-screen": 0.08,
            "silent": 0.07,
        }
    )


@dataclass(frozen=True)
class SceneDescription:
    """Everything that the pictures of a scene depend on; silent objects stand behind all others in `objects`."""

    seed: int
    split: Split
    seconds: int
    aspect: float
    objects: tuple[SceneObject, ...]
    camera: Camera
    photometry: Photometry
    backdrop: tuple[float, float, float]
    clutter: int


def _ease(x: float) -> float:
    x = min(1.0, max(0.0, x / 0.8 + 0.5))
    return x * x * (3 - 2 * x)


def draw_scene(
    seed: int, *, split: Split, seconds: int = 5, settings: SceneSettings | None = None, aspect: float | None = None
) -> SceneDescription:
    """The scene of one seed; all its objects are of different classes.

    A look-alike changes nothing else about the scene.
    """
    settings = settings or SceneSettings()
    rng = generator(split, seed)
    count = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
    aspect = aspect or pick(rng, ASPECTS)
    shrink = 1.0 if count <= 2 else 0.85
    radii = rng.uniform(*settings.radius, count) * shrink
    classes = rng.permutation(len(CLASSES))[:count]
    red, green, blue = (float(c) for c in rng.uniform(20, 235, 3))
    backdrop = (red, green, blue)
    anchors = _spread(rng, radii, aspect)
    objects = tuple(
        _draw_object(rng, split, int(c), float(r), a, seconds, settings, aspect, backdrop)
        for c, r, a in zip(classes, radii, anchors, strict=True)
    )
    if settings.look_alikes and count <= MOST_BESIDE_A_LOOK_ALIKE:
        dress = generator(split, seed, LOOK_ALIKE)
        if dress.uniform() < settings.look_alikes:
            objects += (_look_alike(dress, split, objects, anchors, seconds, settings, aspect, backdrop),)
    moving = rng.uniform() < 0.6
    camera = Camera(
        (float(rng.uniform(-0.18, 0.18)) * moving, float(rng.uniform(-0.12, 0.12)) * moving),
        float(rng.uniform(0.05, 0.3)),
        float(rng.uniform(0, 0.1)) * moving,
        float(rng.uniform(0.05, 0.25)),
        float(rng.uniform(0, 2 * np.pi)),
    )
    photometry = Photometry(
        float(rng.uniform(0.7, 1.15)),
        float(rng.uniform(-15, 25)),
        float(rng.uniform(0, 7)),
        int(rng.integers(45, 96)) if rng.uniform() < 0.6 else 0,
    )
    clutter = int(rng.integers(settings.clutter[0], settings.clutter[1] + 1))
    return SceneDescription(seed, split, seconds, aspect, objects, camera, photometry, backdrop, clutter)


def _spread(rng: np.random.Generator, radii: NDArray[np.float64], aspect: float) -> list[tuple[float, float]]:
    """Anchors that keep the objects apart, the best of a few draws where there is little room."""
    anchors: list[tuple[float, float]] = []
    for index, radius in enumerate(radii):
        anchors.append(_apart_from(rng, float(radius), anchors, radii[:index].tolist(), aspect))
    return anchors


def _apart_from(
    rng: np.random.Generator,
    radius: float,
    anchors: Sequence[tuple[float, float]],
    radii: Sequence[float],
    aspect: float,
) -> tuple[float, float]:
    best, best_gap = (0.0, 0.0), -np.inf
    for _ in range(24):
        x = float(rng.uniform(-1, 1) * max(0.0, aspect - 0.75 * radius))
        y = float(rng.uniform(-1, 1) * max(0.0, 1 - 0.75 * radius))
        gap = min(
            (np.hypot(x - a[0], y - a[1]) - radius - r for a, r in zip(anchors, radii, strict=True)),
            default=1.0,
        )
        if gap > best_gap:
            best, best_gap = (x, y), float(gap)
        if gap > 0.05:
            break
    return best


def _look_alike(
    rng: np.random.Generator,
    split: Split,
    objects: Sequence[SceneObject],
    anchors: Sequence[tuple[float, float]],
    seconds: int,
    settings: SceneSettings,
    aspect: float,
    backdrop: tuple[float, float, float],
) -> SceneObject:
    """A silent object of a class of its own in the dress of another."""
    twin = pick(rng, objects)
    shape = pick(rng, sorted(set(range(len(CLASSES))) - {thing.class_index for thing in objects}))
    anchor = _apart_from(rng, twin.radius, anchors, [thing.radius for thing in objects], aspect)
    drawn = _draw_object(rng, split, shape, twin.radius, anchor, seconds, settings, aspect, backdrop)
    return replace(drawn, texture=twin.texture, outline=twin.outline, silent=True)


def _draw_object(
    rng: np.random.Generator,
    split: Split,
    class_index: int,
    radius: float,
    anchor: tuple[float, float],
    seconds: int,
    settings: SceneSettings,
    aspect: float,
    backdrop: tuple[float, float, float],
) -> SceneObject:
    speed = 0.25 / seconds
    drift = (float(rng.uniform(-speed, speed)), float(rng.uniform(-speed, speed)))
    # the anchor is the place at the middle of the clip
    start = (anchor[0] - drift[0] * seconds / 2, anchor[1] - drift[1] * seconds / 2)
    enters, leaves = -9.0, 1e6
    if rng.uniform() < settings.entrances:
        if rng.uniform() < 0.5:
            enters = float(rng.uniform(0.6, max(0.6, 0.5 * seconds)))
        else:
            leaves = float(rng.uniform(0.5 * seconds, max(0.5 * seconds, seconds - 0.6)))
    motion = Motion(
        start,
        drift,
        (float(rng.uniform(0, 0.08)), float(rng.uniform(0, 0.08))),
        float(rng.uniform(0.15, 0.5)),
        float(rng.uniform(0, 2 * np.pi)),
        float(rng.uniform(-0.4, 0.4)),
        float(rng.uniform(0, 2 * np.pi)),
        enters,
        leaves,
        float(np.copysign(2 * aspect, anchor[0])),
    )
    outline = rng.uniform(0, 255, 3) if rng.uniform() < 0.4 else None
    return SceneObject(
        class_index,
        CLASSES[class_index].draw(rng, split),
        draw_texture(rng, split, backdrop),
        None if outline is None else (float(outline[0]), float(outline[1]), float(outline[2])),
        radius,
        float(np.exp(rng.uniform(-0.2, 0.2))),
        motion,
        draw_timbre(rng, split, class_index),
    )


class ScenePainter:
    """Paints a scene at any time; the background is made once for the size."""

    def __init__(self, description: SceneDescription, height: int, width: int) -> None:
        self.description = description
        self.height = height
        self.width = width
        self.scale = np.array([2 * description.aspect / width, 2 / height], np.float32)
        self.background = self._make_background()

    def paint(self, time_s: float) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        """The picture (H, W, 3) and the index of the object that owns each pixel (H, W), NOBODY where none does."""
        x0, y0, zoom = self.description.camera.view(time_s)
        image = self._view(x0, y0, zoom)
        owner = np.full((self.height, self.width), NOBODY, np.int8)
        for index, thing in enumerate(self.description.objects):
            x, y = thing.motion.position(time_s)
            centre = ((x - x0) * zoom, (y - y0) * zoom)
            self._paint_object(image, owner, index, thing, centre, thing.radius * zoom, time_s)
        return self._expose(image, time_s), owner

    def _make_background(self) -> Image.Image:
        description = self.description
        rng = generator(description.split, description.seed, 1)
        height, width = round(self.height * WORLD_MARGIN), round(self.width * WORLD_MARGIN)
        image = np.zeros((height, width, 3), np.float32)
        for cells, level in ((2, rng.uniform(5, 50)), (6, rng.uniform(2, 30)), (24, rng.uniform(0, 16))):
            grid = Image.fromarray(np.clip(rng.normal(128, level, (cells, cells, 3)), 0, 255).astype(np.uint8))
            image += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128
        image += np.asarray(description.backdrop, np.float32)
        for _ in range(description.clutter):
            self._paint_clutter(image, rng)
        return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))

    def _paint_clutter(self, image: Plane, rng: np.random.Generator) -> None:
        height, width = image.shape[:2]
        texture = draw_texture(rng, self.description.split)
        centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
        half_x, half_y = rng.uniform(0.03, 0.22) * width, rng.uniform(0.03, 0.22) * height
        angle, kind = rng.uniform(0, np.pi), int(rng.integers(3))
        reach = np.hypot(half_x, half_y)
        top, bottom = int(max(0, centre_y - reach)), int(min(height, centre_y + reach + 1))
        left, right = int(max(0, centre_x - reach)), int(min(width, centre_x + reach + 1))
        y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
        x, y = x - np.float32(centre_x), y - np.float32(centre_y)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = (x * c + y * s) / np.float32(half_x), (y * c - x * s) / np.float32(half_y)
        if kind == 0:
            inside = np.hypot(u, v) < 0.8
        elif kind == 1:
            inside = (np.abs(u) < 0.7) & (np.abs(v) < 0.7)
        else:
            inside = (v < 0.6) & (np.abs(u) < 0.5 * (v + 0.8))
        patch = image[top:bottom, left:right]
        strength = np.float32(rng.uniform(0.4, 1))
        patch[inside] += (texture.colour(u[inside], v[inside]) - patch[inside]) * strength

    def _view(self, x0: float, y0: float, zoom: float) -> Plane:
        aspect = self.description.aspect
        # output pixel -> background pixel, both counted from their top left corner
        ax, ay = 1 / zoom, 1 / zoom
        left = self.width * (WORLD_MARGIN / 2 + x0 / (2 * aspect) - 0.5 / zoom)
        top = self.height * (WORLD_MARGIN / 2 + y0 / 2 - 0.5 / zoom)
        view = self.background.transform(
            (self.width, self.height),
            Image.Transform.AFFINE,
            (ax, 0, left, 0, ay, top),
            Image.Resampling.BILINEAR,
        )
        return np.asarray(view, np.float32).copy()

    def _paint_object(
        self,
        image: Plane,
        owner: NDArray[np.int8],
        index: int,
        thing: SceneObject,
        centre: tuple[float, float],
        radius: float,
        time_s: float,
    ) -> None:
        reach = radius * max(thing.stretch, 1 / thing.stretch) * 1.45 / self.scale
        middle = (np.array(centre) + np.array([self.description.aspect, 1])) / self.scale
        left, top = (max(0, int(edge)) for edge in middle - reach)
        right, bottom = int(min(self.width, middle[0] + reach[0] + 1)), int(min(self.height, middle[1] + reach[1] + 1))
        if left >= right or top >= bottom:
            return
        columns = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - middle[0])
        rows = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - middle[1])
        x = (columns * self.scale[0] / np.float32(radius))[None]
        y = (rows * self.scale[1] / np.float32(radius))[:, None]
        rotation = thing.motion.rotation(time_s)
        c, s = np.float32(np.cos(rotation)), np.float32(np.sin(rotation))
        u, v = (x * c + y * s) / np.float32(thing.stretch), (y * c - x * s) * np.float32(thing.stretch)
        distance = CLASSES[thing.class_index].distance(u, v, thing.parameters)
        coverage = np.clip(0.5 - distance * np.float32(radius / self.scale[1]), 0, 1)
        covered = coverage > 0
        colour = thing.texture.colour(u[covered], v[covered])
        if thing.outline is not None:
            colour[distance[covered] > -0.06] = thing.outline
        patch = image[top:bottom, left:right]
        patch[covered] += (colour - patch[covered]) * coverage[covered][:, None]
        owner[top:bottom, left:right][coverage > 0.5] = index

    def _expose(self, image: Plane, time_s: float) -> NDArray[np.uint8]:
        photometry = self.description.photometry
        rng = generator(self.description.split, self.description.seed, 1000 + round(time_s * 1000))
        image = (image - 128) * np.float32(photometry.gain) + np.float32(128 + photometry.offset)
        image += rng.standard_normal(image.shape, np.float32) * np.float32(photometry.noise)
        exposed = np.clip(image, 0, 255).astype(np.uint8)
        if not photometry.jpeg_quality:
            return exposed
        with io.BytesIO() as buffer:
            Image.fromarray(exposed).save(buffer, "JPEG", quality=photometry.jpeg_quality)
            return np.asarray(Image.open(buffer))
