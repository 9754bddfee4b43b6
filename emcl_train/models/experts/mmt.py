"""MMT: a transformer over the steps of all experts of a video, compared with one gated text embedding an expert.

MMT + EMCL is the same with gated embeddings on the video's side as well, and EM between the embeddings and their
comparison, which `retrieval.MixtureModel` runs.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import BertModel

from emcl_train.experts.mmt import MMTSizes
from emcl_train.models.experts.mixture import (
    ExpertText,
    ExpertVideo,
    GatedEmbedding,
    OfExperts,
    mixture_similarity,
    unit,
)
from emcl_train.models.features import widened

EPS = 1e-12
"""Of every layer norm, as in BERT."""
DEVIATION = 0.02
"""Of the normal distribution that the weights of the video transformer are drawn from."""

ByExpert = Mapping[str, Tensor]


class MultiModalTransformer(nn.Module):
    """MMT, and what MMT + EMCL encodes with.

    Args:
        sizes: of the model.
        bert: the text side.
        gated_video: whether the videos' rows pass a gated embedding and keep their lengths, as do the texts', since EM
            brings both to length one: MMT + EMCL as released. With False, EM runs over MMT's own unit rows, such as
            those of weights that were trained without EM; nobody has published figures of that.

    Raises:
        ValueError: two experts share a token type, heads do not divide the width, or a size is too small.

    Examples:
        >>> model = MultiModalTransformer(mmt_sizes("msrvtt"), build_bert(BertSizes()))
    """

    def __init__(self, sizes: MMTSizes, bert: BertModel, *, gated_video: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.gated_video = gated_video
        names = sizes.names
        width = sizes.width
        text_width: int = bert.config.hidden_size

        # The video: each expert to one width, then a transformer over the steps of all.
        self.reduce = OfExperts({name: nn.Linear(sizes.experts[name].width, width) for name in names})
        self.video = VideoTransformer(sizes)
        self.video_gates = OfExperts(
            {name: GatedEmbedding(width, width, unit=False) for name in names} if self.gated_video else {}
        )

        # The text: what BERT says of the caption, embedded once for each expert, and the experts' weights.
        self.bert = bert
        self.text_gates = OfExperts(
            {name: GatedEmbedding(text_width, width, unit=not self.gated_video) for name in names}
        )
        self.expert_weights = OfExperts({name: nn.Linear(text_width, 1) for name in names})
        self.dropout = nn.Dropout(sizes.dropout)

        # BERT's pooler is in every checkpoint, and nothing reads what it gives.
        if (pooler := getattr(bert, "pooler", None)) is not None:
            pooler.requires_grad_(False)

    def encode_video(
        self, features: ByExpert, present: ByExpert, positions: ByExpert, maxpool: ByExpert
    ) -> ExpertVideo:
        """One row a video and expert, also of experts that have nothing on the video.

        Args:
            features: steps of each expert, `[n, F, D]`; what stands where none is present does not matter.
            present: which steps are there, `[n, F]`, bool, or 1 and 0.
            positions: the time of each step, `[n, F]`: 0 for none, 1 if not known, 2 and more for seconds + 2. They are
                cut to whole numbers; later ones than the table has share its last row.
            maxpool: greatest value of each channel over all steps, `[n, D]`.

        Returns:
            The rows, of length one, but where the model has gated embeddings; and which experts have a step.

        Raises:
            ValueError: an expert is missing from what is given, is not known, or has another width.
        """
        names = self.sizes.names
        _require_experts(self.sizes, features=features, present=present, positions=positions, maxpool=maxpool)

        # A missing expert is zeros, whose reduced form is the direction of the bias.
        there = {name: present[name] > 0 for name in names}  # [n, F]
        available = torch.stack([there[name].any(1) for name in names], dim=1)  # [n, M]
        steps = []
        aggregations = []
        for index, name in enumerate(names):
            values = features[name].masked_fill(~there[name].unsqueeze(-1), 0.0)
            steps.append(unit(self.reduce[name](values)))
            pooled = maxpool[name].masked_fill(~available[:, index, None], 0.0)
            aggregations.append(unit(self.reduce[name](pooled)))

        rows = self.video(
            aggregations,
            steps,
            [positions[name] for name in names],
            [there[name] for name in names],
            [self.sizes.experts[name].token_type for name in names],
        )
        rows = widened(rows)

        if not self.gated_video:
            return ExpertVideo(unit(rows), available)
        gated = [self.video_gates[name](rows[:, index]) for index, name in enumerate(names)]
        return ExpertVideo(widened(torch.stack(gated, dim=1)), available)

    def encode_text(self, input_ids: Int64[Tensor, "n W"], attention_mask: Int64[Tensor, "n W"]) -> ExpertText:
        """One row a caption and expert, and the weights of the experts, from what BERT says at [CLS].

        Args:
            input_ids: of the tokens, [CLS] first.
            attention_mask: 1 for tokens, 0 for padding.
        """
        encoded = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        return self.text_of(encoded.last_hidden_state[:, 0])

    def text_of(self, caption: Float[Tensor, "n T"]) -> ExpertText:
        """The same from the states of BERT at [CLS], as they may have been stored."""
        names = self.sizes.names
        embeddings = torch.stack([self.text_gates[name](caption) for name in names], dim=1)

        dropped = self.dropout(caption)
        logits = torch.cat([self.expert_weights[name](dropped) for name in names], dim=1)
        return ExpertText(widened(embeddings), torch.softmax(widened(logits), dim=1))

    def similarity(self, text: ExpertText, video: ExpertVideo) -> Float[Tensor, "A V"]:
        """All captions with all videos: cosines of each expert, added up with the text's weights."""
        rows = (text.embeddings, video.embeddings)
        if self.gated_video:
            rows = (unit(text.embeddings), unit(video.embeddings))
        return mixture_similarity(*rows, text.weights, None if self.sizes.keep_missing else video.available)


