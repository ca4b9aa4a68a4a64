"""Short names of attacks: different within a set, and no longer than it takes to tell them apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leaderboard.ranking.attack_labels import attack_labels
from tasks import TASKS, Split, attack_name

ATTACK = st.fixed_dictionaries(
    {"name": st.sampled_from(["relearn", "rtn", "a"])},
    optional={
        "steps": st.integers(1, 3),
        "seed": st.integers(1, 3),
        "layers": st.lists(st.integers(1, 3), max_size=3),
        "text": st.text("a,=[]'\" b", max_size=30),
    },
).map(attack_name)


def test_only_what_tells_attacks_apart_is_said():
    attacks = (
        *("none", "rtn[bits=4]", "few_shot[seed=2,shots=8,source=forget]"),
        "relearn[lr=0.001,samples=12,seed=2,steps=20]",
        "relearn[lr=0.0005,points=3,samples=24,seed=2,steps=24]",
        "steer[layers=[1, 2],strength=0.5,texts=128]",
        *("prefill[text=Sure, here it is,words=3]", "prefill[text=Sure, it is here,words=3]"),
    )
    assert list(attack_labels(attacks).values()) == [
        *("none", "rtn bits=4", "few_shot", "relearn steps=20", "relearn steps=24", "steer"),
        *("prefill text=Sure, here ", "prefill text=Sure, it is"),
    ]


def test_a_seed_is_said_only_where_nothing_else_differs():
    assert attack_labels(["relearn[lr=0.001,seed=1,steps=20]", "relearn[lr=0.001,seed=2,steps=20]"]) == {
        "relearn[lr=0.001,seed=1,steps=20]": "relearn seed=1",
        "relearn[lr=0.001,seed=2,steps=20]": "relearn seed=2",
    }
    both = attack_labels(["relearn[lr=0.001,seed=1,steps=20]", "relearn[lr=0.001,seed=2,steps=40]"])
    assert list(both.values()) == ["relearn steps=20", "relearn steps=40"]


def test_a_setting_that_all_have_is_said_rather_than_one_at_its_default():
    labels = attack_labels(["noise[sigma=0.0001,texts=128]", "noise[k=1,sigma=0.0002,texts=128]"])
    assert list(labels.values()) == ["noise sigma=0.0001", "noise sigma=0.0002"]


def test_what_is_only_different_far_on_is_called_by_its_whole_name():
    attacks = [f"prefill[text={'x' * 40}{end}]" for end in "ab"]
    assert attack_labels(attacks) == {attack: attack for attack in attacks}


def test_a_label_that_is_another_attacks_name_is_not_used():
    assert attack_labels(["rtn[bits=4]", "rtn bits=4"]) == {"rtn[bits=4]": "rtn[bits=4]", "rtn bits=4": "rtn bits=4"}


@given(st.lists(st.one_of(ATTACK, st.text("a[]=,1", max_size=8)), max_size=8))
def test_labels_are_different_and_the_same_in_any_order(attacks: list[str]):
    labels = attack_labels(attacks)
    assert labels.keys() == set(attacks)
    assert len(set(labels.values())) == len(labels)
    assert attack_labels(reversed(attacks)) == labels


def test_every_official_set_has_short_labels():
    for task in TASKS:
        for attack_set in TASKS[task].attack_sets.values():
            for split in Split:
                labels = attack_labels([attack_name(settings) for settings in attack_set[split]])
                assert max(map(len, labels.values())) <= 32, labels


def test_a_word_tells_two_apart_rather_than_a_number():
    one, other = "relearn[lr=0.1,samples=24,steps=24]", "relearn[lr=0.1,samples=48,steps=48,texts=unasked]"
    assert attack_labels([one, other]) == {one: "relearn", other: "relearn texts=unasked"}
