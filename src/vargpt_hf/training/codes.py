"""Images to draw → codes ahead of training: far smaller, and the image tokenizer runs once instead of in every epoch."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from ..hardware import keep_freed_memory
from ..modeling.modeling_vargpt import VargptForConditionalGeneration
from ..processing.image_loading_vargpt import read_string
from ..processing.processing_vargpt import VargptProcessor
from ..restartable import claim_folder, device_of, remove_unfinished, run_each, write_whole
from .readers import CODES, ROW_FEATURES, cause_in_words, name_of_image, undecoded

MANIFEST = "codes.manifest"
FEATURES = Features(
    {
        "messages": ROW_FEATURES["messages"],
        "images": ROW_FEATURES["images"],
        "output_image_codes": CODES,
        "output_image_schedule_ids": List(Value("int32")),
        "image_hashes": List(Value("string")),
        "image_tokenizer_fingerprint": Value("string"),
    }
)
_SHOWN_BROKEN = 20
NO_SELF_CORRECTION = (
    "Codes made ahead carry no self-correction: for that, training needs the images themselves, of which the image tokenizer then inverts "
    "other bits in every step."
)


@dataclass(frozen=True)
class _Job:
    """What a folder of codes was, or is to be, made of."""

    image_tokenizer_fingerprint: str
    num_rows: int
    rows_per_shard: int
    rows_fingerprint: str
    resize_factor: float
    resample: int

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.rows_per_shard)

    def file(self, output: Path, shard: int) -> Path:
        return output / f"codes-{shard:05}-of-{self.num_shards:05}.parquet"


def encode_rows(
    rows: Dataset,
    model: str | Path,
    output: str | Path,
    *,
    rows_per_shard: int = 2048,
    batch_size: int = 16,
    num_processes: int = 1,
    device: str = "cpu",
    skip_broken: bool = False,
) -> None:
    """Writes rows whose images to draw have become codes, as parquet files of `rows_per_shard` rows each.

    Columns are `messages`, `images` (as they were), `output_image_codes`, `output_image_schedule_ids` (the scale schedule of each image),
    `image_hashes` (SHA-256 of each encoded image's file) and `image_tokenizer_fingerprint` (`VargptImageTokenizer.fingerprint`). A file
    appears when it is complete; a run that was stopped resumes with the files that are missing, and with those whose images are others now.
    Where the image tokenizer corrects itself in training from pixels, as Infinity's does, a line says that it cannot from codes.

    Args:
        rows: rows with `output_images`.
        model: folder or Hub id of the VARGPT whose image tokenizer encodes.
        output: folder for the files; one that an earlier run of the same rows and image tokenizer has begun is continued.
        batch_size: images that are encoded together.
        num_processes: processes that encode at the same time; of a "cuda" device each takes the next GPU.
        skip_broken: leave out rows with images that cannot be read, instead of stopping at the end with their list.

    Raises:
        ValueError: a folder with codes of other rows, or of another image tokenizer or processor, or broken images.
        ChildProcessError: one of several processes was killed.
    """
    output = Path(output)
    _loaded.clear()
    _load(str(model), "cpu" if num_processes > 1 else device)
    cut = _loaded["processor"].output_image_processor
    job = _Job(_loaded["image_tokenizer"].fingerprint(), len(rows), rows_per_shard, content_fingerprint(rows), cut.resize_factor, cut.resample)
    claim_folder(output, MANIFEST, asdict(job), "codes")
    if _loaded["image_tokenizer"].corrects_itself:
        print(NO_SELF_CORRECTION)
    remove_unfinished(output, ".parquet")
    rows = undecoded(rows)
    done = [shard for shard in range(job.num_shards) if job.file(output, shard).exists()]
    changed = [shard for shard in tqdm(done, "Checking", unit=" files", disable=not done) if not _is_current(shard, rows, job, output)]
    if changed:
        print(f"{len(changed)} of {len(done)} files are made anew: their images have changed.")
    missing = sorted({*range(job.num_shards)} - {*done} | {*changed})
    broken: list[str] = []
    encode = partial(_encode_shard, rows=rows, job=job, output=output, batch_size=batch_size, skip_broken=skip_broken)
    with tqdm(total=job.num_rows, initial=job.num_rows - _rows_of(missing, job), desc="Encoding", unit=" rows") as progress:
        for shard, found in run_each(encode, missing, num_processes, partial(_load, str(model), device)):
            progress.update(_rows_of([shard], job))
            broken += found
    if broken:
        (output / "broken.txt").write_text("\n".join(broken) + "\n")
        listed = "\n".join(broken[:_SHOWN_BROKEN]) + ("\n..." if len(broken) > _SHOWN_BROKEN else "")
        if not skip_broken:
            raise ValueError(
                f"{len(broken)} images cannot be read (all in {output / 'broken.txt'}):\n{listed}\nMend them and run again: what is "
                "encoded stays. Or leave their rows out by `skip_broken`."
            )
        print(f"Left out the rows of {len(broken)} images that cannot be read (all in {output / 'broken.txt'}):\n{listed}")
        if not any(pq.read_metadata(job.file(output, shard)).num_rows for shard in range(job.num_shards)):
            raise ValueError(f"No row is left: of each an image cannot be read (all in {output / 'broken.txt'}).")


def content_fingerprint(rows: Dataset) -> str:
    """Tells datasets of other texts, or in another order, apart; of images their number counts."""
    digest = hashlib.sha256()
    for batch in rows.select_columns("messages").iter(1000):
        digest.update(json.dumps(batch["messages"], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _rows_of(shards: list[int], job: _Job) -> int:
    return sum(min(job.rows_per_shard, job.num_rows - shard * job.rows_per_shard) for shard in shards)


_loaded: dict[str, Any] = {}  # of a process that encodes


def _load(model: str, device: str, number: int = 0) -> None:
    """Makes a process ready: the image tokenizer on its device."""
    device = device_of(device, number)
    if device == "cpu":
        keep_freed_memory()
    if _loaded.get("device") == device:  # for the fingerprint, a moment ago
        return
    vargpt = VargptForConditionalGeneration.from_pretrained(model, dtype="float32")
    processor = VargptProcessor.from_pretrained(model)
    processor.check_fits(vargpt.config)
    _loaded.update(image_tokenizer=vargpt.model.image_tokenizer.to(device).eval(), processor=processor, device=device)


def _encode_shard(shard: int, rows: Dataset, job: _Job, output: Path, batch_size: int, skip_broken: bool) -> list[str]:
    """Encodes one shard and writes its file; returns its broken images, and writes nothing where there are some that must not be skipped."""
    start = shard * job.rows_per_shard
    encoded, waiting, broken = [], [], []  # waiting: (codes of a row, index in it, pixels)
    for index in range(start, min(start + job.rows_per_shard, job.num_rows)):
        row = rows[index]
        inputs, hashes = [], []
        for number, image in enumerate(row["output_images"] or ()):
            try:
                content = _content(image)
                inputs.append(_loaded["processor"].output_image_processor(content, return_tensors="pt"))
                hashes.append(hashlib.sha256(content).hexdigest())
            except Exception as error:  # of whatever kind: all are listed at the end
                broken.append(f"row {index}, image {number}, {name_of_image(image)}: {cause_in_words(error)}")
        if len(inputs) < len(row["output_images"] or ()):
            continue
        codes = [None] * len(inputs)
        schedule_ids = [int(each.get("output_image_schedule_ids", (0,))[0]) for each in inputs]
        waiting += [(codes, number, each["output_pixel_values"][0], schedule_ids[number]) for number, each in enumerate(inputs)]
        encoded.append(
            {
                **row,
                "output_image_codes": codes,
                "output_image_schedule_ids": schedule_ids,
                "image_hashes": hashes,
                "image_tokenizer_fingerprint": job.image_tokenizer_fingerprint,
            }
        )
        while len(waiting) >= batch_size:
            _encode(waiting[:batch_size])
            del waiting[:batch_size]
    if waiting:
        _encode(waiting)
    if not broken or skip_broken:
        table = Dataset.from_dict({name: [row[name] for row in encoded] for name in FEATURES}, features=FEATURES)
        write_whole(job.file(output, shard), lambda path: table.to_parquet(path))
    return broken


def _content(image: dict[str, Any]) -> bytes:
    """The file of an image that is not opened yet."""
    return image["bytes"] if image.get("bytes") is not None else read_string(image["path"], "it")[0]


def _is_current(shard: int, rows: Dataset, job: _Job, output: Path) -> bool:
    """Whether a file of codes was made of the images that the rows have now, to read and to draw; of one that left out broken images, no."""
    hashes, read = (column.to_pylist() for column in pq.read_table(job.file(output, shard), columns=["image_hashes", "images"]).columns)
    start = shard * job.rows_per_shard
    of_shard = rows.select(range(start, min(start + job.rows_per_shard, job.num_rows)))
    if len(of_shard) != len(hashes):
        return False
    try:
        return all(
            (row["images"] or []) == (given or [])
            and [hashlib.sha256(_content(image)).hexdigest() for image in row["output_images"] or ()] == there
            for row, given, there in zip(of_shard.select_columns(["images", "output_images"]), read, hashes)
        )
    except (OSError, ValueError):  # gone, or no file any more: encoding it says so
        return False


def _encode(waiting: list[tuple[list, int, torch.Tensor]]) -> None:
    image_tokenizer = _loaded["image_tokenizer"]
    for schedule_id in {schedule_id for *_, schedule_id in waiting}:
        chosen = [entry for entry in waiting if entry[3] == schedule_id]
        pixels = torch.stack([pixels for _, _, pixels, _ in chosen]).to(_loaded["device"])
        found = image_tokenizer.encode(pixels, image_tokenizer.config.scale_schedules[schedule_id]).tolist()
        for (codes, number, *_), each in zip(chosen, found):
            codes[number] = each
