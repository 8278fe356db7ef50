"""The lmms-eval model against a small stand-in of lmms-eval's interface; test_lmms_eval.py runs the real one where it is installed."""

import json
import sys
import types

import pytest
import torch
from PIL import Image

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.evaluation import lmms_requests
from vargpt_hf.evaluation.lmms_setup import load_setup
from vargpt_hf.evaluation.paper import PAPER, lmms_command, paper_table, read_results
from vargpt_hf.peft import lora_config
from vargpt_hf.tiny import TINY_FOLDER, TINY_NAME
from vargpt_hf.tiny.digits import digit_image, load_split
from vargpt_hf.tiny.judges import detect


class Request:
    def __init__(self, *args):
        self.args = args


class StandIn:
    """What lmms-eval's base class gives a model."""

    def __init__(self):
        self.task_dict, self.kept = {}, []
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *entry: self.kept.append(entry))


@pytest.fixture(scope="module")
def lmms():
    """Our module on the stand-in."""
    modules = {name: types.ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model")}
    modules["lmms_eval.api.model"].lmms = StandIn
    before = {name: sys.modules.get(name) for name in (*modules, "vargpt_hf.evaluation.lmms_model")}
    sys.modules.update(modules)
    sys.modules.pop("vargpt_hf.evaluation.lmms_model", None)
    from vargpt_hf.evaluation import lmms_model

    yield lmms_model
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture(scope="module")
def digits():
    """Rows of real digits and what they are."""
    images, labels = load_split("test")
    return [{"image": digit_image(images[index]), "answer": str(labels[index])} for index in range(3)]  # which it reads correctly


def read(doc):
    return [{"role": "user", "content": [{"type": "image", "url": doc["image"]}, {"type": "text", "text": "which digit is this"}]}]


def test_answers_of_the_chat_interface(lmms, digits):
    model = lmms.VargptChat(pretrained=TINY_NAME, batch_size=2, device="cpu")
    model.task_dict = {"digits": {"test": digits}}
    asked = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}
    requests = [Request("context", read, asked, index, "digits", "test") for index in range(3)]
    alone = [{"role": "user", "content": "who are you"}]
    requests.insert(1, Request("context", lambda doc: alone, {}, 0, "digits", "test"))  # no image, other settings
    answers = model.generate_until(requests)
    assert [answers[index] for index in (0, 2, 3)] == [row["answer"] for row in digits] and answers[1] == "i am vargpt-tiny"
    assert len(model.kept) == 4 and model.kept[0][0] == "generate_until"
    with pytest.raises(ValueError, match="--force_simple"):
        model.loglikelihood([])


def test_the_simple_interface_gives_losses(lmms, digits):
    model = lmms.VargptSimple(pretrained=TINY_NAME, batch_size=2, device="cpu")
    model.task_dict = {"digits": {"test": digits}}
    assert lmms.VargptSimple.is_simple and not lmms.VargptChat.is_simple

    def visual(doc):
        return [doc["image"]]

    assert model.generate_until([Request("which digit is this", {}, visual, 1, "digits", "test")]) == [digits[1]["answer"]]
    choices = [digits[1]["answer"], "eleven", "i am vargpt-tiny"]
    found = model.loglikelihood([Request("which digit is this", choice, visual, 1, "digits", "test") for choice in choices])
    assert min(found)[0] == found[0][0] and found[0][1] and not found[1][1]
    (again,) = model.loglikelihood([Request("which digit is this", lambda doc: doc["answer"], visual, 1, "digits", "test")])
    assert again[0] == pytest.approx(found[0][0], rel=1e-2, abs=1e-5) and again[1]
    (alone,) = model.loglikelihood([Request("who are you", "i am vargpt-tiny")])
    assert alone[1] and alone[0] < found[2][0]
    with pytest.raises(ValueError, match="leave out --force_simple"):
        model.generate_until_multi_round([])


def test_a_loss_is_the_mean_over_the_tokens_of_the_answer():
    setup = load_setup(TINY_NAME, device="cpu")
    chat = lmms_requests.simple_chat("who are you", [])
    ((loss, greedy),) = lmms_requests.losses(setup.model, setup.processor, [chat], ["i am vargpt-tiny"])
    text = "USER: who are you ASSISTANT: i am vargpt-tiny" + setup.processor.tokenizer.eos_token
    ids = torch.tensor([setup.processor.tokenizer(text)["input_ids"]])
    prompt = len(setup.processor.tokenizer("USER: who are you ASSISTANT:")["input_ids"])
    labels = ids.clone()
    labels[:, :prompt] = -100
    with torch.no_grad():
        assert loss == pytest.approx(setup.model(input_ids=ids, labels=labels).loss.item(), rel=1e-4)
    assert greedy
    turns = [*chat, {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}, *chat]
    ((later, _),) = lmms_requests.losses(setup.model, setup.processor, [turns], ["i am vargpt-tiny"])
    assert later != pytest.approx(loss)  # of the last turn, with another context
    both = lmms_requests.losses(setup.model, setup.processor, [chat, turns], ["i am vargpt-tiny"] * 2)
    assert [one[0] for one in both] == pytest.approx([loss, later], rel=1e-3)


