#!/usr/bin/env bash
# One night of a grid, for cron, systemd timers and scrontab; see README.md beside this file.
#
#   slurm/nightly.sh GRID PROFILE [STORE] [FLAG of python -m suite.nightly ...]
#
# PYTHON is the interpreter (default: python3). Exit codes: 0 nothing to say, 1 look at it, 2 bad input or over the
# budget, 3 nothing could be submitted.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: slurm/nightly.sh GRID PROFILE [STORE] [FLAG...]" >&2
    exit 2
fi
grid=$(realpath -m -- "$1") profile=$2
if [[ $profile == */* ]]; then profile=$(realpath -m -- "$profile"); fi
shift 2
store=()
if [[ $# -gt 0 && $1 != -* ]]; then
    store=(--store "$(realpath -m -- "$1")")
    shift
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" -m suite.nightly "$grid" --profile "$profile" "${store[@]}" "$@"
