"""JSFusion in NumPy, in float64, from its specification: TensorFlow's layouts, names and words, no module of torch.

Arrays are channels last, weights are `[in, out]` and `[height, width, in, out]`, gates of an LSTM i, j, f, o.
"""

import numpy as np

EPSILON, DECAY = 0.001, 0.999


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


class Oracle:
    """Variables by the names of a checkpoint; training changes the moving ones among them, as it goes."""

    def __init__(self, variables, *, training):
        self.variables = {name: np.asarray(value, dtype=np.float64).copy() for name, value in variables.items()}
        self.training = training

    def fully_connected(self, x, name):
        """Without bias, and with batch normalization that has an offset alone."""
        y = x @ self.variables[f"{name}/weights"]
        moving = [f"{name}/BatchNorm/moving_mean", f"{name}/BatchNorm/moving_variance"]
        mean, variance = (self.variables[one] for one in moving)
        if self.training:
            rows = y.reshape(-1, y.shape[-1])
            mean, variance = rows.mean(0), rows.var(0)
            for one, new in zip(moving, (mean, rows.var(0, ddof=1)), strict=True):
                self.variables[one] = DECAY * self.variables[one] + (1 - DECAY) * new
        return (y - mean) / np.sqrt(variance + EPSILON) + self.variables[f"{name}/BatchNorm/beta"]

    def convolution(self, x, name, stride=1):
        """`[N, H, W, in]` without padding."""
        weights = self.variables[f"{name}/weights"]
        high, wide = weights.shape[:2]
        rows = (x.shape[1] - high) // stride + 1
        columns = (x.shape[2] - wide) // stride + 1
        found = np.zeros((len(x), rows, columns, weights.shape[3]))
        for i in range(high):
            for j in range(wide):
                seen = x[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
                found += seen[:, :rows, :columns] @ weights[i, j]
        return found + self.variables[f"{name}/biases"]

    def videos(self, features, lengths):
        """`[B, V, C]`, features at the end."""
        steps = features.shape[1]
        mask = np.array([[position >= steps - length for position in range(steps)] for length in lengths])[..., None]
        masked = np.where(mask, features, 0.0)

        hidden = masked[:, :, None, :]  # [B, V, 1, C]
        for number in (1, 2, 3):
            padded = np.pad(hidden, ((0, 0), (1, 1), (0, 0), (0, 0)))
            hidden = np.maximum(self.convolution(padded, f"video_cnn/conv{number}"), 0)
        hidden = hidden[:, :, 0]
        half = hidden.shape[-1] // 2
        gated = hidden[..., :half] * sigmoid(hidden[..., half:])
        return np.tanh(self.fully_connected(np.concatenate([gated, masked], -1), "vid_rnn_fc")) * mask

    def captions(self, word_ids, lengths):
        """`[B, W]`, words at the beginning. Without dropout."""
        mask = (np.arange(word_ids.shape[1]) < np.asarray(lengths)[:, None])[..., None]
        words = self.variables["word_embed"][word_ids] * mask

        ahead = self.lstm(words, "fw")
        back = self.lstm(words[:, ::-1], "bw")[:, ::-1]
        return np.tanh(self.fully_connected(np.concatenate([ahead, back], -1), "cap_rnn/cap_rnn_fc")) * mask

    def lstm(self, x, direction):
        cell = f"cap_rnn/bidirectional_rnn/{direction}/multi_rnn_cell/cell_0/basic_lstm_cell"
        kernel, bias = self.variables[f"{cell}/kernel"], self.variables[f"{cell}/bias"]
        width = len(bias) // 4
        c = h = np.zeros((len(x), width))
        outputs = []
        for step in range(x.shape[1]):
            gates = np.concatenate([x[:, step], h], 1) @ kernel + bias
            i, j, f, o = (gates[:, n * width : (n + 1) * width] for n in range(4))
            c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
            h = np.tanh(c) * sigmoid(o)
            outputs.append(h)
        return np.stack(outputs, 1)

    def row(self, video, video_length, captions, caption_lengths):
        """One video with all captions, `[T]`."""
        steps, words = video.shape[0], captions.shape[1]
        joint = video[None, :, None, :] * captions[:, None, :, :]

        h1 = np.tanh(self.fully_connected(joint, "multimodal/rel_h1"))
        gate = sigmoid(self.fully_connected(h1, "multimodal/rel_halp"))
        h2 = np.tanh(self.fully_connected(h1, "multimodal/rel_h2"))
        h3 = np.tanh(self.fully_connected(h2, "multimodal/rel_h3"))
        hidden = h3 * gate

        v, w = video_length, list(caption_lengths)
        hidden = hidden * self.masks(steps, words, v, w)
        for number, stride in ((1, 1), (2, 1), (3, 2)):
            content = leaky(self.convolution(hidden, f"multimodal/conv{number}", stride))
            alpha = sigmoid(self.convolution(hidden, f"multimodal/conv{number}alp", stride))
            shrink = (lambda n: max(1, n - 2)) if stride == 1 else (lambda n: max(1, (n - 1) // 2))
            v, w = shrink(v), [shrink(n) for n in w]
            hidden = content * alpha
            hidden = hidden * self.masks(hidden.shape[1], hidden.shape[2], v, w)

        hidden = hidden.sum((1, 2)) / (v * np.array(w))[:, None]
        for number in (1, 2, 3):
            hidden = leaky(self.fully_connected(hidden, f"multimodal/fc{number}"))
        return self.fully_connected(hidden, "multimodal/scorefn")[:, 0]

    @staticmethod
    def masks(rows, columns, v, w):
        """`[T, rows, columns, 1]`: the last v rows, and the first w columns of each caption."""
        found = np.zeros((len(w), rows, columns, 1))
        for caption, length in enumerate(w):
            found[caption, max(0, rows - v) :, :length] = v > 0
        return found

    def scores(self, features, video_lengths, word_ids, caption_lengths):
        """`[V, T]`, one row after the other."""
        videos = self.videos(features, video_lengths)
        captions = self.captions(word_ids, caption_lengths)
        rows = [
            self.row(video, length, captions, caption_lengths)
            for video, length in zip(videos, video_lengths, strict=True)
        ]
        return np.stack(rows)


def loss(scores):
    """Every place of every row, the diagonal among them."""
    total = 0.0
    for i in range(len(scores)):
        for j in range(len(scores)):
            total += max(0.0, 10 + scores[i, j] - scores[i, i])
    return total / len(scores) ** 2
