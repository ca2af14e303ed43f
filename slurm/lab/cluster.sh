#!/bin/bash
# cluster.sh - a real Slurm cluster (Debian slurm 22.05, munge, slurmdbd+mariadb) on ONE machine.
#
# Every "host" is a process tree inside its own network, UTS (hostname), mount, IPC and PID namespace:
#   head            slurmctld, slurmdbd, mariadbd, login node (no slurmd)
#   cpu1 .. cpuN    slurmd, partitions cpu (default) / cpuhi (preempts cpu)
#   gpu1 .. gpuM    slurmd, partitions gpu / gpuhi, GRES gpu:fake:4 each
# They are joined by a bridge that lives in a namespace of its own ("the switch"): nothing is reachable from,
# or can reach, the machine's real network.  Private per host: /tmp, /run, /dev/shm, /proc, /etc/hosts, hostname,
# munged, spool, log.  Shared (coherent, same kernel): everything else, so the project, home directories, /usr and $LAB look the
# same everywhere, as on a cluster with a perfect shared file system.  $LAB/shared is meant for jobs' files.
#
#   cluster.sh up [--no-acct] [--no-cgroup]   install packages if missing, start (idempotent)
#                                             cgroup: leftovers of jobs are killed, --mem is enforced (v1 controllers)
#   cluster.sh down                           kill everything, remove run state
#   cluster.sh status                         sinfo, processes, memory
#   cluster.sh exec HOST [-u USER] CMD...     run CMD on HOST ("log in"); default user root
#   cluster.sh crash HOST                     power off: network gone first, then SIGKILL everything on it
#   cluster.sh boot HOST                      boot it again (after crash)
#   cluster.sh slurmd HOST stop|start|kill    stop only the daemon (jobs on it live on)
#   cluster.sh partition HOST...              move HOSTs to a second switch: they see each other, not the rest
#   cluster.sh heal [HOST...]                 plug (all) back
#   cluster.sh cut HOST HOST                  black-hole between two hosts only (both directions)
#   cluster.sh uncut HOST HOST
#   cluster.sh ctld stop|start|kill           slurmctld only
#
# $LAB/net is a second shared directory, whose coherence can be chosen (SLURMLAB_STALE, SLURMLAB_NUML below):
#   by default a bind mount (every host sees everything at once); SLURMLAB_STALE=<fuse options>: on every host an own caching
#   FUSE mount (bindfs) of it; SLURMLAB_NUML=n: n more hosts nfs1..n, partition nfs, each a User-Mode-Linux with a kernel of its
#   own, in which $LAB/net is a REAL NFS mount of head's nfs-ganesha ("exec" does not reach them, srun does).
# Needs root, no tty, no systemd.  Settings by environment:
set -u
LAB=${SLURMLAB:-/var/tmp/slurmlab}      # everything lives here (not below /tmp, which is private on every host)
NCPU=${SLURMLAB_NCPU:-4}                # cpu nodes
NGPU=${SLURMLAB_NGPU:-2}                # gpu nodes
CPUS=${SLURMLAB_CPUS:-8}                # CPUs that each node claims to have (oversubscribed on purpose)
GPUS=${SLURMLAB_GPUS:-4}                # fake GPUs per gpu node
NET=${SLURMLAB_NET:-10.77.0}            # /24, only ever exists inside the namespaces
USERS=${SLURMLAB_USERS:-"lab lab2"}     # ordinary users that exist on the nodes only (uid 2001, 2002 ..)
STALE=${SLURMLAB_STALE-}                # e.g. attr_timeout=3,entry_timeout=30,negative_timeout=30,auto_cache ; empty: coherent
NUML=${SLURMLAB_NUML:-0}                # User-Mode-Linux hosts with real NFS
NFSOPT=${SLURMLAB_NFSOPT:-vers=3,nolock} # their mount options (vers=4.2: locks work between hosts)
UMLMEM=${SLURMLAB_UMLMEM:-512M}
RUN=$LAB/run                            # volatile state, wiped by up/down
SELF=$(readlink -f "$0")
export DEBIAN_FRONTEND=noninteractive

