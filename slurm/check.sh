#!/usr/bin/env bash
# Looks at what a job of the other scripts would find, with both launchers: nodes, ranks, MPI, threads, file system.
#   sbatch --nodes=4 --ntasks-per-node=16 slurm/check.sh [DIRECTORY of runs]
#   LAUNCHERS=srun sbatch slurm/check.sh           of mpirun and srun, one alone
#SBATCH --job-name=check
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=00:05:00

source slurm/common.sh

check=(python slurm/check.py --ranks "$SLURM_NTASKS" --nodes "$SLURM_NNODES" "${1:-runs}")
failed=0
for launcher in ${LAUNCHERS:-mpirun srun}; do
    echo "$launcher"
    case $launcher in
        mpirun) mpirun -n "$SLURM_NTASKS" --map-by "ppr:$SLURM_NTASKS_PER_NODE:node" "${check[@]}" || failed=1 ;;
        srun) srun --mpi="${MPI_TYPE:-pmix}" "${check[@]}" || failed=1 ;;
    esac
done
exit $failed
