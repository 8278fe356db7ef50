"""The benchmarks count rightly, run at a micro size and say what they found; nothing here is timed."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as command
from benchmarks import cases as cases_module
from benchmarks import measure as measure_module
from benchmarks import sizes as sizes_module
from benchmarks.cases import CASES
from benchmarks.costs import Costs
from benchmarks.floors import bandwidths, floor_seconds, matrix_rates
from benchmarks.host import HOST, importing, loading, processing
from benchmarks.measure import measure
from benchmarks.peers import PEERS, emu3, janus
from benchmarks.sizes import IMAGE_TOKENS, config_of, model_of
from vargpt_hf.operations import ATTENTION


def attention_flops(query, key, value, *args, **kwargs):
    """For the one attention that torch's counter does not know."""
    batch, heads, queries, channels = query
    return ATTENTION * batch * heads * queries * key[2] * channels


UNKNOWN = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}


@pytest.mark.parametrize("size", ["micro", "micro-v1.1"])
@pytest.mark.parametrize("name", CASES)
def test_operations_are_those_that_torch_counts(name, size):
    model = model_of(size)
    model.set_attn_implementation("eager")
    work = CASES[name].prepare(model)
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
        work()
    counted = CASES[name].cost(Costs(model.config, 4)).flops
    if name == "mixed":  # rows that wait take part in the calls of the others
        assert counted < counter.get_total_flops() < 2 * counted
    else:
        assert counted == counter.get_total_flops()


@pytest.mark.parametrize("size", ["micro", "micro-v1.1"])
def test_weights_are_all_that_draws(size):
    model = model_of(size)
    backbone = model.model.backbone
    idle = [model.model.vlm.get_submodule(name) for name in {name.split(".")[0] for name in backbone.tower_names + backbone.projector_names}]
    weights = sum(p.numel() for p in model.parameters()) - sum(p.numel() for part in idle for p in part.parameters())
    small = sum(p.numel() for p in model.parameters() if p.ndim == 1)  # biases and norms, which the count leaves out
    counted = Costs(model.config, 4).weights_bytes() / 4
    assert 0.8 * (weights - small) < counted <= weights


@pytest.mark.parametrize("name", ["draw-4-guided", "train"])
def test_a_case_is_measured(name):
    result = measure("case", name=name, size="micro", dtype="float32", device="cpu", seconds=0)
    assert all(seconds > 0 for seconds in result["seconds"])
    assert result["peak"] >= result["loaded"] >= 0 and result["flops"] > 0 and result["bytes"] > 0


def test_rates_and_floors():
    rates, speeds = matrix_rates(torch.float32, side=64), bandwidths(size=2**20)
    assert min(rates.values()) > 0 and min(speeds.values()) > 0
    cost = CASES["text"].cost(Costs(config_of("micro"), 4))
    assert floor_seconds(cost, 1e30, 1.0) == cost.bytes and floor_seconds(cost, 1.0, 1e30) == cost.flops


@pytest.mark.parametrize("peer", [janus, emu3])
def test_peers_draw(peer):
    config = config_of("micro")
    config.image_tokenizer_config.base_channels = 32  # theirs have 32 groups
    assert torch.isfinite(peer(config)()).all()


def test_importing_is_timed():
    assert all(seconds >= 0 for seconds in importing())


@pytest.mark.parametrize("work", [loading, processing])
def test_what_happens_around_the_model_is_timed(monkeypatch, work):
    monkeypatch.setitem(sizes_module.CONFIGS, "medium", sizes_module.CONFIGS["micro"])
    assert all(seconds > 0 for seconds in work())


def test_tables_and_json_hold_all(tmp_path, capsys, monkeypatch):
    def measured(threads, tries, kind, **what):
        if kind == "floors":
            return {"rates": {"mm": 1e9, "linear": 2e9}, "bandwidths": {"copy": 1e9}}
        case = {"peak": 2**20, "loaded": 2**19, "needed": 2**20, "flops": 5e8, "bytes": 1e6}
        return {"seconds": [1.0, 0.5, 2.0], "elsewhere": 0.0, **({"floor": 0.1} if kind == "host" else case if kind == "case" else {})}

    monkeypatch.setattr(command, "measured", measured)
    command.main(["--sizes", "micro", "medium", "--output", str(tmp_path / "results.json")])
    table, results = capsys.readouterr().out, json.loads((tmp_path / "results.json").read_text())
    assert all(set(results["cases"][size][dtype]) == set(CASES) for size in ("micro", "medium") for dtype in ("float32", "bfloat16"))
    assert set(results["peers"]) == set(PEERS) and set(results["host"]) == set(HOST)
    for title in [case.title for case in CASES.values()] + [title for title, *_ in (*PEERS.values(), *HOST.values())]:
        assert title in table
    assert "| 1 | 0.25 | 0.25 | ≥ 0.55 | 1 |" in table.replace("|  |", "|")  # 5e8 operations at 2e9 a second, in a second
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_run_that_is_stopped_keeps_what_it_measured(tmp_path, capsys, monkeypatch):
    def measured(threads, tries, kind, **what):
        if kind == "floors":
            return {"rates": {}, "bandwidths": {}}
        if what["name"] == "decode":
            raise KeyboardInterrupt
        return {"seconds": [1.5, 0.5, 2.5]}

    monkeypatch.setattr(command, "measured", measured)
    names = ["--sizes", "micro", "--dtypes", "float32", "--cases", "encode", "decode"]
    with pytest.raises(KeyboardInterrupt):
        command.main([*names, "--output", str(tmp_path / "results.json")])
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    assert [result["what"]["kind"] for result in kept] == ["floors", "case"] and kept[1]["seconds"] == [1.5, 0.5, 2.5]
    assert "encode micro float32" in capsys.readouterr().err


def test_a_slow_case_is_not_judged_by_its_first_calls(monkeypatch):
    clock = iter([0.0, 30.0, 30.0, 55.0, 55.0, 75.0])
    monkeypatch.setattr(measure_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert measure_module.timed(lambda: None, "cpu", seconds=4) == [20.0]


@pytest.mark.parametrize("size", ["micro", "vargpt-tiny", "medium"])
def test_prompts_are_of_ordinary_tokens(size):
    config = config_of(size)
    special = {getattr(config, name) for name in IMAGE_TOKENS} | {0, 1, 2}
    ids = cases_module._prompt(SimpleNamespace(config=config, device="cpu"), 16)["input_ids"]
    assert ids.max() < config.text_config.vocab_size and not special & set(ids.flatten().tolist())


def test_the_quietest_of_some_tries_counts(monkeypatch):
    shares = [0.5, 0.2, 0.01, 0.0]
    monkeypatch.setattr(measure_module, "_measured", lambda threads, what: {"elsewhere": shares.pop(0)})
    assert measure_module.measured(1, tries=2)["elsewhere"] == 0.2
    assert measure_module.measured(1, tries=2)["elsewhere"] == 0.01 and shares == [0.0]


def test_a_process_of_its_own():
    result = measure_module.measured(1, kind="case", name="decode", size="micro", dtype="bfloat16", device="cpu", seconds=0)
    assert result["peak"] > 0 and result["elsewhere"] >= 0


def test_the_paper_needs_a_gpu(capsys):
    with pytest.raises(SystemExit):
        command.main(["--sizes", "paper"])
    assert "--device cuda" in capsys.readouterr().err
