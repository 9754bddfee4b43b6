"""The command completion, and what the scripts that it prints ask for.

A script asks the program itself, `emcl-train completion words -- WORD …`, so that it needs no new version when commands
or flags change.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from tyro.conf import Positional

from emcl_train.commands import everywhere
from emcl_train.commands.entry import Entry, flags_of, named, of_function, options_of
from emcl_train.config import LAYOUTS
from emcl_train.recipes import RECIPES

SHELLS = {
    "bash": """\
# Completion of emcl-train for bash: eval "$(emcl-train completion bash)"
_emcl_train() {
    local IFS=$'\\n' current="${COMP_WORDS[COMP_CWORD]}" found
    found=$(emcl-train completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    COMPREPLY=($(compgen -W "$found" -- "$current"))
}
complete -o default -F _emcl_train emcl-train
""",
    "zsh": """\
#compdef emcl-train
# Completion of emcl-train for zsh: eval "$(emcl-train completion zsh)"
_emcl_train() {
    local -a found
    found=("${(@f)$(emcl-train completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _emcl_train emcl-train
""",
    "fish": """\
# Completion of emcl-train for fish: emcl-train completion fish | source
function __emcl_train_words
    set -l typed (commandline -opc) (commandline -ct)
    emcl-train completion words -- $typed[2..-1] 2>/dev/null
end
complete -c emcl-train -a "(__emcl_train_words)"
""",
}
EVERYWHERE = (*everywhere.EVERYWHERE, "--help")
WORDS = "words"


def completion(shell: Positional[Literal["bash", "zsh", "fish"]]) -> None:
    """Print a script that completes commands, recipes, flags and their values.

    For bash and zsh: eval "$(emcl-train completion bash)", also in ~/.bashrc or ~/.zshrc. For fish:
    emcl-train completion fish | source.

    Args:
        shell: Whose script.
    """
    print(SHELLS[shell], end="")


def run_completion(arguments: list[str]) -> int:
    """`completion SHELL`; and for the scripts, what may stand in place of the last of some words."""
    if arguments[:2] == [WORDS, "--"]:
        for word in completed(arguments[2:]):
            print(word)
        return 0
    return of_function("completion", completion)(arguments)


def completed(words: list[str]) -> list[str]:
    """What may stand in place of the last word, sorted; none where a file is wanted.

    Args:
        words: those behind `emcl-train`, the last one not typed to its end.
    """
    from emcl_train.commands import COMMANDS

    *before, current = words or [""]
    typed = [word for word in before if word not in EVERYWHERE]
    name = " ".join(typed[:2]) if " ".join(typed[:2]) in COMMANDS else "".join(typed[:1])
    entry = COMMANDS.get(name)

    # A command's words.
    if entry is None:
        depth = len(typed)
        begun = [command.split() for command in COMMANDS if command.split()[:depth] == typed]
        found = {command[depth] for command in begun if len(command) > depth}
        found |= {*EVERYWHERE, "--version"} if current.startswith("-") else set()
        return sorted(word for word in found if word.startswith(current))

    # A flag's value, or a flag, or what a command takes without one.
    options = _options(name, typed[len(name.split()) :])
    if typed[-1] == everywhere.DEVICE:
        found = {"cpu", "cuda", "cuda:0"}
    elif options.get(typed[-1]):
        found = set(options[typed[-1]])
    elif current.startswith("-"):
        found = {*options, *EVERYWHERE}
        found |= {everywhere.DEVICE} if name in everywhere.COMPUTING else set()
        found |= {everywhere.DRY_RUN} if name in everywhere.PLANNED else set()
        found |= {everywhere.CONFIG, everywhere.PRINT_CONFIG} if name not in everywhere.WITHOUT_A_FILE else set()
    else:
        first = len(typed) == len(name.split())
        found = set(_words(name)) if first else set()
    return sorted(word for word in found if word.startswith(current))


def _words(name: str) -> tuple[str, ...]:
    """What the first word of a command may be."""
    if name in ("train", "embed"):
        return tuple(RECIPES)
    if name == "data doctor":
        return tuple({*RECIPES, *LAYOUTS})
    return tuple(SHELLS) if name == "completion" else ()


def _options(name: str, rest: list[str]) -> dict[str, tuple[str, ...]]:
    """The flags of a command, each with the values that it may have; none where these are open."""
    found: dict[str, tuple[str, ...]] = {}
    for target in targets_of(name, rest):
        values = _values(target)
        found |= {flag: values.get(flag, ()) for flag in flags_of(target)}
    return found


def targets_of(name: str, rest: list[str]) -> tuple[Any, ...]:
    """What the options of a command are made of: a dataclass or a function, or of which of them.

    Args:
        name: the command's words.
        rest: what follows them.
    """
    from emcl_train.commands import (
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

    # Until one of its flags says which of both exports it is, it may be either.
    exports: tuple[Callable[..., None], ...] = (exporting.export, exporting.export_moments)
    if {"--layout", "--to"} & named(rest):
        exports = exports[1:] if "--to" in named(rest) else exports[:1]
    one_each = {
        "train": training.TrainArguments,
        "resume": training.TrainArguments,
        "eval": evaluating.EvalArguments,
        "embed": embedding.EmbedArguments if not rest else embedding.arguments_of(rest[0], rest[1:]),
        "data shapes": data.shapes,
        "data doctor": data.doctor,
        "data compress": data.compress,
        "data cache": data.cache,
        "refine": refining.refine,
        "publish": publishing.publish,
        "index": indexing.index,
        "search": searching.search,
        "serve": serving.serve,
        "report": reporting.report,
        "verify": verifying.verify,
        "completion": completion,
    }
    return exports if name == "export" else (one_each[name],)


def _values(target: Any) -> dict[str, tuple[str, ...]]:
    """The values of flags that have a list of them."""
    return {
        flag: tuple(map(str, get_args(option.kind)))
        for flag, option in options_of(target).items()
        if get_origin(option.kind) is Literal
    }


COMMANDS: dict[str, Entry] = {
    "completion": Entry(
        "bash|zsh|fish",
        "print a script that completes commands, recipes and flags in a shell",
        run_completion,
    ),
}
