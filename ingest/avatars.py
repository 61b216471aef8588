"""Cartoon faces drawn by python-avatars and rasterised by resvg: every face is a function of (seed, index).

The library's own random() draws from Python's global generator; here every part is chosen explicitly by a generator
seeded with text, which is the same in every process. What a face shows is thus known without looking: its ``factors``.
"""

from __future__ import annotations

import colorsys
import io
import random
from dataclasses import dataclass

import python_avatars as parts
import resvg_py
from PIL import Image

from ingest.items import Item

CANVAS = 'width="264px" height="280px" viewBox="0 0 264 280"'  # as python-avatars writes it
FRAME = (40, 24, 184)  # left, top and side of the square that is kept: the head fills it, shoulders just show
KEY_PREFIX = "avatar-"
HIDDEN = "hidden"  # the class of what another part covers
TOPS = (*parts.HairType, *parts.HatType)
MOUTHS = tuple(mouth for mouth in parts.MouthType if mouth is not parts.MouthType.VOMIT)
RARE_PART_PROBABILITY = 0.35  # of glasses, and of a beard
# Factor -> class -> names of the parts in it. Parts that a picture of 16 pixels cannot tell apart share a class.
FACTORS = {
    "skin_color": {name.lower(): name for name in parts.SkinColor.__members__},
    "top": {
        "bald": "NONE SIDES",
        "short": "BUN BUZZCUT CAESAR CAESAR_SIDE_PART ELVIS EVIL_SPIKE FRIZZLE MOHAWK PIXIE POMPADOUR QUIFF SHAGGY SHORT_CURLY "
        "SHORT_DREADS_1 SHORT_FLAT SHORT_ROUND SHORT_WAVED",
        "long": "BIG_HAIR BOB BRAIDS BRIDE CORNROWS CURLY CURLY_2 CURVY DREADLOCKS DREADS EINSTEIN_HAIR FRIDA FRO FRO_BAND HALF_SHAVED "
        "LONG_HAIR_CURLY LONG_NOT_TOO_LONG LOOSE_HAIR MIA_WALLACE MOWGLI SHAGGY_MULLET SHAVED_SIDES SHORT_DREADS_2 STRAIGHT_1 "
        "STRAIGHT_2 STRAIGHT_STRAND TWIST_LONG_HAIR TWIST_LONG_HAIR_2 WICK WILD",
        "hat": "ASTRONAUT CHEF_CAP GLADIATOR_HELMET HAT HIJAB JEDI TURBAN WINTER_HAT_1 WINTER_HAT_2 WINTER_HAT_3 WINTER_HAT_4",
    },
    "hair_color": {
        "black": "BLACK BROWN_DARK",
        "brown": "AUBURN BROWN",
        "blonde": "BLONDE BLONDE_GOLDEN",
        "light": "PLATINUM SILVER_GRAY",
        "pink": "PASTEL_PINK",
        "red": "RED",
        HIDDEN: "",
    },
    "accessory": {
        "none": "NONE",
        "glasses": "PRESCRIPTION_1 PRESCRIPTION_2 ROUND",
        "dark": "KURT SUNGLASSES SUNGLASSES_2 WAYFARERS WAYFARERS_2",
        "eyepatch": "EYEPATCH",
    },
    "eyes": {
        "dots": "CRY DEFAULT SIDE",
        "closed": "CLOSED HAPPY",
        "white": "EYE_ROLL SQUINT SURPRISED",
        "wink": "WINK WINK_WACKY",
        "hearts": "HEART",
        "crosses": "X_DIZZY",
        HIDDEN: "",
    },
    "mouth": {
        "open": "BIG_SMILE DEFAULT DISBELIEF",
        "line": "EATING SAD SERIOUS TWINKLE",
        "red": "CONCERNED SCREAM_OPEN SMILE TONGUE",
        "teeth": "GRIMACE",
    },
    "facial_hair": {
        "none": "NONE",
        "moustache": "EINSTEIN_MOUSTACHE MOUSTACHE_FANCY MOUSTACHE_MAGNUM",
        "beard": "BEARD_LIGHT BEARD_MAGESTIC BEARD_MEDIUM WICK_BEARD",
    },
    "ground": dict.fromkeys(("red", "yellow", "green", "cyan", "blue", "magenta"), ""),  # by hue
}
CLASS_OF = {factor: {part: name for name, members in classes.items() for part in members.split()} for factor, classes in FACTORS.items()}
OWN_COLOUR = ("SHAVED_SIDES", "STRAIGHT_2")  # hair that hair_color does not reach


@dataclass(frozen=True)
class AvatarsReader:
    """Draws faces; an item's location is its index."""

    seed: int
    draw_size: int

    def read(self, item: Item) -> tuple[Image.Image, None]:
        return draw_avatar(self.seed, item.location, self.draw_size), None


def draw_avatar(seed: int, index: int, size: int) -> Image.Image:
    """Draw face number ``index``: RGB, ``size`` x ``size`` pixels, on a plain coloured ground."""
    avatar, ground = _choose(seed, index)
    svg = avatar.render()
    left, top, side = FRAME
    framed = svg.replace(CANVAS, f'width="{side}" height="{side}" viewBox="{left} {top} {side} {side}"', 1)
    if framed == svg:
        raise RuntimeError("this version of python-avatars draws on another canvas; adapt ingest/avatars.py")
    png = resvg_py.svg_to_bytes(svg_string=framed, background=_hex(ground), width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def key_of(index: int) -> str:
    """The key of face number ``index`` in its source."""
    return f"{KEY_PREFIX}{index:07d}"


def index_of(key: str) -> int:
    """The number of the face with this key."""
    return int(key.removeprefix(KEY_PREFIX))


def factors(seed: int, index: int) -> dict[str, int]:
    """What face number ``index`` shows: the number of its class in every one of ``FACTORS``, in their order."""
    avatar, (hue, _, _) = _choose(seed, index)
    shown = {factor: classes[getattr(avatar, factor).name] for factor, classes in CLASS_OF.items() if classes}
    shown["ground"] = list(FACTORS["ground"])[round(hue * 6) % 6]
    if shown["top"] in ("bald", "hat") or avatar.top.name in OWN_COLOUR:
        shown["hair_color"] = HIDDEN
    if shown["accessory"] in ("dark", "eyepatch"):
        shown["eyes"] = HIDDEN
    return {factor: list(classes).index(shown[factor]) for factor, classes in FACTORS.items()}


def _choose(seed: int, index: int) -> tuple[parts.Avatar, tuple[float, float, float]]:
    """All that is left to chance: the parts, and hue, saturation and value of the ground, which is light."""
    choice = random.Random(f"avatar {seed} {index}")
    avatar = _choose_parts(choice)
    return avatar, (choice.random(), choice.uniform(0.25, 0.6), choice.uniform(0.75, 1.0))


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


def _hex(hsv: tuple[float, float, float]) -> str:
    red, green, blue = colorsys.hsv_to_rgb(*hsv)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
