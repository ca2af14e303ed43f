"""Workers: the processes of a run. A kind of one's own is a Worker subclass and one line here or in `extra_workers`."""

WORKER_KINDS: dict[str, str] = {
    "actor": "hpc_marl.workers.actor:ActorWorker",
    "policy": "hpc_marl.workers.policy:PolicyWorker",
    "trainer": "hpc_marl.workers.trainer:TrainerWorker",
    "host": "hpc_marl.workers.host:HostWorker",
    "evaluator": "hpc_marl.workers.evaluator:EvaluatorWorker",
}
"""Worker kind -> module:Class, imported only in the process that runs it.

Constructed as Class(server, context, run_directory, orphan_grace_s=...)."""
