"""The tests' own files: pytest imports them, and what they share, by their bare names."""

from collections import defaultdict
from pathlib import Path

FOLDER = Path(__file__).parent


def test_no_two_modules_have_one_name():
    """In folders that are no packages the second one would not be collected, or the first one be imported in its place."""
    folders = defaultdict(list)
    searched = {file.parent for file in FOLDER.rglob("test_*.py")}  # which pytest adds to sys.path
    for file in sorted(file for folder in searched for file in folder.glob("*.py") if file.name != "conftest.py"):
        folders[file.stem].append(str(file.parent.relative_to(FOLDER)))
    assert len(folders) > 50 and not {name: found for name, found in folders.items() if len(found) > 1}
