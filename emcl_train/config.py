"""Every setting of a run, one sentence each. A recipe (recipes.py) returns one whole `RunConfig`."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Suppress, arg
from tyro.extras import literal_type_from_choices

from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.kinds import HEADS, SYSTEMS, TEMPORALS


@dataclass
class ShapesConfig:
    """The bundled video set: clips of moving coloured shapes, rendered in the MSR-VTT layout."""

    train_clips: int = 2000
    """Clips to train on."""
    val_clips: int = 256
    """Clips to select the epoch on."""
    test_clips: int = 256
    """Clips to report on."""
    captions_per_clip: int = 5
    """Captions of varied wording for each clip."""
    size: int = 64
    """Height and width of the rendered clips in pixels."""
    seconds: float = 2.0
    """Length of each clip."""
    fps: int = 8
    """Frames per second."""
    seed: int = 0
    """Fixes every clip and caption."""


LAYOUTS = tuple(sorted(module.name for module in iter_modules([str(Path(__file__).parent / "data" / "datasets")])))
"""Names of the modules that read data sets, found without importing them."""

if TYPE_CHECKING:
    Layout = HeadName = TemporalName = SystemName = str
else:
    Layout = literal_type_from_choices(LAYOUTS)
    HeadName = literal_type_from_choices(tuple(HEADS))
    TemporalName = literal_type_from_choices(tuple(TEMPORALS))
    SystemName = literal_type_from_choices(tuple(SYSTEMS))


Cleaning = Literal["clip", "lower", "siglip", "canonicalize", "whitespace", "none"]
Resize = Literal[
    "clip", "clip-bilinear", "crop-bicubic", "crop-bilinear", "squash-bicubic", "squash-bilinear", "rounded"
]  # fmt: skip
Mode = Literal["train", "inference", "off"]
"""Where EMCL is: in training and evaluation, in evaluation only, or nowhere."""

MAX_PIXELS = 16384 * 8192
"""Of a frame, unless a run allows more: four times as many as a film all around in 8K has."""


@dataclass
class DataConfig:
    """Which clips and captions, and how they become tensors."""

    layout: Layout = "msrvtt"
    """Whose files they are; "csv" and "jsonl" are for one's own, and "shapes" is the MSR-VTT layout rendered at first
    use."""
    root: Path = Path("data/msrvtt")
    """Folder with the annotation files."""
    videos: Path | None = None
    """Folder of the clips, and of folders of clips, inside `root` or anywhere. None: `videos` in `root`; for layouts
    "csv" and "jsonl", whose rows have paths, `root`, from which these begin."""
    msrvtt_split: Literal["9k", "7k", "1k-B", "full"] = "9k"
    """For layout "msrvtt": 1k-A with the training list of 9 000 or of 7 010 clips, the full split of the JSON, or for
    CE and MMT, whose files alone have its lists, 1k-B."""
    num_frames: int = 12
    """Frames per clip at most."""
    didemo_span: Literal["released", "first-30s"] = "released"
    """For layout "didemo": of each video the seconds 0 to 31, 32 of them, as the releases take it; or the 30 seconds
    that annotators saw."""
    frame_sampling: Literal["1fps", "uniform", "2.5fps"] = "uniform"
    """"1fps": a frame a second, of which `num_frames` are chosen uniformly; "uniform": spread over the duration;
    "2.5fps": as "1fps" of half the frames of five a second, and training moves inner ones, but for cached frames."""
    frame_choice: Literal["shown", "nearest"] = "shown"
    """At a time that is sampled, the frame that is on display then; or the one that begins nearest to it, as decoders
    take it that count frames."""
    image_size: int = 224
    """Height and width of a frame after resizing and centre cropping, in pixels."""
    resize: Resize = "clip"
    """"clip": as CLIP's own preprocessing scales and crops, to the pixel; "clip-bilinear": likewise, by another filter;
    "crop-": as transformers does it for other models, by the filter that is named; "squash-": all of a picture pressed
    into the square; "rounded": by torch, with sides and offsets rounded otherwise, as version 0.2.0 and before. Models
    that are not CLIP bring their own."""
    display: Literal["watched", "rotated"] = "watched"
    """"watched": what a player shows: turned, mirrored, of the shape that its pixels have, and of several streams the
    film; "rotated": turned alone, of the first stream, as version 0.2.0 and before."""
    augment: Literal["none", "randaugment"] = "none"
    """"randaugment": the same four random operations on all frames of a training clip, as EMCL-Net has it but for
    paragraphs; here after scaling and cropping."""
    max_words: int = 32
    """Tokens per caption, start and end included."""
    clean_captions: Cleaning = "clip"
    """"clip": before captions are tokenized, wrongly decoded letters, ligatures and HTML in them are mended, as CLIP
    does it; "lower": they are written in lower case (SigLIP 2); "siglip": and without punctuation; "canonicalize":
    mended as CLIP does it, without punctuation; "whitespace": mended, in their own case (both OpenCLIP); "none": what
    the tokenizer's own file says. Models that are not CLIP bring their own."""
    train_captions: Literal["one", "all"] = "one"
    """"one": in an epoch each clip comes once, with one of its captions; "all": once with each of them, as released."""
    test_captions: Literal["one", "all"] = "one"
    """"one": the test file's sentence (1k-A) or each clip's first; "all": every caption of a test clip is a query."""
    validation_clips: int = 500
    """Held out of the training list to select the epoch, where the annotations name no separate validation clips."""
    on_bad_video: Literal["stop", "skip"] = "stop"
    """What to do about clips that cannot be decoded: stop with their list, or leave them out and count them."""
    max_pixels: int = MAX_PIXELS
    """Pixels of a frame at most: a clip whose file has larger frames is one that cannot be decoded."""
    outside_root: Literal["allow", "refuse"] = "allow"
    """What to do about annotations that name files outside `root` and `videos`, by absolute paths, by ".." or through
    links: read them, or stop and name them."""
    cache_frames: bool = False
    """Keep the sampled uint8 frames of every clip in a memory-mapped file, so that each clip is decoded once."""
    cache_dir: Path | None = None
    """Folder for cached frames and for what is remembered of clips, in `root` or anywhere. None: a folder in the user's
    cache, $XDG_CACHE_HOME or ~/.cache; ".emcl" keeps it beside the data."""
    workers: int = 2
    """Processes that decode clips."""
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    """What to render for layout "shapes"."""


