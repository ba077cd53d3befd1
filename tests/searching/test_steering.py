from __future__ import annotations

import numpy as np
import pytest

from graphprune.errors import CheckError, RunError
from graphprune.searching.evaluating import _OPEN, Quality, close_all, evaluate
from graphprune.searching.exchange import exact
from graphprune.searching.goals import Target, goal_of, parse_target
from graphprune.searching.greedy import greedy
from graphprune.searching.steering import decide, finalists, front, reasons, require_reachable, steps_to_goal
from tests.searching.fake import Fake, Formula, asker, best

EIGHT = tuple(f"encoder.{i}.{kind}" for i in range(4) for kind in ("attention", "ffn"))


def drawn(seed: int, count: int = 8, taken: tuple[str, ...] = ("drop",)) -> Formula:
    """Losses and pairs at random; some blocks are worth nothing."""
    random = np.random.default_rng(seed)
    blocks = [f"b{i}" for i in range(count)]
    losses = dict(zip(blocks, random.exponential(0.02, count) - 0.004, strict=True))
    pairs = {(a, b): float(random.normal(0, 0.005)) for a in blocks for b in blocks if a < b}
    return Formula(losses, pairs, taken=taken)  # type: ignore[arg-type]


def test_greedy_takes_what_costs_least_quality_for_what_it_saves() -> None:
    formula = Formula({"a": 0.01, "b": 0.03, "c": 0.001, "d": 0.5})
    one = asker(formula, {"a": 1.0, "b": 4.0, "c": 0.05, "d": 5.0}, "speedup=1.9")
    steps = greedy(one, one.space.dense)
    # Quality lost for a unit saved: a 0.01, b 0.0075, c 0.02, d 0.1; beyond the limit nothing is gained.
    assert [dict(step.changed) for step in steps] == [{"b": "drop"}, {"a": "drop"}]
    assert steps[-1].price["latency"] == pytest.approx(5.05)
    assert steps[-1].quality.kept == pytest.approx(0.96)


def test_greedy_scores_all_candidates_anew() -> None:
    """Either of two blocks can go, not both: the second step knows."""
    formula = Formula({"a": 0.01, "b": 0.011, "c": 0.05, "d": 0.3}, {("a", "b"): 0.5})
    one = asker(formula, dict.fromkeys("abcd", 1.0), "speedup=2")
    assert one.space.choice(greedy(one, one.space.dense)[-1].picks) == {"a": "drop", "c": "drop"}


def test_layers_go_in_one_step() -> None:
    """Alone, neither block of a layer can go; together they can."""
    formula = Formula({"a": 0.4, "b": 0.4, "c": 0.1, "d": 0.1}, {("a", "b"): -0.79})
    one = asker(formula, dict.fromkeys("abcd", 1.0), "speedup=2", layers=((0, 1), (2, 3)))
    (step,) = greedy(one, one.space.dense)
    assert dict(step.changed) == {"a": "drop", "b": "drop"}


def test_a_linear_map_is_taken_where_it_loses_less_for_what_it_saves() -> None:
    formula = Formula({"a": 0.2, "b": 0.0001}, taken=("drop", "linear"))
    one = asker(formula, {"a": 1.0, "b": 1.0}, "speedup=2")
    steps = greedy(one, one.space.dense)
    assert one.space.choice(steps[-1].picks) == {"b": "drop"}
    hard = Formula({"a": 0.2, "b": 0.3}, taken=("drop", "linear"))
    one = asker(hard, {"a": 1.0, "b": 1.0}, "speedup=1.5")
    assert one.space.choice(greedy(one, one.space.dense)[-1].picks) == {"a": "linear"}


def test_exchange_finds_what_greedy_misses() -> None:
    """The best pair of blocks does not hold the best single one."""
    losses = {name: 0.05 + 0.001 * i for i, name in enumerate("abcdefghijkl")} | {"a": 0.01}
    formula = Formula(losses, {("a", other): 0.06 for other in losses if other != "a"})
    one = asker(formula, dict.fromkeys(losses, 1.0), "speedup=1.2", trials=None)
    wanted, kept = best(one, formula)
    taken = greedy(one, one.space.dense)[-1]
    assert "a" in one.space.choice(taken.picks) and taken.quality.kept < kept
    steps = steps_to_goal(one, one.space.dense, seed=0)
    assert steps[-1].picks == wanted == one.space.picks({"b": "drop", "c": "drop"})
    assert steps[-1].phase == "exchange"


@pytest.mark.parametrize("seed", range(5))
def test_the_best_choice_is_found_where_it_is_known(seed: int) -> None:
    formula = drawn(seed, 8, ("drop", "linear"))
    one = asker(formula, {name: 1.0 + 0.1 * i for i, name in enumerate(formula.losses)}, "speedup=1.6")
    steps = steps_to_goal(one, one.space.dense, seed=seed)
    _, kept = best(one, formula)
    assert kept - steps[-1].quality.kept < 0.01
    assert one.within(steps[-1].picks)
    assert len(formula.asked) < one.space.size / 25


