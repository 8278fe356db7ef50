"""The commands, on the model that comes with the package."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

import vargpt_hf.cli
from vargpt_hf.cli import app
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.digits import digit_image, load_split


def run(*arguments, text=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_draw(tmp_path):
    output, strip = tmp_path / "out.png", tmp_path / "strip.png"
    result = run("draw", "a red circle above a blue square", "-o", output, "--scales-strip", strip, "--enlarge", 2)
    assert result.exit_code == 0, result.output
    assert Image.open(output).size == (96, 96)
    assert Image.open(strip).size == (3 * 96, 96)
    first = output.read_bytes()
    run("draw", "a red circle above a blue square", "-o", output, "--enlarge", 2)
    assert output.read_bytes() == first  # the same seed draws the same image
    last_scale = Image.open(strip).crop((2 * 96, 0, 3 * 96, 96))
    assert list(last_scale.getdata()) == list(Image.open(output).getdata())


def test_draw_reads_an_image_and_keeps_what_a_mask_leaves(tmp_path):
    run("draw", "a red circle above a blue square", "-o", tmp_path / "scene.png")
    scene, mask = Image.open(tmp_path / "scene.png"), Image.new("L", (48, 48), 0)
    mask.paste(255, (16, 0, 32, 16))  # the circle's square of the board
    mask.save(tmp_path / "mask.png")
    edit = ["draw", "a green circle above a blue square", "--image", tmp_path / "scene.png", "-o", tmp_path / "edited.png"]
    result = run(*edit, "--mask", tmp_path / "mask.png", "--scales-strip", tmp_path / "strip.png")
    assert result.exit_code == 0, result.output
    edited = Image.open(tmp_path / "edited.png")
    below = (0, 24, 48, 48)
    kept = np.abs(np.asarray(edited.crop(below), dtype=int) - np.asarray(scene.crop(below), dtype=int))
    assert kept.mean() < 4 and np.abs(np.asarray(edited, dtype=int) - np.asarray(scene, dtype=int)).max() > 50
    free = run(*edit)  # without the mask all is drawn anew
    assert free.exit_code == 0 and Image.open(tmp_path / "edited.png").tobytes() != edited.tobytes()
    Image.new("L", (20, 20), 255).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"masks\[0\] is 20x20, but its image is 48x48"):
        run(*edit, "--mask", tmp_path / "small.png")


def test_draw_prompts_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\n")
    monkeypatch.setattr(sys, "argv", ["vargpt", "draw", "--prompts", f"{tmp_path / 'prompts.txt'}", "-o", f"{tmp_path / 'out'}"])
    with pytest.raises(SystemExit, match="^vargpt: 1 of 3 prompts could not be drawn; .*results.jsonl says why. The others are there.$"):
        vargpt_hf.cli.main()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.png", "000002.png", "draw.manifest", "results.jsonl"]
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    assert run("draw", "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "other").stdout == f"Saved {tmp_path / 'other'}\n"
    run("draw", "a red circle", "-o", tmp_path / "single.png")
    assert Image.open(tmp_path / "single.png").tobytes() == Image.open(tmp_path / "other" / "000000.png").tobytes()


def test_a_strength_of_guidance_alone_means_guidance_by_prompt(tmp_path, monkeypatch):
    """Of one text, of a file and of a benchmark, unless the model is saved with a type of its own."""
    drawn = {}
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    for name, options in {"plain": [], "strong": ["--guidance-scale", 8], "prompt": ["--guidance", "prompt", "--guidance-scale", 8]}.items():
        run("draw", "a red circle", "--greedy", "-o", tmp_path / "out.png", *options)
        drawn[name] = Image.open(tmp_path / "out.png").tobytes()
        run("draw", "--prompts", tmp_path / "prompts.txt", "--greedy", "-o", tmp_path / name, *options)
        assert Image.open(tmp_path / name / "000000.png").tobytes() == drawn[name]
    assert drawn["strong"] == drawn["prompt"] != drawn["plain"]
    own = shutil.copytree(TINY_FOLDER, tmp_path / "own")
    saved = own / "generation_config.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "output_image_guidance_type": "noise"}))
    for name, options in {"own": [], "noise": ["--guidance", "noise"], "none": ["--guidance", "none"]}.items():
        run("draw", "a red circle", "--greedy", "-o", tmp_path / "out.png", "--model", own, "--guidance-scale", 8, *options)
        drawn[name] = Image.open(tmp_path / "out.png").tobytes()
    assert drawn["own"] == drawn["noise"] != drawn["strong"] and drawn["none"] == drawn["plain"]
    asked = []
    monkeypatch.setattr("vargpt_hf.evaluation.drawn_suites.draw_suite", lambda *args, **settings: asked.append(settings) or [])
    run("draw", "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "images", "--benchmark", "geneval", "--guidance-scale", 8)
    assert asked[0]["output_image_guidance_scale"] == 8 and "output_image_guidance_type" not in asked[0]


def test_ask_names_a_digit(tmp_path):
    images, labels = load_split("test")
    digit_image(images[0]).save(tmp_path / "digit.png")
    result = run("ask", tmp_path / "digit.png", "which digit is this")
    assert result.stdout == f"{labels[0]}\n"


def test_chat_goes_on_after_what_cannot_be(tmp_path):
    """A text without words, a file that is no image, a conversation too long: each is said, and the next line is answered."""
    (tmp_path / "words.png").write_text("no image")
    lines = ["/draw  ", f"/image {tmp_path / 'words.png'}", "what is this", "red " * 1200, "/draw a red circle", "/quit"]
    result = run("chat", "-o", tmp_path, text="\n".join(lines) + "\n")
    assert result.exit_code == 0, result.output
    for said in ("the prompt is empty", "words.png", "the model has room for 1024"):
        assert said in result.output
    assert Image.open(tmp_path / "image-1.png").size == (48, 48)


def test_a_progress_bar_decodes_no_pixels(tmp_path, monkeypatch):
    from vargpt_hf import VargptVQModel

    monkeypatch.setattr(VargptVQModel, "decode_latents", lambda *args: pytest.fail("pixels that nobody wants"))
    decoded = []
    monkeypatch.setattr(VargptVQModel, "decode", lambda self, codes, *args: decoded.append(codes) or torch.zeros(1, 3, 48, 48))
    assert run("draw", "a red circle", "-o", tmp_path / "out.png").exit_code == 0
    assert len(decoded) == 1


def test_chat_keeps_images(tmp_path):
    result = run("chat", "-o", tmp_path, text="hello\n/draw a red circle\n/image nothing.png\n/new\n/quit\n")
    assert result.exit_code == 0
    assert "There is no file nothing.png" in result.output
    assert f"[{tmp_path / 'image-1.png'}]" in result.output
    assert Image.open(tmp_path / "image-1.png").size == (48, 48)


def test_chat_overwrites_no_file(tmp_path):
    """Neither an earlier conversation's drawing nor an image that is attached."""
    Image.new("RGB", (48, 48), "green").save(tmp_path / "image-1.png")
    before = (tmp_path / "image-1.png").read_bytes()
    lines = [f"/image {tmp_path / 'image-1.png'}", "/draw a blue square", "/draw a red circle", "/quit"]
    result = run("chat", "-o", tmp_path, text="\n".join(lines) + "\n")
    assert result.exit_code == 0 and (tmp_path / "image-1.png").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"image-1.png", "image-2.png", "image-3.png"}


