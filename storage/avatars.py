"""Cartoon faces drawn by python-avatars and rasterised by resvg: every face is a function of (seed, index).

The library's own random() draws from Python's global generator; here every part is chosen explicitly by a generator
seeded with text, which is the same in every process.
"""

from __future__ import annotations

import colorsys
import io
import random
from dataclasses import dataclass

import python_avatars as parts
import resvg_py
from PIL import Image

from storage.items import Item

CANVAS = 'width="264px" height="280px" viewBox="0 0 264 280"'  # as python-avatars writes it
FRAME = (40, 24, 184)  # left, top and side of the square that is kept: the head fills it, shoulders just show
TOPS = (*parts.HairType, *parts.HatType)
MOUTHS = tuple(mouth for mouth in parts.MouthType if mouth is not parts.MouthType.VOMIT)
RARE_PART_PROBABILITY = 0.35  # of glasses, and of a beard


@dataclass(frozen=True)
class AvatarsReader:
    """Draws faces; an item's location is its index."""

    seed: int
    draw_size: int

    def read(self, item: Item) -> tuple[Image.Image, None]:
        return draw_avatar(self.seed, item.location, self.draw_size), None


def draw_avatar(seed: int, index: int, size: int) -> Image.Image:
    """Draw face number ``index``: RGB, ``size`` x ``size`` pixels, on a plain coloured ground."""
    choice = random.Random(f"avatar {seed} {index}")
    svg = _choose_parts(choice).render()
    left, top, side = FRAME
    framed = svg.replace(CANVAS, f'width="{side}" height="{side}" viewBox="{left} {top} {side} {side}"', 1)
    if framed == svg:
        raise RuntimeError("this version of python-avatars draws on another canvas; adapt storage/avatars.py")
    png = resvg_py.svg_to_bytes(svg_string=framed, background=_ground(choice), width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def _choose_parts(choice: random.Random) -> parts.Avatar:
    def pick(kind):
        return choice.choice(tuple(kind))

    def pick_rarely(kind):
        chosen = pick(kind)
        return chosen if choice.random() < RARE_PART_PROBABILITY else kind.NONE

    return parts.Avatar(
        style=parts.AvatarStyle.TRANSPARENT,
        top=pick(TOPS),
        hat_color=pick(parts.ClothingColor),
        hair_color=pick(parts.HairColor),
        skin_color=pick(parts.SkinColor),
        eyebrows=pick(parts.EyebrowType),
        eyes=pick(parts.EyeType),
        nose=pick(parts.NoseType),
        mouth=pick(MOUTHS),
        facial_hair=pick_rarely(parts.FacialHairType),
        facial_hair_color=pick(parts.HairColor),
        accessory=pick_rarely(parts.AccessoryType),
        clothing=pick(parts.ClothingType),
        clothing_color=pick(parts.ClothingColor),
        shirt_graphic=parts.ClothingGraphic.NONE,  # below the frame
        shirt_text="",
    )


def _ground(choice: random.Random) -> str:
    """A light colour of any hue, as #rrggbb."""
    red, green, blue = colorsys.hsv_to_rgb(choice.random(), choice.uniform(0.25, 0.6), choice.uniform(0.75, 1.0))
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
