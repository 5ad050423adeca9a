"""The notebooks as commands, the wrong commands, and every task once."""
import ast, subprocess, sys
from inspect import signature
from typing import get_args, get_type_hints
import nbformat, numpy as np, papermill, pytest
from conftest import root
from papermill.parameterize import parameterize_notebook
from transformers import AutoModelForSequenceClassification
from fsd import runs
from fsd.experiment import Experiment
from fsd.glue import load
from fsd.tasks import tasks
from fsd.settings import CompressionSettings, Settings, SquadSettings
from fsd.engine import sweep_on
from fsd.yours import of_own

notebooks = root/'nbs'
fields = set(Settings.__dataclass_fields__)
beside = {'processes'} # how a run is shared is no setting of it

def command(*args):
    return subprocess.run([sys.executable, '-m', 'papermill', *map(str, args)], capture_output=True, text=True, cwd=root)

def options(params): return [a for k,v in params.items() for a in ('-p', k, v)]

def parameters(name): return papermill.inspect_notebook(str(notebooks/f'{name}.ipynb'))

# ---------------------------------------------------------------- whole

def test_distill_as_a_command(tmp_path, outputs, tiny):
    params = {k:v for k,v in tiny.items() if k!='train_examples'} | dict(task='wnli', method='fsd', batch_size=64, epochs=1)
    done = command(notebooks/'distill.ipynb', tmp_path/'out.ipynb', *options(params))
    assert done.returncode==0, done.stderr
    record, = outputs.rglob('run.json')
    assert record.parent==outputs/'demo'/'wnli'/'fsd'/record.parent.name
    run = runs.load(record.parent)
    assert run.kind=='demo' and run.record['settings']['temperature']==Settings(task='wnli', method='fsd').temperature
    student, = (outputs/'students').glob('wnli-*/')
    assert AutoModelForSequenceClassification.from_pretrained(student).config.num_hidden_layers==2
    outs = [o for c in nbformat.read(tmp_path/'out.ipynb', 4).cells if c.cell_type=='code' for o in c.outputs]
    shown = [o.data for o in outs if 'data' in o]
    assert sum('image/png' in d for d in shown)>=3, 'losses, restoration and CKA'
    text = ' '.join(d.get('text/markdown', '') for d in shown)
    assert 'Demonstration on made-up sentences: no result' in text and 'demonstration on made-up sentences, no result' in text
    assert not [o for o in outs if o.output_type=='error']

# ---------------------------------------------------------------- parameters

@pytest.mark.parametrize('name', ['distill', 'teacher'])
def test_parameters_are_settings_with_a_line_of_help(name):
    found = parameters(name)
    assert set(found) <= fields|beside
    for p in found.values():
        assert p['help'], f"{p['name']} has no comment"
        assert p['default']=='None' or p['name'] in ('task', 'method', *beside), f"{p['name']}: the default belongs in settings.ini"

def test_every_setting_is_a_parameter_of_distill(): assert set(parameters('distill')) == fields|beside

def test_defaults_of_the_commands_are_right():
    for name in ('distill', 'teacher'):
        given = {k:ast.literal_eval(p['default']) for k,p in parameters(name).items() if p['default']!='None'}
        assert given.items() <= dict(task='wnli', method='fsd', processes=1).items()

def test_help_shows_every_parameter_with_its_type():
    done = command('--help-notebook', notebooks/'distill.ipynb')
    assert done.returncode==0
    for name,p in parameters('distill').items(): assert f"  {name}: {p['inferred_type_name']} (" in done.stdout and p['help'] in done.stdout

@pytest.mark.parametrize('name, cls', dict(distill=Settings, teacher=Settings, squad=SquadSettings, wid=CompressionSettings).items())
def test_types_of_parameters_are_those_of_the_settings(name, cls):
    kinds = get_type_hints(cls) | dict.fromkeys(beside, int)
    def words(kind): return next((o for o in get_args(kind) if o is not type(None)), kind).__name__
    assert {k:p['inferred_type_name'] for k,p in parameters(name).items()}=={k:words(kinds[k]) for k in parameters(name)}

@pytest.mark.parametrize('name', ['distill', 'teacher', 'own_data'])
def test_what_is_said_of_own_data_is_a_parameter_where_they_are_read(name):
    found,kinds = parameters(name),{k:p['inferred_type_name'] for k,p in parameters('distill').items()}
    assert {k:found[k]['inferred_type_name'] for k in of_own}=={k:kinds[k] for k in of_own}