def test_chat_keeps_to_the_mode_saved_with_the_model(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "writer")
    saved = folder / "generation_config.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "generation_mode": "text"}))
    result = run("chat", "--model", folder, "-o", tmp_path, text="draw a red circle and say what you drew\n/quit\n")
    assert result.exit_code == 0 and not list(tmp_path.glob("image-*"))
    result = run("chat", "-o", tmp_path, text="draw a red circle and say what you drew\n/quit\n")
    assert result.exit_code == 0 and list(tmp_path.glob("image-*"))


def test_info():
    output = run("info").output
    assert "visual_decoder" in output and "46 of 512 an image, 3 calls of the language model" in output


def test_evaluate(tmp_path):
    result = run("evaluate", "-n", 4, "-o", tmp_path / "report")
    assert "seen: shape and colour" in result.output
    assert "| seen: shape and colour |" in (tmp_path / "report" / "report.md").read_text()
    assert "| seen: shape and colour | " in run("evaluate", "--compare", tmp_path / "report", tmp_path / "report").output
    (tmp_path / "file").write_text("no folder")
    for arguments, message in (("-o", tmp_path / "file"), "a file; give a folder"), (("--suite", "none"), "must be one of shapes-and-digits"):
        with pytest.raises(ValueError, match=message):
            run("evaluate", *arguments)


