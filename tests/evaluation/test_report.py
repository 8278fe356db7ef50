"""Reports: what they hold, that they come again, and how two are compared."""

import json
from datetime import datetime, timezone

import pytest
from PIL import Image

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.evaluation import provenance, shapes_and_digits
from vargpt_hf.evaluation.card import eval_results
from vargpt_hf.evaluation.compare import compare_reports, comparison_page
from vargpt_hf.evaluation.intervals import Estimate, share
from vargpt_hf.evaluation.report import SCHEMA, make_report, read_report, to_page, write_report
from vargpt_hf.evaluation.suites import Example, SuiteResult, data_hash
from vargpt_hf.tiny import TINY_FOLDER


@pytest.fixture(scope="module")
def tiny():
    return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval(), VargptProcessor.from_pretrained(TINY_FOLDER)


def measured(tiny, folder, **settings):
    """A report of vargpt-tiny on a few rows."""
    model, processor = tiny
    started = datetime.now(timezone.utc)
    result = shapes_and_digits.evaluate(model, processor, number=4, **settings)
    made = {
        "model": provenance.of_model(model, "vargpt-tiny", TINY_FOLDER),
        "prompts": provenance.of_prompts(processor),
        "generate": provenance.of_generation(model, settings),
        "device": "cpu",
        "started": started,
    }
    write_report(folder, make_report("shapes-and-digits", result, **made), result)
    return read_report(folder)


def test_two_runs_give_one_report(tiny, tmp_path):
    reports = [measured(tiny, tmp_path / name, seed=3) for name in ("first", "second")]
    times = [report.pop("time") for report in reports]
    assert reports[0] == reports[1] and times[0]["seconds"] > 0
    texts = [(tmp_path / name / "report.md").read_text().splitlines() for name in ("first", "second")]
    assert [line for line in texts[0] if "| time |" not in line] == [line for line in texts[1] if "| time |" not in line]
    for image in (tmp_path / "first" / "images").iterdir():
        assert image.read_bytes() == (tmp_path / "second" / "images" / image.name).read_bytes()
    assert measured(tiny, tmp_path / "third", seed=4)["data"]["sha256"] != reports[0]["data"]["sha256"]


def test_a_report_says_how_it_was_made(tiny, tmp_path):
    report = measured(tiny, tmp_path, seed=3)
    assert report["schema"] == SCHEMA and report["model"]["name"] == "vargpt-tiny" and len(report["model"]["fingerprint"]) == 16
    assert report["generate"]["output_image_temperature"] == 0.2 and report["seeds"] == {"rows": 3, "drawings": 3}
    assert report["packages"]["torch"] and report["code"]["source_sha256"] and report["hardware"]["cores"]
    assert report["metrics"]["answers"]["number"] == 8 and report["metrics"]["answers"]["interval"] == "Wilson"
    assert (
        sum(sample["metrics"]["answers"] for sample in report["samples"] if "answers" in sample["metrics"]) / 8
        == report["metrics"]["answers"]["value"]
    )
    example = report["examples"][0]
    assert Image.open(tmp_path / example["file"]).size == (48, 48) and example["caption"]
    page = (tmp_path / "report.md").read_text()
    for said in ("| answers |", f"![{example['caption']}]({example['file']})", report["model"]["fingerprint"], "Intervals: Wilson"):
        assert said in page


def test_settings_of_generate_are_recorded(tiny):
    model, _ = tiny
    assert provenance.of_generation(model, {"output_image_temperature": 0.7})["output_image_temperature"] == 0.7
    assert provenance.of_prompts(tiny[1], "a photo of {}")["template"] == "a photo of {}"


def result_of(values, name="right", **fields):
    samples = [{"id": f"{index:02}", "metrics": {name: value}} for index, value in enumerate(values)]
    data = {"name": "rows", "sha256": "0" * 64}
    return SuiteResult(
        metrics={name: share(values), "FID": Estimate(3.5, 3.0, 4.0, 10)}, samples=samples, data=data, seeds={}, settings={}, **fields
    )


def report_of(values, **fields):
    model = {"name": "one", "fingerprint": "f", "parameters": 1, "dtype": "float32"}
    made = {"model": model, "prompts": {}, "generate": {}, "device": "cpu", "started": datetime.now(timezone.utc)}
    return make_report("rows", result_of(values, **fields), **made)


def test_reports_are_compared_sample_by_sample():
    first, second = report_of([True] * 10 + [False] * 20), report_of([True] * 25 + [False] * 5)
    compared = compare_reports(first, second)
    assert compared["right"].difference.value == pytest.approx(0.5) and compared["right"].difference.p_value == pytest.approx(2 / 2**15)
    assert compared["FID"].difference is None
    page = comparison_page(first, second, compared)
    assert "| right | 33.3% | 83.3% | 50.0% |" in page and "McNemar, exact, 30 pairs" in page and "| FID | 3.5 | 3.5 |" in page
    assert compare_reports(first, first)["right"].difference.p_value == 1.0
    json.dumps(compared["right"].to_dict())


@pytest.mark.parametrize("name", ["suite", "data", "judge"])
def test_what_does_not_compare_is_refused(name):
    first, second = report_of([True, False]), report_of([True, False])
    second[name] = {"name": "another"}
    with pytest.raises(ValueError, match=f"another {name}"):
        compare_reports(first, second)


@pytest.mark.parametrize("name", ["network", "classes", "neighbors"])
def test_numbers_of_other_networks_do_not_compare(name):
    first, second = report_of([True, False]), report_of([True, False])
    first["settings"], second["settings"] = {name: "one"}, {name: "another"}
    with pytest.raises(ValueError, match=f"another {name} \\(one and another\\)"):
        compare_reports(first, second)
    second["settings"] = {name: None}  # what was measured without it, and is therefore not in both
    assert "right" in compare_reports(first, second)


def test_broken_reports_are_refused(tmp_path):
    file = tmp_path / "report.json"
    report = report_of([True, False])
    for content, message in (
        ("{", "no JSON file"),
        ("[1]", "no report of the schema"),
        (json.dumps({**report, "schema": "other"}), "no report of the schema"),
        (json.dumps({**report, "metrics": 3}), "metrics is missing or of another type"),
        (json.dumps({**report, "metrics": {"a": {}}}), "the metric 'a' has no value"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_report(file)
    with pytest.raises(OSError):
        read_report(tmp_path / "none")


def test_what_stands_in_a_cell_cannot_end_a_table():
    notes, judge = ["Judged by one who guesses."], {"name": "a | b"}
    image = Image.new("RGB", (4, 4))
    report = report_of(
        [True], notes=notes, judge=judge, examples=[Example("one", image, "a square")], tables={"More": [["x", "y"], ["1|2", "3\n4"]]}
    )
    page = to_page(report)
    assert "> Judged by one who guesses." in page and "name a \\| b" in page and "## More" in page and "| 1\\|2 | 3 4 |" in page


def test_results_for_a_card_name_the_judge():
    (fid, result) = eval_results(report_of([True, False], judge={"name": "gpt"}))
    assert result.metric_type == "accuracy" and result.metric_value == 0.5 and result.metric_args["samples"] == 2
    assert fid.metric_type == "fid" and "judged by gpt" in fid.source_name


def test_data_is_told_apart_by_its_images():
    image, other = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), "white")
    assert data_hash([{"image": image}]) == data_hash([{"image": image.copy()}]) != data_hash([{"image": other}])
    with pytest.raises(TypeError, match="holds a object"):
        data_hash([{"x": object()}])
