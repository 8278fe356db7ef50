"""Infinity's visual decoder against the released one, with given decoder inputs and contexts."""

import pytest
import torch
from golden_v11_helpers import assert_close_to_v11, golden_v11, golden_v11_json, released_v11_part, released_v11_weights

from vargpt_hf.conversion.formats.infinity import INFINITY_NAMES, adapt_infinity
from vargpt_hf.conversion.renaming import rename
from vargpt_hf.modeling.bsq_vargpt import INFINITY_SIDES, VargptBSQConfig
from vargpt_hf.modeling.infinity_decoder_vargpt import VargptInfinityDecoder, VargptInfinityDecoderConfig, rotary_table
from vargpt_hf.modeling.scales_vargpt import ScaleSchedule
from vargpt_hf.modeling.visual_decoder_vargpt import GENERATE_CONDITION, NULL_CONDITION

SQUARE, TALL = ScaleSchedule.of([1, 2, 3, 4]), ScaleSchedule.of([[1, 1], [2, 2], [4, 2]])
CONDITIONS = torch.tensor([GENERATE_CONDITION, GENERATE_CONDITION])


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def decoder(request) -> VargptInfinityDecoder:
    sizes = golden_v11_json("config")["decoder"]
    config = VargptInfinityDecoderConfig(
        hidden_size=sizes["embed_dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        unconditional_context_size=sizes["text_maxlen"],
        reference_grids=[[8, 8], [10, 5]],
        attn_implementation=request.param,
    )
    config.bind(VargptBSQConfig(schedules=[SQUARE.to_list(), TALL.to_list()], latent_channels=8))
    model = VargptInfinityDecoder(config).eval()
    weights = {}
    for name, tensor in released_v11_part("vargpt_gen.").items():
        ours = rename(name, INFINITY_NAMES)
        weights |= dict(adapt_infinity(ours, tensor, sizes["depth"] // sizes["block_chunks"])) if ours else {}
    start = golden_v11_json("config")["special"]["image_gen_start_token_id"]
    weights["condition_embedding"] = released_v11_weights()["sos_embedding.weight"][start : start + 1]
    model.load_state_dict(weights)
    return model


def context() -> tuple[torch.Tensor, torch.LongTensor]:
    """The golden contexts, 5 and 9 rows, padded to (2, 9, C), and their mask."""
    rows = golden_v11("decoder/ca_kv").split([5, 9])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([[1] * 5 + [0] * 4, [1] * 9])


@torch.no_grad()
def test_conditions_and_modulation(decoder):
    assert_close_to_v11("decoder/cond_uncond", decoder.conditions())
    assert_close_to_v11("decoder/cond_BD", decoder.conditions()[CONDITIONS])
    shared, _ = decoder._modulation(CONDITIONS)
    assert_close_to_v11("decoder/gss", shared)


@torch.no_grad()
def test_what_the_language_model_reads(decoder):
    inputs, expected = golden_v11("tokenizer/next_inputs"), golden_v11("decoder/x_BLC")
    assert (expected[:, 30:] == 0).all()  # padding of the released training, which nothing sees
    embeds = decoder.embed(inputs, CONDITIONS, SQUARE)
    torch.testing.assert_close(embeds, expected[:, :30], atol=4e-5, rtol=0)
    of_scales = [None, *inputs.split(SQUARE.areas[1:], dim=1)]
    singly = [decoder.embed_scale(part, CONDITIONS, scale, SQUARE) for scale, part in enumerate(of_scales)]
    torch.testing.assert_close(torch.cat(singly, dim=1), embeds)


def test_rotary_positions():
    cosines, sines = rotary_table(SQUARE, (8, 8), 32, 10000.0, torch.device("cpu"), torch.float32)
    assert_close_to_v11("decoder/rope_cos_sin", torch.stack([cosines, sines]))


@torch.no_grad()
def test_whole_images(decoder):
    outputs = []
    hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in decoder.layers]
    logits = decoder(golden_v11("decoder/dec_in"), CONDITIONS, SQUARE, *context())
    for hook in hooks:
        hook.remove()
    for index, output in enumerate(outputs):
        assert_close_to_v11(f"decoder/block_{index}_out", output)
    assert logits.shape == (2, 30, 8, 2)
    assert_close_to_v11("decoder/logits", logits.flatten(2))


@torch.no_grad()
def test_scale_by_scale_with_the_cache(decoder):
    state = decoder.begin(CONDITIONS, SQUARE, *context())
    logits = [decoder(part, CONDITIONS, SQUARE, state=state) for part in SQUARE.split(golden_v11("decoder/dec_in"))]
    assert_close_to_v11("decoder/logits_cached", torch.cat(logits, dim=1).flatten(2))


@torch.no_grad()
def test_another_aspect_ratio(decoder):
    rows = golden_v11("decoder/ca_kv")[None, :5]
    logits = decoder(golden_v11("decoder/rect.dec_in"), CONDITIONS[:1], TALL, rows, torch.ones(1, 5, dtype=torch.long))
    assert_close_to_v11("decoder/rect.logits", logits.flatten(2))


def test_compiling_breaks_no_graph(decoder):
    """The pass of training, of either schedule."""
    torch._dynamo.reset()
    compiled = torch.compile(decoder.forward, fullgraph=True, backend="eager")
    rows = golden_v11("decoder/ca_kv")[None, :5], torch.ones(1, 5, dtype=torch.long)
    for name, schedule in (("dec_in", SQUARE), ("rect.dec_in", TALL)):
        inputs = golden_v11(f"decoder/{name}")[:1], CONDITIONS[:1], schedule, *rows
        torch.testing.assert_close(compiled(*inputs), decoder(*inputs))


def test_a_schedule_that_the_decoder_does_not_have(decoder):
    with pytest.raises(ValueError, match="The decoder has no schedule"):
        decoder.config.reference_grid(ScaleSchedule.of([1, 2]))


@torch.no_grad()
def test_a_row_does_not_depend_on_the_context_of_others(decoder):
    rows, mask = context()
    together = decoder(golden_v11("decoder/dec_in"), CONDITIONS, SQUARE, rows, mask)
    turned = decoder(golden_v11("decoder/dec_in").flip(0), CONDITIONS, SQUARE, rows.flip(0), mask.flip(0))
    torch.testing.assert_close(turned.flip(0), together, atol=2e-5, rtol=1e-5)
    other = decoder(golden_v11("decoder/dec_in"), CONDITIONS, SQUARE, rows.flip(0), mask.flip(0))
    assert (other - together).abs().amax() > 1e-2  # the context matters


def test_unconditional_context_goes_on_beyond_its_rows(decoder):
    mask = torch.ones(1, 100, dtype=torch.long)
    source = decoder.unconditional_source(mask)
    assert torch.equal(source[0, :40], decoder.unconditional_context) and torch.equal(source[0, 40:80], decoder.unconditional_context)
    padded = decoder.unconditional_source(torch.tensor([[0, 0, 1, 1]]))
    assert torch.equal(padded[0, 2:], decoder.unconditional_context[:2])


def test_true_sizes_on_the_meta_device():
    config = VargptInfinityDecoderConfig(reference_grids=[[64, 64]])
    config.bind(VargptBSQConfig())
    with torch.device("meta"):
        model = VargptInfinityDecoder(config)
    millions = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in model.named_children()}
    assert config.intermediate_size == 8192
    assert round(millions["layers"] / 32, 2) == 67.15
    assert round(millions["shared_modulation"], 1) == 25.2 and round(millions["norm_modulation"], 1) == 8.4
    assert round(millions["head"], 2) == 0.13 and round(millions["token_embedding"], 2) == 0.07


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 3}, "divisible by its 3 attention heads"),
        ({"hidden_size": 12, "num_attention_heads": 2}, "the width of a head by 4"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"max_scales": 5}, "13 scales, but the decoder has 5 levels"),
        ({"reference_grids": [[1, 2], [3, 4]]}, "one .height, width. for each of 1 schedules"),
        ({"num_symbols": 1}, "`visual_decoder_config.num_symbols` is 1, but the image tokenizer has 32"),
    ],
)
def test_contradictions_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        VargptInfinityDecoderConfig(**fields).bind(VargptBSQConfig(schedules=[INFINITY_SIDES]))


def test_null_conditions_differ(decoder):
    with torch.no_grad():
        logits = decoder(golden_v11("decoder/dec_in"), torch.tensor([GENERATE_CONDITION, NULL_CONDITION]), SQUARE, *context())
        plain = decoder(golden_v11("decoder/dec_in"), CONDITIONS, SQUARE, *context())
    torch.testing.assert_close(logits[0], plain[0])
    assert (logits[1] - plain[1]).abs().amax() > 1e-2
