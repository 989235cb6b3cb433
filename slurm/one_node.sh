#!/usr/bin/env bash
# One node. From the root of the project, arguments go to minitrain:
#   sbatch slurm/one_node.sh --train.steps 3000 --model.width 256
#   sbatch --ntasks-per-node=16 --time=12:00:00 slurm/one_node.sh
#SBATCH --job-name=minitrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@180   # tells this shell, three minutes (or up to a minute more) before the time is up
#SBATCH --requeue
#SBATCH --open-mode=append    # started again, the job goes on writing to the same slurm-JOB.out

source slurm/common.sh

launch mpirun -n "$SLURM_NTASKS" \
    python -m minitrain --run.dir "runs/$SLURM_JOB_ID" --run.resume auto --run.save_every 200 "$@"
