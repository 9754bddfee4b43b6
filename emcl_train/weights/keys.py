"""Every key accounted for: what a file lacks and what it has too much of is named, never made up or dropped."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from emcl_train.errors import UserError
from emcl_train.runs.contents import WEIGHTS

SHOWN = 5
"""Keys of each kind that an error names; at most twice as many in all."""


def put_weights(model: nn.Module, state: dict[str, Tensor], run_dir: Path) -> None:
    """Load the weights of a run into a model that must have exactly their keys and shapes.

    Args:
        model: built from the configuration of the run.
        state: the weights.
        run_dir: named in errors.

    Raises:
        UserError: keys are missing, unknown, or of another shape; they are named.
    """
    expected = {name: value.shape for name, value in model.state_dict().items()}
    require_keys(
        state,
        expected,
        source=str(run_dir / WEIGHTS),
        way_out="Use the weights and the configuration of one and the same run",
    )
    model.load_state_dict(state)


def require_keys(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    *,
    source: str,
    hints: Iterable[tuple[str, str]] = (),
    way_out: str = "Use a checkpoint of the same model, with the names of its layout",
) -> None:
    """Raise a UserError that names keys which are missing, unknown, or of another shape.

    Args:
        found: what was read.
        expected: shapes by key.
        source: where it was read from.
        hints: beginnings of keys, with what to do where they differ.
        way_out: what to do if no hint fits.
    """
    shapes = [
        f"{key} is {list(found[key].shape)}, expected {list(shape)}"
        for key, shape in expected.items()
        if key in found and list(found[key].shape) != list(shape)
    ]
    missing = [f"{key} is missing" for key in expected if key not in found]
    unknown = [f"{key} is unknown" for key in found if key not in expected]
    problems = missing + unknown + shapes
    if not problems:
        return

    # Both kinds are shown: a key that was renamed is missing under one name and unknown under the other.
    shown = [*missing[:SHOWN], *unknown[:SHOWN], *shapes[:SHOWN]][: 2 * SHOWN]
    more = f"; and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
    advice = [advice for start, advice in hints if any(problem.startswith(start) for problem in problems)]
    raise UserError(
        f"the weights in {source} do not fit the model: {'; '.join(shown)}{more}. {' '.join(advice) or way_out}"
    )
