"""One check, many times, each with dice of its own that its seed gives again."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Check = Callable[..., Counter[str]]


def one_trial(check: Check, seed: int, number: int, folder: Path, **more: Any) -> Counter[str]:
    """Run a check once; an error says how to run it again.

    Args:
        check: takes dice and an empty folder, then `more`; returns counts.
        seed: of the suite.
        number: of the trial.
        folder: scratch.
        more: what else the check wants.
    """
    place = folder / f"{check.__name__}-{number}"
    place.mkdir(parents=True)
    try:
        return check(random.Random(f"{seed} {check.__name__} {number}"), place, **more)
    except BaseException as error:
        error.add_note(f"--chaos-seed {seed}: trial {number} of {check.__name__}")
        raise
    finally:
        shutil.rmtree(place)


def run_trials(check: Check, seed: int, n: int, folder: Path, *, at_once: int = 1, **more: Any) -> Counter[str]:
    """Run a check n times, `at_once` at a time, and add up what it counts; zeros stay."""
    total: Counter[str] = Counter()
    with ThreadPoolExecutor(at_once) as pool:
        for counts in pool.map(lambda i: one_trial(check, seed, i, folder, **more), range(n)):
            total.update(counts)
    return total
