"""Images to train an image tokenizer on: from whatever `open_dataset` reads, whatever else its rows hold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, Image, IterableDataset, List, Value, interleave_datasets
from PIL import Image as PILImage

from ...processing.image_processing_vargpt import VargptImageProcessor
from ..guards import TrainingStopped, error_text
from ..opening import ROW, AnyDataset, check_data_path, data_files_in, open_dataset
from ..readers import name_of_image, to_rows, undecoded

FEATURES = Features({"image": Image(decode=False), "row": Value("int64")})
_LIST_OF_IMAGES = List(Image(decode=False))
_TABLES = (".parquet", ".arrow", ".tar")
_SHUFFLED = 1000  # images of a stream among which the next one is drawn


@dataclass(frozen=True)
class ImageSource:
    """One dataset of images, as a YAML file names it.

    Args:
        path: a folder of images (captions or labels are not needed), or anything that `open_dataset` takes.
        weight: how often it is drawn from, against the others' weights.
        split: see `open_dataset`.
        column: of images, where not all columns of images are wanted.

    Raises:
        ValueError: a weight that is not positive.
    """

    path: str
    weight: float = 1.0
    split: str | None = None
    column: str | None = None

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(f"The weight of {self.path} must be positive, got {self.weight}.")


class ImageTable:
    """The images of a dataset, unopened, with an index of where they are: nothing is copied.

    Args:
        rows: with the columns `columns`, of images or of lists of them, which are not opened yet.
        columns: their names.
        name: of the dataset, for errors.

    Raises:
        ValueError: no image in any row.
    """

    def __init__(self, rows: Dataset, columns: Sequence[str], name: str):
        self.rows, self.columns, self.name = rows.select_columns(list(columns)), list(columns), name
        counts = np.concatenate([self._counts(batch) for batch in self.rows.with_format("arrow").iter(1000)])  # (rows, columns)
        if not counts.sum():
            raise ValueError(f"{name} has {len(rows)} rows, and no image in any of them.")
        self.row, self.column = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
        ends = np.cumsum(counts.ravel())
        self.number = np.arange(ends[-1]) - np.repeat(ends - counts.ravel(), counts.ravel())

    def _counts(self, batch: pa.Table) -> np.ndarray:
        """How many images each row has in each column, (rows, columns)."""
        found = []
        for name in self.columns:
            values = batch[name]
            is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
            number = pc.fill_null(pc.list_value_length(values), 0) if is_list else pc.is_valid(values)
            found.append(number.to_numpy().astype(np.int64))
        return np.stack(found, axis=1)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The image unopened, and the number of its row."""
        row, column = int(self.row[index]), self.columns[self.column[index]]
        value = self.rows[row][column]
        return {"image": value[self.number[index]] if isinstance(value, list) else value, "row": row}


def read_images(source: "ImageSource | str | Path | Dataset") -> ImageTable:
    """The images of a dataset. A row may hold any number of them, in columns of images, or in the messages of a chat; all are taken, those
    to read as those to draw.

    Raises:
        ValueError: no dataset, an empty one, no images in it, or no such column.
        OSError: files that cannot be opened.
    """
    dataset, columns, name = _images_in(source, streaming=False)
    return ImageTable(dataset, columns, name)


def stream_images(source: "ImageSource | str | Path") -> IterableDataset:
    """The same one after the other, as rows `{"image", "row"}`, the image unopened."""
    dataset, columns, _ = _images_in(source, streaming=True)
    dataset = dataset.select_columns(columns)
    return dataset.map(_flattened, batched=True, with_indices=True, remove_columns=columns).cast(FEATURES)


def _images_in(source: "ImageSource | str | Path | Dataset", streaming: bool) -> tuple[AnyDataset, list[str], str]:
    """A dataset whose images are not opened, its columns with images, and its name."""
    if isinstance(source, Dataset):
        dataset, folder, source = source, Path(), ImageSource("the dataset")
    else:
        source = source if isinstance(source, ImageSource) else ImageSource(str(source))
        dataset, folder = _opened(source, streaming)
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"{source.path} has no rows: there are no images to train on.")
    dataset = undecoded(dataset)
    columns = _columns_of_images(dataset, source)
    if not columns:
        dataset = undecoded(to_rows(dataset, folder, name=source.path))
        columns = _columns_of_images(dataset, source)
    return dataset, columns, source.path


