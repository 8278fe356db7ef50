"""A folder that does not hold the model it claims is refused, by name and shape of what is wrong."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vargpt_hf import VargptConfig, VargptForConditionalGeneration, VargptModel
from vargpt_hf.cli import app
from vargpt_hf.testing import tiny_model

HEAD = "model.visual_decoder.head.weight"


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_missing_tensors_are_named(folder):
    change_tensors(folder, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(ValueError, match=f"missing: {HEAD}"):
        VargptForConditionalGeneration.from_pretrained(folder)
    _, info = VargptForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {HEAD}


def test_extra_tensors_are_named(folder):
    change_tensors(folder, lambda tensors: tensors.update({"model.visual_decoder.more": torch.zeros(2)}))
    with pytest.raises(ValueError, match="unexpected: model.visual_decoder.more"):
        VargptForConditionalGeneration.from_pretrained(folder)


def test_both_shapes_are_named(folder):
    wanted = tuple(load_file(folder / "model.safetensors")[HEAD].shape)
    change_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[HEAD][:-1].clone()}))
    with pytest.raises(ValueError) as refusal:
        VargptForConditionalGeneration.from_pretrained(folder)
    assert f"{HEAD} ({(wanted[0] - 1, wanted[1])} in the file, {wanted} by the configuration)" in str(refusal.value)
    model = VargptForConditionalGeneration.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert tuple(model.get_parameter(HEAD).shape) == wanted


def test_a_contradicting_config_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["visual_decoder_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="missing: model.visual_decoder.layers"):
        VargptForConditionalGeneration.from_pretrained(folder)


def test_another_model_type_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    for load in (VargptConfig.from_pretrained, VargptForConditionalGeneration.from_pretrained):
        with pytest.raises(ValueError, match="'llava' model, not of a 'vargpt' one"):
            load(folder)


def test_pickles_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        VargptForConditionalGeneration.from_pretrained(folder)


def test_the_inner_model_loads_from_a_whole_checkpoint(folder):
    whole = VargptForConditionalGeneration.from_pretrained(folder)
    inner = VargptModel.from_pretrained(folder)
    assert all(torch.equal(tensor, inner.state_dict()[name]) for name, tensor in whole.model.state_dict().items())


# -- values and files ---------------------------------------------------------------------------------------------------


def refusal(folder, kind=ValueError, **options) -> str:
    with pytest.raises(kind) as raised:
        VargptForConditionalGeneration.from_pretrained(folder, **options)
    assert type(raised.value) in (ValueError, TypeError) or isinstance(raised.value, OSError)
    return str(raised.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn])
def test_other_numbers_than_weights_are_refused(folder, dtype):
    change_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[HEAD].to(dtype)}))
    assert f"no weights, which are floating-point numbers of F64, F32, F16, BF16: {HEAD} (model.safetensors, " in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(folder, value):
    def spoil(tensors):
        tensors[HEAD][-1, -1] = value

    change_tensors(folder, spoil)
    assert f"{HEAD} (model.safetensors, F32 loaded as float32) is not finite" in refusal(folder)
    with pytest.raises(ValueError, match=r"visual_decoder\.head\.weight \(model.safetensors"):
        VargptModel.from_pretrained(folder)


def test_values_beyond_the_range_of_the_format_are_refused(folder):
    def enlarge(tensors):
        tensors[HEAD][0, 0] = 1e5

    change_tensors(folder, enlarge)
    assert f"{HEAD} (model.safetensors, F32 loaded as float16) is not finite" in refusal(folder, dtype=torch.float16)
    assert VargptForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).get_parameter(HEAD)[0, 0] == 99840


def test_files_cut_short_are_refused(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "model.safetensors cannot be read as weights: it is damaged" in refusal(folder, OSError)


@pytest.mark.parametrize(
    "table", [[], {}, {HEAD: 5}, {HEAD: "../model.safetensors"}, {HEAD: "absent.safetensors"}, {"more": "model.safetensors"}]
)
def test_indices_of_the_wrong_form_are_refused(folder, table):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    assert "model.safetensors.index.json" in refusal(folder, (ValueError, OSError))


@pytest.mark.parametrize("value", [0, -1, 2**24, 10**12, 1.5, "8", None])
@pytest.mark.parametrize(
    "part, size",
    [
        ("vlm_config.text_config", "hidden_size"),
        ("vlm_config.text_config", "vocab_size"),
        ("vlm_config.vision_config", "num_hidden_layers"),
        ("image_tokenizer_config", "codebook_size"),
        ("visual_decoder_config", "num_hidden_layers"),
        ("visual_decoder_config", "hidden_size"),
    ],
)
def test_impossible_sizes_are_refused_before_they_take_memory(folder, part, size, value):
    config = json.loads((folder / "config.json").read_text())
    functools.reduce(dict.__getitem__, part.split("."), config)[size] = value
    (folder / "config.json").write_text(json.dumps(config))
    said = refusal(folder, (ValueError, TypeError))
    assert "config.json" in said
    assert type(value) is int and value > 0 or size in said


def test_a_config_that_is_no_object_is_refused(folder):
    for content in ("[]", "5", "{", "\x00"):
        (folder / "config.json").write_text(content)
        assert "config.json" in refusal(folder, (ValueError, TypeError, OSError))


@pytest.mark.parametrize("model_type", ["vargpt", "evil"])
def test_code_of_a_foreign_folder_is_not_run_by_commands(folder, model_type, capfd):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "evil.Config"}}
    config["vlm_config"]["text_config"] |= {"auto_map": {"AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("print('code was run')\n")
    found = CliRunner().invoke(app, ["info", "--model", str(folder)], input="y\ny\n")
    assert found.exit_code != 0  # of the one kind, the folder has no processor
    assert isinstance(found.exception, (ValueError, OSError, SystemExit))
    assert "code was run" not in capfd.readouterr().out + found.output and "Do you wish to run" not in found.output
