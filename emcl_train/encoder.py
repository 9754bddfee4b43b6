"""`emcl_train.load`: the towers of a run, or of a CLIP, as one object that encodes texts and videos."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import normalize

from emcl_train.config import RunConfig
from emcl_train.data.clips import Clip
from emcl_train.data.picture import Picture, square
from emcl_train.data.text import CaptionTokenizer, load_tokenizer
from emcl_train.data.video import FrameRequest, decode_clip
from emcl_train.device import device as device_of_command
from emcl_train.errors import UserError
from emcl_train.evaluation.provenance import clip_config_of, frames_of
from emcl_train.kinds import line_of
from emcl_train.models import RetrievalModel, TextFeatures, VideoFeatures, build_model, look_ahead
from emcl_train.models.clip import image_size_of, longest_of, look_at_clip
from emcl_train.models.towers import CLIPTowers, is_scalar
from emcl_train.recipes import is_smoke_test, load_recipe
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.runs.contents import CONFIG, load_config
from emcl_train.runs.files import json_if_whole
from emcl_train.runs.finished import say_if_unfinished
from emcl_train.runs.state import hash_of_tensors
from emcl_train.tools.embed import finite
from emcl_train.tools.export import whole_weights
from emcl_train.tools.publish import Published, require_rows
from emcl_train.tools.sharing import Shared
from emcl_train.tools.sides import pooled
from emcl_train.weights.hub import plain_names
from emcl_train.weights.keys import put_weights
from emcl_train.weights.published import published_on_hub, require_options
from emcl_train.weights.settling import settled

BATCH = 64
"""Clips or texts that the towers see at a time."""
FRAMES = 12
"""Of a clip, at most, where a model says nothing: one a second."""

OF_ROWS = (
    "frame_sampling", "num_frames", "frame_choice", "image_size", "resize", "display", "max_words", "clean_captions",
)  # fmt: skip
"""Settings of the data on which rows depend."""

ClipLike = str | Path | Clip


@dataclass(frozen=True)
class Encoded:
    """What the towers make of clips."""

    rows: Float32[Tensor, "N D"]
    """One row of length one a clip: the mean of its unit frames."""
    features: VideoFeatures
    """What the model's own head compares."""


