"""Features of Collaborative Experts: a pickle for each expert, and pickles of the features of every word.

They lie in `structured-symlinks` of the archives "features-v2". Of MSR-VTT every file name is known; for ActivityNet
and LSMDC those of the experts that were averaged over time are inferred from it, and found whatever their sampling is
called.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import count, few
from emcl_train.data.experts.features import (
    Examined,
    ExpertError,
    ExpertReader,
    ExpertSteps,
    checked_steps,
    most_common_width,
)
from emcl_train.data.experts.features import no_features as _no_features
from emcl_train.data.experts.tables import ArrayTable, merged, open_table
from emcl_train.errors import UserError
from emcl_train.flags import flag

FOLDERS = ("structured-symlinks", "high-quality/structured-symlinks", ".")
"""Where the files lie in the folder of a data set; the first that is there is taken."""
EVERYWHERE: dict[str, str] = {
    "i3d.i3d.0": "aggregated_i3d_*/i3d-avg.p*k*l*",
    "imagenet.resnext101_32x48d.0": "aggregated_imagenet_*/resnext101_32x48d-avg.p*k*l*",
    "imagenet.senet154.0": "aggregated_imagenet_*/senet154-avg.p*k*l*",
    "r2p1d.r2p1d-ig65m.0": "aggregated_r2p1d_*/r2p1d-ig65m-avg.p*k*l*",
    "scene.densenet161.0": "aggregated_scene_*/densenet161-avg.p*k*l*",
}
"""Experts that were averaged over time. Their folders say how frames were sampled."""
FILES: dict[str, dict[str, str]] = {
    "msrvtt": {
        "audio": "aggregated_audio_feats/Audio_MSRVTT_new.pickle",
        "face": "aggregated_face_feats/facefeats-avg.pickle",
        "ocr": "aggregated_ocr_feats/ocr-raw.pickle",
        "speech": "aggregated_speech/speech-w2v.pickle",
    },
    "activitynet": {
        "audio": "aggregated_audio/vggish-audio-raw.pickle",
        "face": "aggregated_facefeats_25fps_256px_stride1/face-avg.pickle",
        "ocr": "aggregated_ocr_feats/ocr-w2v.pkl",
        "speech": "aggregated_speech/goog_w2v-speech-raw.pickle",
    },
    "lsmdc": {
        "audio": "aggregated_audio/vggish-raw.pickle",
        "face": "antoine/face-max-with-blank-val.pickle",
        "ocr": "aggregated_ocr_feats/ocr-w2v.pkl",
        "speech": "aggregated_speech/speech-w2v.pickle",
    },
}
"""The others, by data set."""
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "msrvtt": {"openai-gpt": ("w2v_MSRVTT_openAIGPT.pickle",), "word2vec": ("w2v_MSRVTT.pickle",)},
    "activitynet": {"openai-gpt": ("openai-train.pkl", "openai-val1.pkl", "openai-val2.pkl")},
    "lsmdc": {"word2vec": ("w2v.pkl",)},
}
"""Files of `aggregated_text_feats`, by data set and the network that made them; the first is the authors' choice."""
LOOKED_AT = 200
"""Clips whose features tell how wide an expert is."""


def feature_folder(root: Path) -> Path:
    """The folder with CE's files in the folder of a data set.

    Raises:
        UserError: there is none.
    """
    if not root.is_dir():
        raise UserError(
            f"there is no folder {root}; pass {flag('data.root')} with the data set's folder of CE's archive"
        )
    for name in FOLDERS:
        folder = root / name
        if folder.is_dir() and any(folder.glob("aggregated_*")):
            return folder
    raise UserError(
        f"{root} has no features of Collaborative Experts: neither it nor {FOLDERS[0]} in it has a folder "
        f"aggregated_…; unpack the archive, and pass {flag('data.root')} with the folder that holds {FOLDERS[0]}"
    )


