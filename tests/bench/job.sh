#!/usr/bin/env bash
# The whole job on a device, checked: inflate, finetune (killed and resumed, out of memory, compiled, as one rank of one,
# in fp16), eval, predict, explain, report, probe, on drawn clips. `bash tests/bench/job.sh DEVICE FOLDER [small]`
# Prints one line a check; the commands' own words go to FOLDER/job.log. Exit code 1 if a check failed.
set -u
device=$1 folder=$2 small=${3:-}
repository=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$folder" && cd "$folder" || exit 1
log=$PWD/job.log
: > "$log"
failed=0
# where other work runs beside it, torch's threads on a CPU wait for one another
[ -n "$small" ] && export OMP_NUM_THREADS=1
if [ -n "$small" ]; then big="--size 48 --frames 4 --epochs 1" real="--size 48 --frames 4 --epochs 2 --batch 8"
else big="--size 448 --frames 32 --batch 72 --epochs 1" real="--size 224 --epochs 20 --batch 16"; fi

nlzoo() { python3 -m nlzoo "$@"; }
check() { # NAME EXPECTED-EXIT-CODE COMMAND...
  local name=$1 want=$2 began=$SECONDS code=0
  shift 2
  echo "== $name: $*" >> "$log"
  "$@" >> "$log" 2>&1 < /dev/null || code=$?
  if [ "$code" = "$want" ]; then echo "ok      $name ($((SECONDS - began)) s)"
  else echo "FAILED  $name: exit code $code, not $want"; tail -n 4 "$log" | cut -c1-300; failed=1; fi
}
holds() { # NAME COMMAND...: a condition
  local name=$1
  shift
  if "$@" >> "$log" 2>&1; then echo "ok      $name"; else echo "FAILED  $name"; failed=1; fi
}
killed_and_resumed() {
  python3 -m nlzoo finetune videos --from tiny-nl --size 64 --epochs 6 --lr 3e-3 --name killed --device "$device" &
  local process=$!
  for _ in $(seq 600); do [ "$(wc -l 2>/dev/null < runs/killed/metrics.jsonl)" = 2 ] && break; sleep 0.1; done
  kill -9 $process
  wait $process
  nlzoo finetune videos --from tiny-nl --resume --name killed --device "$device"
}

python3 - <<'EOF' >> "$log" 2>&1
from pathlib import Path

import torch

from nlzoo.apps import draw
from nlzoo.networks import model

draw.write_videos(Path("videos"), draw.DEMO, 24, 0, 24, (96, 128))
torch.save(model.plain_resnet("resnet50").state_dict(), "resnet50.pth")
EOF
video=$(find videos -name '*.mp4' | sort | head -n 1)
on="--device $device"
check "inflate" 0 nlzoo inflate tiny --nl res3:1,res4:1 --name tiny-nl
check "inflate resnet50" 0 nlzoo inflate resnet50 --weights resnet50.pth --nl 5 --name nl5
check "dry run" 0 nlzoo finetune videos --from tiny-nl --size 64 --dry-run $on
check "finetune" 0 nlzoo finetune videos --from tiny-nl --size 64 --epochs 6 --lr 3e-3 --name whole $on
check "killed and resumed" 0 killed_and_resumed
holds "it has all epochs" test "$(wc -l < runs/killed/metrics.jsonl)" = 6
check "fp16" 0 nlzoo finetune videos --from tiny-nl --size 64 --epochs 2 --name half --recipe precision=fp16 $on
check "compiled" 0 nlzoo finetune videos --from tiny-nl --size 64 --epochs 1 --name comp --recipe compile=yes $on
if [ "${device%%:*}" = cuda ]; then check "--gpus 1" 0 nlzoo finetune videos --from tiny-nl --size 64 --epochs 1 --name one --gpus 1
fi
check "resnet50, real size" 0 nlzoo finetune videos --from nl5 $real --name real $on
check "more than memory holds" 0 nlzoo finetune videos --from nl5 $big --name much $on
if [ -z "$small" ] && [ "${device%%:*}" = cuda ]; then holds "it was taken in parts" grep -q '"out_of_memory"' runs/much/events.jsonl; fi
check "eval" 0 nlzoo eval whole videos $on
check "predict" 0 nlzoo predict whole videos --out answers.csv $on
holds "an answer for each" test "$(wc -l < answers.csv)" -ge 97
check "explain" 0 nlzoo explain whole "$video" --out explained $on
check "report" 0 nlzoo report whole $on
check "probe" 0 nlzoo probe nl5 videos $on
check "a device that is not there" 2 nlzoo predict whole "$video" --device cuda:99
python3 - <<'EOF'
import json
from pathlib import Path

for run in ("whole", "killed", "half", "comp", "real"):
    file = Path("runs", run, "metrics.jsonl")
    if file.exists():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        later = lines[1:] or lines  # the first epoch starts processes and searches for kernels
        waited, took = (sum(line[key] for line in later) for key in ("data_seconds", "seconds"))
        clips = sum(line.get("clips", 0) for line in later)
        print(f"  {run}: {len(lines)} epochs, last loss {lines[-1]['train_loss']:.3f}, top-1 {lines[-1]['top1']:.2f}, "
              f"{clips / max(took, 1e-9):.0f} clips a second, {waited / max(took, 1e-9):.1%} waiting for clips")
EOF
exit $failed
