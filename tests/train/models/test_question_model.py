"""The model of video question answering against numpy of the specification, in float64; its sizes, names and start."""

import answers_oracle as oracle
import numpy as np
import pytest
import torch
from small_question_model import small_model, small_run

from emcl_train.config import EMCLConfig
from emcl_train.errors import UserError
from emcl_train.models.question_answering import (
    AnswerHead,
    Answers,
    ProjectedTransformer,
    answer_loss,
    build_answer_model,
    pooled,
)
from emcl_train.training.losses import symmetric_info_nce
from emcl_train.weights.files import read_state
from emcl_train.weights.release import model_to_layout

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, HEADS, LAYERS, FRAMES, WORDS, ANSWERS = 16, 2, 2, 4, 7, 6


def released(model):
    state, left_out = model_to_layout(model.state_dict(), "clip4clip")
    assert left_out == ["emcl.bases"]
    return {name: value.numpy() for name, value in state.items()}


def inputs(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(count, FRAMES, WIDTH, generator=generator, dtype=torch.float64)
    words = torch.randn(count, WORDS, WIDTH, generator=generator, dtype=torch.float64)
    frame_mask = torch.arange(FRAMES) < torch.randint(1, FRAMES + 1, (count, 1), generator=generator)
    word_mask = torch.arange(WORDS) < torch.randint(3, WORDS + 1, (count, 1), generator=generator)
    return frames, frame_mask, words, word_mask


def expected_of(w, frames, frame_mask, words, word_mask):
    arrays = [x.numpy() for x in (frames, frame_mask, words, word_mask)]
    videos, questions, logits = [], [], []
    for f, fm, q, qm in zip(*arrays, strict=True):
        video, question = oracle.projected(w, oracle.temporal_frames(w, f, fm, HEADS, LAYERS), fm, q, qm)
        videos.append(video)
        questions.append(question)
        logits.append(oracle.logits(w, video, question))
    return np.array(logits), np.array(questions), np.array(videos)


def close(found, expected):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-10)


def answers_of(model, frames, frame_mask, words, word_mask):
    return model.answer((model.temporal(frames, frame_mask), frame_mask), (words, word_mask))


def test_the_head_and_the_frames_before_it_are_the_specifications():
    model = small_model(ANSWERS).double()
    given = inputs()
    answers = answers_of(model, *given)
    logits, questions, videos = expected_of(released(model), *given)
    close(answers.logits, logits)
    close(answers.question, questions)
    close(answers.video, videos)


@pytest.mark.parametrize("emcl", [True, False])
def test_the_loss_is_the_specifications(emcl):
    model = small_model(ANSWERS).double()
    given = inputs()
    labels = torch.tensor([0, 5, 2, 2, 1])
    answers = answers_of(model, *given)
    found = answer_loss(answers, labels, model.contrast(answers, emcl=emcl), symmetric_info_nce)
    layer = model.emcl
    assert (layer.num_bases, layer.num_iters, layer.temperature, layer.residual_weight) == (16, 5, 1.0, 1.0)
    settings = {"start": layer.bases.numpy(), "num_iters": 5, "temperature": 1.0, "weight": 1.0} if emcl else None
    logits, questions, videos = expected_of(released(model), *given)
    scale = float(np.exp(model.towers.clip.logit_scale.item()))
    close(found, oracle.loss(logits, labels.tolist(), videos, questions, scale, settings))


def test_em_moves_its_start_in_training_and_the_answers_do_not_know_it():
    model = small_model(ANSWERS).double().train()
    model.head.dropout.p = 0.0
    given = inputs()
    before = model.emcl.bases.clone()
    answers = answers_of(model, *given)
    model.contrast(answers, emcl=True)
    assert not torch.equal(model.emcl.bases, before)
    torch.testing.assert_close(answers_of(model, *given).logits, answers.logits, rtol=0, atol=0)


