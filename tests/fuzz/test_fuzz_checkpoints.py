"""Folders of any content give a model or one error in words: damaged files, lying headers and indices, tensors that are no weights."""

import json
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import fuzzed, policy
from golden_helpers import released_config, released_weights, write_released_folder
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_fuzz_configs import VALUES

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.conversion import convert_checkpoint
from vargpt_hf.conversion.checkpoint import open_checkpoint
from vargpt_hf.modeling.checkpoint_vargpt import headers_of
from vargpt_hf.testing import tiny_model

SMALL = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(2, dtype=torch.int64)}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
HEADER_VALUES = st.one_of(
    VALUES, st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "I64", "X"]), "shape": VALUES, "data_offsets": VALUES})
)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level("CRITICAL")


def read_both(folder: Path) -> None:
    """Both doors: that of converting and that of loading."""
    with policy():
        opened = open_checkpoint(folder)
        assert all(isinstance(source.tensor, torch.Tensor) for source in opened.values())
    with policy():
        headers_of(folder)


@cache
def small_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_file(SMALL, Path(folder) / "model.safetensors")
        return (Path(folder) / "model.safetensors").read_bytes()


@fuzzed(cut=st.integers(0, 400), place=st.integers(0, 400), written=st.binary(max_size=12))
def test_damaged_bytes(cut, place, written):
    content = bytearray(small_file())
    content[place : place + len(written)] = written
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(content[: max(0, len(content) - cut % 100)])
        read_both(Path(folder))


@fuzzed(header=st.one_of(HEADER_VALUES, st.dictionaries(st.text(max_size=3), HEADER_VALUES, max_size=3)), numbers=st.binary(max_size=16))
def test_lying_headers(header, numbers):
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + numbers)
        read_both(Path(folder))


NAMES = st.one_of(
    st.sampled_from(["part.safetensors", "./part.safetensors", "../part.safetensors", "/etc/passwd", "", "a\x00b", "x" * 300]), VALUES
)


@fuzzed(
    index=st.one_of(VALUES, st.fixed_dictionaries({"weight_map": st.one_of(VALUES, st.dictionaries(st.sampled_from(list("abcd")), NAMES))}))
)
def test_any_index(index):
    with tempfile.TemporaryDirectory() as folder:
        save_file(SMALL, Path(folder) / "part.safetensors")
        (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index))
        read_both(Path(folder))


@fuzzed(
    content=st.binary(max_size=64), name=st.sampled_from(["pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors.index.json"])
)
def test_any_bytes(content, name):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        read_both(Path(folder))


@st.composite
def spoilt(draw, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, one of them with other numbers, of another form, renamed or left out."""
    name = draw(st.sampled_from(sorted(tensors)))
    found = {**tensors}
    tensor = found.pop(name).clone()
    match draw(st.sampled_from(["drop", "rename", "dtype", "shape", "value"])):
        case "rename":
            found[draw(st.sampled_from([name + "s", name.replace("0", "99999999999"), name.split(".")[-1], "x"]))] = tensor
        case "dtype":
            found[name] = tensor.to(draw(st.sampled_from(DTYPES)))
        case "shape":
            found[name] = torch.zeros(draw(st.lists(st.integers(0, 3), max_size=5)))
        case "value":
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
            if found[name].numel():
                found[name].view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(
                    st.sampled_from([np.nan, np.inf, 1e38]) if tensor.is_floating_point() else st.integers(-5, 2**40)
                )
    return found


@cache
def released_folder() -> Path:
    return write_released_folder(Path(tempfile.mkdtemp()) / "released", {}, released_config())


@fuzzed(12, tensors=spoilt(released_weights()), dtype=st.sampled_from([None, "float16", "bfloat16"]))
def test_spoilt_tensors_are_converted_or_refused(tensors, dtype):
    with tempfile.TemporaryDirectory() as folder:
        source = shutil.copytree(released_folder(), Path(folder) / "source")
        save_file(tensors, source / "model.safetensors")
        with policy():
            convert_checkpoint(source, Path(folder) / "ours", dtype=dtype)


@cache
def tiny_folder() -> Path:
    folder = Path(tempfile.mkdtemp()) / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@fuzzed(6, tensors=spoilt(dict(tiny_model().state_dict())), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_spoilt_tensors_are_loaded_or_refused(tensors, dtype):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(tiny_folder() / "config.json", folder)
        save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
        with policy():
            model = VargptForConditionalGeneration.from_pretrained(folder, dtype=dtype)
            assert all(parameter.isfinite().all() for parameter in model.parameters())
