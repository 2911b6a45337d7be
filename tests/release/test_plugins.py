from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semver import Version

from mirror.errors import (
    DeniedError,
    InputError,
    MirrorError,
    NotFoundError,
    SourceContentError,
    UnreachableError,
)
from mirror.release.constraints import Constraint
from mirror.release.contracts import Contract, ModuleGroup, Requirement
from mirror.release.plugin_dependencies import Edge
from mirror.release.plugins import SelectedPlugins, select_plugins
from mirror.release.selection import Filter

Needs = Mapping[str, str]


def requirements(needs: Needs) -> tuple[Requirement, ...]:
    return tuple(
        Requirement(name, Constraint.parse(text) if text else None) for name, text in needs.items()
    )


def needs(
    modules: Needs | None = None,
    plugins: Needs | None = None,
    *,
    any_of: Needs | None = None,
    deckhouse: str = "",
    conditional_modules: Needs | None = None,
    conditional_plugins: Needs | None = None,
) -> Contract:
    return Contract(
        "",
        "",
        deckhouse=Constraint.parse(deckhouse) if deckhouse else None,
        mandatory_modules=requirements(modules or {}),
        mandatory_plugins=requirements(plugins or {}),
        any_of=(ModuleGroup("group", requirements(any_of)),) if any_of else (),
        conditional_modules=requirements(conditional_modules or {}),
        conditional_plugins=requirements(conditional_plugins or {}),
    )


class Facts:
    """Plugins as a mapping: name → tag → contract, or what goes wrong; None: no plugins at all."""

    def __init__(
        self, plugins: Mapping[str, Mapping[str, Contract | MirrorError] | None] | None
    ) -> None:
        self.plugins = plugins
        self.asked: list[tuple[str, str]] = []

    def names(self) -> Collection[str] | None:
        return None if self.plugins is None else list(self.plugins)

    def tags(self, name: str) -> Collection[str] | None:
        found = (self.plugins or {}).get(name)
        return None if found is None else list(found)

    def contract(self, name: str, tag: str) -> Contract:
        self.asked.append((name, tag))
        found = ((self.plugins or {}).get(name) or {}).get(tag) or NotFoundError(
            f"{name}:{tag} is not there"
        )
        if isinstance(found, MirrorError):
            raise found
        return found


def solve(
    plugins: Mapping[str, Mapping[str, Contract | MirrorError] | None] | None,
    *wanted: str,
    modules: Mapping[str, str] | None = None,
    platform: str = "",
    proxy: bool = False,
) -> SelectedPlugins:
    return select_plugins(
        Facts(plugins),
        modules={
            name: [Version.parse(text) for text in versions.split()]
            for name, versions in (modules or {}).items()
        },
        platform=[Version.parse(text) for text in platform.split()],
        wanted=Filter.including(wanted, "--include-plugin").items.values(),
        proxy=proxy,
    )


def chosen(selection: SelectedPlugins) -> str:
    return " ".join(f"{choice.name}@{choice.tag}" for choice in selection.choices)


ANY = needs({"m": ""})
M_AND_N_2 = needs({"m": "", "n": ">=2"})
ON_1_70 = needs({"m": ""}, deckhouse=">=1.70")
BROKEN = SourceContentError("broken: invalid contract")
PG = {
    "v1.1.0": needs({"postgresql": ">=1.0.0 <1.5.0"}),
    "v1.2.0": needs({"postgresql": ">=1.5.0"}),
}


def test_each_version_of_a_module_gets_the_newest_plugin_made_for_it() -> None:
    selection = solve({"pg": PG}, modules={"postgresql": "1.0.0 1.5.0 1.10.0"})
    assert chosen(selection) == "pg@v1.1.0 pg@v1.2.0"
    assert [choice.edges for choice in selection.choices] == [
        (Edge("module", "postgresql", ">=1.0.0 <1.5.0"),),
        (Edge("module", "postgresql", ">=1.5.0"),),
    ]
    assert selection.skipped == ()
    assert selection.warnings == ()


