"""Which system of the paper a run is: its own name for all that is known, and never another system's."""

from dataclasses import asdict, dataclass, replace

from emcl_train.config import RunConfig, flattened
from emcl_train.kinds import HEADS, SYSTEMS, TEMPORALS
from emcl_train.kinds import TOWERS as FAMILIES
from emcl_train.reading.tower_fields import FIELDS
from emcl_train.recipes import RECIPES, in_mode
from emcl_train.report.published import (
    EMCL_QA,
    INVERTED_SOFTMAX,
    MSRVTT_QA,
    System,
    has_the_gallery,
    protocol_of,
    published_accuracy_of,
)
from emcl_train.report.settings import matters
from emcl_train.runs.clip_config import family_in, read_clip_config
from emcl_train.runs.folder import Run
from emcl_train.runs.origin import run_beside

CLIP = "clip"
"""What `model.system` is for runs of CLIP's towers."""
AGGREGATIONS = {"text-conditioned": "transformer", "wti": "transformer", "aligned": "difference"}
"""The temporal aggregation that the paper of a head has, where the head's label does not name it."""

PUBLISHED_TOWERS = "ViT-B/32"
RANDOM = "random"
TOWERS = {"openai/clip-vit-base-patch32": PUBLISHED_TOWERS, "openai/clip-vit-base-patch16": "ViT-B/16"}
"""By the name of a CLIP in a configuration, for runs that did not record their towers."""
SIZES = {(768, 12, 32): PUBLISHED_TOWERS, (768, 12, 16): "ViT-B/16", (1024, 24, 14): "ViT-L/14"}
"""By width, layers and patch of the vision tower."""
NAMED = 6
"""Settings that a sentence names."""
OF_THE_PLACE = ("train.seed", "data.root", "data.videos", "data.max_pixels", "data.on_bad_video")
"""Settings in which a run may differ from its recipe without being another experiment."""
IN_THE_NAME = ("model.system", "model.head", "model.temporal", "model.clip", "model.init_from", "emcl.mode")
"""Settings that the name of the system or another sentence has said."""
OF_THE_SIZE = ("width", "hidden", "layers", "heads", "max_steps")
"""Settings of a system on experts that are None where it has the authors' size."""


@dataclass(frozen=True)
class Measured:
    """A line of a run's results, and the system that it is of."""

    system: System
    row: int
    """Its number among the rows of results.json."""
    main: bool
    """Whether the run is judged by it."""


def system_of(run: Run) -> System:
    """What the run's main line is of."""
    kind = run.config.model.system
    if run.config.answers_questions:
        name = EMCL_QA
    elif kind == CLIP:
        name = _name_of_clip(run.config)
    elif kind in SYSTEMS:
        name = SYSTEMS[kind].label + _experts_of(run.config)
    else:
        name = f"system “{kind}”"

    # EMCL may be measured where it was not trained, and the other way round.
    trained = run.config.emcl.mode == "train"
    measured = run.emcl.mode
    if trained and measured != "train":
        name += ", trained with EMCL"
    elif measured == "train" and not trained:
        name += ", trained without EMCL"
    return System(name, measured)


def lines_of_run(run: Run) -> list[Measured]:
    """The lines of a run that a published row may stand for; the main one comes first."""
    system = system_of(run)
    found = [Measured(system, 0, main=True)]
    for number, row in enumerate(run.results["rows"][1:], start=1):
        if row["name"].endswith(f" + {INVERTED_SOFTMAX}"):
            found.append(Measured(replace(system, rerank=INVERTED_SOFTMAX), number, main=False))
        elif row["name"].startswith("EMCL off") and system.emcl == "inference":
            # Weights that were trained without EMCL are the system itself where it is off.
            found.append(Measured(replace(system, emcl="off"), number, main=False))
    return found


def why_apart(run: Run) -> str | None:
    """Why no published row can stand beside a run's figures, in a few words; None if one may."""
    if run.config.answers_questions:
        return _why_answers_are_apart(run)
    protocol = protocol_of(run.results)
    if protocol is None:
        asked = run.results.get("protocol") or {}
        known = ", ".join(f"{name} {value}" for name, value in asked.items()) or "not recorded"
        return f"no published rows of its protocol ({known}; {run.results['split']} split)"

    queries, gallery = run.results["queries"], run.results["gallery"]
    if not has_the_gallery(run.results, protocol):
        return f"its gallery has {gallery} clips, that of the published rows of {protocol.split} {protocol.gallery}"
    if not protocol.several and queries != gallery:
        return f"it has {queries} queries for {gallery} clips, the published rows one for each"

    return _why_towers_are_apart(run)