def test_types_of_a_sweeps_parameters_are_there():
    own,kinds = parameters('sweep'),get_type_hints(Settings)
    assert set(own)-set(signature(sweep_on).parameters)-fields=={'dry'}
    assert all(p['inferred_type_name'] in ('str','int','float','bool') for p in own.values())
    assert all(own[k]['inferred_type_name']==words.__name__ for k,words in kinds.items() if k in own and isinstance(words, type))

def test_no_parameter_of_any_notebook_is_of_unknown_type():
    found = {p:papermill.inspect_notebook(str(p)) for p in sorted(notebooks.rglob('*.ipynb')) if '"parameters"' in p.read_text(encoding='utf8')}
    assert len(found)>10 and not [f'{p.name} {k}' for p,o in found.items() for k,v in o.items() if v['inferred_type_name']=='None' or not v['help']]

# ---------------------------------------------------------------- wrong commands

def test_a_mistyped_parameter_ends_the_command(tmp_path, outputs, tiny):
    done = command(notebooks/'distill.ipynb', tmp_path/'out.ipynb', *options(tiny | dict(taks='rte')))
    assert done.returncode!=0
    assert done.stderr.count("ValueError: unknown parameter 'taks'; did you mean 'task'?")==1
    assert not outputs.exists()

def steps(name, params):
    "Run the cells of `name` with `params` put in by papermill, here and one by one; yields the names defined so far."
    nb = parameterize_notebook(papermill.iorw.load_notebook_node(str(notebooks/f'{name}.ipynb')), params)
    names = {}
    for c in nb.cells:
        if c.cell_type!='code': continue
        exec(''.join(l for l in c.source.splitlines(True) if not l.startswith('%')), names)
        yield names

def checked(name, params):
    "The experiment that `name` makes of `params`, if they pass its checks."
    return next(names['exp'] for names in steps(name, params) if 'exp' in names)

wrong = {
    "unknown task 'rtee'; did you mean 'rte'?": dict(task='rtee'),
    "unknown task 'SST-2'; did you mean 'sst2'?": dict(task='SST-2'),
    "unknown method 'fds'; did you mean 'fsd'?": dict(method='fds'),
    "unknown method 'FSD'; did you mean 'fsd'?": dict(method='FSD'),
    "unknown parameter 'gama_i'; did you mean 'gamma_i'?": dict(gama_i=1),
    "temperature=0.0 must be above 0": dict(temperature=0),
    "gamma_l=-1.0 must be at least 0": dict(gamma_l=-1),
    "alpha=1.5 must be at most 1": dict(alpha=1.5),
    "lr='fast' is not a number": dict(lr='fast'),
    "beta=nan must be finite": dict(beta=float('nan')),
    "beta=1e+300 must be at most 1000000.0": dict(beta=1e300),
    "temperature=1e-300 must be at least 0.01": dict(temperature=1e-300),
    "debiased='maybe' is not yes or no": dict(debiased='maybe'),
    "data='' is not text": dict(data=''),
    "seed=8589934592 must be at most 4294967295": dict(seed=2**33),
    "teacher_seed=8589934592 must be at most 4294967295": dict(teacher_seed=2**33),
    "batch_size=1000000000000 must be at most 2147483647": dict(batch_size=10**12),
    "max_length=2 must be at least 3": dict(max_length=2),
    "warmup=1.0 must be below 1": dict(warmup=1.),
    "memory_size=3 is too small for debiased CKA, which takes 4": dict(memory_size=3, debiased=True),
    "holdout=0.5 leaves no training example": dict(holdout=.5, train_examples=1, method='vkd'),
    "memory_size=49 is more than the 48 training examples": dict(memory_size=49),
    "max_length=65 is longer than the model's 64 positions": dict(max_length=65),
    "student_layers=5 cannot be cut from a model of 4 blocks": dict(student_layers=5),
    "student_layers=4 must be below the teacher's 4 blocks": dict(student_layers=4),
    "'/nowhere/bert' is no folder": dict(model='/nowhere/bert'),
    "'/nowhere/glue' is not a folder": dict(data='/nowhere/glue')}

@pytest.mark.parametrize('message', wrong)
def test_what_cannot_be_meant_ends_before_anything_is_computed(outputs, tiny, message):
    with pytest.raises((ValueError, FileNotFoundError)) as e: checked('distill', dict(task='wnli') | tiny | wrong[message])
    assert message in str(e.value) and '\n' not in str(e.value)
    assert not outputs.exists()

