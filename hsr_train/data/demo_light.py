"""The light of the built-in demo set: a lamp with soft shadows, light from everywhere, highlights.

`demo_camera` has found what is in front; here it is shaded. `demo_scene` turns the light into an 8-bit picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from hsr_train.data.demo_camera import Camera, Layer, View
from hsr_train.data.demo_shapes import MISS
from hsr_train.data.demo_things import Material, Thing
from hsr_train.data.demo_vectors import Array, Indices, Vec, dot, turn, turn_back

_SHADOW_STEP = 3  # shadows are soft: they are computed on every third pixel each way


@dataclass(frozen=True)
class Light:
    """A lamp or a window with soft shadows, and light from everywhere.

    Attributes:
        position: Of the lamp, metres.
        colour: (3,) strength at one metre and a half.
        above: (3,) light that surfaces looking up get from everywhere.
        below: (3,) the same for surfaces looking down.
        blur_px: How soft shadows are, in pixels of the shadow map.
    """

    position: Array
    colour: Array
    above: Array
    below: Array
    blur_px: float


@dataclass(frozen=True)
class _Patch:
    """The visible pixels of one part of a thing; vectors are in the thing's own frame."""

    thing: Thing
    material: Material
    pixels: Indices  # flat
    point: Vec
    direction: Vec
    normal: Vec  # towards the viewer
    albedo: Vec


def shade(layers: Sequence[Layer], camera: Camera, light: Light, view: View) -> Array:
    """Return the light that reaches the camera, (h, w, 3), linear.

    Args:
        layers: What there is.
        camera: Where from.
        light: What lights it.
        view: As `look` returned it for these layers.
    """
    patches = _patches(layers, camera, view)
    lit, open_sky = _shadows(layers, camera, light, view, patches)
    picture = [np.zeros(view.owner.size, np.float32) for _ in range(3)]
    for patch in patches:
        for plane, values in zip(picture, _light_up(patch, light, lit, open_sky), strict=True):
            plane[patch.pixels] = values
    return _smooth(np.asarray(cv2.merge([p.reshape(view.owner.shape) for p in picture]), np.float32), view)


def _patches(layers: Sequence[Layer], camera: Camera, view: View) -> list[_Patch]:
    out = []
    depth, codes = view.depth.ravel(), view.code.ravel()
    key = view.owner.ravel() * np.int16(16) + (codes >> 6).astype(np.int16)
    order = np.argsort(key, kind="stable")
    ends = np.searchsorted(key[order], np.arange(16 * len(layers) + 1))
    rows, columns = (v.astype(np.float32).ravel() for v in np.indices(view.owner.shape))
    for i, layer in enumerate(layers):
        thing = layer.thing
        for k, (shape, at, material) in enumerate(thing.parts):
            pixels = order[ends[16 * i + k] : ends[16 * i + k + 1]]
            if not len(pixels):
                continue
            t = depth[pixels]
            d = camera.directions(columns[pixels], rows[pixels], thing.rotation)
            eye = thing.to_local(camera.position, at)
            point = (eye[0] + t * d[0], eye[1] + t * d[1], eye[2] + t * d[2])
            found = shape.surface(point, codes[pixels] & 63)
            towards = 1 - 2 * (dot(found.normal, d) > 0).astype(np.float32)
            albedo = _each(material.look_up(found, t / np.float32(camera.focal)), np.square)
            normal = _each(found.normal, lambda v, s=towards: v * s)  # type: ignore[misc]
            out.append(_Patch(thing, material, pixels, _plus(point, at), d, normal, albedo))
    return out


def _light_up(patch: _Patch, light: Light, lit: Array, open_sky: Array) -> Vec:
    """Return the light that a patch sends to the camera, three arrays (n,)."""
    normal, thing = patch.normal, patch.thing
    lamp = thing.to_local(light.position)
    to_light = (lamp[0] - patch.point[0], lamp[1] - patch.point[1], lamp[2] - patch.point[2])
    square = dot(to_light, to_light)
    strength = lit[patch.pixels] * np.minimum(np.float32(2.25) / square, 4)
    direct = np.maximum(dot(normal, to_light), 0) / np.sqrt(square) * strength
    sky = open_sky[patch.pixels]
    upward = (np.float32(0.5) + np.float32(0.5) * dot(thing.rotation[2], normal)) * sky
    shine = _shine(patch, to_light, square) * (strength * np.float32(patch.material.gloss)) * (direct > 0)
    a, b, c = (
        (direct * light.colour[k] + upward * (light.above[k] - light.below[k]) + sky * light.below[k]) * patch.albedo[k]
        + shine * light.colour[k]
        for k in range(3)
    )
    return a, b, c


