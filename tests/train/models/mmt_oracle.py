"""MMT and MMT + EMCL in numpy float64, written from their description alone; the names of weights are the authors'.

Every function also takes complex numbers, with an imaginary part so small that its square is zero: what comes out as
the imaginary part is then a derivative, exact to rounding (the complex step). Nothing here knows the package.
"""

import math

import numpy as np

STEP = 1e-30
erf = np.vectorize(math.erf, otypes=[float])


def constant(x):
    """Without a derivative."""
    return np.real(x)


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def softmax(x, axis=-1):
    e = np.exp(x - constant(x).max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    real = np.real(x)
    of_error = erf(real / math.sqrt(2)) + 1j * np.imag(x) * math.sqrt(2 / math.pi) * np.exp(-(real**2) / 2)
    return x * (1 + (of_error if np.iscomplexobj(x) else of_error.real)) / 2


def layer_norm(x, state, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * state[f"{name}.weight"] + state[f"{name}.bias"]


def encoder(x, mask, state, name, *, heads, norm):
    """Layers of BERT: attention, its norm, two linear maps, their norm. x [n, T, d], mask [n, T]."""
    n, tokens, width = x.shape
    layer = 0
    while f"{name}.layer.{layer}.output.dense.weight" in state:
        of = f"{name}.layer.{layer}"
        query, key, value = (
            linear(x, state, f"{of}.attention.self.{part}").reshape(n, tokens, heads, -1).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(width // heads)
        scores = scores + (1 - mask[:, None, None, :]) * -10_000.0
        seen = (softmax(scores) @ value).transpose(0, 2, 1, 3).reshape(n, tokens, width)
        x = layer_norm(x + linear(seen, state, f"{of}.attention.output.dense"), state, f"{of}.attention.output.{norm}")
        inner = gelu(linear(x, state, f"{of}.intermediate.dense"))
        x = layer_norm(x + linear(inner, state, f"{of}.output.dense"), state, f"{of}.output.{norm}")
        layer += 1
    return x


def gated_unit(x, state, name, *, training):
    y = linear(x, state, f"{name}.fc")
    gate = linear(y, state, f"{name}.cg.fc")
    of_norm = f"{name}.cg.batch_norm"
    if training:
        mean = gate.mean(0)
        variance = ((gate - mean) ** 2).mean(0)
    else:
        mean, variance = state[f"{of_norm}.running_mean"], state[f"{of_norm}.running_var"]
    gate = (gate - mean) / np.sqrt(variance + 1e-5) * state[f"{of_norm}.weight"] + state[f"{of_norm}.bias"]
    return y * sigmoid(gate)


def video_side(batch, state, *, token_types, heads, emcl=False, training=False):
    """Rows of the videos [n, M, d]. batch: features, features_t, features_ind, features_maxpool, by expert."""
    experts = sorted(token_types)
    n = len(batch["features"][experts[0]])
    positions = state["vid_bert.embeddings.position_embeddings.weight"]
    types = state["vid_bert.embeddings.token_type_embeddings.weight"]

    tokens = [np.zeros((n, 1, positions.shape[1]))]
    of_type, of_time, mask, aggregated = [[0]], [np.zeros((n, 1))], [np.ones((n, 1))], []
    for expert in experts:
        there = batch["features_ind"][expert]
        place = sum(part.shape[1] for part in tokens)
        aggregated.append(place)
        for values in (batch["features_maxpool"][expert][:, None], batch["features"][expert]):
            tokens.append(unit(linear(values, state, f"video_dim_reduce.{expert}.fc")))
            of_type.append([token_types[expert]] * values.shape[1])
        of_time += [np.zeros((n, 1)), batch["features_t"][expert]]
        mask += [there.max(1, keepdims=True), there]

    of_time = np.clip(np.concatenate(of_time, 1), 0, len(positions) - 1).astype(int)
    x = np.concatenate(tokens, 1) + positions[of_time] + types[np.concatenate(of_type)]
    x = layer_norm(x, state, "vid_bert.embeddings.layer_norm")
    x = encoder(x, np.concatenate(mask, 1), state, "vid_bert.encoder", heads=heads, norm="layer_norm")
    rows = [x[:, place] for place in aggregated]
    if emcl:
        gated = [gated_unit(r, state, f"video_GU.{e}", training=training) for r, e in zip(rows, experts, strict=True)]
        return np.stack(gated, 1)
    return unit(np.stack(rows, 1))


def bert(token_ids, mask, state, *, heads):
    """The state of the first token [n, w]."""
    of = "txt_bert.embeddings"
    x = state[f"{of}.word_embeddings.weight"][token_ids]
    x = x + state[f"{of}.position_embeddings.weight"][: token_ids.shape[1]]
    x = x + state[f"{of}.token_type_embeddings.weight"][0]
    x = layer_norm(x, state, f"{of}.LayerNorm")
    return encoder(x, mask.astype(float), state, "txt_bert.encoder", heads=heads, norm="LayerNorm")[:, 0]


def text_side(first, experts, state, *, emcl=False, training=False):
    """Rows of the texts [n, M, d] and the weights of the experts [n, M], from what BERT says [n, w]."""
    rows = np.stack([gated_unit(first, state, f"text_GU.{e}", training=training) for e in sorted(experts)], 1)
    weights = softmax(np.concatenate([linear(first, state, f"moe_fc_txt.{e}") for e in sorted(experts)], 1))
    return (rows if emcl else unit(rows)), weights


def similarity(text, video, weights):
    total = np.zeros((len(text), len(video)), dtype=np.result_type(text, video))
    for m in range(text.shape[1]):
        total = total + weights[:, m, None] * (text[:, m] @ video[:, m].T)
    return total / weights.sum(1, keepdims=True)


def em(rows, start, *, num_iters, factor, weight):
    """EM of one expert on rows [N, d] from start [K]. Returns: unit rows after it, and the mean of the bases [K]."""
    x = constant(rows)
    bases = np.repeat(start[None], len(x), 0)
    for _ in range(num_iters):
        z = softmax(factor * (x.T @ bases))
        z = z / (1e-6 + z.sum(0, keepdims=True))
        bases = x @ z
        bases = bases / (1e-6 + np.sqrt((bases**2).sum(0, keepdims=True)))
    return unit(rows + weight * (bases @ z.T)), bases.mean(0)


def em_of_experts(video, text, start, *, momentum, **settings):
    """EM of each expert over videos and texts. Returns: both after it, and the start of the next batch [M, K]."""
    rows = np.concatenate([video, text])
    done = [em(rows[:, m], start[m], **settings) for m in range(len(start))]
    after = np.stack([y for y, _ in done], 1)
    moved = momentum * start + (1 - momentum) * np.stack([mean for _, mean in done])
    return after[: len(video)], after[len(video) :], moved


def max_margin(s, margin):
    n = len(s)
    right = np.diagonal(s)
    terms = [hinge(margin - right[i] + s[i, j]) + hinge(margin - right[j] + s[i, j])
             for i in range(n) for j in range(n) if i != j]  # fmt: skip
    return sum(terms) / (2 * n * (n - 1))


def top_k_margin(s, margin, top_k):
    n = len(s)
    total = 0.0
    for square in (s, s.T):
        for i in range(n):
            others = [x if j != i and x != 0 else -1e8 for j, x in enumerate(square[i])]
            largest = sorted(others, key=np.real)[-top_k:]
            total = total + sum(hinge(margin - square[i, i] + x) for x in largest)
    return total / (2 * n * top_k)


def hinge(x):
    return x if x.real > 0 else 0.0


def derivative(function, state, name, direction):
    """Of function(state), a number, as the weights of one name move along a direction."""
    return np.imag(function(state | {name: state[name] + 1j * STEP * direction})) / STEP
