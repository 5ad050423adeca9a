#!/bin/bash
# What a GPU has to show, in 15 minutes at most: bash tests/on_gpu.sh [folder for what it says], in the project's root, in its environment.
# FSD_GLUE and FSD_MODEL name real data and weights, if they are there. Each part has its own limit, so that one that hangs leaves the others.
out=${1:-outputs/gpu}; mkdir -p "$out"; export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
part() { local name=$1 limit=$2; shift 2; echo "== $name"; local t=$SECONDS; timeout "$limit" "$@" >"$out/$name.txt" 2>&1; echo "   ended with $? after $((SECONDS-t)) s"; tail -n "${LINES_OF:-4}" "$out/$name.txt"; }

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1
LINES_OF=60 part times 300 python - <<'PY'
# the cells of the benchmark that define the forms and time them on a GPU
import json
cells = {c['id']: ''.join(c['source']) for c in json.load(open('nbs/benchmark.ipynb', encoding='utf8'))['cells']}
here = dict(display=lambda *o: print(*(x.to_string() if hasattr(x, 'to_string') else x for x in o), sep='\n'))
for i in ('fb60230f', 'c0fba2f3', '64f8d281', '5708e68d', '385e6f3c', '5bbd4c8f', 'gpub', 'gpuc', 'gpue', 'gpui', 'gpuj'): exec(cells[i], here)
PY
LINES_OF=30 part gpu_tests 180 python -m pytest -q -rf tests -m gpu
nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits -lms 200 >"$out/busy.csv" & watch=$!
part mrpc 240 env FSD_OUTPUTS="$out/outputs" papermill nbs/distill.ipynb "$out/mrpc.ipynb" -p task mrpc
kill $watch
LINES_OF=20 part seconds 20 python - "$out" <<'PY'
import json, sys, pathlib
busy = [float(x) for x in (pathlib.Path(sys.argv[1])/'busy.csv').read_text().split()]
print(f'GPU busy {sum(busy)/max(1, len(busy)):.0f} % of the run')
for p in pathlib.Path(sys.argv[1]).rglob('run.json'): print(p, json.loads(p.read_text())['seconds'])
PY
LINES_OF=40 part all_tests 150 python -m pytest -q -rfE --maxfail=40 tests
