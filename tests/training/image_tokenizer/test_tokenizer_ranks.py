"""Two processes train as one does that has both their batches."""

from pathlib import Path

import torch
from ranks import run_ranks
from safetensors.torch import load_file
from tokenizer_micro import EVERYTHING, trainer

GIVEN = {
    **EVERYTHING,
    "adversarial_start": 1,
    "max_steps": 3,
    "optim": "sgd",  # Adam would blow up the last bits of gradients that are next to nothing
    "learning_rate": 0.1,
    "revive_every": 0,
    "random_flip": False,
    "save_strategy": "steps",
    "save_steps": 3,
}
REVIVING = {"max_steps": 2, "revive_every": 2, "revive_until": 1.0}

BODY = """
sys.path.insert(0, sys.argv[2])
from test_tokenizer_ranks import GIVEN, REVIVING
from tokenizer_micro import trainer

run = trainer(sys.argv[1], per_device_train_batch_size=4, **GIVEN)
run.train()
metrics = run.evaluate()
run.save_image_tokenizer(sys.argv[1])

def both_have_the_same(run):
    weights = torch.cat([value.double().flatten() for value in run.model.state_dict().values()])
    both = run.accelerator.gather(weights[None])
    assert torch.equal(both[0], both[1])

both_have_the_same(run)
reviving = trainer(sys.argv[1] + "-reviving", per_device_train_batch_size=4, **REVIVING)
reviving.train()
both_have_the_same(reviving)
print(metrics["eval_psnr"])
"""


def test_two_processes_train_as_one(tmp_path):
    said = run_ranks(tmp_path, BODY, tmp_path / "two", Path(__file__).parent)
    run = trainer(tmp_path / "one", per_device_train_batch_size=8, **GIVEN)
    run.train()
    alone, together = (load_file(tmp_path / name / "checkpoint-3/model.safetensors") for name in ("one", "two"))
    assert torch.equal(alone["hits"], together["hits"])
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-4, rtol=1e-3, msg=name)
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1]  # both know the metrics
    assert (tmp_path / "two/model.safetensors").is_file()
