"""`hpc-marl report EXP[/TRIAL]`: how well a run used what it held."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from hpc_marl.commands.command_line import run_command, trial_parser
from hpc_marl.trials.reference import find_trial


def report(arguments: Sequence[str]) -> int:
    """Say how well a run used what it held: `hpc-marl report EXP[/TRIAL] [--root DIR] [--json]`."""
    parser = trial_parser("report", "Say how well a run used its CPUs, GPUs and memory, and what to change.")
    parser.add_argument("--json", action="store_true", help="print plain values instead of tables")
    options = parser.parse_args(arguments)

    def body() -> int:
        from hpc_marl.reports.efficiency import make_report
        from hpc_marl.reports.efficiency_text import report_text, report_values
        from hpc_marl.reports.sizing_advice import advise
        from hpc_marl.reports.usage import gather_facts

        facts = gather_facts(find_trial(options.reference, options.root))
        made = make_report(facts)
        made = replace(made, advice=advise(made, facts.config, facts.times))
        text = json.dumps(report_values(made), indent=2) + "\n" if options.json else report_text(made)
        sys.stdout.write(text)
        return 0

    return run_command(body)