die()  { echo "cluster.sh: $*" >&2; exit 1; }
umls() { local i; for ((i=1;i<=NUML;i++)); do echo nfs$i; done; }
hosts() { local i; echo head; for ((i=1;i<=NCPU;i++)); do echo cpu$i; done; for ((i=1;i<=NGPU;i++)); do echo gpu$i; done; }
addr() { case $1 in head) echo $NET.10;; cpu*) echo $NET.$((10+${1#cpu}));; gpu*) echo $NET.$((100+${1#gpu}));; nfs*) echo $NET.$((200+${1#nfs}));; esac; }
mac()  { printf '02:00:00:00:00:%02x' "${2:-$(addr "$1" | cut -d. -f4)}"; }

# A pid file holds "PID STARTTIME"; alive only if that very process still runs (no pid reuse surprises).
starttime() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; set -- $s; [ "$1" != Z ] && echo "${20}"; }  # a zombie is dead
alive() { local p t; [ -f "$1" ] && read -r p t < "$1" && [ "$(starttime "$p")" = "$t" ]; }
pidof_() { local p t; alive "$1" || return 1; read -r p t < "$1"; echo "$p"; }
putpid() { echo "$2 $(starttime "$2")" > "$1"; }

# ---------------------------------------------------------------- install
install() {
  local need=()
  for p in slurmctld slurmd slurm-client slurmdbd slurm-wlm-basic-plugins munge mariadb-server iproute2 iputils-ping $EXTRA_PKGS; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || need+=("$p")
  done
  [ ${#need[@]} = 0 ] && return
  # no init system here: keep the packages from trying to start services
  local mine=
  echo "installing: ${need[*]}"
  [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; mine=1; }
  trap '[ -z "'"$mine"'" ] || rm -f /usr/sbin/policy-rc.d' EXIT   # also when apt-get fails or is interrupted
  { apt-get install -y --no-install-recommends "${need[@]}" ||
    { apt-get update && apt-get install -y --no-install-recommends "${need[@]}"; }; } > "$LAB/apt.log" 2>&1 ||
    { tail -20 "$LAB/apt.log" >&2; die "apt-get failed"; }
  [ -n "$mine" ] && rm -f /usr/sbin/policy-rc.d
  trap - EXIT
}
EXTRA_PKGS=${SLURMLAB_EXTRA_PKGS:-}

# ---------------------------------------------------------------- configuration
configure() {
  local E=$RUN/etc h
  mkdir -p "$E/slurm" "$RUN/nodes" "$RUN/state" "$LAB/shared" "$LAB/net.export" "$LAB/net"
  chmod 755 "$LAB" "$RUN"; chmod 1777 "$LAB/shared" "$LAB/net.export"
  chown slurm: "$RUN/state"

  # /etc/hosts, resolv.conf (none: names come from hosts only, a lookup must never hang), passwd, group
  { echo "127.0.0.1 localhost"; for h in $(hosts) $(umls); do echo "$(addr $h) $h"; done; } > "$E/hosts"
  echo "# none" > "$E/resolv.conf"
  sed 's/^hosts:.*/hosts: files/' /etc/nsswitch.conf > "$E/nsswitch.conf"
  cp /etc/passwd "$E/passwd"; cp /etc/group "$E/group"
  local u id=2001
  for u in $USERS; do
    if ! grep -q "^$u:" "$E/passwd"; then
      echo "$u:x:$id:$id::$LAB/shared/home/$u:/bin/bash" >> "$E/passwd"; echo "$u:x:$id:" >> "$E/group"
    fi
    mkdir -p "$LAB/shared/home/$u"; chown $id:$id "$LAB/shared/home/$u"; id=$((id+1))
  done
  [ -s /etc/munge/munge.key ] || { mkdir -p /etc/munge; dd if=/dev/urandom of=/etc/munge/munge.key bs=128 count=1 2>/dev/null
    chown -R munge: /etc/munge; chmod 400 /etc/munge/munge.key; }

  local PT=proctrack/linuxproc TP=task/none JG=jobacct_gather/linux
  [ "$CGROUP" = 1 ] && { PT=proctrack/cgroup; TP=task/cgroup; }
  cat > "$E/slurm/slurm.conf" <<C
ClusterName=lab
SlurmctldHost=head
SlurmUser=slurm
SlurmctldPort=6817
SlurmdPort=6818
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits this long before it may start again (default 120 s!)
AuthInfo=cred_expire=${SLURMLAB_CRED_EXPIRE:-10}
StateSaveLocation=$RUN/state
SlurmdSpoolDir=$RUN/nodes/%n/spool
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=$RUN/nodes/head/log/slurmctld.log
SlurmdLogFile=$RUN/nodes/%n/log/slurmd.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=$PT
TaskPlugin=$TP
JobAcctGatherType=$JG
JobAcctGatherFrequency=5
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
# nodes claim more CPUs and memory than this machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=${SLURMLAB_MEM_PER_CPU:-1000}
# quick reactions, for tests (defaults are 300 s, 30 s, 120 s ...)
SlurmdTimeout=${SLURMLAB_SLURMD_TIMEOUT:-15}
SlurmctldTimeout=10
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=10
KillWait=5
CompleteWait=0
UnkillableStepTimeout=15
InactiveLimit=0
MinJobAge=300
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5,default_queue_depth=1000,partition_job_depth=0
PriorityType=priority/multifactor
MaxArraySize=2001
MaxJobCount=20000
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# at preemption send the job's own --signal (submitit: USR2) first; without this (and a GraceTime on the partition) only
# SIGCONT+SIGTERM come, which submitit ignores, and its checkpoint is lost
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
$(if [ "$ACCT" = 1 ]; then cat <<D
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=head
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
JobCompType=jobcomp/none
D
else cat <<D
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$RUN/nodes/head/log/jobcomp.txt
D
fi)
NodeName=cpu[1-$NCPU] CPUs=$CPUS RealMemory=16000 State=UNKNOWN
$( [ "$NGPU" -gt 0 ] && echo "NodeName=gpu[1-$NGPU] CPUs=$CPUS RealMemory=16000 Gres=gpu:fake:$GPUS State=UNKNOWN" )
PartitionName=cpu   Nodes=cpu[1-$NCPU] Default=YES MaxTime=7-0 DefaultTime=60 PriorityTier=1  GraceTime=${SLURMLAB_GRACE:-5} State=UP
PartitionName=cpuhi Nodes=cpu[1-$NCPU] MaxTime=7-0 DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
$( [ "$NGPU" -gt 0 ] && cat <<D
PartitionName=gpu   Nodes=gpu[1-$NGPU] MaxTime=7-0 DefaultTime=60 PriorityTier=1  GraceTime=${SLURMLAB_GRACE:-5} State=UP
PartitionName=gpuhi Nodes=gpu[1-$NGPU] MaxTime=7-0 DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
D
)
$( [ "$NUML" -gt 0 ] && cat <<D
DebugFlags=NO_CONF_HASH
NodeName=nfs[1-$NUML] CPUs=$CPUS RealMemory=16000 State=UNKNOWN
PartitionName=nfs   Nodes=nfs[1-$NUML] MaxTime=7-0 DefaultTime=60 State=UP
D
)
$(cat "$LAB/slurm.conf.extra" 2>/dev/null)
C
  # UML hosts have no memory controller: same file with another node-local plugin
  mkdir -p "$E/slurm-uml"; sed 's|^ProctrackType=.*|ProctrackType=proctrack/linuxproc|;s|^TaskPlugin=.*|TaskPlugin=task/none|' "$E/slurm/slurm.conf" > "$E/slurm-uml/slurm.conf"
  [ "$NUML" -gt 0 ] && cat > "$E/ganesha.conf" <<C
NFS_CORE_PARAM { Protocols = 3, 4; NFS_Port = 2049; MNT_Port = 20048; Rquota_Port = 0; Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }
NFSv4 { Graceless = true; Delegations = false; RecoveryBackend = fs; RecoveryRoot = "/run/ganesha"; }
EXPORT_DEFAULTS { Attr_Expiration_Time = 0; }   # changes made by the side of the server (bind mount) count at once
EXPORT { Export_Id = 1; Path = "$LAB/net.export"; Pseudo = "$LAB/net.export"; Access_Type = RW; Squash = No_Root_Squash; SecType = sys;
  Protocols = 3, 4; Transports = TCP; FSAL { Name = VFS; } }
C
  # gres/gpu wants device files: char devices are a must (copies of /dev/null in the private /run do); the digits become CUDA_VISIBLE_DEVICES
  { echo "AutoDetect=off"
    [ "$NGPU" -gt 0 ] && echo "NodeName=gpu[1-$NGPU] Name=gpu Type=fake File=/run/fakegpu/nvidia[0-$((GPUS-1))]"; } > "$E/slurm/gres.conf"
  cat > "$E/slurm/cgroup.conf" <<C
CgroupPlugin=cgroup/v1
CgroupAutomount=no
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=$( [ "$CGROUP" = 1 ] && echo yes || echo no )
C
  cat > "$E/slurm/slurmdbd.conf" <<C
AuthType=auth/munge
DbdHost=head
DbdPort=6819
SlurmUser=slurm
LogFile=$RUN/nodes/head/log/slurmdbd.log
PidFile=/run/slurm/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageLoc=slurm_acct_db
StorageUser=root
C
  chown slurm: "$E/slurm/slurmdbd.conf"; chmod 600 "$E/slurm/slurmdbd.conf"
  echo "ACCT=$ACCT CGROUP=$CGROUP NCPU=$NCPU NGPU=$NGPU NET=$NET NUML=$NUML NFSOPT=$NFSOPT UMLMEM=$UMLMEM STALE=$STALE CPUS=$CPUS GPUS=$GPUS" > "$RUN/options"
}

# ---------------------------------------------------------------- inside a host (pid 1 of its namespaces)
node_main() {
  local h=$1 N=$RUN/nodes/$1 E=$RUN/etc d
  hostname "$h"
  mount -t tmpfs -o mode=755 none /run
  mkdir -p /run/munge /run/lock /run/mysqld /run/slurm /run/fakegpu
  chown munge: /run/munge; chown mysql: /run/mysqld; chown slurm: /run/slurm
  chmod 1777 /run/lock
  for ((d=0; d<GPUS; d++)); do mknod -m 666 /run/fakegpu/nvidia$d c 1 3; done
  mount -t tmpfs -o mode=1777 none /dev/shm
  for d in hosts resolv.conf nsswitch.conf passwd group slurm; do
    [ $d = slurm ] && mkdir -p /etc/slurm
    mount --bind "$E/$d" /etc/$d
  done
  # private /tmp, with $LAB still at its place if it lies below /tmp
  mkdir -p "$N/tmp"; chmod 1777 "$N/tmp"
  case $LAB/ in /tmp/*) d=${LAB#/tmp/}; mkdir -p "$N/tmp/$d"; mount --rbind "$LAB" "$N/tmp/$d";; esac
  mount --rbind "$N/tmp" /tmp
  cd /
  case $STALE in "") mount --bind "$LAB/net.export" "$LAB/net";; *) bindfs -o "$STALE" "$LAB/net.export" "$LAB/net";; esac
  # wait for the network (plugged in from outside)
  while ! ip -4 addr show dev eth0 2>/dev/null | grep -q inet; do sleep 0.02; done
  ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
  setpriv --reuid munge --regid munge --clear-groups munged --foreground --key-file=/etc/munge/munge.key \
    --socket=/run/munge/munge.socket.2 --pid-file=/run/munge/munged.pid --seed-file=/run/munge/seed \
    --num-threads=2 >> "$N/log/munged.log" 2>&1 &
  while [ ! -S /run/munge/munge.socket.2 ]; do sleep 0.02; done
  [ "$h" = head ] && [ "$NUML" -gt 0 ] && start_nfs
  case $h in head) start_head;; *) start_slurmd "$h";; esac
  [ -x "$LAB/boot.local" ] && "$LAB/boot.local" "$h" >> "$N/log/boot.local.log" 2>&1   # hook: extra mounts, daemons
  echo up > "$N/booted"
  while :; do sleep 3600 & wait; done      # pid 1: bash reaps whatever gets orphaned here
}
start_slurmd() { setsid slurmd -D -N "$1" >> "$RUN/nodes/$1/log/slurmd.out" 2>&1 < /dev/null & }
start_ctld()   { setsid setpriv --reuid slurm --regid slurm --clear-groups slurmctld -D >> "$RUN/nodes/head/log/slurmctld.out" 2>&1 < /dev/null & }
start_nfs() {     # rpcbind is a must for ganesha's version 3 (and "rpcbind -h" dies with a double free)
  local L=$RUN/nodes/head/log
  mkdir -p /run/rpcbind /run/ganesha; setsid rpcbind -f > "$L/rpcbind.log" 2>&1 < /dev/null &
  while ! ss -Hltn sport = :111 | grep -q .; do sleep 0.05; done
  setsid ganesha.nfsd -F -f "$RUN/etc/ganesha.conf" -L "$L/ganesha.log" -p /run/ganesha.pid > "$L/ganesha.out" 2>&1 < /dev/null &
}
uml_main() {      # init of a UML host (runs in its own kernel; the root file system is the machine's, through hostfs)
  export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
  local h=$UHOST N=$RUN/nodes/$UHOST E=$RUN/etc d i
  mount -t proc proc /proc; mount -t sysfs sys /sys; hostname "$h"
  mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/{freezer,systemd}
  mount -t cgroup -o freezer none /sys/fs/cgroup/freezer; mount -t cgroup -o none,name=systemd none /sys/fs/cgroup/systemd
  mount -t tmpfs -o mode=755 none /run; mkdir -p /run/munge /run/lock /run/keep /run/mod/lib/modules; chown munge: /run/munge
  mount --bind "$LAB" /run/keep; mount -t tmpfs -o mode=1777 none /tmp; mkdir -p "$LAB"; mount --move /run/keep "$LAB"
  mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs -o mode=1777 none /dev/shm
  for d in hosts resolv.conf nsswitch.conf passwd group; do mount --bind "$E/$d" /etc/$d; done; mount --bind "$E/slurm-uml" /etc/slurm
  ip link set lo up; ip link set eth0 up; ip addr add "$(addr "$h")/24" dev eth0
  ln -s /usr/lib/uml/modules/$(uname -r) /run/mod/lib/modules/; modprobe -d /run/mod nfsv3; modprobe -d /run/mod nfsv4
  for ((i=0;i<60;i++)); do mount -t nfs -o "$NFSOPT" "head:$LAB/net.export" "$LAB/net" && break; sleep 0.5; done
  setpriv --reuid munge --regid munge --clear-groups munged --foreground --key-file=/etc/munge/munge.key --socket=/run/munge/munge.socket.2 \
    --pid-file=/run/munge/munged.pid --seed-file=/run/munge/seed --num-threads=2 > "$N/log/munged.log" 2>&1 &
  while [ ! -S /run/munge/munge.socket.2 ]; do sleep 0.05; done
  mkdir -p /run/slurmd.spool; sed "s|^SlurmdSpoolDir=.*|SlurmdSpoolDir=/run/slurmd.spool|" "$E/slurm-uml/slurm.conf" > /run/slurm.conf; mount --bind /run/slurm.conf /etc/slurm/slurm.conf
  setsid slurmd -D -N "$h" > "$N/log/slurmd.out" 2>&1 < /dev/null &
  echo up > "$N/booted"; sync
  while :; do sleep 3600 & wait; done
}
large_registers() { grep -qw amx_tile /proc/cpuinfo; }     # see uml_xstate.c
boot_uml() {
  local h=$1 N=$RUN/nodes/$1 sw m preload=; sw=$(pidof_ "$RUN/switch.pid"); m=$(mac "$1")
  alive "$N/init.pid" && return
  mkdir -p "$N/log" "$N/uml"; rm -f "$N/booted"; chmod 777 "$N/log"
  switch ip link del "v-$h" 2>/dev/null; switch ip tuntap add dev "v-$h" mode tap && switch ip link set "v-$h" master br0 up || die "$h: no tap"
  if large_registers; then
    preload=$RUN/uml_xstate.so
    [ -e "$preload" ] || gcc -shared -fPIC -O2 -o "$preload" "${SELF%/*}/uml_xstate.c" -ldl || die "cannot compile uml_xstate.c"
  fi
  # kernel arguments NAME=VALUE that the kernel does not know become init's environment
  TMPDIR=/dev/shm HOME=$N/uml setsid nsenter --net="/proc/$sw/ns/net" unshare --mount --pid --fork --mount-proc --kill-child=KILL bash -c \
    "${preload:+LD_PRELOAD=$preload }linux.uml mem=$UMLMEM root=/dev/root rootfstype=hostfs rootflags=/ rw init=$SELF eth0=tuntap,v-$h,$m con=null con0=null,fd:1 umid=$h quiet SLURMLAB=$LAB UHOST=$h; true" < /dev/null > "$N/log/console.log" 2>&1 &
  putpid "$N/unshare.pid" $!; find_init "$h" $!
}
start_head() {
  local L=$RUN/nodes/head/log
  if [ "$ACCT" = 1 ]; then
    [ -d "$RUN/mysql" ] || cp -a "$LAB/cache/mysql" "$RUN/mysql"
    setsid setpriv --reuid mysql --regid mysql --clear-groups mariadbd --no-defaults --datadir="$RUN/mysql" \
      --socket=/run/mysqld/mysqld.sock --pid-file=/run/mysqld/mysqld.pid --skip-networking --skip-log-bin \
      --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-lock-wait-timeout=900 \
      --innodb-flush-log-at-trx-commit=0 --performance-schema=off --max-connections=40 >> "$L/mariadb.log" 2>&1 < /dev/null &
    while ! mariadb -u root -S /run/mysqld/mysqld.sock -e 'select 1' > /dev/null 2>&1; do sleep 0.05; done
    mariadb -u root -S /run/mysqld/mysqld.sock -e "create user if not exists slurm@localhost identified via unix_socket;
      grant all on slurm_acct_db.* to slurm@localhost" >> "$L/mariadb.log" 2>&1
    sed -i 's/^StorageUser=.*/StorageUser=slurm/' /etc/slurm/slurmdbd.conf
    setsid setpriv --reuid slurm --regid slurm --clear-groups slurmdbd -D >> "$L/slurmdbd.out" 2>&1 < /dev/null &
    local i; for ((i=0;i<600;i++)); do sacctmgr -n -i list cluster > /dev/null 2>&1 && break; sleep 0.05; done
    if [ -z "$(sacctmgr -n -P list cluster format=cluster 2>/dev/null)" ]; then   # one "load": single adds take 1 s each
      { echo "Cluster - 'lab':Fairshare=1:QOS='normal'"
        echo "Parent - 'root'"
        echo "User - 'root':DefaultAccount='root':AdminLevel='Administrator':Fairshare=1"
        echo "Account - 'lab':Description='lab':Organization='lab':Fairshare=1"
        echo "Parent - 'lab'"
        local u; for u in $USERS; do echo "User - '$u':DefaultAccount='lab':Fairshare=1"; done; } > "$RUN/state/assoc.cfg"
      sacctmgr -i load file="$RUN/state/assoc.cfg" >> "$L/sacctmgr.log" 2>&1
    fi
  fi
  start_ctld
}

# ---------------------------------------------------------------- outside
# mariadb's system tables, made once and copied at every up
make_db() {
  [ -d "$LAB/cache/mysql/mysql" ] && return
  mkdir -p "$LAB/cache"; rm -rf "$LAB/cache/mysql.tmp"; mkdir "$LAB/cache/mysql.tmp"; chown mysql: "$LAB/cache/mysql.tmp"
  mariadb-install-db --no-defaults --user=mysql --datadir="$LAB/cache/mysql.tmp" --skip-test-db --innodb-log-file-size=16M \
    --auth-root-authentication-method=socket > "$LAB/cache/install-db.log" 2>&1 || { tail "$LAB/cache/install-db.log"; die "mariadb-install-db"; }
  mv "$LAB/cache/mysql.tmp" "$LAB/cache/mysql"
}
switch() { nsenter --net="/proc/$(pidof_ "$RUN/switch.pid")/ns/net" "$@"; }
ensure_switch() {
  alive "$RUN/switch.pid" && return
  setsid unshare --net sleep infinity < /dev/null > /dev/null 2>&1 &
  local p=$! i; putpid "$RUN/switch.pid" $p
  for ((i=0;i<200;i++)); do [ "$(readlink /proc/$p/ns/net)" != "$(readlink /proc/self/ns/net)" ] && break; sleep 0.01; done
  for b in br0 br1; do
    switch ip link add $b type bridge forward_delay 0 || die "no bridge"
    switch ip link set $b up
  done
  switch ip link set lo up
}
find_init() {   # find_init HOST PID: PID execs unshare, whose only child is the host's pid 1
  local N=$RUN/nodes/$1 p=$2 q= i
  for ((i=0;i<1000;i++)); do
    if [ "$(cat /proc/$p/comm 2>/dev/null)" = unshare ]; then   # (read fails: that file has no newline)
      read -r q _ < "/proc/$p/task/$p/children"; [ -n "$q" ] && break
    fi; sleep 0.01
  done
  [ -n "$q" ] || die "$1: no init"
  putpid "$N/unshare.pid" "$p"; putpid "$N/init.pid" "$q"
}
boot() {   # boot HOST: create its namespaces and plug it in
  local h=$1 N=$RUN/nodes/$1 q
  alive "$N/init.pid" && return
  mkdir -p "$N/log" "$N/spool" "$N/tmp"; rm -f "$N/booted"
  [ "$h" = head ] && { chown slurm: "$N/log"; touch "$N/log/mariadb.log"; }
  chmod 755 "$N" "$N/log"
  chown munge: "$N/log" 2>/dev/null; [ "$h" = head ] && chmod 1777 "$N/log"
  setsid unshare --net --uts --mount --ipc --pid --fork --mount-proc --kill-child=KILL \
    env -u TMPDIR SLURMLAB="$LAB" "$SELF" _node "$h" < /dev/null > "$N/log/init.log" 2>&1 &
  putpid "$N/unshare.pid" $!; find_init "$h" $!; q=$(pidof_ "$N/init.pid")
  switch ip link del "v-$h" 2>/dev/null
  switch ip link add "v-$h" type veth peer name eth0 netns "$q" || die "$h: no veth"
  switch ip link set "v-$h" master br0 up
  nsenter --net="/proc/$q/ns/net" bash -c "
    ip link set lo up; ip link set eth0 address $(mac $h); ip link set eth0 up
    for o in $(hosts | xargs); do [ \$o = $h ] && continue; case \$o in $(for o in $(hosts); do echo "$o) ip neigh replace $(addr $o) lladdr $(mac $o) nud permanent dev eth0;;"; done) esac; done
    ip addr add $(addr $h)/24 dev eth0"
}
shut() {   # kill everything on HOST
  local N=$RUN/nodes/$1 p
  for f in init unshare; do p=$(pidof_ "$N/$f.pid") && kill -KILL "$p" 2>/dev/null; done
  local i; for ((i=0;i<300;i++)); do alive "$N/unshare.pid" || alive "$N/init.pid" || break; sleep 0.01; done
  rm -f "$N/init.pid" "$N/unshare.pid" "$N/booted"
}
neigh() { "$SELF" exec "$1" ip neigh replace "$(addr "$2")" lladdr "$3" nud permanent dev eth0; }
in_host() { # in_host HOST USER CMD...
  local h=$1 u=$2 p; shift 2; p=$(pidof_ "$RUN/nodes/$h/init.pid") || die "$h is not up"
  local pre=()
  [ "$u" != root ] && pre=(setpriv --reuid "$u" --regid "$u" --init-groups env HOME="$LAB/shared/home/$u" USER="$u" LOGNAME="$u")
  exec nsenter --target "$p" --net --uts --mount --ipc --pid --wd="$PWD" -- "${pre[@]}" "$@"
}
up() {
  [ "$(id -u)" = 0 ] || die "needs root"
  local t0=$SECONDS h i fresh=1
  mkdir -p "$LAB"
  [ -n "$STALE" ] && EXTRA_PKGS="$EXTRA_PKGS bindfs fuse3"
  [ "$NUML" -gt 0 ] && EXTRA_PKGS="$EXTRA_PKGS user-mode-linux nfs-ganesha nfs-ganesha-vfs rpcbind nfs-common kmod"
  [ "$NUML" -gt 0 ] && large_registers && EXTRA_PKGS="$EXTRA_PKGS gcc libc6-dev"
  install
  if alive "$RUN/switch.pid" && [ -e "$RUN/ready" ]; then fresh=; . "$RUN/options"; else
    [ -d "$RUN" ] && down > /dev/null      # left-overs of an up that failed, or of before a reboot
    rm -rf "$RUN"; mkdir -p "$RUN"; configure; [ "$ACCT" = 1 ] && make_db; fi
  ensure_switch
  for h in $(hosts); do boot "$h"; done
  for h in $(umls); do boot_uml "$h"; done
  for h in $(hosts) $(umls); do
    for ((i=0;i<1200;i++)); do [ -e "$RUN/nodes/$h/booted" ] && break; alive "$RUN/nodes/$h/init.pid" || die "$h died, see $RUN/nodes/$h/log/"; sleep 0.05; done
    [ -e "$RUN/nodes/$h/booted" ] || die "$h does not come up, see $RUN/nodes/$h/log"
  done
  "$SELF" exec head sinfo 2>&1 | grep -q 'fatal:' && { "$SELF" exec head sinfo; die "slurm.conf is wrong: $RUN/etc/slurm/slurm.conf"; }
  # ready when every node is idle (or busy), none down or unknown
  local want=$((NCPU+NGPU+NUML)) got=0
  for ((i=0;i<600;i++)); do
    got=$("$SELF" exec head sinfo -h -N -o '%N %t' 2>/dev/null | sort -u | grep -cE ' (idle|mix|alloc|comp)$')
    [ "$got" = $want ] && break; sleep 0.1
  done
  [ "$got" = $want ] || { "$SELF" exec head sinfo -N -l; die "only $got of $want nodes up"; }
  touch "$RUN/ready"; echo "cluster up: $want nodes${fresh:+, fresh}, $((SECONDS-t0)) s"
}
down() {
  local h N
  for N in "$RUN"/nodes/*/; do [ -d "$N" ] && shut "$(basename "$N")"; done
  local p; p=$(pidof_ "$RUN/switch.pid") && kill -KILL "$p"
  # cgroup directories that killed slurmds leave behind
  find /sys/fs/cgroup -depth -type d -path '*/slurm_*' -exec rmdir {} + 2>/dev/null
  rm -rf "$RUN"; echo "cluster down"
}
status() {
  local h p n kb
  alive "$RUN/switch.pid" || { echo "cluster is down"; return 1; }
  for h in $(hosts) $(umls); do
    if p=$(pidof_ "$RUN/nodes/$h/init.pid"); then
      n=0; kb=0; ns=$(readlink /proc/$p/ns/pid)
      for q in $(ls /proc | grep -E '^[0-9]+$'); do
        [ "$(readlink /proc/$q/ns/pid 2>/dev/null)" = "$ns" ] || continue
        n=$((n+1)); kb=$((kb+$(awk '/^Pss:/{print $2}' /proc/$q/smaps_rollup 2>/dev/null || echo 0)))
      done
      echo "$h up init=$p addr=$(addr $h) processes=$n pss=$((kb/1024))MB $(switch ip -o link show "v-$h" | grep -o 'master br[01]' || echo unplugged)"
    else echo "$h OFF"; fi
  done
  "$SELF" exec head sinfo -N -l
}

ACCT=1 CGROUP=0
[ -f "$RUN/options" ] && . "$RUN/options"
[ -n "${UHOST:-}" ] && [ $$ = 1 ] && uml_main
cmd=${1:-}; shift || true
case $cmd in
  up) alive "$RUN/switch.pid" || { ACCT=1 CGROUP=0; [ -w /sys/fs/cgroup/freezer/cgroup.procs ] && [ -w /sys/fs/cgroup/memory/cgroup.procs ] && CGROUP=1; }
      for a; do case $a in --no-acct) ACCT=0;; --no-cgroup) CGROUP=0;; *) die "up: $a?";; esac; done; up;;
  down) down;;
  status) status;;
  exec) h=$1; shift; u=root; [ "${1:-}" = -u ] && { u=$2; shift 2; }; [ "${1:-}" = -- ] && shift; in_host "$h" "$u" "$@";;
  crash) switch ip link set "v-$1" nomaster; shut "$1"; switch ip link del "v-$1" 2>/dev/null; true;;
  boot) case $1 in nfs*) boot_uml "$1";; *) boot "$1";; esac; for ((i=0;i<400;i++)); do [ -e "$RUN/nodes/$1/booted" ] && exit 0; sleep 0.05; done; die "$1 does not boot";;
  slurmd) h=$1; case $2 in
      stop) "$SELF" exec "$h" sh -c 'kill -TERM $(cat /run/slurmd.pid)';;
      kill) "$SELF" exec "$h" sh -c 'kill -KILL $(cat /run/slurmd.pid)';;
      start) "$SELF" exec "$h" "$SELF" _slurmd "$h";; esac;;
  ctld) case $1 in
      stop) "$SELF" exec head sh -c 'kill -TERM $(cat /run/slurm/slurmctld.pid)';;
      kill) "$SELF" exec head sh -c 'kill -KILL $(cat /run/slurm/slurmctld.pid)';;
      start) "$SELF" exec head "$SELF" _ctld;; esac;;
  partition) for h; do switch ip link set "v-$h" master br1; done;;
  heal) [ $# = 0 ] && set -- $(hosts) $(umls); for h; do switch ip link set "v-$h" master br0 2>/dev/null; done; true;;
  # a dead MAC address for the peer: packets vanish silently, as with a broken switch port (a blackhole route would
  # fail the sender at once with EINVAL)
  cut)   neigh "$1" "$2" 02:00:00:00:ff:ff; neigh "$2" "$1" 02:00:00:00:ff:ff;;
  uncut) neigh "$1" "$2" "$(mac "$2")"; neigh "$2" "$1" "$(mac "$1")";;
  _node) node_main "$1";;
  _slurmd) start_slurmd "$1";;
  _ctld) start_ctld;;
  *) sed -n '2,/^set -u/p' "$SELF" | grep '^#'; exit 2;;
esac
