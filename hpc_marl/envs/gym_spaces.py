"""Gymnasium spaces to and from the flat arrays of a BatchedEnv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hpc_marl.errors import EnvContractError

_SMALLEST_SIDE = 8
"""Of an image, in pixels; what is smaller is a vector of whole numbers."""


@dataclass(frozen=True)
class ObservationCodec:
    """Flattens one agent's observations to float32 vectors, or to rows of bytes where they are images.

    Attributes:
        space: the agent's observation space, without its action mask.
        size: width of the vector.
        has_mask: observations are dictionaries {"observation": ..., "action_mask": ...}.
        image_shape: [C, H, W] of images, () of anything else.
        channels_last: images come as [H, W, C] and are turned round.
    """

    space: spaces.Space[Any]
    size: int
    has_mask: bool
    image_shape: tuple[int, ...] = ()
    channels_last: bool = False

    @classmethod
    def of(cls, space: spaces.Space[Any], whose: str) -> ObservationCodec:
        """Make the codec of one agent's observation space.

        Raises:
            EnvContractError: the space has no flat vector of fixed size.
        """
        has_mask = isinstance(space, spaces.Dict) and set(space.spaces) == {"observation", "action_mask"}
        inner = space["observation"] if isinstance(space, spaces.Dict) and has_mask else space
        if not inner.is_np_flattenable:
            raise EnvContractError(
                f"{whose}: cannot flatten observations of {inner} to a vector; supported are Box, Discrete, "
                "MultiDiscrete, MultiBinary, and Tuple or Dict of these"
            )
        image_shape, channels_last = image_layout(inner)
        return cls(inner, int(spaces.flatdim(inner)), has_mask, image_shape, channels_last)

    @property
    def is_vector(self) -> bool:
        """Whether observations are vectors as they stand."""
        return isinstance(self.space, spaces.Box) and len(self.space.shape) == 1 and not self.has_mask

    def flatten(self, observation: Any) -> NDArray[Any]:
        """Return one observation as a vector of `size` numbers."""
        if self.has_mask:
            observation = observation["observation"]
        if self.channels_last:
            observation = np.moveaxis(observation, -1, 0)
        if isinstance(self.space, spaces.Box):
            return np.reshape(observation, -1)
        return np.asarray(spaces.flatten(self.space, observation))


def image_layout(space: spaces.Space[Any]) -> tuple[tuple[int, ...], bool]:
    """Return the [C, H, W] of the images in `space` and whether they come as [H, W, C]; (), False: no images.

    Images are uint8 boxes of two or three axes whose height and width are at least 8; of first and last axis
    the smaller one is taken for the channels.

    >>> image_layout(spaces.Box(0, 255, (84, 96, 3), np.uint8)), image_layout(spaces.Box(0, 1, (84, 96, 3)))
    (((3, 84, 96), True), ((), False))
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return (), False
    shape = space.shape if len(space.shape) != 2 else (1, *space.shape)
    if len(shape) != 3:
        return (), False
    channels_last = shape[2] < shape[0]
    channels, *sides = (shape[2], *shape[:2]) if channels_last else shape
    return ((channels, *sides), channels_last) if min(sides) >= _SMALLEST_SIDE else ((), False)