@dataclass
class PlaceConfig:
    """Where a run's data set lies now, and how its clips are read: nothing that the model depends on."""

    root: Path
    """Folder with the annotation files."""
    videos: Path | None
    """Folder of the clips, inside `root` or anywhere."""
    on_bad_video: Literal["stop", "skip"]
    """What to do about clips that cannot be decoded: stop with their list, or leave them out and count them."""
    max_pixels: int
    """Pixels of a frame at most: a clip whose file has larger frames is one that cannot be decoded."""
    outside_root: Literal["allow", "refuse"]
    """What to do about annotations that name files outside `root` and `videos`: read them, or stop and name them."""
    cache_frames: bool
    """Keep the sampled frames of every clip in a memory-mapped file."""
    cache_dir: Path | None
    """Folder for cached frames and for what is remembered of clips; None: a folder in the user's cache."""
    workers: int
    """Processes that decode clips."""

    @classmethod
    def of(cls, data: DataConfig) -> "PlaceConfig":
        return cls(**{name.name: getattr(data, name.name) for name in fields(cls)})

    @classmethod
    def of_run(cls, data: DataConfig) -> "PlaceConfig":
        """The same for a run whose configuration somebody else may have written.

        It decides what is read, and not what is written where: frames are cached, if at all, where the user says, and
        the limit on frames is no higher than it is without the run.
        """
        written_elsewhere = data.cache_dir is not None
        return replace(
            cls.of(data),
            max_pixels=min(data.max_pixels, MAX_PIXELS),
            cache_frames=data.cache_frames and not written_elsewhere,
            cache_dir=None,
        )


MOST_PATCHES = 7
"""Along a side of a frame, of a CLIP with random weights: attention over more makes a smoke test slow."""


