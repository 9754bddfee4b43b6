"""The command line: train, eval, data, refine, report. What a user can put right is one line on stderr, exit code 1."""

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import NoReturn

from emcl_train.extras import or_ends_in_a_line, said_of_missing

with or_ends_in_a_line():
    from emcl_train.commands import COMMANDS, USAGE, usage_of_family
    from emcl_train.commands.completing import WORDS, targets_of
    from emcl_train.commands.entry import Entry, asks_for_help, named
    from emcl_train.commands.everywhere import CONFIG, EVERYWHERE, WITHOUT_A_FILE, also_taken, without_flags, word_of
    from emcl_train.commands.options_file import with_file
    from emcl_train.commands.version import version_lines
    from emcl_train.endings import (
        AFTER_A_SIGNAL,
        READER_GONE,
        Ended,
        end_with,
        is_want_of_memory,
        open_missing_streams,
        received,
        say_if_ended,
        signals_as_exceptions,
        what_there_is,
    )
    from emcl_train.errors import UserError
    from emcl_train.runs.lock import without_locks
    from emcl_train.runs.machine import is_first_process, process_count
    from emcl_train.terminal import Output, tell, tolerant_output

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
OF_HUB_NAMES = ("--model", "--model.clip", "--model.tokenizer")
"""Flags that take names of the hub, also with `hf://` before them."""
FOR_THE_FIRST = 10.0
"""Seconds that a process leaves the first one to come as far, on a machine that is busy."""


