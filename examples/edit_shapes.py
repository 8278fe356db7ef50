"""Makes rows that teach to edit: an image of shapes is read with an instruction, and the edited image is drawn.

    python examples/edit_shapes.py runs/edits --rows 20000

Takes a minute for 20,000 rows. Recolor, remove, add and move, in equal shares; the seed names the rows for good. The folder is a dataset
for `train_data` of a stage. The judge of `vargpt_hf.tiny.edit_judge`, which shares no code with what makes the rows, looks at the first
hundred; what it prints should be 100 %.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset

from vargpt_hf.tiny.edit_judge import judge_edit
from vargpt_hf.tiny.edits import EDIT_KINDS, sample_edit
from vargpt_hf.tiny.shapes import render
from vargpt_hf.training.data import ROW_FEATURES

JUDGED = 100


def edit_rows(number: int, seed: int = 0) -> Iterator[dict]:
    """Rows `{"messages", "images", "output_images"}`, the kinds of edits in turn."""
    rng, kinds = np.random.default_rng(seed), list(EDIT_KINDS)
    for index in range(number):
        edit = sample_edit(rng, kinds[index % len(kinds)])
        yield {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": edit.instruction}]},
                {"role": "assistant", "content": [{"type": "output_image"}]},
            ],
            "images": [render(edit.before)],
            "output_images": [render(edit.after)],
        }


def share_done(rows: list[dict]) -> tuple[float, float]:
    """Shares of edits done and of untouched objects kept, by the judge."""
    verdicts = [judge_edit(row["images"][0], row["output_images"][0], row["messages"][0]["content"][1]["text"]) for row in rows]
    kept, untouched = (sum(getattr(verdict, name) for verdict in verdicts) for name in ("kept", "untouched"))
    return sum(verdict.done for verdict in verdicts) / len(verdicts), kept / max(untouched, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the dataset")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    done, kept = share_done(list(edit_rows(min(JUDGED, arguments.rows), arguments.seed)))
    made = Dataset.from_generator(edit_rows, ROW_FEATURES, gen_kwargs={"number": arguments.rows, "seed": arguments.seed})
    made.save_to_disk(arguments.output)
    print(f"Saved {arguments.output}: {arguments.rows:,} rows; the judge finds {done:.1%} of edits done, {kept:.1%} of all else untouched.")


if __name__ == "__main__":
    main()
