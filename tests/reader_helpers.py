"""Small processors of the library's own classes, one for each kind of backbone, around tokenizers made in the process."""

from collections.abc import Callable
from dataclasses import dataclass, field

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ProcessorMixin
from transformers.utils import is_torchvision_available

DRAWN_TOKENS = ["<|image_gen_start|>", "<|image_gen_pad|>", "<|image_gen_end|>"]
WORDS = "draw a b c red blue what is it here yes user assistant model : .".split()
DRAWN = {"schedules": [[1, 2, 4], [[1, 1], [2, 3], [4, 6]]], "downsampling": 4, "resize_factor": 1.0}  # of 16 × 16 and of 16 × 24 pixels

READER_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for p in m['content'] %}{% if p['type'] == 'image' %}{{ IMAGE }} "
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %} . {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)
# As those of language models: contents are plain texts.
TEXT_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ' : ' + m['content'] + ' . ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant : ' }}{% endif %}"
)


@dataclass(frozen=True)
class Reader:
    """How the processor of a family is made small.

    Args:
        name: of its class.
        make: its other parts and options.
        image: the token that stands for an image in text.
        tokens: further tokens that it needs, by the attribute of the tokenizer that names each.
        needs: packages that it needs beyond torch.
    """

    name: str
    make: Callable[[], dict]
    image: str = "<image>"
    tokens: dict[str, str] = field(default_factory=dict)
    plain_tokens: tuple[str, ...] = ()
    needs_torchvision: bool = False


def _class(name: str):
    """A class by its name; of image processors the one of Pillow where torchvision is missing, as the library itself chooses."""
    if name.endswith("ImageProcessor") and not is_torchvision_available():
        name += "Pil"
    return getattr(transformers, name)


def _clip(**sizes):
    return _class("CLIPImageProcessor")(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **sizes)


def _siglip(**options):
    return _class("SiglipImageProcessor")(size={"height": 16, "width": 16}, **options)


def _paligemma():
    image_processor = _siglip()
    image_processor.image_seq_length = 4
    return {"image_processor": image_processor}


PINPOINTS = [[16, 32], [32, 16], [32, 32]]
TILES = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": True}
PATCHES = {"patch_size": 4, "temporal_patch_size": 1, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 1024}}
CELLS = tuple(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2))
ROWS_AND_COLUMNS = (*CELLS, "<global-img>", "<fake_token_around_image>", "<end_of_utterance>")
QWEN = ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def _qwen():
    return {"image_processor": _class("Qwen2VLImageProcessor")(**PATCHES), "video_processor": transformers.Qwen2VLVideoProcessor(**PATCHES)}


READERS = {
    "llava": Reader(
        "LlavaProcessor",
        lambda: {"image_processor": _clip(), "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_siglip": Reader("LlavaProcessor", lambda: {"image_processor": _siglip(), "patch_size": 8, "vision_feature_select_strategy": "full"}),
    "llava_next": Reader(
        "LlavaNextProcessor",
        lambda: {
            "image_processor": _class("LlavaNextImageProcessor")(
                size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
            ),
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    "llava_onevision": Reader(
        "LlavaOnevisionProcessor",
        lambda: {
            "image_processor": _class("LlavaOnevisionImageProcessor")(size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS),
            "video_processor": transformers.LlavaOnevisionVideoProcessor(size={"height": 16, "width": 16}),
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
        },
        plain_tokens=("<video>",),
        needs_torchvision=True,
    ),
    "idefics3": Reader(
        "Idefics3Processor",
        lambda: {"image_processor": _class("Idefics3ImageProcessor")(**TILES), "image_seq_len": 4},
        plain_tokens=ROWS_AND_COLUMNS,
    ),
    "smolvlm": Reader(
        "SmolVLMProcessor",
        lambda: {
            "image_processor": _class("SmolVLMImageProcessor")(**TILES),
            "video_processor": transformers.SmolVLMVideoProcessor(),
            "image_seq_len": 4,
        },
        plain_tokens=ROWS_AND_COLUMNS,
        needs_torchvision=True,
    ),
    "gemma3": Reader(
        "Gemma3Processor",
        lambda: {"image_processor": _class("Gemma3ImageProcessor")(size={"height": 16, "width": 16}), "image_seq_length": 4},
        image="<start_of_image>",
        tokens={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "paligemma": Reader("PaliGemmaProcessor", _paligemma),
    "qwen2_vl": Reader(
        "Qwen2VLProcessor",
        _qwen,
        image="<|image_pad|>",
        plain_tokens=QWEN,
        needs_torchvision=True,
    ),
    "qwen2_5_vl": Reader(
        "Qwen2_5_VLProcessor",
        _qwen,
        image="<|image_pad|>",
        plain_tokens=QWEN,
        needs_torchvision=True,
    ),
    "qwen3_vl": Reader(
        "Qwen3VLProcessor",
        lambda: {**_qwen(), "video_processor": transformers.Qwen3VLVideoProcessor(**PATCHES)},
        image="<|image_pad|>",
        plain_tokens=QWEN,
        needs_torchvision=True,
    ),
    "internvl": Reader(
        "InternVLProcessor",
        lambda: {
            "image_processor": transformers.GotOcr2ImageProcessor(size={"height": 16, "width": 16}, max_patches=2),
            "video_processor": transformers.InternVLVideoProcessor(size={"height": 16, "width": 16}),
            "image_seq_length": 4,
        },
        image="<IMG_CONTEXT>",
        tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        needs_torchvision=True,
    ),
    "mistral3": Reader(
        "PixtralProcessor",
        lambda: {
            "image_processor": _class("PixtralImageProcessor")(size={"longest_edge": 16}, patch_size={"height": 4, "width": 4}),
            "patch_size": 4,
            "spatial_merge_size": 2,
        },
        image="[IMG]",
        plain_tokens=("[IMG_BREAK]", "[IMG_END]"),
        needs_torchvision=True,
    ),
}


def make_reader_tokenizer(reader: Reader | None = None, draws: bool = True) -> PreTrainedTokenizerFast:
    """Words and special tokens; ids 60 to 63 are those of an image that is read and of images to draw, 59 of videos, as in `tiny_config`.

    One that does not draw ends before those of images to draw.
    """
    tokens, others = ({}, ()) if reader is None else (reader.tokens, reader.plain_tokens)
    placeholder = "<image>" if reader is None else tokens.get("image_token", reader.image)
    ids = {59: "<video>", 60: placeholder, **(dict(zip((61, 63, 62), DRAWN_TOKENS)) if draws else {})}
    special = [token for token in dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", *tokens.values(), *others]) if token not in ids.values()]
    names = iter([*special, *WORDS, "\n", *(f"w{number}" for number in range(64))])
    vocabulary = {ids.get(index) or next(names): index for index in range(64 if draws else 61)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **tokens}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=[*special, *ids.values()], **named)


def make_reader(family: str, draws: bool = True) -> ProcessorMixin:
    """The library's processor of a family, small."""
    reader = READERS[family]
    image = f"<|vision_start|>{reader.image}<|vision_end|>" if QWEN == reader.plain_tokens else reader.image
    template = READER_TEMPLATE.replace("IMAGE", repr(image))
    return getattr(transformers, reader.name)(tokenizer=make_reader_tokenizer(reader, draws), chat_template=template, **reader.make())
