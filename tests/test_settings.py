"""Settings by every way in: a call, a file, a command line, JSON, the trainer's configuration."""
import configparser, json, re, subprocess, sys
from dataclasses import asdict, fields
import pytest
from conftest import root
from transformers import HfArgumentParser
import fsd
from fsd import runs
from fsd.experiment import Experiment
from fsd.methods import methods, reads
from fsd.report import made_up, outdated
from fsd.settings import CompressionSettings, Knobs, Settings, SquadSettings, beside, check_file, made, resolve
from fsd.tasks import unknown
from fsd.values import from_ini, read_settings, rules, setting, settings_file

values = dict(debiased='no', beta='0.5', stage_cap='none', memory_size='8', alpha=1)
meant = dict(debiased=False, beta=.5, stage_cap=None, memory_size=8, alpha=1.)
wrong = [(dict(debiased='maybe'), "debiased='maybe' is not yes or no"), (dict(memory_size=2.5), 'memory_size=2.5 is not a whole number'),
         (dict(temperature=None), 'temperature=None is not a number'), (dict(beta='much'), "beta='much' is not a number"), (dict(alpha=2), 'alpha=2.0 must be at most 1'),
         (dict(reduction='log'), "unknown reduction 'log'"), (dict(padding='maskd'), "unknown padding 'maskd'; did you mean 'masked'?"),
         (dict(reduction=None), 'reduction=None is not text'), (dict(gamma_l=1e300), 'gamma_l=1e+300 must be at most 1000000.0'), (dict(max_length=2), 'max_length=2 must be at least 3')]

# every way in, as a function of the values that are given
def by_a_call(tmp_path, **v): return fsd.DistillationConfig(str(tmp_path), **v)
def by_json(tmp_path, **v):
    (tmp_path/'a.json').write_text(json.dumps(v | dict(output_dir=str(tmp_path))))
    return HfArgumentParser(fsd.DistillationConfig).parse_json_file(tmp_path/'a.json')[0]
def by_knobs(tmp_path, **v): return fsd.Knobs(**v)
def by_settings(tmp_path, **v): return fsd.Settings(task='rte', method='fsd', **v)
def by_resolve(tmp_path, **v): return resolve('rte', 'fsd', **v)
ways = (by_a_call, by_json, by_knobs, by_settings, by_resolve)

@pytest.mark.parametrize('way', ways)
def test_values_mean_the_same_by_every_way_in(way, tmp_path):
    s = way(tmp_path, **values)
    found = {k:getattr(s, k) for k in meant}
    assert found==meant and {k:type(v) for k,v in found.items()}=={k:type(v) for k,v in meant.items()}

@pytest.mark.parametrize('given, words', wrong)
@pytest.mark.parametrize('way', ways)
def test_what_cannot_be_meant_is_refused_by_every_way_in(way, given, words, tmp_path):
    if way is by_resolve and None in given.values(): return # there it leaves the choice to the file
    with pytest.raises(ValueError, match=re.escape(words)): way(tmp_path, **given)

def test_transformers_parser_takes_every_class_and_leaves_it_as_it_is(tmp_path):
    c, = HfArgumentParser(fsd.DistillationConfig).parse_args_into_dataclasses(['--output_dir', str(tmp_path), '--beta', '.5', '--debiased', 'no', '--gamma-l', '.1'])
    assert (c.beta, c.debiased, c.gamma_l, c.stage_cap)==(.5, False, .1, None)
    for cls in (Knobs, Settings, fsd.DistillationConfig):
        help = re.sub(r'\s+', ' ', HfArgumentParser(cls).format_help())
        assert '--padding {paper,masked}' in help and 'softening of both logits in the soft term' in help
    assert Knobs(stage_cap='none')==Knobs() and resolve('rte', 'fsd', stage_cap='none')==resolve('rte', 'fsd')
    with pytest.raises(ValueError, match='beta=-1.0 must be at least 0'):
        HfArgumentParser(fsd.DistillationConfig).parse_args_into_dataclasses(['--output_dir', str(tmp_path), '--beta', '-1'])

def test_a_yaml_file_is_read_too(tmp_path):
    (tmp_path/'a.yaml').write_text(f'output_dir: {tmp_path}\ndebiased: no\nstage_cap: none\nbeta: 2\n')
    c, = HfArgumentParser(fsd.DistillationConfig).parse_yaml_file(tmp_path/'a.yaml')
    assert (c.debiased, c.stage_cap, c.beta)==(False, None, 2.)

