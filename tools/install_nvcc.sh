#!/usr/bin/env bash
# Puts NVIDIA's compiler into the image in which a wheel is built (AlmaLinux 8, as manylinux_2_28 has).
#
# Only what the CUDA part includes: nvcc and the runtime with its headers. cublasLt is not needed to
# build: the library looks for it when it runs. On aarch64 nothing is installed: its wheel is the
# CPU's alone.
set -euo pipefail

version=13-0
[ "$(uname -m)" = x86_64 ] || exit 0
dnf install -y dnf-plugins-core
dnf config-manager --add-repo https://developer.download.nvidia.com/compute/cuda/repos/rhel8/x86_64/cuda-rhel8.repo
dnf install -y "cuda-nvcc-$version" "cuda-cudart-devel-$version" "cuda-cccl-$version"
/usr/local/cuda/bin/nvcc --version
