"""The video of the synthetic dataset: twelve moving objects on a cluttered, shaking, flickering background.

An object is drawn by a function `(stage, cycles, rng)`. `cycles` (T,) counts the object's periods at every frame; its
audio is made from the same count, so that both have their events at whole cycles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
Scalar = float | FloatArray  # one for all frames, or (T,)
Color = FloatArray | None  # (3,) or (T, 3); None is the object's main color
Draw = Callable[["Stage", FloatArray, Generator], None]
Distance = Callable[[FloatArray, FloatArray], FloatArray]  # pixels to a shape's edge from (dx, dy); negative inside


@dataclass(frozen=True)
class VideoDifficulty:
    """How hard the video is to classify; none of these changes the audio.

    Attributes:
        object_size: The mean half-height of the object as a fraction of the frame height; a clip draws 0.7 to 1.3 times
            it.
        contrast: The contrast of objects and distractors, 0 (the color of the background) to 1.
        clutter: The clutter of the background, 0 (plain) to 1 (strong texture and fourteen shapes behind the object).
        distractors: The largest number of other objects in a clip; at least one unless this is 0.
        shake_pixels: The standard deviation of the camera's position in pixels.
        brightness: The relative variation of brightness within a clip and between clips.
        occlusion: The probability that a bar hides part of the object.
    """

    object_size: float = 0.28
    contrast: float = 0.8
    clutter: float = 0.4
    distractors: int = 2
    shake_pixels: float = 1.0
    brightness: float = 0.2
    occlusion: float = 0.3


@dataclass
class Stage:
    """The frames being painted, with a local coordinate system that moves with one object.

    Local units: x to the right, y down, the object within about [-1, 1]; every argument is a number or one number per
    frame (T,). Edges are softened over one pixel, so that slow motion is smooth.
    """

    frames: FloatArray  # (T, H, W, 3) float32 in [0, 255], painted in place
    anchor: FloatArray  # (T, 2) pixels, x then y
    size: float  # pixels per local unit
    main: FloatArray  # a color (3,)
    accent: FloatArray
    tilt: float  # radians
    mirror: float  # 1 or -1

    @property
    def half_width(self) -> float:
        """Half the frame's width in local units, for objects that cross the whole frame."""
        return self.frames.shape[2] / 2 / self.size

    def ellipse(self, x: Scalar, y: Scalar, rx: Scalar, ry: Scalar, angle: Scalar = 0.0, color: Color = None) -> None:
        """A filled ellipse with half axes `rx`, `ry`, turned by `angle` radians."""
        a, b = self._pixels(rx), self._pixels(ry)
        self._paint(x, y, np.maximum(a, b), angle, color, partial(_to_ellipse, a, b))

    def box(self, x: Scalar, y: Scalar, rx: Scalar, ry: Scalar, angle: Scalar = 0.0, color: Color = None) -> None:
        """A filled rectangle with half sides `rx`, `ry`, turned by `angle` radians."""
        a, b = self._pixels(rx), self._pixels(ry)
        self._paint(x, y, np.hypot(a, b), angle, color, lambda dx, dy: np.maximum(np.abs(dx) - a, np.abs(dy) - b))

    def bar(self, x0: Scalar, y0: Scalar, x1: Scalar, y1: Scalar, thickness: float, color: Color = None) -> None:
        """A straight bar of the given half thickness between two points."""
        dx, dy = np.subtract(x1, x0), np.subtract(y1, y0)
        self.box(np.add(x0, x1) / 2, np.add(y0, y1) / 2, np.hypot(dx, dy) / 2, thickness, np.arctan2(dy, dx), color)

    def ring(self, x: Scalar, y: Scalar, rx: Scalar, ry: Scalar, color: Color = None) -> None:
        """The outline of an ellipse, about two pixels thick."""
        a, b = self._pixels(rx), self._pixels(ry)
        reach = np.maximum(a, b) + 1
        self._paint(x, y, reach, 0.0, color, lambda dx, dy: np.abs(_to_ellipse(a, b, dx, dy)) - 0.8)

    def _pixels(self, length: Scalar) -> FloatArray:
        """Local lengths as pixels, at least half a pixel, shaped to broadcast over (T, h, w)."""
        lengths = np.broadcast_to(np.asarray(length, np.float32), len(self.frames))
        return np.maximum(lengths * self.size, 0.5)[:, None, None]

    def _paint(self, x: Scalar, y: Scalar, reach: FloatArray, angle: Scalar, color: Color, distance: Distance) -> None:
        """Blend `color` ((3,) or (T, 3)) over the window of every frame where the shape's distance is below zero."""
        T, H, W = self.frames.shape[:3]
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        u, v = np.multiply(x, self.mirror), np.asarray(y)
        px = (self.anchor[:, 0] + self.size * (cos * u - sin * v)).astype(np.float32)
        py = (self.anchor[:, 1] + self.size * (sin * u + cos * v)).astype(np.float32)
        # The window moves with the shape but stays within the frame.
        side = int(np.ceil(2 * reach.max())) + 3
        h, w = min(side, H), min(side, W)
        rows = np.clip(py - side / 2 + 1, 0, H - h).astype(int)[:, None] + np.arange(h)
        columns = np.clip(px - side / 2 + 1, 0, W - w).astype(int)[:, None] + np.arange(w)
        dx = (columns - px[:, None])[:, None, :].astype(np.float32)
        dy = (rows - py[:, None])[:, :, None].astype(np.float32)
        turn = np.broadcast_to(np.asarray(self.mirror * np.asarray(angle) + self.tilt, np.float32), T)[:, None, None]
        c, s = np.cos(turn), np.sin(turn)
        depth = 0.5 - distance(c * dx + s * dy, c * dy - s * dx)  # (T, h, w)
        t, i, j = np.nonzero(depth > 0)  # blend only the N pixels that the shape covers
        pixels = self.frames.reshape(-1, 3)  # a view
        where = (t * H + rows[t, i]) * W + columns[t, j]
        paint = np.broadcast_to(self.main if color is None else color, (T, 3)).astype(np.float32)[t]
        under = pixels[where]
        pixels[where] = under + np.minimum(depth[t, i, j], 1)[:, None] * (paint - under)


