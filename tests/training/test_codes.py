"""Codes ahead of training: exact, restartable, in parallel, and refused by another image tokenizer."""

import base64
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from PIL import Image as PILImage
from ready_processes import VARGPT, ReadyProcess

from vargpt_hf import VargptConfig, VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.rows import rows
from vargpt_hf.training.codes import encode_rows
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.data import load_rows
from vargpt_hf.training.data_check import check_rows
from vargpt_hf.training.readers import ROW_FEATURES, to_rows

TOKENS = ("start_token_id", "token_id", "end_token_id")
MIXTURE = {"draw": 3.0, "draw_two": 1.0, "read_digit": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of 30 rows, some with two drawings, some with none."""
    folder = tmp_path_factory.mktemp("data") / "rows"
    made = [{name: row[name] for name in ROW_FEATURES} for row in rows(MIXTURE, 30, seed=0)]
    Dataset.from_list(made, features=Features(ROW_FEATURES)).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("encoded") / "codes"
    encode_rows(load_rows(data), TINY_FOLDER, output, rows_per_shard=8, batch_size=5)
    return output


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_codes_give_the_batches_that_pixels_give(data, encoded):
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()
    collator = VargptDataCollator(processor)
    from_pixels, from_codes = (collator(list(load_rows(path))) for path in (data, encoded))
    assert sorted(path.name for path in encoded.glob("*.parquet")) == [f"codes-{shard:05}-of-00004.parquet" for shard in range(4)]
    assert "output_pixel_values" not in from_codes
    assert torch.equal(model.model.image_tokenizer.encode(from_pixels["output_pixel_values"]), from_codes["output_image_codes"])
    for name in ("input_ids", "labels", "pixel_values"):
        assert torch.equal(from_pixels[name], from_codes[name])


def test_images_and_codes_do_not_mix(data, encoded):
    with pytest.raises(ValueError, match="have images to draw, others codes"):
        VargptDataCollator(VargptProcessor.from_pretrained(TINY_FOLDER))([*load_rows(data), *load_rows(encoded)])


def test_codes_are_small(tmp_path):
    """A thousand images of the paper's size: 680 codes each, against JPEG."""
    rng = np.random.default_rng(0)
    codes = [[rng.integers(0, 4096, 680).tolist()] for _ in range(1000)]
    from vargpt_hf.training.codes import FEATURES

    empty = {"messages": [], "images": [], "output_image_schedule_ids": [0], "image_hashes": [], "image_tokenizer_fingerprint": "0" * 16}
    Dataset.from_list([{**empty, "output_image_codes": each} for each in codes], features=FEATURES).to_parquet(tmp_path / "codes.parquet")
    smooth = PILImage.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((256, 256), PILImage.Resampling.BICUBIC)
    smooth.save(tmp_path / "image.jpg", quality=90)
    assert (tmp_path / "codes.parquet").stat().st_size / 1000 < (tmp_path / "image.jpg").stat().st_size / 10


def test_several_processes_write_the_same_files(data, encoded, tmp_path):
    encode_rows(load_rows(data), TINY_FOLDER, tmp_path / "codes", rows_per_shard=8, batch_size=5, num_processes=2)
    assert contents(tmp_path / "codes") == contents(encoded)


@pytest.mark.slow
def test_a_killed_run_goes_on(data, encoded, tmp_path):
    output = tmp_path / "codes"
    command = [VARGPT, "encode", data, output, "--rows-per-shard", "8", "--batch-size", "5"]
    run = ReadyProcess(command)
    while not list(output.glob("*.parquet")):
        assert run.poll() is None
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    (output / ".codes-00003-of-00004.parquet.123").write_bytes(b"half")
    first = {path: path.stat().st_mtime_ns for path in output.glob("codes-*.parquet")}
    assert len(first) < 4
    assert ReadyProcess(command).wait() == 0
    assert contents(output) == contents(encoded)
    assert {path: path.stat().st_mtime_ns for path in first} == first


def test_broken_images_are_listed_and_left_out_only_when_asked(tmp_path):
    (tmp_path / "data").mkdir()
    for index in range(6):
        PILImage.new("RGB", (50, 60), (40 * index, 0, 0)).save(tmp_path / "data" / f"{index}.png")
        (tmp_path / "data" / f"{index}.txt").write_text(f"image {index}")
    (tmp_path / "data" / "4.png").write_bytes(b"no image")
    data = load_rows(tmp_path / "data")
    with pytest.raises(ValueError, match=r"1 images cannot be read .*\nrow 4, image 0, .*4\.png: .*\nMend them"):
        encode_rows(data, TINY_FOLDER, tmp_path / "codes", rows_per_shard=3)
    assert [path.name for path in (tmp_path / "codes").glob("*.parquet")] == ["codes-00000-of-00002.parquet"]
    encode_rows(data, TINY_FOLDER, tmp_path / "codes", rows_per_shard=3, skip_broken=True)
    said = [row["messages"][0]["content"][0]["text"] for row in load_rows(tmp_path / "codes")]
    assert said == [f"image {index}" for index in (0, 1, 2, 3, 5)]
    assert "4.png" in (tmp_path / "codes" / "broken.txt").read_text()


def test_a_file_may_be_left_without_rows_but_not_all_of_them(tmp_path):
    for index in range(4):
        PILImage.new("RGB", (50, 60), (40 * index, 0, 0)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"image {index}")
    for index in (0, 1):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    encode_rows(load_rows(tmp_path), TINY_FOLDER, tmp_path / "codes", rows_per_shard=2, skip_broken=True)
    assert [row["messages"][0]["content"][0]["text"] for row in load_rows(tmp_path / "codes")] == ["image 2", "image 3"]
    for index in (2, 3):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="No row is left"):
        encode_rows(load_rows(tmp_path), TINY_FOLDER, tmp_path / "none", rows_per_shard=2, skip_broken=True)