@pytest.mark.parametrize(
    ("versions", "modules", "platform", "picked"),
    [
        # the newest, which is not the last by its letters
        ({"v1.9.0": ANY, "v1.10.0": ANY}, {"m": "1.0.0"}, "", "a@v1.10.0"),
        # pre-releases are not for everyone, marks of origin are
        ({"v1.0.0": ANY, "v1.1.0-rc.1": ANY}, {"m": "1.0.0"}, "", "a@v1.0.0"),
        ({"v1.0.0": ANY, "v1.1.0-main": ANY}, {"m": "1.0.0"}, "", "a@v1.1.0-main"),
        # a module's mark of origin does not count either, its pre-release does
        ({"v1.0.0": needs({"m": ">=1.0"})}, {"m": "1.0.0-main"}, "", "a@v1.0.0"),
        ({"v1.0.0": needs({"m": ">=1.0"})}, {"m": "1.1.0-rc.1"}, "", ""),
        # another module is needed too
        ({"v1.0.0": M_AND_N_2}, {"m": "1.0.0", "n": "1.0.0 2.0.0"}, "", "a@v1.0.0"),
        ({"v1.0.0": M_AND_N_2}, {"m": "1.0.0", "n": "1.0.0"}, "", ""),
        # one of several is enough
        ({"v1.0.0": needs(any_of={"m": ">=2", "n": ">=2"})}, {"m": "2.0.0"}, "", "a@v1.0.0"),
        ({"v1.0.0": needs(any_of={"m": ">=2", "n": ">=2"})}, {"m": "1.0.0"}, "", ""),
        # the platform, where the bundle has one
        ({"v1.0.0": ON_1_70}, {"m": "1.0.0"}, "1.69.0 1.70.1", "a@v1.0.0"),
        ({"v1.0.0": ON_1_70}, {"m": "1.0.0"}, "1.69.0", ""),
        ({"v1.0.0": ON_1_70}, {"m": "1.0.0"}, "", "a@v1.0.0"),
        # an older version steps in where the newest does not fit
        ({"v1.0.0": ANY, "v2.0.0": needs({"m": "", "n": ""})}, {"m": "1.0.0"}, "", "a@v1.0.0"),
        ({"v1.0.0": ANY, "v2.0.0": BROKEN}, {"m": "1.0.0"}, "", "a@v1.0.0"),
        # the newest readable contract decides whether the plugin is for a module at all
        ({"v1.0.0": ANY, "v2.0.0": needs({"other": ""})}, {"m": "1.0.0"}, "", ""),
        # no modules, no access
        ({"v1.0.0": ANY}, {}, "", ""),
        (None, {"m": "1.0.0"}, "", ""),
    ],
)  # fmt: skip
def test_modules_call_for_plugins(
    versions: Mapping[str, Contract | MirrorError] | None,
    modules: dict[str, str],
    platform: str,
    picked: str,
) -> None:
    assert chosen(solve({"a": versions}, modules=modules, platform=platform)) == picked


def test_without_a_list_of_plugins_none_is_taken() -> None:
    assert solve(None, modules={"m": "1.0.0"}) == SelectedPlugins()


def test_what_is_built_into_the_program_is_never_carried() -> None:
    assert solve({"package": {"v1.0.0": ANY}}, modules={"m": "1.0.0"}) == SelectedPlugins()


@pytest.mark.parametrize(
    ("plugins", "reason"),
    [
        ({"a": {"v1.0.0": BROKEN}}, "none of its versions has a readable contract: broken: inv"),
        ({"a": {"v1.0.0": needs({"m": ">=2"})}}, "module m 1.0.0: a@v1.0.0: it needs module m >=2"),
        (
            {"a": {"v1.0.0": needs({"m": "", "n": ">=2"})}},
            "a@v1.0.0: it needs module n >=2, and the bundle has 1.0.0",
        ),
        (
            {"a": {"v1.0.0": needs({"m": "", "x": ""})}},
            "a@v1.0.0: it needs module x, and the bundle does not have it",
        ),
        (
            {"a": {"v1.0.0": needs({"m": ""}, any_of={"x": ">=1"})}},
            "it needs one of the modules x >=1 (group), and the bundle has none of them",
        ),
        (
            {"a": {"v1.0.0": needs({"m": ""}, deckhouse=">=1.70")}},
            "it needs a platform release >=1.70, and the bundle has 1.69.0",
        ),
        (
            {"a": {"v1.0.0": needs({"m": ""}, {"b": ">=1"})}},
            "a@v1.0.0: it needs plugin b >=1, but no such version is published",
        ),
        ({"A_": {"v1.0.0": needs({"m": ""})}}, "that is not the name of a plugin"),
    ],
)  # fmt: skip
def test_a_plugin_that_is_called_for_and_left_out_has_a_reason(plugins: Any, reason: str) -> None:
    selection = solve(plugins, modules={"m": "1.0.0", "n": "1.0.0"}, platform="1.69.0")
    assert selection.choices == ()
    [skipped] = selection.skipped
    assert skipped.name in plugins
    assert reason in skipped.reason


