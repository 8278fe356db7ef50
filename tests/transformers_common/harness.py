"""Runs Transformers' own common tests, out of the sdist of the installed version, on a suite of this folder.

Nothing of that sdist is copied into this repository: it is fetched by pip at test time, kept in the user's cache folder, and laid
out anew in a temporary folder for every run. Modules that the sdist leaves out are replaced by stubs there.

    python tests/transformers_common/harness.py SUITE [TEST ...]

runs one suite ("vargpt" or "janus") by hand, all of it or the tests whose names contain one of the given words.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import transformers

SUITES = Path(__file__).parent / "suites"

# What the sdist's tests import and the sdist does not hold.
STUBS = {
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    # Transformers' own CI has fetched the images; here one is made for each address.
    "utils/fetch_hub_objects_for_ci.py": """
import os, tempfile, zlib
import numpy as np
from PIL import Image

def url_to_local_path(url):
    if not url.endswith((".png", ".jpg")):
        return url
    path = os.path.join(tempfile.gettempdir(), f"image_{zlib.crc32(url.encode())}.png")
    pixels = np.random.default_rng(zlib.crc32(url.encode())).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
""",
}


def cached_sdist() -> Path:
    """The sdist of the installed Transformers; fetched by pip where the cache does not hold it.

    Raises:
        RuntimeError: if pip cannot fetch it; with what pip said.
    """
    name = f"transformers-{transformers.__version__}.tar.gz"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vargpt-hf"
    if (folder / name).is_file():
        return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", scratch]
        requirement = f"transformers=={transformers.__version__}"
        done = subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], capture_output=True, text=True)
        if done.returncode or not (Path(scratch) / name).is_file():
            raise RuntimeError(
                f"pip could not download the sdist of {requirement}, which holds the common tests. Make its package index reachable, "
                f"or put {name} into {folder}. pip said:\n{done.stdout}{done.stderr}"
            )
        (Path(scratch) / name).replace(folder / name)
    return folder / name


def lay_out(suite: str, root: Path) -> Path:
    """Puts Transformers' tests, the stubs and one suite into `root`; returns the suite's folder there."""
    with tarfile.open(cached_sdist()) as archive:
        for member in archive.getmembers():
            top, _, inner = member.name.partition("/")
            if inner.startswith("tests/") and member.isfile():
                target = root / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())
    for name, text in STUBS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    # The common tests learn the model's name from their folder, and from the end of their file's name.
    folder = root / "tests" / "models" / suite
    folder.mkdir(parents=True)
    for source in (SUITES / suite).glob("*.py"):
        shutil.copy(source, folder / f"test_{source.stem}_{suite}.py")
    for package in {parent for path in root.rglob("*.py") for parent in path.relative_to(root).parents}:
        if package != Path("."):
            (root / package / "__init__.py").touch()
    return folder


@dataclass
class Results:
    """Outcomes of one run: names "Class.test" of what passed, and with the message of each what did not."""

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def counts(self, class_name: str) -> tuple[int, int, int]:
        """Passed, failed and skipped tests of one class."""
        return tuple(sum(name.split(".")[0] == class_name for name in group) for group in (self.passed, self.failed, self.skipped))


def run_suite(suite: str, expression: str = "") -> Results:
    """Runs a suite, or the tests that an expression as of pytest's `-k` names, in a process of its own.

    Raises:
        RuntimeError: if no sdist can be had, or if pytest could not run the tests.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folder = lay_out(suite, root)
        report = root / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", scratch, "--junitxml", str(report), str(folder)]
        if expression:
            command += ["-k", expression]
        inherited = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        tests = SUITES.parent.parent
        path = os.pathsep.join([str(tests), str(tests / "processing"), *inherited])
        environment = {**os.environ, "RUN_SLOW": "1", "TMPDIR": scratch, "PYTHONPATH": path}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 1) or not report.is_file():
            raise RuntimeError(f"pytest could not run the suite {suite!r}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
        return read_report(report)


def read_report(report: Path) -> Results:
    """Outcomes in pytest's XML."""
    results = Results()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname').rpartition('.')[2]}.{case.get('name')}"
        results.seconds[name] = float(case.get("time"))
        for outcome in case:
            if outcome.tag in ("failure", "error"):
                results.failed[name] = outcome.text or outcome.get("message")
            elif outcome.tag == "skipped":
                results.skipped[name] = outcome.get("message")
        if name not in results.failed and name not in results.skipped:
            results.passed.append(name)
    return results


if __name__ == "__main__":
    outcome = run_suite(sys.argv[1], " or ".join(sys.argv[2:]))
    for name, message in outcome.skipped.items():
        print(f"SKIPPED {name}: {message}")
    for name, message in outcome.failed.items():
        print(f"FAILED {name}\n{message}\n")
    for name in sorted(outcome.seconds, key=outcome.seconds.get)[-10:]:
        print(f"{outcome.seconds[name]:.1f} s {name}")
    print(f"{len(outcome.passed)} passed, {len(outcome.failed)} failed, {len(outcome.skipped)} skipped")
