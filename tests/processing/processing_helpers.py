"""A tokenizer made in the process, a tiny processor and images, for the tests of this room."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vargpt_hf.processing import VargptCLIPImageProcessor, VargptProcessor

SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: draw a red circle above a blue square and say what you drew. ASSISTANT: Here it is: a red circle.",
    "USER: what is in the image? ASSISTANT: a green triangle. hello, hi",
]
IMAGE_TOKENS = ["<image>", "<|image_gen_start|>", "<|image_gen_pad|>", "<|image_gen_end|>"]
SIDE, PLACEHOLDERS, CODES = 48, 4, 5  # of an image, to understand, to generate


def make_tokenizer(with_bos: bool = False, metaspace: bool = False) -> PreTrainedTokenizerFast:
    """BPE on bytes (or on SentencePiece-like words), trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = []
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=alphabet,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", *IMAGE_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=IMAGE_TOKENS,
    )


LLAVA = {"processor_class": "LlavaProcessor", "patch_size": SIDE // 2, "vision_feature_select_strategy": "full"}
DRAWN = {"schedules": [[1, 2]], "downsampling": SIDE // 2, "resize_factor": 1.0}


def make_processor(output_image_settings: dict | None = None, **tokenizer_options) -> VargptProcessor:
    image_processor = VargptCLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    tokenizer = make_tokenizer(**tokenizer_options)
    return VargptProcessor(image_processor, tokenizer, reader=LLAVA, output_image_settings={**DRAWN, **(output_image_settings or {})})


def codes_of(seed: int) -> torch.Tensor:
    """Codes (CODES,) of an image."""
    return torch.randint(50, (CODES,), generator=torch.Generator().manual_seed(seed))