def test_a_plugin_for_some_versions_only_is_taken_with_a_warning() -> None:
    selection = solve({"pg": {"v1.2.0": PG["v1.2.0"]}}, modules={"postgresql": "1.0.0 1.5.0"})
    assert chosen(selection) == "pg@v1.2.0"
    [warning] = selection.warnings
    assert warning == (
        "plugin pg has no version for module postgresql 1.0.0: "
        "pg@v1.2.0: it needs module postgresql >=1.5.0"
    )


def test_a_failing_registry_is_not_a_missing_plugin() -> None:
    gone = UnreachableError("gone", where="GET registry")
    with pytest.raises(UnreachableError):
        solve({"a": {"v1.0.0": gone}}, modules={"m": "1.0.0"})
    denied = DeniedError("no", where="GET registry")
    with pytest.raises(DeniedError):
        solve({"a": {"v1.0.0": denied}}, "a")


def test_contracts_are_read_only_where_they_matter_and_once() -> None:
    facts = Facts({"pg": {**PG, "v1.0.0": BROKEN}, "other": {"v1.0.0": needs(), "v0.9.0": needs()}})
    versions = [Version.parse("1.5.0"), Version.parse("1.6.0")]
    select_plugins(facts, modules={"postgresql": versions}, platform=[])
    assert sorted(facts.asked) == [("other", "v1.0.0"), ("pg", "v1.2.0")]


# -- dependencies ---------------------------------------------------------------------------------


def test_dependencies_come_along_in_their_newest_fitting_version() -> None:
    selection = solve(
        {
            "a": {"v1.0.0": needs({"m": ""}, {"b": "<2", "delivery-kit": ">=9"})},
            "b": {"v1.0.0": needs(), "v1.4.0": needs({}, {"c": ""}), "v2.0.0": needs()},
            "c": {"v0.1.0": needs(), "v0.2.0-rc.1": needs()},
        },
        modules={"m": "1.0.0"},
    )
    assert chosen(selection) == "a@v1.0.0 b@v1.4.0 c@v0.1.0"
    assert [choice.edges for choice in selection.choices] == [
        (Edge("module", "m", ""),),
        (Edge("dependency", "a@v1.0.0", "<2"),),
        (Edge("dependency", "b@v1.4.0", ""),),
    ]


def test_what_is_chosen_already_is_used_again() -> None:
    selection = solve(
        {
            "a": {"v1.0.0": needs({"m": ""}, {"c": "<2"})},
            "b": {"v1.0.0": needs({"m": ""}, {"c": ">=1"})},
            "c": {"v1.0.0": needs(), "v2.0.0": needs()},
        },
        modules={"m": "1.0.0"},
    )
    assert chosen(selection) == "a@v1.0.0 b@v1.0.0 c@v1.0.0"
    assert selection.choices[2].edges == (
        Edge("dependency", "a@v1.0.0", "<2"),
        Edge("dependency", "b@v1.0.0", ">=1"),
    )


def test_the_choices_of_a_candidate_that_fails_are_taken_back() -> None:
    selection = solve(
        {
            "a": {
                "v2.0.0": needs({"m": ""}, {"b": "", "missing": ""}),
                "v1.0.0": needs({"m": ""}, {"c": ""}),
            },
            "b": {"v1.0.0": needs({}, {"d": ""})},
            "c": {"v2.0.0": needs({}, {"d": "", "missing": ""}), "v1.0.0": needs()},
            "d": {"v1.0.0": needs()},
        },
        modules={"m": "1.0.0"},
    )
    assert chosen(selection) == "a@v1.0.0 c@v1.0.0"


