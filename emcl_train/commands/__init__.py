"""The commands of emcl-train, one module for each or for a family, and the table of all.

torch and transformers take seconds to import: each command imports what it runs, after it has looked at what it was
given, so that --help and a mistake are answered at once.
"""

from emcl_train.commands import (
    completing,
    data,
    embedding,
    evaluating,
    exporting,
    indexing,
    publishing,
    refining,
    reporting,
    searching,
    serving,
    training,
    verifying,
)
from emcl_train.commands.entry import Entry

COMMANDS: dict[str, Entry] = {
    **training.COMMANDS,
    **evaluating.COMMANDS,
    **embedding.COMMANDS,
    **exporting.COMMANDS,
    **publishing.COMMANDS,
    **data.COMMANDS,
    **refining.COMMANDS,
    **indexing.COMMANDS,
    **searching.COMMANDS,
    **serving.COMMANDS,
    **reporting.COMMANDS,
    **verifying.COMMANDS,
    **completing.COMMANDS,
}
"""In the order of the help."""


def _lines(commands: dict[str, Entry]) -> str:
    """A line of the help for each command."""
    return "\n".join(f"  {f'{name} {entry.takes}':<35} {entry.summary}" for name, entry in commands.items())


def usage_of_family(word: str) -> str | None:
    """The help of commands that begin with one word, such as "data"; None if there are none of two words."""
    family = {name: entry for name, entry in COMMANDS.items() if name.startswith(f"{word} ")}
    if not family:
        return None
    return f"""\
usage: emcl-train {word} COMMAND ...

{_lines(family)}

{EVERYWHERE_HELP}"""


EVERYWHERE_HELP = """\
  --debug    show the traceback of an error
  --no-lock  lock no folder, for file systems that cannot; let no other process write there
  --quiet    print warnings, errors and the paths of results, nothing else
  --device   train, resume, eval, embed, index, search, serve: on cpu, cuda, or cuda:1, the second GPU
  --dry-run  train, resume, embed, refine, data compress: check, print what would be done, write nothing
  --config   all but train and resume: options from a file; --print-config prints one (train has settings of a run)
  --help     after any command: all its options
"""
USAGE = f"""\
usage: emcl-train [--debug] [--quiet] COMMAND ...

{_lines(COMMANDS)}

{EVERYWHERE_HELP}\
  --version  the versions of emcl-train, torch and Python
"""
