"""Mixtures of datasets by weight, ahead and as a stream."""

import itertools
from collections import Counter

import pytest
from datasets import Dataset

from vargpt_hf.training.data import DataSource, describe_mixture, mix_rows, names_of, numbered, sources_of


@pytest.fixture
def folders(tmp_path):
    """Two datasets of texts, of 10 and 200 rows; the second has codes."""
    for name, count in (("small", 10), ("large", 200)):
        messages = [[{"role": "user", "content": [{"type": "text", "text": f"{name} {index}"}]}] for index in range(count)]
        drawn = [{"role": "assistant", "content": [{"type": "output_image", "text": None}]}]
        rows = [{"messages": turns} for turns in messages]
        if name == "large":
            rows = [{"messages": turns + drawn, "output_image_codes": [[1, 2, 3]]} for turns in messages]
        Dataset.from_list(rows).save_to_disk(tmp_path / name)
    return tmp_path


def said(rows):
    return [row["messages"][0]["content"][0]["text"] for row in rows]


@pytest.mark.parametrize("streaming", [False, True], ids=["ahead", "streaming"])
def test_weights_say_how_often_each_is_drawn(folders, streaming):
    sources = sources_of([{"path": str(folders / "small"), "weight": 1}, {"path": str(folders / "large"), "weight": 3}])
    rows = list(itertools.islice(mix_rows(sources, seed=1, streaming=streaming), 200))
    counts = Counter(text.split()[0] for text in said(rows))
    assert 130 < counts["large"] < 170
    assert [row["source"] for row in rows] == [int(text.startswith("large")) for text in said(rows)]
    assert {tuple(map(tuple, row["output_image_codes"] or ())) for row in rows if row["source"] == 0} == {()}
    assert all(row["output_image_codes"] == [[1, 2, 3]] for row in rows if row["source"] == 1)


def test_the_seed_fixes_the_order(folders):
    sources = sources_of([str(folders / "small"), str(folders / "large")])
    first, again, other = (said(mix_rows(sources, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert said(mix_rows(sources, seed=1, streaming=True))[:50] == first[:50]


@pytest.mark.parametrize(
    ("stop", "small", "large"), [("first_exhausted", 10, None), ("all_exhausted", None, 200), ("all_exhausted_without_replacement", 10, 200)]
)
def test_where_a_mixture_ends(folders, stop, small, large):
    sources = sources_of([str(folders / "small"), str(folders / "large")])
    rows = mix_rows(sources, seed=1, stop=stop)
    counts = Counter(text.split()[0] for text in said(rows))
    assert small in (None, counts["small"]) and large in (None, counts["large"])
    assert describe_mixture(rows, sources) == (
        f"{folders / 'small'}: {counts['small']} ({counts['small'] / len(rows):.1%}); "
        f"{folders / 'large'}: {counts['large']} ({counts['large'] / len(rows):.1%})"
    )


def test_one_source_is_as_it_is(folders):
    (source,) = sources_of(str(folders / "small"))
    rows = mix_rows([source])
    assert "source" not in rows.column_names and len(rows) == 10
    assert describe_mixture(rows, [source]) == f"{folders / 'small'}: 10 (100.0%)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "There is no source of data"),
        ([{"weight": 1}], "A source of data needs `path`"),
        ([{"path": "small", "wait": 1}], "may have weight, split, images, task, prompt; got path, wait"),
        ([{"path": "nowhere"}], "There is no dataset at nowhere"),
        ([{"path": "small", "weight": 0}], "must be positive, got 0"),
    ],
)
def test_sources_that_cannot_be(folders, monkeypatch, given, message):
    monkeypatch.chdir(folders)
    with pytest.raises(ValueError, match=message):
        sources_of(given)


def test_an_unknown_end(folders):
    with pytest.raises(ValueError, match="`stop` is 'never'; it must be one of first_exhausted"):
        mix_rows([DataSource(str(folders / "small"))], stop="never")


def test_rows_of_a_stream_have_another_number_in_every_pass(folders):
    stream = mix_rows(sources_of(str(folders / "small")), streaming=True)
    length = len(list(stream))
    rows = list(numbered(stream.repeat(2)))
    assert [row["row_number"] for row in rows] == list(range(2 * length)) and said(rows[:length]) == said(rows[length:])


def test_sources_of_one_name_are_told_apart():
    sources = [DataSource(path) for path in ("faces/train", "scenes/train", "texts.json", "faces/train/")]
    assert names_of(sources) == ["train_1", "train_2", "texts.json", "train_3"]
    assert names_of(sources[1:3]) == ["train", "texts.json"]
