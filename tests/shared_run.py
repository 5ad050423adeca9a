"""Trains a student by each method, in as many processes as there are, and saves losses and weights.

    python tests/shared_run.py FOLDER [METHOD ...] [-p KEY=VALUE ...]
    torchrun --nproc_per_node 2 tests/shared_run.py FOLDER ...

`KEY` is a parameter of `train` or a field of `DistillationConfig`. `tests/test_processes.py` and the chapter `nbs/10_together.ipynb` compare the two.
"""
import argparse, json, os, sys
from pathlib import Path
os.environ.setdefault('ACCELERATE_USE_CPU', '1')
sys.path.insert(0, str(Path(__file__).parent))
from conftest import little, sentences
import torch
from safetensors.torch import save_file
from transformers import PrinterCallback
from fsd import DistillationConfig, DistillationTrainer, Inheritance
from fsd.methods import methods
from fsd.machine import processes
from fsd.processes import number, leave

def train(out:Path, method:str, batch=8, rows=21, accumulate=1, double=False, epochs=2, **knobs):
    "Write losses of every step and the weights in the end; `rows` in batches of `batch`, whatever the number of processes."
    still = dict(hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    args = DistillationConfig(str(out/'checkpoints'), per_device_train_batch_size=batch//processes(), gradient_accumulation_steps=accumulate, num_train_epochs=epochs,
        max_length=16, logging_steps=1, learning_rate=1e-3, disable_tqdm=True, use_cpu=True, report_to='none', save_strategy='no', seed=3, **knobs)
    s,own = little(2, seed=1, **still),{}
    torch.manual_seed(5)
    memory = torch.randn(5, 16, 16)
    if method=='wid':
        w = Inheritance(little(4, **still).double() if double else little(4, **still))
        s,own = w.model,dict(callbacks=[w], parameter_groups=w.parameter_groups)
    trainer = DistillationTrainer(s.double() if double else s, little(4).double() if double else little(4), args, method, memory, sentences(rows), **own)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if number(): return
    out.mkdir(parents=True, exist_ok=True)
    (out/f'{method}.json').write_text(json.dumps([l for l in trainer.state.log_history if 'loss' in l]))
    weights = dict(trainer.model.named_parameters()) | {f'learned.{n}':p for n,p in trainer.objective.named_parameters()}
    save_file({n:p.detach().clone().contiguous() for n,p in weights.items()}, out/f'{method}.safetensors')

def value(text):
    try: return json.loads(text)
    except ValueError: return text

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('folder', type=Path)
    p.add_argument('methods', nargs='*')
    p.add_argument('-p', nargs='*', default=[])
    a = p.parse_args()
    for m in a.methods or methods: train(a.folder, m, **{k:value(v) for k,v in (o.split('=') for o in a.p)})
    leave()
