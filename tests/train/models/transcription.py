"""The recipe's formulas once more, step by step in plain torch, from token ids and frames to the loss.

Weights come under the names of the public checkpoints. Nothing here imports the package, nothing is fused or
streamed: pooled clips are the whole tensor [A, B, D], token similarities the whole tensor [A, B, L, F], EM reads all
rows in every iteration, and blocks are a loop.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64).view(3, 1, 1)


@dataclass
class Settings:
    """Of the model and of EM."""

    head: str
    temporal: str
    heads: int
    eos: int
    num_iters: int = 9
    temperature: float = 1.0
    weight: float = 3.0
    momentum: float = 0.9
    relative: bool = False
    pooling_temperature: float = 3.0
    padding: float = -math.inf  # similarity of padding where DRL looks for the best partner; 0 as released


def layer_norm(w, name, x, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def block(w, name, x, bias, heads, eps=1e-5):
    """One residual attention block: pre-norm, QuickGELU. bias: added to the logits, [B, 1, L, L]."""
    batch, length, width = x.shape
    qkv = layer_norm(w, f"{name}.ln_1", x, eps) @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]
    q, k, v = (part.view(batch, length, heads, width // heads).transpose(1, 2) for part in qkv.split(width, -1))
    attention = torch.softmax(q @ k.mT / math.sqrt(width // heads) + bias, dim=-1) @ v
    attention = attention.transpose(1, 2).reshape(batch, length, width)
    x = x + attention @ w[f"{name}.attn.out_proj.weight"].T + w[f"{name}.attn.out_proj.bias"]
    hidden = layer_norm(w, f"{name}.ln_2", x, eps) @ w[f"{name}.mlp.c_fc.weight"].T + w[f"{name}.mlp.c_fc.bias"]
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    return x + hidden @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"]


def layers(w, name):
    return sorted({key[: key.index(".", len(name) + 1)] for key in w if key.startswith(f"{name}.")})


def text_tokens(w, ids, mask, settings):
    """[A, L, D]: CLIP's projection of every token; a token sees those before it."""
    length = ids.shape[1]
    x = w["clip.token_embedding.weight"][ids] + w["clip.positional_embedding"][:length]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None, :]
    bias = torch.zeros(visible.shape, dtype=x.dtype).masked_fill(~visible, -1e30)
    for name in layers(w, "clip.transformer.resblocks"):
        x = block(w, name, x, bias, settings.heads)
    return layer_norm(w, "clip.ln_final", x) @ w["clip.text_projection"]