@dataclass
class RandomClipConfig:
    """Size of a CLIP with random weights, for `model.clip = "random"`."""

    width: int = 128
    """Width of both towers and of the shared embedding."""
    layers: int = 3
    """Transformer layers of each tower."""
    heads: int = 4
    """Attention heads of each tower."""
    patch_size: int | None = None
    """Side of an image patch in pixels. None: the smallest that makes no more than 7 × 7 patches of a frame."""

    def patch_of(self, image_size: int) -> int:
        """Side of a patch for frames of this size."""
        if self.patch_size is not None:
            return self.patch_size
        sides = (side for side in range(1, image_size + 1) if image_size % side == 0)
        return next(side for side in sides if image_size // side <= MOST_PATCHES)


@dataclass
class AnswerConfig:
    """Sizes of the head of video question answering; the released ones."""

    joint: int = 2048
    """Width to which a video and a question are projected; EMCL runs on it."""
    hidden: int = 8192
    """Width of the classifier's first layer."""


@dataclass
class ModelConfig:
    """CLIP's towers and what stands between them and the similarity."""

    clip: str = "openai/clip-vit-base-patch32"
    """A hub name, one of OpenAI's models (`ViT-B/32`), a folder in the transformers layout, a file with OpenAI's names
    (`ViT-B-32.pt`), or "random" for a small CLIP with random weights. Names and folders may be of other models, such as
    SigLIP 2, which bring their own pictures, captions and loss."""
    random_clip: RandomClipConfig = field(default_factory=RandomClipConfig)
    """Size of the towers when `clip` is "random"."""
    temporal: TemporalName = "transformer"
    """What relates the frames of a clip: nothing, an LSTM, a transformer, or CLIP2Video's transformer over frames and
    what changes between them, made by a block or by a projection; all but the first with a residual."""
    temporal_layers: int = 4
    """Layers of the temporal transformer."""
    head: HeadName = "text-conditioned"
    """How features become a similarity: EMCL-Net's pooling for each text, CLIP4Clip's mean of unit frames, DRL's
    weighted token-wise interaction, or CLIP2Video's mean of CLIP4Clip's and one of aligned embeddings."""
    pooling_temperature: float = 3.0
    """Temperature of the text-conditioned softmax over frames."""
    temporal_eps: float = 1e-12
    """Added to the variance in the norms of the temporal transformer; CLIP's own towers have 1e-5."""
    lstm_padding: Literal["zero", "run-on"] = "zero"
    """What the LSTM adds to padding frames, which the text-conditioned softmax counts: nothing, as released, or what it
    makes of them."""
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    """Sizes of the head that answers questions, for layout "msrvttqa"."""
    wti_padding: Literal["left-out", "zero"] = "left-out"
    """Whether the head "wti" looks for the best partner among padding too: no, or as DRL was released, where padding is
    one of similarity 0."""
    init_from: Path | None = None
    """Start from the whole model in this file: a checkpoint of the EMCL release or of CLIP4Clip, or another run, whose
    folder means its best weights. Sizes of the towers are those of the file; `clip` then only names the tokenizer."""
    tokenizer: str | None = None
    """A hub name or a folder with CLIP's tokenizer. None: that of `clip`, openai/clip-vit-base-patch32 where that is a
    file, and words counted in the training captions where it is "random"."""
    system: SystemName = "clip"
    """"clip": CLIP's towers, as all settings above have them; "ce", "mmt", "jsfusion": those that compare features of
    other networks, by the settings of `experts`."""


@dataclass
class ExpertsConfig:
    """The systems on features of experts. What is None is as the authors have it for the data set of `sizes`."""

    sizes: Literal["msrvtt", "activitynet", "lsmdc", "own"] = "msrvtt"
    """Whose experts and sizes; "own": a folder of your own features, whose files say what experts there are and how
    wide."""
    names: tuple[str, ...] | None = None
    """Which experts. None: all of the system; with "own", all that the folder has."""
    widths: Literal["published", "files"] = "published"
    """How wide features are to be: as in the authors' files, or as these files have them, of whatever networks."""
    text: str = "bert-base-cased"
    """For "mmt": a BERT by its hub name or folder, or "random" for a small one. CE and JSFusion read what they need of
    texts from the files."""
    width: int | None = None
    """Of the embeddings that are compared."""
    hidden: int | None = None
    """For "mmt": between the two linear maps of a layer of the video transformer."""
    layers: int | None = None
    """For "mmt": layers of the video transformer."""
    heads: int | None = None
    """For "mmt": heads of the video transformer."""
    token_types: int | None = None
    """For "mmt": rows of its table of token types. On ActivityNet and LSMDC it has 10; with 19 it takes the weights of
    HowTo100M for a start."""
    max_steps: int | None = None
    """Steps of an expert in a video at most."""
    dropout: float | None = None
    """For "mmt": in training, of the video transformer, and of what the experts' weights are made of on the text's
    side. BERT has its own."""
    missing: Literal["kept", "left-out"] = "kept"
    """For "mmt": whether an expert that has nothing on a video keeps its weight in the similarity, as released."""
    gated_video: bool = False
    """For "mmt": videos are gated like texts, and neither is of length one before EM, as MMT + EMCL has it. It stays
    so where such a run is evaluated without EM."""


OF_MMT = ("text", "hidden", "layers", "heads", "token_types", "dropout", "missing", "gated_video")
"""Settings of `ExpertsConfig` that MMT alone has."""


@dataclass
class EMCLConfig:
    """Expectation-maximization contrastive learning."""

    mode: Mode = "train"
    """"train": in training and evaluation; "inference": in evaluation only, for which the other settings then have the
    paper's values, K = 7, T = 10, temperature 0.1, weight 4; "off": nowhere. A recipe of another system has values for
    each, see `recipes.in_mode`."""
    num_bases: int = 32
    """Number of bases K."""
    num_iters: int = 9
    """E-steps and M-steps per batch T."""
    temperature: float = 1.0
    """Temperature of the E-step's softmax."""
    residual_weight: float = 3.0
    """Weight of the reconstruction that is added to the features."""
    momentum: float = 0.9
    """Share of the old value when the maintained initial bases are updated."""
    init: Literal["sign", "normal"] = "sign"
    """Start of the maintained bases: ±1 as released, or normal numbers."""
    scale: Literal["release", "relative"] = "release"
    """"relative" weighs the reconstruction by the ratio of the features' norm to its own."""
    gradient: Literal["identity", "linear", "full"] = "identity"
    """What backward goes through: nothing of EM (as released), the fitted linear map, or every iteration."""

    def of_layer(self) -> dict[str, Any]:
        """The arguments of `emcl_kernels.EMCL`: all but where it is used."""
        settings = asdict(self)
        del settings["mode"]
        return settings


def inference_emcl() -> EMCLConfig:
    """The paper's settings for EMCL as an inference module, on weights that were trained without it."""
    return EMCLConfig(mode="inference", num_bases=7, num_iters=10, temperature=0.1, residual_weight=4.0)


def expert_emcl(sizes: str, mode: Mode) -> EMCLConfig:
    """EMCL inside MMT as released, by data set; its release has no other settings for inference."""
    num_bases, num_iters = (16, 9) if sizes == "lsmdc" else (64, 5)
    return EMCLConfig(mode, num_bases, num_iters, temperature=1.0, residual_weight=3.0, momentum=0.9, init="normal")


Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio", "none"
]
"""Those that accelerate knows."""


