"""LoRA on the parts of the model: what the presets train, saving, merging, switching, quantized bases."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbone_configs import FAMILIES, backbone_config
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PeftModelForCausalLM, get_peft_model, prepare_model_for_kbit_training
from quantisers import QUANTISERS
from safetensors.torch import load_file
from torch import nn
from transformers import pipeline
from transformers.dynamic_module_utils import get_imports

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.modeling import adapters_vargpt
from vargpt_hf.peft import PRESETS, lora_config, unquantized_modules
from vargpt_hf.testing import tiny_model
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.rows import rows
from vargpt_hf.training.collator import VargptDataCollator
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

READS, DRAWS = [60] * 4, [61, *[63] * 21, 62]
PROJECTORS = ("projector_to_llm", "projector_to_decoder")
# Of each preset: modules whose linear layers get adapters, modules that are fully trained.
WANTED = {
    "understand": (("vlm.language_model",), ("vlm.multi_modal_projector",)),
    "draw": (("visual_decoder",), (*PROJECTORS, "visual_decoder.head")),
    "all": (("vlm.language_model", "visual_decoder"), ("vlm.multi_modal_projector", *PROJECTORS, "visual_decoder.head")),
}


def inputs() -> dict[str, torch.Tensor]:
    """One row that reads an image and draws one."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 5, *READS, 7, *DRAWS, 9, 2]])
    pixels, codes = torch.randn(1, 3, 16, 16, generator=generator), torch.randint(0, 24, (1, 21), generator=generator)
    return {"input_ids": ids, "labels": ids, "pixel_values": pixels, "output_image_codes": codes}


@torch.no_grad()
def results(model) -> tuple[torch.Tensor, ...]:
    """Logits of text and codes, and the codes of an image drawn greedily."""
    model.eval()
    output = model(**inputs())
    prompt = {"input_ids": torch.tensor([[1, 5, *READS, 7]]), "pixel_values": inputs()["pixel_values"]}
    drawn = model.generate(**prompt, generation_mode="image", do_sample=False, max_new_tokens=2, return_dict_in_generate=True)
    return output.logits, output.output_image_logits, drawn.output_image_codes


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second))


def close(first, second) -> bool:
    return all(torch.allclose(a.float(), b.float(), atol=1e-4, rtol=1e-4) for a, b in zip(first, second))


def trained(model) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def shaken(model, seed: int = 1):
    """The model with everything that is trained changed, as after training: fresh adapters do nothing."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def linears(model) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def inside(name: str, modules) -> bool:
    return any(f"{name}.".startswith(f"model.{module}.") for module in modules)


def adapted(model) -> set[str]:
    """Names, in the plain model, of the layers that have adapters."""
    return {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trained(model) if ".lora_" in name}


def whole(model) -> set[str]:
    """Names, in the plain model, of the parameters that are fully trained."""
    names = (name.removeprefix("base_model.model.") for name in trained(model) if ".lora_" not in name)
    return {name.replace(".modules_to_save.default", "") for name in names}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_exactly_its_modules(preset, tied):
    plain = tiny_model(tie_word_embeddings=tied)
    adapts, trains = WANTED[preset]
    linear_names = {name for name in linears(plain) if inside(name, adapts) and not inside(name, trains)}
    whole_names = {name for name, _ in plain.named_parameters() if inside(name, trains)}
    assert len(linear_names) == {"understand": 14, "draw": 16, "all": 30}[preset]
    model = get_peft_model(plain, lora_config(preset))
    assert adapted(model) == linear_names
    assert whole(model) == whole_names
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_follow_the_backbone(family, preset):
    """Only the linear layers of the backbone's language model get adapters; its projector, if it has one, is fully trained."""
    plain = tiny_model(vlm_config=backbone_config(family))
    backbone, names = plain.model.backbone, {module: name for name, module in plain.named_modules()}
    llm = {names[module] for module in backbone.decoder.modules() if isinstance(module, nn.Linear)}
    projectors = {f"model.vlm.{name}." for name in backbone.projector_names}
    assert bool(projectors) == backbone.reads_images and llm
    drawing = {name for name in linears(plain) if inside(name, WANTED["draw"][0]) and not inside(name, WANTED["draw"][1])}
    kept = unquantized_modules(model=plain)
    assert {name for name in linears(plain) if not any(f"{name}.".startswith(f"{start}.") for start in kept)} == llm
    parameters = [name for name, _ in plain.named_parameters()]
    model = get_peft_model(plain, lora_config(preset, plain))
    assert adapted(model) == (llm if preset != "draw" else set()) | (drawing if preset != "understand" else set())
    read = {name for name in parameters if name.startswith(tuple(projectors))} if projectors else set()
    drawn = {name for name in parameters if inside(name, WANTED["draw"][1])}
    assert whole(model) == (read if preset != "draw" else set()) | (drawn if preset != "understand" else set())


