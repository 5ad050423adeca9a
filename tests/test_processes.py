"""Several processes share a run: what comes out is what one would have made; what cannot be shared is refused, and what dies ends the others."""
import json, os, re, shutil, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pandas as pd, pytest, torch
from safetensors.torch import load_file
from transformers import TrainingArguments
from conftest import little, root
from fsd import DistillationConfig, Experiment
from fsd.kept import read_json, write_json
from fsd.methods import Objective, find_term, methods
from fsd.passes import random_features
from fsd.processes import launch, options_of, reason, share_of
from fsd.settings import Knobs
from fsd.terms import Pair, terms
from fsd.together import Reach, head, reached

def torchrun(*command, **kw):
    words = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *map(str, command)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)

# ---------------------------------------------------------------- the numbers

def weights(path):
    "All weights but keys' biases, which no loss depends on: what they become is rounding."
    return torch.cat([v.double().flatten() for n,v in sorted(load_file(path).items()) if not n.endswith('key.bias')])

def differ(one, two, method):
    "Relative difference of losses and of weights."
    x,y = (read_json(o/f'{method}.json') for o in (one, two))
    names = [k for k in x[0] if k in ('loss','grad_norm') or re.sub(r'_\d+$', '_*', k) in terms]
    assert len(x)==len(y) and len(names)>2
    losses = max(abs(a[k]-b[k])/max(abs(a[k]), 1e-2) for a,b in zip(x, y) for k in names if k in a or k in b)
    u,v = (weights(o/f'{method}.safetensors') for o in (one, two))
    return losses, ((u-v).norm()/u.norm()).item()

@pytest.mark.parametrize('kind, names, given', [
    # attention is read in float32, whatever the model
    ('masked', 'fsd ckd rkd pkd_sequence', dict(double=True, padding='masked')),
    ('accumulated', 'fsd_il pkd wid internal_progressive', dict(optim='sgd', accumulate=2, projection='linear', epochs=3))])
def test_losses_and_weights_of_two_processes_are_those_of_one(tmp_path, kind, names, given):
    "21 rows in batches of 8: the last has 5, and one of the two processes has one of them."
    command = [root/'tests'/'shared_run.py', tmp_path/'two', *names.split(), '-p', *(f'{k}={json.dumps(v) if not isinstance(v, str) else v}' for k,v in given.items())]
    two = torchrun(*command)
    one = subprocess.run([sys.executable, *map(str, command[:1]), str(tmp_path/'one'), *map(str, command[2:])], capture_output=True, text=True)
    assert one.returncode==0, one.stderr
    said = two.communicate()[0]
    assert two.returncode==0, said
    most = 1e-10 if given.get('double') else 1e-5
    for m in names.split():
        losses,learned = differ(tmp_path/'one', tmp_path/'two', m)
        assert losses<most and learned<most, (m, losses, learned)

@pytest.mark.parametrize('name', [n for n,t in terms.items() if t.mean])
def test_a_term_that_is_said_to_be_a_mean_is_one(name):
    "Of 5 rows it is 2/5 of that of the first two and 3/5 of that of the others."
    m = next(m for m in methods.values() if name in m.weights)
    o = Objective(m, Pair(Knobs(padding='masked'), 2, 4, 16))
    s,t = (random_features(little(n), needs, 5, 9, seed=n) for n,needs in ((2, o.needs_s), (4, o.needs_t)))
    def rest(f): return head(replace(f, **{k:{l:x.flip(0) for l,x in v.items()} if isinstance(v, dict) else v.flip(0) for k,v in vars(f).items()}), 3)
    for n in (n for n in o.terms if find_term(n) is terms[name]):
        term = o.terms[n]
        shares = .4*term(head(s, 2), head(t, 2), None) + .6*term(rest(s), rest(t), None)
        torch.testing.assert_close(term(s, t, None), shares, rtol=1e-5, atol=1e-7)

def test_parameters_that_no_loss_looked_at_are_left_alone(monkeypatch):
    monkeypatch.setattr('fsd.together.exchanged', lambda: True)
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({k:torch.nn.Linear(3, 1) for k in 'ab'})
    x,reach = torch.randn(4, 3),Reach()
    loss = model['a'](x).mean()
    assert reached(loss)=={id(p) for p in model['a'].parameters()}
    reach.all(loss, model).backward()
    assert all((p.grad==0).all() for p in model['b'].parameters()), 'they take part in the exchange'
    reach.forget(model)
    assert [p.grad is None for p in model.parameters()]==[False,False,True,True]
    reach.all(model['b'](x).mean(), model).backward()
    reach.forget(model)
    assert [p.grad is None for p in model.parameters()]==[True,True,False,False], 'each step for itself'

# ---------------------------------------------------------------- what cannot be

