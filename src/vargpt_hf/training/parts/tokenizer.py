"""A byte-level BPE tokenizer with VARGPT's image tokens, trained on a small corpus."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ...processing.chat_vargpt import IMAGE_TOKEN, OUTPUT_IMAGE_END_TOKEN, OUTPUT_IMAGE_START_TOKEN, OUTPUT_IMAGE_TOKEN

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
IMAGE_TOKENS = (IMAGE_TOKEN, OUTPUT_IMAGE_START_TOKEN, OUTPUT_IMAGE_TOKEN, OUTPUT_IMAGE_END_TOKEN)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains byte-pair encoding on texts; any text can be encoded and comes back exactly, and encoding puts `<s>` in front.

    Raises:
        ValueError: no text, or a vocabulary too small for all bytes and the special tokens.
    """
    special = [*SPECIAL_TOKENS.values(), *IMAGE_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(special) + len(alphabet)
    if vocab_size < least:
        raise ValueError(f"`vocab_size` must be at least {least} (all bytes and the special tokens), got {vocab_size}.")
    texts = iter(texts)
    if (first := next(texts, None)) is None:
        raise ValueError("There are no texts to train the tokenizer on.")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((text for part in ([first], texts) for text in part), trainer)
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=list(IMAGE_TOKENS), **SPECIAL_TOKENS)
