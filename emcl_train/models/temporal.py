"""What relates the frames of a clip to each other, between CLIP's vision tower and the pooling."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from emcl_train.config import ModelConfig
from emcl_train.errors import UserError
from emcl_train.kinds import TEMPORALS, class_of

OF_OTHERS = "quick_gelu"
"""How layers are activated on towers that are not CLIP's: as OpenAI's are."""


class Aggregation(nn.Module):
    """What relates the frames of a clip. `emcl_train/kinds.py` registers each one."""

    @classmethod
    def of_config(cls, config: ModelConfig, clip: CLIPModel | None, *, width: int, num_frames: int) -> "Aggregation":
        """The aggregation that these settings ask for; for the arguments see `build_temporal`."""
        raise NotImplementedError

    def forward(self, frames: Float[Tensor, "B F D"], frame_mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        raise NotImplementedError


class MeanAggregation(Aggregation):
    """Frames as they come; the similarity pools them."""

    @classmethod
    def of_config(
        cls, config: ModelConfig, clip: CLIPModel | None, *, width: int, num_frames: int
    ) -> "MeanAggregation":
        return cls()

    def forward(self, frames: Float[Tensor, "B F D"], frame_mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        return frames


class LSTMAggregation(Aggregation):
    """One causal LSTM layer with a residual. Padding stands at the end, so no valid frame sees it.

    Padding keeps its features all the same, which text-conditioned pooling counts in its softmax.

    Args:
        width: of the features.
        run_on: whether the LSTM goes on through padding; else it adds nothing there.
    """

    def __init__(self, width: int, *, run_on: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.run_on = run_on

    @classmethod
    def of_config(
        cls, config: ModelConfig, clip: CLIPModel | None, *, width: int, num_frames: int
    ) -> "LSTMAggregation":
        return cls(width, run_on=config.lstm_padding == "run-on")

    def forward(self, frames: Float[Tensor, "B F D"], frame_mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        hidden, _ = self.lstm(frames)
        if not self.run_on:
            hidden = hidden.masked_fill(~frame_mask.unsqueeze(-1), 0.0)
        return frames + hidden


class TransformerAggregation(Aggregation):
    """Transformer layers over the frames of a clip, with learned frame positions and a residual around all of it."""

    def __init__(
        self, width: int, *, layers: int, heads: int, hidden_act: str, num_frames: int, eps: float = 1e-12
    ) -> None:
        super().__init__()
        of_layer = layer_config(width, heads, hidden_act, eps)
        self.position_embedding = nn.Parameter(0.01 * torch.randn(num_frames, width))
        self.layers = nn.ModuleList(CLIPEncoderLayer(of_layer) for _ in range(layers))
        draw_layers(self.layers)

    def forward(self, frames: Float[Tensor, "B F D"], frame_mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        return frames + self.related(frames, frame_mask)

    def related(self, frames: Float[Tensor, "B F D"], frame_mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        """What the layers make of the frames, without the residual around them."""
        hidden = frames + self.position_embedding[: frames.shape[1]]
        attendable = frame_mask[:, None, None, :].expand(-1, 1, frames.shape[1], -1)  # [B, 1, F, F]

        for layer in self.layers:
            hidden = layer(hidden, attendable)
        return hidden

    @classmethod
    def of_config(
        cls, config: ModelConfig, clip: CLIPModel | None, *, width: int, num_frames: int
    ) -> "TransformerAggregation":
        made = cls(
            width,
            layers=config.temporal_layers,
            heads=heads_of_text(clip, width),
            hidden_act=OF_OTHERS if clip is None else clip.text_model.config.hidden_act,
            num_frames=num_frames,
            eps=config.temporal_eps,
        )
        if clip is not None and config.clip != "random":
            made.copy_text_layers(clip)
        return made

    def copy_text_layers(self, clip: CLIPModel) -> bool:
        """Start from CLIP's first text layers and positions, if their sizes agree.

        Returns:
            Whether they did.
        """
        text = clip.text_model
        positions = text.embeddings.position_embedding.weight
        frames, width = self.position_embedding.shape
        enough = positions.shape[0] >= frames and len(text.encoder.layers) >= len(self.layers)
        if positions.shape[1] != width or not enough:
            return False

        with torch.no_grad():
            self.position_embedding.copy_(positions[:frames])
        for layer, source in zip(self.layers, text.encoder.layers, strict=False):
            layer.load_state_dict(source.state_dict())
        return True


def layer_config(width: int, heads: int, hidden_act: str, eps: float) -> CLIPTextConfig:
    """Of one transformer layer, of the kind that CLIP's text tower has."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads,
        hidden_act=hidden_act,
        layer_norm_eps=eps,
    )
    config._attn_implementation = "sdpa"  # layers built outside a PreTrainedModel have no implementation chosen
    return config


def draw_layers(layers: nn.Module) -> None:
    """Random weights for transformer layers."""
    for name, parameter in layers.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def heads_of_text(clip: CLIPModel | None, width: int) -> int:
    """As many heads as the text tower has, so that its layers fit; without a CLIP, one for every 64 channels or more.

    Raises:
        UserError: they do not divide the width.
    """
    if clip is None:
        return next(count for count in range(max(1, width // 64), 0, -1) if width % count == 0)
    heads: int = clip.text_model.config.num_attention_heads
    if width % heads:
        raise UserError(
            f"the temporal transformer is {width} wide, which the text tower's {heads} heads do not divide; "
            f"pass --model.temporal {' or '.join(name for name, kind in TEMPORALS.items() if not kind.attends)}"
        )
    return heads


def build_temporal(config: ModelConfig, clip: CLIPModel | None, *, width: int, num_frames: int) -> Aggregation:
    """The aggregation of `config.temporal`, the transformer initialised from `clip`'s text tower (the recipe).

    Args:
        config: says which one.
        clip: whose text layers the transformer takes over if they are trained; None for towers of another family, of
            which it takes nothing but their width.
        width: of the frames' features.
        num_frames: per clip at most.

    Raises:
        UserError: the text tower's heads do not divide the width.
    """
    made: Aggregation = class_of(TEMPORALS[config.temporal]).of_config(config, clip, width=width, num_frames=num_frames)
    return made
