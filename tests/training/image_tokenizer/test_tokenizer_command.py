"""`vargpt tokenizer`, its page word for word (with little data), and what it refuses in one line."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import killing
import pytest
import ready_processes
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tokenizer_micro import FIELDS, image, pixels_of, tokenizer
from typer.testing import CliRunner

import vargpt_hf.cli
from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.cli import app
from vargpt_hf.modeling.configuration_vargpt import IMAGE_TOKENIZERS
from vargpt_hf.testing import tiny_model
from vargpt_hf.training.image_tokenizer.forecast import cost_of
from vargpt_hf.training.image_tokenizer.loading import load_image_tokenizer
from vargpt_hf.training.image_tokenizer.script import parse, train
from vargpt_hf.training.stage_files import shipped_stages

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/image_tokenizer.md").read_text()
TOY = "--max_steps 3 --eval_steps 3 --per_device_train_batch_size 4 --warmup_steps 1 --logging_steps 1 --use_cpu true --disable_tqdm true"
SIXTEEN = {
    "kind": "vq",
    "image_tokenizer": FIELDS["vq"],
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "disable_tqdm": True,
}


def run(*arguments):
    """A command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def folder_of_images(folder, number=8):
    folder.mkdir()
    for index in range(number):
        image(index).save(folder / f"{index}.png")
    return folder


def test_the_page_works_word_for_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("my-vargpt")
    folder_of_images(tmp_path / "my-images")
    names = {"__name__": "__main__"}
    for language, block in re.findall(r"^```(python|bash)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(compile(block.replace("4000", "12").replace("400)", "6)"), "image_tokenizer.md", "exec"), names)
            continue
        for line in filter(None, block.splitlines()):
            command = shlex.split(line)[1:]
            if command[:2] == ["tokenizer", "train"]:
                command += shlex.split(TOY + (" --continuous_steps 1" if "shapes" in command[2] else ""))
            names["printed"] = run(*command).stdout
            if command[1] == "evaluate":
                report = json.loads(names["printed"][names["printed"].index("{") :])
    assert {"psnr", "ssim", "perceptual_distance", "rfid", "codes"} <= set(report) and report["images"] == 6
    assert report["psnr"]["unit"] == "dB" and report["psnr"]["low"] <= report["psnr"]["value"] <= report["psnr"]["high"]
    assert [scale["grid"] for scale in report["codes"]["schedules"][0]["scales"]] == [[1, 1], [3, 3], [6, 6]]
    assert Image.open("sheet.png").size == (6 * 148 - 4, 2 * 144 + 4)  # 48 pixels, three times enlarged
    assert sorted(path.name for path in Path("runs/shapes/samples").iterdir()) == ["step-0.png", "step-3.png"]
    assert Path("runs/shapes/training.png").is_file() and Path("runs/shapes/config.json").is_file()
    tuned = VargptForConditionalGeneration.from_pretrained("my-vargpt-tuned").model.image_tokenizer
    fresh = tiny_model().model.image_tokenizer
    assert torch.equal(tuned.encode(pixels_of()), fresh.encode(pixels_of()))
    assert not torch.equal(tuned.last_layer, fresh.last_layer)


def test_figures_of_the_page_are_those_of_the_forecast():
    for kind, row in (("vargpt_vq", "1.88"), ("vargpt_bsq", "10.71")):
        model_class = IMAGE_TOKENIZERS[kind]
        cost = cost_of(model_class, model_class.config_class(), adversarial=True, ema=True)
        assert f"{cost.flop / 1e12:.2f}" == row and re.search(rf"with the discriminator \|.*{row} TFLOP", PAGE)
        assert f"{cost.weight_bytes / 2**30:.1f}" == "2.1"
        low, high = cost.activations * 2 / 2**30, cost.activations * 4 / 2**30
        assert f"{low:.1f} to {high:.1f} GiB" in PAGE


