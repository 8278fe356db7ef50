"""The name tables: every released tensor has one row, every tensor of ours comes from one."""

import pytest
from golden_helpers import golden_json

from vargpt_hf.conversion.formats.var import DECODER_NAMES, VQ_NAMES
from vargpt_hf.conversion.formats.vargpt_v1 import NAMES as WHOLE_NAMES
from vargpt_hf.conversion.renaming import rename

RELEASED = list(golden_json("keys"))


def ours_of(released: str) -> list[str]:
    """Our names for a released one; the fused projection gives three."""
    name = rename(released, WHOLE_NAMES)
    if name is None:
        return []
    return [name.replace("qkv_proj", f"{part}_proj") for part in "qkv"] if "qkv_proj.weight" in name else [name]


def test_none_is_missing_unexpected_or_twice_there(golden_model):
    ours = [name for released in RELEASED for name in ours_of(released)]
    assert len(ours) == len(set(ours))
    assert set(ours) == set(golden_model.state_dict())


def test_what_nothing_reads_is_dropped():
    dropped = {name for name in RELEASED if rename(name, WHOLE_NAMES) is None}
    buffers = {name for name, key in golden_json("keys").items() if key["is_buffer"]}
    never_applied = {name for name in RELEASED if ".ln_q." in name}
    assert dropped == buffers | never_applied


@pytest.mark.parametrize("prefix, table", [("vae_local.", VQ_NAMES), ("vargpt_gen.", DECODER_NAMES)])
def test_parts_have_the_names_of_the_whole(prefix, table):
    ours = {"vae_local.": "model.image_tokenizer.", "vargpt_gen.": "model.visual_decoder."}[prefix]
    for name in (name for name in RELEASED if name.startswith(prefix)):
        part = rename(name.removeprefix(prefix), table)
        assert rename(name, WHOLE_NAMES) == (part and ours + part)


@pytest.mark.parametrize("name", ["vargpt_gen.blocks.0.attn.mat_qkv.bias", "vae_local.encoder.conv_in", "lm_head.weight", ""])
def test_unknown_names_raise(name):
    with pytest.raises(KeyError):
        rename(name, WHOLE_NAMES)


def test_rows_fit_each_name_once():
    for name in RELEASED:
        assert sum(_fits(name, row) for row in WHOLE_NAMES) == 1, name


def _fits(name: str, row: tuple[str, str | None]) -> bool:
    try:
        rename(name, [row])
    except KeyError:
        return False
    return True
