"""check_env passes what is right and catches planted faults, one broken environment each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpc_marl.config import EnvConfig
from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs import BatchedEnv, EnvArrays, LoopedEnv, StepArrays, check_env
from hpc_marl.envs.testing import BrightSide, CountingEnv, MatrixGame
from hpc_marl.errors import EnvContractError

SPEC = EnvSpec(
    agent_names=("near", "far"),
    observation_size=2,
    state_size=1,
    num_actions=3,
    has_action_mask=True,
    episode_limit=4,
)


class Relay(BatchedEnv):
    """A correct vectorised environment: "far" terminates at step 2, "near" is truncated at step 4.

    Agents see the step and a random number, and are paid the number of their action.
    """

    spec = SPEC

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.steps = np.zeros(num_envs, np.int64)

    def reset(self, seeds: Sequence[int], out: EnvArrays) -> None:
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        self.steps.fill(0)
        self.write(out)
        self.spoil(None, out)

    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        was_over, was_alive = self.steps == 4, self.alive()
        self.steps = np.where(was_over, 0, self.steps + 1)
        result.reward[...] = np.where(was_alive, self.pay(action), 0)
        result.terminated[...] = self.steps[:, None] == [9, 2]
        result.truncated[...] = self.steps[:, None] == [4, 9]
        self.write(out)
        out.observation[self.steps > 2, 1] = 0
        self.spoil(result, out)

    def alive(self) -> NDArray[np.bool_]:
        return self.steps[:, None] < [4, 2]

    def write(self, out: EnvArrays) -> None:
        assert out.state is not None and out.action_mask is not None
        out.observation[..., 0] = self.steps[:, None]
        out.observation[..., 1] = np.array([rng.random() for rng in self.rngs])[:, None]
        out.state[:, 0] = self.steps
        out.alive[...] = self.alive()
        out.is_first[...] = self.steps == 0
        out.action_mask[...] = True
        out.action_mask[..., 2] = ~out.alive

    def pay(self, action: NDArray[Any]) -> NDArray[Any]:
        return action

    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        """Break a rule; `result` is None after reset."""


class Steering(Relay):
    """The same with continuous actions."""

    spec = dataclasses.replace(SPEC, num_actions=0, action_size=1, has_action_mask=False)

    def write(self, out: EnvArrays) -> None:
        out.action_mask = np.zeros((self.num_envs, 2, 3), np.bool_)
        super().write(out)

    def pay(self, action: NDArray[Any]) -> NDArray[Any]:
        return np.clip(action[..., 0], -1, 1)


class UnwrittenReward(Relay):
    """Forgets the reward of the step that resets."""

    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        was_over, kept = self.steps == 4, result.reward.copy()
        super().step(action, result, out)
        result.reward[was_over] = kept[was_over]


class ArraysReplaced(Relay):
    """Puts new arrays in the place of the caller's."""

    def write(self, out: EnvArrays) -> None:
        out.alive = out.alive.copy()
        super().write(out)