def _shine(patch: _Patch, to_light: Vec, square: Array) -> Array | float:
    """Return the highlight's strength by the angle half-way between lamp and viewer."""
    if patch.material.gloss < 0.02:
        return 0.0
    distance, length = np.sqrt(square), np.sqrt(dot(patch.direction, patch.direction))
    x, y, z = (
        np.asarray(a / distance - b / length, np.float32) for a, b in zip(to_light, patch.direction, strict=True)
    )
    half = (x, y, z)
    cosine = dot(patch.normal, half) / np.sqrt(np.maximum(dot(half, half), np.float32(1e-9)))
    out = np.zeros(len(cosine), np.float32)
    bright = np.flatnonzero(cosine > np.float32(0.01 ** (1 / patch.material.shininess)))
    out[bright] = cosine[bright] ** np.float32(patch.material.shininess)
    return out


def _smooth(picture: Array, view: View) -> Array:
    """Blur along outlines and creases: nearly as good as several rays per pixel, at a fraction of the time."""
    key = view.owner.astype(np.int32) * 4096 + view.code
    edge = np.zeros(key.shape, np.uint8)
    for a, b in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        jump = key[a] != key[b]
        edge[a] |= jump
        edge[b] |= jump
    return np.asarray(cv2.copyTo(cv2.GaussianBlur(picture, (3, 3), 0.65), edge, picture), np.float32)


def _each(v: Vec, change: Callable[[Array], Array]) -> Vec:
    return change(v[0]), change(v[1]), change(v[2])


def _at(v: Vec, index: Indices) -> Vec:
    return v[0][index], v[1][index], v[2][index]


def _from(points: Vec, target: Array) -> Vec:
    return target[0] - points[0], target[1] - points[1], target[2] - points[2]


def _plus(v: Vec, by: tuple[float, float, float]) -> Vec:
    return v[0] + np.float32(by[0]), v[1] + np.float32(by[1]), v[2] + np.float32(by[2])


def _shadows(
    layers: Sequence[Layer], camera: Camera, light: Light, view: View, patches: Sequence[_Patch]
) -> tuple[Array, Array]:
    """Return how much of the lamp and how much of the surroundings each pixel sees, two (h * w,) arrays of 0 to 1."""
    h, w = view.owner.shape
    step = slice(None, None, _SHADOW_STEP)
    who = view.owner[step, step].ravel()
    place = np.full((h, w), -1, np.int32)  # of a pixel in the shadow map
    place[step, step] = np.arange(len(who)).reshape(view.owner[step, step].shape)
    n = (np.zeros(len(who), np.float32), np.zeros(len(who), np.float32), np.ones(len(who), np.float32))
    for patch in patches:
        at = place.ravel()[patch.pixels]
        here = np.flatnonzero(at >= 0)
        at = at[here]
        for plane, values in zip(n, turn(patch.thing.rotation, _at(patch.normal, here)), strict=True):
            plane[at] = values
    depth = view.depth[step, step]
    depth = depth * (depth < MISS)
    x, y = (np.arange(0, size, _SHADOW_STEP, dtype=np.float32) for size in (w, h))
    d = camera.directions(x[None, :], y[:, None], np.eye(3, dtype=np.float32))
    off = np.float32(2e-3)  # above the surface, so that it does not shade itself
    a, b, c = ((camera.position[k] + depth * d[k]).ravel() + n[k] * off for k in range(3))
    p = (a, b, c)
    to_light = _from(p, light.position)
    square = dot(to_light, to_light)
    lit, open_sky = (dot(n, to_light) > 0).astype(np.float32), np.ones(len(who), np.float32)
    for i, layer in enumerate(layers):
        if not layer.thing.casts:
            continue
        rel = _from(p, layer.centre)
        along, to_centre = dot(rel, to_light), dot(rel, rel)
        near = np.minimum(np.maximum(along / square, 0), 1)
        miss = to_centre - near * (2 * along - near * square)
        could = np.flatnonzero((miss < layer.reach**2) & (lit > 0))
        if len(could):
            start, direction = layer.thing.local(_at(p, could)), turn_back(layer.thing.rotation, _at(to_light, could))
            t, _ = layer.thing.hit(start, direction)
            lit[could[t < 1]] = 0
        if layer.reach > 0.3:  # furniture: the open sky is about small things close by
            continue
        around = np.flatnonzero((to_centre < 9 * layer.reach**2) & (who != i))
        distance = np.maximum(np.sqrt(to_centre[around]), 1e-6)
        cosine = np.maximum(dot(_at(rel, around), _at(n, around)) / distance, 0)
        size = np.float32(0.6 * layer.reach)
        open_sky[around] *= 1 - np.float32(0.75) * np.minimum(cosine * (size / np.maximum(distance, size)) ** 2, 1)
    shape = depth.shape
    maps = []
    for values, sigma in ((lit, light.blur_px), (open_sky, 1.0)):
        soft = cv2.GaussianBlur(values.reshape(shape), (0, 0), sigma)
        maps.append(np.asarray(cv2.resize(soft, (w, h), interpolation=cv2.INTER_LINEAR), np.float32).ravel())
    return maps[0], maps[1]
