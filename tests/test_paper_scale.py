"""docs/paper_scale.md says what the code says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("paper_scale", ROOT / "benchmarks" / "paper_scale.py")
paper_scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paper_scale)


def test_the_page_is_what_the_code_writes():
    page = paper_scale.PAGE.read_text(encoding="utf-8")
    assert paper_scale.render(page) == page, "python benchmarks/paper_scale.py --write"


def test_a_stale_number_is_written_anew():
    page = paper_scale.PAGE.read_text(encoding="utf-8")
    assert "6,759,919,616" in page
    assert paper_scale.render(page.replace("6,759,919,616", "7,000,000,000")) == page


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="<!-- parameters -->"):
        paper_scale.render("")


def test_an_image_of_v1_1_costs_what_its_layers_say():
    """Worked out by hand from the released system's sizes: 47.5 and 92 · 10¹² operations."""
    plain, guided = map(sum, zip(*paper_scale.drawing_parts_v1_1().values()))
    assert plain == pytest.approx(47.5e12, rel=0.03) and guided == pytest.approx(92e12, rel=0.03)
    decoded, _ = paper_scale.drawing_parts_v1_1()["image tokenizer"]
    encoded = paper_scale.encoder_flops(paper_scale.model_v1_1("0.25M"))
    assert (decoded, encoded) == (pytest.approx(2.46e12, rel=0.01), pytest.approx(1.04e12, rel=0.01))


def test_parameters_of_v1_1():
    model = paper_scale.model_v1_1("0.25M")
    found = {name: sum(p.numel() for p in model.model.get_submodule(name).parameters()) / 1e6 for name in paper_scale.PARTS_V1_1}
    wanted = {
        "vlm.language_model": 7070.6,
        "vlm.visual": 675.8,
        "image_tokenizer": 110.1,
        "projector_to_llm": 11.5,
        "projector_to_decoder": 20.2,
    }
    assert {name: round(found[name], 1) for name in wanted} == wanted
    assert round(model.num_parameters() / 1e6) == 10625


def test_a_stage_of_v1_1_fits_its_gpus():
    for name in paper_scale.STAGES_V1_1:
        found = paper_scale.budget_v1_1(name, longest=True, num_processes=paper_scale.GPUS, sharded=True)
        assert found.memory < 0.9 * paper_scale.GPU_BYTES, name