@dataclass
class TrainConfig:
    """Optimisation. The defaults are EMCL-Net's recipe, but for `optimizer` and `frozen`, which recipes set."""

    epochs: int = 5
    """Passes over the training pairs."""
    max_steps: int | None = None
    """Stop after this many steps, whatever `epochs` says. 0: evaluate what the run starts from, such as a checkpoint of
    `model.init_from`."""
    batch_size: int = 128
    """Pairs per step over all processes."""
    batches: Literal["distinct", "any"] = "distinct"
    """Where each caption is a pair: "distinct", batches of distinct clips; "any", of one shuffle of all pairs as
    released, where each of two captions of a clip then counts as wrong for the other's copy of the clip."""
    chunks: int = 1
    """Encode a batch in this many parts: the same gradients in less memory, for a second forward pass."""
    optimizer: Literal["bertadam", "adamw", "adam", "ranger"] = "adamw"
    """"bertadam": the peers', BERT's Adam without a correction of bias, its cosine counted from step 0 and its first
    rate 0; "adamw": torch's AdamW, with a cosine that begins after the warm-up; "adam" (MMT, JSFusion) and "ranger"
    (CE): with a rate that falls in stairs."""
    frozen: Literal["none", "conv1", "clip4clip"] = "none"
    """Which weights of CLIP stay as they are: "conv1", that of the image patches (EMCL-Net); "clip4clip", those before
    the first layers of both towers (patches, class, tokens, both positions, first norm)."""
    lr: float = 1e-4
    """Peak learning rate of everything that is not CLIP."""
    clip_lr_factor: float | None = None
    """CLIP's learning rate as a share of `lr`. None: 1e-3 for trained weights, as in the recipe, 1 for random ones and
    for adapters (`lora`). 0 freezes the towers; the logit scale then learns with the rest."""
    weight_decay: float = 0.2
    """Decoupled weight decay: with "bertadam" of everything without "bias" in its name, with "adamw" of matrices, with
    "ranger" of everything; with "adam" it is added to every gradient."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's decay rates."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises linearly; then it falls, as a cosine or in stairs."""
    lr_decay: float = 1.0
    """With "adam" and "ranger": factor of the learning rate from one stair to the next."""
    lr_decay_steps: int | None = None
    """With "adam" and "ranger": steps of a stair. None: those of an epoch."""
    loss: Literal["info-nce", "sigmoid", "max-margin", "top-k-margin", "pair-margin"] = "info-nce"
    """"info-nce": the symmetric contrastive loss; "sigmoid": SigLIP's, of each pair for itself, with a bias that is
    learnt, which a model that was trained with it has unless another is named; "max-margin": CE's and MMT's, over both
    directions; "top-k-margin": that of the hardest others (MMT + EMCL); "pair-margin": JSFusion's, of each video with
    all captions."""
    margin: float = 0.05
    """Of the losses with one: by how much a right pair is to exceed others."""
    top_k: int = 1
    """Of the loss "top-k-margin": how many others count, the most similar ones."""
    decorrelation_weight: float = 1.4e-4
    """Weight in the loss of DRL's channel decorrelation on pairs, for the head "wti"; 0 leaves it out."""
    decorrelation_off_diagonal: float = 0.0
    """In it, weight of correlations between different channels beside that of equal ones; 0 as DRL was released."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm. None: they stay as they are."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision of the towers."""
    gradient_checkpointing: bool = False
    """Keep only the input of each of the towers' layers, and compute the layer again in the backward pass: the same
    gradients in less memory, for a second forward pass."""
    compile_towers: bool = False
    """Train the towers through torch.compile, which needs a C++ compiler, or Triton on a GPU. Validations and
    evaluations run as without it."""
    lora: int = 0
    """Rank of adapters (LoRA, through peft) on the attention of both towers, whose own weights then stay as they are;
    the weights that a run keeps have them added in. 0: none."""
    lora_alpha: float = 16.0
    """What an adapter gives is multiplied by this over its rank."""
    lora_dropout: float = 0.0
    """Dropout of what goes into adapters, in training."""
    seed: int = 0
    """Fixes weights, order and captions."""
    save_every: int = 100
    """Steps between full states for resuming; one is also saved after every epoch."""
    keep: Literal["best", "last"] = "best"
    """Which weights are kept and reported: of the epoch that is best on the validation split, or of the last one, as CE
    on 1k-A and MMT are reported."""
    select_on_test: Annotated[bool, arg(prefix_name=False)] = False
    """Keep the epoch that is best on the test split instead of the validation split. Published figures often do, and
    are too high for it; the table says so."""
    select_by: Literal["R@1", "geometric-mean"] = "R@1"
    """By which text→video figure an epoch is the best: R@1, or as CE has it the geometric mean of R@1, R@5 and R@10."""
    validate_every: int | None = None
    """Validate, and keep the weights, at the end of the epoch in which another so many steps were done, and after the
    last one. None: after every epoch, which takes long where an epoch is a few steps."""
    tracker: Tracker = "tensorboard"
    """Where losses and validations are logged besides metrics.jsonl; "tensorboard" writes to `tracker` in `out`."""


