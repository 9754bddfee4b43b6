"""Python imports this when it starts with this folder in PYTHONPATH, as the processes do that tests launch in a group.

None of them may end with a thread of the exchange: one that lets go of a tensor while the interpreter ends aborts the
process, once in a hundred times. Here it is an error every time.
"""

import atexit
import os
import sys

THREADS = "/proc/self/task"


def require_no_thread_of_an_exchange() -> None:
    names = [_name_of(thread) for thread in os.listdir(THREADS)]
    left = [name for name in names if "gloo" in name]
    if left:
        print(f"threads of the exchange are left at the end: {', '.join(left)}", file=sys.stderr, flush=True)
        os._exit(99)


def _name_of(thread: str) -> str:
    try:
        with open(f"{THREADS}/{thread}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""  # it has just ended


if "RANK" in os.environ and os.path.isdir(THREADS):
    atexit.register(require_no_thread_of_an_exchange)
