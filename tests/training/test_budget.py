"""What training takes, worked out, against what torch counts and autograd keeps at small size."""

import pytest
import torch
from backbone_configs import backbone_config, reading_inputs
from peft import get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.modeling.visual_decoder_vargpt import VargptVisualDecoder
from vargpt_hf.peft import lora_config
from vargpt_hf.testing import tiny_config
from vargpt_hf.training.budget import estimate_budget
from vargpt_hf.training.optimizer import MuonWithAdamW, trained_matrices
from vargpt_hf.training.stages import apply_stage

ROWS, TEXT = 2, 40
TEXT_CONFIG = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
DECODER_CONFIG = {"hidden_size": 96, "num_attention_heads": 3}
VISION_CONFIG = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
GRIDS = {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 4}


def small_model(attention="sdpa", layers=3, kind="v1"):
    """Large enough that matrices outweigh what is not counted."""
    config = tiny_config()
    text = {**TEXT_CONFIG, "num_hidden_layers": layers}
    decoder = {**DECODER_CONFIG, "num_hidden_layers": layers}
    if kind == "v1":
        vlm = config.vlm_config.to_dict()
        vlm |= {"text_config": {**config.text_config.to_dict(), **text}, "vision_config": {**config.vision_config.to_dict(), **VISION_CONFIG}}
        config = tiny_config(vlm_config={**vlm, "image_seq_length": 16}, visual_decoder_config=decoder)
    else:
        vlm = backbone_config("qwen2_vl")
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}
        text = {**vlm["text_config"], **text, "rope_parameters": rope}
        config = tiny_config(
            vlm_config={**vlm, "text_config": text, "vision_config": {**vlm["vision_config"], **GRIDS}},
            image_tokenizer_config={"model_type": "vargpt_bsq", **config.image_tokenizer_config.to_diff_dict(), **BSQ},
            visual_decoder_config={"model_type": "vargpt_infinity_decoder", "drop_path_rate": 0.0, **decoder},
            plain_positions=True,
        )
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(config).train()
    model.set_attn_implementation(attention)
    return model


BSQ = {"schedules": [[1, 2, 4]], "latent_channels": 16, "base_channels": 8, "channel_multipliers": (1, 1, 2), "norm_num_groups": 4}


def tokens_of_an_image(config):
    """Of one to read."""
    return getattr(config.vlm_config, "image_seq_length", None) or 6


def batch(config, reads=True, draws=True):
    """Rows of text, in which an image may be read and one drawn at the end; no padding."""
    generator = torch.Generator().manual_seed(0)
    num_codes = config.schedules[0].num_positions
    ids = []
    for _ in range(ROWS):
        row = [config.image_token_id] * (tokens_of_an_image(config) * reads) + torch.randint(3, 50, (TEXT,), generator=generator).tolist()
        drawing = [config.output_image_start_token_id, *[config.output_image_token_id] * num_codes, config.output_image_end_token_id]
        ids.append(row + drawing * draws)
    ids = torch.tensor(ids)
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    if reads and hasattr(config.vlm_config, "image_seq_length"):
        inputs["pixel_values"] = torch.randn(ROWS, 3, 32, 32, generator=generator)
    elif reads:
        inputs |= reading_inputs("qwen2_vl", ids)
    if draws:
        inputs["output_image_codes"] = torch.randint(24, (ROWS, num_codes), generator=generator)
    return inputs


def kept_bytes(model, inputs):
    """Bytes of all storages that autograd keeps in a forward pass, weights and what is given left out."""
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *inputs.values())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(**inputs, use_cache=False)
    assert outputs.loss is not None
    return sum(size for size, _ in kept.values())


STAGES = {"v1": ["stage1", "stage2", "stage3"], "v1.1": ["v1_1_stage1", "v1_1_stage2", "v1_1_stage3", "v1_1_stage5"]}
STAGES = [(kind, stage) for kind, stages in STAGES.items() for stage in stages]
KINDS = [(True, True), (True, False), (False, True)]


def budget(model, reads=True, draws=True, **options):
    """The estimate for `batch`, in float32."""
    length = batch(model.config, reads, draws)["input_ids"].shape[1]
    images = {"images_to_read": int(reads), "images_to_draw": int(draws)}
    images["image_tokens"] = tokens_of_an_image(model.config)
    return estimate_budget(model, batch_size=ROWS, sequence_length=length, **images, **{"bf16": False, **options})


