"""Work in processes: an error ends it at once, and a killed process is said."""

import os
import signal
import time
from functools import partial

import pytest

from vargpt_hf.restartable import claim_folder, run_each, write_whole


def prepare(number: int) -> None:
    os.environ["NUMBER_OF_THIS_PROCESS"] = str(number)


def note(item: int, folder) -> str:
    """Fails for item 0, is killed at item -1, and notes any other in the folder."""
    if item == 0:
        raise ValueError("zero is broken")
    if item == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    (folder / str(item)).touch()
    return os.environ["NUMBER_OF_THIS_PROCESS"]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "kind", "message"), [(0, ValueError, "zero is broken"), (-1, ChildProcessError, "One of 2 processes ended")])
def test_an_error_waits_for_no_more_work(first, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        list(run_each(partial(note, folder=tmp_path), [first, *range(1, 200)], 2, prepare))
    assert len(list(tmp_path.iterdir())) < 100


def test_one_process_works_here(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBER_OF_THIS_PROCESS", "none")
    assert list(run_each(partial(note, folder=tmp_path), [1, 2], 1, prepare)) == [(1, "0"), (2, "0")]
    assert list(run_each(note, [], 4, None)) == []


def test_hidden_files_do_not_make_a_folder_another(tmp_path):
    (tmp_path / ".draw.manifest.1f2e").write_text("half, of a process that starts at the same time")
    claim_folder(tmp_path, "draw.manifest", {"seed": 1}, "images")
    claim_folder(tmp_path, "draw.manifest", {"seed": 1}, "images")
    with pytest.raises(ValueError, match=r"holds images of something else: seed 1 \(here 2\)"):
        claim_folder(tmp_path, "draw.manifest", {"seed": 2}, "images")


def test_a_folder_is_claimed_again_by_the_same_job(tmp_path):
    """Whose tuples a note cannot hold."""
    for _ in range(2):
        claim_folder(tmp_path / "images", "note", {"size": (48, 48)}, "images")
    with pytest.raises(ValueError, match=r"size \[48, 48\] .here \[48, 64\]."):
        claim_folder(tmp_path / "images", "note", {"size": (48, 64)}, "images")


def test_a_folder_appears_when_it_is_whole(tmp_path):
    def write(folder, broken):
        folder.mkdir()
        (folder / "first").write_text("there")
        if broken:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device: .*rows"):
        write_whole(tmp_path / "rows", lambda folder: write(folder, True))
    assert not list(tmp_path.iterdir())
    write_whole(tmp_path / "rows", lambda folder: write(folder, False))
    assert [path.name for path in tmp_path.rglob("*")] == ["rows", "first"]