def test_a_batch_that_cannot_be_shared_is_refused(outputs, tiny, monkeypatch):
    with pytest.raises(ValueError, match='batch_size=8 is that of all processes and cannot be shared by 3; take 6 or 9'): Experiment('wnli', 'vkd', **tiny, processes=3)
    with pytest.raises(ValueError, match='processes=0'): Experiment('wnli', 'vkd', **tiny, processes=0)
    assert share_of(8, 4)==2
    monkeypatch.setenv('WORLD_SIZE', '3')
    with pytest.raises(ValueError, match='cannot be shared by 3'): Experiment('wnli', 'vkd', **tiny)
    assert not outputs.exists()

def test_data_in_memory_are_not_seen_by_other_processes(outputs, tiny):
    data = pd.DataFrame(dict(text=[f'review {i}' for i in range(80)], label=[i%3%2 for i in range(80)]))
    with pytest.raises(ValueError, match='write them to a file'): Experiment('mine', 'vkd', data, **{k:v for k,v in tiny.items() if k!='data'}, processes=2)

def test_how_many_share_a_run_does_not_matter_for_its_name(outputs, tiny):
    one,two = (Experiment('wnli', 'vkd', **tiny, processes=n) for n in (1, 2))
    assert (one.fingerprint, one.folder, one.place('students'))==(two.fingerprint, two.folder, two.place('students'))

@pytest.mark.parametrize('job', ['squad', 'corpus'])
def test_jobs_that_are_not_shared_say_so(monkeypatch, job):
    from fsd.compress import Compression
    from fsd.reading import Reading
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='WORLD_SIZE=2: .* takes one process'): Reading() if job=='squad' else Compression()

def test_arguments_under_which_rows_are_shared_otherwise_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, 'world_size', property(lambda self: 2))
    for name,v in dict(split_batches=True, even_batches=False).items():
        with pytest.raises(ValueError, match=f'accelerator_config: leave {name} out'): DistillationConfig(str(tmp_path), use_cpu=True, accelerator_config={name:v})

def test_a_mistake_in_a_command_ends_all_with_its_words(outputs):
    assert options_of(dict(a=None, b=False, c=[1, 2], d=1e-5))==['--b=no', '--c=1 2', '--d=1e-05']
    with pytest.raises(RuntimeError, match="2 processes ended with 1: python -m fsd: error: unknown task 'rtee'"): launch(2, '-m', 'fsd', '--task', 'rtee')

def test_a_signal_is_the_reason_before_what_it_led_to():
    said = ['[rank0]: RuntimeError: Connection closed by peer', ' traceback : Signal 15 (SIGTERM) received by PID 7', 'Root Cause (first observed failure):',
            '  traceback : Signal 9 (SIGKILL) received by PID 8']
    assert (reason(said), reason(said[:1]), reason([]))==('Signal 9 (SIGKILL) received by PID 8', said[0], 'it said nothing')

# ---------------------------------------------------------------- a run

@pytest.fixture
def still_bert(tiny_bert, tmp_path)->Path:
    "Without dropout, so that numbers can be compared."
    shutil.copytree(tiny_bert, tmp_path/'still-bert')
    config = read_json(tmp_path/'still-bert'/'config.json')
    write_json(tmp_path/'still-bert'/'config.json', config | dict(hidden_dropout_prob=0., attention_probs_dropout_prob=0.))
    return tmp_path/'still-bert'

def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(outputs, tiny, still_bert, tmp_path, monkeypatch, capfd):
    given = tiny | dict(model=str(still_bert), batch_size=8)
    running = torchrun('-m', 'fsd', *options_of(dict(task='wnli', method='fsd') | given))
    try:
        while not [*outputs.glob('checkpoints/students-*/checkpoint-4/manifest.json')]:
            assert running.poll() is None, running.stdout.read()
            time.sleep(.05)
        ours = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(running.pid)], capture_output=True, text=True).stdout.split()
        second = next(p for p in ours if 'RANK=1' in Path(f'/proc/{p}/environ').read_text().split('\0'))
        os.kill(int(second), signal.SIGKILL)
        said = running.communicate(timeout=60)[0]
    finally: running.kill()
    assert running.returncode and reason(said.splitlines()).startswith('Signal 9 (SIGKILL)')
    assert not [*outputs.rglob('run.json')] and not [*outputs.glob('students/*/config.json')]
    two = Experiment('wnli', 'fsd', **given, processes=2).run()
    assert re.search(r'Resuming from .*checkpoint-\d', capfd.readouterr().out)
    assert len([*outputs.rglob('run.json')])==1 and not [*outputs.rglob('*.tmp-*')] and not [*outputs.glob('checkpoints/*')]
    monkeypatch.setenv('FSD_OUTPUTS', str(tmp_path/'alone'))
    one = Experiment('wnli', 'fsd', **given).run()
    a,b = one.record,two.record
    assert {k for k in a if a[k]!=b[k]}<={'environment','seconds','peak_memory','history','epochs','analysis','probe','files','scores'} and a['settings']==b['settings']
    assert (a['environment']['processes'], b['environment']['processes'])==(1, 2)
    for x,y in zip(a['history'], b['history'], strict=True): assert abs(x['loss']-y['loss'])<1e-5*x['loss']