def _flattened(batch: Mapping[str, list], indices: Sequence[int]) -> dict[str, list]:
    """Every image of a batch of rows as a row of its own."""
    found: dict[str, list] = {"image": [], "row": []}
    for index, values in zip(indices, zip(*batch.values())):
        for value in values:
            images = [image for image in (value if isinstance(value, list) else [value]) if image is not None]
            found["image"] += images
            found["row"] += [index] * len(images)
    return found


def _opened(source: ImageSource, streaming: bool) -> tuple[AnyDataset, Path]:
    """The dataset with its columns as they are; of a folder of images their files, whatever stands beside them."""
    path = check_data_path(source.path)
    is_saved = isinstance(path, Path) and any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if isinstance(path, Path) and path.is_dir() and not is_saved and not _has_tables(path):
        files = sorted(file for file in path.absolute().rglob("*") if file.suffix.lower() in PILImage.registered_extensions())
        if not files and not any(path.iterdir()):
            raise ValueError(f"{path} is an empty folder: give one with images in it.")
        if files:
            rows = Dataset.from_dict({"image": list(map(str, files))}, features=Features({"image": Image(decode=False)}))
            return (rows.to_iterable_dataset() if streaming else rows), path
    return open_dataset(source.path, source.split, streaming)


def _has_tables(folder: Path) -> bool:
    return any(file.endswith(_TABLES) for file in data_files_in(folder))


def _columns_of_images(dataset: AnyDataset, source: ImageSource) -> list[str]:
    """Columns that hold an image or a list of them.

    Raises:
        ValueError: the column that was asked for is none.
    """
    features = dataset.features or {}
    known = [name for name, feature in features.items() if isinstance(feature, Image) or feature == _LIST_OF_IMAGES]
    if source.column is None:
        return known
    if source.column not in known and ROW not in features:
        have = f"its columns of images are {', '.join(known)}" if known else "it has no column of images"
        raise ValueError(f"{source.path} has no column of images {source.column!r}: {have}.")
    return [source.column] if source.column in known else []


