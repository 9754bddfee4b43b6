"""Accuracies by hand: of the kept questions, of all of them, and where answers are told apart by nothing."""

import pytest
import torch

from emcl_train.evaluation.answers import accuracies, top_answers


def test_both_accuracies_by_hand():
    """Seven answers. The right one is first, second, sixth, and seventh of four questions; a fifth was left out."""
    falling = torch.arange(7, 0, -1.0)
    found = accuracies(falling.repeat(4, 1), torch.tensor([0, 1, 5, 6]), left_out=1)
    assert (found.kept, found.left_out, found.asked) == (4, 1, 5)
    assert (found.top1_of_kept, found.top5_of_kept) == (25.0, 50.0)
    assert (found.top1_of_all, found.top5_of_all) == (20.0, 40.0)
    assert found.lines() == [
        ("accuracy over the 4 kept questions", 25.0),
        ("top-5 accuracy over the 4 kept questions", 50.0),
        ("accuracy over all 5 questions", 20.0),
        ("top-5 accuracy over all 5 questions", 40.0),
    ]


def test_answers_that_are_told_apart_by_nothing_are_wrong():
    same = accuracies(torch.zeros(3, 7), torch.tensor([0, 3, 6]), left_out=0)
    assert (same.top1_of_kept, same.top5_of_kept) == (0.0, 0.0)
    nan = accuracies(torch.full((3, 7), torch.nan), torch.tensor([0, 3, 6]), left_out=0)
    assert nan.top5_of_kept == 0.0


def test_few_answers_are_all_among_the_first_five():
    found = accuracies(torch.eye(3), torch.tensor([1, 1, 1]), left_out=0)
    assert (found.top1_of_kept, found.top5_of_kept) == (pytest.approx(100 / 3), 100.0)
    assert accuracies(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([2]), left_out=0).top5_of_kept == 100.0
    assert top_answers(torch.tensor([[1.0, 3.0, 2.0]])).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(("labels", "left_out"), [([7], 0), ([-1], 0), ([0], -1)])
def test_labels_that_are_no_answers_are_refused(labels, left_out):
    with pytest.raises(ValueError, match="expected 0"):
        accuracies(torch.zeros(1, 7), torch.tensor(labels), left_out=left_out)
    with pytest.raises(ValueError, match="0 questions"):
        accuracies(torch.zeros(0, 7), torch.tensor([], dtype=torch.int64), left_out=0)
