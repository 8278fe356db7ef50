"""Draws the curves of several runs of one stage over each other, and prints how far they lie apart: does another seed learn alike?

    python examples/compare_curves.py docs/emoji_seeds.png runs/emoji/trained runs/emoji-2/trained

Takes the last checkpoint of each folder, which `vargpt train` or `vargpt tokenizer train` wrote. The first run may go on for longer; a run
that ended by `--stop_at` has the learning rates of a whole one, so that its curves are comparable.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from vargpt_hf.training.guards import last_complete_checkpoint

NOT_DRAWN = ("epoch", "step", "grad_norm", "learning_rate", "num_tokens", "total_flos")
Curves = dict[str, dict[int, float]]  # name of what was logged: its value by step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, help="file for the figure")
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of trainings")
    parser.add_argument("--names", nargs="+", help="of what was logged; by default all losses")
    arguments = parser.parse_args()
    runs = {str(folder): curves_of(folder) for folder in arguments.runs}
    logged = [name for name in next(iter(runs.values())) if all(name in curves for curves in runs.values())]
    names = arguments.names or [name for name in logged if name.endswith("loss")]
    if missing := [name for name in names if name not in logged]:
        raise ValueError(f"Not all runs logged {', '.join(missing)}; all have {', '.join(logged)}.")
    draw(runs, names).savefig(arguments.image, dpi=120)
    for name in names:
        print(f"{name}: {describe([curves[name] for curves in runs.values()])}")


def curves_of(folder: Path) -> Curves:
    """What a run logged more than once while it trained."""
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint is None:
        raise FileNotFoundError(f"There is no complete checkpoint in {folder}: give the output folder of a training that saves some.")
    history = json.loads((Path(checkpoint) / "trainer_state.json").read_text())["log_history"]
    curves: Curves = {}
    for entry in history:
        for name, value in entry.items():
            if name not in NOT_DRAWN and not name.startswith(("train_", "rows_of_")):
                curves.setdefault(name, {})[entry["step"]] = value
    return {name: points for name, points in curves.items() if len(points) > 1}


def describe(curves: list[dict[int, float]]) -> str:
    """The last step that all runs logged, their values there, and how far they lie apart in the second half up to there."""
    common = sorted(set.intersection(*map(set, curves)))
    if not common:
        return "no step was logged by all runs"
    last = common[-1]
    later = [step for step in common if 2 * step >= last]
    apart = [max(values) - min(values) for values in ([curve[step] for curve in curves] for step in later)]
    values = ", ".join(f"{curve[last]:.4g}" for curve in curves)
    return f"{values} at step {last}; {sum(apart) / len(apart):.3g} apart in the mean of {len(apart)} logs, {max(apart):.3g} at the most"


def draw(runs: dict[str, Curves], names: list[str]) -> Figure:
    """A panel of each name, a line of each run."""
    figure = Figure(figsize=(5 * len(names), 3.5), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        for run, curves in runs.items():
            panel.plot(*zip(*curves[name].items()), label=run, linewidth=1)
        panel.set(title=name.replace("_", " "), xlabel="step")
        panel.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
