"""Run records: what is refused, what survives a kill, what never mixes."""
import subprocess, sys, os
from pathlib import Path
import numpy as np, pytest, torch
from fsd.kept import Damaged, read_json, write_json
from conftest import build_for_cuda
from fsd.machine import environment, find_device, peak_memory
from fsd.runs import Run, check, find, folder_of, kind_of, load, save

@pytest.fixture(autouse=True)
def own_outputs(tmp_path, monkeypatch): monkeypatch.setenv('FSD_OUTPUTS', str(tmp_path/'outputs'))

def record(source='folder', partial=False, accuracy=0.5, **settings):
    s = dict(task='rte', method='fsd', seed=0, padding='paper', lr=5e-5, max_steps=None, train_examples=None) | settings
    data = dict(source=source, where='here', fingerprint='0'*16, partial=partial, rows=dict(train=10))
    scores = dict(validation=dict(accuracy=accuracy))
    return dict(kind=kind_of(s, data), settings=s, overrides={}, data=data, model=dict(name='tiny', source='/m'),
                environment=dict(commit=None, device='cpu'), seconds={}, peak_memory=1, scores=dict(teacher=scores, student=scores), best=scores, history=[])

def run(overrides={}, **kw):
    r = record(**kw)
    return save(Run(folder_of(r['settings'], 'tiny', r['kind'], overrides), r), predictions=dict(logits=np.eye(3)))

@pytest.mark.parametrize('broken', ['', '{', '[]', 'null', '{"kind": "runs"}'])
def test_a_malformed_record_is_one_error_that_names_the_file(broken):
    r = run()
    (r.folder/'run.json').write_text(broken)
    with pytest.raises(ValueError, match=f'{r.folder}/run.json'): load(r.folder)
    with pytest.raises(ValueError, match='run.json'): find()

@pytest.mark.parametrize('part', ['kind', 'settings', 'overrides', 'data', 'model', 'environment', 'seconds', 'peak_memory', 'scores', 'best', 'history'])
def test_every_part_is_required(part):
    r = record()
    del r[part]
    with pytest.raises(ValueError, match=f'lacks {part}'): check(r)

@pytest.mark.parametrize('scores', [None, {'accuracy': 0.5}, {'validation': {'accuracy': 55.}}, {'validation': {'accuracy': '0.5'}}])
def test_scores_are_fractions_by_split_and_metric(scores):
    r = record()
    r['scores']['student'] = scores
    with pytest.raises(ValueError, match='student'): check(r)

@pytest.mark.parametrize('wrong', [dict(max_steps=5), dict(train_examples=8), dict(partial=True), dict(source='demo')])
def test_nothing_but_a_whole_real_run_is_called_a_result(wrong):
    r = record(**wrong)
    r['kind'] = 'runs'
    with pytest.raises(ValueError, match="kind='runs'"): save(Run(folder_of(r['settings'], 'tiny', 'runs'), r))
    assert not find()

def test_no_record_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match='no run has ended there'): load(tmp_path)
    assert find()==[]
    with pytest.raises(FileNotFoundError): find(tmp_path/'nowhere')
    with pytest.raises(ValueError, match="kind='run'"): find(kind='run')

def test_a_kill_before_the_record_leaves_no_run(tmp_path):
    code = '''
import os, sys, numpy as np
from pathlib import Path
import fsd.runs as r
from fsd.kept import read_json
def die(*a): os._exit(1)
r.write_json = die
r.save(r.Run(Path(sys.argv[2]), read_json(Path(sys.argv[1]))), predictions=dict(logits=np.eye(3)))
'''
    write_json(tmp_path/'record.json', record())
    folder = folder_of(record()['settings'], 'tiny', 'runs')
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[1])}
    assert subprocess.run([sys.executable, '-c', code, tmp_path/'record.json', folder], env=env).returncode==1
    assert (folder/'predictions.npz').exists() and not find()

def test_undefined_metrics_are_null_and_a_hole():
    r = run(accuracy=float('nan'))
    assert read_json(r.folder/'run.json')['scores']['student']['validation']['accuracy'] is None
    assert '| – | – | – |' in r._repr_markdown_()

def test_numpy_scores_are_numbers():
    assert load(run(accuracy=np.float32(0.5)).folder).scores == {'validation': {'accuracy': 0.5}}

def test_arrays_are_verified_and_no_pickle_is_written():
    r = run()
    path = r.folder/'predictions.npz'
    whole = path.read_bytes()
    path.write_bytes(whole[:-1]+bytes([whole[-1]^1]))
    with pytest.raises(Damaged, match='predictions.npz: altered'): load(r.folder).arrays()
    path.unlink()
    with pytest.raises(Damaged, match='predictions.npz: missing'): load(r.folder).arrays()
    with pytest.raises(ValueError, match='allow_pickle'): save(r, predictions=dict(o=np.array([object()])))
    assert sorted(p.name for p in r.folder.iterdir()) == ['run.json']

