"""Packages of a few drawn concepts, unpacked as npm's tarballs unpack: what the real ones hold, in small."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

from vargpt_hf.emoji.packages import CARTOON, FLAT, PACKAGES, ROUND, VECTORS, WORDS, Package

GROUPS = {
    "0": "smileys-emotion",
    "1": "people-body",
    "3": "animals-nature",
    "4": "food-drink",
    "5": "travel-places",
    "8": "symbols",
    "9": "flags",
}
SUBGROUPS = {
    "1": "face-smiling", "20": "person-role", "37": "animal-reptile", "34": "animal-mammal", "42": "food-fruit",
    "54": "transport-ground", "59": "sky-weather", "96": "geometric", "98": "country-flag",
}  # fmt: skip
# Hexcode, label, tags, group, subgroup, color of its pictures.
ENTRIES = (
    ("1F600", "grinning face", ["face", "grin", "happy"], 0, 1, "gold"),
    ("1F468-200D-1F33E", "man farmer", ["farmer", "man"], 1, 20, "brown"),
    ("1F40E", "horse", ["animal", "racehorse"], 3, 34, "chocolate"),
    ("1F422", "turtle", ["animal", "terrapin", "tortoise"], 3, 37, "green"),
    ("1F40D", "snake", ["animal", "bearer", "serpent"], 3, 37, "limegreen"),
    ("1F40A", "crocodile", ["animal"], 3, 37, "darkgreen"),
    ("1F34E", "red apple", ["apple", "food", "fruit", "red"], 4, 42, "red"),
    ("1F34B", "lemon", ["citrus", "food", "fruit"], 4, 42, "yellow"),
    ("1F352", "cherries", ["berries", "food", "fruit"], 4, 42, "crimson"),
    ("1F697", "automobile", ["car", "vehicle"], 5, 54, "teal"),
    ("1F6F4", "kick scooter", ["kick", "scooter", "vehicle"], 5, 54, "blue"),
    ("1F68C", "bus", ["school", "vehicle"], 5, 54, "orange"),
    ("2602-FE0F", "umbrella", ["clothing", "rain"], 5, 59, "purple"),
    ("1F534", "red circle", ["circle", "red"], 8, 96, "red"),
    ("1F469-200D-1F33E", "only in one package", ["nowhere"], 5, 59, "black"),
    ("1F1EB-1F1F7", "flag: France", ["FR"], 9, 98, "blue"),
)  # fmt: skip
CONCEPTS = [entry for entry in ENTRIES if entry[1] not in ("man farmer", "only in one package", "flag: France", "red circle")]
BOXES = {"cartoon": (6, 6, 58, 58), "flat": (12, 12, 52, 52), "3d": (12, 60, 244, 196)}


def picture(color: str, look: str) -> bytes:
    """A blot on a transparent ground: a disc, a square or a flat ellipse."""
    side = 256 if look == "3d" else 64
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    (draw.rectangle if look == "flat" else draw.ellipse)(BOXES[look], fill=color)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP" if look == "3d" else "PNG")
    return buffer.getvalue()


def files_of(package: Package) -> dict[str, bytes]:
    """What a package holds, by path inside of it."""
    about = {"package.json": json.dumps({"name": package.name, "version": package.version}).encode()}
    if package is VECTORS:
        return {**about, **vectors()}
    if package is WORDS:
        rows = [
            {"hexcode": code, "label": label, "tags": tags, "group": group, "subgroup": subgroup, "order": order}
            for order, (code, label, tags, group, subgroup, _) in enumerate(ENTRIES)
        ]
        unnamed = {"hexcode": "1F1E6", "label": "regional indicator A"}
        meta = {"groups": GROUPS, "subgroups": SUBGROUPS}
        return {**about, "en/data.json": json.dumps([unnamed, *rows[::-1]]).encode(), "meta/groups.json": json.dumps(meta).encode()}
    look, inside, ending = {
        CARTOON: ("cartoon", "img/google/64", "png"),
        FLAT: ("flat", "img/twitter/64", "png"),
        ROUND: ("3d", "assets", "webp"),
    }[package]
    drawn = [entry for entry in ENTRIES if package is FLAT or entry[1] != "only in one package"]
    # Emoji's own files have the variation selector or lack it.
    pictures = {f"{inside}/{code.lower()}.{ending}": picture(color, look) for code, *_, color in drawn}
    if package is ROUND:
        pictures = {name.replace("-fe0f", ""): content for name, content in pictures.items()}
    return {**about, "LICENSE": b"of no use here", **pictures}


def vectors() -> dict[str, bytes]:
    """Triangles as Iconify has icons: one size for all, one of its own, and one concept without any."""
    shape = '<path fill="{}" d="M16 4L28 28L4 28z"/>'
    colors = {label.replace(" ", "-"): color for _, label, *_, color in CONCEPTS if label != "cherries"}
    icons = {name: {"body": shape.format(color)} for name, color in colors.items()} | {"left-over": {"body": "<g/>"}}
    icons["bus"]["height"] = 64
    names = {code.lower(): label.replace(" ", "-") for code, label, *_ in CONCEPTS if label != "cherries"} | {"1f999": "no-icon"}
    return {"icons.json": json.dumps({"icons": icons, "width": 32, "height": 32}).encode(), "chars.json": json.dumps(names).encode()}


def write_packages(folder: Path) -> Path:
    """All packages, unpacked, in a folder."""
    for package in (*PACKAGES, VECTORS):
        for name, content in files_of(package).items():
            file = folder / package.stem / "package" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return folder


def write_tarball(folder: Path, package: Package) -> Path:
    """One package as `npm pack` writes it."""
    file = folder / f"{package.stem}.tgz"
    with tarfile.open(file, "w:gz") as tarball:
        for name, content in files_of(package).items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tarball.addfile(member, io.BytesIO(content))
    return file