@dataclass
class EvalConfig:
    """Retrieval metrics on a split."""

    batch_size: int = 64
    """Clips, or captions, encoded at a time."""
    em_block: int | None = None
    """EM inside blocks of this many texts × videos (the release: 32), or over everything at once."""
    inverted_softmax_temperature: float = 0.01
    """Temperature of the inverted softmax row."""
    query_bank: int = 1000
    """Training clips, each with a caption, that QB-Norm takes for its bank; 0 leaves its row out."""
    qb_norm_temperature: float = 0.05
    """Temperature of QB-Norm, 1 / β; its paper uses β = 20."""
    em_rows: int | None = None
    """For systems on experts, without `em_block`: one map an expert, made as if there were so many captions and videos.
    None: those of a training batch, twice `train.batch_size`; 0: as many as there are, which does little to each."""


OF_BANK = ("num_neighbors", "bank_weight")
"""Settings of `RefineConfig` that only a bank has."""


@dataclass
class RefineConfig:
    """Settings of `emcl_kernels.Refiner`. Those of a map that are not given have its defaults."""

    map: Literal["whitening", "em", "mean", "none"] = "whitening"
    """Which linear map: "whitening" shortens directions in which rows vary much; "em" is EMCL's; "mean" takes a share
    of each side's mean out and no more."""
    strength: float | None = None
    """Of whitening: how much an average direction is shortened (0.02)."""
    mean_share: float | None = None
    """Share of each side's mean that is taken out (whitening 0.4, em 0.58, mean 0.7)."""
    fit_mean_share: float | None = None
    """Share of each side's mean that the map does not see (0.7)."""
    num_bases: int | None = None
    """Of em: bases of one run of EM (32)."""
    num_starts: int | None = None
    """Of em: runs of EM whose maps are averaged (4)."""
    num_iters: int | None = None
    """Of em: iterations (5)."""
    temperature: float | None = None
    """Of em: of its softmax, in units of a channel's length (0.6)."""
    weight: float | None = None
    """Of em: of the reconstruction (-0.07); below zero, what rows have in common is taken out."""
    seed: int | None = None
    """Of em: which channels the bases start from (0)."""
    normalize: bool = True
    """Bring rows to length one first."""
    num_neighbors: int | None = None
    """Of a bank: how many of its queries count for an item, the nearest ones (10)."""
    bank_weight: float | None = None
    """Of a bank: what an item's mean cosine with those is multiplied by and taken from its scores (0.5)."""

    def of_map(self) -> dict[str, Any]:
        """The settings of the map that were given."""
        others = ("map", "normalize", *OF_BANK)
        return {name: value for name, value in asdict(self).items() if value is not None and name not in others}

    def of_bank(self) -> dict[str, Any]:
        """The settings of the bank that were given."""
        return {name: value for name in OF_BANK if (value := getattr(self, name)) is not None}


