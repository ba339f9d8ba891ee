"""The lock with hashes, and what is known of its packages."""

import re
from datetime import date

from wiki_assets_tests.conftest import REPOSITORY

LOCK = (REPOSITORY / "requirements.lock").read_text("utf-8")
CONSTRAINTS = (REPOSITORY / "constraints.txt").read_text("utf-8")


def names(text: str) -> dict[str, str]:
    """Pinned versions by normalised name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_every_package_of_the_lock_has_a_hash() -> None:
    blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK)
    packages = [block for block in blocks if re.match(r"[A-Za-z0-9._-]+==", block)]
    assert len(packages) > 150
    assert [block.split()[0] for block in packages if "--hash=sha256:" not in block] == []


def test_lock_and_constraints_name_the_same_versions() -> None:
    locked, constrained = names(LOCK), names(CONSTRAINTS)
    assert {name: v for name, v in locked.items() if constrained.get(name, v) != v} == {}
    assert "torch" in constrained
    assert "torch" not in locked


def test_every_ignored_advisory_has_a_day_and_a_reason() -> None:
    lines = [line for line in (REPOSITORY / "audit-ignore.txt").read_text("utf-8").splitlines() if line[:1] != "#"]
    assert lines
    for line in lines:
        match = re.fullmatch(r"(CVE|GHSA|PYSEC)-[\w-]+ +(\d{4}-\d\d-\d\d) +(\S.{20,})", line)
        assert match, line
        assert date.fromisoformat(match[2]) <= date.today()
