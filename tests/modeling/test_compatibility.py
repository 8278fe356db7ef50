"""What `generate` and `from_pretrained` of Transformers offer; docs/compatibility.md has a row for each test."""

import re
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import DynamicCache, LlamaForCausalLM, StaticCache, TextIteratorStreamer

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.testing import drawing_model, tiny_config, tiny_model
from vargpt_hf.tiny import TINY_FOLDER

# One row reads an image; beside it, padded on the left, two that do not, of which one asks for an image at once.
IDS = torch.tensor([[1, *[60] * 4, 5, 6, 7], [0, 0, 0, 0, 1, 5, 6, 7], [0, 0, 0, 0, 1, 33, 34, 61]])
PIXELS = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))
PROMPTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "pixel_values": PIXELS}
SETTINGS = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True, "eos_token_id": None}


@pytest.fixture(scope="module")
def model():
    return drawing_model()


@pytest.fixture(scope="module")
def expected(model):
    output = model.generate(**PROMPTS, **SETTINGS)
    assert len(output.output_image_codes) > 1
    return output


@pytest.fixture(scope="module")
def tiny():
    return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32"), VargptProcessor.from_pretrained(TINY_FOLDER)


def assert_equal(output, expected):
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.output_image_codes, expected.output_image_codes)


@pytest.mark.parametrize("name", ["dynamic", "static", "offloaded", "offloaded_static"])
def test_caches_by_name(model, expected, name):
    if name.startswith("offloaded") and not torch.cuda.is_available():
        with pytest.raises(Exception, match="(?i)cuda|accelerator|gpu|stream"):
            model.generate(**PROMPTS, cache_implementation=name, **SETTINGS)
        return
    assert_equal(model.generate(**PROMPTS, cache_implementation=name, **SETTINGS), expected)


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_caches_that_are_given(model, expected, kind):
    text = model.config.get_text_config()
    cache = DynamicCache(config=text) if kind is DynamicCache else StaticCache(config=text, max_cache_len=256)
    assert_equal(model.generate(**PROMPTS, past_key_values=cache, **SETTINGS), expected)
    assert cache.get_seq_length() > IDS.shape[1]


FLEX = pytest.param(
    "flex_attention",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch 2.13's flex kernels for CPUs do not compile here"),
)


@pytest.mark.parametrize("kind", ["eager", "sdpa", FLEX])
def test_attention_implementations(model, expected, kind, tmp_path):
    model.save_pretrained(tmp_path)
    other = VargptForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=kind)
    assert {layer.self_attn.config._attn_implementation for layer in other.model.vlm.language_model.layers} == {kind}
    assert_equal(other.generate(**PROMPTS, **SETTINGS), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    half = VargptForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    for name, parameter in half.named_parameters():
        assert parameter.dtype == (torch.float32 if "quantizer" in name else dtype), name
    output = half.generate(**PROMPTS, generation_mode="image", **SETTINGS)
    assert output.output_image_codes.shape == (3, 21) and output.output_images.isfinite().all()
    codes = output.output_image_codes
    assert torch.equal(*(m.model.image_tokenizer.accumulate(codes) for m in (model, half)))
    ids = torch.tensor([[1, 5, 61, *[63] * 21, 62, 8]])
    whole, halved = (m(ids, output_image_codes=codes[:1], labels=ids) for m in (model, half))
    torch.testing.assert_close(halved.loss.float(), whole.loss, rtol=0.03, atol=0)
    torch.testing.assert_close(halved.output_image_logits.float(), whole.output_image_logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("device_map", ["auto", "disk"])
def test_device_maps(model, expected, device_map, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    if device_map == "disk":
        vlm = model.model.vlm
        device_map = {"lm_head": "cpu", "model.vlm.language_model.layers": "disk"}
        device_map |= {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "vlm"}
        device_map |= {f"model.vlm.{name}": "cpu" for name, _ in vlm.named_children() if name != "language_model"}
        device_map |= {f"model.vlm.language_model.{name}": "cpu" for name, _ in vlm.language_model.named_children() if name != "layers"}
    loaded = VargptForConditionalGeneration.from_pretrained(tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offloaded")
    assert_equal(loaded.generate(**PROMPTS, **SETTINGS), expected)


def test_compiling_breaks_no_graph(model):
    """A text step, a training step's forward, and a scale pass of the decoder, each as one graph."""
    torch._dynamo.reset()
    ids = torch.tensor([[1, 5, 61, *[63] * 21, 62, 8]])
    codes = torch.randint(0, 24, (1, 21), generator=torch.Generator().manual_seed(0))
    whole = torch.compile(model.forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(**PROMPTS).logits, model(**PROMPTS).logits)
    torch.testing.assert_close(
        whole(ids, output_image_codes=codes).output_image_logits, model(ids, output_image_codes=codes).output_image_logits
    )
    conditions = torch.zeros(1, dtype=torch.long)
    hidden = torch.randn(1, 21, model.config.visual_decoder_config.hidden_size, generator=torch.Generator().manual_seed(0))
    decoder = model.model.visual_decoder
    compiled = torch.compile(decoder.forward, fullgraph=True, backend="eager")
    schedule = model.config.schedules[0]
    torch.testing.assert_close(compiled(hidden, conditions, schedule), decoder(hidden, conditions, schedule))


def test_vocabulary_can_grow(model, tmp_path):
    model.save_pretrained(tmp_path)
    grown = VargptForConditionalGeneration.from_pretrained(tmp_path)
    grown.resize_token_embeddings(72, mean_resizing=False)
    assert grown.config.text_config.vocab_size == 72 and grown.lm_head.out_features == 72
    torch.testing.assert_close(grown(**PROMPTS).logits[..., :64], model(**PROMPTS).logits)
    grown.save_pretrained(tmp_path / "grown")
    again = VargptForConditionalGeneration.from_pretrained(tmp_path / "grown")
    codes = again.generate(**PROMPTS, generation_mode="image", **SETTINGS).output_image_codes
    assert torch.equal(codes, model.generate(**PROMPTS, generation_mode="image", **SETTINGS).output_image_codes)


def test_stop_strings(tiny):
    model, processor = tiny
    image = {"type": "image", "image": Image.new("RGB", (48, 48), "white")}
    chats = [
        [{"role": "user", "content": "repeat: a red circle above a blue square"}],
        [{"role": "user", "content": [image, {"type": "text", "text": "what colour is the background"}]}],
    ]
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )
    assert 0 < inputs["attention_mask"].sum(1).min() < inputs["attention_mask"].shape[1]
    settings = {"stop_strings": [" above", "hite"], "tokenizer": processor.tokenizer, "max_new_tokens": 20, "do_sample": False}
    ids = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    assert [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)] == ["a red circle above", "white"]


def test_text_iterator_streamer(tiny):
    model, processor = tiny
    image = {"type": "image", "image": Image.new("RGB", (48, 48), "white")}
    before = [{"role": "user", "content": [image, {"type": "text", "text": "what colour is the background"}]}]
    before += [{"role": "assistant", "content": "white"}]
    chat = [*before, {"role": "user", "content": "draw a red circle and say what you drew"}]
    inputs = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 20, "do_sample": False})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces).strip() == "a red circle"


