import json

import pytest
import torch

from vargpt_hf import VargptConfig, VargptForConditionalGeneration, VargptVARDecoderConfig, VargptVQConfig
from vargpt_hf.modeling.scales_vargpt import ScaleSchedule
from vargpt_hf.testing import tiny_config


def test_paper_sizes_on_the_meta_device():
    with torch.device("meta"):
        model = VargptForConditionalGeneration(VargptConfig.v1())
    parts = {**dict(model.model.named_children()), **dict(model.model.vlm.named_children())}
    sizes = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    assert sizes["language_model"] == 6_607_605_760  # Vicuna-7B with 32064 token embeddings, without its head
    assert 2.0e9 < sizes["visual_decoder"] < 2.02e9
    assert sizes["image_tokenizer"] == pytest.approx(109e6, rel=0.01)
    assert sizes["vision_tower"] == pytest.approx(0.303e9, rel=0.01)
    assert model.config.schedules[0].num_positions == 680
    assert model.config.vlm_config.image_seq_length == 576


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (VargptVQConfig, {"schedules": [(1, 4, 2, 16)]}, r"smaller than the one before; got \(\(1, 1\), \(4, 4\), \(2, 2\), \(16, 16\)\)"),
        (VargptVQConfig, {"schedules": [(1, 2.5)]}, "both whole numbers; got 2.5"),
        (VargptVQConfig, {"schedules": []}, "must be a list of one or more lists of scales"),
        (VargptConfig, {"visual_decoder_config": {"schedules": [[1, 2, 3]]}}, r"`visual_decoder_config.schedules` is \[\[1, 2, 3\]\], but"),
        (VargptVQConfig, {"base_channels": 100}, "divisible by norm_num_groups=32"),
        (VargptVQConfig, {"residual_conv_ratio": 1.5}, r"must be in \[0, 1\], got 1.5"),
        (VargptVARDecoderConfig, {"hidden_size": 100}, "hidden_size 100 is not divisible by its 30"),
        (VargptVARDecoderConfig, {"condition_dropout": 1.0}, r"`condition_dropout` must be in \[0, 1\), got 1.0"),
        (VargptConfig, {"output_image_start_token_id": 40_000}, "`output_image_start_token_id` is 40000, beyond the vocabulary of 32064"),
        (VargptConfig, {"output_image_start_token_id": 32_003}, "must differ from one another"),
        (VargptConfig, {"image_loss_weight": -1.0}, r"`image_loss_weight` must be in \[0, inf\), got -1.0"),
        (VargptConfig, {"image_scale_power": -1.0}, r"`image_scale_power` must be in \[0, inf\)"),
        (VargptConfig, {"vlm_config": {"model_type": "llava", "image_seq_length": 0}}, "`vlm_config.image_seq_length` must be from 1 to"),
        (VargptConfig, {"vlm_config": {"model_type": "lava"}}, "`vlm_config.model_type` is 'lava', which is none that Transformers .* knows"),
        (VargptConfig, {"text_config": {"model_type": "llama"}}, "`text_config` belongs into `vlm_config`"),
        (VargptConfig, {"image_seq_length": 576}, "`image_seq_length` belongs into `vlm_config`"),
        (VargptConfig, {"image_token_id": 5}, "`image_token_id` belongs into `vlm_config`"),
    ],
)
def test_contradictions_raise(config_class, fields, message):
    with pytest.raises(ValueError, match=message):
        config_class(**fields)


def test_a_configuration_that_is_given_stays_as_it_was():
    """So that one may stand in several models."""
    decoder = VargptVARDecoderConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    before, fields = decoder.to_dict(), tiny_config().image_tokenizer_config.to_dict()
    for schedules in ([[1, 2, 4]], ((1, 2, 4, 8),)):
        config = VargptConfig(image_tokenizer_config={**fields, "schedules": schedules}, visual_decoder_config=decoder)
        assert [list(each) for each in config.visual_decoder_config.schedules] == [list(each) for each in schedules]
    assert decoder.to_dict() == before


def test_schedules_may_be_tuples():
    """Whatever sequences they are given as, they are the same."""
    fields = tiny_config().to_dict()
    for tokenizer, decoder in (([[1, 2, 4]], ((1, 2, 4),)), (((1, 2, 4),), [[1, 2, 4]])):
        given = {
            "image_tokenizer_config": {**fields["image_tokenizer_config"], "schedules": tokenizer},
            "visual_decoder_config": {**fields["visual_decoder_config"], "schedules": decoder},
        }
        assert len(VargptConfig(**{**fields, **given}).schedules) == 1


def test_round_trip(tmp_path):
    config = tiny_config(image_loss_weight=3.0)
    config.save_pretrained(tmp_path)
    loaded = VargptConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.schedules == (ScaleSchedule.of((1, 2, 4)),)
    assert loaded.visual_decoder_config.drop_path_rate == config.visual_decoder_config.drop_path_rate


def test_widths_of_the_language_model_are_checked_by_transformers():
    with pytest.raises(Exception, match="not a multiple of the number of attention heads"):
        VargptConfig(vlm_config={"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": 100, "vocab_size": 33_000}})


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", [[], "int8", {}, 3, "flaot32"], ids=repr)
@pytest.mark.parametrize("part", ["vlm_config", "vlm_config.text_config", "visual_decoder_config", ""])
def test_weights_have_a_floating_point_format(part, value, name):
    """Which Transformers takes for granted in the configurations of its own models."""
    config = json.loads(tiny_config().to_json_string(use_diff=False))
    holder = config
    for step in filter(None, part.split(".")):
        holder = holder[step]
    holder[name] = value
    with pytest.raises(ValueError, match=rf"`{'.'.join(filter(None, [part if 'vlm' in part else '', name]))}` must be a floating-point type"):
        VargptConfig.from_dict(config)
