"""CLIP2Video's heads once more in numpy, written from the specification: one clip, caption and token at a time, weights
under the names of the released files. Nothing here imports the package or torch."""

import math

import numpy as np

NOT_SEEN = -1e6


def unit(x):
    return x / math.sqrt(float((x * x).sum()))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean()
    return centred / np.sqrt((centred * centred).mean() + eps) * weight + bias


def block(w, name, tokens, mask, heads):
    """Tokens [L, D] through one block: pre-norm, attention in which −10⁶ is added for what is masked, QuickGELU."""
    length, width = tokens.shape
    each = width // heads
    normed = [layer_norm(x, w[f"{name}.ln_1.weight"], w[f"{name}.ln_1.bias"]) for x in tokens]
    qkv = [w[f"{name}.attn.in_proj_weight"] @ x + w[f"{name}.attn.in_proj_bias"] for x in normed]
    attended = np.zeros((length, width))
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        for i in range(length):
            query = qkv[i][:width][part]
            logits = [query @ qkv[j][width : 2 * width][part] / math.sqrt(each) for j in range(length)]
            # One part in 10¹⁰ of −10⁶ is lost: only what is masked is moved, and all or none of it counts.
            if any(mask):
                logits = [value + (0 if seen else NOT_SEEN) for value, seen in zip(logits, mask, strict=True)]
            shares = softmax(np.array(logits))
            attended[i, part] = sum(shares[j] * qkv[j][2 * width :][part] for j in range(length))

    result = np.zeros_like(tokens)
    for i in range(length):
        x = tokens[i] + w[f"{name}.attn.out_proj.weight"] @ attended[i] + w[f"{name}.attn.out_proj.bias"]
        normed_x = layer_norm(x, w[f"{name}.ln_2.weight"], w[f"{name}.ln_2.bias"])
        hidden = w[f"{name}.mlp.c_fc.weight"] @ normed_x + w[f"{name}.mlp.c_fc.bias"]
        hidden = hidden * sigmoid(1.702 * hidden)
        result[i] = x + w[f"{name}.mlp.c_proj.weight"] @ hidden + w[f"{name}.mlp.c_proj.bias"]
    return result


def difference_tokens(w, frames, mask, heads):
    """[F − 1, D] of frames [F, D]."""
    positions = w["frame_position_embeddings.weight"]
    changes = [frames[i + 1] - frames[i] + positions[i + 1] for i in range(len(frames) - 1)]
    if not changes:
        return np.zeros((0, frames.shape[1]))
    if "frame2t_projection.weight" in w:
        changes = [w["frame2t_projection.weight"] @ change for change in changes]
    else:
        changes = block(w, "frame2t_attention.resblocks.0", np.array(changes), mask[1:], heads)
    norm = w["trans_layernorm.weight"], w["trans_layernorm.bias"]
    return np.array([2 * sigmoid(layer_norm(change, *norm)) - 1 for change in changes])


def interleaved(w, frames, mask, heads):
    """f₁ g₁ f₂ … f_F with positions and types, and the mask of each."""
    positions, types = w["frame_position_embeddings.weight"], w["type_position_embeddings.weight"]
    differences = difference_tokens(w, frames, mask, heads)
    tokens, seen = [], []
    for i, frame in enumerate(frames):
        tokens.append(frame + positions[i] + types[1])
        seen.append(bool(mask[i]))
        if i < len(differences):
            tokens.append(differences[i] + positions[i] + types[0])
            seen.append(bool(mask[i]))
    return np.array(tokens), seen


def temporal_frames(w, frames, mask, heads, layers):
    """The outputs of the temporal transformer at frames, with the frames added."""
    tokens, seen = interleaved(w, frames, mask, heads)
    for i in range(layers):
        tokens = block(w, f"transformerClip.resblocks.{i}", tokens, seen, heads)
    return np.array([frames[i] + tokens[2 * i] for i in range(len(frames))])


def whole_clip(temporal, mask):
    valid = [unit(x) for x, seen in zip(temporal, mask, strict=True) if seen]
    return unit(sum(valid) / len(valid))


def aligned(w, rows, mask):
    total = 0
    shares = [softmax(w["weight_center"] @ x) for x in rows]
    for k, center in enumerate(w["emb_center"]):
        r = sum(share[k] * (x - center) for x, share, seen in zip(rows, shares, mask, strict=True) if seen)
        total = total + unit(r)
    return unit(total / len(w["emb_center"]))


def aligned_clip(w, frames, mask, heads):
    some, some_mask = frames[::2], list(mask[::2])
    tokens, seen = interleaved(w, some, some_mask, heads)
    outputs = block(w, "actionClip.resblocks.0", tokens, seen, heads)
    extra = np.array([outputs[2 * i] + some[i] for i in range(len(some))])
    return aligned(w, np.concatenate([frames, extra]), [*mask, *some_mask])


def aligned_caption(w, tokens, mask):
    return aligned(w, tokens, [False, *mask[1:]])


def em(rows, start, num_iters, temperature, weight, eps=1e-6):
    """Rows [N, D] after EM over their D channels, from one start value a basis; lengths as they come."""
    bases = np.tile(start, (len(rows), 1))
    for _ in range(num_iters):
        shares = np.array([softmax(rows[:, d] @ bases / temperature) for d in range(rows.shape[1])])
        shares = shares / (eps + shares.sum(0))
        bases = rows @ shares
        bases = bases / (eps + np.sqrt((bases * bases).sum(0)))
    return rows + weight * bases @ shares.T


def whole_similarity(captions, clips, block=None, **settings):
    """⟨text, video⟩ of unit rows [A, D], [B, D], after an EM inside each block if there are settings of one."""
    size_a, size_b = (len(captions), len(clips)) if block is None else (block, block)
    result = np.zeros((len(captions), len(clips)))
    for a in range(0, len(captions), size_a):
        for b in range(0, len(clips), size_b):
            text, video = captions[a : a + size_a], clips[b : b + size_b]
            if settings:
                mapped = em(np.concatenate([video, text]), **settings)
                video, text = mapped[: len(video)], mapped[len(video) :]
            result[a : a + size_a, b : b + size_b] = text @ video.T
    return result


def info_nce(logits):
    """Both ways, of the pairs on the diagonal."""
    count = len(logits)
    by_text = [-math.log(softmax(logits[i])[i]) for i in range(count)]
    by_clip = [-math.log(softmax(logits[:, i])[i]) for i in range(count)]
    return (sum(by_text) + sum(by_clip)) / (2 * count)
