"A training step as it is on a GPU: nobody waits for its numbers, and what is promised of a bad one holds all the same."
import math, warnings
from collections import Counter
from pathlib import Path
import pytest, torch
import fsd.methods, fsd.taught
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainerCallback, TrainingArguments
from conftest import little as tiny, sentences
from fsd.features import LiveTeacher, keep_features
from fsd.forms import lean_form
from fsd.given import DistillationConfig
from fsd.job import NonFinite
from fsd.kept import verify
from fsd.methods import find_method, methods
from fsd.sides import KeptSides
from fsd.rows import collate
from fsd.trainer import DistillationTrainer

rows,memory = sentences(48),torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(0))

@pytest.fixture
def on_a_device(monkeypatch):
    "Tensors deny that they are on a CPU, so that every step is as on a GPU."
    monkeypatch.setattr(torch.Tensor, 'is_cpu', property(lambda x: False), raising=False)

@pytest.fixture
def make(tmp_path):
    "`make(method, …)`: a trainer in the folder `name`; what is not given is usual, settings go by `conf`."
    def make(method='vkd', teacher=None, kind=DistillationTrainer, conf={}, name='out', rows=rows, memory=memory, **kw):
        usual = dict(output_dir=str(tmp_path/name), max_length=16, per_device_train_batch_size=8, num_train_epochs=1, logging_steps=100, save_steps=100, learning_rate=1e-2,
                     disable_tqdm=True, use_cpu=True, report_to='none')
        return kind(tiny(2, 1), teacher or tiny(4), DistillationConfig(**usual | conf), method, memory, rows, **kw)
    return make

def weights(t): return [p.detach().clone() for m in (t.model, t.objective) for p in m.parameters()]
def same(a, b): return all(torch.equal(x, y) for x,y in zip(a, b, strict=True))

# ---------------------------------------------------------------- nothing is read

class Reads(TorchDispatchMode):
    "Counts the operators that read a value back to the host."
    names = '_local_scalar_dense', 'is_nonzero', 'nonzero', 'equal', 'masked_select', 'unique_dim', '_unique2'
    def __init__(self): super().__init__(); self.found = Counter()
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f._schema.name.removeprefix('aten::')
        if name in self.names: self.found[name] += 1
        return f(*args, **(kwargs or {}))

class Watch(TrainerCallback):
    "What is read back between the end of a step and the end of the next, loading a batch included."
    def __init__(self, step=2): self.step,self.reads = step,None
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step==self.step:
            self.reads = Reads()
            self.reads.__enter__()
        elif state.global_step==self.step+1: self.reads.__exit__(None, None, None)

def read_back(trainer):
    watch = Watch()
    trainer.add_callback(watch)
    trainer.train()
    return sum(watch.reads.found.values())

@pytest.fixture
def plain(tmp_path):
    "How much transformers' own trainer reads back in a step."
    def plain(**conf):
        args = TrainingArguments(**dict(output_dir=str(tmp_path/'plain'), per_device_train_batch_size=8, num_train_epochs=1, logging_steps=100, save_strategy='no', disable_tqdm=True, logging_nan_inf_filter=False,
                                        use_cpu=True, report_to='none') | conf)
        return read_back(Trainer(tiny(2, 1), args, collate(0), rows.remove_columns('idx')))
    return plain

accumulating = dict(gradient_accumulation_steps=2, per_device_train_batch_size=4)
steps = [(m, p, {}) for m in ('nods','vkd','fsd_i','fsd_l','fsd_g','rkd','pkd') for p in ('paper','masked')]
steps += [('fsd', p, c) for p in ('paper','masked') for c in ({}, dict(bf16=True), accumulating, dict(max_grad_norm=0))]

@pytest.mark.parametrize('method, padding, conf', steps)
def test_a_step_reads_nothing_back_that_transformers_own_does_not(make, plain, on_a_device, tmp_path, method, padding, conf):
    t = make(method, conf=conf | dict(padding=padding))
    if t.teacher: t = make(method, keep_features(tiny(4), rows, t.objective.needs_t, tmp_path/'kept', padding, 16, 0), conf=conf | dict(padding=padding))
    assert read_back(t)==plain(**conf)

