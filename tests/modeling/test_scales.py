"""Scale schedules: what follows from their grids, and what is refused."""

import pytest
import torch

from vargpt_hf.modeling.scales_vargpt import ScaleSchedule, choose_schedules, nearest_schedule, position_weights

SQUARE, WIDE = ScaleSchedule.of([1, 2, 4]), ScaleSchedule.of([[1, 1], [1, 2], [2, 4]])


def test_numbers_of_a_schedule():
    assert WIDE.areas == (1, 2, 8)
    assert (len(WIDE), WIDE.num_positions, WIDE.final_grid, WIDE.aspect_ratio) == (3, 11, (2, 4), 0.5)
    assert WIDE.scale_of_position().tolist() == [0, 1, 1, *[2] * 8]
    assert [part.shape[1] for part in WIDE.split(torch.zeros(3, 11))] == [1, 2, 8]
    assert hash(WIDE) == hash(ScaleSchedule.of(WIDE.to_list()))


def test_squares_are_saved_as_sides_and_others_as_pairs():
    assert SQUARE.to_list() == [1, 2, 4]
    assert WIDE.to_list() == [[1, 1], [1, 2], [2, 4]]
    assert ScaleSchedule.of(SQUARE.to_list()) == SQUARE


@pytest.mark.parametrize("scales", [[], [0, 2], [2, 1], [[1, 2], [2, 1]], [[1, 2, 3]], [1.0, 2.0], [True, 2], ["1"], [1, 2**14]])
def test_what_is_no_schedule_is_refused(scales):
    with pytest.raises(ValueError, match="scale"):
        ScaleSchedule.of(scales)


@pytest.mark.parametrize(("height", "width", "index"), [(4, 4, 0), (300, 310, 0), (2, 4, 1), (100, 210, 1), (1, 1000, 1)])
def test_the_nearest_schedule(height, width, index):
    assert nearest_schedule([SQUARE, WIDE], height, width) == index


def test_of_equal_ratios_the_nearest_area_wins():
    small = ScaleSchedule.of([1, 2])
    assert [nearest_schedule([SQUARE, small], side, side) for side in (1, 2, 4, 9)] == [1, 1, 0, 0]


def test_schedules_of_rows():
    both = [SQUARE, WIDE]
    assert choose_schedules(both, 3) == [0, 0, 0]
    assert choose_schedules(both, 2, size=(16, 40), unit=8) == [1, 1] and choose_schedules(both, 2, size=[(9, 9), [10, 30]]) == [0, 1]
    assert choose_schedules(both, 2, aspect_ratio=0.6) == [1, 1] and choose_schedules(both, 2, aspect_ratio=[3, 0.2]) == [0, 1]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"size": (4, 4), "aspect_ratio": 1.0}, ValueError, "either `output_image_size` or `output_image_aspect_ratio`"),
        ({"size": 4}, TypeError, r"`output_image_size` must be one \(height, width\), or a list"),
        ({"size": [(4, 4)] * 3}, ValueError, "has 3 sizes for 2 rows"),
        ({"size": [(4, 4), 4]}, TypeError, "it has 4"),
        ({"size": (0, 4)}, ValueError, "positive and finite, got"),
        ({"aspect_ratio": "1:2"}, TypeError, r"`output_image_aspect_ratio` must be one height / width, or a list"),
        ({"aspect_ratio": [1.0]}, ValueError, "has 1 ratios for 2 rows"),
        ({"aspect_ratio": [1.0, True]}, TypeError, "it has True"),
        ({"aspect_ratio": float("nan")}, ValueError, "positive and finite, got nan"),
    ],
)
def test_sizes_that_are_none_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        choose_schedules([SQUARE, WIDE], 2, **given)


def test_an_image_without_a_side_has_no_schedule():
    with pytest.raises(ValueError, match="positive height and width"):
        nearest_schedule([SQUARE], 0, 4)


def test_weights_of_positions():
    weights = position_weights([SQUARE, WIDE], torch.tensor([1, 0]), 0.5)
    assert weights.shape == (2, 21)
    by_hand = (16 / torch.tensor([1.0, *[4.0] * 4, *[16.0] * 16])) ** 0.5
    torch.testing.assert_close(weights[1], by_hand / by_hand.mean())
    torch.testing.assert_close(weights[0, :11].mean(), torch.tensor(1.0))
    assert (weights[0, 11:] == 1).all()
