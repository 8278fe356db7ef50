"""The wiring meets parts through their interfaces: no line of it asks which part it has, or which backbone.

The wiring is what every model of the family runs, whichever parts it has. What differs between parts is theirs; what differs between backbones
stands in backbone_vargpt.py; which parts there are stands in the tables of configuration_vargpt.py.
"""

import ast
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from vargpt_hf.modeling import modeling_vargpt
from vargpt_hf.modeling.configuration_vargpt import IMAGE_TOKENIZERS, VISUAL_DECODERS
from vargpt_hf.modeling.image_sampling_vargpt import GUIDANCE_TYPES, Guidance

MODELING = Path(modeling_vargpt.__file__).parent
WIRING_NAMES = (
    "modeling",
    "output_images",
    "losses",
    "outputs",
    "generation",
    "drawing_plan",
    "decoding",
    "drawing",
    "llm_cache",
    "pretrained",
)
WIRING = [f"{name}_vargpt" for name in WIRING_NAMES]
PARTS = (*IMAGE_TOKENIZERS.values(), *VISUAL_DECODERS.values())
PART_MODULES = {part.__module__.rpartition(".")[2] for part in PARTS}
# Names that only a line which asks for a kind needs: of parts, of their configurations, and of kinds of guidance.
KINDS = {kind.__name__ for part in PARTS for kind in (part, part.config_class)}
KINDS |= {kind.__name__ for kind in GUIDANCE_TYPES.values() if kind is not Guidance}
# Where the wiring holds its parts.
PART_NAMES = {"image_tokenizer", "visual_decoder", "vlm", "backbone", "image_tokenizer_config", "visual_decoder_config", "vlm_config"}
MODEL_TYPES = {part.config_class.model_type for part in PARTS} | set(CONFIG_MAPPING_NAMES) - {"vargpt"}
# Configurations of the released models name their backbones; what a backbone needs is said in its own file.
NAMES_BACKBONES = {"backbone_vargpt", "configuration_vargpt", *PART_MODULES}


def names_in(node: ast.AST) -> set[str]:
    """Every name and attribute inside of a node."""
    return {n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, (ast.Name, ast.Attribute))}


def docstrings(tree: ast.AST) -> set[int]:
    """Ids of the constants that are docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def questions(source: str) -> list[str]:
    """What in a source asks which part, guidance or backbone there is; one text for each line that does."""
    tree = ast.parse(source)
    told, found = docstrings(tree), []
    for node in ast.walk(tree):
        line = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, (ast.ImportFrom, ast.Import)):
            modules = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
            if any(name.rpartition(".")[2] in PART_MODULES | KINDS for name in modules):
                found.append(line + "imports a kind of part")
        elif isinstance(node, (ast.Name, ast.Attribute)) and names_in(node) & KINDS:
            found.append(line + "names a kind of part")
        elif isinstance(node, (ast.Compare, ast.Match, ast.If, ast.IfExp)):
            asked = node.test if isinstance(node, (ast.If, ast.IfExp)) else node
            if names_in(asked) & {"model_type", "__class__"}:
                found.append(line + "asks for a model_type")
        elif isinstance(node, ast.Call) and names_in(node.func) & {"hasattr", "isinstance", "issubclass", "type"}:
            if names_in(node) & PART_NAMES:
                found.append(line + "asks a part for its class or for what it has")
        elif isinstance(node, ast.Constant) and id(node) not in told and node.value in MODEL_TYPES:
            found.append(line + f"names the model_type {node.value!r}")
    return found


@pytest.mark.parametrize("module", WIRING)
def test_no_line_asks_which_part_it_has(module):
    assert questions((MODELING / f"{module}.py").read_text()) == []


@pytest.mark.parametrize("module", sorted(path.stem for path in MODELING.glob("*_vargpt.py") if path.stem not in NAMES_BACKBONES))
def test_backbones_are_named_in_one_file(module):
    assert [question for question in questions((MODELING / f"{module}.py").read_text()) if "names the model_type" in question] == []


@pytest.mark.parametrize(
    "line",
    [
        "from .vq_vargpt import VargptVQModel",
        "from . import infinity_decoder_vargpt",
        "from .image_sampling_vargpt import Guidance, NoiseGuidance",
        "x = isinstance(self.visual_decoder, Decoder)",
        "x = isinstance(model.image_tokenizer, configuration.VargptBSQModel)",
        "x = hasattr(self.vlm, 'get_rope_index')",
        "x = 1 if config.vlm_config.model_type == kind else 2",
        "if self.backbone.model_type in TABLE: pass",
        "match config.visual_decoder_config.model_type:\n    case _: pass",
        "x = kind == 'vargpt_bsq'",
        "TABLE = {'qwen2_vl': 1}",
        "x = kind is NoiseGuidance",
        "x = type(self.visual_decoder) is kind",
    ],
)
def test_a_line_that_asks_is_found(line):
    assert questions("import torch\n" + line), line


@pytest.mark.parametrize(
    "line", ["'''Of a 'qwen2_vl' model.'''", "x = f'A {self.backbone.model_type!r} model'", "x = DECODERS[config.model_type](config)"]
)
def test_a_line_that_does_not_ask_passes(line):
    assert questions(line) == []


def test_the_parts_that_are_looked_for_are_there():
    """With empty tables, the tests above would find nothing anywhere."""
    assert GUIDANCE_TYPES.keys() >= {"none", "prompt", "noise", "scale"}
    assert PART_MODULES >= {"vq_vargpt", "bsq_vargpt", "var_decoder_vargpt", "infinity_decoder_vargpt"}