class CEFeatures(ExpertReader):
    """The experts of a data set; see `ExpertReader`."""

    def __init__(
        self,
        root: Path,
        dataset: str,
        config: DataConfig,
        widths: Mapping[str, int] | None = None,
        *,
        convert: bool = True,
    ) -> None:
        """Open every expert's file.

        Args:
            root: the folder of the data set.
            dataset: "msrvtt", "activitynet" or "lsmdc".
            config: whose cache folder keeps what was converted.
            widths: which experts there are, and how wide; None: all nine, as wide as most of their clips.
            convert: as of `open_table`.

        Raises:
            UserError: a file is missing, or is something else.
        """
        self.folder = feature_folder(root)
        known = EVERYWHERE | FILES[dataset]
        names = sorted(known if widths is None else widths)
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"CE has no expert {few(unknown)} on {dataset}; its experts are {', '.join(sorted(known))}")
        self.tables = {name: open_table(self._file(name, known[name]), config, convert=convert) for name in names}
        self.experts: tuple[str, ...] = tuple(names)
        self._asked = None if widths is None else dict(widths)

    def _file(self, expert: str, pattern: str) -> Path:
        if "*" not in pattern:
            path = self.folder / pattern
            if path.is_file():
                return path
            found = [path]
        else:
            found = sorted(path for path in self.folder.glob(pattern) if path.suffix in (".pickle", ".pkl"))
            if len(found) == 1:
                return found[0]
        if len(found) > 1:
            raise UserError(
                f"{self.folder} has several files of the expert {expert}: {few([*map(str, found)])}; keep one"
            )
        raise UserError(
            f"{self.folder} has no file of the expert {expert}, {pattern.replace('.p*k*l*', '.pickle')}; unpack the "
            f"archive again, or leave the expert out"
        )

    @cached_property
    def widths(self) -> Mapping[str, int]:
        return self._asked or {expert: _width_of(expert, table) for expert, table in self.tables.items()}

    def __contains__(self, video_id: str) -> bool:
        return any(video_id in table for table in self.tables.values())

    @property
    def shared_files(self) -> tuple[Path, ...]:
        return tuple(table.path for table in self.tables.values())

    def ids(self) -> Iterable[str]:
        return dict.fromkeys(video_id for table in self.tables.values() for video_id in table.ids())

    def examine(self, video_id: str) -> Examined:
        if video_id not in self:
            raise _no_features(video_id, self.folder)
        found = Examined()
        for expert, table in self.tables.items():
            values = table.read(video_id)
            try:
                found.steps[expert] = None if values is None else checked_steps(
                    values, expert=expert, video_id=video_id, place=table.path, width=self.widths[expert]
                )  # fmt: skip
            except ExpertError as error:
                found.faults[expert] = error
        return found

    def read(self, video_id: str) -> dict[str, ExpertSteps | None]:
        return self.examine(video_id).whole()


class CEWords:
    """Features of every word of every caption, from a frozen network: `[words, width]` for each caption of a clip."""

    def __init__(
        self, root: Path, dataset: str, config: DataConfig, source: str | None = None, *, convert: bool = True
    ) -> None:
        """Open the files; several gigabytes of them are converted the first time.

        Args:
            root: the folder of the data set.
            dataset: "msrvtt", "activitynet" or "lsmdc".
            config: whose cache folder keeps what was converted.
            source: "openai-gpt" or "word2vec"; None: what the authors took for the data set.
            convert: as of `open_table`.

        Raises:
            UserError: there are none of this network, or a file is missing or is something else.
        """
        known = WORDS[dataset]
        source = source or next(iter(known))
        if source not in known:
            raise UserError(f"CE has no words of {source} for {dataset}; there are those of {', '.join(known)}")
        self.folder = feature_folder(root) / "aggregated_text_feats"
        self.source = source
        paths = [self.folder / name for name in known[source]]
        # ActivityNet's second validation list is not used, and may have been left out.
        paths = [path for path in paths if path.name != "openai-val2.pkl" or path.is_file()]
        self.paths = tuple(paths)
        self._tables = merged([open_table(path, config, convert=convert) for path in paths], "words")

    @cached_property
    def width(self) -> int:
        """Of a word: what most clips that were looked at have."""
        first = list(self._tables)[:LOOKED_AT]
        found = (array.shape[1] for video_id in first for array in self._arrays(video_id) if array.ndim == 2)
        width = most_common_width(found)
        if width is None:
            raise UserError(f"{self.folder}: no caption has a word; unpack the archive again")
        return width

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._tables

    def _arrays(self, video_id: str) -> list[np.ndarray]:
        return self._tables[video_id].read_list(video_id)

    def read(self, video_id: str, caption: int | None = None) -> list[np.ndarray]:
        """The words of a clip's captions, float32 `[words, width]` each.

        Args:
            video_id: the clip.
            caption: the number of one of them; None: all.

        Raises:
            UserError: there is nothing of this clip, or a caption is of another width or not of numbers.
        """
        if video_id not in self._tables:
            raise UserError(f"{self.folder} has no words of {video_id}; unpack the archive again")
        path = self._tables[video_id].path
        found = self._arrays(video_id)
        if caption is not None and not 0 <= caption < len(found):
            raise UserError(
                f"{path}: {video_id} has {count(len(found), 'caption')}, and caption {caption} is asked for; the lists "
                f"and the features are of different archives"
            )

        arrays = []
        for number, array in enumerate(found):
            if caption is not None and number != caption:
                continue
            if not array.size:
                array = np.zeros((0, self.width), np.float32)
            if array.ndim != 2 or array.shape[1] != self.width:
                raise UserError(
                    f"{path}: caption {number} of {video_id} has words of shape {list(array.shape)}, expected [words, "
                    f"{self.width}]; unpack the archive again"
                )
            words = np.asarray(array, dtype=np.float32)
            if not np.isfinite(words).all():
                raise UserError(
                    f"{path}: caption {number} of {video_id} has words that are NaN or infinite; unpack the archive "
                    f"again"
                )
            arrays.append(words)
        return arrays


def _width_of(expert: str, table: ArrayTable) -> int:
    """The width that most of the first clips have."""
    widths = []
    for video_id in table.ids():
        values = table.read(video_id)
        if values is not None and values.size:
            widths.append(values.shape[-1])
        if len(widths) == LOOKED_AT:
            break
    width = most_common_width(widths)
    if width is None:
        raise UserError(f"{table.path}: no clip has anything of {expert}; unpack the archive again, or leave it out")
    return width
