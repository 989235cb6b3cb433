#!/usr/bin/env bash
# A sweep: task i of the array takes its arguments from line i (from 0) of slurm/sweep.txt, or of another file.
#   sbatch slurm/array.sh --train.steps 500
#   SWEEP=mine.txt sbatch --array=0-15%4 slurm/array.sh        16 tasks, at most 4 at a time
# A line may also name a file of settings: --config sweep/wide.toml
#SBATCH --job-name=sweep
#SBATCH --array=0-2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@180   # tells this shell, three minutes (or up to a minute more) before the time is up
#SBATCH --requeue
#SBATCH --open-mode=append    # started again, a task goes on writing to the same slurm-JOB_TASK.out

source slurm/common.sh

sweep=${SWEEP:-slurm/sweep.txt}
mapfile -t lines <"$sweep"
[ "$SLURM_ARRAY_TASK_ID" -lt ${#lines[@]} ] || fail "task $SLURM_ARRAY_TASK_ID has no line in $sweep, which has ${#lines[@]}"
read -ra arguments <<<"${lines[SLURM_ARRAY_TASK_ID]}"

launch mpirun -n "$SLURM_NTASKS" \
    python -m minitrain --run.dir "runs/sweep-$SLURM_ARRAY_JOB_ID/$SLURM_ARRAY_TASK_ID" \
    --run.resume auto --run.save_every 200 "${arguments[@]}" "$@"
