"""Commands: the subcommands of `hpc-marl`, beside `train`."""