def test_same_arrays_same_bytes():
    a, b = run(seed=1).folder, run(seed=2).folder
    assert (a/'predictions.npz').read_bytes()==(b/'predictions.npz').read_bytes()

def test_long_or_odd_settings_become_a_fingerprint():
    s = record()['settings']
    name = lambda **o: folder_of(s, 'tiny', 'runs', o).name
    assert name(b=1, a=2) == 'tiny-s0,a=2,b=1'
    assert name(note='x'*100) != name(note='y'*100) and len(name(note='x'*100)) == len('tiny-s0,')+16
    assert '/' not in name(student_model='../../etc') and folder_of(s, 'tiny', 'runs', dict(m='..')).parent.name=='fsd'

def test_finding_reads_records_only():
    r = run()
    (r.folder/'predictions.npz').unlink()
    assert [o.seed for o in find(r.folder)] == [0] == [o.seed for o in find()]

def test_one_kind_is_found_unless_told():
    run(); run(source='demo'); run(max_steps=3)
    assert [len(find(kind=k)) for k in ('runs', 'demo', 'trials', None)] == [1, 1, 1, 3]
    root = find()[0].folder.parents[3]
    with pytest.raises(ValueError, match="run.json is of kind 'demo', among 'runs'"): find(root)

def test_reading_records_loads_no_pandas():
    code = "import sys, fsd.runs; bad = {'torch', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, '-c', code], check=True)

def test_environment_knows_a_dirty_checkout_and_none(tmp_path, monkeypatch):
    monkeypatch.setattr('fsd.__file__', str(tmp_path/'fsd'/'__init__.py'))
    assert (environment('cpu')['commit'], environment('cpu')['dirty']) == (None, None)
    (tmp_path/'fsd').mkdir(); (tmp_path/'fsd'/'__init__.py').touch(); (tmp_path/'outputs').mkdir()
    git = lambda *a: subprocess.run(['git', '-c', 'user.name=n', '-c', 'user.email=e@x', '-C', tmp_path, *a], check=True, capture_output=True)
    git('init'); git('add', 'fsd'); git('commit', '-m', 'x')
    (tmp_path/'outputs'/'run.json').touch()
    assert len(environment('cpu')['commit'])==40 and environment('cpu')['dirty'] is False
    (tmp_path/'fsd'/'__init__.py').write_text('x = 1')
    assert environment('cpu')['dirty'] is True

# ---------------------------------------------------------------- devices

def test_a_build_for_cuda_without_a_gpu_computes_on_the_cpu(monkeypatch):
    build_for_cuda(monkeypatch, gpu=False)
    assert find_device().type=='cpu' and environment()['device'].startswith('cpu') and peak_memory()>1<<20
    for asked in ('cuda', 'mps', 'gpu'):
        with pytest.raises(ValueError, match=f"device='{asked}' is not here: there is cpu"): find_device(asked)

def test_a_gpu_that_is_there_is_taken_unless_told_otherwise(monkeypatch):
    build_for_cuda(monkeypatch, gpu=True)
    assert (find_device().type, find_device('cuda').type, find_device('cpu').type) == ('cuda', 'cuda', 'cpu')
    assert environment()['device']=='H100' and environment('cpu')['device'].startswith('cpu')
    assert peak_memory()==12345 and peak_memory('cpu')!=12345
    with pytest.raises(ValueError, match="device='mps' is not here: there is cuda and cpu"): find_device('mps')

@pytest.mark.parametrize('said', ['1', 'true', 'yes'])
def test_a_gpu_hidden_from_accelerate_is_hidden_here(monkeypatch, said):
    build_for_cuda(monkeypatch, gpu=True)
    monkeypatch.setenv('ACCELERATE_USE_CPU', said)
    assert find_device().type=='cpu'
    with pytest.raises(ValueError, match='there is cpu'): find_device('cuda')

@pytest.mark.parametrize('gpu', [False, True])
def test_torch_2_6_which_cannot_be_asked_in_one_call(monkeypatch, gpu):
    build_for_cuda(monkeypatch, gpu)
    monkeypatch.setattr('torch.accelerator.current_accelerator', lambda: torch.device('cuda'))
    assert find_device().type==('cuda' if gpu else 'cpu')

@pytest.mark.parametrize('said', ['', 'two', '-1', '1.0'])
def test_a_world_that_cannot_be_counted_is_refused_by_name(monkeypatch, said):
    monkeypatch.setenv('WORLD_SIZE', said)
    with pytest.raises(ValueError, match=f'WORLD_SIZE={said!r}'): environment('cpu')
