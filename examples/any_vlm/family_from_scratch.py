"""A language model of another family than vargpt-tiny's, from random weights to a model that draws: composed, trained, judged.

    python examples/any_vlm/family_from_scratch.py runs/family

Qwen3's layers, in vargpt-tiny's sizes, with its words, its image tokenizer and scenes of its kind. Takes a quarter of an hour of one core
and prints the share of 200 drawings of scenes that show what was asked for, beside vargpt-tiny's own. Steps whose folder is there are skipped
and training resumes, so a run that was stopped goes on. `--rows 256 --evaluate 8` tries every step in a minute, to no good.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

VARGPT = Path(sys.executable).with_name("vargpt")  # of this environment, active or not
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' }}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
SIZES = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
}
STAGE = {
    "stage": "pretrain",
    "learning_rate": 1.5e-3,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "adam_beta2": 0.95,
    "weight_decay": 0.05,
    "warmup_steps": 100,
    "prompt_dropout": 0.1,
    "attn_implementation": "eager",
    "use_cpu": True,
    "logging_steps": 50,
    "save_steps": 100,
    "save_total_limit": 1,
    "sample_prompts": [],
    "seed": 1,
}

SAMPLING = {"do_sample": True, "output_image_temperature": 0.2, "output_image_top_k": 0, "output_image_top_p": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=16_000, help="rows to train on, three times")
    parser.add_argument("--evaluate", type=int, default=200, help="drawings to judge")
    arguments = parser.parse_args()
    folder = arguments.output
    if not (folder / "reader").exists():
        write_reader(folder / "reader")
    if not (folder / "start").exists():
        sides = ["--llm", folder / "reader", "--image-tokenizer", "vargpt-tiny", "--decoder-size", "4,192,4"]
        subprocess.run([VARGPT, "compose", *sides, folder / "start"], check=True)
    if not (folder / "rows").exists():
        write_rows(folder / "rows", arguments.rows)
    subprocess.run([VARGPT, "encode", folder / "rows", folder / "codes", "--model", folder / "start"], check=True)
    paths = {"model_name_or_path": folder / "start", "train_data": folder / "codes", "output_dir": folder / "trained"}
    (folder / "stage.yaml").write_text(json.dumps({**STAGE, **{name: str(path) for name, path in paths.items()}}))  # JSON is YAML
    if not (folder / "trained" / "model.safetensors").exists():
        subprocess.run([VARGPT, "train", folder / "stage.yaml", "--resume_from_checkpoint", "true"], check=True)
    judge(folder / "trained", arguments.evaluate)


def write_reader(folder: Path) -> None:
    """A small language model of Qwen3's family with random weights, and vargpt-tiny's words."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from vargpt_hf.tiny import TINY_FOLDER

    tokenizer = AutoTokenizer.from_pretrained(TINY_FOLDER)
    tokenizer.chat_template = TEMPLATE
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES, **ids, vocab_size=len(tokenizer), max_position_embeddings=1024, tie_word_embeddings=True)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path, number: int) -> None:
    """Rows that draw scenes, on disk."""
    from datasets import Dataset, Features, Value

    from vargpt_hf.tiny.rows import rows
    from vargpt_hf.training.data import ROW_FEATURES

    with tempfile.TemporaryDirectory() as cache:
        kwargs = {"mixture": {"draw": 1.0}, "count": number, "seed": 7}
        Dataset.from_generator(rows, Features({**ROW_FEATURES, "truth": Value("string")}), cache, gen_kwargs=kwargs).save_to_disk(folder)


def judge(folder: Path, number: int) -> None:
    """Prints which share of drawings shows the shapes and colours, and the relation, that the prompts of test rows ask for."""
    import torch

    from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
    from vargpt_hf.evaluation.shapes_and_digits import draw_rows, drawing_figures
    from vargpt_hf.tiny import TINY_FOLDER
    from vargpt_hf.tiny.digits import load_split
    from vargpt_hf.tiny.judges import DigitJudge
    from vargpt_hf.tiny.rows import rows

    test_rows, digits, results = list(rows({"draw": 1.0}, number, seed=8, split="test")), DigitJudge(*load_split("train")), {}
    for name, source in (("this model", folder), ("vargpt-tiny", TINY_FOLDER)):
        model = VargptForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
        pictures = draw_rows(model, VargptProcessor.from_pretrained(source), test_rows, seed=0, batch_size=50, **SAMPLING)
        figures = [drawing_figures(picture, json.loads(row["truth"]), digits) for picture, row in zip(pictures, test_rows)]
        kinds = dict.fromkeys(kind for one in figures for kind in one)
        results[name] = {kind: sum(found) / len(found) for kind in kinds if (found := [one[kind] for one in figures if kind in one])}
        print(f"{name}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in results[name].items()), f"of {number}")
        for index, picture in enumerate(pictures[:8] if source is folder else ()):
            picture.save(folder / f"drawn_{index}.png")
    (folder / "figures.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
