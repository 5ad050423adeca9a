"""Trains the student of each method, in as many processes as there are, and saves losses and weights: for test_processes.py.

    python tests/shared_run.py FOLDER [-p KEY=VALUE ...] [METHOD ...]        one process; after torchrun --nproc_per_node 2, two
"""
import argparse, json, os, sys, tempfile
from pathlib import Path
os.environ.setdefault('ACCELERATE_USE_CPU', '1')
sys.path.insert(0, str(Path(__file__).parent))
from conftest import little, sentences
import torch
from safetensors.torch import save_file
from transformers import PrinterCallback, TrainerCallback
from fsd import DistillationConfig, DistillationTrainer, Inheritance, methods
from fsd.processes import number

def student_of(method, double, wide=16):
    s = little(2, seed=1, hidden_dropout_prob=0., attention_probs_dropout_prob=0., hidden_size=wide)
    return s.double() if double else s

def train(out:Path, method:str, batch=8, rows=21, accumulate=1, double=False, steps=-1, epochs=2, resume=False, world=None, **knobs):
    "Losses of every step and weights in the end, of `rows` rows in batches of `batch`, whatever the number of processes."
    world = int(os.environ.get('WORLD_SIZE', 1))
    folder = knobs.pop('folder', None) or str(out/'checkpoints')
    args = DistillationConfig(folder, per_device_train_batch_size=batch//world, num_train_epochs=epochs, max_steps=steps, max_length=16, logging_steps=1,
        learning_rate=1e-3, gradient_accumulation_steps=accumulate, disable_tqdm=True, use_cpu=True, report_to='none', save_strategy='no', seed=3, **knobs)
    teacher,s = little(4),student_of(method, double)
    if double: teacher = teacher.double()
    torch.manual_seed(5)
    memory = torch.randn(5, 16, 16)
    own = dict(memory=memory, train_dataset=sentences(rows))
    if method=='wid':
        t = little(4, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
        w = Inheritance(t.double() if double else t)
        s,own = w.model,own|dict(callbacks=[w], parameter_groups=w.parameter_groups)
    trainer = DistillationTrainer(s, teacher, args, method, **own)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if number(): return
    losses = [{k:v for k,v in l.items() if k in trainer.objective.terms or k in ('loss','grad_norm')} for l in trainer.state.log_history if 'loss' in l]
    out.mkdir(parents=True, exist_ok=True)
    (out/f'{method}.json').write_text(json.dumps(losses))
    learned = {f'learned.{n}':p.detach().contiguous() for n,p in trainer.objective.named_parameters()}
    save_file({n:p.detach().clone().contiguous() for n,p in trainer.model.named_parameters() if 'distillation' not in n} | learned, out/f'{method}.safetensors')

def value(text):
    try: return json.loads(text)
    except ValueError: return text

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('folder', type=Path)
    p.add_argument('methods', nargs='*')
    p.add_argument('-p', action='append', default=[])
    a = p.parse_args()
    given = {k:value(v) for k,v in (o.split('=') for o in a.p)}
    for m in a.methods or methods.methods: train(a.folder, m, **given)
