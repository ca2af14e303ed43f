"""TimeUse: where the time of one loop goes, by activity; cheap enough to be always on."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter, process_time

CPU_METRIC = "cpu_s"
DEVICE_METRIC = "device_s"
"""Seconds that a worker's GPU was at work for it; not there without one."""
_PREFIX, _SUFFIX = "time_", "_s"


class TimeUse:
    """A stopwatch with one hand per activity, of which one runs at a time. One thread at a time.

    A worker that reports `metrics()` in its heartbeats appears in the run's profile.

    Args:
        activities: their names, in the order in which a report shows them. The first one runs from the start.

    Example:
        >>> time_use = TimeUse("other", "env", "inference")
        >>> time_use.begin("env")
        >>> time_use.begin("inference")
        >>> sorted(time_use.metrics())
        ['cpu_s', 'time_env_s', 'time_inference_s', 'time_other_s']
    """

    def __init__(self, *activities: str) -> None:
        self._seconds = dict.fromkeys(activities, 0.0)
        self._activity = activities[0]
        self._since_s = perf_counter()

    def begin(self, activity: str) -> None:
        """From now on the time goes to `activity`.

        Raises:
            KeyError: it was not named when this was made.
        """
        if activity not in self._seconds:
            raise KeyError(f"{activity!r} is not among the activities {', '.join(self._seconds)}")
        now = perf_counter()
        self._seconds[self._activity] += now - self._since_s
        self._activity, self._since_s = activity, now

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every activity so far; together all the time since this was made."""
        self.begin(self._activity)
        return dict(self._seconds)

    def metrics(self) -> dict[str, float]:
        """Return `seconds()` as a worker's metrics, `time_ACTIVITY_s`, and `cpu_s`: CPU seconds of its process."""
        spent = {f"{_PREFIX}{activity}{_SUFFIX}": seconds for activity, seconds in self.seconds().items()}
        return {**spent, CPU_METRIC: process_time()}


def seconds_by_activity(metrics: Mapping[str, float | int | str]) -> dict[str, float]:
    """Return what `TimeUse.metrics` put into a worker's metrics.

    >>> seconds_by_activity({"time_env_s": 1.5, "rows": 3})
    {'env': 1.5}
    """
    return {
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX): float(value)
        for name, value in metrics.items()
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
    }
