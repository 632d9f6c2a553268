#!/usr/bin/env bash
# Train in several processes of this machine: one for each GPU, or two if there is none.
#
#   scripts/launch/one_machine.sh scripts/train_elastic.py --run-dir runs/first
#
# PROCESSES=4 asks for another number of them, RESTARTS=0 for another number of restarts than 3, TORCHRUN for another
# torchrun than the first on the path.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "which program? e.g. $0 scripts/train_elastic.py --run-dir runs/first" >&2
    exit 2
fi
if [ -z "${PROCESSES:-}" ]; then
    PROCESSES=2
    if command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then
        PROCESSES=gpu
    fi
fi

# Restarts meet in a store of their own, not in the one of the life before.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Without it each process would use all cores, and they would get in each other's way.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# shellcheck disable=SC2086  # TORCHRUN may be several words, such as `python -m torch.distributed.run`
exec ${TORCHRUN:-torchrun} --standalone --nproc-per-node="$PROCESSES" --max-restarts="${RESTARTS:-3}" "$@"
