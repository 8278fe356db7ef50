"""Scale schedules: what follows from their grids, and what is refused."""

import pytest
import torch

from vargpt_hf.modeling.scales_vargpt import ScaleSchedule, nearest_schedule, position_weights

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


@pytest.mark.parametrize("scales", [[], [0, 2], [2, 1], [1, 1], [[1, 2], [2, 1]], [[1, 2, 3]], [1.0, 2.0], [True, 2], ["1"], [1, 2**14]])
def test_what_is_no_schedule_is_refused(scales):
    with pytest.raises(ValueError, match="scale"):
        ScaleSchedule.of(scales)


@pytest.mark.parametrize(("height", "width", "index"), [(4, 4, 0), (300, 310, 0), (2, 4, 1), (100, 210, 1), (1, 1000, 1)])
def test_the_nearest_schedule(height, width, index):
    assert nearest_schedule([SQUARE, WIDE], height, width) == index


def test_of_equal_ratios_the_nearest_area_wins():
    small = ScaleSchedule.of([1, 2])
    assert [nearest_schedule([SQUARE, small], side, side) for side in (1, 2, 4, 9)] == [1, 1, 0, 0]


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
