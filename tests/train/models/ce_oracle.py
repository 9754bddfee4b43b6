"""Collaborative Experts in numpy and float64, pair by pair, from its equations and with the authors' names of weights.

Nothing of the model is used here.
"""

import numpy as np


class Oracle:
    """The equations on one set of weights.

    Args:
        state: arrays by the authors' names.
        training: whether batch norms take their batch's statistics.
        from_copies: whether each expert is gated by the others as they were, and not as they became.
    """

    def __init__(self, state, *, training=False, from_copies=False):
        self.state = state
        self.training = training
        self.from_copies = from_copies

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x):
        of = {part: self.state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        mean, var = (x.mean(0), x.var(0)) if self.training else (of["running_mean"], of["running_var"])
        return (x - mean) / np.sqrt(var + 1e-5) * of["weight"] + of["bias"]

    def netvlad(self, name, x):
        clusters, centres = self.state[f"{name}.clusters"], self.state[f"{name}.clusters2"][0]
        sets, steps, width = x.shape
        logits = self.norm(f"{name}.batch_norm", x.reshape(sets * steps, width) @ clusters)
        shares = softmax(logits)[:, : centres.shape[1]].reshape(sets, steps, -1)

        rows = np.zeros((sets, width, centres.shape[1]))
        for b, n, k in np.ndindex(sets, steps, centres.shape[1]):
            rows[b, :, k] += shares[b, n, k] * (x[b, n] - centres[:, k])
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return unit(rows.reshape(sets, -1))

    def video(self, experts, available):
        """[B, M, d] gated embeddings; experts in sorted order."""
        current = []
        for i, name in enumerate(sorted(experts)):
            value = np.where(np.isnan(experts[name]), 0.0, experts[name])
            pooled = self.netvlad(f"pooling.{name}", value) if value.ndim == 3 else value
            current.append(unit(self.linear(f"ce.video_dim_reduce.{i}.fc", pooled)))
        there = [available[name].astype(float)[:, None] for name in sorted(experts)]

        gated = list(current)
        for i in range(len(current)):
            seen = current if self.from_copies else gated
            total, count = 0.0, 0.0
            for j in range(len(current)):
                hidden = self.linear("ce.g_reason_1", np.concatenate([seen[i], seen[j]], axis=1))
                for norm, linear in ((0, 2), (3, 5)):
                    hidden = self.norm(f"ce.g_reason_shared.{norm}", hidden)
                    hidden = hidden * np.tanh(np.log1p(np.exp(hidden)))
                    hidden = self.linear(f"ce.g_reason_shared.{linear}", hidden)
                total = total + there[i] * there[j] * hidden
                count = count + there[i] * there[j]
            mean = self.norm(f"ce.video_GU.{i}.cg.batch_norm", total / (count + 1e-11))
            own = self.norm(f"ce.video_GU.{i}.cg.batch_norm2", self.linear(f"ce.video_GU.{i}.cg.fc", seen[i]))
            gated[i] = unit(seen[i] * sigmoid(mean + own))
        return np.stack(gated, axis=1)

    def text(self, text, experts):
        """[A, M, d] embeddings and [A, M] weights of texts [A, words, width]."""
        pooled = self.netvlad("text_pooling", text)
        embeddings = []
        for i in range(experts):
            y = self.linear(f"ce.text_GU.{i}.fc", pooled)
            gate = self.norm(f"ce.text_GU.{i}.cg.batch_norm", self.linear(f"ce.text_GU.{i}.cg.fc", y))
            embeddings.append(unit(y * sigmoid(gate)))
        return np.stack(embeddings, axis=1), softmax(self.linear("ce.moe_fc", pooled))

    def similarity(self, experts, available, text):
        """[A, B] of texts [A, words, width] with videos."""
        videos = self.video(experts, available)
        embeddings, weights = self.text(text, len(experts))
        there = np.stack([available[name] for name in sorted(experts)], axis=1).astype(float)
        found = np.zeros((len(text), len(videos)))
        for a, v in np.ndindex(found.shape):
            shares = weights[a] * there[v] / (weights[a] * there[v]).sum()
            found[a, v] = sum(shares[m] * embeddings[a, m] @ videos[v, m] for m in range(len(shares)))
        return found


def max_margin(similarities, margin):
    """Mean over both directions and all n(n-1) places that are no pair."""
    n = len(similarities)
    terms = [
        max(0.0, margin - similarities[i, i] + other)
        for i, j in np.ndindex(n, n)
        if i != j
        for other in (similarities[i, j], similarities[j, i])
    ]
    return sum(terms) / (2 * n * (n - 1))


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def softmax(x):
    shares = np.exp(x - x.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
