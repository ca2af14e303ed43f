"""What Slurm's commands print at a made-up site with typed GPUs, a debug partition, scavengers and two accounts."""

from __future__ import annotations

CONFIG = """Configuration data as of 2026-11-27T08:36:12
AccountingStorageEnforce = associations,limits,qos
ClusterName             = alpine
DefMemPerNode           = UNLIMITED
MaxArraySize            = 1001
PreemptType             = preempt/partition_prio
SLURM_VERSION           = 24.05.4
SlurmctldParameters     = (null)
SrunPortRange           = 60001-63000

Cgroup Support Configuration:
ConstrainRAMSpace       = yes

Slurmctld(primary) at mgmt1 is UP
"""

PARTITIONS = "\n".join(
    [
        "PartitionName=debug AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A "
        "MaxTime=01:00:00 Nodes=c[01-02] PriorityJobFactor=1 PriorityTier=5 RootOnly=NO State=UP TotalNodes=2",
        "PartitionName=long AllowAccounts=ALL AllowQos=ALL Default=NO MaxTime=12:00:00 PriorityTier=5 State=UP",
        "PartitionName=scavenge AllowAccounts=ALL Default=NO MaxTime=UNLIMITED PriorityTier=1 State=UP",
        "PartitionName=a100 AllowAccounts=marl,vision Default=NO MaxTime=2-00:00:00 PriorityTier=5 State=UP",
        "PartitionName=h100 AllowAccounts=rich AllowQos=ALL Default=NO MaxTime=2-00:00:00 PriorityTier=5 State=UP",
        "PartitionName=old AllowAccounts=ALL Default=NO MaxTime=2-00:00:00 PriorityTier=5 State=DOWN",
    ]
)

NODES = "\n".join(
    [
        "debug|c01|10.1.0.1|idle|64|256000|(null)",
        "debug|c02|10.1.0.2|down*|64|256000|(null)",
        *(f"long|c{i:02d}|10.1.0.{i}|mixed|64|256000+|(null)" for i in range(1, 9)),
        *(f"scavenge|c{i:02d}|10.1.0.{i}|mixed|64|256000|(null)" for i in range(1, 9)),
        "a100|g01|10.1.1.1|allocated|48|512000|gpu:a100:4(S:0-1),lustre:1",
        "a100|g02|10.1.1.2|idle|48|512000|gpu:a100:4(S:0-1),gpu:a30:1",
        "h100|g03|10.1.1.3|idle|96|1000000|gpu:h100:8",
        "old|g04|10.1.1.4|drained|16|64000|gpu:2",
    ]
)

ASSOCIATIONS = "marl||normal,long|normal||20\nvision||normal||5|\n"
QOS = "normal|50|200|\nlong||10|2-00:00:00\n"