@pytest.mark.parametrize('padding', ['paper', 'masked'])
@pytest.mark.parametrize('method', ['minilm', 'fsd'])
def test_a_live_teacher_reads_nothing_back_that_transformers_own_student_does_not(make, plain, on_a_device, method, padding):
    assert read_back(make(method, conf=dict(padding=padding)))==plain()

def test_on_a_cpu_each_step_is_looked_at(make, plain): assert read_back(make('nods'))>plain()

# ---------------------------------------------------------------- a bad number is found all the same

def none_at(row, value=math.nan):
    "A teacher whose states are broken in the batches with `row`."
    live = LiveTeacher(tiny(4), {('hidden',3)}, 'paper')
    def teacher(batch):
        f = live(batch)
        f.hidden[3][0,0,0] += torch.where(batch['idx']==row, value, 0.).sum()
        return f
    teacher.depth,teacher.width = 4,16
    return teacher

class Bent(DistillationTrainer):
    "The gradient of the fourth step is none, though its loss is finite."
    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        if self.state.global_step==3: next(model.parameters()).grad[0,0] = math.inf
        return loss

def ending(trainer, resume=None):
    "What is said of the bad step, and all that its checkpoint holds but random states and times."
    with pytest.raises(NonFinite) as e: trainer.train(resume)
    folder = max(Path(trainer.args.output_dir).glob('checkpoint-*'), key=lambda p: int(p.name.split('-')[1]))
    verify(folder)
    state = torch.load(folder/'optimizer.pt'),torch.load(folder/'scheduler.pt'),load_file(folder/'model.safetensors'),load_file(folder/'objective.safetensors')
    return str(e.value).replace(trainer.args.output_dir, ''), folder.name, state

def flat(x):
    if isinstance(x, dict): return [z for k in x for z in (k, *flat(x[k]))]
    if isinstance(x, (list,tuple)): return [z for y in x for z in flat(y)]
    return [x.tolist()] if isinstance(x, torch.Tensor) else [x]

bad = {'a term': dict(method='fsd', teacher=none_at(17)), 'a term, infinite': dict(method='fsd', teacher=none_at(17, math.inf)), 'a gradient': dict(kind=Bent),
       'accumulated': dict(method='fsd_il', teacher=none_at(17), conf=dict(gradient_accumulation_steps=3, per_device_train_batch_size=2)),
       'not clipped': dict(kind=Bent, conf=dict(max_grad_norm=0)), 'a gradient, accumulated': dict(kind=Bent, conf=dict(gradient_accumulation_steps=2, per_device_train_batch_size=4, num_train_epochs=2)),
       'by sgd': dict(kind=Bent, conf=dict(optim='sgd')), 'in bf16': dict(method='fsd', teacher=none_at(17), conf=dict(bf16=True)),
       'weights': dict(conf=dict(learning_rate=1e30)), 'a schedule': dict(kind=Bent, conf=dict(lr_scheduler_type='cosine_with_restarts', warmup_steps=2))}

loggings = dict(logging_steps=5), dict(logging_strategy='no', save_steps=5), dict(eval_strategy='steps', eval_steps=5)

@pytest.mark.parametrize('how, logging', [(h, {}) for h in bad] + [(h, l) for h in ('a term','a gradient') for l in loggings])
def test_a_bad_number_is_told_with_its_step_and_leaves_the_state_before_it(make, monkeypatch, how, logging):
    given = bad[how] | dict(conf=dict(save_steps=1 if how=='weights' else 100) | bad[how].get('conf', {}) | logging)
    if 'eval_strategy' in logging: given['eval_dataset'] = rows.select(range(8))
    at_once = ending(make(name='at once', **given))
    monkeypatch.setattr(torch.Tensor, 'is_cpu', property(lambda x: False), raising=False)
    with warnings.catch_warnings(record=True) as said, lean_form(False): # losses as on a CPU, bit for bit
        warnings.simplefilter('always')
        later = ending(make(name='later', **given))
    assert at_once[:2]==later[:2] and flat(at_once[2])==flat(later[2])
    assert any('SGD is not fused' in str(w.message) for w in said)==(how=='by sgd')

