"""The schema: every column is documented and has a role, and rows that do not fit it are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest

from leaderboard.board import schema
from leaderboard.board.schema import Role
from suite.evaluation.scoring import Scorer
from tasks import Split
from tasks.scoring import Estimate
from tests.support.board_rows import measurement_row, trial_row

TABLES = sorted(schema.TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_every_column_has_a_role_and_a_line_of_documentation(table: str):
    for field in schema.TABLES[table]:
        assert schema.role(field) in Role
        assert len(field.metadata[b"doc"].decode()) > 5, field.name


@pytest.mark.parametrize("table", TABLES)
def test_keys_come_first_and_are_the_only_columns_that_cannot_be_null(table: str):
    fields = list(schema.TABLES[table])
    keys = schema.columns(table, Role.KEY)
    assert [field.name for field in fields[: len(keys)]] == keys
    assert [field.name for field in fields if not field.nullable] == keys


@pytest.mark.parametrize("table", TABLES)
def test_roles_divide_the_columns(table: str):
    divided = [name for role in Role for name in schema.columns(table, role)]
    assert sorted(divided) == sorted(schema.TABLES[table].names) == sorted(schema.columns(table))


@pytest.mark.parametrize("table", TABLES)
def test_a_schema_names_its_table_and_version(table: str):
    assert schema.TABLES[table].metadata[b"table"].decode() == table
    assert int(schema.TABLES[table].metadata[b"schema_version"]) == schema.VERSION


def test_rows_become_a_table_of_the_schema():
    found = schema.to_arrow("trials", [trial_row("a"), {"trial": "b"}])
    assert found.schema.equals(schema.TRIALS, check_metadata=True)
    assert found["optimizer"].to_pylist() == ["adamw", None]


def test_a_column_that_is_not_in_the_schema_is_named():
    with pytest.raises(ValueError, match=r"trials: no such column: oprimizer"):
        schema.to_arrow("trials", [trial_row("a") | {"oprimizer": "adamw"}])


@pytest.mark.parametrize("absent", [{}, {"probe": None}])
def test_a_row_without_its_key_is_refused(absent: dict[str, None]):
    row = {name: value for name, value in measurement_row("t", "target", 0.5).items() if name != "probe"}
    with pytest.raises(ValueError, match=r"measurements: a row lacks its key column probe"):
        schema.to_arrow("measurements", [row | absent])


def test_a_value_of_another_type_is_refused():
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        schema.to_arrow("trials", [trial_row("a", steps="many")])


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_a_measurement_says_of_its_engine_whether_it_is_batch_invariant(batch_invariant: bool):
    task = SimpleNamespace(name="pocket", version=1, data="data", source="")
    engine = SimpleNamespace(name="vllm-float32", version="1", dtype="float32", batch_invariant=batch_invariant)
    row = Scorer(task, engine).matching_row("t", "uwc[floor=0.9]", Split.TEST, Estimate(0.5, None, 1))
    [found] = schema.to_arrow("measurements", [row]).to_pylist()
    assert (found["engine"], found["batch_invariant"]) == ("vllm-float32", batch_invariant)