def _why_answers_are_apart(run: Run) -> str | None:
    results = run.results
    if published_accuracy_of(results) is None:
        return (
            f"it answered {results['figures']['asked']} questions of the {results['split']} split, the published row "
            f"is of the {MSRVTT_QA.asked} of {MSRVTT_QA.split}'s test split"
        )
    return _why_towers_are_apart(run)


def _why_towers_are_apart(run: Run) -> str | None:
    towers = towers_of(run)
    published = _published_towers(run.config)
    if towers not in (None, published):
        return f"its towers are {towers}, those of the published rows CLIP {published}"
    return None


def _published_towers(config: RunConfig) -> str:
    return MSRVTT_QA.towers if config.answers_questions else PUBLISHED_TOWERS


def towers_of(run: Run) -> str | None:
    """Which CLIP a run has; None if it has none, or nothing says."""
    if run.config.model.system != CLIP:
        return None
    described = read_clip_config(run_beside(run.path))
    if run.config.model.clip == RANDOM and run.config.model.init_from is None:
        return "CLIP with random weights"
    if described is None:
        return TOWERS.get(run.config.model.clip)
    family = family_in(described)
    if family != "clip":
        return f"{FAMILIES[family].label}, {FIELDS[family].in_words(described)}"
    vision = described["vision_config"]
    size = (vision["hidden_size"], vision["num_hidden_layers"], vision["patch_size"])
    return SIZES.get(size, f"{size[1]} layers of width {size[0]} on patches of {size[2]} pixels")


def remarks_on_run(run: Run) -> list[str]:
    """What a reader must know of a run that stands beside published rows, but for where its figures come from."""
    said = []
    config = run.config
    if config.model.system == CLIP and towers_of(run) is None:
        published = _published_towers(config)
        said.append(f"nothing says which towers {config.model.clip} has; the published rows have {published}")
    if config.from_features is not None:
        said.append("trained on stored features, with frozen towers")
    if config.model.init_from is not None:
        said.append(f"started from the weights of {config.model.init_from}")
    return [*said, *_other_than_the_recipe(config)]


def _other_than_the_recipe(config: RunConfig) -> list[str]:
    """Settings that are not those of the recipe, which are the paper's as far as they are known."""
    recipe = RECIPES.get(config.recipe)
    if recipe is None:
        return ["of no recipe of this version"]
    usual = flattened(asdict(in_mode(recipe(), config.emcl.mode)))
    own = flattened(asdict(config))
    other = [
        f"{name} {value}"
        for name, value in own.items()
        if name not in (*OF_THE_PLACE, *IN_THE_NAME) and str(usual.get(name)) != str(value) and matters(name, config)
    ]
    if not other:
        return []
    more = f" and {len(other) - NAMED} more" if len(other) > NAMED else ""
    return [f"not as the recipe {config.recipe}: {', '.join(other[:NAMED])}{more}"]


def _experts_of(config: RunConfig) -> str:
    """What tells the experts and sizes of a run from those of the paper; "" if they are the same, or it has none."""
    experts = getattr(config, "experts", None)
    if getattr(experts, "sizes", "") == "own" or getattr(experts, "widths", "published") != "published":
        return " on own features"
    other = ""
    if names := getattr(experts, "names", None):
        other += f" on {', '.join(names)}"
    if any(getattr(experts, name, None) is not None for name in OF_THE_SIZE):
        other += ", of another size"
    if getattr(experts, "text", "") == RANDOM:
        other += ", BERT random"
    # Without EMCL, gated videos are no MMT.
    if getattr(experts, "gated_video", False) and config.emcl.mode != "train":
        other += ", videos gated"
    if getattr(experts, "missing", "kept") != "kept":
        other += ", missing experts left out"
    return other


def _name_of_clip(config: RunConfig) -> str:
    """A head's name in papers, and what it has that they do not."""
    head, temporal = config.model.head, config.model.temporal
    kind = HEADS[head]
    name = kind.label.format(temporal=TEMPORALS[temporal].label)
    if head == "wti" and config.train.decorrelation_weight > 0:
        name = "DRL"
    if AGGREGATIONS.get(head, temporal) != temporal:
        name += f", temporal {TEMPORALS[temporal].label}"
    return name
