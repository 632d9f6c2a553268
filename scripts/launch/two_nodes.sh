#!/usr/bin/env bash
# Train on two machines (or more): the same command on each of them, in any order, within ten minutes.
#
#   HOST=10.0.0.1 scripts/launch/two_nodes.sh scripts/train_elastic.py --run-dir /shared/runs/first
#
# HOST is the address of one of them, where all meet (c10d rendezvous); PORT, if 29400 is taken there; NODES, if there
# are more than two; PROCESSES on each machine; RUN_ID, if several runs meet at one HOST; INTERFACE, such as eth0, if
# a machine has several networks. The data has to be on each machine, --run-dir in a folder that all of them see.
#
# A machine that is lost may come back with the same command: the others wait for it, then all go on from the newest
# checkpoint. If HOST itself is lost, the run ends everywhere; start it again, it goes on as well.
set -euo pipefail

if [ $# -eq 0 ] || [ -z "${HOST:-}" ]; then
    echo "which program, and where to meet? e.g. HOST=10.0.0.1 $0 scripts/train_elastic.py --run-dir /shared/runs/first" >&2
    exit 2
fi
if [ -n "${INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME="$INTERFACE" NCCL_SOCKET_IFNAME="$INTERFACE"
    LOCAL_ADDRESS="$(ip -4 -o addr show dev "$INTERFACE" | awk 'NR == 1 { sub("/.*", "", $4); print $4 }')"
fi

# Restarts meet in a store of their own, not in the one of the life before.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# A machine that has not been heard of for 3 x 1 s is lost; those that are left wait 5 s for latecomers.
conditions="keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=5,join_timeout=600"
if [ -n "${LOCAL_ADDRESS:-}" ]; then
    if [ "$LOCAL_ADDRESS" = "$HOST" ]; then conditions+=",is_host=1"; else conditions+=",is_host=0"; fi
fi

# shellcheck disable=SC2086  # TORCHRUN may be several words, such as `python -m torch.distributed.run`
exec ${TORCHRUN:-torchrun} --nnodes="${NODES:-2}" --nproc-per-node="${PROCESSES:-1}" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="$HOST:${PORT:-29400}" --rdzv-id="${RUN_ID:-playground}" \
    --rdzv-conf="$conditions" ${LOCAL_ADDRESS:+--local-addr="$LOCAL_ADDRESS"} "$@"
