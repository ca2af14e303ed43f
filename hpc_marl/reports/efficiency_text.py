"""A report as text for a terminal, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from hpc_marl.reports.efficiency import FROM_SACCT, KindReport, Report, RoleReport
from hpc_marl.views.display import clock_text
from hpc_marl.views.text_table import text_table

_WIDTH = 110


def report_text(report: Report) -> str:
    """Return what `hpc-marl report` prints: tables, waste, ledger, advice, and where the figures come from."""
    blocks = [[report.name], _role_table(report.roles), _kind_table(report.kinds), _totals(report)]
    advice = [line for text in report.advice for line in _item(text)]
    blocks.append(["advice:", *(advice or ["  nothing to change that these figures would show"])])
    blocks.append(_sources(report))
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def report_values(report: Report) -> dict[str, Any]:
    """Return the report as plain JSON values; times are in seconds or hours as their names say."""
    values = dataclasses.asdict(report)
    for role, plain in zip(report.roles, values["roles"], strict=True):
        plain["wasted_cpu_h"], plain["wasted_gpu_h"] = role.wasted_cpu_h, role.wasted_gpu_h
    return values


def _role_table(roles: Sequence[RoleReport]) -> list[str]:
    header = [
        "job role", "slots", "starts", "queue wait", "run time", "CPU-h", "CPU used", "GPU-h", "GPU used",
        "peak memory", "ended",
    ]  # fmt: skip
    rows = [
        [
            role.role,
            str(role.slots),
            str(role.starts),
            _times(role.queue_wait_s),
            _times(role.run_s),
            f"{role.cpu_h:.2f}",
            _percent(role.cpu_efficiency),
            f"{role.gpu_h:.2f}" if role.gpu_h else "",
            _percent(role.gpu_efficiency) if role.gpu_h else "",
            _memory(role),
            ", ".join(f"{number} {state}" for state, number in role.ends.items()),
        ]
        for role in roles
    ]
    return text_table(header, rows, right=header[1:9])


def _kind_table(kinds: Sequence[KindReport]) -> list[str]:
    header = ["worker", "count", "restarts", "cpus", "CPU used", "peak memory", "time"]
    rows = [
        [
            kind.kind,
            str(kind.count),
            str(kind.restarts),
            str(kind.cpus),
            _percent(kind.cpu_efficiency),
            f"{kind.peak_rss_mb:,.0f} MB",
            clock_text(kind.seconds),
        ]
        for kind in kinds
    ]
    return text_table(header, rows, right=header[1:])


def _totals(report: Report) -> list[str]:
    cpu_h, gpu_h = sum(role.cpu_h for role in report.roles), sum(role.gpu_h for role in report.roles)
    lines = []
    if cpu_h:
        wasted = sum(role.wasted_cpu_h for role in report.roles)
        lines.append(f"not used:        {wasted:.2f} of {cpu_h:.2f} CPU-h ({100 * wasted / cpu_h:.0f} %)")
    if gpu_h and any(role.gpu_efficiency is not None for role in report.roles):
        wasted = sum(role.wasted_gpu_h for role in report.roles)
        lines.append(f"                 {wasted:.2f} of {gpu_h:.2f} GPU-h ({100 * wasted / gpu_h:.0f} %)")
    if lost := sum(role.lost_h for role in report.roles):
        bound = "at most " if any(role.lost_is_bound for role in report.roles) else ""
        lines.append(
            f"lost work:       {bound}{clock_text(lost * 3600)} after last checkpoints, by lives that ended badly"
        )
    if report.ledger:
        fates = ", ".join(f"{number:,} {fate}" for fate, number in report.ledger.items())
        lines.append(f"sample batches:  {fates}")
    return lines


def _sources(report: Report) -> list[str]:
    accounted = [role.role for role in report.roles if role.source == FROM_SACCT]
    others = [role.role for role in report.roles if role.source != FROM_SACCT]
    lines = []
    if accounted:
        lines.append(
            f"from sacct: starts, ends, queue wait, run time, CPU-h and GPU-h of {' and '.join(accounted)}; "
            "CPU used and peak memory: the higher of sacct's and own measurements"
        )
    if others:
        why = f" ({report.accounting_problem})" if report.accounting_problem else ""
        lines.append(
            f"own measurements: all of {' and '.join(others)}{why}; queue wait is from submission to the host's start"
        )
    lines.append("own measurements: workers, GPU used, sample batches, lost work")
    return [line for text in lines for line in textwrap.wrap(text, _WIDTH, subsequent_indent="  ")]


def _item(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False
    )


def _times(seconds: Sequence[float]) -> str:
    """Return the mean, and the longest where it says more."""
    if not seconds:
        return "-"
    mean, longest = sum(seconds) / len(seconds), max(seconds)
    return clock_text(mean) + (f" (max {clock_text(longest)})" if round(longest) > round(mean) else "")


def _memory(role: RoleReport) -> str:
    peak = f"{role.peak_rss_mb:,.0f} MB" if role.peak_rss_mb else "-"
    return f"{peak} of {role.memory_mb:,.0f} MB" if role.memory_mb else peak


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
