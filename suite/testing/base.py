"""What all conformance classes share: which entries they test, and the settings that they make them with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import pytest

from suite.config.errors import SpecError
from suite.config.settings import Settings, parse
from suite.spec.yaml_file import merged


class Conformance:
    """Tests of one entry, or of several: a subclass whose name begins with `Test` says which.

    A test that does not apply is switched off in the subclass: `test_the_loss_goes_down = None`, with the reason.

    Attributes:
        entry: what is tested. entries: several of them, instead.
    """

    entry: ClassVar[Any] = None
    entries: ClassVar[Iterable[Any]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        cases = self.cases()
        if not cases:
            raise pytest.Collector.CollectError(
                f"{type(self).__name__}: nothing to test. Write `entry = YourOwn` in the class, or `entries = [...]`"
            )
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", cases, ids=[getattr(case, "id", None) or case.name for case in cases])

    def cases(self) -> Sequence[Any]:
        """What the tests run on, each with a name or an `id`."""
        return self.chosen()

    @classmethod
    def chosen(cls) -> list[Any]:
        """The entries."""
        return [*([] if cls.entry is None else [cls.entry]), *cls.entries]


@dataclass(frozen=True)
class Case:
    """A class of an axis, with the settings that it is tested with.

    Attributes:
        kind: the class.
        more: settings on top of its `example`.
    """

    kind: Any
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name in its settings; that of the class where they have none."""
        fields = getattr(getattr(self.kind, "Settings", None), "model_fields", {})
        return (fields["name"].default if "name" in fields else "") or self.kind.__name__

    @property
    def what(self) -> str:
        """The name of the class, for messages."""
        return str(self.kind.__name__)

    @property
    def id(self) -> str:
        return f"{self.name}[{','.join(f'{k}={v}' for k, v in self.more.items())}]" if self.more else self.name

    def settings(self, **changes: Any) -> Any:
        """Its settings: the `example`, what this case adds, and these changes."""
        if not isinstance(self.kind.example, Mapping):
            pytest.fail(f"{self.what}.example: settings by name are expected, not {self.kind.example!r}", pytrace=False)
        data = merged(merged({"name": self.name, **self.kind.example}, self.more), changes)
        try:
            return parse(self.kind.Settings, data, f"{self.name}: ")
        except SpecError as error:
            pytest.fail(
                f"{error}. The settings are those of `example`, a class attribute of {self.kind.__name__}: change it "
                "to settings with which it can be made and does all that it does within six steps",
                pytrace=False,
            )


class AxisConformance(Conformance):
    """Tests of a class of an axis, registered or not.

    It is tested with its `example`. An entry may also be `Case(Mine, {"momentum": 0.9})`: with settings on top of it.
    """

    base: ClassVar[type]
    """The base class of the axis."""

    def cases(self) -> Sequence[Case]:
        cases = [entry if isinstance(entry, Case) else Case(entry) for entry in self.chosen()]
        for kind in (case.kind for case in cases):
            if not (isinstance(kind, type) and issubclass(kind, self.base)):
                raise pytest.Collector.CollectError(
                    f"{type(self).__name__}: {kind!r} is no subclass of {self.base.__module__}.{self.base.__name__}"
                )
            if not issubclass(getattr(kind, "Settings", object), Settings):
                raise pytest.Collector.CollectError(
                    f"{kind.__name__}: give it a class `Settings`, derived from the settings of its axis, with a `name`"
                )
        return cases

    @pytest.fixture(autouse=True)
    def installed(self, case: Case) -> None:
        """Skip what needs a package that is not there."""
        try:
            getattr(case.kind, "check_installed", lambda: None)()
        except SpecError as missing:
            pytest.skip(str(missing))

    def test_its_example_is_settings_of_it(self, case: Case) -> None:
        assert case.settings().name == case.name

    def test_it_has_a_name_and_a_line_that_says_what_it_is(self, case: Case) -> None:
        named = case.kind.Settings.model_fields.get("name")
        assert named is not None and get_args(named.annotation) == (named.default,), (
            f"{case.what}.Settings: write `name: Literal[...] = ...`, with the name that a spec gives it in both places"
        )
        assert (case.kind.__doc__ or "").strip(), (
            f"{case.what} has no docstring: its first line is what `regrade ls` shows"
        )
