"What must hold on a GPU, tried on the CPU too: losses, kept features, k-means, training, and a whole run. `pytest tests -m gpu` where there is one."
import contextlib, math, subprocess, sys, warnings
import pytest, torch
from conftest import root
from fsd import runs
from fsd.clusters import assign, kmeans
from fsd.compare import cka_map
from fsd.experiment import Experiment
from fsd.features import LiveTeacher, keep_features
from fsd.job import NonFinite
from fsd.losses import intra, local
from fsd.machine import compiling
from fsd.memory import GlobalStructure
from fsd.methods import find_method
from fsd.rows import collate
from fsd.taught import Held, Taught, hold
from test_device import Bent, Reads, memory, none_at, rows, tiny
from fsd.given import DistillationConfig
from fsd.trainer import DistillationTrainer
from transformers import Trainer, TrainerCallback, TrainingArguments

@pytest.fixture
def make(tmp_path, device):
    "`make(method, …)`: a trainer on `device`, without dropout, in the folder `name`."
    def make(method='fsd', teacher=None, kind=DistillationTrainer, conf={}, name='out', student=None, **kw):
        usual = dict(output_dir=str(tmp_path/name), max_length=16, per_device_train_batch_size=8, num_train_epochs=2, logging_steps=100, save_steps=4, learning_rate=1e-3,
                     disable_tqdm=True, use_cpu=device.type=='cpu', report_to='none', dataloader_pin_memory=device.type!='cpu')
        student = student or tiny(2, 1, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
        return kind(student, teacher or tiny(4), DistillationConfig(**usual | conf), method, memory, rows, **kw)
    return make

def weights(t): return [p.detach().cpu() for m in (t.model, t.objective) for p in m.parameters()]
def close(a, b, **kw):
    for x,y in zip(a, b, strict=True): torch.testing.assert_close(x, y, **dict(rtol=1e-3, atol=1e-4) | kw)

# ---------------------------------------------------------------- losses

def states(seed, shared, n=6, l=10, d=24):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, l, d, generator=g, dtype=torch.float64) + shared*torch.randn(d, generator=g, dtype=torch.float64)

losses = {'intra': lambda s,t,m,**kw: intra(s, t, m, **kw), 'local': lambda s,t,m,**kw: local(s, t, m, **kw),
          'global': lambda s,t,m,**kw: GlobalStructure(states(3, 0, 7).to(s), **kw).to(s.device).to(s.dtype)(s, t, m)}

@pytest.mark.parametrize('bf16', [False, True])
@pytest.mark.parametrize('shared', [0, 50])
@pytest.mark.parametrize('debiased', [False, True])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('name', losses)
def test_a_loss_and_its_gradient_are_those_of_double_precision_on_the_cpu(device, name, masked, debiased, shared, bf16):
    mask = (torch.arange(10)<torch.tensor([10,4,7,10,5,9])[:,None]) if masked else None
    s,t = states(0, shared),states(1, shared)
    def value(s, t, m, bf16=False):
        s = s.clone().requires_grad_()
        with torch.autocast(s.device.type, torch.bfloat16, enabled=bf16): loss = losses[name](s, t, m, debiased=debiased)
        return loss.detach(), torch.autograd.grad(loss, s)[0]
    want,dwant = value(s, t, mask)
    got,dgot = value(s.float().to(device), t.float().to(device), mask if mask is None else mask.to(device), bf16)
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-4, atol=1e-4)
    assert (dgot.cpu().double()-dwant).norm()<=1e-3*dwant.norm()

# ---------------------------------------------------------------- features and clusters

@pytest.mark.parametrize('padding, length', [('paper', 16), ('masked', 12)])
def test_kept_held_and_live_are_one_teacher(device, tmp_path, monkeypatch, padding, length):
    model,needs = tiny(4).to(device),{('hidden',-2), ('cls',2)}
    kept = keep_features(model, rows, needs, tmp_path/'kept', padding, 16, 0)
    def on_device(batch): return {k:v.to(device) if k!='taught' else {n:x.to(device) for n,x in v.items()} for k,v in batch.items()}
    some = [rows[i] for i in (7,3,12,3)]
    batch = on_device(Taught(collate(0, length), kept)(some))
    a,live = kept(batch),LiveTeacher(model, needs, padding)(batch)
    kept.held = Held(kept, device)
    b = kept(on_device(Taught(collate(0, length), kept)(some)))
    for x,y in ((a.logits, b.logits), (a.hidden[3], b.hidden[3]), (a.cls[2], b.cls[2])): assert torch.equal(x, y) and x.device.type==device.type
    torch.testing.assert_close(a.logits, live.logits)
    torch.testing.assert_close(a.hidden[3], live.hidden[3], rtol=2**-11, atol=1e-3)
    assert hold(kept, device)==(device.type!='cpu')

