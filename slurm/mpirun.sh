#!/usr/bin/env bash
# Several nodes, by the mpirun of the environment: it starts its daemons on the other nodes through srun.
#   sbatch --nodes=4 slurm/mpirun.sh --parallel.tp 4
# Pre-emption gives mpirun no time for a checkpoint (docs/clusters.md): where jobs are pre-empted, use srun.sh.
#SBATCH --job-name=minitrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@180   # tells this shell, three minutes (or up to a minute more) before the time is up
#SBATCH --requeue
#SBATCH --open-mode=append    # started again, the job goes on writing to the same slurm-JOB.out

source slurm/common.sh

# The mapping is said here because the settings of scripts/demo let mpirun put more ranks than cores on the first node.
launch mpirun -n "$SLURM_NTASKS" --map-by "ppr:$SLURM_NTASKS_PER_NODE:node" \
    python -m minitrain --run.dir "runs/$SLURM_JOB_ID" --run.resume auto --run.save_every 200 "$@"
