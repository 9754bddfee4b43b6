"""Which folders of runs lie inside which. Nothing here needs torch."""

import re

EVALUATIONS = "evaluations"
"""In a run's folder, that of evaluations with other settings."""
STATE_FOLDER = "state"
"""In a run's folder, that of what it goes on from."""
SEED_FOLDER = re.compile(r"seed-(\d+)")
"""Name of a run's folder among runs that differ in their seed."""