def test_evaluate_says_when_a_model_was_trained_on_something_else(tmp_path):
    from transformers import set_seed

    from vargpt_hf import VargptForConditionalGeneration, VargptProcessor

    set_seed(0)
    other = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER)
    for parameter in (*other.model.vlm.language_model.parameters(), *other.model.visual_decoder.parameters()):
        torch.nn.init.normal_(parameter, std=0.02)
    other.save_pretrained(tmp_path / "other")
    VargptProcessor.from_pretrained(TINY_FOLDER).save_pretrained(tmp_path / "other")
    result = run("evaluate", "-n", 8, "--model", tmp_path / "other", "-o", tmp_path / "report")
    assert result.exit_code == 0 and "it was not trained on these shapes and digits" in result.stderr
    assert "> This model draws" in (tmp_path / "report" / "report.md").read_text()
    assert "not trained" not in run("evaluate", "-n", 8).stderr


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("sklearn", "evaluate", ["evaluate", "-n", "1"]),
        ("scipy", "evaluate", ["evaluate", "--compare", "a", "b"]),
        ("trl", "train", ["train", "lora"]),
        ("yaml", "train", ["train", "lora"]),
    ],
)
def test_what_is_not_installed_is_named(package, extra, arguments):
    code = f"import sys; sys.modules[{package!r}] = None; from vargpt_hf_command import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("vargpt: ") and package in line and f'pip install "vargpt-hf[{extra}]"' in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw", "x", "--device", "cuda:63"], "--device is 'cuda:63', but "),
        (["draw", "x", "--device", "gpu"], "--device is 'gpu'; give"),
        (["ask", "scene.png", "x", "--device", "cuda:63"], "There is no file scene.png"),
        (
            ["info", "--model", "nothing"],
            "no such folder, and no model of that name comes with this package, which has vargpt-emoji, vargpt-tiny",
        ),
        (["info", "--model", "some/thing"], "--model is 'some/thing': there is no such folder, and from the Hub"),
        (["info", "--model", "a/b/c"], "--model is 'a/b/c', which is not a folder"),
        (["encode", "nothing", "codes"], "nothing"),
        (["data", "check", "nothing/here"], "There is no file or folder nothing/here here, and on the Hub no such dataset can be read"),
        (["data", "check", "nothing.yaml"], "There is no file nothing.yaml"),
        (["draw", "x", "-o", "image.xyz"], "does not end in the name of an image format"),
        (["draw", "x", "-o", "nowhere/x.png"], "The folder nowhere does not exist"),
        (["draw"], "Give either a TEXT to draw or --prompts"),
        (["draw", "x", "--prompts", "prompts.txt", "-o", "out"], "--prompts with a file of them, not both"),
        (["draw", "--prompts", "prompts.txt"], "--prompts needs a folder for the images, as in -o images"),
        (["draw", "--prompts", "prompts.txt", "-o", "out"], "No such file or directory: 'prompts.txt'"),
        (["draw", ""], "the prompt is empty"),
        (["draw", "red " * 1200], "beside an image the model has room for"),
        (["draw", "x", "--guidance-scale", "nan"], "`output_image_guidance_scale` must be in [0, 100], got nan"),
        *((["draw", "x", "--greedy", option, "1"], "--greedy takes the likeliest") for option in ("--temperature", "--top-k", "--top-p")),
        (["draw", "x", "--temperature", "0"], "`do_sample=False` takes the likeliest"),
        (["draw", "x", "--image", "nothing.png"], "There is no file nothing.png"),
        (["draw", "x", "--mask", "mask.png"], "--mask needs an --image that it belongs to"),
        (["draw", "x", "--height", "64"], "Give both --height and --width"),
        (["draw", "--prompts", "prompts.txt", "-o", "out", "--image", "scene.png"], "--prompts draws sentences alone"),
        (["draw", "x", "--num-processes", "2"], "one TEXT is drawn by one process"),
        (["draw", "x", "--model", "./nothing"], "which is not a folder"),
        (["draw", "x", "--dtype", "int3"], "--dtype is 'int3'; it must be one of auto"),
        (["ask", "nothing.png", "what"], "There is no file nothing.png"),
        (["chat", "-o", "nowhere"], "The folder nowhere does not exist"),
        (["convert", "nothing", "somewhere"], "nothing"),
        (["convert", "a", "b", "--scales", "1;2"], "give whole numbers between commas"),
        (["train", "nothing.yaml"], "There is no file nothing.yaml"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vargpt", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        vargpt_hf.cli.main()
    assert message in str(exit_info.value) and str(exit_info.value).startswith("vargpt: ")
    assert "\n" not in str(exit_info.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_model_is_refused(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model of type 'llama', not a VARGPT"):
        run("info", "--model", tmp_path)


def test_convert(tmp_path):
    from golden_helpers import released_weights, write_released_folder

    source = write_released_folder(tmp_path / "released", released_weights())
    assert run("convert", source, tmp_path / "ours").exit_code == 0
    assert (tmp_path / "ours" / "model.safetensors").exists()


def test_help_has_examples():
    for command in ("draw", "ask", "chat", "train", "encode", "compose", "convert", "card", "serve", "demo", "evaluate", "info", "models"):
        output = run(command, "--help").output
        assert "Examples:" in output and f"vargpt {command}" in output


def test_card(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(TINY_FOLDER, folder)
    report = tmp_path / "report"
    run("evaluate", "-n", 4, "--model", folder, "-o", report)
    result = run("card", folder, "--name", "me/mine", "--draw", "a red circle", "--report", report, "--data", "shapes", "--license", "mit")
    assert result.exit_code == 0, result.output
    written = (folder / "README.md").read_text()
    for said in (
        "license: mit",
        "pipeline_tag: any-to-any",
        "![a red circle](drawn.png)",
        "| shapes and digits | written: digit | 100.0% | 51.0% to 100.0% | 4 |",
        "- shapes",
        'model="me/mine"',
    ):
        assert said in written
    assert Image.open(folder / "drawn.png").size == (48, 48)
    with pytest.raises(ValueError, match="--overwrite"):
        run("card", folder)
    measured = ModelCard.load(folder / "README.md").data.eval_results
    assert {one.metric_name: one.metric_value for one in measured}["written: digit"] == 1.0 and measured[0].dataset_revision
    (report / "report.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="no report of the schema"):
        run("card", folder, "--report", report, "--overwrite")
    assert (folder / "README.md").read_text() == written


def test_a_card_takes_no_report_of_another_model(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(TINY_FOLDER, folder)
    run("evaluate", "-n", 1, "-o", tmp_path / "report")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "output_image_temperature": 0.5}))
    with pytest.raises(ValueError, match="report is of another model"):
        run("card", folder, "--report", tmp_path / "report")


def test_draw_offers_every_guidance():
    from vargpt_hf.cli.draw import Guidance
    from vargpt_hf.modeling.image_sampling_vargpt import GUIDANCE_TYPES

    assert {kind.value for kind in Guidance} == GUIDANCE_TYPES.keys() | {"default"}
