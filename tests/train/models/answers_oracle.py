"""The head of video question answering and its loss in numpy, written from the specification, one question at a time.

Weights have the authors' names. Nothing here imports the package or torch."""

import math

import numpy as np
from clip2video_oracle import block, em, info_nce, softmax, unit


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def relu(x):
    return np.where(x > 0, x, 0.0)


def temporal_frames(w, frames, mask, heads, layers):
    """seqTransf, then `mean_proj`, and the frames; norms add 1e-5 as the blocks of the other oracle do."""
    tokens = np.array([x + w["frame_position_embeddings.weight"][i] for i, x in enumerate(frames)])
    for i in range(layers):
        tokens = block(w, f"transformerClip.resblocks.{i}", tokens, list(mask), heads)
    return np.array([linear(w, "mean_proj", x) + frame for x, frame in zip(tokens, frames, strict=True)])


def pooled(w, name, rows, mask):
    logits = np.array([linear(w, f"{name}.2", relu(linear(w, f"{name}.0", x)))[0] for x in rows])
    shares = softmax(logits)
    return sum(share * (x * seen) for share, x, seen in zip(shares, rows, mask, strict=True))


def projected(w, frames, frame_mask, words, word_mask):
    video = linear(w, "v_proj", pooled(w, "v_w", frames, frame_mask))
    question = linear(w, "t_proj", pooled(w, "t_w", words, word_mask))
    return video, question


def logits(w, video, question):
    return linear(w, "classifier.2", relu(linear(w, "classifier.0", np.concatenate([video, question]))))


def loss(answers, labels, videos, questions, scale, settings):
    """Cross entropy, and half InfoNCE of questions and videos, after EM over the rows of both if there are settings."""
    of_answers = sum(-math.log(softmax(row)[label]) for row, label in zip(answers, labels, strict=True)) / len(labels)
    if settings is not None:
        mapped = em(np.concatenate([videos, questions]), **settings)
        videos, questions = mapped[: len(videos)], mapped[len(videos) :]
    cosines = np.array([[unit(q) @ unit(v) for v in videos] for q in questions])
    return of_answers + 0.5 * info_nce(scale * cosines)