def test_a_dependency_must_find_its_modules_too() -> None:
    plugins = {
        "a": {"v1.0.0": needs({"m": ""}, {"b": ""})},
        "b": {"v2.0.0": needs({"x": ""}), "v1.0.0": needs()},
    }
    assert chosen(solve(plugins, modules={"m": "1.0.0"})) == "a@v1.0.0 b@v1.0.0"
    # Asked for by name it is taken all the same, and what is lacking is told.
    selection = solve(plugins, "a")
    assert chosen(selection) == "a@v1.0.0 b@v2.0.0"
    assert selection.warnings == (
        "plugin a@v1.0.0 is in the bundle, but it needs module m, and the bundle does not have it",
        "plugin b@v2.0.0 is in the bundle, but it needs module x, and the bundle does not have it",
    )


def test_plugins_that_need_each_other_are_left_out_with_the_circle() -> None:
    selection = solve(
        {
            "a": {"v1.0.0": needs({"m": ""}, {"b": ""})},
            "b": {"v1.0.0": needs({}, {"c": ""})},
            "c": {"v1.0.0": needs({}, {"a": ""})},
        },
        modules={"m": "1.0.0"},
    )
    assert selection.choices == ()
    [skipped] = selection.skipped
    assert "which in turn needs it: a -> b -> c -> a" in skipped.reason


def test_pins_resolve_a_circle() -> None:
    plugins = {"a": {"v1.0.0": needs({}, {"b": ""})}, "b": {"v1.0.0": needs({}, {"a": ""})}}
    assert chosen(solve(plugins, "a@=v1.0.0")) == "a@v1.0.0 b@v1.0.0"
    with pytest.raises(SourceContentError, match="a -> b -> a"):
        solve(plugins, "a")


@pytest.mark.parametrize(("length", "taken"), [(16, True), (17, False)])
def test_a_chain_of_dependencies_has_an_end(length: int, taken: bool) -> None:
    plugins = {
        f"p{number:02}": {"v1.0.0": needs({}, {f"p{number + 1:02}": ""} if number < length else {})}
        for number in range(length + 1)
    }
    if taken:
        assert len(solve(plugins, "p00").choices) == length + 1
    else:
        with pytest.raises(SourceContentError, match="a chain of more than 16 plugins"):
            solve(plugins, "p00")


def chain(length: int, versions: int) -> dict[str, dict[str, Contract]]:
    """`p0` needs `p1` needs ... needs what is not published; each has many versions."""
    return {
        f"p{number}": {
            f"v1.{minor}.0": needs(
                {"m": ""} if number == 0 else {}, {f"p{number + 1}": f"<1.{minor + 1}"}
            )
            for minor in range(versions)
        }
        for number in range(length)
    }


def test_a_broken_chain_is_left_out_with_its_true_reason_and_the_rest_is_taken() -> None:
    plugins = {**chain(3, 50), "other": {"v1.0.0": needs({"m": ""})}}
    selection = solve(plugins, modules={"m": "1.0.0"})
    assert chosen(selection) == "other@v1.0.0"
    [skipped] = selection.skipped
    assert skipped.name == "p0"
    assert skipped.reason == (
        "module m 1.0.0: p0@v1.49.0: it needs plugin p1 <1.50, but p1@v1.49.0: it needs plugin p2 "
        "<1.50, but p2@v1.49.0: it needs plugin p3 <1.50, but no such version is published"
    )


def test_what_failed_once_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.release.plugin_dependencies.MAX_TRIES", 500)
    with pytest.raises(SourceContentError, match=r"needs plugin p10 <1\.10, but no such version"):
        solve(chain(10, 10), "p0")


def test_a_failure_is_forgotten_when_what_it_lacked_is_chosen() -> None:
    plugins = {
        "a": {"v1.0.0": needs({"m": ""}, {"b": ""})},
        "b": {"v1.0.0": needs({}, {"c": ">=1.0.0-0"})},
        "c": {"v1.0.0-rc.1": needs()},
    }
    assert solve(plugins, modules={"m": "1.0.0"}).choices == ()
    assert chosen(solve(plugins, "a", "c@=v1.0.0-rc.1", modules={"m": "1.0.0"})) == (
        "a@v1.0.0 b@v1.0.0 c@v1.0.0-rc.1"
    )


TANGLED = {
    f"t{number}": {
        f"v1.{step}.0": needs({"m": ""}, {f"t{(number + step) % 9}": ""}) for step in range(1, 9)
    }
    for number in range(9)
}
"""Every plugin has a version for every other plugin that it needs: circles wherever one looks."""


