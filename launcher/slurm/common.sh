# What the batch scripts share; sourced. Bash 4.4 or newer.
#
#   slm_step KIND FOLDER MAX_REQUEUES COMMAND…     a step whose status.json and manifest say what became of it
#   slm_run MAX_REQUEUES COMMAND…                  a command whose exit code says it
#
# SIGUSR1 (sbatch --signal=B:USR1@…) or SIGTERM asks it to save and end: a train step by the file STOP in its folder,
# which all ranks obey at one step boundary; anything else by SIGTERM. What saved goes back into the queue and
# continues there.

slm_asked=
trap 'slm_asked=yes' USR1 TERM

slm_variables() { # those of the file SLM_ENV_FILE; refused when others may read it, or a shell would expand a value
  local text
  [[ -n ${SLM_ENV_FILE:-} ]] || return 0
  text=$(python -m slm.cluster.environment "$SLM_ENV_FILE")
  set -a
  eval "$text"
  set +a
}

slm_ask() { # STOP_FILE PROCESS
  if [[ -n $1 ]]; then
    mkdir -p -- "${1%/*}" && touch -- "$1" # again and again: ranks that are still starting clear an old one
  elif [[ $slm_asked == yes ]]; then
    kill -TERM "$2" 2>/dev/null || true
    slm_asked=sent
  fi
}

slm_wait() { # STOP_FILE COMMAND…: the command's exit code is left in slm_code
  local stop=$1 process
  shift
  [[ -z $stop ]] || rm -f -- "$stop"
  "$@" &
  process=$!
  while kill -0 "$process" 2>/dev/null; do
    if [[ $slm_asked ]]; then
      slm_ask "$stop" "$process"
      sleep 1
    else
      wait "$process" || true # a signal ends the waiting, not the process
    fi
  done
  slm_code=0
  wait "$process" || slm_code=$?
  if [[ $slm_asked && -z $stop ]] && ((slm_code == 143)); then
    slm_code=85 # it died of being asked: what is finished is kept, the rest is made when it runs again
  fi
  [[ -z $stop ]] || rm -f -- "$stop"
}

slm_finish() { # VERDICT MAX_REQUEUES
  local job=${SLURM_JOB_ID:-} state
  if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # the job's own number may be that of the whole array
  fi
  if (($1 == 85)) && [[ -n $job ]]; then
    state=$(squeue --noheader --format=%T --jobs="$job" 2>/dev/null) || state=
    if [[ -n $state && $state != RUNNING ]]; then
      echo "job $job is $state: SLURM ends it, and requeues it or not" # requeued here, scancel could not end it
    elif ((${SLURM_RESTART_COUNT:-0} < $2)); then
      echo "job $job goes back into the queue (requeued ${SLURM_RESTART_COUNT:-0} times, at most $2)"
      scontrol requeue "$job" || echo "job $job can't be requeued; submit it again to continue"
    else
      echo "job $job was requeued $2 times; submit it again to continue"
    fi
  fi
  return "$1"
}

slm_step() {
  local kind=$1 folder=$2 most=$3 stop="" verdict=0 before
  shift 3
  [[ $kind != train ]] || stop=$folder/STOP
  before=$(python -m slm.cluster.verdict mark "$folder")
  slm_wait "$stop" "$@"
  python -m slm.cluster.verdict judge "$kind" "$folder" "$before" "$slm_code" || verdict=$?
  slm_finish "$verdict" "$most"
}

slm_run() {
  local most=$1
  shift
  slm_wait "" "$@"
  slm_finish "$slm_code" "$most"
}

slm_pick() { # PATTERN ARGUMENT…: all but, of those that fit the pattern, the array task's own; left in slm_picked
  local pattern=$1 word seen=0 own=${SLURM_ARRAY_TASK_ID:-0}
  shift
  slm_picked=()
  for word; do
    if [[ ! $word =~ $pattern ]]; then
      slm_picked+=("$word")
    else
      if ((seen == own)); then slm_picked+=("$word"); fi
      seen=$((seen + 1))
    fi
  done
  if ((own >= seen)) || { [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] && ((seen > 1)); }; then
    echo "error: $seen of the arguments could be this task's; submit with --array=0-$((seen > 0 ? seen - 1 : 0))" >&2
    exit 2
  fi
}

slm_is_share() { # PATTERN ARGUMENT…: whether this is a task of an array for the one argument that fits the pattern
  local pattern=$1 word seen=0
  shift
  for word; do
    if [[ $word =~ $pattern ]]; then seen=$((seen + 1)); fi
  done
  ((seen == 1 && ${SLURM_ARRAY_TASK_COUNT:-1} > 1))
}

slm_checkout() { # for scripts that people submit: sbatch runs a copy of them, so only the folder tells where we are
  cd -- "${SLURM_SUBMIT_DIR:-.}"
  if [[ ! -f launcher/train.py ]]; then
    echo "error: submit from the top of the checkout (cd there, then sbatch launcher/slurm/…)" >&2
    exit 2
  fi
  [[ ! -x .venv/bin/python ]] || export PATH="$PWD/.venv/bin:$PATH"
  slm_variables
}
