#!/usr/bin/env bash
# Launch a grid, wait, report, print one screen. For cron and scrontab.
#
#   slurm/nightly.sh GRID PROFILE [STORE]
#
# Exit code: the launch's (0 all published, 1 some failed, 2 bad input, 3 nothing could be submitted), or the report's
# if the launch was fine. PYTHON is the interpreter (default: python3).
set -uo pipefail

if [[ $# -lt 2 || $# -gt 3 ]]; then
    echo "usage: slurm/nightly.sh GRID PROFILE [STORE]" >&2
    exit 2
fi
grid=$1
profile=$2
store=${3:-}
python=${PYTHON:-python3}
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
if [[ -z $store ]]; then
    store=$("$python" -c 'import sys; from suite.cluster.profile import find_profile, load_profile
print(load_profile(find_profile(sys.argv[1])).store)' "$profile") || { echo "no store in profile $profile" >&2; exit 2; }
fi

log=$(mktemp -t suite-nightly.XXXXXX) || exit 2
trap 'rm -f "$log"' EXIT

"$python" -m suite.launch "$grid" --profile "$profile" --store "$store" --wait >"$log" 2>&1
launched=$?
reported=0
if [[ $launched -le 1 ]]; then
    "$python" -m suite.report "$grid" --store "$store" >>"$log" 2>&1
    reported=$?
fi

echo "nightly $grid on $profile: launch exit $launched, report exit $reported"
tail -n 40 "$log"
exit $((launched != 0 ? launched : reported))