def test_padding_takes_its_share_and_adds_nothing():
    """Two rows of equal weight, one of them padding: half of the other is left."""
    network = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(network.weight)
    rows = torch.tensor([[[2.0, 4.0], [7.0, 7.0]]])
    assert pooled(network, rows, torch.tensor([[True, False]])).tolist() == [[1.0, 2.0]]


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    head = AnswerHead(WIDTH, ANSWERS).eval()
    frames, frame_mask, words, word_mask = (x if x.dtype == torch.bool else x.float() for x in inputs())
    first, *_ = head(frames, frame_mask, words, word_mask)
    assert torch.equal(head(frames, frame_mask, words, word_mask)[0], first)
    assert not torch.equal(head.train()(frames, frame_mask, words, word_mask)[0], first)


def test_sizes_are_the_released_ones():
    head = AnswerHead(512, 1500)
    assert head.classifier[0].weight.shape == (8192, 4096)
    assert head.classifier[2].weight.shape == (1500, 8192)
    assert head.video_projection.weight.shape == head.question_projection.weight.shape == (2048, 512)
    for parameter in head.parameters():
        assert (
            (parameter.std().item() == pytest.approx(0.02, abs=2e-3)) if parameter.dim() == 2 else not parameter.any()
        )


def test_a_label_that_is_no_answer_is_refused():
    answers = Answers(torch.zeros(2, 3), torch.ones(2, 4), torch.ones(2, 4), torch.tensor(1.0))
    for labels in ([0, -1], [0, 3]):
        with pytest.raises(ValueError, match="expected 0 to 2: train on known answers alone"):
            answer_loss(answers, torch.tensor(labels), torch.zeros(2, 2), symmetric_info_nce)


def test_words_behind_the_question_are_zeros_that_are_looked_at():
    """As in CLIP's own tower: which token pads, and what the mask says of it, changes nothing before or behind it."""
    model = small_model(ANSWERS)
    ids = torch.tensor([[3, 4, 29, 0, 0, 0, 0]])
    mask = (torch.arange(WORDS) < 3).long()[None]
    words, seen = model.encode_question({"input_ids": ids, "attention_mask": mask})
    other, _ = model.encode_question({"input_ids": ids.masked_fill(mask == 0, 17), "attention_mask": mask})
    assert torch.equal(words, other)
    causal = model.towers.encode_text(ids, torch.ones_like(ids), tokens=True)[1]
    assert torch.equal(words, causal)
    assert seen.tolist() == mask.bool().tolist()


def test_released_names_load_and_every_key_counts(tmp_path):
    model = small_model(ANSWERS)
    state, _ = model_to_layout(model.state_dict(), "emcl")
    assert {name for name in state if not name.startswith(("clip.", "transformerClip."))} == {
        "frame_position_embeddings.weight",
        "emcl.mu",
        *(f"{name}.{kind}" for name in ("mean_proj", "v_proj", "t_proj") for kind in ("weight", "bias")),
        *(f"{n}.{i}.{kind}" for n in ("v_w", "t_w", "classifier") for i in (0, 2) for kind in ("weight", "bias")),
    }
    del state["emcl.mu"]  # the release saves none
    path = tmp_path / "pytorch_model.bin.4"
    torch.save(state, path)
    run, tokenizer = small_run(init_from=path)
    torch.manual_seed(9)
    back = build_answer_model(run, tokenizer, ANSWERS)
    assert isinstance(back.temporal, ProjectedTransformer)
    assert all(
        torch.equal(back.state_dict()[name], value)
        for name, value in model.state_dict().items()
        if name != "emcl.bases"
    )

    with pytest.raises(UserError, match=r"classifier\.2\.weight is \[6, 12\], expected \[5, 12\].*as many answers"):
        build_answer_model(run, tokenizer, 5)
    torch.save({name: value for name, value in state.items() if name != "mean_proj.bias"}, path)
    assert "mean_proj.bias" not in read_state(path)
    with pytest.raises(UserError, match=r"mean_proj\.bias is missing"):
        build_answer_model(run, tokenizer, ANSWERS)


def test_more_bases_than_the_projections_are_wide():
    run, tokenizer = small_run()
    run.emcl = EMCLConfig(num_bases=100)
    with pytest.raises(UserError, match=r"emcl\.num_bases is 100, expected 1 to 20"):
        build_answer_model(run, tokenizer, ANSWERS)