def test_few_choices_are_all_compared() -> None:
    formula = drawn(3, 5)
    one = asker(formula, dict.fromkeys(formula.losses, 1.0), "speedup=2")
    (step,) = exact(one, one.space.dense) or []
    assert step.picks == best(one, formula)[0] and step.phase == "exact"
    assert len(formula.asked) == step.tried


@pytest.mark.parametrize("seed", range(4))
def test_a_floor_alone_asks_for_the_cheapest_above_it(seed: int) -> None:
    formula = drawn(seed, 6)
    one = asker(formula, {name: 1.0 + i for i, name in enumerate(formula.losses)}, "quality=0.95")
    steps = steps_to_goal(one, one.space.dense, seed=0)
    assert steps[-1].picks == best(one, formula)[0]
    assert steps[-1].quality.kept >= 0.95


def test_a_floor_alone_among_many_choices() -> None:
    formula = drawn(1, 14)
    one = asker(formula, dict.fromkeys(formula.losses, 1.0), "quality=0.97")
    steps = steps_to_goal(one, one.space.dense, seed=0)
    assert all(step.quality.kept >= 0.97 for step in steps)
    wanted, _ = best(one, formula)
    assert one.pay(steps[-1].picks) == pytest.approx(one.pay(wanted))


def test_the_same_seed_gives_the_same_answer() -> None:
    def found(seed: int) -> list[tuple[object, ...]]:
        formula = drawn(7, 12, ("drop", "mean", "linear"))
        one = asker(formula, dict.fromkeys(formula.losses, 1.0), "speedup=2", trials=300)
        return [(step.phase, step.picks) for step in steps_to_goal(one, one.space.dense, seed)]

    assert found(1) == found(1)


def test_the_number_of_trials_bounds_the_search() -> None:
    formula = drawn(2, 12)
    one = asker(formula, dict.fromkeys(formula.losses, 1.0), "speedup=2", trials=40)
    steps_to_goal(one, one.space.dense, seed=0)
    assert len(formula.asked) <= 41  # and where the search stands


def test_time_bounds_the_search() -> None:
    formula = drawn(2, 12)
    one = asker(formula, dict.fromkeys(formula.losses, 1.0), "speedup=2")
    ticks = iter(range(1000))
    one.budget.seconds, one.budget.clock, one.budget.started = 5.0, lambda: float(next(ticks)), 0.0
    steps = steps_to_goal(one, one.space.dense, seed=0)
    assert 0 < len(steps) < 5 and len(formula.asked) < 60


def test_where_no_more_may_be_asked_the_limits_are_met_by_what_is_known() -> None:
    losses = {f"b{i}": 0.01 * (i + 1) for i in range(12)}
    formula = Formula(losses)
    one = asker(formula, dict.fromkeys(losses, 1.0), "speedup=2", trials=12)
    steps = steps_to_goal(one, one.space.dense, seed=0)
    assert [step.phase for step in steps] == ["greedy", "rest"]
    assert one.space.choice(steps[-1].picks) == dict.fromkeys(list(losses)[:6], "drop")
    assert len(formula.asked) == 14  # the dense model and where it ends, too


def test_little_data_first_and_the_best_on_more() -> None:
    """The noisy level picks candidates, the sharp one decides among a few of them."""
    losses = {f"b{i}": 0.01 * (i + 1) for i in range(12)}
    sharp, noisy = Formula(losses), Formula(losses, noise=0.01)
    openers = {"small": Fake(f"small {id(noisy)}", noisy), "all": Fake(f"all {id(sharp)}", sharp)}
    one = asker(sharp, dict.fromkeys(losses, 1.0), "speedup=1.3", openers=openers, racing=("small", "all"))
    steps = greedy(one, one.space.dense)
    assert len(sharp.asked) < len(noisy.asked) / 2
    assert set(one.space.choice(steps[-1].picks)) <= {"b0", "b1", "b2", "b3", "b4"}


def test_the_shortlist_spares_evaluations() -> None:
    losses = {f"b{i}": 0.01 * (i + 1) for i in range(16)}
    healed, plain = Formula(losses, taken=("drop", "linear")), Formula({b: 2 * v for b, v in losses.items()})
    openers = {"shortlist": Fake(f"plain {id(plain)}", plain), "all": Fake(f"all {id(healed)}", healed)}
    one = asker(healed, dict.fromkeys(losses, 1.0), "speedup=1.04", openers=openers)
    (step,) = greedy(one, one.space.dense)
    assert step.changed == {"b0": "linear"}
    asked = {block for choice in healed.asked for block in choice}
    assert asked == {f"b{i}" for i in range(8)}
    assert all(set(choice.values()) <= {"drop"} for choice in plain.asked)
    assert one.budget.spent == len({tuple(sorted(c.items())) for c in healed.asked})


def test_what_cannot_be_evaluated_is_passed_over() -> None:
    class Broken(Formula):
        def quality(self, choice: dict[str, str]) -> Quality:  # type: ignore[override]
            if "a" in choice:
                raise RunError("a is not finite")
            return super().quality(choice)  # type: ignore[arg-type]

    formula = Broken({"a": 0.0, "b": 0.1, "c": 0.2})
    one = asker(formula, dict.fromkeys("abc", 1.0), "speedup=1.4")
    steps = steps_to_goal(one, one.space.dense, seed=0)
    assert one.space.choice(steps[-1].picks) == {"b": "drop"}


