"""JSFusion against an oracle in NumPy, its masks, and what batches have to do with scores."""

from typing import Any

import jsfusion_oracle
import numpy as np
import pytest
import torch
from jsfusion_oracle import Oracle
from small_jsfusion import captions, sizes, small_model, videos

from emcl_train.experts.jsfusion import jsfusion_sizes
from emcl_train.models.experts.jsfusion import NO_EMCL, JSFusion, first_of, last_of, shrunk
from emcl_train.weights.jsfusion import jsfusion_to_tensorflow

ODD = [1, 2, 5, 7, 39, 40]
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-10}


def oracle(model, *, training):
    variables = {name: value.detach().numpy() for name, value in jsfusion_to_tensorflow(model.state_dict()).items()}
    return Oracle(variables, training=training)


def scores_of(model, video, text, **settings):
    return model.scores(model.encode_video(*video), model.encode_text(*text), **settings)


def test_evaluation_agrees_with_the_oracle_at_odd_lengths():
    model = small_model().eval()
    video, text = videos([*ODD, 6, 20]), captions([*ODD, 3])

    with torch.no_grad():
        found = scores_of(model, video, text)

    expected = oracle(model, training=False).scores(video[0].numpy(), [*ODD, 6, 20], text[0].numpy(), [*ODD, 3])
    np.testing.assert_allclose(found.numpy(), expected, **CLOSE)
    assert found[-1].std() > 1e-3, "scores that are all alike would agree too"


def test_training_takes_statistics_of_one_row_and_moves_the_running_ones_once_a_row():
    model = small_model().train()
    video, text = videos([3, 40, 17, 8]), captions([40, 5, 1, 12])
    reference = oracle(model, training=True)

    found = scores_of(model, video, text).detach().numpy()

    expected = reference.scores(video[0].numpy(), [3, 40, 17, 8], text[0].numpy(), [40, 5, 1, 12])
    np.testing.assert_allclose(found, expected, **CLOSE)
    moved = jsfusion_to_tensorflow(model.state_dict())
    for name, value in reference.variables.items():
        np.testing.assert_allclose(moved[name].detach().numpy(), value, err_msg=name, **CLOSE)


def test_encoders_agree_with_the_oracle_alone():
    model = small_model().eval()
    video, text = videos([1, 40]), captions([7, 2])
    reference = oracle(model, training=False)

    with torch.no_grad():
        steps, words = model.encode_video(*video), model.encode_text(*text)

    np.testing.assert_allclose(steps.steps.numpy(), reference.videos(video[0].numpy(), [1, 40]), **CLOSE)
    np.testing.assert_allclose(words.words.numpy(), reference.captions(text[0].numpy(), [7, 2]), **CLOSE)
    assert not steps.steps[~steps.mask].any()
    assert not words.words[~words.mask].any()


@pytest.mark.parametrize(
    ("valid", "expected"),
    [(40, (38, 36, 17)), (39, (37, 35, 17)), (8, (6, 4, 1)), (7, (5, 3, 1)), (6, (4, 2, 1)), (5, (3, 1, 1)),
     (2, (1, 1, 1)), (1, (1, 1, 1)), (0, (1, 1, 1))],
)  # fmt: skip
def test_masks_shrink(valid, expected):
    one = shrunk(torch.tensor([valid]), 1)
    two = shrunk(one, 1)
    three = shrunk(two, 2)
    assert (int(one), int(two), int(three)) == expected


def test_masks_are_of_the_beginning_and_of_the_end():
    assert first_of(4, torch.tensor([0, 3])).tolist() == [[False] * 4, [True, True, True, False]]
    assert last_of(4, torch.tensor([4, 1])).tolist() == [[True] * 4, [False, False, False, True]]


def test_videos_of_five_steps_or_fewer_have_one_score_for_everything():
    """The last convolution never looks at the rightmost column, and nothing else of them is valid."""
    model = small_model().eval()
    text = captions([40, 3, 11])

    with torch.no_grad():
        short = scores_of(model, videos([0, 1, 2, 3, 4, 5]), text)
        enough = scores_of(model, videos([6]), text)

    assert (short - short[0, 0]).abs().max() < 1e-12
    assert enough.std() > 1e-4


def test_short_captions_are_told_apart():
    model = small_model().eval()
    with torch.no_grad():
        found = scores_of(model, videos([40]), captions([1, 1, 2, 2, 1]))
    assert len(np.unique(found.numpy().round(9))) >= 3


@pytest.mark.parametrize("pairs_at_once", [1, 2, 3, 100])
def test_evaluation_in_blocks_gives_the_same_and_never_more_pairs_at_once(pairs_at_once):
    model = small_model().eval()
    video, text = videos([9, 40, 12]), captions([4, 40, 6, 1, 9])
    seen = []
    model.fusion.register_forward_hook(lambda module, given, result: seen.append(len(result)))

    with torch.no_grad():
        whole = scores_of(model, video, text)
        seen.clear()
        found = scores_of(model, video, text, pairs_at_once=pairs_at_once)

    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    assert max(seen) <= pairs_at_once
    assert sum(seen) == 15


