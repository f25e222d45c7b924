#!/usr/bin/env bash
# One command for a run of any length on a Slurm cluster:
#   sbatch --nodes 2 training/launch/slurm.sh --recipe cifar10 --output_dir runs/cifar10
# Slurm sends USR1 ten minutes before the time limit of the job. The run saves, exits with 75, and is queued again, until
# it is finished. Each process is a task without a launcher, so that it receives signals and returns its exit code.
#SBATCH --job-name=hf_ddpm
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@600
#SBATCH --open-mode=append
#SBATCH --requeue
set -u
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
WORLD_SIZE=$SLURM_NTASKS
export MASTER_ADDR MASTER_PORT WORLD_SIZE

# shellcheck disable=SC2016  # each task has its own numbers
srun --kill-on-bad-exit=0 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE%%(*}
    exec hf-ddpm train --resume auto "$@"' task "$@"
code=$?
if [ "$code" = 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