def test_an_unknown_preset_is_named():
    for function in (lora_config, unquantized_modules):
        with pytest.raises(ValueError, match="no preset 'paint'; the presets are understand, draw, all"):
            function("paint")


def test_overrides_stay_inside_the_preset():
    config = lora_config("draw", r=3, use_dora=True, target_modules=["q_proj", "v_proj"])
    assert (config.r, config.lora_alpha, config.use_dora) == (3, 32, True)
    model = get_peft_model(tiny_model(), config)
    assert adapted(model) == {f"model.visual_decoder.layers.{n}.self_attn.{kind}_proj" for n in (0, 1) for kind in "qv"}
    plain = tiny_model()
    wanted = {name for name in linears(plain) if inside(name, ("visual_decoder", *PROJECTORS))}
    model = get_peft_model(plain, lora_config("draw", modules_to_save=None))
    assert adapted(model) == wanted and not whole(model)


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (r"model\.vlm\.language_model\..*_proj", ("vlm.language_model",)),
        (r"model\.visual_decoder\..*(_proj|fc\d|modulation|embedding|head)", ("visual_decoder",)),
        (["fc1", "fc2", "linear_1", "linear_2"], ("vlm.multi_modal_projector", *PROJECTORS)),
    ],
)
def test_plain_target_modules(targets, parts):
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=targets))
    before = results(model)
    assert all(any(inside(name, [part]) for name in adapted(model)) for part in parts)
    assert not close(results(shaken(model)), before)


def test_every_linear_map_is_reached():
    """No layer's weight is used past the layer: each adapter gets a gradient from one row, and changes the result."""
    plain = tiny_model()
    wanted = {name for name in linears(plain) if inside(name, [*WANTED["all"][0], *WANTED["all"][1]])}
    model = shaken(get_peft_model(plain, lora_config("all", modules_to_save=None)))
    assert adapted(model) == wanted
    model.eval()(**inputs()).loss.backward()
    unreached = {name for name, parameter in trained(model).items() if parameter.grad is None or not parameter.grad.any()}
    assert not unreached


def test_adapters_of_the_condition_are_reached():
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["condition_embedding"]))
    decoder = model.base_model.model.model.visual_decoder
    before = decoder.modulations(torch.arange(2))
    shaken(model)
    assert not torch.equal(decoder.modulations(torch.arange(2))[0][0], before[0][0])


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_saved_adapter_holds_all_that_was_trained(preset, dora, tmp_path):
    base = results(tiny_model())
    model = shaken(get_peft_model(tiny_model(), lora_config(preset, use_dora=dora)))
    wanted = results(model)
    assert not close(wanted[1], base[1])
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == len(trained(model))
    assert same(results(PeftModel.from_pretrained(tiny_model(), tmp_path)), wanted)


@pytest.mark.parametrize("dora", [False, True])
def test_merging_and_unloading(dora):
    base = results(tiny_model())
    model = shaken(get_peft_model(tiny_model(), lora_config("all", use_dora=dora)))
    wanted = results(model)
    with model.disable_adapter():
        assert same(results(model), base)
    model.merge_adapter()
    assert close(results(model)[:2], wanted[:2])
    model.unmerge_adapter()
    assert close(results(model)[:2], wanted[:2])
    merged = model.merge_and_unload()
    assert type(merged) is VargptForConditionalGeneration and set(merged.state_dict()) == set(tiny_model().state_dict())
    merged_results = results(merged)
    assert close(merged_results[:2], wanted[:2]) and torch.equal(merged_results[2], wanted[2])