def test_images_to_read_that_have_changed_are_taken_anew(tmp_path, capsys):
    """They are kept beside the codes."""
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "make it red"}]},
        {"role": "assistant", "content": [{"type": "output_image"}]},
    ]

    def rows(color):
        read = [[PILImage.new("RGB", (8, 8), "white")], [PILImage.new("RGB", (8, 8), color)]]
        return to_rows([{"messages": turns, "images": images, "output_images": [PILImage.new("RGB", (48, 48), "red")]} for images in read])

    for color in ("blue", "green", "green"):
        encode_rows(rows(color), TINY_FOLDER, tmp_path / "codes", rows_per_shard=1)
    assert capsys.readouterr().out.count("1 of 2 files are made anew") == 1
    assert [row["images"][0].getpixel((0, 0)) for row in load_rows(tmp_path / "codes")] == [(255, 255, 255), (0, 128, 0)]


def test_rows_of_any_form_and_files_of_any_kind(tmp_path):
    """What the readers take is encoded; a pipe is listed among the broken images instead of being waited for."""
    PILImage.new("RGB", (50, 60), "red").save(tmp_path / "red.png")
    os.mkfifo(tmp_path / "pipe.png")
    chat = [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "<image_gen>"}]
    encoded_text = base64.b64encode((tmp_path / "red.png").read_bytes()).decode()
    forms = ["red.png", ["red.png"], {"bytes": None, "path": "red.png"}, encoded_text, f"data:image/png;base64,{encoded_text}", "pipe.png"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"conversations": chat, "image": form}) for form in forms))
    with pytest.raises(ValueError, match="1 images cannot be read.*\n.*pipe.png.*no regular file"):
        encode_rows(load_rows(tmp_path / "rows.jsonl"), TINY_FOLDER, tmp_path / "codes")
    encode_rows(load_rows(tmp_path / "rows.jsonl"), TINY_FOLDER, tmp_path / "codes", skip_broken=True)
    codes = [row["output_image_codes"] for row in load_rows(tmp_path / "codes")]
    assert len(codes) == 5 and all(each == codes[0] for each in codes)


def test_other_data_or_another_image_tokenizer_is_refused(data, encoded, tmp_path):
    with pytest.raises(ValueError, match="holds codes of something else: num_rows 30 .here 29., rows_fingerprint"):
        encode_rows(load_rows(data).select(range(29)), TINY_FOLDER, encoded, rows_per_shard=8)
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER)
    fingerprint = model.model.image_tokenizer.fingerprint()
    assert {row["image_tokenizer_fingerprint"] for row in load_rows(encoded)} == {fingerprint}
    assert VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype=torch.bfloat16).model.image_tokenizer.fingerprint() == fingerprint
    model.model.image_tokenizer.quantizer.codebook.weight.data[0, 0] += 1
    collator = VargptDataCollator(VargptProcessor.from_pretrained(TINY_FOLDER)).bind(model)
    with pytest.raises(ValueError, match="codes of another image tokenizer"):
        collator([load_rows(encoded)[0]])


