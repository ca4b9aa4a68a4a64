"""The registry: listed entries, and members of families that are created on lookup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tasks import EXTRAS, TASKS, TaskError, mmlu, muse, rwku, tofu, wikitext, wmdp
from tests.support.published import MEMBERS


def test_members_of_families_are_there_without_being_listed():
    assert "rwku/Stephen_King" in TASKS and "custom/anything" in TASKS
    assert "rwku/Stephen_King" not in list(TASKS)
    assert TASKS["rwku/Prince_Harry,_Duke_of_Sussex"].name == "rwku/Prince_Harry,_Duke_of_Sussex"
    assert TASKS.get("custom/anything").official == "custom-1"
    assert TASKS["rwku/Beyoncé"].official == TASKS["rwku/Jay-Z"].official


@pytest.mark.parametrize(
    "name", ["rwku", "rwku/", "rwku/../etc", "custom/a/b", "custom/.hidden", "custom/..", "tofu/forget02", "", "x/y", 7]
)
def test_what_is_no_task_is_not_there(name):
    """In particular nothing that is a path."""
    assert name not in TASKS
    assert TASKS.get(name) is None if isinstance(name, str) else True
    with pytest.raises((KeyError, AttributeError)):
        TASKS[name]


def test_a_member_that_nobody_has_is_refused_when_it_is_built(mirrored):
    with pytest.raises(TaskError, match=r"no folder \.\.\._Ada_of_Exmple\. Did you mean Ada_of_Example\?"):
        TASKS["rwku/Ada_of_Exmple"].build()
    with pytest.raises(TaskError, match=r"no folder .*custom/leters\. Did you mean letters\?"):
        TASKS["custom/leters"].build()


def test_ls_lists_tasks_and_families():
    from suite.cli import app

    listed = CliRunner().invoke(app, ["ls", "tasks", "--json"])
    assert listed.exit_code == 0, listed.output
    rows = {row["name"]: row for row in json.loads(listed.output)}
    assert list(rows) == [*TASKS, "rwku/<subject>", "custom/<name>"]
    assert rows["rwku/<subject>"]["attacks"] == "rwku-1, rwku-2"
    assert all(row["summary"] for row in rows.values())


def test_the_page_names_every_task_probe_summary_and_pinned_commit(mirrored):
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text()
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")}
    for name in ("tofu/forget01", "muse/news", *MEMBERS):
        task, section = TASKS[name].build(), sections[name.partition("/")[0]]
        assert f"`{TASKS[name].official}`" in section
        for each in {probe.name for probe in task.probes} | {summary.name for summary in task.summaries}:
            assert f"`{each}`" in section or f"`..._{each.partition('_')[2]}`" in section, f"{name}: {each}"
    for module in (tofu, wmdp, mmlu, wikitext, rwku):
        assert f"| `{module.HUB}` | `{module.REVISION}` |" in page
    for corpus in (muse.NEWS, muse.BOOKS):
        assert f"| `{corpus.hub}` | `{corpus.revision}` |" in page
    for extra in EXTRAS:
        assert f"| `{extra}` |" in page
