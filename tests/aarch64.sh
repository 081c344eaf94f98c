#!/usr/bin/env bash
# The C core on aarch64, from any machine: cross-compiled, and tested on small models under QEMU.
#
#     tests/aarch64.sh [pytest arguments]        as root on Debian, which the packages come from
#
# build/aarch64 gets a Python for arm64 with NumPy, unpacked and not installed, and the package with
# the core that Debian's cross compiler makes of csrc. The CUDA part is not built for aarch64. An
# emulator is some ten times slower than a processor, so the files tested are those of the core.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD/build/aarch64
root=$here/root site=$here/site package=$here/package

if ! command -v aarch64-linux-gnu-gcc qemu-aarch64-static > /dev/null; then
    apt-get install -y -q gcc-aarch64-linux-gnu qemu-user-static
fi

if [ ! -d "$root" ]; then # a Python for arm64, from lists of its own: the machine's stay as they are
    mkdir -p "$here"/apt/{lists,cache/archives}/partial "$here/debs"
    apt=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::status=/dev/null
        -o "Dir::State::lists=$here/apt/lists" -o "Dir::Cache=$here/apt/cache")
    "${apt[@]}" update
    (cd "$here/debs" && "${apt[@]}" download python3.11-minimal libpython3.11-{minimal,stdlib,dev} libc6 \
        libexpat1 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libstdc++6 libgcc-s1)
    for deb in "$here"/debs/*.deb; do dpkg-deb -x "$deb" "$root.part"; done
    mv "$root.part" "$root"
fi

if [ ! -d "$site" ]; then
    python3 -m pip install -q --target "$site.part" --only-binary :all: --python-version 3.11 --implementation cp \
        --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
        numpy tqdm huggingface_hub tokenizers pytest
    mv "$site.part" "$site"
fi

rm -rf "$package" && mkdir -p "$package"
git ls-files -z rwkvsts | tar --null -T - -c | tar -x -C "$package"
sources=$(find csrc -name '*.c' -not -path 'csrc/cuda/*')
# shellcheck disable=SC2086
aarch64-linux-gnu-gcc -shared -fPIC -O3 -std=c11 -fvisibility=hidden -ffp-contract=off -pthread -Wall -Wextra \
    -D_DEFAULT_SOURCE -DNPY_TARGET_VERSION=NPY_1_25_API_VERSION -Icsrc \
    -isystem "$root/usr/include/python3.11" -isystem "$root/usr/include" -isystem "$site/numpy/_core/include" \
    $sources -lm -ldl -o "$package/rwkvsts/_core.cpython-311-aarch64-linux-gnu.so"

tests=$PWD/tests
[ $# -gt 0 ] || set -- "$tests"/test_{golden,model,cpu,tokenizer,refusals}.py
cd "$package" # in the tree, Python would find the tree's own build first
PYTHONPATH=$package:$site PYTHONDONTWRITEBYTECODE=1 \
    qemu-aarch64-static -L "$root" "$root/usr/bin/python3.11" -m pytest -q -p no:cacheprovider "$@"
