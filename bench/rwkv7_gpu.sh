#!/usr/bin/env bash
# RWKV-7 on this machine's GPU in one go: build, hold to the float64 reference, time beside others.
#   bench/rwkv7_gpu.sh            some four minutes on an H200 with 16 cores, of which the building is half
# Needs nvcc 12 or newer, and Python with what `pip install ".[test]"` brings; fla is a peer where it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD
RWKVSTS_CUDA=1 python setup.py -q build_ext --inplace >/dev/null
python -m pytest -q -m gpu tests/test_cuda7.py
python bench/rwkv7.py --device cuda --size 1b5,0b1 --check --peers
