"""The npm packages that pictures and words come from: fetched by `npm pack`, checked by their hashes, never shipped.

| package | what is taken from it | license |
|---|---|---|
| emoji-datasource-google 16.0.0 | Noto Emoji as PNG files of 64×64 pixels | Apache-2.0 |
| emoji-datasource-twitter 16.0.0 | Twemoji as PNG files of 64×64 pixels | CC-BY 4.0 |
| @lobehub/fluent-emoji-3d 1.1.0 | Fluent Emoji (3D) as WebP files of 256×256 pixels | MIT |
| emojibase-data 17.0.0 | names, tags, groups | MIT |

No part of training, but a look that can be learned afterwards, is @iconify-json/fluent-emoji-flat 1.2.6 (MIT): Fluent Emoji (flat) as SVG.
"""

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Package:
    """One npm package.

    Attributes:
        name, version: as npm has them.
        sha256: of the tarball.
        license: of what is taken from it.
        source: who made that, for the list of data in a model card.
    """

    name: str
    version: str
    sha256: str
    license: str
    source: str

    @property
    def stem(self) -> str:
        """Name of the tarball that `npm pack` writes, without ".tgz"."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"

    @property
    def credit(self) -> str:
        """One line that names the work, its makers' license and the package."""
        return f"{self.source} ({self.license}; npm package {self.name} {self.version})"


CARTOON = Package(
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "Apache-2.0",
    "Noto Emoji by Google",
)
FLAT = Package(
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "CC-BY 4.0",
    "Twemoji by Twitter and other contributors",
)
ROUND = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
    "Fluent Emoji by Microsoft",
)
WORDS = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "Emojibase by Miles Johnson: names and tags",
)
PACKAGES = (CARTOON, FLAT, ROUND, WORDS)  # what training needs
VECTORS = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "MIT",
    "Fluent Emoji (flat) by Microsoft",
)


def fetch(folder: str | Path, packages: Sequence[Package] = PACKAGES) -> None:
    """Puts the tarballs of packages into a folder by `npm pack`; those that are there are checked and kept.

    Args:
        folder: takes the tarballs.
        packages: which; by default those that training needs.

    Raises:
        OSError: npm is not installed, or could not fetch a package; the message says which files to put there.
        ValueError: a tarball that is not the one of that name.
    """
    folder = Path(folder)
    missing = [package for package in packages if _find(folder, package) is None]
    if missing:
        npm, needed = shutil.which("npm"), ", ".join(f"{package.stem}.tgz" for package in missing)
        if npm is None:
            raise FileNotFoundError(
                f"npm is not installed, so that the packages cannot be fetched. Install it, or put these files into {folder}: {needed}."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for package in missing:
            command = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder), "--silent"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or _find(folder, package) is None:
                said = (done.stderr or done.stdout).strip().splitlines()
                raise OSError(f"npm could not fetch {package.name}@{package.version}: {said[-1] if said else 'no reason given'}.")
    for package in packages:
        _check(folder, package)


def read_files(folder: str | Path, package: Package, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Files of one package, by path inside of it.

    Args:
        folder: holds the tarball, which is checked, or what it unpacks to: `NAME-VERSION/package/…`.
        package: which one.
        wanted: says of a path whether to read it.

    Raises:
        OSError: a package that is not in the folder or cannot be read.
        ValueError: a tarball or package that is not the one of that name.
    """
    place = _check(Path(folder), package)
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.is_file())
        return {name: path.read_bytes() for path in files if wanted(name := path.relative_to(place).as_posix())}
    found = {}
    with tarfile.open(place, "r|gz") as tarball:  # as a stream: once from front to back
        for member in tarball:
            name = member.name.removeprefix("package/")
            if member.isfile() and wanted(name):
                found[name] = tarball.extractfile(member).read()
    return found


def _find(folder: Path, package: Package) -> Path | None:
    """The tarball or else the unpacked folder, where one is there."""
    tarball, unpacked = folder / f"{package.stem}.tgz", folder / package.stem / "package"
    return tarball if tarball.is_file() else unpacked if unpacked.is_dir() else None


def _check(folder: Path, package: Package) -> Path:
    """Where a package lies, after a look whether it is the right one."""
    place = _find(folder, package)
    if place is None:
        raise FileNotFoundError(
            f"{folder} holds neither {package.stem}.tgz nor {package.stem}/package: "
            f"fetch it by `npm pack {package.name}@{package.version}` in that folder."
        )
    if place.is_dir():
        _check_version(place / "package.json", package)
    else:
        with place.open("rb") as file:
            _check_hash(file, place, package)
    return place


def _check_hash(file: BinaryIO, place: Path, package: Package) -> None:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    if digest.hexdigest() != package.sha256:
        raise ValueError(
            f"{place} has the SHA-256 {digest.hexdigest()}, but {package.name} {package.version} has {package.sha256}: "
            "delete the file and fetch it again."
        )


def _check_version(file: Path, package: Package) -> None:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file: unpack {package.stem}.tgz again.") from error
    found = (said.get("name"), said.get("version")) if isinstance(said, dict) else None
    if found != (package.name, package.version):
        raise ValueError(f"{file} is of another package ({found}) than {package.name} {package.version}: unpack {package.stem}.tgz there.")


def code_of(file_name: str) -> str:
    """The code points of a picture's file name, in lower case and without the variation selector: "2602-FE0F.png" → "2602"."""
    stem = re.split(r"[./]", file_name.rpartition("/")[2])[0]
    return "-".join(part for part in stem.lower().split("-") if part != "fe0f")


__all__ = ["CARTOON", "FLAT", "PACKAGES", "ROUND", "VECTORS", "WORDS", "Package", "code_of", "fetch", "read_files"]