def program() -> NoReturn:
    """The program `emcl-train`: `main` on what it was started with, and the end of the process."""
    code = main()

    # After an error the others may wait for an exchange, and leaving them would wait as well.
    if code == 0 and "emcl_train.processes" in sys.modules:
        sys.modules["emcl_train.processes"].leave()
    end_with(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code, which docs/cli.md explains."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    open_missing_streams()
    code = None
    try:
        silence = {"quiet": is_quiet(arguments), "shown": is_first_process()}
        with tolerant_output(**silence) as output, signals_as_exceptions():
            try:
                code = run_command(arguments)
            except SystemExit as end:  # of tyro: after a command's help, or a flag that there is not
                code = end.code if isinstance(end.code, int) else 0
                raise SystemExit(code_after_printing(code, [], output)) from None
            code = code_after_printing(code, arguments, output)
    except Ended:  # before the command began, or when its work was done
        return code_of_signal(received()) or 1 if code is None else code
    return code


def run_command(arguments: list[str]) -> int:
    """Run one command; what ends it is said in one line."""
    debug = "--debug" in arguments
    unlocked = "--no-lock" in arguments
    say_if_ended(None)

    # Those of transformers and of the hub, who ask when they are imported.
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    try:
        with without_locks() if unlocked else nullcontext():
            rest = [argument for argument in arguments if argument not in EVERYWHERE]
            return dispatch(arguments if arguments[:2] == ["completion", WORDS] else without_flags(rest))
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            raise
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
        code = code_of_signal(received() or number) or code_of_error(error)
        if code is None:
            raise
        return code


def code_of_signal(number: int | None) -> int | None:
    """Say what a signal has ended. Returns the exit code; None without a signal."""
    if number is None:
        return None
    if is_first_process():  # the others say nothing
        tell(f"{'interrupted' if number == signal.SIGINT else 'terminated'}; {what_there_is()}")
    return AFTER_A_SIGNAL + number


def code_of_error(error: BaseException) -> int | None:
    """Say what was wrong with the input or the machine. Returns the exit code; None if it was the program."""
    if is_want_of_memory(error):
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        tell(
            f"error: there is not enough memory: {reason}; {what_there_is()}. Smaller batches take less, and so do "
            f"fewer data.workers; or end other programs"
        )
    elif isinstance(error, UserError):
        if is_first_process() or not error.of_all_processes:
            tell(f"error: {error}")
        else:
            leave_time_to_the_first()
    elif missing := said_of_missing(error):
        tell(f"error: {missing}")
    elif isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        if error.filename:
            tell(f"error: {error.filename}: {reason}; choose another place, or see --debug")
        else:
            tell(f"error: the system says: {reason}; {what_there_is()}; --debug shows where it came from")
    else:
        return None
    return 1


def leave_time_to_the_first() -> None:
    """Wait, so that the first process can say what all have met: a launcher ends all of them with the first that ends.

    It ends this wait, too, by a signal.
    """
    with suppress(KeyboardInterrupt):
        time.sleep(FOR_THE_FIRST)


def code_after_printing(code: int, arguments: list[str], output: Output) -> int:
    """The exit code of a command of which not all may have been printed; all that it writes has been written."""
    output.flush()
    if output.lost is None:
        return code

    reason = output.lost.strerror
    if word_of(arguments) in ("train", "resume"):
        if code == 0:
            tell(f"not all could be printed: {reason}; the run is whole without it")
        return code
    if isinstance(output.lost, BrokenPipeError):
        return code or READER_GONE
    tell(f"error: not all could be printed: {reason}; print to another place")
    return code or 1


def dispatch(arguments: list[str]) -> int:
    """Find the command by its words and let it parse the rest."""
    if not arguments:
        print(USAGE, end="")
        return 2
    if arguments[:2] == ["completion", WORDS]:  # whatever stands behind it is not for this command
        return COMMANDS["completion"].run(arguments[1:])
    if asks_for_help(arguments[:1]):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(version_lines())
        return 0
    if asks_for_help(arguments[1:2]) and (family := usage_of_family(arguments[0])):
        print(family, end="")
        return 0

    # The longer name first: "data shapes" before "data".
    for words in (2, 1):
        name = " ".join(arguments[:words])
        entry = COMMANDS.get(name)
        if entry is not None:
            rest = arguments[words:]
            if name not in WITHOUT_A_FILE and CONFIG in named(rest):
                rest = with_file(name, targets_of(name, rest), rest)
            refuse_addresses(rest, entry)
            if not entry.in_processes:
                require_one_process(name)
            try:
                return entry.run(rest)
            finally:
                if asks_for_help(rest):
                    print(also_taken(name))

    if len(arguments) == 1 and (family := usage_of_family(arguments[0])):
        print(family, end="")
        return 2
    raise UserError(f"there is no command {' '.join(arguments[:2])!r}; see emcl-train --help")


def is_quiet(arguments: list[str]) -> bool:
    """Whether the command prints no more than where its results are; what is asked for is printed all the same."""
    asked = "--version" in arguments[:2] or asks_for_help(arguments) or "--print-config" in arguments
    asked = asked or word_of(arguments) == "completion"
    return "--quiet" in arguments and not asked


def refuse_addresses(arguments: list[str], entry: Entry) -> None:
    """Raise a UserError where an address is given for a file or folder, which Python would take for one named so."""
    of_library = entry.library(arguments)
    place = 0
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
        is_plain = not argument.startswith("--") and (not before.startswith("--") or before in entry.switches)
        place += is_plain
        if of_library == "" and is_plain and place > 1:  # what is searched for
            continue

        address = ADDRESS.match(value if equals else argument)
        if address is None or (name in OF_HUB_NAMES and address[1] == "hf"):
            continue
        is_library = of_library is not None and (is_plain if of_library == "" else name == of_library)
        if is_library and address[1] in entry.stores:
            continue
        what = f"{entry.place} is" if is_library else f"{name} is" if name.startswith("--") else "there is"
        expected = "a file or folder of this machine"
        if is_library:
            expected = f"a folder of this machine, or an object store's address ({', '.join(entry.stores)})"
        raise UserError(
            f"{what} {value if equals else argument}, an address, expected {expected}; "
            + (
                "`hf download NAME --local-dir DIR` brings a folder here, and `hf upload NAME DIR` puts one there"
                if address[1] == "hf"
                else "download it first"
            )
        )


def require_one_process(name: str) -> None:
    """Refuse to do in several processes what one does: each would write the same files.

    Raises:
        UserError: a launcher has started several.
    """
    if (count := process_count()) > 1:
        shared = [f"`{other}`" for other, entry in COMMANDS.items() if entry.in_processes]
        error = UserError(
            f"`{name}` runs in one process, and {count} were started; start it without torchrun or another launcher, "
            f"which are for {' and '.join(shared)}"
        )
        error.of_all_processes = True
        raise error


if __name__ == "__main__":
    sys.exit(main())
