#!/usr/bin/env bash
# The whole job on a device, checked: inflate, finetune (killed and resumed, out of memory, compiled, as one rank of one,
# in fp16), eval, predict, explain, report, probe, on drawn clips. `bash tests/bench/job.sh DEVICE FOLDER [small]`
# Prints one line a check; the commands' own words go to FOLDER/logs. Exit code 1 if a check failed. With eight cores or
# more, what does not depend on one another runs at once.
set -u
device=$1 folder=$2 small=${3:-}
repository=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$folder/logs" && cd "$folder" || exit 1
rm -f failed
# where other work runs beside it, torch's threads on a CPU wait for one another
[ -n "$small" ] && export OMP_NUM_THREADS=1
if [ -n "$small" ]; then big="--size 48 --frames 4 --epochs 1" real="--size 48 --frames 4 --epochs 2 --batch 8"
else big="--size 448 --frames 32 --batch 72 --epochs 1" real="--size 224 --epochs 12 --batch 16"; fi

nlzoo() { python3 -m nlzoo "$@"; }
check() { # NAME EXPECTED-EXIT-CODE COMMAND...
  local name=$1 want=$2 log=logs/${1// /-} began=$SECONDS code=0
  shift 2
  "$@" > "$log" 2>&1 < /dev/null || code=$?
  if [ "$code" = "$want" ]; then echo "ok      $name ($((SECONDS - began)) s)"
  else
    echo "FAILED  $name: exit code $code, not $want: $(tail -n 3 "$log" | cut -c1-300)"
    touch failed
  fi
}
beside() { if [ "$(nproc)" -ge 8 ]; then check "$@" & else check "$@"; fi; }
holds() { # NAME COMMAND...: a condition
  local name=$1
  shift
  if "$@" > /dev/null 2>&1; then echo "ok      $name"; else echo "FAILED  $name"; touch failed; fi
}
tiny() { # NAME OPTIONS...
  nlzoo finetune videos --from tiny-nl --size 64 --lr 3e-3 --name "$@"
}
killed_and_resumed() {
  python3 -m nlzoo finetune videos --from tiny-nl --size 64 --lr 3e-3 --name killed --epochs 6 --device "$device" &
  local process=$!
  for _ in $(seq 600); do
    [ "$(grep -vc '"epoch": 0,' runs/killed/metrics.jsonl 2> /dev/null || true)" -ge 2 ] 2> /dev/null && break
    sleep 0.1
  done
  kill -9 $process
  wait $process
  nlzoo finetune videos --from tiny-nl --resume --name killed --device "$device"
}

python3 - > logs/draw 2>&1 <<'EOF'
from pathlib import Path

import torch

from nlzoo.apps import draw
from nlzoo.networks import model

draw.write_videos(Path("videos"), draw.DEMO, 24, 0, 24, (96, 128))
torch.save(model.plain_resnet("resnet50").state_dict(), "resnet50.pth")
EOF
video=$(find videos -name '*.mp4' | sort | head -n 1)
on="--device $device"
beside "inflate" 0 nlzoo inflate tiny --nl res3:1,res4:1 --name tiny-nl
beside "inflate resnet50" 0 nlzoo inflate resnet50 --weights resnet50.pth --nl 5 --name nl5
beside "a device that is not there" 2 nlzoo predict tiny-nl "$video" --device cuda:99
wait
beside "dry run" 0 nlzoo finetune videos --from tiny-nl --size 64 --dry-run $on
beside "finetune" 0 tiny whole --epochs 6 $on
beside "killed and resumed" 0 killed_and_resumed
# a CPU emulates fp16, for minutes
[ "$device" = cpu ] || beside "fp16" 0 tiny half --epochs 2 --recipe precision=fp16 $on
beside "compiled" 0 tiny comp --epochs 1 --recipe compile=yes $on
if [ "${device%%:*}" = cuda ]; then beside "one rank" 0 tiny one --epochs 1 --gpus 1; fi
beside "resnet50 of real size" 0 nlzoo finetune videos --from nl5 $real --name real $on
beside "more than memory holds" 0 nlzoo finetune videos --from nl5 $big --name much $on
beside "probe" 0 nlzoo probe nl5 videos $on
wait
# epoch 0 is the linear probe of the start
holds "the killed run has all epochs" test "$(grep -vc '"epoch": 0,' runs/killed/metrics.jsonl)" = 6
if [ -z "$small" ] && [ "${device%%:*}" = cuda ]; then
  holds "the large batch was taken in parts" grep -q '"out_of_memory"' runs/much/events.jsonl
fi
beside "eval" 0 nlzoo eval whole videos $on
beside "predict" 0 nlzoo predict whole videos --out answers.csv $on
beside "explain" 0 nlzoo explain whole "$video" --out explained $on
beside "report" 0 nlzoo report whole $on
wait
holds "an answer for each video" test "$(wc -l < answers.csv)" -ge 97
python3 - <<'EOF'
import json
from pathlib import Path

for run in ("whole", "killed", "half", "comp", "one", "real", "much"):
    file = Path("runs", run, "metrics.jsonl")
    if file.exists():
        lines = [line for line in map(json.loads, file.read_text().splitlines()) if line["epoch"]]
        later = lines[1:] or lines  # the first epoch starts processes and searches for kernels
        waited, took, clips = (sum(line[key] for line in later) for key in ("data_seconds", "seconds", "clips"))
        last = lines[-1]
        figures = f"{clips / max(took, 1e-9):.0f} clips a second, {waited / max(took, 1e-9):.1%} of it waiting for clips"
        print(f"  {run}: {len(lines)} epochs, loss {last['train_loss']:.3f}, top-1 {last['top1']:.2f}, {figures}")
EOF
[ ! -e failed ]
