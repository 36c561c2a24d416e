#!/usr/bin/env bash
# Slurm, whole nodes: one Ray runtime per node, the command runs on the first.
#
#   sbatch clusters/slurm.sh
#
# The workspace must lie on a file system that all nodes mount. `symmetric-run` ends with
# `ray stop`, which stops every Ray process of yours on its nodes: keep --exclusive.
#SBATCH --job-name=mfdiff
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
: "${MLFLOW_TRACKING_URI:?several nodes need an MLflow server: set MLFLOW_TRACKING_URI}"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_NNODES" --num-gpus 8 -- \
  mfdiff-platform pretrain --gpus $((SLURM_NNODES * 8)) --workspace "$PWD/mfdiff-workspace"
