"""The documented command that trains vargpt-emoji, with next to no data: every step runs, and a run that was stopped goes on."""

import signal
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from stopped_commands import run_until
from transformers import AutoConfig

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.emoji.packages import PACKAGES
from vargpt_hf.evaluation.report import read_report
from vargpt_hf.inference.drawing import answer
from vargpt_hf.shipped import EMOJI_NAME, folder_of
from vargpt_hf.training.image_tokenizer.loading import fresh_image_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_emoji.py"
MOST_BYTES = 24_000_000


def run(folder: Path, packages: Path, *options: object, until: str | None = None) -> tuple[int, str]:
    """The command's exit code and what it said; stopped, with all that it has started, when a file or folder of its own is there."""
    command = [EXAMPLE, folder, "--packages", packages, "--scale", "0", "--evaluate", "2", *options]
    return run_until(command, folder.parent / "log.txt", until and folder / until, signal.SIGKILL)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    import train_emoji

    return train_emoji


def made(folder: Path) -> dict[str, int]:
    """When the weights of every finished step, and every dataset, were written."""
    files = [*folder.glob("*/model.safetensors"), *folder.glob("data/*/state.json")]
    return {file.parent.name: file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, packages):
    """The folder of a run that was killed while the whole model was trained, what it had finished by then, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "emoji"
    _, said = run(folder, packages, until="trained/.training.lock")
    return folder, made(folder), said


@pytest.mark.slow
def test_the_parts_are_made(stopped):
    folder, finished, said = stopped
    assert set(finished) == {"drawing", "reading", "images", "images-test", "pictures", "image_tokenizer", "clip", "base"}, said[-3000:]
    assert not list(folder.glob("data/*.part")) and "retrieval accuracy among 100:" in said
    VargptProcessor.from_pretrained(folder / "base").check_fits(AutoConfig.from_pretrained(folder / "base"))


@pytest.mark.slow
def test_a_run_that_was_killed_comes_to_its_end(stopped, packages):
    folder, before, _ = stopped
    code, said = run(folder, packages)
    assert code == 0, said[-3000:]
    now = made(folder)
    assert before.items() <= now.items() and {"trained", "vargpt-emoji"} <= set(now)
    shipped = folder / "vargpt-emoji"
    assert (shipped / "model.safetensors").stat().st_size <= MOST_BYTES and AutoConfig.from_pretrained(shipped).dtype == torch.bfloat16
    model, processor = VargptForConditionalGeneration.from_pretrained(shipped, dtype="float32").eval(), VargptProcessor.from_pretrained(shipped)
    card, metrics = (shipped / "README.md").read_text(), read_report(folder / "report")["metrics"]
    assert (
        all(package.credit in card for package in PACKAGES)
        and "license: apache-2.0" in card
        and "![a turtle in the flat look](drawn.png)" in card
    )
    assert {"seen: both", "kept out: both", "answers"} <= set(metrics) and "kept out: both" in card
    (image,) = answer(model, processor, ["a turtle in the flat look"], "image", seeds=[0]).images
    assert image.size == (64, 64) == Image.open(shipped / "drawn.png").size


@pytest.mark.slow
def test_a_second_seed_takes_the_parts_and_stops_early(stopped, packages, example, monkeypatch):
    """Its first weights are others, and so is the order of its rows; it is no model to ship."""
    (folder, _, _), called = stopped, []
    again = folder.with_name("again")
    options = ["--parts-of", folder, "--seed", "1", "--stop-at", "0.2"]
    monkeypatch.setattr("sys.argv", [str(part) for part in ("train_emoji.py", again, "--packages", packages, "--scale", "0", *options)])
    monkeypatch.setattr(example, "vargpt", lambda *arguments: called.append(arguments))
    example.main()
    assert called == [
        ("train", again / "train.yaml", "--resume_from_checkpoint", "true", "--per_device_train_batch_size", 64, "--muon", "true")
        + ("--scale_dropout", 0.75, "--compile_layers", example.can_compile(), "--seed", 2, "--num_train_epochs", 0.55, "--stop_at", 0.2)
    ]
    assert all((again / name).is_symlink() for name in example.PARTS)
    parts = [load_file(place / "base" / "model.safetensors") for place in (folder, again)]
    same = {name.split(".")[1] for name, value in parts[0].items() if torch.equal(value, parts[1][name])}
    other = {name.split(".")[1] for name, value in parts[0].items() if not torch.equal(value, parts[1][name])}
    assert "image_tokenizer" in same - other and "visual_decoder" in other


@pytest.mark.slow
def test_what_helps_can_be_left_out(stopped, packages, example, monkeypatch, capsys):
    """Self-correction of bits, which a codebook has not, and dropped conditions."""
    (folder, _, _), called, given = stopped, [], ["--packages", packages, "--scale", "0", "--prompt-dropout", "0", "--max-flip-rate", "0"]
    bits = folder.with_name("bits")
    fresh_image_tokenizer("bsq", yaml.safe_load((EXAMPLE.parent / "tokenizer/emoji_bsq.yaml").read_text())["image_tokenizer"]).save_pretrained(
        bits / "image_tokenizer"
    )
    for name in ("data", "tokenizer", "clip"):
        (bits / name).symlink_to(folder / name)
    monkeypatch.setattr(example, "vargpt", lambda *arguments: called.append(arguments))
    monkeypatch.setattr("sys.argv", [str(part) for part in ("train_emoji.py", bits, "--image-tokenizer", "bsq", "--stop-at", "0.5", *given)])
    example.main()
    assert called[0][-2:] == ("--prompt_dropout", 0.0) and AutoConfig.from_pretrained(bits / "base").image_tokenizer_config.max_flip_rate == 0
    monkeypatch.setattr("sys.argv", [str(part) for part in ("train_emoji.py", folder, *given)])
    with pytest.raises(SystemExit):
        example.main()
    assert "a codebook has not" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_learns_on_from_its_weights(packages, tmp_path, example, monkeypatch, capsys):
    folder, called = tmp_path / "more", []
    command = ["train_emoji.py", folder, "--packages", packages, "--scale", "0", "--start-from", "vargpt-emoji"]
    monkeypatch.setattr(example, "vargpt", lambda *arguments: called.append(arguments))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", [*map(str, command), "--stop-at", "0.5"])
    example.main()
    given = list(zip(called[0], called[0][1:]))
    assert called[0][:2] == ("train", folder / "train.yaml")
    assert {("--learning_rate", 4e-4), ("--scale_dropout", 0.0)} <= set(given)
    VargptProcessor.from_pretrained(folder / "base").check_fits(AutoConfig.from_pretrained(folder / "base"))
    assert str(folder / "base") in (folder / "train.yaml").read_text() and {path.name for path in (folder / "data").iterdir()} == set(
        example.ROWS
    )
    weights, shipped = (load_file(Path(place) / "model.safetensors") for place in (folder / "base", folder_of(EMOJI_NAME)))
    assert weights.keys() == shipped.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, shipped[name].float()) for name, value in weights.items())
    monkeypatch.setattr("sys.argv", [*map(str, command), "--parts-of", str(folder)])
    with pytest.raises(SystemExit):
        example.main()
    assert "takes all parts of a model" in capsys.readouterr().err


def test_a_run_keeps_the_settings_that_it_began_with(tmp_path, example, monkeypatch):
    """On another machine, too: of other batches, the steps done so far would be another share of the rows."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    began = example.settings_of_run(tmp_path, None, None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert example.settings_of_run(tmp_path, None, None) == began == {"per_device_train_batch_size": 64, "muon": "true", "scale_dropout": 0.75}
    with pytest.raises(ValueError, match="began with 64 rows a step, not with 128"):
        example.settings_of_run(tmp_path, None, 128)
    with pytest.raises(ValueError, match="began from fresh weights, not from vargpt-emoji"):
        example.settings_of_run(tmp_path, "vargpt-emoji", None)
    (tmp_path / "other").mkdir()
    larger = example.settings_of_run(tmp_path / "other", "vargpt-emoji", 256)
    assert larger["per_device_train_batch_size"] == 256 and larger["attn_implementation"] == "sdpa" and larger["learning_rate"] == 1e-3
    (tmp_path / "old").mkdir()
    (tmp_path / "old/run.json").write_text('{"start_from": null, "stage": {"per_device_train_batch_size": 128}}')
    found = example.settings_of_run(tmp_path / "old", None, None)  # the optimizer that it began with, and that one's learning rate
    assert found == {"per_device_train_batch_size": 128, "muon": "false", "learning_rate": 1e-3, "scale_dropout": 0.0}


@pytest.mark.parametrize(("cuda", "compiler", "compiles"), [(True, False, "true"), (False, True, "true"), (False, False, "false")])
def test_layers_are_compiled_where_they_can_be(example, monkeypatch, cuda, compiler, compiles):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("vargpt_hf.training.compiling.has_cpp_compiler", lambda: compiler)
    assert example.can_compile() == compiles


def test_parts_of_what_is_no_run_are_refused(tmp_path, example):
    with pytest.raises(FileNotFoundError, match="has no data: --parts-of takes the folder of a run"):
        example.link_parts(tmp_path, tmp_path / "again")
