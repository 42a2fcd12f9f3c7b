"""What a host of repositories reads: issue forms, the citation, hooks; each is what its reader takes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_can_be_filled_in(form):
    found = read(form)
    assert found.keys() >= {"name", "description", "body"}
    ids = [field["id"] for field in found["body"]]
    assert len(set(ids)) == len(ids) > 0
    for field in found["body"]:
        assert field["type"] in ("textarea", "input")
        assert field["attributes"]["label"]
        assert field["validations"] == {"required": True}


def test_there_are_forms_to_judge():
    assert [form.stem for form in FORMS] == ["bug", "strategy", "wrong_verdict"]


def test_hooks_check_with_the_versions_that_tox_checks_with():
    pinned = {re.split("==", one)[0]: one for one in PYPROJECT["optional-dependencies"]["lint"]}
    (repo,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"  # nothing is fetched from a tag that may move
    assert [hook["additional_dependencies"] for hook in repo["hooks"]] == [[pinned["ruff"]]] * 2


def test_the_citation_is_of_this_project_under_its_licence():
    cited = read(ROOT / "CITATION.cff")
    assert cited["cff-version"] == "1.2.0"
    assert cited["license"] == PYPROJECT["license"]
    assert cited["authors"] == PYPROJECT["authors"]
    assert cited["title"].startswith(f"{PYPROJECT['name']}: ")
    for paper in cited["references"]:
        assert paper["url"].startswith("https://arxiv.org/abs/")
        assert all(author.keys() == {"family-names", "given-names"} for author in paper["authors"])


def test_the_security_page_says_how_to_report_and_what_is_promised():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "quambench --version" in page
    assert (ROOT / re.search(r"\((docs/\S+)\)", page)[1]).is_file()