def frame_features(w, frames, settings):
    """[B, F, D]: CLIP's projection of every frame."""
    pixels = (frames.flatten(0, 1).double() / 255 - MEAN) / STD
    patch = w["clip.visual.conv1.weight"].shape[-1]
    x = functional.conv2d(pixels, w["clip.visual.conv1.weight"], stride=patch).flatten(2).mT
    x = (
        torch.cat([w["clip.visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        + w["clip.visual.positional_embedding"]
    )
    x = layer_norm(w, "clip.visual.ln_pre", x)
    for name in layers(w, "clip.visual.transformer.resblocks"):
        x = block(w, name, x, torch.zeros(1, dtype=x.dtype), settings.heads)
    x = layer_norm(w, "clip.visual.ln_post", x[:, 0]) @ w["clip.visual.proj"]
    return x.unflatten(0, frames.shape[:2])


def aggregate(w, frames, mask, settings):
    """What relates frames, with its residual."""
    if settings.temporal == "mean":
        return frames
    if settings.temporal == "lstm":
        return frames + lstm(w, frames) * mask[..., None]
    x = frames + w["frame_position_embeddings.weight"][: frames.shape[1]]
    bias = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(~mask, -1e30)[:, None, None, :]
    for name in layers(w, "transformerClip.resblocks"):
        x = block(w, name, x, bias, settings.heads, eps=1e-12)
    return frames + x


def lstm(w, frames):
    hidden = cell = torch.zeros_like(frames[:, 0])
    outputs = []
    for x in frames.unbind(1):
        gates = x @ w["lstm_visual.weight_ih_l0"].T + w["lstm_visual.bias_ih_l0"]
        gates = gates + hidden @ w["lstm_visual.weight_hh_l0"].T + w["lstm_visual.bias_hh_l0"]
        i, f, g, o = gates.chunk(4, -1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs, 1)


def em(x, mu, settings):
    """x + weight · reconstruction, a constant to autograd; and the mean over rows of the bases."""
    rows = x.detach()
    bases = mu.expand(len(rows), -1)
    for _ in range(settings.num_iters):
        z = torch.softmax(rows.T @ bases / settings.temperature, dim=1)
        z = z / (1e-6 + z.sum(0))
        bases = rows @ z
        bases = bases / (1e-6 + bases.norm(dim=0))
    reconstruction = bases @ z.T
    if settings.relative:
        reconstruction = reconstruction * rows.norm() / reconstruction.norm()
    return x + settings.weight * reconstruction, bases.mean(0)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def token_weights(w, name, x, mask):
    hidden = torch.relu(x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"])
    logits = (hidden @ w[f"{name}.2.weight"].T + w[f"{name}.2.bias"]).squeeze(-1)
    return torch.softmax(logits.masked_fill(~mask, -torch.inf), -1)


def similarity(w, tokens, token_mask, pooled, frames, frame_mask, mu, settings):
    """[A, B], and the mean of the bases; `mu` None leaves EM out."""
    if settings.head == "text-conditioned":
        weights = torch.softmax(torch.einsum("ad,bfd->abf", pooled, frames) / settings.pooling_temperature, -1)
        clips = torch.einsum("abf,bfd->abd", weights * frame_mask, frames)
        rows, mean = torch.cat([clips.flatten(0, 1), pooled]), None
        if mu is not None:
            rows, mean = em(rows, mu, settings)
        clips, pooled = rows[: -len(pooled)].view_as(clips), rows[-len(pooled) :]
        return torch.einsum("ad,abd->ab", unit(pooled), unit(clips)), mean
    if settings.head == "mean":
        clips = unit((unit(frames) * frame_mask[..., None]).sum(1) / frame_mask.sum(1, keepdim=True))
        texts, mean = unit(pooled), None
        if mu is not None:
            rows, mean = em(torch.cat([texts, clips]), mu, settings)
            texts, clips = unit(rows[: len(texts)]), unit(rows[len(texts) :])
        return texts @ clips.T, mean
    text_weights = token_weights(w, "text_weight_fc", tokens, token_mask)
    video_weights = token_weights(w, "video_weight_fc", frames, frame_mask)
    t, v, mean = unit(tokens), unit(frames), None
    if mu is not None:
        count = int(token_mask.sum())
        rows, mean = em(torch.cat([t[token_mask], v[frame_mask]]), mu, settings)
        t = torch.ones_like(t).masked_scatter(token_mask[..., None], unit(rows[:count]))
        v = torch.ones_like(v).masked_scatter(frame_mask[..., None], unit(rows[count:]))
    products = torch.einsum("ald,bfd->ablf", t, v)
    of_tokens = products.masked_fill(~frame_mask[None, :, None, :], settings.padding).amax(3)
    of_frames = products.masked_fill(~token_mask[:, None, :, None], settings.padding).amax(2)
    by_tokens = torch.einsum("abl,al->ab", of_tokens, text_weights)
    return (by_tokens + torch.einsum("abf,bf->ab", of_frames, video_weights)) / 2, mean


def decorrelation(w, tokens, token_mask, frames, frame_mask, off_diagonal, padding=-math.inf):
    """Of each token with the best frame of its own clip, and of each frame with the best token of its own caption."""
    text_weights = token_weights(w, "text_weight_fc", tokens, token_mask)
    video_weights = token_weights(w, "video_weight_fc", frames, frame_mask)
    t, v = unit(tokens), unit(frames)
    sides = ([], [], []), ([], [], [])
    for a in range(len(t)):
        words, pictures = t[a][token_mask[a]], v[a][frame_mask[a]]
        to_pictures = (words @ v[a].T).masked_fill(~frame_mask[a], padding)
        to_words = (pictures @ t[a].T).masked_fill(~token_mask[a], padding)
        for side, values in (
            (sides[0], (words, v[a][to_pictures.argmax(1)], text_weights[a][token_mask[a]])),
            (sides[1], (pictures, t[a][to_words.argmax(1)], video_weights[a][frame_mask[a]])),
        ):
            for part, value in zip(side, values, strict=True):
                part.append(value)
    correlation = 0
    for first, second, weight in (map(torch.cat, side) for side in sides):
        first, second = ((x - x.mean(0)) / x.std(0) for x in (first, second))
        correlation = correlation + torch.einsum("nc,nd,n->cd", first, second, weight) / len(t) / 2
    eye = torch.eye(len(correlation), dtype=correlation.dtype)
    return ((correlation - 1) ** 2 * eye).sum() + off_diagonal * (correlation**2 * (1 - eye)).sum()


def encode(w, ids, mask, frames, frame_mask, settings):
    """tokens [A, L, D], pooled [A, D], frames [B, F, D]."""
    tokens = text_tokens(w, ids, mask, settings)
    end = (ids == settings.eos).int().argmax(1)
    return (
        tokens,
        tokens[torch.arange(len(ids)), end],
        aggregate(w, frame_features(w, frames, settings), frame_mask, settings),
    )


def logit_scale(w):
    return w["clip.logit_scale"].exp()


def training_loss(w, ids, mask, frames, frame_mask, mu, settings, decorrelation_weight, off_diagonal):
    """Loss of a batch of pairs, and the maintained start of the bases after it."""
    tokens, pooled, frames = encode(w, ids, mask, frames, frame_mask, settings)
    scores, mean = similarity(w, tokens, mask, pooled, frames, frame_mask, mu, settings)
    logits = logit_scale(w) * scores
    loss = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    if settings.head == "wti" and decorrelation_weight:
        batch = tokens, mask, frames, frame_mask
        loss = loss + decorrelation_weight * decorrelation(w, *batch, off_diagonal, settings.padding)
    return loss, None if mu is None else settings.momentum * mu + (1 - settings.momentum) * mean


def evaluation(w, ids, mask, frames, frame_mask, mu, settings, em_block):
    """All captions with all clips, EM inside each block of captions and clips in their order."""
    tokens, pooled, frames = encode(w, ids, mask, frames, frame_mask, settings)
    scores = torch.empty(len(ids), len(frames), dtype=torch.float64)
    for a in range(0, len(ids), em_block):
        for b in range(0, len(frames), em_block):
            texts, clips = slice(a, a + em_block), slice(b, b + em_block)
            part = tokens[texts], mask[texts], pooled[texts], frames[clips], frame_mask[clips]
            scores[texts, clips] = similarity(w, *part, mu, settings)[0]
    return scores
