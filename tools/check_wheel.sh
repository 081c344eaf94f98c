#!/usr/bin/env bash
# Installs a wheel where there is no compiler, and runs the common tests on what was installed.
#
#     tools/check_wheel.sh WHEEL [pytest arguments]
#
# The environment is new and its PATH holds nothing but itself, git and a few basic programs: tests
# that compile something skip. The tests are this checkout's; the package is the wheel's.
set -euo pipefail
wheel=$(realpath "$1")
shift
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
mkdir "$folder/bin"
for program in bash sh env git cat ls rm uname dirname realpath; do
    ln -s "$(command -v "$program")" "$folder/bin/"
done

unset PYTHONPATH CUDA_HOME CUDA_PATH
export PATH="$folder/venv/bin:$folder/bin"
! command -v gcc cc clang nvcc || { echo "a compiler is still in reach" >&2; exit 1; }
pip install -q --only-binary :all: "$wheel[test]"
(cd "$folder" && python -c 'import rwkvsts; print(rwkvsts.__file__)' && rwkvsts info)
pytest "$@"
