"""The model that `benchmarks/plain_cpu.py --whole` writes, loads and draws with, at toy size."""

import re

import pytest
import torch

from benchmarks import plain_cpu
from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.testing import tiny_config


def test_a_model_of_random_weights_is_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_cpu, "SHARD", 40_000)
    plain_cpu.write_random(tmp_path / "whole", tiny_config())
    files = list((tmp_path / "whole").glob("*.safetensors"))
    assert len(files) > 3 and max(file.stat().st_size for file in files) < 2 * 40_000
    model, info = VargptForConditionalGeneration.from_pretrained(tmp_path / "whole", dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    tensors = dict(model.model.visual_decoder.named_parameters())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(0.01 < tensor.float().std() < 0.03 for tensor in tensors.values() if tensor.numel() > 100 and tensor.ndim > 1)


@pytest.mark.parametrize("dtype", plain_cpu.FORMATS)
def test_it_is_loaded_and_drawn_with(dtype, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plain_cpu, "PROMPT_IDS", (3, 60))
    plain_cpu.write_random(tmp_path / "whole", tiny_config())
    plain_cpu.draw_whole(tmp_path / "whole", dtype, guided=False, repeats=2)
    loaded, *drawn = capsys.readouterr().out.splitlines()
    assert loaded.startswith(f"{dtype}: loaded in ") and len(drawn) == 2
    for line in drawn:
        anonymous, mapped, both = (float(re.search(rf"'{name}': ([\d.]+)", line)[1]) for name in (*plain_cpu.MEMORY, "both"))
        assert 0 < anonymous < both and 0 < mapped < both <= anonymous + mapped
