"""CLIP2Video: tokens of what changes between frames (TDB), and embeddings aligned to shared centres (TAB).

The specification was written from the authors' code (CryhanFang/CLIP2Video @e941318), which trains nothing. Of its
variant `sigmoid_mlp` only the shape of the projection is known: that positions are added before it and the norm stands
after it, as with the block, is inferred.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from emcl_kernels import EMCL, SimilarityStream
from emcl_train.config import ModelConfig
from emcl_train.models.em_features import AddUp, added_to_stream
from emcl_train.models.features import TextFeatures, VideoFeatures
from emcl_train.models.heads import MeanHead
from emcl_train.models.temporal import OF_OTHERS, Aggregation, draw_layers, heads_of_text, layer_config

NUM_CENTERS = 5
EXTRA_EVERY = 2
"""The head aligns frames 0, 2, 4, … once more, with what changed between them."""
OF_DIFFERENCE, OF_FRAME = 0, 1
"""Rows of the embedding of types."""
NORM_EPS = 1e-5
"""Of the norm after the block; the blocks have that of the settings."""


class FramesAndDifferences(nn.Module):
    """Frames f₁ … f_F as tokens f₁ g₁ f₂ g₂ … f_F, where g_i says what changes from f_i to f_{i+1}.

    Frames and the difference on their right have the position of the frame. A difference counts as a token if the frame
    on its left is no padding: the last one of a short clip is taken to a frame of padding, as released.

    Args:
        width: of the features.
        num_positions: of the embedding of positions.
        layer: settings of the block that looks at all differences together. None: a projection of each alone.
    """

    def __init__(self, width: int, num_positions: int, layer: CLIPTextConfig | None) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(0.01 * torch.randn(num_positions, width))
        self.type_embedding = nn.Parameter(0.01 * torch.randn(2, width))

        self.block: CLIPEncoderLayer | None = None
        self.projection: nn.Linear | None = None
        if layer is None:
            self.projection = nn.Linear(width, width, bias=False)
        else:
            self.block = CLIPEncoderLayer(layer)
            draw_layers(self.block)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def differences(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B G D"]:
        """What changes from each frame to the next, each channel between −1 and 1."""
        changes = frames[:, 1:] - frames[:, :-1] + self.position_embedding[1 : frames.shape[1]]
        if self.projection is not None:
            changes = self.projection(changes)
        elif self.block is not None and changes.shape[1] > 0:
            changes = self.block(changes, attention_mask=attendable(mask[:, 1:]))
        return 2 * torch.sigmoid(self.norm(changes)) - 1

    def forward(
        self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
        """Tokens with their positions and types, and which of them count; T is 2F − 1."""
        differences = self.differences(frames, mask)

        # The last frame has no difference on its right: one of zeros is put there, and taken off again.
        filled = torch.cat([differences, torch.zeros_like(frames[:, :1])], dim=1)
        tokens = torch.stack([frames, filled], dim=2) + self.position_embedding[: frames.shape[1], None]
        tokens = tokens + torch.stack([self.type_embedding[OF_FRAME], self.type_embedding[OF_DIFFERENCE]])
        return tokens.flatten(1, 2)[:, :-1], mask.repeat_interleave(2, dim=1)[:, :-1]


class DifferenceAggregation(Aggregation):
    """TDB: transformer layers over frames and differences, whose outputs at frames are added to the frames."""

    with_block = True

    def __init__(
        self, width: int, *, layers: int, heads: int, hidden_act: str, num_positions: int, eps: float = 1e-5
    ) -> None:
        super().__init__()
        of_layer = layer_config(width, heads, hidden_act, eps)
        self.tokens = FramesAndDifferences(width, num_positions, of_layer if self.with_block else None)
        self.layers = nn.ModuleList(CLIPEncoderLayer(of_layer) for _ in range(layers))
        draw_layers(self.layers)

    @classmethod
    def of_config(
        cls, config: ModelConfig, clip: CLIPModel | None, *, width: int, num_frames: int
    ) -> "DifferenceAggregation":
        text = None if clip is None else clip.text_model.config
        made = cls(
            width,
            layers=config.temporal_layers,
            heads=heads_of_text(clip, width),
            hidden_act=OF_OTHERS if text is None else text.hidden_act,
            # As many as CLIP's text tower has, as released, or as there are frames.
            num_positions=num_frames if text is None else max(num_frames, text.max_position_embeddings),
            eps=config.temporal_eps,
        )
        if clip is not None and config.clip != "random":
            made.copy_text_layers(clip)
        return made

    def forward(self, frames: Float[Tensor, "B F D"], frame_mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        hidden, mask = self.tokens(frames, frame_mask)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=attendable(mask))
        return frames + hidden[:, ::2]

    def copy_text_layers(self, clip: CLIPModel) -> bool:
        """Start from CLIP's first text layers and positions, if their sizes agree; types are its first two positions.

        Returns:
            Whether they did.
        """
        text = clip.text_model
        positions = text.embeddings.position_embedding.weight
        ours = self.tokens.position_embedding
        if positions.shape != ours.shape or len(text.encoder.layers) < len(self.layers):
            return False

        with torch.no_grad():
            ours.copy_(positions)
            self.tokens.type_embedding.copy_(positions[:2])
        for layer, source in zip(self.layers, text.encoder.layers, strict=False):
            layer.load_state_dict(source.state_dict())
        if self.tokens.block is not None:
            self.tokens.block.load_state_dict(text.encoder.layers[0].state_dict())
        return True


class ProjectedDifferenceAggregation(DifferenceAggregation):
    """TDB's variant `sigmoid_mlp`: each difference is projected alone, and no block looks at all of them."""

    with_block = False


