#!/usr/bin/env bash
# One GPU a rank: srun shows each rank its own as the only one there is. Never run on GPUs (docs/gpu-results.md).
#   sbatch --nodes=4 slurm/gpus.sh --parallel.tp 4
#SBATCH --job-name=minitrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@180   # tells this shell, three minutes (or up to a minute more) before the time is up
#SBATCH --requeue
#SBATCH --open-mode=append    # started again, the job goes on writing to the same slurm-JOB.out

source slurm/common.sh

launch srun --mpi=pmix --cpus-per-task="$SLURM_CPUS_PER_TASK" --gpus-per-task=1 \
    python -m minitrain --run.dir "runs/$SLURM_JOB_ID" --run.resume auto --run.save_every 200 --backend cupy "$@"
