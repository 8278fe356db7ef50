"""Released names stand in one file per released format, and nowhere else in the package."""

import ast
import re
from pathlib import Path

import pytest

from vargpt_hf import conversion
from vargpt_hf.conversion.formats import infinity, llava, qwen2_vl, var, vargpt_v1, vargpt_v1_1

FORMATS = Path(conversion.__file__).parent / "formats"
PACKAGE = FORMATS.parents[1]
TABLES = [
    *(var.DECODER_NAMES, var.VQ_NAMES, infinity.INFINITY_NAMES, infinity.BSQ_NAMES),
    *(llava.NAMES, qwen2_vl.NAMES, vargpt_v1.NAMES, vargpt_v1_1.NAMES),
]
WRAPPERS = {*var.DECODER_WRAPPERS, *var.VQ_WRAPPERS} - {"trainer"}  # an English word
MODEL_TYPES = {vargpt_v1.MODEL_TYPE, vargpt_v1_1.MODEL_TYPE}
FIELDS = {"image_gen_start_token_id", "image_gen_end_token_id", "image_gen_pad_token_id", "in_chans", "rope_scaling"}


def words(text: str) -> set[str]:
    """The parts of a name between dots, or of any text between what names are not made of."""
    return set(re.findall(r"\w+", text))


def released_words() -> set[str]:
    """What stands in released names and is no part of ours, words of English and of Transformers aside."""
    ours = {word for table in TABLES for _, name in table if name for word in words(name)}
    released = {word for table in TABLES for name, _ in table for word in words(name)}
    transformers = {"position_ids", "inv_freq", "rotary_emb", "vision_model"}
    return {word for word in released - ours - transformers if "_" in word} | WRAPPERS | MODEL_TYPES | FIELDS


def texts(source: str) -> list[tuple[int, str]]:
    """The string constants of a source with their lines, docstrings apart."""
    tree = ast.parse(source)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    told = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [(node.lineno, node.value) for node in constants if id(node) not in told]


def found_in(source: str) -> list[str]:
    known = released_words()
    return [f"line {line}: {', '.join(sorted(found))}" for line, text in texts(source) if (found := words(text) & known)]


def test_there_are_released_words_to_look_for():
    assert released_words() >= {
        "vae_local",
        "vargpt_gen",
        "mat_qkv",
        "lvl_1L",
        "block_chunks",
        "var_wo_ddp",
        "image_gen_projector",
        "nin_shortcut",
    }


@pytest.mark.parametrize("path", sorted(path for path in PACKAGE.rglob("*.py") if FORMATS not in path.parents), ids=lambda path: path.stem)
def test_no_released_name_stands_outside(path):
    assert found_in(path.read_text()) == []


def test_a_released_name_is_found():
    assert found_in("x = tensors['vargpt_gen.lvl_1L']") == ["line 1: lvl_1L, vargpt_gen"]
    assert found_in("'''Of vargpt_gen.'''") == []
