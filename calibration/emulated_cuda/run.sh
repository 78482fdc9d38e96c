#!/bin/sh
# run.sh ARGS...: python ARGS on the emulated CUDA device. Builds it first if need be.
#   FAKECUDA_PYTHON  python of an environment with the CUDA build of torch (default: python3)
#   FAKECUDA_LIB     folder of the built library (default: build/ here)
# The variables that select the card are in README.md.
here=$(cd "$(dirname "$0")" && pwd)
python=${FAKECUDA_PYTHON:-python3}
lib=${FAKECUDA_LIB:-$here/build}
[ -e "$lib/libnvidia-ml.so.1" ] || make -s -C "$here" PY="$python" BUILD="$lib" >&2 || exit 1
export LD_PRELOAD="$lib/libfakecuda.so${LD_PRELOAD:+:$LD_PRELOAD}"
export LD_LIBRARY_PATH="$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export TRITON_LIBCUDA_PATH="$lib"
exec "$python" "$@"
