"""Tables of a comparison: medians of interleaved repeats, ratios taken within each repeat, goals in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from measuring.reporting import in_words
from measuring.watching import Outcome

ENV_ONLY = "env only"
OURS = "hpc_marl"
HEADER = (
    *("what", "env_steps/s", "lowest to highest", "of env only", "hpc_marl is", "env_steps to the score"),
    *("s from the command", "s from the first step", "cores busy", "env_steps per CPU-second"),
)
GOALS_HEADER = ("goal", "median", "lowest to highest", "compared with", "ratio", "wanted", "in words")

Results = Mapping[str, Sequence[Outcome]]
"""What each row reached, one entry per repeat."""


def our_row(mode: str) -> str:
    """Return the name of the row of our own training."""
    return f"{OURS}, {mode}"


def is_ours(row: str) -> bool:
    """Whether a row is of our own training."""
    return row.startswith(OURS)


def rate(outcome: Outcome) -> float:
    """Return environment steps per second."""
    return outcome.rates.env_steps_per_s


def best_row(
    results: Results, is_candidate: Callable[[str], bool], key: Callable[[Outcome], float]
) -> str | None:
    """Return the candidate whose median of `key` is highest; None where there is none."""
    candidates = [row for row in results if row != ENV_ONLY and is_candidate(row)]
    return max(candidates, key=lambda row: median(map(key, results[row])), default=None)


def ratio(
    results: Results, row: str, reference: str | None, key: Callable[[Outcome], float] = rate
) -> float | None:
    """Return the median over repeats of row / reference; None where the reference was not measured."""
    if reference is None or reference not in results:
        return None
    pairs = zip(results[row], results[reference], strict=True)
    return median(key(one) / key(other) for one, other in pairs)


def table_rows(results: Results) -> list[list[str]]:
    """Return one task's table; a time that some repeat did not reach is not shown."""
    ours = best_row(results, is_ours, rate)
    rows = []
    for row, repeats in results.items():
        rates = [rate(outcome) for outcome in repeats]
        cores = [sum(outcome.rates.cores.values()) for outcome in repeats]
        of_env_only = ratio(results, row, ENV_ONLY)
        times = None if is_ours(row) or row == ENV_ONLY or ours is None else ratio(results, ours, row)
        per_cpu_s = median(one / busy for one, busy in zip(rates, cores, strict=True))
        cells = [
            *(f"{median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"),
            "-" if of_env_only is None else f"{of_env_only:.0%}",
            "-" if times is None else f"{times:.1f} x as fast",
            _median_cell([outcome.goal_env_steps for outcome in repeats], ",.0f"),
            _median_cell([outcome.goal_s for outcome in repeats], ".1f"),
            _median_cell([outcome.learning_s for outcome in repeats], ".1f"),
            *(f"{median(cores):.2f}", f"{per_cpu_s:,.0f}"),
        ]
        rows.append([row, *cells])
    return rows


def _median_cell(values: Sequence[float | None], form: str) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    missed = f" ({len(values) - len(found)} of {len(values)} never)" if len(found) < len(values) else ""
    return format(median(found), form) + missed


def return_rows(results: Results) -> list[list[str]]:
    """Return how far each had learned after how many env_steps: medians, where all repeats came so far."""
    rows = []
    for row, repeats in results.items():
        columns = zip(*(outcome.returns for outcome in repeats), strict=True)
        cells = ["-" if None in column else f"{median(column):.4g}" for column in columns]
        if cells:
            rows.append([row, *cells])
    return rows


def rate_goal(results: Results, wanted: float, peer: str | None = None) -> list[str] | None:
    """Return the row for: our rate is at least `wanted` times that of a peer; None: of the fastest."""
    ours = best_row(results, is_ours, rate)
    if peer is None:
        peer = best_row(results, lambda row: not is_ours(row), rate)
    if ours is None or peer not in results:
        return None
    ratios = _ratios(results[ours], results[peer], rate)
    return _goal_row("env_steps/s", results[ours], rate, ",.0f", (peer, ratios, wanted))


def time_goal(
    results: Results, name: str, key: Callable[[Outcome], float | None], wanted: float
) -> list[str] | None:
    """Return the row for: the quickest peer takes at least `wanted` times our time to the score."""

    def quickness(outcome: Outcome) -> float:
        value = key(outcome)
        return -float("inf") if value is None else -value

    ours = best_row(results, is_ours, quickness)
    peer = best_row(results, lambda row: not is_ours(row), quickness)
    if ours is None or peer is None or -float("inf") in map(quickness, [*results[ours], *results[peer]]):
        return None
    ratios = _ratios(results[peer], results[ours], quickness)
    return _goal_row(name, results[ours], lambda outcome: -quickness(outcome), ".1f", (peer, ratios, wanted))


def limit_goal(name: str, values: Sequence[float], limit: float, is_at_least: bool) -> list[str]:
    """Return the row for a figure of ours that is compared with a fixed limit."""
    middle = median(values)
    is_reached = middle >= limit if is_at_least else middle <= limit
    wanted = f"{'at least' if is_at_least else 'at most'} {limit:,.0f}"
    span = f"{min(values):,.0f} to {max(values):,.0f}"
    return [name, f"{middle:,.0f}", span, "-", "-", wanted, in_words(is_reached)]


def share_goal(results: Results, wanted: float) -> list[str] | None:
    """Return the row for: our actors get so much from their CPU time as the environment alone, or `wanted` of it."""
    ours = best_row(results, is_ours, rate)
    if ours is None:
        return None

    def of_actors(outcome: Outcome) -> float:
        cores = outcome.rates.cores
        return rate(outcome) / (cores["env"] if "env" in cores else cores["actor"])

    shares = _ratios(results[ours], results[ENV_ONLY], of_actors)
    middle = median(shares)
    return [
        "env_steps per CPU-second of actors",
        f"{median(map(of_actors, results[ours])):,.0f}",
        f"{min(shares):.0%} to {max(shares):.0%}",
        ENV_ONLY,
        f"{middle:.0%}",
        f"at least {wanted:.0%}",
        in_words(middle >= wanted),
    ]


def _ratios(
    above: Sequence[Outcome], below: Sequence[Outcome], key: Callable[[Outcome], float]
) -> list[float]:
    return [key(one) / key(other) for one, other in zip(above, below, strict=True)]


def _goal_row(
    name: str,
    ours: Sequence[Outcome],
    key: Callable[[Outcome], float],
    form: str,
    versus: tuple[str, Sequence[float], float],
) -> list[str]:
    peer, ratios, wanted = versus
    values = [key(outcome) for outcome in ours]
    span = f"{min(values):{form}} to {max(values):{form}}"
    word = in_words(median(ratios) >= wanted)
    return [
        name,
        f"{median(values):{form}}",
        span,
        peer,
        f"{median(ratios):.1f} x",
        f"at least {wanted:g} x",
        word,
    ]
