"""A checkpoint of the paper's sizes, in sparse files that are all holes: converting it copies no tensor."""

import json
import math
import struct

import pytest
import torch
from golden_helpers import released_config
from golden_v11_helpers import GOLDEN_V11, released_v11_config
from torch.utils._python_dispatch import TorchDispatchMode

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.conversion.assembly import assemble
from vargpt_hf.conversion.checkpoint import open_checkpoint
from vargpt_hf.conversion.convert import FORMATS, read_released_config
from vargpt_hf.conversion.formats.vargpt_v1 import NAMES as WHOLE_NAMES
from vargpt_hf.conversion.formats.vargpt_v1 import adapt, config_of, stored_as
from vargpt_hf.conversion.renaming import Part

SHARDS = 4
ALLOWED = 2**20  # bytes of small tensors, as the two conditions


def released_shapes(config: VargptConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the released tensors of a model of these sizes, by their names."""
    with torch.device("meta"):
        ours = VargptForConditionalGeneration(config).state_dict()
    table, shapes, width = Part({}, WHOLE_NAMES, stored_as=stored_as), {}, config.visual_decoder_config.hidden_size
    for name, tensor in ours.items():
        released, shape = table.released(name), tuple(tensor.shape)
        if released.endswith("mat_qkv.weight"):
            shape = (3 * width, width)
        elif released.endswith("class_emb.weight"):
            shape = (config.output_image_start_token_id + 2, width)
        elif released.endswith("scale_mul_1H11"):
            shape = (1, *shape, 1, 1)
        elif released.endswith(("pos_1LC", "pos_start")):
            shape = (1, *shape)
        shapes[released] = shape
    return shapes


def write_sparse(folder, shapes: dict[str, tuple[int, ...]]) -> int:
    """A sharded checkpoint in bfloat16 that takes next to no room on the disk; its size in bytes as it seems."""
    names, table, total = sorted(shapes), {}, 0
    for shard in range(SHARDS):
        file, header, end = folder / f"model-{shard}.safetensors", {}, 0
        for name in names[shard::SHARDS]:
            dtype, width = ("I64", 8) if name.endswith("lfq.mask") else ("BF16", 2)
            size = width * math.prod(shapes[name])
            header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [end, end + size]}
            end, table[name] = end + size, file.name
        text = json.dumps(header).encode()
        with file.open("wb") as written:
            written.write(struct.pack("<Q", len(text)) + text)
            written.truncate(8 + len(text) + end)
        total += end
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return total


class Holes(TorchDispatchMode):
    """Counts the bytes of new tensors; the extremes of large ones, which are holes, are known to be zero without reading gigabytes."""

    new_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.aminmax.default and args[0].numel() > 2**16:
            return args[0].new_zeros(()), args[0].new_zeros(())
        found = func(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta and tensor.untyped_storage().data_ptr() not in given:
                Holes.new_bytes += tensor.untyped_storage().nbytes()
        return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("true") / "source"
    folder.mkdir()
    assert write_sparse(folder, released_shapes(VargptConfig.v1())) > 17e9
    assert sum(512 * path.stat().st_blocks for path in folder.iterdir()) < 10e6
    return folder


def converted(source, dtype: torch.dtype) -> tuple[VargptForConditionalGeneration, int]:
    """The model in memory, as it would be written, and the bytes that were allocated for it."""
    paper = VargptConfig.v1()
    described = released_config() | {"text_config": paper.text_config.to_dict(), "vision_config": paper.vision_config.to_dict()}
    described |= {"image_seq_length": paper.vlm_config.image_seq_length, "image_token_index": paper.image_token_id}
    described["special_tokens"] = {
        "image_token_id": paper.image_token_id,
        "image_gen_start_token_id": paper.output_image_start_token_id,
        "image_gen_end_token_id": paper.output_image_end_token_id,
        "image_gen_pad_token_id": paper.output_image_token_id,
    }
    Holes.new_bytes = 0
    with Holes():
        tensors = open_checkpoint(source)
        config = config_of(described, tensors)
        part = Part(tensors, WHOLE_NAMES, adapt=adapt(tensors, config))
        return assemble(config, [part], dtype, "Wrong."), Holes.new_bytes


def test_no_step_copies_a_tensor(source):
    model, new_bytes = converted(source, torch.bfloat16)
    exact = sum(4 * tensor.numel() for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32)
    assert model.num_parameters() > 8.5e9 and exact < 1e6  # the image tokenizer's quantizer stays in float32
    assert new_bytes < exact + ALLOWED


def test_no_step_copies_a_tensor_of_v1_1(tmp_path, caplog):
    """All 1706 tensors of the released model, from its `config.json` to the model that would be written; dead ones are named."""
    source = tmp_path / "source"
    source.mkdir()
    shapes = json.loads((GOLDEN_V11 / "keys_true_size.json").read_text())
    assert len(shapes) == 1706 and write_sparse(source, shapes) > 21e9
    assert sum(512 * path.stat().st_blocks for path in source.iterdir()) < 10e6
    paper = VargptConfig.v1_1().vlm_config
    described = (
        released_v11_config() | paper.text_config.to_dict() | {"vision_config": paper.vision_config.to_dict(), "torch_dtype": "bfloat16"}
    )
    described |= {"model_type": "vargpt_qwen2_vl", "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "image_token_id": 151655}
    described["special_tokens"] = {f"image_gen_{name}_token_id": 151657 + index for index, name in enumerate(("start", "end", "pad"))}
    (source / "config.json").write_text(json.dumps(described))
    kind = FORMATS["vargpt_qwen2_vl"]
    Holes.new_bytes = 0
    with Holes():
        tensors = open_checkpoint(source)
        config = kind.config_of(read_released_config(source), tensors, None)
        model = assemble(config, [Part(tensors, kind.NAMES, adapt=kind.adapt(tensors, config))], torch.bfloat16, "Wrong.")
    assert model.num_parameters() > 10.6e9 and all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert Holes.new_bytes < ALLOWED
    (said,) = [record.getMessage() for record in caplog.records if "nothing reads" in record.getMessage()]
    dead = ("lfq.mask", "text_proj_for_ca.*.weight", "sa.zero_k_bias", "ca.zero_k_bias", "text_proj_for_sos.ca.mat_q", "projector.ln_q.weight")
    assert all(name in said for name in dead) and len(said) < 1000


def test_the_count_sees_a_copy(source):
    """The measure itself can fail: one copied layer is beyond what is allowed."""
    tensors = open_checkpoint(source)
    Holes.new_bytes = 0
    with Holes():
        tensors["vargpt_gen.head.weight"].tensor.clone()
    assert Holes.new_bytes > ALLOWED
