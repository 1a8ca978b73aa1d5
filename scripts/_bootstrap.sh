# Sourced by the other scripts, never run. It leaves:
#
#   $root      the repository, absolute
#   $python    the Python of its .venv, with everything installed and the tiny models written
#
# and the environment in which the engines' libraries behave on few cores. All of it is found in place
# in a fraction of a second from the second call on. COSCHEDULER_PYTHON names another Python 3.11-3.13.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="$root/.venv/bin/python"

# Prints the path of the first Python that runs, is of a right version and can make environments: a
# name on the PATH proves nothing (a shim may stand for a version that was never installed).
find_python() {
    local candidate
    for candidate in "${COSCHEDULER_PYTHON:-}" python3.12 python3.13 python3.11 python3 python; do
        [ -n "$candidate" ] || continue
        "$candidate" -I "$root/scripts/bootstrap.py" --can-host 2>/dev/null && return
    done
    cat >&2 <<MESSAGE
coscheduler needs Python 3.11, 3.12 or 3.13 with its venv module, and found none that runs.
Debian and Ubuntu: apt install python3 python3-venv    Fedora: dnf install python3.12
A Python elsewhere: COSCHEDULER_PYTHON=/path/to/python ${BASH_SOURCE[-1]}
MESSAGE
    return 1
}

bootstrap() {
    "$python" -I -S "$root/scripts/bootstrap.py" --ready 2>/dev/null && return
    local host
    host="$(find_python)" || return
    "$host" -I "$root/scripts/bootstrap.py"
}

bootstrap || exit
export COSCHEDULER_READY=1

# GNU OpenMP's barriers spin: with more busy threads than cores, 50 ms of work take 20 s.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0
# Nothing may reach for the network, or report to anybody, while engines and tests run.
export HF_HUB_OFFLINE=1 PYANNOTE_METRICS_ENABLED=0 TOKENIZERS_PARALLELISM=false
