#!/usr/bin/env bash
# A Slurm of two nodes on this machine, for the tests. By root, on Debian or Ubuntu:
#   slurm_cluster.sh up      installs the packages where they are missing, starts munged, slurmctld and two slurmd
#   slurm_cluster.sh down    stops what `up` started
# Each node claims 64 cores and four GPUs (device files that every machine has), so that the profile of a real cluster
# fits; a job of the partition `urgent` preempts others. Status 77: it cannot be had here, and why.
set -euo pipefail

CONF=/etc/slurm/slurm.conf
MARK="# made by dpar's tests/workflow/slurm_cluster.sh"
RUN=/run/dpar-slurm

cannot() { echo "no Slurm for the tests: $1" >&2; exit 77; }

up() {
  [ "$(id -u)" = 0 ] || cannot "only root can start its daemons"
  if [ -e $CONF ] && ! grep -qxF "$MARK" $CONF; then
    cannot "$CONF belongs to another Slurm, which is left alone"
  fi
  down
  missing=
  for program in slurmctld slurmd munged srun; do command -v $program > /dev/null || missing=1; done
  if [ -n "$missing" ]; then
    command -v apt-get > /dev/null || cannot "slurm-wlm and munge are not installed, and there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    mkdir -p $RUN
    { timeout 300 apt-get update -q && timeout 300 apt-get install -q -y --no-install-recommends slurm-wlm munge; } > $RUN.apt.log 2>&1 \
      || cannot "apt-get could not install slurm-wlm and munge: $(tail -n 1 $RUN.apt.log)"
  fi
  mkdir -p $RUN
  if ! munge -n < /dev/null > /dev/null 2>&1; then
    install -d -o munge -g munge -m 0755 /run/munge
    runuser -u munge -- munged --pid-file /run/munge/munged.pid || cannot "munged did not start"
    touch $RUN/munged
  fi
  install -d -o slurm -g slurm $RUN/ctld $RUN/log
  install -d /etc/slurm $RUN/node1 $RUN/node2
  configuration "$(hostname -s)" > $CONF
  printf 'Name=gpu File=%s\n' /dev/null /dev/zero /dev/full /dev/random > /etc/slurm/gres.conf
  slurmctld && slurmd -N node1 && slurmd -N node2 || { down; cannot "its daemons did not start; see $RUN/log"; }
  for _ in $(seq 100); do
    [ "$(sinfo -h -N -p gpu -o %T 2> /dev/null | grep -cx idle)" = 2 ] && return
    sleep 0.2
  done
  sinfo >&2 || true
  tail -n 5 $RUN/log/*.log >&2
  down
  cannot "its nodes did not come up"
}

configuration() {
  cat << END
$MARK
ClusterName=dpar
SlurmctldHost=$1(127.0.0.1)
SlurmUser=slurm
AuthInfo=cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
ReturnToService=2
MinJobAge=3600
StateSaveLocation=$RUN/ctld
SlurmdSpoolDir=$RUN/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd-%n.pid
SlurmctldDebug=debug
SlurmctldLogFile=$RUN/log/slurmctld.log
SlurmdLogFile=$RUN/log/%n.log
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node[1-2] NodeHostname=$1 NodeAddr=127.0.0.1 Port=[16821-16822] CPUs=64 RealMemory=1000000 Gres=gpu:4
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE
PartitionName=gpu Nodes=ALL MaxTime=INFINITE
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10
END
}

down() {
  for daemon in slurmd-node1 slurmd-node2 slurmctld; do
    stop $RUN/$daemon.pid
  done
  if [ -e $RUN/munged ]; then stop /run/munge/munged.pid; fi
  if grep -qxF "$MARK" $CONF 2> /dev/null; then rm $CONF /etc/slurm/gres.conf; fi
  rm -rf $RUN
}

stop() {
  local pid
  pid=$(cat "$1" 2> /dev/null) || return 0
  kill "$pid" 2> /dev/null || return 0
  for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null || return 0; sleep 0.1; done
  kill -9 "$pid"
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  *) echo "usage: $0 up|down" >&2; exit 2 ;;
esac
