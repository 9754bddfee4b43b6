"""Sizes of JSFusion (Yu, Kim and Kim, ECCV 2018), by data set."""

from dataclasses import dataclass

FEATURES = {"msrvtt": 2048, "lsmdc": 2176}
"""Channels of a step: ResNet-152 for MSR-VTT, and 128 of sound behind them for LSMDC. The two files do not mix."""
LEAST_STEPS = 7
"""Of video and words: three convolutions of width 3, the last of stride 2, leave one step of seven."""


@dataclass(frozen=True)
class JSFusionSizes:
    """Everything that decides the shape of a weight. What has a default has the paper's."""

    features: int
    """Channels of a step of a video."""
    vocabulary: int
    """Words that have an embedding, with index 0, which is padding."""
    steps: int = 40
    """Steps of a video."""
    words: int = 40
    """Words of a caption."""
    word_width: int = 300
    """Of an embedding: GloVe's."""
    video_channels: int = 2048
    """Of the convolutions over time; half of them is what is gated, the other half the gate."""
    width: int = 512
    """Of a step, a word, and their product."""
    recurrent: int = 512
    """Of the LSTM, each way."""
    fused: int = 256
    """Channels of the convolutions over steps and words, and of the first two layers after them."""
    last: int = 128
    """Of the layer before the score."""
    dropout: float = 0.5
    """Share that is zeroed of what goes into the LSTM and of what comes out."""

    def __post_init__(self) -> None:
        for name in ("features", "vocabulary", "word_width", "video_channels", "width", "recurrent", "fused", "last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("steps", "words"):
            if getattr(self, name) < LEAST_STEPS:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, and the convolutions need {LEAST_STEPS} or more; "
                    f"the paper has 40"
                )
        if self.video_channels % 2:
            raise ValueError(f"video_channels is {self.video_channels}, expected an even number: half of it is a gate")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected a share from 0 to below 1")


def jsfusion_sizes(dataset: str, vocabulary: int) -> JSFusionSizes:
    """The paper's sizes for a data set, "msrvtt" or "lsmdc".

    Args:
        dataset: decides the channels of a step.
        vocabulary: rows of the file of word embeddings.
    """
    if dataset not in FEATURES:
        raise ValueError(f'dataset is "{dataset}", and JSFusion has features of {", ".join(FEATURES)} alone')
    return JSFusionSizes(features=FEATURES[dataset], vocabulary=vocabulary)
