"""What the README says is so."""

import re
import tomllib
from dataclasses import fields

import pytest

from wiki_assets.settings import Settings
from wiki_assets_tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")


def settings_row(name: str) -> str:
    """One setting as README's table shows it."""
    spec = {field.name: field for field in fields(Settings)}[name]
    default = f"`{spec.default}`" if spec.default not in ("", 0) else ""
    return f"| `{spec.metadata['variable']}` | {default} | {spec.metadata['doc']} |"


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_every_setting_is_in_the_table(name: str) -> None:
    assert settings_row(name) in README


def test_files_that_are_named_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_versions_that_are_pinned_are_the_ones_in_constraints() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = [d.split(";")[0].strip() for d in project["dependencies"] if "==" in d]
    constraints = {
        line.partition("==")[0].lower().replace("_", "-"): line.partition("==")[2]
        for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    }
    for requirement in pinned:
        name, _, version = requirement.partition("==")
        assert constraints[name.split("[")[0].lower()] == version, requirement
