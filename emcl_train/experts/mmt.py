"""Sizes of MMT, the Multi-modal Transformer, and of EM inside it, by data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from emcl_train.errors import UserError

TIMES_OF_EXPERTS = ("s3d", "vggish")
"""Whose times are read from the file; the others' are counted, or not known."""


@dataclass(frozen=True)
class Expert:
    """What a pretrained network says of a video, a row a step."""

    width: int
    """Of a row."""
    token_type: int
    """Which row of the table of token types is added to its tokens."""
    seconds: float | None = None
    """From one step to the next, where the file has no times; None: its steps have none."""


@dataclass(frozen=True)
class BertSizes:
    """The text side. The defaults are those of bert-base-cased."""

    vocab_size: int = 28_996
    """Tokens of the vocabulary."""
    width: int = 768
    """Of every token's state."""
    layers: int = 12
    """Transformer layers."""
    heads: int = 12
    """Attention heads; they divide the width."""
    inner_width: int = 3072
    """Between the two linear maps of a layer."""
    max_positions: int = 512
    """Tokens of a caption at most."""
    dropout: float = 0.1
    """In training, of states and of attention."""


@dataclass(frozen=True)
class EMSizes:
    """EM of each expert, over the texts and videos of a batch. What runs have is `config.expert_emcl`."""

    num_bases: int = 64
    """Number of bases K."""
    num_iters: int = 5
    """E-steps and M-steps T."""
    temperature: float = 1.0
    """Of the E-step's softmax: 1 / λ, since this part of the release multiplies by λ."""
    residual_weight: float = 3.0
    """Of the reconstruction that is added to the rows."""
    momentum: float = 0.9
    """Share of the old value when the start is updated."""


@dataclass(frozen=True)
class MMTSizes:
    """One model. The defaults are those of MSR-VTT, but for the experts."""

    experts: Mapping[str, Expert]
    """By name; the model has them in the order of their sorted names."""
    width: int = 512
    """Of the video transformer, and of every embedding."""
    layers: int = 4
    """Of the video transformer."""
    heads: int = 4
    """Of the video transformer; they divide the width."""
    inner_width: int = 3072
    """Between the two linear maps of a layer."""
    max_positions: int = 32
    """Rows of the table of times: 0 for no time, 1 for an unknown one, then one a second."""
    token_types: int = 19
    """Rows of the table of token types."""
    steps: int = 30
    """Of an expert in a video at most; of longer ones, some are drawn."""
    words: int = 30
    """Tokens of a caption at most, [CLS] and [SEP] included."""
    dropout: float = 0.1
    """In training, of states and of attention, and before the weights of the experts."""
    keep_missing: bool = True
    """Whether an expert that has nothing on a video keeps its weight in the similarity, as released."""
    bert: BertSizes = field(default_factory=BertSizes)
    """The text side."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the experts, in their order."""
        return tuple(sorted(self.experts))


EXPERTS: Mapping[str, Expert] = {
    "face": Expert(512, 3),
    "ocr": Expert(300, 7),
    "rgb": Expert(2048, 5, 0.2),
    "s3d": Expert(1024, 1, 1.0),
    "scene": Expert(2208, 9, 1.0),
    "speech": Expert(300, 6),
    "vggish": Expert(128, 2, 1.0),
}
"""Those of MSR-VTT. LSMDC's faces are narrower; ActivityNet has motion and sound alone."""

SIZES: Mapping[str, MMTSizes] = {
    "msrvtt": MMTSizes(EXPERTS),
    "activitynet": MMTSizes(
        {name: EXPERTS[name] for name in ("s3d", "vggish")}, max_positions=102, token_types=10, steps=100, words=100
    ),
    "lsmdc": MMTSizes({**EXPERTS, "face": replace(EXPERTS["face"], width=128)}, token_types=10),
}

SMALL_BERT = BertSizes(vocab_size=200, width=32, layers=2, heads=2, inner_width=64, max_positions=40)
"""With random weights, for tests and trials."""


def mmt_sizes(data_set: str) -> MMTSizes:
    """The sizes of MMT on a data set.

    Args:
        data_set: "msrvtt", "activitynet" or "lsmdc".

    Raises:
        UserError: MMT has not been released for it.

    Examples:
        >>> mmt_sizes("msrvtt").names
        ('face', 'ocr', 'rgb', 's3d', 'scene', 'speech', 'vggish')
    """
    if data_set not in SIZES:
        raise UserError(f"MMT has no sizes for {data_set!r}; expected one of {', '.join(SIZES)}")
    return SIZES[data_set]


def reduced(sizes: MMTSizes, *, width: int = 32, layers: int = 2, heads: int = 2) -> MMTSizes:
    """The same model with a narrow video transformer and the small BERT; experts stay, since files have their widths.

    Args:
        sizes: to begin with.
        width: of the video transformer, which heads have to divide.
        layers: of the video transformer.
        heads: of the video transformer.
    """
    bert = replace(SMALL_BERT, max_positions=max(SMALL_BERT.max_positions, sizes.words))
    return replace(sizes, width=width, layers=layers, heads=heads, inner_width=2 * width, bert=bert)