class Images(torch.utils.data.Dataset):
    """The images of several tables, drawn by weights until all have been read, small ones several times; of one, as they are.

    Rows `{"image", "row", "name", "draw"}`: an unopened image, where it stands, and a number for what is random about it, another one in
    every epoch.

    Args:
        tables: of images, or any datasets with rows `{"image"}`.
        weights: of the tables.
        seed: of the order in which several are drawn from.
    """

    def __init__(self, tables: Sequence[ImageTable | Sequence[Mapping[str, Any]]], weights: Sequence[float] = (1.0,), seed: int = 0):
        self.tables = list(tables)
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # known to loader processes that stay from epoch to epoch, too
        self.table, self.index = np.zeros(len(self.tables[0]), dtype=np.int64), np.arange(len(self.tables[0]))
        if len(self.tables) > 1:
            entries = [Dataset.from_dict({"table": [index] * len(table), "index": range(len(table))}) for index, table in enumerate(tables)]
            shares = [weight / sum(weights) for weight in weights]
            mixed = interleave_datasets(entries, shares, seed=seed, stopping_strategy="all_exhausted").with_format("numpy")
            self.table, self.index = mixed["table"][:], mixed["index"][:]

    def set_epoch(self, epoch: int) -> None:
        """To be called at the start of every epoch."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        table = self.tables[self.table[index]]
        return {**table[int(self.index[index])], "name": getattr(table, "name", "the dataset"), "draw": int(self.epoch) * len(self) + index}


def stream_mixture(sources: Sequence[ImageSource], seed: int = 0) -> IterableDataset:
    """The same of streams, which never end, and are shuffled among 1000 images."""
    found = []
    for source in sources:
        rows = stream_images(source).shuffle(seed=seed, buffer_size=_SHUFFLED).repeat(None)
        found.append(rows.map(_named, fn_kwargs={"name": source.path}))
    total = sum(source.weight for source in sources)
    mixed = found[0] if len(found) == 1 else interleave_datasets(found, [source.weight / total for source in sources], seed=seed)
    return mixed.map(_numbered, with_indices=True)


def _named(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**row, "name": name}


def _numbered(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {**row, "draw": index}


class PixelCollator:
    """Makes pixels (N, 3, height, width) in [-1, 1] of rows with an unopened `image`, and `row`, `name` and `draw` where they are known.

    Of several schedules, a batch has the one that is nearest to its first image. What is random is drawn from the seed and the row's
    `draw` alone, so that resumed runs and any number of loader processes make the same batches.

    Args:
        processor: opens, resizes and crops; its limits and checks hold.
        random_crop, random_flip: cut images at a random place; mirror every other one.
        seed: of both.
        allow_upscaling: take images smaller than those to train on, too.
    """

    def __init__(
        self,
        processor: VargptImageProcessor,
        random_crop: bool = False,
        random_flip: bool = False,
        seed: int = 0,
        allow_upscaling: bool = False,
    ):
        self.processor, self.random_crop, self.random_flip, self.seed = processor, random_crop, random_flip, seed
        self.allow_upscaling = allow_upscaling

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The pixels of a batch.

        Raises:
            TrainingStopped: an image that cannot be read, or is smaller than it is to be; its file and row are named.
        """
        images = [self.open(row) for row in rows]
        schedule = self.schedule_of(images[0])
        return {"pixel_values": torch.cat([self.pixels(*pair, schedule) for pair in zip(images, rows)])}

    def schedule_of(self, image: PILImage.Image) -> int:
        """The schedule that is nearest to an image."""
        return self.processor.nearest_schedule(image.height, image.width)

    def open(self, row: Mapping[str, Any]) -> PILImage.Image:
        """The image of a row, RGB; see `__call__`."""
        try:
            image = self.processor.fetch_images(row["image"], "its image")
        except Exception as error:
            raise TrainingStopped(f"{_place(row)} cannot be read: {error_text(error)} Mend or remove the image.") from error
        height, width = self.processor.sizes[self.schedule_of(image)]
        if not self.allow_upscaling and (image.height < height or image.width < width):
            raise TrainingStopped(
                f"{_place(row)} is {image.width}×{image.height} pixels (width × height), smaller than the {width}×{height} that are asked "
                "for: remove it, take a smaller schedule, or allow upscaling (`allow_upscaling: true`)."
            )
        return image

    def pixels(self, image: PILImage.Image, row: Mapping[str, Any], schedule: int) -> torch.Tensor:
        """Pixels (1, 3, height, width) of the image of a row."""
        rng = np.random.default_rng([self.seed, row.get("draw", 0)])
        crop, flip = int(rng.integers(2**31)), rng.random() < 0.5
        options = {"random_crop": True, "generator": crop} if self.random_crop else {}
        pixels = self.processor.preprocess(image, schedule_ids=schedule, return_tensors="pt", **options)["output_pixel_values"]
        return pixels.flip(-1) if self.random_flip and flip else pixels


def batches_of(rows: Any, collate: PixelCollator, batch_size: int, number: int = 0) -> Iterator[torch.Tensor]:
    """Pixels (n, 3, height, width) of the first `number` images of a dataset (0: all), each with the schedule that is nearest to it.

    Args:
        rows: with an index, or a stream.
    """
    waiting: dict[int, list[torch.Tensor]] = {}
    found = iter(rows) if isinstance(rows, IterableDataset) else (rows[index] for index in range(len(rows)))
    for row in islice(found, number or None):
        image = collate.open(row)
        schedule = collate.schedule_of(image)
        waiting.setdefault(schedule, []).append(collate.pixels(image, row, schedule))
        if len(waiting[schedule]) == batch_size:
            yield torch.cat(waiting.pop(schedule))
    yield from map(torch.cat, waiting.values())


def _place(row: Mapping[str, Any]) -> str:
    """Where an image stands, for people."""
    image = row["image"]
    file = f" ({name_of_image(image)})" if isinstance(image, dict) else ""
    return f"Row {row['row']} of {row.get('name', 'the dataset')}{file}" if "row" in row else f"An image{file}"


__all__ = ["ImageSource", "ImageTable", "Images", "PixelCollator", "batches_of", "read_images", "stream_mixture", "stream_images"]