def test_images_that_have_changed_are_encoded_anew(tmp_path, capsys):
    """Their texts are the same; what is as it was is left alone."""
    for number, color in enumerate(("red", "blue", "green", "white")):
        PILImage.new("RGB", (48, 48), color).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a photo of it")
    encode_rows(load_rows(tmp_path), TINY_FOLDER, tmp_path / "codes", rows_per_shard=2)
    before = contents(tmp_path / "codes")
    PILImage.new("RGB", (48, 48), "black").save(tmp_path / "3.png")
    encode_rows(load_rows(tmp_path), TINY_FOLDER, tmp_path / "codes", rows_per_shard=2)
    assert "1 of 2 files are made anew: their images have changed" in capsys.readouterr().out
    encode_rows(load_rows(tmp_path), TINY_FOLDER, tmp_path / "fresh", rows_per_shard=2)
    after, fresh = contents(tmp_path / "codes"), contents(tmp_path / "fresh")
    assert after == fresh and [name for name in before if after[name] != before[name]] == ["codes-00001-of-00002.parquet"]
    assert "made anew" not in capsys.readouterr().out


def test_a_folder_with_other_things_is_left_alone(data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there and holds no codes"):
        encode_rows(load_rows(data), TINY_FOLDER, tmp_path)
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["notes.txt"]'


def test_codes_of_several_schedules(base, tmp_path):
    """Images of each aspect ratio are encoded by their own schedule, which is kept with their codes: two may have equally many."""
    config, processor = VargptConfig.from_pretrained(base), VargptProcessor.from_pretrained(base)
    schedules = [[1, 2], [[1, 1], [1, 3]], [[1, 1], [3, 1]]]
    tokenizer = {"model_type": "vargpt_bsq", "schedules": schedules, "latent_channels": 32, "base_channels": 8, "norm_num_groups": 4}
    config.image_tokenizer_config = {**tokenizer, "channel_multipliers": (1, 1, 2), "num_res_blocks": 1}
    config.visual_decoder_config = {
        "model_type": "vargpt_infinity_decoder",
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    names = ("vlm_config", "image_tokenizer_config", "visual_decoder_config", *(f"output_image_{name}" for name in TOKENS))
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(VargptConfig(**{name: getattr(config, name) for name in names})).eval()
    model.save_pretrained(tmp_path / "model")
    settings = {"schedules": schedules, "downsampling": 4, "resize_factor": 1.0}
    VargptProcessor(reader=processor.reader, output_image_settings=settings).save_pretrained(tmp_path / "model")
    images = [PILImage.new("RGB", size, color) for size, color in (((8, 8), "red"), ((12, 4), "blue"), ((4, 12), "lime"))]
    turns = [{"role": "user", "content": "draw"}, {"role": "assistant", "content": [{"type": "output_image"}]}]
    found = [{"messages": turns, "output_images": [image]} for image in images]
    encode_rows(to_rows(found), tmp_path / "model", tmp_path / "codes")
    loaded = list(load_rows(tmp_path / "codes"))
    assert [row["output_image_schedule_ids"] for row in loaded] == [[0], [1], [2]]
    assert [len(row["output_image_codes"][0]) for row in loaded] == [5, 4, 4] and max(loaded[0]["output_image_codes"][0]) > 2**31
    own = VargptProcessor.from_pretrained(tmp_path / "model")
    assert not check_rows(load_rows(tmp_path / "codes"), own).wrong
    collator = VargptDataCollator(own)
    from_codes, from_pixels = collator(loaded), collator(found)
    ours, theirs = (model.model.prepare_output_images(*given) for given in (
        (None, from_codes["output_image_codes"], from_codes["output_image_schedule_ids"], torch.ones(3, dtype=torch.long)),
        (from_pixels["output_pixel_values"], None, from_pixels["output_image_schedule_ids"], torch.ones(3, dtype=torch.long)),
    ))  # fmt: skip
    assert torch.equal(ours[0].codes, theirs[0].codes) and torch.equal(from_codes["input_ids"], from_pixels["input_ids"])