def test_every_setting_has_help_and_a_default_that_its_rule_allows():
    for f in fields(Settings): assert f in rules and f.metadata['help'] and '%' not in f.metadata['help']
    assert asdict(resolve('rte', 'fsd'))==asdict(Settings(task='rte', method='fsd'))

# ---------------------------------------------------------------- names

@pytest.mark.parametrize('asked, right', {'WNLI':'wnli', 'SST-2':'sst2', 'sst-2':'sst2', 'CoLA':'cola', 'STS-B':'stsb', 'MNLI-mm':'mnli', 'wnil':'wnli', 'rtee':'rte'}.items())
def test_a_task_is_hinted_at_whatever_its_capitals_and_signs(asked, right):
    with pytest.raises(ValueError, match=f"^unknown task '{asked}'; did you mean '{right}'[?] Known: cola, "): resolve(asked, 'fsd')

def test_every_method_is_hinted_at_in_capitals():
    for m in methods: assert f'; did you mean {m!r}?' in str(unknown('method', m.upper().replace('_', '-'), methods))

# ---------------------------------------------------------------- files

def file(tmp_path, text, name='mine.ini'):
    (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_settings(tmp_path/name)

@pytest.mark.parametrize('text, words', [
    ('[rte]\nlr = 1e-4\nlr = 2e-4', r"mine.ini' \[line +3\]: option 'lr' in section 'rte' already exists"), ('[rte]\n[rte]', r"\[line +2\]: section 'rte' already exists"),
    ('lr = 1', 'line: 1'), ('[rte]\nlr', r'\[line +2\]'), ('[rte\nlr = 1', 'line: 1')])
def test_a_file_that_is_none_is_refused_with_its_line(tmp_path, text, words):
    with pytest.raises(configparser.Error, match=words): file(tmp_path, text)

@pytest.mark.parametrize('text, words', [
    ('[rte]\nlrr = 1e-4', "settings.ini, [rte]: unknown setting 'lrr'; did you mean 'lr'?"), ('[fsd my-model]\nlr = fast', "settings.ini, [fsd my-model]: lr='fast' is not a number"),
    ('[DEFAULT]\nwarmup = 6%', "settings.ini, [DEFAULT]: warmup='6%' is not a number"), ('[wnli]\nepochs =', "settings.ini, [wnli]: epochs='' is not a whole number"),
    ('[rte]\nlr = 1\n  beta = 2', "settings.ini, [rte]: lr='1\\nbeta = 2' is not a number"), ('[rte]\ntemperature = 0', 'settings.ini, [rte]: temperature=0.0 must be above 0'),
    ('[rte]\nmethod = fsd', "settings.ini, [rte]: unknown setting 'method'"), ('[rte]\nmodel =', "settings.ini, [rte]: model='' is not text")])
def test_a_value_that_cannot_be_meant_is_refused_with_its_section(tmp_path, text, words):
    with pytest.raises(ValueError) as e: resolve('mrpc', 'vkd', ini=file(tmp_path, text))
    assert words in str(e.value) and '\n' not in str(e.value)

def test_percent_signs_unicode_and_a_mark_of_byte_order(tmp_path):
    ini = file(tmp_path, '\ufeff# Größen\n[DEFAULT]\nepochs = 2 # zwei\n[rte]\nmodel = 100%/Müller/модель')
    assert resolve('rte', 'fsd', ini=ini).model=='100%/Müller/модель' and resolve('mrpc', 'fsd', ini=ini).epochs==2
    with pytest.raises(ValueError, match='latin.ini, line 2: not UTF-8'): file(tmp_path, '[rte]\nlr = 1 # Müller'.encode('latin-1'), 'latin.ini')

def test_the_file_that_comes_with_the_project_is_sound():
    assert check_file(read_settings()) is read_settings() and 'DEFAULT' in read_settings() and settings_file().name=='settings.ini'

def test_a_default_that_is_missing_or_wrong_is_named(tmp_path, monkeypatch):
    def cls(): return type('Two', (), {'__annotations__':{'lr':float}, 'lr':setting('rate', above=0)})
    for text,words in (('[DEFAULT]\nepochs = 1', r"\[DEFAULT\]: lacks 'lr' \(rate\)"), ('[DEFAULT]\nlr = 0', r'\[DEFAULT\]: lr=0.0 must be above 0')):
        ini = file(tmp_path, text, f'{len(text)}.ini')
        monkeypatch.setattr('fsd.values.read_settings', lambda ini=ini: ini)
        with pytest.raises(ValueError, match=words): from_ini(cls())

@pytest.mark.parametrize('cls, section', [(SquadSettings, 'squad'), (CompressionSettings, 'wid corpus')])
def test_a_job_has_its_own_section_and_the_same_way_to_its_settings(tmp_path, cls, section):
    need = {f.name:'1.1' for f in fields(cls) if 'required' in rules[f]}
    s,changed = made(cls, lambda: (section,), **need)
    assert asdict(s)==asdict(cls(**need)) and not changed
    assert {*read_settings()[section]} < {f.name for f in fields(cls)}
    with pytest.raises(ValueError, match="unknown parameter 'warmpu'; did you mean 'warmup'"): made(cls, lambda: (section,), **need, warmpu=.1)
    with pytest.raises(ValueError, match=re.escape(f'settings.ini, [{section}]: lr=0.0 must be above 0')): check_file(file(tmp_path, f'[{section}]\nlr = 0'))

def test_a_run_is_resolved_once(tiny, outputs, monkeypatch):
    seen = []
    monkeypatch.setattr('fsd.job.made', lambda *args, **kw: seen.append(kw) or made(*args, **kw))
    e = Experiment('rte', 'vkd', **tiny)
    assert len(seen)==1 and e.settings==resolve('rte', 'vkd', e.name, **tiny)

# ---------------------------------------------------------------- what a run reads

@pytest.mark.parametrize('method', methods)
def test_an_experiment_reads_what_its_method_reads(method, tiny, outputs):
    for changed in ({}, dict(gamma_g=0), dict(alpha=.9)):
        e = Experiment('mrpc', method, **tiny | dict(relation_heads=4) | changed)
        assert e.reads==reads(method, e.settings)

def test_just_the_runs_that_read_a_setting_are_outdated_by_it():
    then = dict(memory_size=50, memory_procedure='released', wid_fade=.2, wid_strategy='head', patience='last', max_length=64)
    def outdated_by(method):
        old = made_up('mrpc', method)
        old.record['settings'] |= then
        return set(outdated(old))-{'max_length'}
    memory,inherited = {'memory_size','memory_procedure'},{'wid_fade','wid_strategy'}
    assert {m:outdated_by(m) for m in methods}=={m:memory if m in ('fsd','fsd_g') else inherited if m=='wid' else {'patience'} if m in ('pkd','pkd_sequence') else set() for m in methods}
    everything = made_up('mrpc', 'vkd')
    everything.record['settings'] = asdict(resolve('mrpc', 'vkd', 'all-minilm-l6-v2')) | {k:None for k in beside}
    assert outdated(everything)=={}

# ---------------------------------------------------------------- the command

def command(*args): return subprocess.run([sys.executable, '-m', 'fsd', *map(str, args)], capture_output=True, text=True, cwd=root)

def test_a_command_is_the_same_run_as_a_call(tiny, outputs):
    params = {k:v for k,v in tiny.items() if k!='epochs'} | dict(epochs=1, debiased='no')
    done = command('--task', 'wnli', '--method', 'fsd', *(a for k,v in params.items() for a in (f'--{k}', v)))
    assert done.returncode==0, done.stderr
    run, = runs.find(kind='trials')
    assert f'record: outputs/{run.folder.relative_to(outputs)}/run.json' in done.stdout.replace(str(outputs), 'outputs') and run._repr_markdown_() in done.stdout
    e = Experiment('wnli', 'fsd', **params)
    assert e.done().folder==run.folder and set(run.record['overrides'])=={'max_length','memory_size','train_examples','batch_size','teacher_epochs','epochs','teacher_lr','lr'}

@pytest.mark.parametrize('args, words', [
    ((), 'the following arguments are required: --task, --method'), (('--task', 'rte', '--method', 'FSD'), "unknown method 'FSD'; did you mean 'fsd'?"),
    (('--task', 'rte', '--method', 'fsd', '--temprature', 4), "unknown parameter 'temprature'; did you mean 'temperature'?"),
    (('--task', 'rte', '--method', 'fsd', '--model', '/nowhere/bert'), "'/nowhere/bert' is no folder")])
def test_a_wrong_command_ends_with_one_line(args, words, outputs):
    done = command(*args)
    assert done.returncode==2 and words in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr and not outputs.exists()
