#!/usr/bin/env bash
# All that nlzoo promises of a GPU, in one command: `bash tests/bench/gpu.sh [FOLDER] [DEVICE] [small]`
# Parity and the whole job first, then speed and memory, each beside pytorchvideo where NLZOO_PEERS names its source.
# Everything goes to FOLDER, a short table is printed last. `cpu small` proves the script itself where there is no GPU.
set -u
folder=${1:-gpu-bench} device=${2:-cuda} small=${3:-}
cd "$(dirname "$0")/../.." || exit 1
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
[ -n "$small" ] && limit=${limit:-1500}  # a slow CPU; the nine minutes are those of a GPU
bench() { timeout "${limit:-300}" python3 -m tests.bench "$@" --device "$device"; }
if [ -n "$small" ]; then parity=32 shape="--batch 1 --size 48 --frames 4 --rounds 2" long="--size 48 --gib 1"
else parity=64 shape="--batch 16 --size 224 --frames 8 --rounds 5" long="--size 224 --gib 32 --precision bf16"; fi

timeout "${limit:-400}" bash tests/bench/job.sh "$device" "$folder/job" $small > "$folder/job.txt" 2>&1 &
job=$!
bench parity --size $parity > "$folder/parity.txt" 2>&1
echo "exit code $?" >> "$folder/parity.txt"
wait $job
echo "exit code $?" >> "$folder/job.txt"
for precision in bf16 fp32; do
  for network in "NL5 I3D" "I3D" "C2D"; do
    [ "$precision $network" = "fp32 C2D" ] && continue
    compile=$([ "$precision $network" = "bf16 NL5 I3D" ] && [ -z "${NLZOO_NO_COMPILE:-}" ] && echo --compile)
    bench network --network "$network" --precision $precision $shape $compile >> "$folder/network.txt" 2>&1
  done
done
bench memory $long > "$folder/memory.txt" 2>&1
tail -n 100 "$folder/parity.txt" "$folder/job.txt" "$folder/network.txt" "$folder/memory.txt" | grep -v Warning
! grep -q "exit code [1-9]" "$folder/parity.txt" "$folder/job.txt"
