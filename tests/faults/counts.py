"""What the harness counts: tries of each kind, how many held, and what did not."""

import os
import sys
import threading
from dataclasses import dataclass, field


@dataclass
class Counts:
    """Of one part."""

    part: str
    tries: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """One line each: the kind, how to do it again, what was wrong."""
    failed: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, problems: list[str], again: str) -> None:
        """Count one try."""
        with self._lock:
            self.tries[kind] = self.tries.get(kind, 0) + 1
            if problems:
                self.failed[kind] = self.failed.get(kind, 0) + 1
                self.failures.append(f"{kind}; {again}; {'; '.join(problems)}")
                if os.environ.get("EMCL_FAULTS_SHOW"):
                    print(self.failures[-1], file=sys.stderr, flush=True)