@pytest.mark.parametrize("name", [name for name in shipped_stages("tokenizer")])
def test_files_of_the_package_can_be_read(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/shapes", "data/images", "runs/emoji/data/images", "runs/emoji/data/pictures", "my-images"):
        for place in (folder, f"{folder}-test"):
            (tmp_path / place).mkdir(parents=True)
    monkeypatch.setattr("vargpt_hf.hardware.is_fast", lambda *args: True)
    script, training = parse(name)
    assert training.output_dir.startswith("runs/") and (script.kind is None) == (name == "tokenizer/domain")


def write(folder, **keys):
    file = folder / "tokenizer.yaml"
    file.write_text(json.dumps({**SIXTEEN, "train_data": str(folder / "images"), "output_dir": str(folder / "out"), **keys}))
    return file


def test_a_run_that_is_killed_ends_with_the_weights_of_one_that_is_not(tmp_path):
    """By SIGKILL, at any moment: see killing.py."""
    folders = [tmp_path / name for name in ("straight", "killed")]
    for folder in folders:
        folder.mkdir()
        folder_of_images(folder / "images")
        keys = {"save_strategy": "steps", "save_steps": 1, "max_steps": 12, "ema_decay": 0.9, "revive_every": 4, "adversarial_weight": 0.1}
        write(folder, **keys, discriminator_layers=2, discriminator_channels=8, random_flip=True).rename(folder / "stage.yaml")
    command = [killing.__file__, *folders, "3", "0", "vargpt_hf.training.image_tokenizer.script"]
    done = ready_processes.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "survived 3 kills" in done.stdout, done.stdout + done.stderr


def test_a_stream_and_a_mixture_train(tmp_path):
    folder_of_images(tmp_path / "images")
    file = write(
        tmp_path, train_data=[str(tmp_path / "images"), {"path": str(tmp_path / "images"), "weight": 2.0}], streaming=True, random_flip=True
    )
    train(file)
    assert load_image_tokenizer(tmp_path / "out").config.codebook_size == 24
    train(file, ["--max_steps", "3", "--resume_from_checkpoint", "true", "--streaming", "false"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "gan"}, "There is no kind 'gan' of image tokenizers: give one of vq, bsq"),
        ({"kind": None}, "must say either `kind` (vq, bsq), for a fresh image tokenizer, or `model_name_or_path`"),
        ({"image_tokenizer": {**FIELDS["vq"], "codebok_size": 3}}, "has no field codebok_size: see VargptVQConfig"),
        ({"image_tokenizer": {**FIELDS["vq"], "schedules": [[1, 4, 2]]}}, "A scale schedule needs (height, width) grids from 1 or more"),
        ({"image_tokenizer": {**FIELDS["vq"], "schedules": [[1, 2, 8]]}}, "is 16×16 pixels (width × height), smaller than the 32×32"),
        ({"image_tokenizer": "nonsense"}, "`image_tokenizer` must be a mapping"),
        ({"l1_wieght": 1.0}, "unknown key `l1_wieght` (did you mean `l1_weight`?)"),
        ({"train_data": "nowhere"}, "There is no dataset at nowhere"),
        ({"eval_strategy": "steps"}, "but there is no `eval_data`"),
        ({"streaming": True, "max_steps": -1}, "set `max_steps`"),
        ({"freeze": "codes"}, "`freeze: codes` leaves fresh weights as they are: give `model_name_or_path`"),
        ({"freeze": "all"}, "`freeze` is 'all'; it must be one of none, encoder, codes"),
        ({"resize_factor": 0.5}, "`resize_factor` must be a number from 1 on"),
        ({"muon": True}, "`muon` means nothing to an image tokenizer: leave it out"),
        ({"compile_layers": True}, "`compile_layers` means nothing to an image tokenizer: leave it out"),
        ({"perceptual_network": "./nothing"}, "There is no network './nothing'"),
        ({"perceptual_network": "lpips-vgg"}, "needs the weights of its network"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(keys, message, tmp_path, monkeypatch, capsys):
    folder_of_images(tmp_path / "images", 4)
    monkeypatch.setattr(sys, "argv", ["vargpt", "tokenizer", "train", str(write(tmp_path, **keys))])
    with pytest.raises(SystemExit) as ended:
        vargpt_hf.cli.main()
    assert message in str(ended.value) and str(ended.value).startswith("vargpt: ") and "\n" not in str(ended.value)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_what_cannot_be_evaluated_is_said_in_one_line(tmp_path, monkeypatch):
    folder_of_images(tmp_path / "images", 4)
    (tmp_path / "empty").mkdir()
    tokenizer().save_pretrained(tmp_path / "vq")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps({"model_type": "bert"}))
    for arguments, message in (
        (("vq", "empty"), "is an empty folder"),
        (("other", "images"), "holds a model of type 'bert': give an image tokenizer (vargpt_vq, vargpt_bsq) or a VARGPT"),
        (("vq", "images", "--fid-network", "inception:nothing.pth"), "There is no file nothing.pth"),
        (("vq", "images", "--perceptual-network", "vgg"), "There is no network 'vgg'"),
    ):
        model, data, *rest = arguments
        monkeypatch.setattr(sys, "argv", ["vargpt", "tokenizer", "evaluate", str(tmp_path / model), str(tmp_path / data), *rest])
        with pytest.raises(SystemExit) as ended:
            vargpt_hf.cli.main()
        assert message in str(ended.value) and "\n" not in str(ended.value)


def test_the_image_tokenizer_of_a_vargpt_is_read_alone(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    found = load_image_tokenizer(tmp_path)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.model.image_tokenizer.state_dict().items())
    save_file({name: value for name, value in model.state_dict().items() if "conv_out.bias" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of its image tokenizer: decoder.conv_out.bias is missing, and should be"):
        load_image_tokenizer(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 5000)
    with pytest.raises(OSError, match="model.safetensors"):
        load_image_tokenizer(tmp_path)
    assert yaml.safe_load((ROOT / "examples/tokenizer/domain.yaml").read_text())["freeze"] == "codes"
