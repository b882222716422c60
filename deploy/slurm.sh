#!/bin/bash
# Train on nodes of a Slurm cluster, without Ray: torchrun starts one process for each GPU (docs/cluster.md).
#
#     sbatch --nodes=2 deploy/slurm.sh my.yaml storage=/shared/runs data.uri=/shared/mine
#
# Lines that your cluster needs (partition, account, modules) belong below the first #SBATCH lines or on the command line.
#SBATCH --job-name=mgdet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
# Two minutes before the time is over Slurm sends this script SIGTERM: the training stops at a checkpoint, and the job goes
# back into the queue, from where it continues.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

per_node=${MGDET_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
cpus=$((${SLURM_CPUS_PER_TASK:-1} / per_node))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > 0 ? cpus : 1))}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}

srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$per_node" \
    --rdzv-backend=c10d --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 20000))" --rdzv-id="$SLURM_JOB_ID" \
    -m mgdet train "$@" &
training=$!

stopped=
trap 'stopped=yes; kill -TERM "$training"' TERM
status=0
wait "$training" || status=$?
if [ -n "$stopped" ]; then # the signal has ended the first wait
    status=0
    wait "$training" || status=$?
    if [ "$status" -ne 0 ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