def test_nothing_to_compare_is_no_error():
    model = small_model().eval()
    with torch.no_grad():
        steps, words = model.encode_video(*videos([9, 8])), model.encode_text(*captions([4]))
        assert model.scores(steps, words[:0]).shape == (2, 0)
        assert model.scores(steps[:0], words).shape == (0, 1)


def test_words_behind_the_mask_do_not_count():
    model = small_model().eval()
    video, (ids, mask) = videos([30]), captions([4, 9])
    with torch.no_grad():
        other = torch.where(mask, ids, 7)
        torch.testing.assert_close(scores_of(model, video, (other, mask)), scores_of(model, video, (ids, mask)))


def test_scores_depend_on_the_batch_in_training_alone():
    model = small_model()
    video, (ids, mask) = videos([30, 9]), captions([4, 9, 12])

    with torch.no_grad():
        whole, part = (scores_of(model.eval(), video, (ids[:n], mask[:n]))[:, :2] for n in (3, 2))
        torch.testing.assert_close(whole, part)
        whole, part = (scores_of(model.train(), video, (ids[:n], mask[:n]))[:, :2] for n in (3, 2))
    assert (whole - part).abs().max() > 1e-3


def test_an_lstm_is_that_of_torch_with_one_more_at_the_forget_gate():
    model = small_model().eval()
    ours = model.text_encoder.forwards
    theirs = torch.nn.LSTM(5, 3, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.input_weight)
        theirs.weight_hh_l0.copy_(ours.state_weight)
        theirs.bias_ih_l0.copy_(ours.bias)
        theirs.bias_hh_l0.zero_()
        theirs.bias_hh_l0[3:6] = 1.0
        x = torch.randn(2, 7, 5, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x)[0], **CLOSE)


def test_dropout_is_drawn_anew_for_each_direction_and_left_out_in_evaluation():
    model = small_model(dropout=0.5)
    text = captions([40, 30, 20])
    inputs = []
    for direction in (model.text_encoder.forwards, model.text_encoder.backwards):
        direction.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))

    model.train().encode_text(*text)
    ahead, back = inputs
    valid = text[1].unsqueeze(-1).expand_as(ahead)
    assert 0.35 < (ahead[valid] == 0).double().mean() < 0.65
    assert not torch.equal(ahead == 0, back.flip(1) == 0)

    once, again = (model.eval().encode_text(*text).words for _ in range(2))
    assert torch.equal(once, again)


def test_the_loss_counts_rows_with_their_diagonal():
    by_hand = np.array([[0.0, -4.0], [3.0, 20.0]])  # rows (10, 6) and (0, 10)
    assert jsfusion_oracle.loss(by_hand) == pytest.approx(26 / 4)


def test_it_learns():
    torch.manual_seed(0)
    model = small_model(steps=10, words=9).float()
    features, mask = videos([10, 7, 8, 9], steps=10)
    video, text = (features.float(), mask), captions([5, 9, 7, 8], words=9)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    losses = []
    for _ in range(25):
        found = scores_of(model, video, text)
        loss = (10 + found - found.diagonal()[:, None]).relu().sum() / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert min(losses[-5:]) < 0.85 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_parameters_of_the_paper_follow_from_the_table_of_its_layers():
    def normalized(width_in, width):
        return width_in * width + width

    for dataset, features in (("msrvtt", 2048), ("lsmdc", 2176)):
        with torch.device("meta"):
            model = JSFusion(jsfusion_sizes(dataset, vocabulary=1000))
        expected = (
            (3 * features * 2048 + 2048) + 2 * (3 * 2048 * 2048 + 2048) + normalized(1024 + features, 512)
            + 1000 * 300 + 2 * ((300 + 512) * 2048 + 2048) + normalized(1024, 512)
            + 3 * normalized(512, 512) + normalized(512, 1)
            + (9 * 512 * 257 + 257) + 2 * (9 * 256 * 257 + 257)
            + 2 * normalized(256, 256) + normalized(256, 128) + normalized(128, 1)
        )  # fmt: skip
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_what_does_not_fit_is_named():
    model = small_model()
    with pytest.raises(ValueError, match=r"features are of shape \[40, 5\] each.*\[40, 6\].*2176"):
        model.encode_video(*videos([3], features=5))
    with pytest.raises(ValueError, match=r"word_ids are of shape \[39\]"):
        model.encode_text(*captions([3], words=39))
    with pytest.raises(ValueError, match="two captions or more"):
        scores_of(model.train(), videos([9]), captions([3]))
    with pytest.raises(ValueError, match="pairs_at_once is 0"):
        scores_of(model.eval(), videos([9]), captions([3]), pairs_at_once=0)


def test_sizes_that_no_model_can_have_are_refused():
    with pytest.raises(ValueError, match=r"steps is 6.*need 7"):
        sizes(steps=6)
    with pytest.raises(ValueError, match="video_channels is 7"):
        sizes(video_channels=7)
    with pytest.raises(ValueError, match="fused is 0"):
        sizes(fused=0)
    with pytest.raises(ValueError, match="dropout is 1"):
        sizes(dropout=1.0)
    with pytest.raises(ValueError, match="activitynet"):
        jsfusion_sizes("activitynet", 10)
    assert JSFusion(sizes(steps=7, words=7)).eval()


def test_it_is_said_why_em_cannot_act():
    assert "--emcl.mode off" in NO_EMCL
    assert "encoders" in NO_EMCL