def test_two_adapters_switched_per_call(tmp_path):
    """Adapters that train different modules, and one that trains the same modules as another."""
    wanted, configs = {"base": results(tiny_model())}, {"draws": "draw", "reads": "understand", "draws otherwise": "draw"}
    for seed, (name, preset) in enumerate(configs.items()):
        alone = shaken(get_peft_model(tiny_model(), lora_config(preset)), seed)
        wanted[name] = results(alone)
        alone.save_pretrained(tmp_path / name)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "draws", adapter_name="draws")
    model.load_adapter(tmp_path / "reads", "reads")
    model.load_adapter(tmp_path / "draws otherwise", "draws otherwise")
    for name in [*configs, "draws"]:
        model.set_adapter(name)
        assert same(results(model), wanted[name])
        assert not any(close(wanted[name], other) for key, other in wanted.items() if key != name)
    with model.disable_adapter():
        assert same(results(model), wanted["base"])
    assert same(results(model), wanted["draws"])


def test_adapters_by_transformers(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    base, wanted = results(tiny_model()), {}
    model = VargptForConditionalGeneration.from_pretrained(tmp_path / "base")
    for seed, preset in enumerate(("draw", "understand")):
        model.add_adapter(lora_config(preset), adapter_name=preset)
        wanted[preset] = results(shaken(model, seed))
        assert model.active_adapters() == [preset] and all(f".{preset}." in name for name in trained(model))
        model.save_pretrained(tmp_path / preset)
        loaded = VargptForConditionalGeneration.from_pretrained(tmp_path / preset)  # the base's folder is noted in the adapter's
        assert same(results(loaded), wanted[preset])
    assert not close(wanted["draw"], wanted["understand"]) and not close(wanted["draw"], base)
    model.set_adapter("draw")
    assert same(results(model), wanted["draw"])
    model.disable_adapters()
    assert same(results(model), base)
    model.enable_adapters()
    assert same(results(model), wanted["draw"])
    model.set_adapter("understand")
    assert same(results(model), wanted["understand"])
    with pytest.raises(ValueError, match="Adapters to set: paint; adapters there are: draw, understand"):
        model.set_adapter("paint")
    with pytest.raises(ValueError, match="Adapters to set: draw; adapters there are: none"):
        tiny_model().set_adapter("draw")


def test_tied_embeddings_are_trained_tied(tmp_path):
    def base():
        return tiny_model(tie_word_embeddings=True)

    config = lora_config("understand", modules_to_save=["multi_modal_projector", "embed_tokens"], ensure_weight_tying=True)
    model = shaken(get_peft_model(base(), config))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    wanted = results(model)
    model.save_pretrained(tmp_path)
    assert same(results(PeftModel.from_pretrained(base(), tmp_path)), wanted)
    merged = model.merge_and_unload()
    assert merged.get_input_embeddings().weight is merged.lm_head.weight
    assert close(results(merged)[:2], wanted[:2])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_trainer_changes_the_adapter_alone(preset, tmp_path):
    data = Dataset.from_list(list(rows({"draw_and_say": 1.0, "read_digit": 1.0}, 4, seed=0)))
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32")
    arguments = VargptSFTConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="no",
        disable_tqdm=True,
    )
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    trainer = VargptSFTTrainer(model, arguments, train_dataset=data, processing_class=processor, peft_config=lora_config(preset))
    fresh = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, fresh[name])}
    assert changed <= set(trained(trainer.model)) and len(changed) > 0.95 * len(trained(trainer.model))
    trainer.save_model()
    inputs = VargptDataCollator(processor)(list(data))
    loaded = PeftModel.from_pretrained(VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32"), tmp_path)
    with torch.no_grad():
        losses = [model.eval()(**inputs).loss for model in (loaded, trainer.model)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("quantiser", ["bitsandbytes, 4 bits", "torchao, 8 bits"])
def test_qlora(quantiser):
    """A quantized base still draws, only what is adapted learns, and it does learn."""
    settings = QUANTISERS[quantiser]
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    batch = VargptDataCollator(processor)(list(rows({"draw_and_say": 1.0, "read_digit": 1.0}, 4, seed=0)))
    plain = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32")
    quantised = VargptForConditionalGeneration.from_pretrained(
        TINY_FOLDER, dtype="float32", quantization_config=settings(unquantized_modules("all"))
    )
    with torch.no_grad():  # in training mode: on CPUs, bitsandbytes repacks weights in evaluation mode so that they cannot be trained
        losses = []
        for model in (plain, quantised):
            model.train().config.visual_decoder_config.condition_dropout = 0.0
            losses.append(model(**batch).loss)
    assert type(quantised.model.visual_decoder.layers[0].mlp.fc1.weight) is not nn.Parameter
    assert 0 < abs(losses[1] - losses[0]) < 0.2 * losses[0]
    model = get_peft_model(prepare_model_for_kbit_training(quantised), lora_config("all"))
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-3)
    losses = []
    for _ in range(8):
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_the_package_does_without_peft():
    done = subprocess.run([sys.executable, "-c", "import sys; sys.modules['peft'] = None; import vargpt_hf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "peft" not in get_imports(Path(adapters_vargpt.__file__))  # nor does a repository that carries the code


def adapter_folder(tmp_path, base: str, **options):
    """An adapter of a model in the folder `base`, saved by PEFT, and the model that has it."""
    model = VargptForConditionalGeneration.from_pretrained(base, dtype="float32")
    model = shaken(get_peft_model(model, lora_config("draw", **options)))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_peft_and_pipelines_load_what_was_saved(tmp_path):
    VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").save_pretrained(tmp_path / "base")
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    processor.save_pretrained(tmp_path / "base")
    folder, model = adapter_folder(tmp_path, str(tmp_path / "base"))
    assert isinstance(model, PeftModelForCausalLM)
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="float32")
    weights, wanted = loaded.state_dict(), model.state_dict()
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())
    pipe = pipeline("any-to-any", model=str(folder), dtype="float32")
    settings = {"generation_mode": "image", "generate_kwargs": {"do_sample": False, "max_new_tokens": 2}}
    (answer,) = pipe([{"role": "user", "content": "draw a red circle"}], **settings)
    (expected,) = model.base_model.model.eval().as_pipeline(processor)([{"role": "user", "content": "draw a red circle"}], **settings)
    assert answer["generated_image"].tobytes() == expected["generated_image"].tobytes()


@pytest.mark.parametrize("by", ["peft", "peft, named", "transformers"])
def test_a_saved_adapter_has_our_card_and_no_path_of_this_machine(tmp_path, by, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "secret place" / "base"
    tiny_model().save_pretrained(base)
    model = VargptForConditionalGeneration.from_pretrained(base)
    if by == "transformers":
        model.add_adapter(lora_config("draw"))
        model.save_pretrained(tmp_path / "adapter")
    else:
        get_peft_model(model, lora_config("draw"), adapter_name="drawer" if "named" in by else "default").save_pretrained(tmp_path / "adapter")
    texts = {path: path.read_text() for path in (tmp_path / "adapter").rglob("*") if path.suffix in (".md", ".json")}
    assert {path.name for path in texts} >= {"README.md", "adapter_config.json"}
    for path, text in texts.items():
        assert str(base) not in text, path
        if path.name == "README.md":
            assert all(words in text for words in ("preset `draw`", "`base`, a folder", "PeftModel.from_pretrained")) and "secret" not in text
            assert ModelCard(text).data.base_model is None
        elif path.name == "adapter_config.json":
            assert not Path(json.loads(text)["base_model_name_or_path"]).is_absolute()


def test_the_card_names_a_base_of_the_hub_by_its_id(tmp_path):
    model = tiny_model()
    model.name_or_path = "someone/vargpt-7b-2b"
    get_peft_model(model, lora_config("all", r=4)).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert (
        card.data.base_model == "someone/vargpt-7b-2b" == json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    )
    assert 'from_pretrained("someone/vargpt-7b-2b")' in card.text and "preset `all`" in card.text and "rank 4" in card.text


def test_a_checkpoint_leaves_the_card_of_its_run_alone(tmp_path):
    """As it does that of a model in whose folder an adapter is saved."""
    base = tiny_model()
    model, words = get_peft_model(base, lora_config("draw", base)), "It has been trained using [TRL]"
    for folder in ("run", "model"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text(words)
    (tmp_path / "model" / "config.json").write_text("{}")
    for place in ("run/checkpoint-5", "model/adapter"):
        model.save_pretrained(tmp_path / place)
        assert (tmp_path / place).parent.joinpath("README.md").read_text() == words and (tmp_path / place / "README.md").exists()


def test_a_card_that_someone_wrote_is_kept(tmp_path):
    model = tiny_model()
    model.config._name_or_path = model.name_or_path = str(tmp_path / "base")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\nMy own words.\n")
    get_peft_model(model, lora_config("draw")).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "My own words." in card.text and card.data.license == "mit" and str(tmp_path) not in (tmp_path / "README.md").read_text()
