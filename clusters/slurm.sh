#!/usr/bin/env bash
# Slurm, whole nodes: one Ray per node, the command runs on the first of them.
#
# The workspace must lie on a file system that all nodes mount; submit from there. Two minutes
# before the time limit Slurm signals this script, which asks the run for a checkpoint; submit the
# same job again to go on with it. `symmetric-run` ends with `ray stop`, which stops every Ray
# process of yours on its nodes: keep --exclusive.
#
#   ray get-auth-token --generate   # once
#   sbatch clusters/slurm.sh
#   squeue --me
#   touch mfdiff-workspace/pretrained/base/stop   # ends it at a checkpoint before its time
#
#SBATCH --job-name=mfdiff
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
workspace="$PWD/mfdiff-workspace"
name=base
# `head -n 1` would end scontrol by SIGPIPE, which pipefail takes for a failure.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)

# A signal to srun would end Ray on all nodes at once; the run is asked by its file instead.
trap 'touch "$workspace/pretrained/$name/stop"' TERM
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_NNODES" --num-gpus 8 -- \
  mfdiff-platform pretrain --gpus $((SLURM_NNODES * 8)) --name "$name" --workspace "$workspace" &
while kill -0 $! 2>/dev/null; do wait $! && code=0 || code=$?; done
exit "${code:-0}"