@pytest.mark.parametrize('road', ['gram', 'streaming'])
def test_k_means_finds_clusters_as_good_as_the_cpus(device, road):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 40, generator=g)[torch.arange(300)%12]*4 + torch.randn(300, 40, generator=g)
    a,b = kmeans(x, 12, road=road),kmeans(x.to(device) if road=='gram' else x, 12, road=road, device=device)
    assert b.centroids.device.type=='cpu' and b.inertia==pytest.approx(a.inertia, rel=1e-3)
    assert torch.equal(assign(x, b.centroids, device=device)[0], b.assignment)

def test_a_cka_map_is_that_of_the_cpu(device):
    t,m = states(0, 1, 16).float(),states(1, 1, 16).float()
    mask = torch.ones(16, 10); mask[::3,6:] = 0
    for k,pixels in cka_map(t, m, 8, mask, device=device).items(): torch.testing.assert_close(torch.from_numpy(pixels), torch.from_numpy(cka_map(t, m, 8, mask)[k]), rtol=1e-4, atol=1e-4)

# ---------------------------------------------------------------- training

@pytest.mark.parametrize('padding', ['paper', 'masked'])
@pytest.mark.parametrize('method', ['fsd', 'rkd', 'pkd'])
def test_a_kept_and_a_live_teacher_teach_the_same(make, device, tmp_path, method, padding):
    def trained(teacher, name, share=.25):
        t = make(method, teacher, conf=dict(padding=padding, device_share=share, num_train_epochs=1), name=name)
        t.train()
        return weights(t)
    t = make(method, conf=dict(padding=padding))
    kept = keep_features(tiny(4).to(device), rows, t.objective.needs_t, tmp_path/'kept', padding, 16, 0)
    held,sent,live = trained(kept, 'held'),trained(kept, 'sent', 0.),trained(tiny(4), 'live')
    close(held, sent)
    close(held, live, rtol=1e-2, atol=2e-3)
    assert kept.held is None

class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step==6: raise KeyboardInterrupt

@pytest.mark.parametrize('conf', [{}, dict(bf16=True), dict(gradient_accumulation_steps=2, per_device_train_batch_size=4)])
def test_killed_and_resumed(make, conf):
    whole = make(conf=conf, name='whole')
    whole.train()
    with pytest.raises(KeyboardInterrupt): make(conf=conf, callbacks=[Stop()]).train()
    t = make(conf=conf)
    t.train(True)
    close(weights(whole), weights(t))

@pytest.mark.parametrize('precision', [{}, dict(bf16=True), dict(fp16=True)])
@pytest.mark.parametrize('how', [dict(teacher=none_at(17)), dict(kind=Bent)])
def test_a_bad_number_is_told_with_its_step(make, device, how, precision):
    if 'fp16' in precision and (device.type!='cuda' or 'kind' in how): pytest.skip('a scaler may be what broke a gradient, and there is none on a CPU')
    before = [p.detach().clone() for p in tiny(2, 1).parameters()]
    with pytest.raises(NonFinite, match=r"step \d: .*(because of '(intra|local|global)'|the gradient is).*checkpoint-\d$"): make('fsd', conf=dict(save_steps=100, **precision), **how).train()

class Waits(TrainerCallback):
    "How often the host waits for the device between the end of a step and the end of the next but one; on a CPU, how often it would."
    def __init__(self, device): self.device,self.n = device,None
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step==3:
            self.stack = contextlib.ExitStack()
            if self.device.type=='cuda':
                self.said = self.stack.enter_context(warnings.catch_warnings(record=True))
                warnings.simplefilter('always')
                torch.cuda.set_sync_debug_mode('warn')
            else: self.reads = self.stack.enter_context(Reads())
        elif state.global_step==5:
            if self.device.type=='cuda':
                torch.cuda.set_sync_debug_mode('default')
                self.n = sum('synchroniz' in str(w.message) for w in self.said)
            else: self.n = sum(self.reads.found.values())
            self.stack.close()

