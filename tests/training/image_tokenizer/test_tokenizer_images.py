"""Images to train on, wherever they are stored and whatever else stands beside them."""

import io
import json
import tarfile

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from tokenizer_micro import image, tokenizer

from vargpt_hf.training.guards import TrainingStopped
from vargpt_hf.training.image_tokenizer.images import Images, ImageSource, PixelCollator, batches_of, read_images, stream_images, stream_mixture
from vargpt_hf.training.image_tokenizer.trainer import processor_of

LISTS = Features({"images": List(ImageFeature()), "text": Value("string")})


def folder_of_classes(path):
    for index in range(5):
        (path / f"class {index % 2}").mkdir(parents=True, exist_ok=True)
        image(index).save(path / f"class {index % 2}" / f"{index}.png")
    (path / "notes.json").write_text("{}")
    return path


def parquet(path):
    rows = [{"image": image(index), "label": index} for index in range(5)]
    Dataset.from_list(rows).to_parquet(path / "a.parquet")
    return path


def lists(path):
    rows = [{"images": [image(0), image(1)], "text": "two"}, {"images": [], "text": "none"}, {"images": [image(2)], "text": "one"}]
    Dataset.from_list([*rows, {"images": None, "text": "none"}, rows[0]], features=LISTS).save_to_disk(path)
    return path


def webdataset(path):
    with tarfile.open(path / "a.tar", "w") as tar:
        for index in range(5):
            file = io.BytesIO()
            image(index).save(file, format="PNG")
            entry = tarfile.TarInfo(f"{index}.png")
            entry.size = file.tell()
            file.seek(0)
            tar.addfile(entry, file)
    return path / "a.tar"


def chats(path):
    for index in range(5):
        image(index).save(path / f"{index}.png")
    drawn = [{"role": "user", "content": "draw"}, {"role": "assistant", "content": "<image_gen>"}]
    seen = [{"role": "user", "content": "<image> <image> which"}, {"role": "assistant", "content": "none"}]
    rows = [
        {"messages": drawn, "images": ["0.png"]},
        {"messages": seen, "images": ["1.png", "2.png"]},
        {"messages": drawn, "images": ["3.png"]},
    ]
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"messages": drawn, "images": ["4.png"]}])))
    return path / "rows.jsonl"


SOURCES = [folder_of_classes, parquet, lists, webdataset, chats]


@pytest.mark.parametrize("make", SOURCES)
def test_every_source_gives_its_images_ahead_and_as_a_stream(make, tmp_path):
    source = make(tmp_path)
    table = read_images(source)
    assert len(table) == 5
    collate = PixelCollator(processor_of(tokenizer()))
    streamed = list(stream_images(source))
    ahead = [table[index] for index in range(5)]
    assert [row["row"] for row in streamed] == [row["row"] for row in ahead]
    pixels = [collate([row])["pixel_values"] for row in ahead]
    assert all((collate([row])["pixel_values"] == value).all() for row, value in zip(streamed, pixels))
    wanted = {image(index).tobytes() for index in range(3 if make is lists else 5)}
    assert {collate.open(row).tobytes() for row in ahead} == wanted
    assert [len(batch) for batch in batches_of(table, collate, 2)] == [2, 2, 1]
    assert [len(batch) for batch in batches_of(streamed, collate, 2, number=3)] == [2, 1]


def test_a_mixture_is_drawn_by_weights(tmp_path):
    tables = []
    for name, number in (("small", 10), ("large", 40)):
        (tmp_path / name).mkdir()
        for index in range(number):
            image(index).save(tmp_path / name / f"{index:02}.png")
        tables.append(read_images(tmp_path / name))
    images = Images(tables, (1.0, 1.0), seed=0)
    names = [images[index]["name"] for index in range(len(images))]
    assert set(names) == {str(tmp_path / "small"), str(tmp_path / "large")}
    assert 0.35 < names.count(str(tmp_path / "small")) / len(names) < 0.65
    assert {images[index]["row"] for index in range(len(images)) if images[index]["name"].endswith("large")} == set(range(40))
    images.set_epoch(2)
    assert images[3]["draw"] == 2 * len(images) + 3
    sources = [ImageSource(str(tmp_path / "small")), ImageSource(str(tmp_path / "large"), weight=2.0)]
    rows = list(stream_mixture(sources, seed=0).take(60))
    assert [row["draw"] for row in rows] == list(range(60))
    assert {row["name"] for row in rows} == {source.path for source in sources}


def test_what_is_no_dataset_of_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is an empty folder: give one with images in it"):
        read_images(tmp_path / "empty")
    with pytest.raises(ValueError, match="There is no dataset at .*nowhere"):
        read_images(tmp_path / "nowhere")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("no image")
    with pytest.raises(ValueError, match="texts holds neither data files .* nor images"):
        read_images(tmp_path / "texts")
    with pytest.raises(ValueError, match="no rows: there are no images"):
        read_images(Dataset.from_dict({"image": []}, features=Features({"image": ImageFeature()})))
    Dataset.from_list([{"images": [], "text": "none"}], features=LISTS).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match="none has 1 rows, and no image in any of them"):
        read_images(tmp_path / "none")
    (tmp_path / "parquet").mkdir()
    parquet(tmp_path / "parquet")
    with pytest.raises(ValueError, match="no column of images 'label': its columns of images are image"):
        read_images(ImageSource(str(tmp_path / "parquet"), column="label"))
    with pytest.raises(ValueError, match="weight of x must be positive, got 0"):
        ImageSource("x", weight=0)


def test_an_image_that_cannot_be_used_is_named(tmp_path):
    image(0).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_text("no image")
    image(2, (20, 12)).save(tmp_path / "2.png")
    table, collate = read_images(tmp_path), PixelCollator(processor_of(tokenizer()))
    with pytest.raises(TrainingStopped, match=r"Row 1 of the dataset \(.*1.png\) cannot be read: .* Mend or remove the image"):
        collate([table[1]])
    with pytest.raises(TrainingStopped, match=r"Row 2 .*2.png\) is 20×12 pixels \(width × height\), smaller than the 16×16"):
        collate([table[2]])
    enlarged = PixelCollator(processor_of(tokenizer()), allow_upscaling=True)([table[2]])
    assert enlarged["pixel_values"].shape == (1, 3, 16, 16)


def test_an_image_may_be_too_small_for_its_neighbors_schedule():
    """Of several schedules an image must fill its own; in a batch that has another one it is enlarged a little."""
    model = tokenizer(schedules=[[1, 2, 4], [[1, 1], [2, 1], [4, 2]]])
    collate = PixelCollator(processor_of(model))
    rows = [{"image": image(0)}, {"image": image(1, (8, 16))}]
    assert collate(rows)["pixel_values"].shape == (2, 3, 16, 16)
    assert collate(rows[::-1])["pixel_values"].shape == (2, 3, 16, 8)