@dataclass
class RunConfig:
    """One run: what is trained, on what, and where it is written."""

    recipe: Suppress[str] = "shapes"
    """Name of the recipe that this configuration started from."""
    out: Path = Path("runs/shapes")
    """Run folder; it is created, and never overwritten without --resume."""
    from_features: Path | None = None
    """Train and evaluate on the features in this folder, which `embed` wrote, in place of videos; towers are frozen."""
    resume: bool = False
    """Go on from the last full state in `out`."""
    seeds: int = 1
    """Train this many times, with seeds from `train.seed` on, in folders of `out`; report mean ± deviation."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    emcl: EMCLConfig = field(default_factory=EMCLConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)

    @property
    def answers_questions(self) -> bool:
        """Whether it is no retrieval: the captions of its data set are questions, each with an answer."""
        return self.data.layout in QUESTION_LAYOUTS

    @property
    def rows_of_em(self) -> int | None:
        """Of a system on experts, as if of how many captions and videos EM's maps are made in an evaluation.

        None: of as many as there are; or it has no such maps, since EM is off or runs in blocks.
        """
        if self.model.system == "clip" or self.emcl.mode == "off" or self.eval.em_block is not None:
            return None
        asked = self.eval.em_rows
        return 2 * self.train.batch_size if asked is None else asked or None


QUESTION_LAYOUTS = ("msrvttqa",)
"""Layouts whose captions are questions with answers."""

BEFORE: dict[str, Any] = {
    "data.resize": "rounded",
    "data.display": "rotated",
    "data.didemo_span": "first-30s",
    "data.clean_captions": "none",
    "model.temporal_eps": 1e-5,
    "model.lstm_padding": "run-on",
    "train.optimizer": "adamw",
    "train.frozen": "none",
}
"""By the name of a setting, what a config.json without it means: how such runs were made before there was the setting.
A setting that is new needs a line here, unless its default is what was done before."""

DEFAULTS_BEFORE: dict[str, Any] = {"model.random_clip.patch_size": 8}
"""By the name of a setting, the default that earlier versions wrote into config.json: such a run goes on with it."""

RECIPES_BEFORE: dict[str, dict[str, Any]] = {
    "activitynet": {"data.augment": "randaugment"},
    "didemo": {"data.augment": "randaugment"},
}
"""By the name of a recipe, values that it gave to settings which there were already: an older run goes on with them."""

NOT_OF_THE_MODEL = (
    "out",
    "resume",
    "seeds",
    "train.tracker",
    "train.gradient_checkpointing",
    "train.compile_towers",
    "data.outside_root",
    "data.cache_frames",
    "data.cache_dir",
    "data.workers",
)


def differing_settings(saved: RunConfig, asked: RunConfig) -> list[str]:
    """Settings of two runs that differ, as "name: saved, now asked", but for those that change nothing of the model."""
    first = flattened(asdict(saved))
    second = flattened(asdict(asked))
    names = [name for name in first if name not in NOT_OF_THE_MODEL and str(first[name]) != str(second[name])]
    return [f"{name} was {first[name]}, now {second[name]}" for name in names]


def but_for_its_cache(config: RunConfig) -> RunConfig:
    """A run's settings without the place that they name for a cache: a stranger's run writes nothing anywhere."""
    place = PlaceConfig.of_run(config.data)
    return replace(config, data=replace(config.data, cache_frames=place.cache_frames, cache_dir=place.cache_dir))


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"root": "x"}} → {"data.root": "x"}, as settings are named everywhere."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def check_config(config: RunConfig) -> None:
    """Look at every setting that has a range.

    Raises:
        UserError: a setting is outside its range; the first one is named.
    """
    for name, value, valid, expected in _ranges(config):
        if not valid:
            way_out = f"leave out {flag(name)}" if value is True else f"pass {flag(name)} with such a value"
            raise UserError(f"{name} is {value}, expected {expected}; {way_out}")
    if config.model.system != "clip":
        _check_experts(config)


def _ranges(config: RunConfig) -> Iterator[tuple[str, object, bool, str]]:
    """Each setting that has a range: its name, its value, whether that is valid, and what would be."""
    for section, names in _AT_LEAST_ONE.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            yield f"{section}.{name}", value, value is None or value >= 1, "1 or more"
    for section, names in _POSITIVE.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            valid = value is None or (value > 0 and math.isfinite(value))
            yield f"{section}.{name}", value, valid, "a positive number"

    model = config.model
    fits = TEMPORALS[model.temporal].differences or not HEADS[model.head].differences
    differing = " or ".join(name for name, kind in TEMPORALS.items() if kind.differences)
    yield "model.temporal", model.temporal, fits, f"{differing}, which the head {model.head} needs"

    split = config.data.msrvtt_split
    of_experts = split != "1k-B" or model.system in ("ce", "mmt")
    yield (
        "data.msrvtt_split",
        split,
        of_experts,
        "9k, 7k or full, since the files of CE and MMT alone have lists of 1k-B",
    )

    if config.answers_questions:
        yield from _ranges_of_answers(config)

    train = config.train
    yield "train.batch_size", train.batch_size, train.batch_size >= 2, "2 or more, since a pair learns from the others"
    valid_chunks = f"1 to {train.batch_size}, the pairs of a batch"
    yield "train.chunks", train.chunks, 1 <= train.chunks <= train.batch_size, valid_chunks
    yield "train.weight_decay", train.weight_decay, train.weight_decay >= 0, "0 or more"
    yield "train.margin", train.margin, train.margin >= 0 and math.isfinite(train.margin), "0 or more"
    yield "train.lr_decay", train.lr_decay, 0 < train.lr_decay <= 1, "a number above 0, at most 1"
    steps = train.max_steps
    yield "train.max_steps", steps, steps is None or steps >= 0, "0 or more (0: no training)"
    kept = train.keep == "best" or not train.select_on_test
    yield "train.keep", train.keep, kept, "best, from which --select-on-test is to choose"
    fewer = train.loss != "top-k-margin" or train.top_k <= train.batch_size
    yield "train.top_k", train.top_k, fewer, f"1 to {train.batch_size}, the pairs of a batch"
    for name in ("decorrelation_weight", "decorrelation_off_diagonal"):
        value = getattr(train, name)
        yield f"train.{name}", value, value >= 0 and math.isfinite(value), "0 or more"

    # Towers of features are not there to be trained: 0 and None both leave them alone.
    factor = train.clip_lr_factor
    frozen = factor is None or config.from_features is None
    yield "train.clip_lr_factor", factor, frozen or factor == 0, "0 or none, since towers of features are frozen"
    yield "train.clip_lr_factor", factor, factor is None or (factor >= 0 and math.isfinite(factor)), "0 or more"

    yield from _ranges_of_memory(config)

    rows = config.eval.em_rows
    yield "eval.em_rows", rows, rows is None or config.model.system != "clip", "None, since CLIP's systems have blocks"
    apart = rows is None or config.eval.em_block is None
    yield "eval.em_rows", rows, rows is None or rows >= 0, "0 or more (0: as many as there are)"
    yield "eval.em_rows", rows, apart, "None where eval.em_block says in which blocks EM runs"
    dropout = config.experts.dropout
    yield "experts.dropout", dropout, dropout is None or 0 <= dropout < 1, "a share from 0 to below 1"

    yield "train.warmup", train.warmup, 0 <= train.warmup <= 1, "a share between 0 and 1"
    yield "eval.query_bank", config.eval.query_bank, config.eval.query_bank >= 0, "0 or more (0: no QB-Norm)"
    yield "seeds", config.seeds, config.seeds >= 1, "1 or more"
    yield "train.betas", train.betas, all(0 <= beta < 1 for beta in train.betas), "two numbers from 0 to below 1"
    yield "emcl.momentum", config.emcl.momentum, 0 <= config.emcl.momentum <= 1, "a share between 0 and 1"
    yield "data.workers", config.data.workers, config.data.workers >= 0, "0 or more (0: the main process decodes)"
    yield "data.max_words", config.data.max_words, config.data.max_words >= 3, "3 or more: start, one word, end"


def _ranges_of_memory(config: RunConfig) -> Iterator[tuple[str, object, bool, str]]:
    """What saves memory of towers that are trained, and where it cannot."""
    train = config.train
    random = config.model.clip == "random" and config.model.init_from is None
    stored = config.from_features is not None

    # Towers that are not there, or have no backward pass.
    for name, off in (("gradient_checkpointing", False), ("compile_towers", False), ("lora", 0)):
        value = getattr(train, name)
        yield f"train.{name}", value, value == off or not stored, f"{off}, since no towers run on stored features"
    still = train.clip_lr_factor == 0
    again = train.gradient_checkpointing
    yield "train.gradient_checkpointing", again, not (again and still), "False, since frozen towers keep no activations"

    # Adapters.
    rank = train.lora
    yield "train.lora", rank, rank >= 0, "0 or more (0: no adapters)"
    learns = not (rank and still)
    yield (
        "train.clip_lr_factor",
        train.clip_lr_factor,
        learns,
        "None or above 0, since adapters (train.lora) are to learn",
    )
    fitting = "0, since adapters change trained weights little, and random ones have all to learn"
    yield "train.lora", rank, not (rank and random), fitting
    whole = not rank or train.frozen == "none"
    yield (
        "train.frozen",
        train.frozen,
        whole,
        "none, since with adapters (train.lora) all weights of the towers are frozen",
    )
    dropout = train.lora_dropout
    yield "train.lora_dropout", dropout, 0 <= dropout < 1, "a share from 0 to below 1"
    for name, usual in (("lora_alpha", TrainConfig.lora_alpha), ("lora_dropout", TrainConfig.lora_dropout)):
        value = getattr(train, name)
        yield f"train.{name}", value, rank != 0 or value == usual, f"{usual}, since there are no adapters (train.lora)"


def _ranges_of_answers(config: RunConfig) -> Iterator[tuple[str, object, bool, str]]:
    """What a run that answers questions cannot do."""
    mode = config.emcl.mode
    yield "emcl.mode", mode, mode != "inference", "train or off, since answers do not pass through EMCL"
    yield "train.chunks", config.train.chunks, config.train.chunks == 1, "1 for question answering"
    temporal = config.model.temporal
    yield "model.temporal", temporal, temporal == "transformer", "transformer, which question answering has"
    for name in ("train", "test"):
        value = getattr(config.data, f"{name}_captions")
        yield f"data.{name}_captions", value, value == "all", "all, since each question is one of its own"
    features = config.from_features
    yield "from_features", features, features is None, "none, since question answering reads videos"
    yield "train.loss", config.train.loss, config.train.loss == "info-nce", "info-nce for question answering"


def _check_experts(config: RunConfig) -> None:
    """Raise a UserError that says what a system on experts cannot do."""
    system = SYSTEMS[config.model.system]
    emcl = config.emcl
    on = emcl.mode != "off"
    if on and not system.emcl:
        raise UserError(
            f"emcl.mode is {emcl.mode}, and {system.label} has one score for a pair, and no rows that EMCL could act "
            f"on; pass {flag('emcl.mode')} off"
        )

    if config.train.loss == "sigmoid":
        raise UserError(
            f"train.loss is sigmoid, and {system.label} has no bias, which that loss adds to logits; pass "
            f"{flag('train.loss')} max-margin, or another"
        )

    if config.data.cache_frames:
        raise UserError(
            f"data.cache_frames is True, and {system.label} reads features and no frames; pass "
            f"{flag('data.no_cache_frames')}"
        )

    # One value each: EM of experts, the batch norms, and what stands in for CLIP's towers leave no choice.
    only: list[tuple[str, object, object, str]] = [
        ("train.chunks", config.train.chunks, 1, "batch norms look at the whole batch"),
        ("from_features", config.from_features, None, "it has no towers whose features could be stored"),
        ("train.gradient_checkpointing", config.train.gradient_checkpointing, False, "it has no towers"),
        ("train.compile_towers", config.train.compile_towers, False, "it has no towers"),
        ("train.lora", config.train.lora, 0, "it has no towers"),
    ]
    if on:
        only += [
            ("emcl.init", emcl.init, "normal", "EM of each expert starts from normal numbers"),
            ("emcl.scale", emcl.scale, "release", "EM of each expert is the release's"),
            ("emcl.gradient", emcl.gradient, "identity", "EM of each expert is a constant to the gradient"),
        ]
    for name, value, one, why in only:
        if value != one:
            way_out = f"leave out {flag(name)}" if value is True else f"pass {flag(name)} {one}"
            raise UserError(f"{name} is {value}, and for {system.label} it can be {one} alone, since {why}; {way_out}")

    if config.model.system != "mmt":
        default = ExpertsConfig()
        for name in OF_MMT:
            if (value := getattr(config.experts, name)) != getattr(default, name):
                raise UserError(
                    f"experts.{name} is {value}, and {system.label} has no such thing: it is MMT's alone; leave out "
                    f"{flag(f'experts.{name}')}"
                )

    # Blocks are of matching pairs, which captions of a bank and videos of a split are not.
    if on and config.eval.em_block is not None and config.eval.query_bank:
        raise UserError(
            f"eval.em_block is {config.eval.em_block}, and EM inside blocks of pairs cannot compare a bank of training "
            f"captions with test videos; pass {flag('eval.query_bank')} 0, or {flag('eval.em_block')} None"
        )


def require_towers(config: RunConfig, command: str) -> None:
    """Raise a UserError where a command is for CLIP's towers, and the settings are of another system or task."""
    if config.model.system != "clip":
        label = SYSTEMS[config.model.system].label
        raise UserError(
            f"`{command}` is for CLIP's towers, and {config.recipe} is {label}, which has none; train and evaluate it "
            f"by `train` and `eval`, which keep what it makes of a split in embeddings.safetensors"
        )
    if config.answers_questions:
        raise UserError(
            f"`{command}` is for retrieval, and {config.recipe} answers questions; take a recipe or a run of "
            f"retrieval, or train and evaluate this one by `train` and `eval`"
        )


_AT_LEAST_ONE = {
    "data": ("num_frames", "image_size", "validation_clips", "max_pixels"),
    "model": ("temporal_layers",),
    "emcl": ("num_bases", "num_iters"),
    "train": ("epochs", "save_every", "validate_every", "lr_decay_steps", "top_k"),
    "eval": ("batch_size", "em_block"),
    "experts": ("width", "hidden", "layers", "heads", "max_steps"),
}
_POSITIVE = {
    "model": ("pooling_temperature", "temporal_eps"),
    "emcl": ("temperature",),
    "train": ("lr", "max_grad_norm", "lora_alpha"),
    "eval": ("inverted_softmax_temperature", "qb_norm_temperature"),
}
