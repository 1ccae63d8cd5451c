"""Shapes and textures of the rendered objects.

A class is a structure (a star, a wheel with spokes, a fish with fins, ...), never a colour: colours, textures, sizes,
aspects and rotations are drawn at random for every object. Shapes are signed distances in the object's own
coordinates (u, v), about -1..1, negative inside; only their sign and their slope near 0 matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avsseg.data.synthetic_draws import Bank, Range, Split

Plane = NDArray[np.float32]
Parameters = tuple[float, ...]


@dataclass(frozen=True)
class ShapeClass:
    """One class: its name, its outline and the ranges that its instances are drawn from."""

    name: str
    distance: Callable[[Plane, Plane, Parameters], Plane]
    ranges: tuple[Range | Bank, ...]

    def draw(self, rng: np.random.Generator, split: Split) -> Parameters:
        """The shape parameters of one instance."""
        return tuple(float(r.draw(rng, split)) for r in self.ranges)


def _star(u: Plane, v: Plane, p: Parameters) -> Plane:
    points, inner = p
    tip = 2 * np.abs(np.arctan2(v, u) * np.float32(points / (2 * np.pi)) % 1 - np.float32(0.5))
    return np.float32(0.6) * (np.hypot(u, v) - np.float32(inner) - np.float32(1 - inner) * tip)


def _wheel(u: Plane, v: Plane, p: Parameters) -> Plane:
    spokes, rim, hub = p
    radius = np.hypot(u, v)
    sector = 2 * np.pi / spokes
    angle = (np.arctan2(v, u) + sector / 2) % sector - sector / 2
    spoke = np.maximum(np.abs(radius * np.sin(angle)) - 0.1, radius - 0.95)
    ring = np.abs(radius - (1 - rim / 2)) - rim / 2
    return np.minimum(np.minimum(ring, spoke), radius - hub)


def _fish(u: Plane, v: Plane, p: Parameters) -> Plane:
    height, tail = p
    body = (np.hypot((u - 0.25) / 0.75, v / height) - 1) * height
    fan = np.maximum(np.abs(v) - tail * (-u - 0.3), -u - 1)
    fin = np.maximum(np.abs(u - 0.2) - 0.9 * (v + height + 0.35), v + height - 0.15)
    eye = 0.1 - np.hypot(u - 0.68, v + 0.12)
    return np.maximum(np.minimum(np.minimum(body, fan), fin), eye)


def _ladder(u: Plane, v: Plane, p: Parameters) -> Plane:
    rungs, half_width, bar = p
    rail = np.abs(np.abs(u) - half_width) - bar
    pitch = 2 / rungs
    rung = np.maximum(np.abs((v + 1) % pitch - pitch / 2) - bar, np.abs(u) - half_width)
    return np.maximum(np.minimum(rail, rung), np.abs(v) - 1)


def _crescent(u: Plane, v: Plane, p: Parameters) -> Plane:
    bite, offset = p
    return np.maximum(np.hypot(u, v) - 1, bite - np.hypot(u - offset, v))


def _cross(u: Plane, v: Plane, p: Parameters) -> Plane:
    arm, length = p
    across = np.maximum(np.abs(u) - length, np.abs(v) - arm)
    return np.minimum(across, np.maximum(np.abs(v) - 1, np.abs(u) - arm))


def _gourd(u: Plane, v: Plane, p: Parameters) -> Plane:
    base, head = p
    lower = np.hypot(u, v - (1 - base)) - base
    upper = np.hypot(u, v + (1 - head)) - head
    neck = np.maximum(np.abs(u) - 0.14, np.abs(v) - 0.6)
    return np.minimum(np.minimum(lower, upper), neck)


def _zigzag(u: Plane, v: Plane, p: Parameters) -> Plane:
    turns, amplitude, thickness = p
    wave = (np.abs((u * turns / 2) % 1 - 0.5) * 4 - 1) * amplitude
    slope = 2 * turns * amplitude
    band = np.abs(v - wave) / np.sqrt(1 + slope * slope).astype(np.float32) - thickness
    return np.maximum(band, np.abs(u) - 1)


CLASSES: tuple[ShapeClass, ...] = (
    ShapeClass("star", _star, (Bank((5, 7, 8), (6,)), Range(0.36, 0.56))),
    ShapeClass("wheel", _wheel, (Bank((4, 5, 7), (6,)), Range(0.2, 0.34), Range(0.2, 0.36))),
    ShapeClass("fish", _fish, (Range(0.38, 0.58), Range(0.65, 1.0))),
    ShapeClass("ladder", _ladder, (Bank((3, 5), (4,)), Range(0.46, 0.64), Range(0.12, 0.18))),
    ShapeClass("crescent", _crescent, (Range(0.72, 0.92), Range(0.42, 0.62))),
    ShapeClass("cross", _cross, (Range(0.2, 0.34), Range(0.8, 1.0))),
    ShapeClass("gourd", _gourd, (Range(0.48, 0.62), Range(0.3, 0.42))),
    ShapeClass("zigzag", _zigzag, (Bank((3, 5), (4,)), Range(0.38, 0.55), Range(0.18, 0.24))),
)
CLASS_NAMES: tuple[str, ...] = tuple(c.name for c in CLASSES)

TEXTURES = Bank(seen=(0, 1, 2, 3, 4), held_out=(5, 6, 7))
TEXTURE_NAMES = ("plain", "gradient", "stripes", "checks", "marble", "rings", "dots", "weave")


@dataclass(frozen=True)
class Texture:
    """A texture in object coordinates: two colours (RGB, 0..255) blended by a pattern of `kind`."""

    kind: int
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    frequency: float
    angle: float

    def colour(self, u: Plane, v: Plane) -> Plane:
        """(n,) coordinates -> (n, 3) colours, float32."""
        blend = self._pattern(u, v)[..., None]
        first = np.asarray(self.first, np.float32)
        return first + (np.asarray(self.second, np.float32) - first) * blend

    def _pattern(self, u: Plane, v: Plane) -> Plane:
        c, s = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        x, y = u * c + v * s, v * c - u * s
        f = np.float32(self.frequency)
        match TEXTURE_NAMES[self.kind]:
            case "plain":
                return 0.1 * y
            case "gradient":
                return np.clip(0.5 + 0.45 * x, 0, 1)
            case "stripes":
                return 0.5 + 0.5 * np.clip(3 * np.sin(f * x), -1, 1)
            case "checks":
                return 0.5 + 0.5 * np.clip(4 * np.sin(f * x) * np.sin(f * y), -1, 1)
            case "marble":
                return 0.5 + 0.5 * np.sin(f * x + 2.2 * np.sin(0.61 * f * y + 1.3 * x))
            case "rings":
                return 0.5 + 0.5 * np.clip(3 * np.sin(f * np.hypot(x - 0.3, y)), -1, 1)
            case "dots":
                return np.clip(6 * (np.cos(f * x) * np.cos(f * y) - 0.35), 0, 1)
            case _:
                return 0.5 + 0.25 * (np.sin(f * x) + np.sin(f * y) * np.cos(0.5 * f * x))


def draw_texture(
    rng: np.random.Generator, split: Split, apart_from: tuple[float, float, float] | None = None, apart_by: float = 70
) -> Texture:
    """A texture with any two colours, whose mean keeps away from the colour `apart_from` if one is given."""
    while True:
        first = rng.uniform(10, 245, 3)
        second = first + (rng.uniform(10, 245, 3) - first) * rng.uniform(0.3, 1)
        if apart_from is None or np.linalg.norm((first + second) / 2 - np.asarray(apart_from)) > apart_by:
            break
    return Texture(
        TEXTURES.draw(rng, split),
        (float(first[0]), float(first[1]), float(first[2])),
        (float(second[0]), float(second[1]), float(second[2])),
        Range(3.0, 12.0).draw(rng, split),
        float(rng.uniform(0, np.pi)),
    )
