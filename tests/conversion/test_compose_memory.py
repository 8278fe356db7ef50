"""Composing takes no more memory than the weights of what reads, mapped from their files, and its token tables, which get new rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbone_configs import backbone_config
from safetensors import safe_open
from vlm_folders import write_vlm

from vargpt_hf import VargptVQModel
from vargpt_hf.testing import tiny_config

# Composes a small model first, so that what is imported and set up once does not count.
PEAK = """
import json, sys
from pathlib import Path
from vargpt_hf.conversion.any_vlm import compose_any

def held(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])

folder, found = Path(sys.argv[1]), {}
for reader in ("small", "large"):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = held("VmRSS:")
    compose_any(folder / f"of_{reader}", vlm=folder / reader, image_tokenizer=folder / "tokenizer", decoder_size="2,24,2")
    found[reader] = held("VmHWM:") - before
print(json.dumps(found))
"""
ROOM = 16 * 2**20  # bytes of all that is small: the allocator, configurations, the side that draws
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "head_dim": 64}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what a process took at most")
@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)])
def test_peak_memory_is_that_of_the_weights_and_the_token_tables(tied, tables, tmp_path):
    torch.manual_seed(0)
    VargptVQModel(tiny_config().image_tokenizer_config).save_pretrained(tmp_path / "tokenizer")
    write_vlm(tmp_path / "small", "llava")
    text = {**backbone_config("llava")["text_config"], **SIZES, "tie_word_embeddings": tied}
    write_vlm(tmp_path / "large", "llava", rows=60_000, tied=tied, text_config=text)
    with safe_open(tmp_path / "large" / "model.safetensors", "pt") as file:
        sizes = [4 * file.get_tensor(name).numel() for name in file.keys()]
    assert sizes.count(table := max(sizes)) == tables and table > 50e6 and sum(sizes) > 150e6
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    peak = json.loads(done.stdout.splitlines()[-1])["large"]
    assert 0.5 * sum(sizes) < peak < sum(sizes) + tables * table + ROOM