class AlignedHead(MeanHead):
    """CLIP2Video: the mean of the cosine of the whole caption and clip, and that of their aligned embeddings (TAB).

    EM runs over the rows of the whole captions and clips alone, whose lengths are left as they come out of it, as
    released. With EMCL the similarity is therefore no cosine, and may be greater than one.

    Args:
        width: of the features.
        heads: of the attention of its block.
        hidden_act: of its block.
        eps: added to the variance in the norms of its block.
    """

    needs_tokens = True
    unit_after_em = False

    def __init__(self, width: int, *, heads: int, hidden_act: str = "quick_gelu", eps: float = 1e-5) -> None:
        super().__init__()
        self.block = CLIPEncoderLayer(layer_config(width, heads, hidden_act, eps))
        draw_layers(self.block)
        self.center_weight = nn.Parameter(torch.randn(NUM_CENTERS, width) / 8)
        self.centers = nn.Parameter(torch.randn(NUM_CENTERS, width) / 8)

    @classmethod
    def of_config(cls, config: ModelConfig, clip: CLIPModel | None, *, width: int) -> "AlignedHead":
        if clip is None:
            raise TypeError("the aligned head begins from CLIP's layers; require_parts refuses it for other towers")
        text = clip.text_model
        made = cls(width, heads=heads_of_text(clip, width), hidden_act=text.config.hidden_act, eps=config.temporal_eps)
        if config.clip != "random" and text.config.hidden_size == width:
            made.block.load_state_dict(text.encoder.layers[0].state_dict())
        return made

    def align(self, rows: Float[Tensor, "N L D"], mask: Bool[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        """Where rows lie from the centre that each of them is shared among, over all centres, of length one."""
        rows = rows.masked_fill(~mask.unsqueeze(-1), 0.0)
        shares = torch.softmax(rows @ self.center_weight.mT, dim=-1) * mask.unsqueeze(-1)  # [N, L, K]
        from_centers = shares.mT @ rows - shares.sum(1).unsqueeze(-1) * self.centers  # [N, K, D]
        return normalize(normalize(from_centers, dim=-1).mean(1), dim=-1)

    def align_text(self, tokens: Float[Tensor, "A L D"], mask: Bool[Tensor, "A L"]) -> Float[Tensor, "A D"]:
        """Of the tokens, without the start, which stands first."""
        without_start = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, 1:]], dim=1)
        return self.align(tokens, without_start)

    def align_video(
        self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"], temporal: nn.Module
    ) -> Float[Tensor, "B D"]:
        """Of the frames as the towers gave them, and of every second one after a look at its neighbours."""
        if not isinstance(temporal, DifferenceAggregation):
            raise TypeError(f"the aligned head needs an aggregation of differences, got {type(temporal).__name__}")
        some = frames[:, ::EXTRA_EVERY]
        some_mask = mask[:, ::EXTRA_EVERY]

        tokens, token_mask = temporal.tokens(some, some_mask)
        extra = some + self.block(tokens, attention_mask=attendable(token_mask))[:, ::2]
        return self.align(torch.cat([frames, extra], dim=1), torch.cat([mask, some_mask], dim=1))

    def similarities(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, add_up: AddUp | None
    ) -> list[Tensor]:
        """That of whole captions and clips, and that of aligned embeddings: the loss is the mean over both."""
        of_whole = super().similarity(text, video, emcl, add_up)
        return [of_whole, aligned(text.aligned_tokens) @ aligned(video.aligned_frames).mT]

    def similarity(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, add_up: AddUp | None
    ) -> Float[Tensor, "A B"]:
        of_whole, of_aligned = self.similarities(text, video, emcl, add_up)
        return (of_whole + of_aligned) / 2

    def stream(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        emcl: EMCL | None,
        em_block: int | None,
        add_up: AddUp | None = None,
    ) -> SimilarityStream:
        of_whole = super().stream(text, video, emcl, em_block, add_up)

        def with_aligned(rows: Tensor, first: int) -> Tensor:
            some = aligned(text.aligned_tokens)[first : first + len(rows)]
            return (rows + some @ aligned(video.aligned_frames).mT) / 2

        return added_to_stream(of_whole, with_aligned)


def aligned(embeddings: Tensor | None) -> Tensor:
    """The aligned embeddings of captions or clips, which are there if this head encoded them."""
    if embeddings is None:
        raise ValueError("features have no aligned embeddings, which this head compares; encode them with this model")
    return embeddings


def attendable(mask: Bool[Tensor, "B L"]) -> Bool[Tensor, "B 1 L L"]:
    """Which tokens each token looks at: those that count; all of them, if none does.

    The release adds −10⁶ to the logits of the others, and then a softmax of nothing else is the one without a mask.
    """
    seen = mask | ~mask.any(1, keepdim=True)
    return seen[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