def test_rounds(lmms, digits):
    model = lmms.VargptChat(pretrained=TINY_NAME, device="cpu")
    model.task_dict = {"talk": {"test": [{}]}}

    def messages(doc, round_idx=None, previous_output=None, previous_round_info=None):
        said = ["who are you", "what comes after three"]
        if round_idx is None:
            return [{"role": "user", "content": said[0]}]
        if round_idx == 2:
            return None, True, previous_output, None
        turns = [
            {"role": "user", "content": said[0]},
            {"role": "assistant", "content": previous_output[0]},
            {"role": "user", "content": said[1]},
        ]
        return turns, False, previous_output, {"seen": round_idx}

    (rounds,) = model.generate_until_multi_round([Request("", messages, {"max_new_tokens": 16}, 0, "talk", "test")])
    assert len(rounds) == 2 and rounds[0] == "i am vargpt-tiny" and rounds[1]


@pytest.mark.parametrize("mode", ["image", "text_image"])
def test_drawings(lmms, mode, tmp_path):
    model = lmms.VargptChat(pretrained=TINY_NAME, batch_size=2, device="cpu", generation_mode=mode, output_dir=str(tmp_path), max_new_tokens=20)
    model.task_dict = {"draw": {"test": [{"prompt": "a red circle"}, {"prompt": "three orange squares"}]}}
    requests = [
        Request("", lambda doc: [{"role": "user", "content": doc["prompt"]}], {"max_new_tokens": 64}, index, "draw", "test")
        for index in range(2)
    ]
    answers = [json.loads(said) for said in model.generate_until(requests)]
    seen = [sorted((item.colour, item.shape) for item in detect(Image.open(answer["images"][0]))) for answer in answers]
    assert seen == [[("red", "circle")], [("orange", "square")] * 3]
    assert answers[0]["images"][0].startswith(str(tmp_path))


def test_an_adapter_is_merged(tmp_path):
    from peft import get_peft_model

    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32")
    adapted = get_peft_model(model, lora_config("understand", model))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path)
    loaded = load_setup(TINY_NAME, peft=str(tmp_path), dtype="float32", device="cpu")
    ids = torch.tensor([[1, 20, 21, 22]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits, atol=1e-2, rtol=1e-3)
    assert type(loaded.model) is VargptForConditionalGeneration


def test_weights_may_stay_as_they_are_stored():
    assert load_setup(TINY_NAME, dtype="mixed", device="cpu").model.get_input_embeddings().weight.dtype == torch.float16


def test_bad_arguments_are_named():
    for arguments, message in (
        ({"pretraind": "x"}, "no argument 'pretraind' in --model_args: do you mean 'pretrained'"),
        ({"batch_size": "auto"}, "batch size must be a whole number"),
        ({"generation_mode": "draw"}, "generation_mode must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            load_setup(**arguments)


def test_messages_become_chats():
    image = Image.new("RGB", (4, 4))
    messages = [
        {"role": "user", "content": [{"type": "image", "url": image}, {"type": "image", "url": "none.png"}, {"type": "text", "text": "two"}]}
    ]
    chat = lmms_requests.chat_of(messages, system="be short")
    assert chat[0] == {"role": "system", "content": [{"type": "text", "text": "be short"}]}
    assert chat[1]["content"] == [{"type": "image", "image": image}, {"type": "image", "image": "none.png"}, {"type": "text", "text": "two"}]
    with pytest.raises(ValueError, match="reads text and images only, and this task has video"):
        lmms_requests.chat_of([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])
    kinds = [part["type"] for part in lmms_requests.simple_chat("<image> and <image>?", [image, image])[0]["content"]]
    assert kinds == ["image", "text", "image", "text"]
    kinds = [part["type"] for part in lmms_requests.simple_chat("one <image>", [image, image])[0]["content"]]
    assert kinds == ["image", "image", "text"]


def test_settings_and_ends():
    settings, until = lmms_requests.settings_of({"temperature": 0, "top_p": 1.0, "until": "END", "image_aspect_ratio": "pad"}, 7)
    assert settings == {"max_new_tokens": 7, "do_sample": False} and until == ["END"]
    settings, until = lmms_requests.settings_of({"temperature": 0.7, "max_new_tokens": 3}, 7)
    assert settings == {"temperature": 0.7, "max_new_tokens": 3, "do_sample": True} and until == []
    assert lmms_requests.cut("one\n\ntwo END", ["END", "\n\n"]) == "one" and lmms_requests.cut("one", []) == "one"


def test_the_paper_s_table(tmp_path):
    (tmp_path / "model").mkdir()
    results = {
        "results": {
            "pope_adv": {"alias": "x", "pope_accuracy,none": 0.5},
            "mme": {"mme_perception_score,none": 1200.5, "mme_cognition_score,none": 3},
        }
    }
    (tmp_path / "model" / "20260101_results.json").write_text(json.dumps(results))
    found = read_results(tmp_path)
    page = paper_table(found, "mine")
    assert "| POPE, adversarial | pope_adv | 50 | 84.4 | 83.6 | 84.4 |" in page and "| MME | mme | 1200 | 1488.8 | 1480.1 | 1684.1 |" in page
    assert "| GQA | gqa |  | 62.3 | 61.2 | 66.2 |" in page and len(page.splitlines()) == len(PAPER) + 4
    command = lmms_command("./model", "bfloat16", "cuda", tmp_path, 8)
    tasks = command[command.index("--tasks") + 1].split(",")
    assert len(tasks) == 11 and "mme" not in tasks and "pretrained=./model,dtype=bfloat16" in command
    (tmp_path / "model" / "20260102_results.json").write_text("[]")
    with pytest.raises(ValueError, match="no file of lmms-eval's results"):
        read_results(tmp_path)
