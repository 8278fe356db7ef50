"""A fourth look, which training does not show: Fluent Emoji (flat), drawn from SVG by resvg."""

import json
from collections.abc import Callable
from pathlib import Path

from .packages import VECTORS, code_of, read_files
from .pictures import PICTURE_SIZE, Pictures

_ICONS, _CODES = "icons.json", "chars.json"
_SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}">{body}</svg>'


def with_vectors(pictures: Pictures, folder: str | Path, look: str) -> Pictures:
    """Pictures with this look more, less the concepts that it does not draw.

    Args:
        pictures: in the looks of training.
        folder: holds the package `packages.VECTORS`.
        look: what sentences call it.

    Raises:
        OSError: a package that is not there.
        ValueError: resvg-py that is missing, or a package that is another one or is broken.
    """
    codes = {concept.code for concept in pictures.concepts}
    drawings = {code: svg for code, svg in read_svgs(folder).items() if code in codes}
    to_png = _rasterizer()
    return pictures.with_look(look, {code: to_png(svg) for code, svg in drawings.items()})


def read_svgs(folder: str | Path) -> dict[str, str]:
    """Every icon of the package as the text of an SVG file, by its code points.

    Raises:
        OSError: a package that is not there.
        ValueError: a package that is another one or is broken.
    """
    files = read_files(folder, VECTORS, (_ICONS, _CODES).__contains__)
    try:
        icons, names = json.loads(files[_ICONS]), json.loads(files[_CODES])
        whole = {name: {**{"left": 0, "top": 0, "width": 16, "height": 16}, **_sizes(icons), **icon} for name, icon in icons["icons"].items()}
        return {code_of(code): _SVG.format_map(whole[name]) for code, name in names.items() if name in whole}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{VECTORS.name} {VECTORS.version} in {folder} is broken: {_ICONS} or {_CODES} is missing or of another form."
        ) from error


def _sizes(icons: dict) -> dict[str, float]:
    """What holds of all icons that do not say otherwise."""
    return {name: icons[name] for name in ("left", "top", "width", "height") if name in icons}


def _rasterizer() -> Callable[[str], bytes]:
    """Draws the text of an SVG as a PNG with a transparent ground."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ValueError(f"SVG is drawn by resvg ({error}): pip install resvg-py.") from error

    def to_png(svg: str) -> bytes:
        try:
            return bytes(svg_to_bytes(svg_string=svg, width=PICTURE_SIZE, height=PICTURE_SIZE))
        except ValueError as error:
            raise ValueError(f"An icon of {VECTORS.name} is no SVG that resvg draws: {error}.") from error

    return to_png


__all__ = ["read_svgs", "with_vectors"]
