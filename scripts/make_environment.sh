#!/usr/bin/env bash
# Makes the Python environment with the pinned packages, or says in one sentence what is in the way.
# usage: [PYTHON=python3.11] scripts/make_environment.sh FOLDER
set -u
folder=$1
fail() { echo "error: $1" >&2; exit 2; }

works() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }
python=
for candidate in ${PYTHON:-python3.11 python3}; do
    if works "$candidate"; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "no Python 3.11 with venv was found (looked for: ${PYTHON:-python3.11 python3}); install Python 3.11 (on Debian also python3.11-venv), or name yours with PYTHON=path"

free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
[ "$free_kb" -ge 3000000 ] || fail "less than 3 GB are free here; the environment needs about 2 GB"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "making the Python environment in $folder (once, about a minute)" >&2
rm -f "$folder/ready"
"$python" -m venv "$folder" >"$log" 2>&1 || fail "the environment could not be made: $(tail -n 1 "$log")"
if ! "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,dev]' >"$log" 2>&1; then
    if grep -qiE 'no space left|disk quota' "$log"; then fail "the disk is full; free some space and run again"; fi
    if grep -qiE 'connection|resolve|timed out|network|temporary failure|no matching distribution' "$log"; then
        fail "packages could not be fetched; check the network or pip's index settings and run again ($(grep -iE 'error' "$log" | tail -n 1 | cut -c1-160))"
    fi
    fail "packages could not be installed: $(grep -iE 'error' "$log" | tail -n 1 | cut -c1-200)"
fi
# Spark's own script looks for Spark by the python3 on PATH, which need not be this environment's.
printf '%s\n' '#!/usr/bin/env bash' \
    'here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"' \
    'export PYSPARK_DRIVER_PYTHON="${PYSPARK_DRIVER_PYTHON:-$here/python3}"' \
    'export SPARK_HOME="${SPARK_HOME:-$("$here/python3" "$here/find_spark_home.py")}"' >"$folder/bin/find-spark-home"
touch "$folder/ready"