@pytest.mark.parametrize('conf', [{}, dict(gradient_accumulation_steps=2, per_device_train_batch_size=4)])
@pytest.mark.parametrize('padding', ['paper', 'masked'])
@pytest.mark.parametrize('method', ['nods', 'vkd', 'fsd', 'fsd_g', 'rkd', 'pkd'])
def test_no_step_waits_for_what_a_plain_one_does_not(make, device, tmp_path, monkeypatch, method, padding, conf):
    if device.type=='cpu': monkeypatch.setattr(torch.Tensor, 'is_cpu', property(lambda x: False), raising=False)
    def waits(trainer):
        trainer.add_callback(watch := Waits(device))
        trainer.train()
        return watch.n
    args = TrainingArguments(str(tmp_path/'plain'), num_train_epochs=2, logging_steps=100, save_strategy='no', disable_tqdm=True, use_cpu=device.type=='cpu', report_to='none',
                             logging_nan_inf_filter=False, dataloader_pin_memory=device.type!='cpu', **dict(per_device_train_batch_size=8) | conf)
    plain = waits(Trainer(tiny(2, 1), args, collate(0), rows.remove_columns('idx')))
    t = make(method, conf=conf | dict(padding=padding, save_steps=100))
    kept = keep_features(tiny(4).to(device), rows, t.objective.needs_t, tmp_path/'kept', padding, 16, 0) if t.teacher else None
    assert waits(make(method, kept, conf=conf | dict(padding=padding, save_steps=100)))<=plain

@pytest.mark.parametrize('padding', ['paper', 'masked'])
@pytest.mark.parametrize('method', ['nods', 'fsd', 'rkd', 'pkd'])
def test_a_compiled_step_learns_the_same_in_few_graphs(make, device, tmp_path, monkeypatch, method, padding):
    from torch._dynamo.utils import counters
    t = make(method, conf=dict(padding=padding))
    kept = keep_features(tiny(4).to(device), rows, t.objective.needs_t, tmp_path/'kept', padding, 16, 0) if t.teacher else None
    if device.type=='cpu': monkeypatch.setattr(torch.Tensor, 'is_cpu', property(lambda x: False), raising=False)
    def trained(**conf):
        t = make(method, kept, conf=dict(padding=padding, num_train_epochs=1, max_steps=4, logging_steps=1, **conf), name=str(len(conf)))
        t.train()
        return [l['loss'] for l in t.state.log_history if 'loss' in l]
    plain = trained()
    counters.clear()
    assert trained(torch_compile=True, torch_compile_backend='aot_eager')==pytest.approx(plain, abs=1e-3)
    assert not counters['graph_break'] and 1<=counters['stats']['unique_graphs']<=2

@pytest.mark.gpu
@pytest.mark.parametrize('compiled', ['yes', 'graphs'])
@pytest.mark.parametrize('method', ['fsd', 'rkd', 'pkd'])
def test_a_step_compiled_or_captured_for_a_gpu_learns_the_same(make, device, tmp_path, method, compiled):
    if device.type!='cuda': pytest.skip('graphs are captured on CUDA alone')
    kept = keep_features(tiny(4).to(device), rows, make(method).objective.needs_t, tmp_path/'kept', 'paper', 16, 0)
    def trained(**conf):
        t = make(method, kept, conf=dict(num_train_epochs=2, logging_steps=1, **conf), name=str(len(conf)))
        t.train()
        return [l['loss'] for l in t.state.log_history if 'loss' in l]
    assert trained(**compiling(compiled, device, find_method(method)))==pytest.approx(trained(), abs=1e-2)

# ---------------------------------------------------------------- a run

def test_a_whole_run(device, outputs, tiny_bert):
    asked = dict(model=str(tiny_bert), data='demo', max_length=32, memory_size=8, train_examples=48, batch_size=8, teacher_epochs=1, epochs=1, teacher_lr=1e-3, lr=1e-3, log_every=3)
    exp = Experiment('wnli', 'fsd', device=device.type, **asked)
    run = exp.run()
    assert exp.device.type==device.type and next(exp.student.parameters()).device.type==device.type
    assert [h['step'] for h in run.record['history']]==[3,6] and all(math.isfinite(v) for h in run.record['history'] for v in h.values())
    assert run.record['analysis']['restoration'] and run.record['scores']['student']

@pytest.mark.gpu
def test_a_whole_run_by_papermill(tmp_path, outputs, tiny, device):
    if device.type=='cpu': pytest.skip('tests/test_papermill.py has it')
    params = {k:v for k,v in tiny.items() if k!='train_examples'} | dict(task='wnli', method='fsd', batch_size=64, epochs=1, device=device.type)
    done = subprocess.run([sys.executable, '-m', 'papermill', root/'nbs'/'distill.ipynb', tmp_path/'out.ipynb', *(str(a) for k,v in params.items() for a in ('-p',k,v))], capture_output=True, text=True, cwd=root)
    assert done.returncode==0, done.stderr
    record, = outputs.rglob('run.json')
    assert runs.load(record.parent).record['environment']['device']!='cpu'
