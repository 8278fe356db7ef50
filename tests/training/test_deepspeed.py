"""DeepSpeed itself, where it is installed: on two CPUs over gloo its stages make the steps of one process."""

import json

import pytest
from datasets import Dataset
from micro import ROWS, write_config
from ranks import run_ranks
from test_engines import PLAIN, assert_same, weights

from vargpt_hf.training.data import ROW_FEATURES
from vargpt_hf.training.script import train

pytest.importorskip("deepspeed", reason="DeepSpeed is not a dependency: pip install deepspeed")

# As `accelerate launch` with examples/accelerate/zero2.yaml or zero3.yaml sets them, but for the number format.
TRAIN = """
del os.environ["ACCELERATE_USE_CPU"]  # which leaves DeepSpeed out
os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": sys.argv[2], "DS_ACCELERATOR": "cpu"}
os.environ |= {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"}
from accelerate import PartialState
from vargpt_hf.training.script import train

train(sys.argv[1])
assert "DEEPSPEED" in str(PartialState().distributed_type)
"""


@pytest.mark.parametrize(("stage", "rows"), [(2, ROWS), (3, [ROWS[2], ROWS[6]] * 4)])  # of stage 3 rows that draw alone: see docs/works_with.md
def test_zero_makes_the_steps_of_one_process(stage, rows, base, tmp_path):
    found = {}
    for name, batch_size in (("two", 2), ("one", 4)):
        folder = tmp_path / name
        folder.mkdir()
        keys = {**PLAIN, "stage": "stage3", "max_steps": 3, "save_strategy": "no", "sample_prompts": [], "learning_rate": 1e-3}
        keys |= {"per_device_train_batch_size": batch_size, "logging_steps": 1}
        Dataset.from_list(rows, features=ROW_FEATURES).save_to_disk(folder / "chosen")
        keys["train_data"] = str(folder / "chosen")
        if name == "one":
            train(write_config(folder, base, **keys))
        else:
            run_ranks(folder, TRAIN, write_config(folder, base, **{**keys, "use_cpu": False, "ddp_backend": "gloo"}), stage)
        found[name] = weights(folder / "out")
    assert_same(found["two"], found["one"], weights(base))
    assert json.loads((tmp_path / "two/out/config.json").read_text())["model_type"] == "vargpt"
