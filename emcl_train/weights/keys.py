"""Every key accounted for: what a file lacks and what it has too much of is named, never made up or dropped."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from emcl_train.errors import UserError

SHOWN = 5


def require_keys(
    found: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str, hints: Iterable[tuple[str, str]]
) -> None:
    """Raise a UserError that names keys which are missing, unknown, or of another shape.

    Args: expected: shapes by key. source: what was read. hints: beginnings of keys, with what to do where they differ.
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
    more = f"; and {len(problems) - 2 * SHOWN} more" if len(problems) > 2 * SHOWN else ""
    # Both kinds are shown: a key that was renamed is missing under one name and unknown under the other.
    shown = [*missing[:SHOWN], *unknown[:SHOWN], *shapes[:SHOWN]][: 2 * SHOWN]
    advice = [advice for start, advice in hints if any(problem.startswith(start) for problem in problems)]
    raise UserError(
        f"{source} does not fit the model: {'; '.join(shown)}{more}. "
        f"{' '.join(advice) or 'Use a checkpoint of the same model, with the names of its layout'}"
    )