def test_nothing_that_can_be_evaluated_is_an_error() -> None:
    class Broken(Formula):
        def quality(self, choice: dict[str, str]) -> Quality:  # type: ignore[override]
            raise RunError("nothing is finite")

    one = asker(Broken({"a": 0.0, "b": 0.1}), {"a": 1.0, "b": 1.0}, "speedup=1.4")
    with pytest.raises(RunError, match="no choice of blocks can be evaluated: nothing is finite"):
        steps_to_goal(one, one.space.dense, seed=0)


def test_an_unreachable_limit_says_what_is_the_most() -> None:
    one = asker(Formula({"a": 0.1, "b": 0.1}), {"a": 1.0, "b": 2.0}, "speedup=5", rest=1.0)
    with pytest.raises(
        CheckError, match=r"speed-up of 5\.00, the most that can be had is a speed-up of 2\.00"
    ):
        require_reachable(one)


def test_a_floor_that_no_choice_reaches_says_what_is_the_most() -> None:
    formula = Formula({"a": 0.02, "b": 0.1, "c": 0.2})
    one = asker(formula, dict.fromkeys("abc", 1.0), "speedup=3", "quality=0.99")
    steps_to_goal(one, one.space.dense, seed=0)
    message = r"speed-up of 3\.00 and 99\.0% of the dense quality; at these costs the most .* 88\.0%"
    with pytest.raises(CheckError, match=message):
        decide(one, "all", finalists(one))


def test_the_winner_is_the_best_of_the_last_level() -> None:
    formula = drawn(4, 8)
    one = asker(formula, dict.fromkeys(formula.losses, 1.0), "speedup=2")
    steps = steps_to_goal(one, one.space.dense, seed=0)
    picks, quality = decide(one, "all", finalists(one))
    assert picks == steps[-1].picks and quality == steps[-1].quality


def test_reasons_tell_what_another_action_would_do() -> None:
    formula = Formula({"a": 0.01, "b": 0.2}, taken=("drop", "linear"))
    one = asker(formula, {"a": 1.0, "b": 3.0}, "speedup=1.3")
    found = {reason.block: reason for reason in reasons(one, one.space.picks({"a": "drop"}))}
    assert (found["a"].action, found["a"].instead) == ("drop", "keep")
    assert found["a"].kept == pytest.approx(0.01) and found["a"].cost == pytest.approx(0.25)
    assert set(found) == {"a"}  # with b gone as well, nothing would be left


def test_front_holds_what_nothing_is_better_and_cheaper_than() -> None:
    goal = goal_of([Target("speedup", 2)], {"latency": 1.0})
    pairs = [(0.5, 0.9), (0.6, 0.95), (0.7, 0.93), (0.5, 0.8), (1.0, 1.0), (1.0, 1.0)]
    marks = front(goal, [({"latency": cost}, Quality(kept, kept)) for cost, kept in pairs])
    assert marks == [True, True, False, False, True, False]


def test_targets_are_read() -> None:
    read = {
        text: parse_target(text).value
        for text in ("latency=3.2ms", "size=50MB", "quality=99.5%", "macs=1.2G")
    }
    assert read == pytest.approx(
        {"latency=3.2ms": 3.2e-3, "size=50MB": 5e7, "quality=99.5%": 0.995, "macs=1.2G": 1.2e9}
    )
    goal = goal_of(
        [parse_target(text) for text in ("speedup=2", "latency=3s", "parameters=0.5", "quality=0.9")],
        {"latency": 8.0, "parameters": 1000.0},
    )
    assert (
        goal.limits == {"latency": 3.0, "parameters": 500.0} and goal.floor == 0.9 and goal.cost == "latency"
    )


@pytest.mark.parametrize(
    "text", ["", "speed=2", "speedup", "speedup=fast", "speedup=0.5", "latency=3MB", "size=0", "quality=-1"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="is no target: it"):
        parse_target(text)


def test_no_stack_is_emptied() -> None:
    """Nothing is lost by anything, and yet one block of the stack stays."""
    formula = Formula(dict.fromkeys("abc", 0.0), taken=("drop", "linear"))
    one = asker(formula, {"a": 1.0, "b": 2.0, "c": 3.0}, "quality=0.5")
    steps = steps_to_goal(one, one.space.dense, seed=0)
    assert steps[-1].picks == one.space.cheapest(one.pay) == ("keep", "drop", "drop")
    assert all(one.space.allowed(picks) for picks in one.space.every())
    assert len(list(one.space.every())) == one.space.size - 2**3


def test_a_process_keeps_few_evaluators() -> None:
    close_all()
    formula = Formula({"a": 0.1, "b": 0.2})
    openers = [Fake(f"one of {number}", formula) for number in range(9)]
    for opener in openers:
        assert evaluate((opener, {"a": "drop"})).kept == pytest.approx(0.9)
    assert len(_OPEN) == 4
    close_all()
    assert not _OPEN