class NotANumber(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        out.observation[self.steps == 3, 0, 1] = np.nan


class InfiniteState(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        assert out.state is not None
        out.state[self.steps == 4] = np.inf


class PaidForResetting(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        if result is not None:
            result.reward[self.steps == 0] = 1


class BothEnds(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        if result is not None:
            result.terminated[self.steps == 4, 0] = True


class EndsTwice(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        if result is not None:
            result.terminated[self.steps == 4, 1] = True


class AliveAtTheEnd(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        out.alive[self.steps == 4, 0] = True


class VanishesWithoutEnd(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        if result is not None:
            result.terminated.fill(False)


class ComesBack(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        out.alive[self.steps == 3, 1] = True


class BeginsDead(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        if result is None:
            out.alive[:, 1] = False


class FirstTooEarly(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        out.is_first[...] = self.steps == 4


class FirstForgotten(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        if result is not None:
            out.is_first.fill(False)


class DeadRowsLeft(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        out.observation[self.steps == 3, 1] = 5


class SameStepReset(Relay):
    """Shows the next episode's first observation in place of the final one."""

    def write(self, out: EnvArrays) -> None:
        super().write(out)
        out.observation[..., 1] = 1
        out.observation[self.steps == 4, :, 0] = 0


class NothingAllowed(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        assert out.action_mask is not None
        out.action_mask[self.steps == 1, 0] = False


class DeadMasked(Relay):
    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        assert out.action_mask is not None
        out.action_mask[..., 2] = False


class Unseeded(Relay):
    def reset(self, seeds: Sequence[int], out: EnvArrays) -> None:
        super().reset(np.random.SeedSequence().generate_state(self.num_envs).tolist(), out)


class SharedGenerator(Relay):
    """Instances disturb each other."""

    rng = np.random.default_rng(1)

    def write(self, out: EnvArrays) -> None:
        super().write(out)
        out.observation[..., 1] = self.rng.random()


class GhostsAct(Relay):
    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        super().step(action, result, out)
        assert out.state is not None
        out.state[:, 0] = action[:, 1]


class NotClipped(Steering):
    def pay(self, action: NDArray[Any]) -> NDArray[Any]:
        return action[..., 0]


class WritesActions(Relay):
    def pay(self, action: NDArray[Any]) -> NDArray[Any]:
        action[...] = 0
        return action


class KeepsArrays(Relay):
    """Writes into the arrays of the step before."""

    def spoil(self, result: StepArrays | None, out: EnvArrays) -> None:
        if result is not None:
            self.before.observation[0, 0, 0] += 1
        self.before = out


class TooLong(Relay):
    spec = dataclasses.replace(SPEC, episode_limit=3)


class Endless(Relay):
    spec = dataclasses.replace(SPEC, episode_limit=None)

    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        self.steps.fill(0)
        super().step(action, result, out)
        out.is_first.fill(False)


class Miscounted(Relay):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs + 1)


class Twins(Relay):
    spec = dataclasses.replace(SPEC, agent_names=("near", "near"))


FAULTS: list[tuple[type[Relay], str]] = [
    (UnwrittenReward, "reward is not written: .* time index 4, environment 0, agent 0"),
    (ArraysReplaced, "alive is not written: .* time index 0"),
    (NotANumber, "observation is not finite .* time index 3, environment 0, agent 0, entry 1"),
    (InfiniteState, "state is not finite"),
    (
        PaidForResetting,
        "reward is not 0 for an agent that was not alive, or on a step that resets .* time index 4",
    ),
    (BothEnds, "terminated and truncated are both True"),
    (EndsTwice, "terminated or truncated is True for an agent that was not alive"),
    (AliveAtTheEnd, "alive is True on an agent's final observation"),
    (VanishesWithoutEnd, "alive became False although neither"),
    (ComesBack, "alive became True in the middle of an episode"),
    (BeginsDead, r"alive is False after reset\(\).* time index 0, environment 0, agent 1"),
    (FirstTooEarly, r"is_first is False after reset\(\)"),
    (FirstForgotten, "is_first must be True on the observation of the step that resets"),
    (DeadRowsLeft, "observation is not zeros for an agent whose episode ended"),
    (SameStepReset, "always equals the next episode's first"),
    (NothingAllowed, "action_mask allows no action"),
    (DeadMasked, "action_mask must be all True where alive is False"),
    (Unseeded, "observation differs between two instances with equal seeds"),
    (SharedGenerator, "observation differs between two instances with equal seeds"),
    (GhostsAct, "state differs between two instances .* actions of agents not alive, which must be ignored"),
    (NotClipped, "reward differs between two instances .* must be clipped"),
    (WritesActions, "wrote into the action array"),
    (KeepsArrays, "observation changed after the call it belongs to"),
    (TooLong, "longer than spec.episode_limit=3"),
    (Endless, "no episode ended within 300 steps"),
    (Miscounted, "num_envs is 4, asked for were 3"),
    (Twins, "no two equal"),
]


@pytest.mark.parametrize("make", [Relay, Steering])
def test_correct_vectorised_environments_pass(make: type[Relay]):
    check_env(make)
    check_env(make, num_envs=1, num_steps=50, seed=99)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"early_steps": 2, "masked": True, "has_state": True, "length_spread": 3},
        {"continuous": True, "ending": "truncated", "early_steps": 1, "num_agents": 3},
        {"num_agents": 1, "has_state": True},
    ],
)
@pytest.mark.parametrize("limit", [None, 3])
def test_the_counting_environment_passes(options: dict[str, Any], limit: int | None):
    check_env(lambda count: LoopedEnv([CountingEnv(**options) for _ in range(count)], limit))


def test_the_matrix_game_passes_and_pays_the_best_pair_most():
    check_env(EnvConfig(make={"_target_": "hpc_marl.envs.testing.MatrixGame"}))
    game = MatrixGame()
    game.reset()
    assert [game.step(np.array(pair))[1] for pair in ((0, 0), (1, 1), (0, 1))] == [1.0, 0.5, 0.0]
    assert game.step(np.array([0, 0]))[2]
    with pytest.raises(EnvContractError, match="square"):
        MatrixGame(payoff=((1.0, 2.0),))


@pytest.mark.parametrize("num_agents", [1, 2])
def test_images_pass_and_a_pixel_that_is_not_written_is_found(num_agents: int):
    class Forgetful(LoopedEnv):
        """Leaves one pixel as it was."""

        def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
            pixel = out.observation[1, 0, 7]
            super().step(action, result, out)
            out.observation[1, 0, 7] = pixel

    check_env(lambda count: LoopedEnv([BrightSide(num_agents) for _ in range(count)]))
    with pytest.raises(
        EnvContractError, match=r"observation is not written: .* environment 1, agent 0, entry 7"
    ):
        check_env(lambda count: Forgetful([BrightSide(num_agents) for _ in range(count)]))


def test_the_counting_environment_refuses_masked_actions():
    env = CountingEnv(masked=True)
    env.reset(seed=1)
    with pytest.raises(EnvContractError, match="masked"):
        env.step(np.array([0, 0]))


@pytest.mark.parametrize(("broken", "message"), FAULTS, ids=[broken.__name__ for broken, _ in FAULTS])
def test_a_planted_fault_is_caught(broken: type[Relay], message: str):
    with pytest.raises(EnvContractError, match=message):
        check_env(broken)


def test_what_is_no_batched_environment_is_named():
    with pytest.raises(EnvContractError, match="found a MatrixGame; check_env needs"):
        check_env(lambda count: MatrixGame())  # type: ignore[arg-type, return-value]

    class Bare(Relay):
        spec = None  # type: ignore[assignment]

    with pytest.raises(EnvContractError, match=r"Bare\.spec is not an EnvSpec"):
        check_env(Bare)
