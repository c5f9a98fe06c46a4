#!/bin/bash
# Write the lock files of the images anew: newest versions that pyproject.toml allows, with hashes. Needs uv.
#
#   pip install uv && deploy/docker/lock.sh
#
# requirements.cuda.txt holds all of the CUDA image; requirements.cpu.txt all of the CPU image but torch, whose CPU build
# has an index of its own; requirements.build.txt what makes the wheel. Build an image and run its tests before the
# changes are merged.

set -euo pipefail
cd "$(dirname "$0")/../.."
torch=$(sed -n 's/^ARG TORCH=//p' deploy/docker/Dockerfile)
extras=(--extra hub --extra s3 --extra maps --extra diffusers)
common=(--generate-hashes --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28
  --custom-compile-command deploy/docker/lock.sh --upgrade --quiet)
cuda_only=(torch triton setuptools cuda-bindings cuda-core cuda-pathfinder cuda-toolkit)
mapfile -t nvidia < <(echo "torch==$torch" | uv pip compile - --python-version 3.11 --no-annotate --no-header --quiet \
  --python-platform x86_64-manylinux_2_28 | sed -n 's/^\(nvidia-[a-z0-9-]*\)==.*/\1/p')
left_out=()
for name in "${cuda_only[@]}" "${nvidia[@]}"; do left_out+=(--no-emit-package "$name"); done

lock() { # the file, then further options of uv
  uv pip compile pyproject.toml "${extras[@]}" "${common[@]}" --constraint <(echo "torch==$torch") "${@:2}" \
    --output-file "deploy/docker/$1" >/dev/null
}
lock requirements.cpu.txt "${left_out[@]}"
lock requirements.cuda.txt --extra cuda
sed -n 's/^requires = \["\(.*\)"\]/\1/p' pyproject.toml |
  uv pip compile - "${common[@]}" --output-file deploy/docker/requirements.build.txt >/dev/null