def test_a_sound_training_is_the_same_whether_its_numbers_are_looked_at_or_not(make, monkeypatch):
    def trained(name):
        t = make('fsd', name=name, conf=dict(num_train_epochs=2, logging_steps=5, save_steps=4))
        t.train()
        return weights(t), [{k:v for k,v in l.items() if not k.startswith('train_')} for l in t.state.log_history]
    a = trained('at once')
    monkeypatch.setattr(torch.Tensor, 'is_cpu', property(lambda x: False), raising=False)
    with lean_form(False): b = trained('later') # losses as on a CPU, bit for bit
    assert same(a[0], b[0]) and a[1]==b[1]

def test_the_training_goes_on_from_before_the_bad_number(make, on_a_device):
    with pytest.raises(NonFinite, match='checkpoint-'): make('fsd', none_at(17), conf=dict(num_train_epochs=2)).train()
    t = make('fsd', none_at(-1), conf=dict(num_train_epochs=2))
    assert t.train(True).global_step==12 and all(math.isfinite(v) for l in t.state.log_history for v in l.values())

def test_an_optimizer_that_was_given_is_given_back_without_the_flag(make, on_a_device):
    t = make('vkd')
    t.train()
    assert t.unread is None and not hasattr(t.optimizer.optimizer, 'found_inf')
    t.optimizer.optimizer.step() # no gradients: nothing happens

# ---------------------------------------------------------------- a bad number in any term

own = {n:m for m in methods if find_method(m).student=='lower' and not find_method(m).schedule for n in find_method(m).spelled(2)}

@pytest.mark.parametrize('term', own)
def test_a_bad_number_is_found_in_each_term_of_the_lean_form_and_named(make, on_a_device, term):
    t = make(own[term], conf=dict(max_steps=5))
    usual,step = t.objective.terms[term],lambda: t.state.global_step
    t.objective.terms[term] = lambda s, teacher, labels: usual(s, teacher, labels)*(math.nan if step()==3 else 1)
    with pytest.raises(NonFinite, match=rf"step 4: the loss is nan because of '{term}'.*kept in .*checkpoint-3$"): t.train()
    assert all(p.isfinite().all() for p in weights(t)) and verify(Path(t.args.output_dir)/'checkpoint-3')['step']==3

# ---------------------------------------------------------------- what a step needs of a teacher

@pytest.mark.parametrize('padding', ['paper', 'masked'])
@pytest.mark.parametrize('method', ['fsd_i', 'fsd_l', 'fsd_g', 'fsd'])
@pytest.mark.parametrize('on', ['a CPU', 'a device'])
def test_a_training_by_sides_is_that_by_states(make, monkeypatch, tmp_path, method, padding, on):
    if on=='a device': monkeypatch.setattr(torch.Tensor, 'is_cpu', property(lambda x: False), raising=False)
    wide = dict(hidden_size=64) # so that a structure is less than the states
    def trained(sides, resume=None):
        t = make(method, kept, name=str(sides), conf=dict(padding=padding, sides=sides, learning_rate=1e-3, save_steps=3), memory=centroids)
        seen,t.log = [],lambda logs, *a, log=t.log: (seen.append(t.teacher), log(logs, *a))
        t.train(resume)
        assert {isinstance(x, KeptSides) for x in seen}=={sides is not False} and t.teacher is kept
        return weights(t), [v for l in t.state.log_history for k,v in l.items() if k in ('loss','ce','kd','intra','local','global')]
    kept,centroids = keep_features(tiny(4, **wide), rows, {('hidden',3)}, tmp_path/'kept', padding, 16, 0),torch.randn(5, 16, 64)
    a,b = trained(False),trained(True)
    assert len(a[1])>=6 and a[1]==pytest.approx(b[1], rel=2e-3, abs=1e-4) # weights follow the signs of gradients near 0
    if on=='a device': assert same(trained(None)[0], b[0])
    assert same(trained(True, True)[0], b[0]) # its last checkpoint is of this training, and there is nothing left to do