class Encoder(Shared):
    """Texts and videos to rows of one space, by the towers of a run or of a CLIP. `load` makes it.

    Examples:
        >>> encoder = emcl_train.load("runs/shapes")
        >>> text = encoder.encode_text(["a red circle moves left"])
        >>> video = encoder.encode_video(["holiday.mp4", "party.mkv"])
        >>> encoder.similarity(text, video)
        tensor([[0.2310, 0.1874]])
    """

    config: RunConfig
    """Which model it is, and how frames and texts are prepared."""
    label: str
    """What a reader calls the model."""
    fingerprint: str
    """Of the weights, and of how frames and texts are prepared: rows of one fingerprint can be compared."""

    def __init__(self, model: RetrievalModel, tokenizer: CaptionTokenizer, config: RunConfig, source: Path | None):
        """A model with its weights. `source`: the folder of the run that they are of; None: of a CLIP alone."""
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._source = source
        self._of_run = source is not None
        self.config = config
        self.label = (
            line_of(config.model.head, config.model.temporal, config.emcl.mode) if self._of_run else config.model.clip
        )
        self.fingerprint = _fingerprint(model, tokenizer, config)

    @property
    def width(self) -> int:
        """D, the numbers of a row."""
        return self._model.towers.width

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self._model.parameters()).device

    @property
    def has_head(self) -> bool:
        """Whether the model compares more of a clip than its row: `rank` then says more than the rows do."""
        return self._of_run and self.config.model.head != "mean"

    @property
    def is_smoke_test(self) -> bool:
        """Whether its towers have random weights."""
        return not self._of_run and is_smoke_test(self.config)

    def encode_text(self, texts: str | Sequence[str]) -> Float32[Tensor, "N D"]:
        """One row of length one for each text.

        Args:
            texts: one text or several. Those that are longer than the model takes are cut.

        Returns:
            `[N, D]` on the CPU.

        Raises:
            TypeError: something is no text.
            UserError: the towers give numbers that are not finite.
        """
        return normalize(self.text_features(texts).caption.float(), dim=-1).cpu()

    def encode_video(self, clips: ClipLike | Sequence[ClipLike]) -> Float32[Tensor, "N D"]:
        """One row of length one for each video: the mean of its unit frames.

        Args:
            clips: paths of video files; or `Clip`s, which name a span of one. Frames are sampled as the model's
                configuration says.

        Returns:
            `[N, D]` on the CPU.

        Raises:
            VideoError: a file cannot be decoded.
            UserError: the towers give numbers that are not finite.
        """
        parts = [self.encode_frames(*batch).rows for batch in self._decoded(clips)]
        return torch.cat(parts) if parts else torch.zeros(0, self.width)

    def similarity(self, text: Any, video: Any, *, emcl: bool | None = None) -> Float[Tensor, "N M"]:
        """How alike each text and each video are.

        Of rows it is their cosine. Of features it is what the model's own figures are of: its head, with one EM over
        all that is given, or in blocks, where the model is evaluated so.

        Args:
            text: `[N, D]`, from `encode_text`; or what `text_features` gives.
            video: `[M, D]`, from `encode_video`; or what `video_features` gives.
            emcl: of features, with EMCL or without; None: as the model is evaluated.

        Raises:
            TypeError: one side has rows and the other features, or `emcl` is given for rows.

        Examples:
            >>> text, video = model.text_features(captions), model.video_features(clips)
            >>> text_to_video(model.similarity(text, video), caption_clip)["R@1"]  # of emcl_train.evaluation.metrics
            45.7
        """
        sides = isinstance(text, TextFeatures), isinstance(video, VideoFeatures)
        if all(sides):
            return self._compared(text, video, emcl)
        if any(sides) or emcl is not None:
            raise TypeError(
                f"similarity got {type(text).__name__} and {type(video).__name__}, expected rows of both (encode_text, "
                f"encode_video), whose cosine has no emcl, or features of both (text_features, video_features)"
            )
        rows = [normalize(torch.as_tensor(side).float(), dim=-1) for side in (text, video)]
        return rows[0] @ rows[1].T

    # ---- for others --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> "Encoder":
        """`emcl_train.load`, under the name that other libraries give it; all arguments are the same."""
        return load(name_or_path, **options)

    def published(self) -> Published:
        """What a published folder of it is made of."""
        weights = {key: value.cpu() for key, value in self._model.state_dict().items()}
        clip_config = clip_config_of(self._model, self.config)
        config = self.config if self._source is None else load_config(self._source)  # as the run was trained
        return Published(config, weights, self._tokenizer, clip_config, self._source)

    # ---- what the head compares --------------------------------------------------------------------------------------

    def video_features(self, clips: ClipLike | Sequence[ClipLike]) -> VideoFeatures:
        """What the model's head compares of videos; the arguments and errors are those of `encode_video`."""
        parts = [self.encode_frames(*batch, padded=True).features for batch in self._decoded(clips)]
        if not parts:
            frames = torch.zeros(0, self._model.towers.rows_of(self.config.data.num_frames), self.width)
            return VideoFeatures(frames, frames[..., 0].bool())
        return VideoFeatures.cat(parts)

    @torch.no_grad()
    def _compared(self, text: TextFeatures, video: VideoFeatures, emcl: bool | None) -> Float[Tensor, "N M"]:
        """Similarities as an evaluation of the model makes them."""
        if not len(text) or not len(video):
            return torch.zeros(len(text), len(video))
        on = self.config.emcl.mode != "off" if emcl is None else emcl
        em_block = self.config.eval.em_block if on else None
        there = text.to(self.device), video.to(self.device)
        parts = self._model.similarity_stream(*there, emcl=on, em_block=em_block)
        return torch.cat([part.float().cpu() for part in parts])

    def _decoded(self, clips: ClipLike | Sequence[ClipLike]) -> Iterator[tuple[Tensor, Tensor]]:
        """Frames of clips and their masks, a batch at a time."""
        given = [clips] if isinstance(clips, str | Path | Clip) else list(clips)
        named = [clip if isinstance(clip, Clip) else Clip(str(clip), Path(clip).expanduser()) for clip in given]
        for begin in range(0, len(named), BATCH):
            decoded = [decode_clip(clip, self.config.data) for clip in named[begin : begin + BATCH]]
            frames, masks = zip(*decoded, strict=True)
            yield torch.stack(list(frames)), torch.stack(list(masks))

    # ---- what a library needs ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def text_features(self, texts: str | Sequence[str]) -> TextFeatures:
        """What the model's head compares of texts."""
        given = [texts] if isinstance(texts, str) else list(texts)
        if others := [text for text in given if not isinstance(text, str)]:
            raise TypeError(f"texts has a {type(others[0]).__name__}, expected str; pass a text or a list of texts")
        if not given:
            return TextFeatures(torch.zeros(0, self.width))

        parts = []
        for begin in range(0, len(given), BATCH):
            ids, mask = self._tokenizer.encode(given[begin : begin + BATCH])
            batch = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
            part = self._model.encode_text(batch)
            finite(part.caption, torch.ones(len(part.caption), dtype=torch.bool), "text")
            parts.append(part)
        return TextFeatures.cat(parts)

    @torch.no_grad()
    def encode_frames(self, frames: Tensor, frame_mask: Tensor, *, padded: bool = False) -> Encoded:
        """Rows and features of clips whose frames are decoded.

        Args:
            frames: `[N, F, 3, S, S]`, uint8.
            frame_mask: `[N, F]`, False on padding.
            padded: keep all F frames in the features, whether there is a clip that has so many.
        """
        # Towers alone see each frame by itself; a run's layers count padding, and video encoders expect all frames.
        if not self._of_run and self._model.towers.per_frame and not padded:
            there = max(1, int(frame_mask.sum(1).max()))
            frames, frame_mask = frames[:, :there], frame_mask[:, :there]

        batch = {"frames": frames.to(self.device), "frame_mask": frame_mask.to(self.device)}
        features = self._model.encode_video(batch).to("cpu")
        finite(features.frames, features.frame_mask, "video")
        return Encoded(pooled(features.frames.float(), features.frame_mask), features)

    def request(self, clip: Clip) -> FrameRequest:
        """Which frames of a clip the model sees."""
        return FrameRequest.of_clip(clip, self.config.data)

    def frames_of(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """The input that is made of a clip's pictures, as `decode_clip` gives it.

        Returns:
            `[F, 3, S, S]` in uint8, and `[F]`, False on padding.
        """
        data = self.config.data
        frames = torch.zeros(data.num_frames, 3, data.image_size, data.image_size, dtype=torch.uint8)
        for place, picture in enumerate(pictures):
            frames[place] = square(picture, data.image_size, data.resize)
        return frames, torch.arange(data.num_frames) < len(pictures)

    @torch.no_grad()
    def rank(self, text: TextFeatures, frames: Tensor, frame_mask: Tensor) -> Float[Tensor, "N M"]:
        """The similarity that the model's own head gives, without EMCL.

        Args:
            text: from `text_features`.
            frames: `[M, F, D]`, of `Encoded.features`.
            frame_mask: `[M, F]`.
        """
        frames, frame_mask = frames.to(self.device), frame_mask.to(self.device)
        head = self._model.head
        video = VideoFeatures(frames, frame_mask, head.weigh_video(frames, frame_mask))
        return self._model.similarity(text.to(self.device), video, emcl=False).float().cpu()

    def about(self) -> dict[str, Any]:
        """What made the rows, for records."""
        return {
            "model": self.label,
            "fingerprint": self.fingerprint,
            "width": self.width,
            "frames": frames_of(self.config),
        }


def load(name_or_path: str | Path, *, device: str | torch.device | None = None, **hub: Any) -> Encoder:
    """The towers of a training run or of a CLIP, to encode texts and videos with.

    Args:
        name_or_path: the folder of a run, whose selected weights are taken, or one that `emcl-train publish` wrote, or
            its name on the hub; a CLIP's folder in transformers' layout, its file with OpenAI's names, or its name on
            the hub. No code of it is run.
        device: where to compute; None: the first GPU, or the CPU.
        hub: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` of huggingface_hub, for a
            published run on the hub.

    Returns:
        The encoder.

    Raises:
        TypeError: huggingface_hub has no such option, or none that may be set here.
        UserError: there is no such model, or it is none that encodes texts and videos each for itself; or it lies in
            a folder here, of which the hub's options say nothing.

    Examples:
        >>> encoder = emcl_train.load("runs/shapes")
        >>> encoder.encode_text("a red circle moves left").shape
        torch.Size([1, 128])
    """
    require_options(hub)
    path = Path(name_or_path).expanduser()
    where = torch.device(device) if device is not None else device_of_command()
    if is_run(path):
        if hub:
            raise UserError(f"{name_or_path} is a folder here, and {', '.join(hub)} are for the hub; leave them out")
        return _of_run(path, where)
    if (published := published_on_hub(str(name_or_path), **hub)) is not None:
        return _of_run(published, where)
    if hub:
        raise UserError(
            f"{name_or_path} is no published run on the hub, for which {', '.join(hub)} are; leave them out"
        )
    return _of_clip(str(name_or_path), where)


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run; that of a CLIP has a `config.json` too, which names the kind of model."""
    content = json_if_whole(path / CONFIG)
    of_a_model = isinstance(content, dict) and "model_type" in content
    return ((path / CONFIG).is_file() and not of_a_model) or any(path.glob(f"seed-*/{CONFIG}"))


def _of_run(run: Path, device: torch.device) -> Encoder:
    """The model of a run, with its selected weights and its tokenizer."""
    of_run = load_config(run)
    require_rows(of_run, run, "load")
    config = replace(of_run, from_features=None, data=replace(of_run.data, augment="none", cache_frames=False))

    tokenizer = load_tokenizer(of_run, run)
    model = build_model(config, tokenizer, clip_config=read_clip_config(run))
    put_weights(model, whole_weights(of_run, run), run)
    say_if_unfinished(run)
    return Encoder(model.to(device), tokenizer, config, run)


def _of_clip(name: str, device: torch.device) -> Encoder:
    """A CLIP as it is: frames one a second, at the size that its towers take, and their mean."""
    config = load_recipe("csv")
    config = replace(
        config,
        data=replace(config.data, frame_sampling="1fps", num_frames=FRAMES, max_words=77, augment="none"),
        model=plain_names(replace(config.model, clip=name, head="mean", temporal="mean")),
        emcl=replace(config.emcl, mode="off"),
    )
    if name == "random":
        raise UserError('the model is "random", which has no weights to search with; pass a run or a CLIP')

    sizes = look_at_clip(config.model)
    if sizes is not None:
        image_size, words = image_size_of(sizes), min(77, longest_of(sizes))
        config = replace(config, data=replace(config.data, image_size=image_size, max_words=words))
    config = settled(config, said=())
    look_ahead(config)
    tokenizer = load_tokenizer(config)
    return Encoder(build_model(config, tokenizer).to(device), tokenizer, config, None)


def _fingerprint(model: RetrievalModel, tokenizer: CaptionTokenizer, config: RunConfig) -> str:
    """Of all that rows depend on: weights, but for what EMCL and the loss have, tokenizer, and how frames are taken."""
    state = {
        name: value
        for name, value in model.state_dict().items()
        if not is_scalar(name) and not name.startswith("emcl.") and name != "own_bias"
    }
    data = config.data
    settings = [str(getattr(data, name)) for name in OF_ROWS]
    if not isinstance(model.towers, CLIPTowers):
        settings.append(str(model.towers.description()))

    digest = sha256()
    for part in (hash_of_tensors(state), *settings, tokenizer.backend.to_str()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]