class VideoTransformer(nn.Module):
    """Layers of BERT over [CLS], and an aggregation token and the steps of each expert; read at the aggregations."""

    def __init__(self, sizes: MMTSizes) -> None:
        super().__init__()
        types = [expert.token_type for expert in sizes.experts.values()]
        if not types or len({*types, 0}) != len(types) + 1 or max(types) >= sizes.token_types:
            raise ValueError(
                f"the experts have token types {types}; expected at least one expert, each with a number of its own "
                f"from 1 to {sizes.token_types - 1}"
            )
        if sizes.max_positions < 2:
            raise ValueError(f"max_positions is {sizes.max_positions}; expected at least 2, for no time and an unknown")

        self.position_embedding = nn.Embedding(sizes.max_positions, sizes.width)
        self.type_embedding = nn.Embedding(sizes.token_types, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, eps=EPS)
        self.dropout = nn.Dropout(sizes.dropout)
        self.layers = nn.ModuleList(TransformerLayer(sizes) for _ in range(sizes.layers))
        self.pooler = nn.Linear(sizes.width, sizes.width)
        """In every checkpoint of the authors; nothing reads what it gives, so it does not learn."""
        self.pooler.requires_grad_(False)

        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=DEVIATION)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)

    def forward(
        self,
        aggregations: Sequence[Float[Tensor, "n d"]],
        steps: Sequence[Float[Tensor, "n _F d"]],
        times: Sequence[Shaped[Tensor, "n _F"]],
        there: Sequence[Bool[Tensor, "n _F"]],
        types: Sequence[int],
    ) -> Float[Tensor, "n M d"]:
        """What stands at the aggregation token of each of M experts after all layers.

        Args:
            aggregations: tokens that the experts are read at.
            steps: tokens of each expert's steps.
            times: of the steps; see `MultiModalTransformer.encode_video`.
            there: which steps are there. No token looks at the others, nor at the aggregation of an expert without any.
            types: the token type of each expert.
        """
        first = aggregations[0]
        nothing = torch.zeros_like(first).unsqueeze(1)
        no_time = torch.zeros_like(first[:, :1], dtype=torch.int64)
        always = torch.ones_like(no_time, dtype=torch.bool)

        # [CLS], and then of each expert the aggregation token and the steps.
        tokens = [nothing]
        of_time = [no_time]
        mask = [always]
        of_type = [0]
        places = []
        for token, values, time, present, kind in zip(aggregations, steps, times, there, types, strict=True):
            places.append(len(of_type))
            tokens += [token.unsqueeze(1), values]
            of_time += [no_time, time.clamp(0, self.position_embedding.num_embeddings - 1).to(torch.int64)]
            mask += [present.any(1, keepdim=True), present]
            of_type += [kind] * (1 + values.shape[1])

        positions = self.position_embedding(torch.cat(of_time, dim=1))
        kinds = self.type_embedding(torch.tensor(of_type, device=first.device))
        hidden = self.dropout(self.norm(positions + kinds + torch.cat(tokens, dim=1)))  # [n, T, d]

        # Keys that are masked get no weight at all: the release's −10 000 comes to the same, as e^−10 000 is 0.
        attendable = torch.cat(mask, dim=1)[:, None, None, :]  # [n, 1, 1, T]
        for layer in self.layers:
            hidden = layer(hidden, attendable)
        return hidden[:, places]


class TransformerLayer(nn.Module):
    """A layer of BERT: attention, its norm, two linear maps, their norm.

    It is not torch's, which drops states between the two linear maps as well, and not transformers', whose layers take
    other arguments from one version to the next.
    """

    def __init__(self, sizes: MMTSizes) -> None:
        super().__init__()
        width = sizes.width
        if width % sizes.heads:
            raise ValueError(f"width is {width}, which {sizes.heads} heads do not divide; choose a multiple of them")
        self.heads = sizes.heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attended = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.widen = nn.Linear(width, sizes.inner_width)
        self.narrow = nn.Linear(sizes.inner_width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Float[Tensor, "n T d"], attendable: Bool[Tensor, "n 1 1 T"]) -> Float[Tensor, "n T d"]:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )  # [n, heads, T, d / heads]
        dropped = self.dropout.p if self.training else 0.0
        seen = scaled_dot_product_attention(query, key, value, attn_mask=attendable, dropout_p=dropped)

        x = self.attention_norm(x + self.dropout(self.attended(seen.transpose(1, 2).flatten(2))))
        return self.norm(x + self.dropout(self.narrow(gelu(self.widen(x)))))


def _require_experts(sizes: MMTSizes, **given: ByExpert) -> None:
    """Raise a ValueError that names what an input lacks, or has too much of, or in another width."""
    for argument, by_expert in given.items():
        missing = sorted(set(sizes.names) - set(by_expert))
        unknown = sorted(set(by_expert) - set(sizes.names))
        if missing or unknown:
            lacking = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, which the model has not"
            raise ValueError(f"{argument} {lacking}; the model's experts are {', '.join(sizes.names)}")

    for argument in ("features", "maxpool"):
        for name, values in given[argument].items():
            width = sizes.experts[name].width
            if values.shape[-1] != width:
                raise ValueError(f"{argument} of {name} are {values.shape[-1]} wide; the model's are {width}")