# ---------------------------------------------------------------- nothing is mixed

def tensors(*x): return [o for o in tree_leaves(x) if isinstance(o, torch.Tensor)]

class Operators(TorchDispatchMode):
    "Knows which storages lie on a device that a CPU plays, and what took tensors from there and from the host at once, which only scalars may."
    copies,strict = {'copy_', '_to_copy'}, {'stack', 'cat', 'dot', 'mm', 'bmm', '_fused_adamw_', '_amp_foreach_non_finite_check_and_unscale_'}
    def __init__(self): super().__init__(); self.there,self.held,self.mixed = set(),[],[]
    def has(self, x): return x.untyped_storage()._cdata in self.there
    def put(self, x):
        if not self.has(x): self.there.add(x.untyped_storage()._cdata); self.held.append(x.untyped_storage())
        return x
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name,given = f._schema.name.removeprefix('aten::'),tensors(args, kwargs)
        on = [self.has(x) for x in given]
        out = f(*args, **(kwargs or {}))
        if not any(on) or name in self.copies and not on[-1]: return out
        if name not in self.copies and not all(o or x.ndim==0 and name not in self.strict for o,x in zip(on, given)): self.mixed.append(name)
        for x in tensors(out): self.put(x)
        return out

class Moves(TorchFunctionMode):
    "A tensor that is made on, or sent to, a `torch.device` lies on the device; a name such as 'cpu' is the host's."
    def __init__(self, operators): super().__init__(); self.operators = operators
    def __torch_function__(self, f, types, args=(), kwargs=None):
        out,name = f(*args, **(kwargs or {})),getattr(f, '__name__', '')
        new = name=='new_tensor' and self.operators.has(args[0])
        if isinstance(out, torch.Tensor) and (new or any(isinstance(x, torch.device) for x in (*args, *(kwargs or {}).values()))):
            out = self.operators.put(out.clone() if args and out is args[0] else out)
        return out

def mixed(make, method, kept=None, break_it=None, **conf):
    "What mixed host and device in a training; it has to have come to the device."
    t = make(method, kept, conf=dict(max_steps=4, logging_steps=3) | conf)
    if break_it: break_it(t)
    fsd.methods._on_device.clear() # weights that another test sent there
    with Operators() as operators, Moves(operators):
        for m in (t.model, t.objective, getattr(t.teacher, 'model', t.model)): m.to(t.args.device)
        t.train()
    assert all(operators.has(p) for p in t.model.parameters()) and len(operators.there)>1000
    return operators.mixed

@pytest.mark.parametrize('padding', ['paper', 'masked'])
@pytest.mark.parametrize('method', ['nods', 'vkd', 'fsd', 'rkd', 'pkd', 'minilm', 'rcka', 'sp']) # what ckd makes anew in its backward pass is not seen by `Moves`
def test_a_step_keeps_to_its_device(make, on_a_device, method, padding): assert mixed(make, method, padding=padding)==[]

@pytest.mark.parametrize('room', [0, 10**9])
@pytest.mark.parametrize('padding', ['paper', 'masked'])
@pytest.mark.parametrize('method, sides', [('fsd', None), ('fsd', False), ('pkd', None)])
def test_so_do_kept_features_and_what_is_made_of_them(make, on_a_device, monkeypatch, tmp_path, method, sides, padding, room):
    monkeypatch.setattr(fsd.taught, '_free', lambda device: room)
    kept = keep_features(tiny(4), rows, make(method).objective.needs_t, tmp_path/'kept', padding, 16, 0)
    assert mixed(make, method, kept, padding=padding, sides=sides)==[]

def test_mixing_is_seen(make, on_a_device):
    def break_it(t):
        usual = t.objective.terms['ce']
        t.objective.terms['ce'] = lambda s, teacher, labels: usual(s, teacher, labels) + (s.logits*torch.ones(2)).sum()
    assert set(mixed(make, 'nods', break_it=break_it))=={'mul'}