def _to_ellipse(a: FloatArray, b: FloatArray, dx: FloatArray, dy: FloatArray) -> FloatArray:
    return (np.sqrt((dx / a) ** 2 + (dy / b) ** 2) - 1) * np.minimum(a, b)


def draw_bouncing_ball(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """A ball that flies in parabolas and is squashed where it meets the ground."""
    f = cycles % 1
    squash = 0.35 * np.exp(-(((cycles - np.round(cycles)) * 9) ** 2))
    stage.bar(-0.7, 1.0, 0.7, 1.0, 0.05, stage.accent)
    stage.ellipse(0.0, 0.65 - 6.0 * rng.uniform(0.8, 1.1) * f * (1 - f), 0.36 * (1 + squash), 0.36 * (1 - squash))


def draw_pendulum(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """A weight on a thin rod; extremes at whole cycles."""
    angle = rng.uniform(0.5, 0.9) * np.cos(np.pi * cycles)
    x, y = 1.8 * np.sin(angle), -1 + 1.8 * np.cos(angle)
    stage.bar(0.0, -1.0, x, y, 0.06, stage.accent)
    stage.ellipse(x, y, 0.32, 0.32)


def draw_hammer(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """A hammer raised slowly and dropped on a block at every whole cycle."""
    f = cycles % 1
    lift = np.where(f < 0.7, np.sin(f / 0.7 * np.pi / 2), 1 - ((f - 0.7) / 0.3) ** 2)
    angle = 0.1 - rng.uniform(0.9, 1.4) * lift
    x, y = -0.9 + 1.5 * np.cos(angle), 0.4 + 1.5 * np.sin(angle)
    stage.box(0.6, 0.95, 0.45, 0.2, 0.0, stage.accent)
    stage.bar(-0.9, 0.4, x, y, 0.08)
    stage.box(x, y, 0.2, 0.36, angle)


def draw_siren(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """Two lamps on a box; the lit one changes at every whole cycle."""
    lit = (np.floor(cycles) % 2)[:, None]
    stage.box(0.0, 0.5, 0.85, 0.3, 0.0, stage.main)
    dark = 0.7 * stage.main + 0.3 * stage.accent
    stage.ellipse(-0.45, 0.0, 0.36, 0.36, 0.0, dark + lit * (stage.accent - dark))
    stage.ellipse(0.45, 0.0, 0.36, 0.36, 0.0, dark + (1 - lit) * (stage.accent - dark))


def draw_rotor(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """Three blades about a hub, one of them of the second color; a blade stands upright at every whole cycle."""
    stage.bar(0.0, 0.0, 0.0, 1.2, 0.08, stage.accent)
    for blade in range(3):
        angle = 2 * np.pi * (cycles + blade) / 3
        stage.bar(0.0, 0.0, 0.95 * np.sin(angle), -0.95 * np.cos(angle), 0.14, stage.accent if blade == 0 else None)


def draw_water_drops(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """Drops that fall from a tap and leave a widening ring where they hit at every whole cycle."""
    f = cycles % 1
    stage.box(0.0, -1.0, 0.25, 0.16, 0.0, stage.accent)
    stage.ring(0.0, 0.9, 0.1 + 0.9 * f, 0.05 + 0.25 * f, stage.accent)
    stage.ellipse(0.0, -0.85 + 1.75 * f**2, 0.17, 0.26)


def draw_passing_engine(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """A box on wheels that crosses the frame and is nearest in its middle at every whole cycle."""
    x = (cycles - np.round(cycles)) * 2 * (stage.half_width + 1.2)
    x = x - (stage.anchor[:, 0] - stage.frames.shape[2] / 2) / stage.size * stage.mirror
    jolt = 0.05 * np.sin(2 * np.pi * 9 * cycles)
    stage.box(x, 0.1 + jolt, 0.9, 0.35)
    stage.box(x - 0.35, -0.35 + jolt, 0.35, 0.25)
    for wheel in (-0.5, 0.5):
        stage.ellipse(x + wheel, 0.55, 0.24, 0.24, 0.0, stage.accent)


def draw_sliding_saw(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """A toothed blade drawn to and fro over a log; it turns round at whole cycles."""
    x = rng.uniform(0.5, 0.8) * np.cos(np.pi * cycles)
    stage.ellipse(0.0, 0.75, 0.5, 0.45, 0.0, stage.accent)
    stage.box(x, 0.1, 1.0, 0.16)
    for tooth in (-0.75, -0.25, 0.25, 0.75):
        stage.box(x + tooth, 0.27, 0.13, 0.13, np.pi / 4)


def draw_hopping_frog(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """A flat body that crouches, leaps to the other side and lands at every whole cycle."""
    leap = np.clip(cycles % 1 * 2 - 1, 0, 1)  # still for the first half of a cycle
    side = 1 - 2 * (np.floor(cycles) % 2)
    x, y = 0.8 * side * (1 - 2 * leap), 0.6 - 4 * rng.uniform(0.8, 1.2) * leap * (1 - leap)
    air = np.sin(np.pi * leap)
    for leg in (-0.45, 0.45):
        stage.bar(x + 0.5 * leg, y, x + leg, y + 0.25 + 0.4 * air, 0.09)
    stage.ellipse(x, y, 0.5, 0.3)
    for eye in (-0.25, 0.25):
        stage.ellipse(x + eye, y - 0.3, 0.12, 0.12, 0.0, stage.accent)


def draw_fluttering_bird(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """A body with two beating wings that jumps up a little with every chirp, at whole cycles."""
    slow = 2 * np.pi * (0.23 * cycles + rng.random())
    x, y = 0.6 * np.sin(slow), 0.3 * np.cos(1.7 * slow) - 0.4 * np.exp(-4 * (cycles % 1))
    flap = 0.9 * np.sin(2 * np.pi * 2 * cycles)
    for wing in (-1, 1):
        stage.bar(x, y, x + wing * 0.85 * np.cos(flap), y - 0.85 * np.sin(flap), 0.12, stage.accent)
    stage.ellipse(x, y, 0.22, 0.36)


def draw_buzzing_insect(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """A small body with short wings that darts in zigzags; it turns at whole cycles, where the buzz is lowest."""
    zigzag = 2 * np.abs(cycles % 2 - 1) - 1
    x, y = 0.9 * zigzag, 0.7 * np.sin(2 * np.pi * (0.19 * cycles + rng.random()))
    spread = 0.3 + 0.12 * np.cos(2 * np.pi * 4.3 * cycles)
    stage.ellipse(x, y - 0.2, spread, 0.16, 0.0, stage.accent)
    stage.ellipse(x, y, 0.32, 0.17)


def draw_bell(stage: Stage, cycles: FloatArray, rng: Generator) -> None:
    """A bell that swings about its top and is struck by its clapper at every whole cycle."""
    angle = rng.uniform(0.4, 0.7) * np.cos(np.pi * cycles)
    swing = 1.35 * angle  # the clapper runs ahead and meets the wall at the extremes

    def hang(along: float, at: FloatArray) -> tuple[FloatArray, FloatArray]:
        return -along * np.sin(at), -1 + along * np.cos(at)

    stage.ellipse(*hang(1.85, swing), 0.2, 0.2, 0.0, stage.accent)
    stage.ellipse(*hang(0.75, angle), 0.48, 0.5, angle)
    stage.box(*hang(1.15, angle), 0.52, 0.42, angle)
    stage.box(*hang(1.55, angle), 0.75, 0.12, angle)


def render_video(
    draw: Draw, cycles: FloatArray, rng: Generator, *, height: int, width: int, fps: int, difficulty: VideoDifficulty
) -> NDArray[np.uint8]:
    """One clip's frames, uint8 (T, H, W, 3) RGB; `cycles` (T,) are the object's periods at every frame."""
    T = len(cycles)
    times = np.arange(T) / fps
    base = rng.uniform(70, 185, 3)
    camera = difficulty.shake_pixels * _wander(times, rng)  # (T, 2) pixels
    scenery = rng.spawn(1)[0]  # a stream of its own: more clutter does not change the object
    frames = _background(times, camera, base, scenery, height=height, width=width, clutter=difficulty.clutter)
    middle, frame_size = np.array([width, height]) / 2, np.array([width, height])

    def stage(speed: float) -> Stage:
        size = difficulty.object_size * height * rng.uniform(0.7, 1.3)
        start = middle + frame_size * rng.uniform(-0.22, 0.22, 2)
        drift = speed * height * rng.normal(size=2) * (times[:, None] - times[-1] / 2)
        directions = rng.normal(size=(2, 3))
        directions /= np.abs(directions).max(axis=1, keepdims=True)
        colors = base + difficulty.contrast * rng.uniform(90, 150, (2, 1)) * directions
        mirror = 1.0 if rng.random() < 0.5 else -1.0
        first, second = np.clip(colors, 0, 255)
        return Stage(frames, start + drift + camera, size, first, second, rng.uniform(-0.25, 0.25), mirror)

    main, others = stage(0.04), [stage(0.25) for _ in range(difficulty.distractors)]
    shown = int(rng.integers(min(1, difficulty.distractors), difficulty.distractors + 1))
    behind = rng.random(len(others))[:shown] < 0.6  # drawn before the object, which hides them
    for number in np.flatnonzero(behind):
        _draw_distractor(others[number], times, rng)
    draw(main, cycles, rng)
    for number in np.flatnonzero(~behind):
        _draw_distractor(others[number], times, rng)
    angle, shift = rng.uniform(-0.6, 0.6), rng.uniform(-1, 1)
    if rng.random() < difficulty.occlusion:
        main.box(shift + 0.3 * np.sin(times + 6 * shift), 0.0, 0.18, 2.5, angle, base + rng.uniform(-40, 40, 3))
    flicker = 1 + difficulty.brightness * (0.6 * rng.uniform(-1, 1) + 0.5 * _wander(times, rng)[:, 0])
    grain = rng.normal(0, 3, (height + 16, width + 16)).astype(np.float32)
    for frame, gain, (dy, dx) in zip(frames, flicker, rng.integers(0, 17, (T, 2)), strict=True):
        frame *= np.float32(max(gain, 0.1))
        frame += grain[dy : dy + height, dx : dx + width, None]
    return np.clip(frames, 0, 255).astype(np.uint8)


def _draw_distractor(stage: Stage, times: FloatArray, rng: Generator) -> None:
    """One to three random parts that sway, spin and pulse at random rates: motion without a class."""
    rate, phase = rng.uniform(0.3, 2.5, 3), rng.uniform(0, 2 * np.pi, 3)
    sway, spin, pulse = (np.sin(2 * np.pi * r * times + p) for r, p in zip(rate, phase, strict=True))
    x, y = rng.uniform(0, 0.7) * sway, rng.uniform(0, 0.7) * (pulse if rng.random() < 0.5 else sway)
    for part in range(int(rng.integers(1, 4))):
        shape = (stage.ellipse, stage.box)[int(rng.integers(2))]
        dx, dy = rng.uniform(-0.5, 0.5, 2)
        rx, ry = rng.uniform(0.12, 0.6, 2)
        shape(x + dx, y + dy, rx, ry, rng.uniform(0, 3) + rng.uniform(0, 1.5) * spin, stage.accent if part else None)


def _wander(times: FloatArray, rng: Generator) -> FloatArray:
    """Two smooth random curves (T, 2) of unit standard deviation, sums of three slow sines."""
    rate, phase = rng.uniform(0.2, 3.0, (3, 2)), rng.uniform(0, 2 * np.pi, (3, 2))
    return np.sqrt(2 / 3) * np.sin(2 * np.pi * rate * times[:, None, None] + phase).sum(axis=1)


def _background(
    times: FloatArray, camera: FloatArray, base: FloatArray, rng: Generator, *, height: int, width: int, clutter: float
) -> FloatArray:
    """Frames (T, H, W, 3) float32 cut along a pan out of one large textured image with shapes on it."""
    margin = height // 4
    H, W = height + 2 * margin, width + 2 * margin
    image = np.zeros((H, W, 3), np.float32)
    for cells, amplitude in ((3, 1.0), (9, 0.6), (30, 0.5)):
        grid = rng.normal(size=(cells, cells, 3)).astype(np.float32) * amplitude
        grid = 0.7 * grid.mean(axis=2, keepdims=True) * np.sqrt(3) + 0.5 * grid  # mostly light and dark, a little hue
        image += _stretch(_stretch(grid, H, axis=0), W, axis=1)
    image = (base + 38 * clutter * image).astype(np.float32)
    for _ in range(round(14 * clutter)):
        center, size = rng.uniform(0, (W, H)), rng.uniform(0.08, 0.22) * height
        first, second = np.clip(base + clutter * rng.normal(0, 60, (2, 3)), 0, 255)
        shape = Stage(image[None], center[None], size, first, second, rng.uniform(0, 3), 1.0)
        (shape.ellipse if rng.random() < 0.5 else shape.box)(0.0, 0.0, 1.0, rng.uniform(0.15, 1.0))
    pan = rng.normal(0, 0.1 * height, 2) * (times[:, None] - times[-1] / 2)
    corners = np.clip(np.round(margin - pan - camera), 0, 2 * margin).astype(int)
    return np.stack([image[y : y + height, x : x + width] for x, y in corners])


def _stretch(grid: FloatArray, length: int, *, axis: int) -> FloatArray:
    """The values of `grid` stretched linearly over `length` pixels along one axis."""
    position = np.linspace(0, grid.shape[axis] - 1, length, dtype=np.float32)
    left = np.minimum(position.astype(int), grid.shape[axis] - 2)
    weight = np.expand_dims(position - left, tuple(other for other in range(grid.ndim) if other != axis))
    return (1 - weight) * grid.take(left, axis) + weight * grid.take(left + 1, axis)