WIDER = {**tiny_config().vlm_config.to_dict(), "text_config": {**tiny_config().text_config.to_dict(), "hidden_size": 64}}
ASSISTANTS = {
    "vargpt": lambda: tiny_model(seed=3),
    "itself": drawing_model,
    "wider vargpt": lambda: tiny_model(seed=3, vlm_config=WIDER),
    "language model": lambda: LlamaForCausalLM(tiny_config().text_config).eval(),
}


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", ASSISTANTS)
def test_assistant_models(model, kind, held, do_sample):
    """Whatever an assistant makes of the images that a prompt reads and holds, the answer is the model's own; padding is none of it."""
    row = [1, *[60] * 4, 5, 6, *([61, *[63] * 21, 62, 9] if held else [])]
    ids = torch.tensor([[0, 0, *row]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": PIXELS}
    if held:
        inputs["output_image_codes"] = torch.randint(0, 24, (1, 21), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match='assisted_generation.*generation_mode="text"'):
        model.generate(**inputs, assistant_model=ASSISTANTS[kind](), **SETTINGS)
    settings = {**SETTINGS, "generation_mode": "text", "do_sample": do_sample, "top_k": 1}
    assisted = model.generate(**inputs, assistant_model=ASSISTANTS[kind](), **settings)
    sequences = assisted if isinstance(assisted, torch.Tensor) else assisted.sequences
    assert torch.equal(sequences, model.generate(**inputs, **settings).sequences)


def test_an_assistant_sees_the_image(model, monkeypatch):
    """The model as its own assistant drafts what it says itself, so that all drafts are taken, which needs few calls."""
    calls = []
    hook = model.model.vlm.language_model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(1), with_kwargs=True)
    settings = {**SETTINGS, "generation_mode": "text", "max_new_tokens": 13}
    model.generate(input_ids=IDS[:1], pixel_values=PIXELS, assistant_model=model, num_assistant_tokens=6, **settings)
    hook.remove()
    assert len(calls) <= 13 + 3  # of the drafts, and of the checks


def test_prompt_lookup(model):
    settings = {**SETTINGS, "generation_mode": "text"}
    inputs = {"input_ids": IDS[:1], "pixel_values": PIXELS}
    expected = model.generate(**inputs, **settings).sequences
    looked_up = model.generate(**inputs, prompt_lookup_num_tokens=3, **settings)
    assert torch.equal(looked_up if isinstance(looked_up, torch.Tensor) else looked_up.sequences, expected)


@pytest.mark.parametrize("mode", ["text", "auto"])
def test_prefill_in_chunks(model, mode):
    """Prompts without images; with them it is refused, since an image enters at once."""
    settings = {**SETTINGS, "generation_mode": mode}
    inputs = {name: PROMPTS[name][1:] for name in ("input_ids", "attention_mask")}
    assert_equal(model.generate(**inputs, prefill_chunk_size=3, **settings), model.generate(**inputs, **settings))
    with pytest.raises(ValueError, match="`prefill_chunk_size` cannot cut a prompt with images"):
        model.generate(**PROMPTS, prefill_chunk_size=3, **settings)


def test_without_a_cache(model):
    settings = {**SETTINGS, "generation_mode": "text"}
    without = model.generate(**PROMPTS, use_cache=False, **settings)
    assert torch.equal(without.sequences, model.generate(**PROMPTS, **settings).sequences)
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(**PROMPTS, use_cache=False, **SETTINGS)


def test_the_page_names_every_test():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "compatibility.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    here = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), flags=re.M)) - {"test_the_page_names_every_test"}
    everywhere = {name for path in (root / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.M)}
    assert here <= named <= everywhere