def counted_flops(model, inputs):
    """What torch counts in a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        loss = model(**inputs, use_cache=False).loss
        if loss.requires_grad:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind, stage", STAGES)
@pytest.mark.parametrize("reads, draws", KINDS)
def test_flops_are_those_that_torch_counts(kind, stage, reads, draws):
    model = small_model("eager", kind=kind)  # torch does not count what is inside CPUs' fused attention
    apply_stage(model, stage)
    inputs = batch(model.config, reads, draws)
    assert budget(model, reads, draws).flops == pytest.approx(counted_flops(model, inputs), rel=1e-3)


@pytest.mark.parametrize("kind, stage", STAGES)
@pytest.mark.parametrize("reads, draws", [*KINDS, (False, False)])
def test_flops_of_checkpointing(kind, stage, reads, draws):
    model = small_model("eager", kind=kind)
    apply_stage(model, stage)
    model.activation_checkpointing_enable()
    found = budget(model, reads, draws, gradient_checkpointing=True)
    assert found.flops + found.recomputed_flops == pytest.approx(counted_flops(model, batch(model.config, reads, draws)), rel=0.02)
    assert 0.2 < found.recomputed_flops / found.flops < 0.6


def test_flops_of_lora():
    model = get_peft_model(small_model("eager"), lora_config("all", r=8, lora_dropout=0.0))
    assert budget(model).flops == pytest.approx(counted_flops(model, batch(model.config)), rel=0.03)


@pytest.mark.parametrize("kind, stage", STAGES)
@pytest.mark.parametrize("reads, draws", KINDS)
def test_activations_are_near_those_that_autograd_keeps(kind, stage, reads, draws):
    model = small_model(kind=kind)
    apply_stage(model, stage)
    kept = kept_bytes(model, batch(model.config, reads, draws))
    found = budget(model, reads, draws).activations
    assert kept / 1.2 <= found <= kept * 1.2


def test_activations_of_lora():
    model = get_peft_model(small_model(), lora_config("all", r=8, lora_dropout=0.0))
    kept = kept_bytes(model, batch(model.config))
    assert kept / 1.2 <= budget(model).activations <= kept * 1.2


@pytest.mark.parametrize("kind, stage", STAGES)
def test_activations_of_checkpointing(kind, stage):
    model = small_model(layers=8, kind=kind)
    apply_stage(model, stage)
    model.activation_checkpointing_enable()
    kept, found = kept_bytes(model, batch(model.config)), budget(model, gradient_checkpointing=True)
    assert kept / 1.2 <= found.activations <= kept * 1.2
    assert found.transient > 0 and found.activations + found.transient < budget(model).activations


@pytest.mark.parametrize("muon", [False, True])
def test_states_are_those_of_the_optimizer(muon):
    model = small_model()
    trained = apply_stage(model, "stage3")
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = trained_matrices(model) if muon else []
    others = [p for p in parameters if not any(p is matrix for matrix in matrices)]
    optimizer = MuonWithAdamW(matrices, others, lr=1e-3, weight_decay=0.0) if muon else torch.optim.AdamW(parameters)
    model(**batch(model.config)).loss.backward()
    optimizer.step()
    states = sum(t.numel() * t.element_size() for state in optimizer.state.values() for name, t in state.items() if name != "step")
    found = budget(model, muon=muon)
    assert (found.trained_parameters, found.frozen_parameters) == (trained, model.num_parameters() - trained)
    assert (found.optimizer, found.gradients) == (states, sum(p.grad.nbytes for p in parameters))
    assert found.weights == sum(p.nbytes for p in model.parameters())
    assert found.memory == found.weights + found.gradients + found.optimizer + found.activations + found.transient


def test_sharding_divides_what_belongs_to_weights():
    model = small_model()
    apply_stage(model, "stage2")
    alone, sharded = budget(model, bf16=True), budget(model, bf16=True, num_processes=4, sharded=True)
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(sharded, name) == pytest.approx(getattr(alone, name) / 4, abs=1)
    assert (sharded.activations, sharded.flops, sharded.rows) == (alone.activations, 4 * alone.flops, 4 * alone.rows)
    assert alone.working == 2 * alone.trained_parameters and 0 < sharded.working < 2 * model.num_parameters()
    assert alone.hours(1000, 1e12, 0.5) == pytest.approx(1000 / ROWS * alone.flops / 0.5e12 / 3600)
    assert sharded.hours(1000, 1e12, 0.5) == pytest.approx(alone.hours(1000, 1e12, 0.5) / 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 30, "images_to_draw": 2}, r"A row of 30 tokens has no room for its images, which take 46"),
        ({"sequence_length": 30, "batch_size": 0}, "must be at least 1"),
        ({"sequence_length": 30, "images_to_read": -1}, "images at least 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        estimate_budget(small_model(), **{"batch_size": 1, **options})


class HeadDecoder(VargptVisualDecoder):
    """A decoder of one's own, of a head alone."""

    def __init__(self, config):
        super().__init__(config)
        self.start = nn.Embedding(2, config.hidden_size)
        self.embed_inputs = nn.Linear(config.latent_channels, config.hidden_size)
        self.scores = nn.Linear(config.hidden_size, config.num_symbols * config.num_classes)

    @property
    def embedding_modules(self):
        return [self.embed_inputs]

    def embed_scale(self, inputs, condition_ids, scale, schedule):
        raise NotImplementedError

    def embed(self, inputs, condition_ids, schedule):
        return torch.cat([self.start(condition_ids)[:, None], self.embed_inputs(inputs)], dim=1)

    def begin(self, condition_ids, schedule, context=None, context_mask=None):
        raise NotImplementedError

    def forward(self, hidden_states, condition_ids, schedule, context=None, context_mask=None, state=None):
        return self.scores(hidden_states).unflatten(-1, (self.config.num_symbols, self.config.num_classes))


def test_a_decoder_of_ones_own_is_counted():
    model = small_model("eager")
    config = model.config.visual_decoder_config
    model.model.visual_decoder = HeadDecoder(config)
    model.requires_grad_(True)
    model.model.image_tokenizer.requires_grad_(False)
    model.model.vlm.vision_tower.requires_grad_(False)
    assert budget(model).flops == pytest.approx(counted_flops(model, batch(model.config)), rel=1e-3)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="must be a VargptForConditionalGeneration"):
        estimate_budget(torch.nn.Linear(1, 1), batch_size=1, sequence_length=1)