@pytest.mark.parametrize('name', ['distill', 'teacher'])
def test_the_check_passes_what_is_right(outputs, tiny, name):
    assert checked(name, {k:v for k,v in tiny.items() if k in parameters(name)}).settings.task=='wnli'
    assert not outputs.exists()

def test_teacher_to_its_end(outputs, tiny):
    *_,names = steps('teacher', {k:v for k,v in tiny.items() if k in parameters('teacher')} | dict(task='stsb'))
    assert names['training']['epochs'][0]['scores']['validation'].keys()=={'pearson', 'spearman'}
    assert len(list(outputs.glob('teachers/stsb-*/model.safetensors')))==1 and not (outputs/'students').exists()

# ---------------------------------------------------------------- folders of GLUE files

def write_glue(folder, task, rows=60):
    "The demo's first rows of `task` in the shape of the GLUE download."
    t,there = tasks[task],folder/tasks[task].folder
    there.mkdir(parents=True)
    for split,ds in load(task, 'demo').splits.items():
        label = lambda r: t.labels[r['label']] if t.spelled else r['label']
        lines = [t.official, *((*(r[c] for c in t.sentences), label(r)) for r in ds.select(range(min(rows, len(ds)))))]
        (there/f"{split.replace('validation', 'dev')}.tsv").write_text('\n'.join('\t'.join(map(str, l)) for l in lines)+'\n')
    return there

def test_a_malformed_glue_file_is_named_with_its_line(tmp_path, outputs, tiny):
    there = write_glue(tmp_path/'glue', 'rte')
    lines = (there/'train.tsv').read_text().split('\n')
    lines[6] = 'only one field'
    (there/'train.tsv').write_text('\n'.join(lines))
    with pytest.raises(ValueError) as e: checked('distill', dict(task='rte') | tiny | dict(data=str(tmp_path/'glue')))
    assert str(e.value)==f'{there}/train.tsv:7: 1 fields where 3 are expected' and not outputs.exists()

def test_a_missing_task_in_a_glue_folder_is_named(tmp_path, outputs, tiny):
    write_glue(tmp_path/'glue', 'rte')
    with pytest.raises(FileNotFoundError, match='lacks mrpc: looked for a folder MRPC'): checked('distill', dict(task='mrpc') | tiny | dict(data=str(tmp_path/'glue')))
    assert not outputs.exists()

def test_a_glue_folder_by_the_environment(tmp_path, outputs, tiny, monkeypatch):
    write_glue(tmp_path/'glue', 'rte')
    monkeypatch.setenv('FSD_GLUE', str(tmp_path/'glue'))
    run = Experiment('rte', 'vkd', **{k:v for k,v in tiny.items() if k not in ('data', 'train_examples')}, max_steps=2).run()
    assert (run.kind, run.source, run.record['data']['partial']) == ('trials', 'folder', True)
    assert str(tmp_path) not in (run.folder/'run.json').read_text(), 'where the files lie on this machine is nobody\'s business'

# ---------------------------------------------------------------- every task

combinations = dict(cola='fsd_i', sst2='fsd_l', mrpc='fsd_g', stsb='fsd', qqp='fsd_il', mnli='fsd', qnli='vkd', rte='nods')

@pytest.mark.parametrize('task, method', combinations.items())
def test_every_task(outputs, tiny, task, method):
    exp = Experiment(task, method, **tiny | dict(epochs=1))
    run,t = exp.run(),tasks[task]
    assert run.kind=='trials' and runs.load(run.folder).record==run.record
    for scores in (run.scores, run.teacher, run.best, run.record['scores']['majority']):
        assert {split:tuple(o) for split,o in scores.items()} == dict.fromkeys(t.dev, t.metrics)
    student = AutoModelForSequenceClassification.from_pretrained(exp.student_folder)
    assert student.config.num_labels==t.num_labels and student.config.num_hidden_layers==2
    assert [l['step'] for l in run.record['history']] == list(range(1, 7))
    for l in run.record['history']: assert set(run.record['terms']) < set(l) and np.isfinite([l['loss'], *(l[n] for n in run.record['terms'])]).all()
    assert set(run.record['analysis']['restoration']) == (set() if t.regression else set(t.dev))
    assert run.arrays()[f'student_{t.dev[0]}'].shape[1]==t.num_labels
    kept = {p.name for p in outputs.iterdir()}
    assert ('memories' in kept, 'features' in kept) == (method in ('fsd', 'fsd_g'), method!='nods')
