# Sourced by the batch scripts of this folder, in the root of the project: the environment, and `launch`.

set -euo pipefail

MOST_RESTARTS=100 # of one job: what fails at every start must not run for ever

fail() {
    echo "slurm: error: $*" >&2
    exit 1
}

# The active environment, else the one that scripts/demo makes. Modules that a site's own Python and MPI need are best
# loaded before sbatch, which passes the environment on.
environment=${VIRTUAL_ENV:-$PWD/.venv}
if [ -e "$environment/bin/activate" ]; then
    source "$environment/bin/activate"
fi
python -c 'import minitrain' 2>/dev/null ||
    fail "no python here has minitrain; $environment, or PATH; run scripts/demo once, or activate an environment before sbatch"

export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 # a rank is one core; more threads fight for it

# launch COMMAND...: runs a training job to its end, or until it is told to stop, and then asks for another turn.
#
# minitrain, told to stop by SIGUSR1 or SIGTERM, writes a checkpoint and exits with 75. Who is told, and by whom:
#   time is nearly up    Slurm sends USR1 to this shell alone (--signal=B:USR1@...), which passes it on. mpirun and
#                        srun pass it on to all ranks
#   pre-emption, or      Slurm sends TERM to the processes of every step, so to the ranks that srun started: they
#   scancel JOB          need no word from here, and a second one would end them at once. mpirun answers TERM by killing
launch() {
    echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1))"
    local code=0 command
    told=no
    "$@" & # bash runs a trap only between commands, or in `wait`
    command=$!
    trap 'told=yes; kill -USR1 $command' USR1
    trap : TERM
    wait $command || code=$?
    while kill -0 $command 2>/dev/null; do # only the wait had ended, by a signal
        code=0
        wait $command || code=$?
    done
    if must_go_on $code; then
        requeue $code
    fi
    exit $code
}

# Whether the command's end was not the end of the training run.
must_go_on() {
    local code=$1
    if [ "$code" = 75 ]; then
        return 0
    elif [ $told = yes ]; then
        [ "$code" != 0 ] # the signal came before the ranks listened to it, and killed them
    else
        was_preempted # mpirun, without its daemons on the other nodes, ends with 0
    fi
}

was_preempted() { scontrol --oneliner show job "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]'; }

requeue() {
    local code=$1 state
    state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
    if [[ $state != RUNNING && $state != SIGNALING ]]; then
        return # cancelled, or requeued by somebody else
    elif [ "${SLURM_RESTART_COUNT:-0}" -ge $MOST_RESTARTS ]; then
        fail "job $SLURM_JOB_ID has been started $((MOST_RESTARTS + 1)) times and wants to go on; look at its output; then scontrol requeue $SLURM_JOB_ID"
    fi
    echo "job $SLURM_JOB_ID ended with $code and goes on later, from its newest checkpoint"
    scontrol requeue "$SLURM_JOB_ID" || fail "job $SLURM_JOB_ID could not be requeued; submit it again with --run.dir of this one"
}