def test_plugins_that_need_each_other_in_all_ways_are_given_up_and_the_rest_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mirror.release.plugin_dependencies.MAX_TRIES", 500)
    selection = solve({**TANGLED, "other": {"v1.0.0": needs({"m": ""})}}, modules={"m": "1.0.0"})
    assert chosen(selection) == "other@v1.0.0"
    assert {skipped.name for skipped in selection.skipped} == TANGLED.keys()
    assert any("too tangled: 500 combinations" in skipped.reason for skipped in selection.skipped)
    with pytest.raises(SourceContentError, match="--include-plugin t0 cannot be taken: its depend"):
        solve(TANGLED, "t0")


MANY = [f"v1.{minor}.0" for minor in range(40)]


def alike(contract: Contract) -> dict[str, Contract]:
    """Many versions of a plugin that need the same."""
    return dict.fromkeys(MANY, contract)


LONG = " || ".join(["1"] * 200)


@pytest.mark.parametrize(
    "plugins",
    [
        {f"p{n}": alike(needs({"m": ">5"})) for n in range(40)},
        {f"p{n}": alike(needs({"m": ""} if not n else {}, {f"p{n + 1}": ""})) for n in range(16)},
        {
            "p": alike(needs({"m": ""}, {f"d{n:03}": "" for n in range(300)})),
            **{f"d{n:03}": {"v1.0.0": needs()} for n in range(299)},
        },
        {
            f"p{n}": alike(needs({"m": ""}, {f"p{k}": LONG for k in range(n + 1, 9)}))
            for n in range(8)
        },
        {
            f"p{n}": alike(needs({"m": ""}, {f"p{k}": "" for k in range(9) if k != n}))
            for n in range(9)
        },
    ],
    ids=["none fits", "chain", "wide", "long constraints", "circles"],
)
def test_whatever_a_source_publishes_the_work_is_bounded(
    plugins: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions of modules, of plugins, and needs multiply; nobody waits for all of them."""
    judged = 0
    accepts = Constraint.accepts

    def counted(constraint: Constraint, version: Version) -> bool:
        nonlocal judged
        judged += 1
        return accepts(constraint, version)

    monkeypatch.setattr(Constraint, "accepts", counted)
    monkeypatch.setattr("mirror.release.plugin_dependencies.MAX_STEPS", 5000)
    modules = {"m": [Version(1, minor) for minor in range(60)]}
    found = {**plugins, "zz": {"v1.0.0": needs()}}
    wanted = Filter.including(["zz"], "--include-plugin").items.values()
    selection = select_plugins(Facts(found), modules=modules, platform=[], wanted=wanted)
    assert judged <= 2 * 5000
    assert chosen(selection).endswith("zz@v1.0.0"), "what a flag names is found all the same"
    for skipped in selection.skipped:
        assert skipped.reason.count("module m 1.") <= 5
        assert len(skipped.reason) < 20_000


def test_a_source_that_takes_too_much_work_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mirror.release.plugin_dependencies.MAX_STEPS", 50)
    plugins = {f"p{n}": {tag: needs({"m": ">5"}) for tag in MANY} for n in range(3)}
    selection = solve(plugins, modules={"m": "1.0.0"})
    reasons = [skipped.reason for skipped in selection.skipped]
    assert "it needs module m >5" in reasons[0]
    told = (
        "module m 1.0.0: the plugins of this source are too tangled: 50 needs and versions were "
        "looked at; name exact versions with --include-plugin"
    )
    assert reasons[1:] == [told, told]


def test_of_many_versions_without_a_plugin_a_few_are_told() -> None:
    modules = {"m": " ".join(f"1.{minor}.0" for minor in range(9))}
    plugin = {"v1.0.0": needs({"m": "=1.8.0"})}
    warnings = solve({"a": plugin}, modules=modules).warnings
    assert len(warnings) == 6
    assert warnings[-1] == "plugin a has no version for 3 more versions of modules"


# -- by flag --------------------------------------------------------------------------------------

SOME = {"a": {"v1.0.0": needs(), "v1.1.0": needs(), "v1.2.0-rc.1": needs(), "v2.0.0": needs()}}


@pytest.mark.parametrize(
    ("wanted", "picked"),
    [
        (["a"], "a@v2.0.0"),
        (["a@~1.0"], "a@v1.0.0"),
        (["a@1.0.0"], "a@v1.1.0"),
        (["a@=v1.0.0"], "a@v1.0.0"),
        (["a@=1.0.0"], "a@v1.0.0"),
        (["a@=v1.2.0-rc.1"], "a@v1.2.0-rc.1"),
        (["a@~1.0", "a@>=1 <2", "a@=v2.0.0"], "a@v1.0.0 a@v1.1.0 a@v2.0.0"),
        (["a", "a@=v1.0.0"], "a@v1.0.0"),
    ],
)
def test_plugins_are_taken_by_flag(wanted: list[str], picked: str) -> None:
    selection = solve(SOME, *wanted)
    assert chosen(selection) == picked
    assert {edge.kind for choice in selection.choices for edge in choice.edges} == {"explicit"}


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("b", NotFoundError, "publishes no plugin b, or denies access to it"),
        ("a@=v3.0.0", NotFoundError, "a@=v3.0.0: no such version is published; the newest are v1"),
        ("a@>=3", NotFoundError, "a@>=3: no such version is published"),
        ("empty", NotFoundError, "there is no version at all"),
        ("a@=latest", InputError, "'latest' is not a version; a plugin's tags are versions"),
        ("package", InputError, "is part of the d8 program itself"),
        ("a--b", InputError, "is not the name of a plugin"),
        ("broken@=v1.0.0", SourceContentError, "cannot be taken: broken: invalid contract"),
        ("broken", SourceContentError, "broken@v1.0.0: broken: invalid contract"),
        ("lost@=v1.0.0", SourceContentError, "cannot be taken: it needs plugin gone"),
        ("lost@>=1", SourceContentError, "lost@v1.0.0: it needs plugin gone, but no such version"),
    ],
)
def test_what_a_flag_asks_for_and_cannot_be_is_an_error(
    wanted: str, error: type[MirrorError], message: str
) -> None:
    plugins: dict[str, dict[str, Contract | MirrorError]] = {
        "a": {**SOME["a"]},
        "empty": {"latest": needs()},
        "broken": {"v1.0.0": BROKEN},
        "lost": {"v1.0.0": needs({}, {"gone": ""})},
    }
    with pytest.raises(error) as caught:
        solve(plugins, wanted)
    assert message in str(caught.value)
    assert "--include-plugin" in str(caught.value)


def test_an_older_version_that_is_complete_is_taken_and_told() -> None:
    plugins = {"a": {"v1.0.0": needs(), "v2.0.0": needs({}, {"gone": ""})}}
    selection = solve(plugins, "a")
    assert chosen(selection) == "a@v1.0.0"
    [warning] = selection.warnings
    assert warning.startswith("--include-plugin a: v1.0.0 is taken, because a@v2.0.0: it needs")


def test_pins_come_before_what_others_depend_on() -> None:
    plugins = {
        "a": {"v1.0.0": needs({}, {"z": ">=1.0.0-0"})},
        "z": {"v1.0.0-rc.1": needs(), "v1.1.0": needs(), "v1.2.0": needs()},
    }
    assert chosen(solve(plugins, "a", "z@=v1.1.0")) == "a@v1.0.0 z@v1.1.0"
    assert chosen(solve(plugins, "a", "z@=v1.0.0-rc.1")) == "a@v1.0.0 z@v1.0.0-rc.1"


def test_a_pinned_pre_release_does_not_stand_in_where_a_release_is_needed() -> None:
    plugins = {
        "a": {"v1.0.0": needs({}, {"z": ">=0.9"})},
        "z": {"v1.0.0-rc.1": needs(), "v0.9.5": needs()},
    }
    picked = chosen(solve(plugins, "a@=v1.0.0", "z@=v1.0.0-rc.1"))
    assert picked == "a@v1.0.0 z@v0.9.5 z@v1.0.0-rc.1"


def test_a_plugin_that_is_asked_for_is_not_reported_as_skipped() -> None:
    plugins = {"a": {"v1.0.0": needs({"m": ">=2"})}}
    modules = {"m": "1.0.0"}
    assert [skipped.name for skipped in solve(plugins, modules=modules).skipped] == ["a"]
    selection = solve(plugins, "a", modules=modules)
    assert (chosen(selection), selection.skipped) == ("a@v1.0.0", ())
    assert selection.warnings == (
        "plugin a@v1.0.0 is in the bundle, but it needs module m >=2, and the bundle has 1.0.0",
    )


def test_conditions_that_do_not_hold_are_told() -> None:
    selection = solve(
        {
            "a": {
                "v1.0.0": needs(
                    {"m": ""},
                    conditional_modules={"n": ">=2", "absent": ">=2"},
                    conditional_plugins={"b": ">=2", "gone": ">=2"},
                )
            },
            "b": {"v1.0.0": needs()},
        },
        "b",
        modules={"m": "1.0.0", "n": "1.0.0"},
    )
    assert selection.warnings == (
        "plugin a@v1.0.0 works with module n >=2 only, and the bundle has 1.0.0",
        "plugin a@v1.0.0 works with plugin b >=2 only, and the bundle has v1.0.0",
    )


# -- through a proxy ------------------------------------------------------------------------------


class Proxy(Facts):
    def names(self) -> Collection[str] | None:
        raise AssertionError("a proxy cannot list")

    def tags(self, name: str) -> Collection[str] | None:
        raise AssertionError("a proxy cannot list")


def through_proxy(plugins: Mapping[str, Mapping[str, Contract | MirrorError]], *wanted: str) -> str:
    items = Filter.including(wanted, "--include-plugin").items.values()
    one = Version(1)
    return chosen(
        select_plugins(Proxy(plugins), modules={"m": [one]}, platform=[], wanted=items, proxy=True)
    )


PROXIED = {"a": {"v1.0.0": needs({"m": ""}, {"b": ">=1"})}, "b": {"v1.0.0": needs()}}


def test_through_a_proxy_pins_alone_are_taken() -> None:
    assert through_proxy(PROXIED) == ""
    assert through_proxy(PROXIED, "a@=v1.0.0", "b@=v1.0.0") == "a@v1.0.0 b@v1.0.0"


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("a@=v1.0.0", SourceContentError, "name that too, as in --include-plugin b@=v1.0.0"),
        ("b@~1.0", InputError, "a proxy registry cannot list versions; name one exactly"),
        ("b", InputError, "a proxy registry cannot list versions"),
        ("b@=v2.0.0", NotFoundError, "b@=v2.0.0 is not published: b:v2.0.0 is not there"),
    ],
)
def test_through_a_proxy_everything_must_be_pinned(
    wanted: str, error: type[MirrorError], message: str
) -> None:
    with pytest.raises(error) as caught:
        through_proxy(PROXIED, wanted)
    assert message in str(caught.value)


# -- laws -----------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "d"])
texts = st.sampled_from(["", ">=1.1", "<1.2", "~1.0.0"])
contracts = st.builds(
    needs,
    st.dictionaries(st.sampled_from(["m", "n"]), texts, max_size=2),
    st.dictionaries(names, texts, max_size=2),
) | st.just(BROKEN)
worlds = st.dictionaries(
    names,
    st.dictionaries(
        st.sampled_from(["v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0-rc.1"]), contracts, max_size=4
    ),
    max_size=4,
)
bundles = st.dictionaries(st.sampled_from(["m", "n"]), st.sampled_from(["1.0.0", "1.1.0 1.2.0"]))


@given(worlds, bundles, st.lists(st.sampled_from(["a", "b@>=1.1", "c@=v1.3.0-rc.1"]), max_size=2))
def test_every_choice_is_complete_and_reproducible(
    plugins: dict[str, dict[str, Contract | MirrorError]],
    modules: dict[str, str],
    wanted: list[str],
) -> None:
    try:
        selection = solve(plugins, *wanted, modules=modules)
    except (NotFoundError, SourceContentError):
        return
    backwards = dict(reversed(list(plugins.items())))
    assert solve(backwards, *reversed(wanted), modules=modules) == selection
    taken = {(choice.name, choice.tag): choice for choice in selection.choices}
    assert list(taken) == sorted(taken)
    for (name, tag), choice in taken.items():
        assert choice.edges
        contract = plugins[name][tag]
        assert isinstance(contract, Contract)
        for need in contract.mandatory_plugins:
            assert any(
                other == need.name and need.accepts(found.version)
                for (other, _), found in taken.items()
            )
        for edge in choice.edges:
            if edge.kind == "dependency":
                dependent, _, version = edge.subject.partition("@")
                assert (dependent, version) in taken
    assert not {skipped.name for skipped in selection.skipped} & {name for name, _ in taken}