@dataclass(frozen=True)
class ActionCodec:
    """Turns one agent's policy action into an element of its action space.

    Exactly one of `num_actions` (Discrete) and `action_size` (Box) is positive.
    """

    num_actions: int = 0
    action_size: int = 0
    start: int = 0
    shape: tuple[int, ...] = ()
    dtype: Any = np.float32
    middle: Any = 0.0
    """[action_size] middle of the bounds."""
    half_range: Any = 1.0
    """[action_size] half the distance between the bounds."""

    @classmethod
    def of(cls, space: spaces.Space[Any], whose: str) -> ActionCodec:
        """Make the codec of one agent's action space.

        Raises:
            EnvContractError: the space is neither Discrete nor a bounded Box of floats.
        """
        if isinstance(space, spaces.Discrete):
            return cls(num_actions=int(space.n), start=int(space.start))
        if (
            isinstance(space, spaces.Box)
            and np.issubdtype(space.dtype, np.floating)
            and space.is_bounded("both")
        ):
            low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
            return cls(
                action_size=low.size,
                shape=space.shape,
                dtype=space.dtype,
                middle=(low + high) / 2,
                half_range=(high - low) / 2,
            )
        raise EnvContractError(
            f"{whose}: cannot act in {space}; supported are Discrete and a bounded Box of floats. "
            "Wrap the environment, e.g. with gymnasium.wrappers.TransformAction or RescaleAction"
        )

    def decode(self, action: Any) -> Any:
        """Return the element of the action space.

        Args:
            action: a whole number from 0, or [action_size or more] numbers within [-1, 1].
        """
        if self.num_actions:
            return int(action) + self.start
        scaled = self.middle + self.half_range * action[: self.action_size]
        return scaled.astype(self.dtype).reshape(self.shape)


class AgentRows:
    """Observations and action masks of N agents with equal or different spaces, in arrays made once.

    Narrower observations are followed by zeros, smaller action sets by masked actions.
    """

    def __init__(
        self, observations: Sequence[ObservationCodec], actions: Sequence[ActionCodec], whose: str
    ) -> None:
        """Lay out the arrays.

        Raises:
            EnvContractError: some agents' actions are discrete and others' continuous, or their images differ.
        """
        if len({bool(codec.num_actions) for codec in actions}) > 1:
            raise EnvContractError(
                f"{whose}: some agents act in a Discrete space and others in a Box; all must be of one kind"
            )
        if len(shapes := {codec.image_shape for codec in observations}) > 1:
            raise EnvContractError(
                f"{whose}: agents see {' and '.join(_seen(shape) for shape in sorted(shapes))}; all must see images "
                "of one shape, or none. Wrap the environment so that they do"
            )
        self.image_shape: tuple[int, ...] = shapes.pop()
        self.observation_codecs = list(observations)
        self.observation_size = max(codec.size for codec in observations)
        self.num_actions = max(codec.num_actions for codec in actions)
        self.action_size = max(codec.action_size for codec in actions)
        self.action_sets_differ = len({codec.num_actions for codec in actions}) > 1
        self.observation: NDArray[Any] = np.zeros(
            (len(observations), self.observation_size), np.uint8 if self.image_shape else np.float32
        )
        self.mask = np.zeros((len(actions), self.num_actions), np.bool_)
        self._rows = [row[: codec.size] for row, codec in zip(self.observation, observations, strict=True)]
        self._mask_rows = [row[: codec.num_actions] for row, codec in zip(self.mask, actions, strict=True)]
        self._are_vectors = all(codec.is_vector for codec in observations)
        self.are_equal_vectors = self._are_vectors and len({codec.size for codec in observations}) == 1

    def write(self, observations: Sequence[Any]) -> NDArray[Any]:
        """Flatten the observations of all agents and return them as [N, D]."""
        if self._are_vectors:
            for row, observation in zip(self._rows, observations, strict=True):
                row[:] = observation
        else:
            for n, observation in enumerate(observations):
                self.write_one(n, observation)
        return self.observation

    def write_one(self, n: int, observation: Any) -> None:
        """Flatten the observation of agent n; None writes zeros."""
        self._rows[n][:] = 0 if observation is None else self.observation_codecs[n].flatten(observation)

    def write_mask(self, n: int, allowed: Any) -> None:
        """Set which actions agent n may take; None: all that it has."""
        self._mask_rows[n][:] = True if allowed is None else allowed


def _seen(image_shape: tuple[int, ...]) -> str:
    return f"images {list(image_shape)}" if image_shape else "vectors"
