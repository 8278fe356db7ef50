"""The understanding benchmarks of VARGPT's papers, rerun by lmms-eval, with the published numbers beside.

lmms-eval is not a dependency: it runs as a program of its own, in this environment.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..restartable import write_whole
from .report import table

TABLE = "paper_understanding.md"
_SOURCE = "arXiv 2504.02949, tables 2 and 3"
_INSTALL = 'pip install lmms-eval "filelock<4" (in an environment of its own: it does not run with filelock 4)'


@dataclass(frozen=True)
class Benchmark:
    """A row of the papers' tables.

    Attributes:
        name: as the papers have it.
        task: of lmms-eval.
        metrics: of the task that are summed to the number.
        scale: of the task's metric to the papers' number.
        llava, v1, v1_1: published for LLaVA-1.5 (7B, rerun by the papers' authors), VARGPT and VARGPT v1.1.
        note: where the rerun differs from the papers.
    """

    name: str
    task: str
    metrics: tuple[str, ...]
    scale: float
    llava: float
    v1: float
    v1_1: float
    note: str = ""


PAPER = (
    Benchmark(
        "MMBench", "mmbench_en_dev_static", ("gpt_eval_score",), 1, 62.7, 67.6, 81.01, "here the dev split; the papers report the test split"
    ),
    Benchmark("SEED", "seedbench", ("seed_image",), 100, 65.4, 67.9, 76.08),
    Benchmark("MMMU", "mmmu_val", ("mmmu_acc",), 100, 35.24, 36.44, 48.56),
    Benchmark("POPE, adversarial", "pope_adv", ("pope_accuracy",), 100, 83.60, 84.40, 84.40),
    Benchmark("POPE, popular", "pope_pop", ("pope_accuracy",), 100, 85.77, 85.90, 88.36),
    Benchmark("POPE, random", "pope_random", ("pope_accuracy",), 100, 86.97, 87.37, 89.17),
    Benchmark("MME", "mme", ("mme_perception_score",), 1, 1480.1, 1488.8, 1684.1),
    Benchmark("GQA", "gqa", ("exact_match",), 100, 61.2, 62.3, 66.2),
    Benchmark("TextVQA", "textvqa_val", ("exact_match",), 100, 48.8, 54.1, 82.0),
    Benchmark("VQAv2", "vqav2_val", ("exact_match",), 100, 76.49, 78.4, 80.4),
    Benchmark("ScienceQA-IMG", "scienceqa_img", ("exact_match",), 100, 67.9, 80.1, 91.6),
    Benchmark("OKVQA", "ok_vqa_val2014", ("exact_match",), 100, 53.2, 55.8, 57.8),
    Benchmark("VizWiz", "vizwiz_vqa_val", ("exact_match",), 100, 53.53, 56.8, 65.4),
)


def lmms_command(model: str, dtype: str, device: str, output: Path, batch_size: int) -> list[str]:
    """The command that runs all benchmarks; those whose result is there already are left out.

    Args:
        model: folder or Hub id of a VARGPT.
        dtype, device: as of `lmms_setup.load_setup`.
        output: folder for lmms-eval's results.
        batch_size: requests that are answered together.
    """
    done = read_results(output)
    tasks = [row.task for row in PAPER if row.task not in done]
    if not tasks:
        return []
    return [
        *(sys.executable, "-m", "lmms_eval", "--model", "vargpt", "--model_args", f"pretrained={model},dtype={dtype}"),
        *("--tasks", ",".join(tasks), "--batch_size", str(batch_size), "--device", device),
        *("--output_path", str(output), "--log_samples"),
    ]


def run_paper(model: str, dtype: str, device: str, output: Path, batch_size: int) -> str:
    """Runs the benchmarks and returns the table, which is also written into the folder.

    Raises:
        ValueError: no lmms-eval.
        ChildProcessError: lmms-eval ended with an error.
        OSError: what cannot be written.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise ValueError(f"The papers' benchmarks are run by lmms-eval, which is not installed: {_INSTALL}.")
    if command := lmms_command(model, dtype, device, output, batch_size):
        done = subprocess.run(command)
        if done.returncode:
            raise ChildProcessError(f"lmms-eval ended with {done.returncode}; what it said stands above. The command was {' '.join(command)}.")
    page = paper_table(read_results(output), Path(model).name)
    write_whole(output / TABLE, lambda path: path.write_text(page, encoding="utf-8"))
    return page


def read_results(output: Path) -> dict[str, dict[str, float]]:
    """Metrics by task, of all results that lmms-eval left in a folder; of a task that ran twice, the later ones.

    Raises:
        ValueError: a file of results that is broken.
    """
    found: dict[str, dict[str, float]] = {}
    for file in sorted(output.rglob("*_results.json")):
        try:
            results = json.loads(file.read_text(encoding="utf-8"))["results"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no file of lmms-eval's results ({type(error).__name__}).") from error
        for task, metrics in results.items():
            values = {name.split(",")[0]: value for name, value in metrics.items() if isinstance(value, (int, float))}
            if values:
                found[task] = values
    return found


def paper_table(results: Mapping[str, Mapping[str, float]], model: str) -> str:
    """The papers' table in Markdown, with a model's results beside; empty where there is none.

    Args:
        results: see `read_results`.
        model: its name.
    """
    rows, notes = [], []
    for row in PAPER:
        values = [results.get(row.task, {}).get(name) for name in row.metrics]
        ours = "" if None in values else f"{row.scale * sum(values):.4g}"
        if row.note:
            notes.append(f"{row.name}: {row.note}.")
        rows.append((row.name, row.task, ours, *(f"{value:g}" for value in (row.v1, row.llava, row.v1_1))))
    header = ["benchmark", "task of lmms-eval", model, "VARGPT", "LLaVA-1.5, their rerun", "VARGPT v1.1"]
    return "\n".join([*table(header, rows), "", f"Published numbers: {_SOURCE}. {' '.join(notes)}"]) + "\n"


__all__ = ["PAPER", "lmms_command", "paper_table", "read_results", "run_paper"]
