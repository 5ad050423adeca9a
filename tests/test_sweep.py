"""A sweep does each of its runs exactly once, whoever shares it and whoever dies."""
from types import SimpleNamespace
import json, os, shutil, signal, subprocess, sys, time
from collections import Counter
from dataclasses import replace
import pytest
from conftest import root
from optuna.trial import TrialState
from fsd import runs
from fsd.costs import costs, measured, student_steps, teachers
from fsd.experiment import Experiment
from fsd.glue import GlueData, load
from fsd.methods import reads
from fsd.models import packaged
from fsd.plans import Preset, Stage, presets
from fsd.report import belongs
from fsd.settings import Settings, resolve, shared_out, steps
from fsd.sweep import Sweep
from fsd.tables.estimator import forms
from fsd.tasks import tasks

plan = Preset('six runs', ('wnli',), (
    Stage('vkd', 'vkd', dict(alpha=(.2,.8))), Stage('fsd_l', 'fsd_l', dict(gamma_l=(.1,1)), {'vkd':('alpha',)}),
    Stage('seeds', 'nods', seeds=(0,1))))

def costs_of(*args, **params):
    sweep = Sweep(*args, **params)
    return costs(sweep, sweep.paces())

code = '''
import json, os, sys, time
from pathlib import Path
import fsd.trainer as t
from fsd.plans import Preset, Stage
from fsd.sweep import Sweep
params,hang,there = json.loads(sys.argv[1]),int(sys.argv[2]),Path(os.environ["FSD_OUTPUTS"])
note,begun = t.DistillationTrainer.note,[]
def slow(self, *args):
    if "students-" in self.args.output_dir and self.args.output_dir not in begun: begun.append(self.args.output_dir)
    if len(begun)==hang and self.state.global_step==3:
        print("\\nHANGS", file=sys.__stderr__, flush=True)
        time.sleep(100)
    note(self, *args)
t.DistillationTrainer.note = slow
plan = Preset('six runs', ('wnli',), (Stage('vkd', 'vkd', dict(alpha=(.2,.8))), Stage('fsd_l', 'fsd_l', dict(gamma_l=(.1,1)), {'vkd':('alpha',)}), Stage('seeds', 'nods', seeds=(0,1))))
sweep = Sweep(plan, **params)
there.mkdir(exist_ok=True)
(there/f"ready-{sys.argv[3]}-{os.getpid()}").touch()
while len(list(there.glob(f"ready-{sys.argv[3]}-*")))<2: time.sleep(.01)
sweep.run(wait=.2)
'''

@pytest.fixture
def worker(outputs, tiny):
    "`worker(hang, together)` works on the sweep in a process of its own, beginning with its pair, and hangs in its `hang`-th run."
    running = []
    def worker(hang, together):
        p = subprocess.Popen([sys.executable, '-c', code, json.dumps(tiny), str(hang), together], env={**os.environ, 'FSD_OUTPUTS': str(outputs)},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(p)
        return p
    yield worker
    for p in running:
        p.kill()
        p.communicate()

def kill_when_it_hangs(p):
    seen = []
    for line in p.stderr:
        seen.append(line)
        if line=='HANGS\n': break
    else: pytest.fail('it never came that far:\n'+''.join(seen))
    p.send_signal(signal.SIGKILL)
    assert p.wait()==-signal.SIGKILL

def test_two_at_once_and_two_killed(outputs, tiny, worker):
    pair = worker(1, 'first'),worker(2, 'first')
    for p in pair: kill_when_it_hangs(p)
    sweep = Sweep(plan, **tiny)
    before = {t.user_attrs['key'] for t in sweep.trials() if t.state==TrialState.COMPLETE}
    claimed = [t for t in sweep.trials() if t.state==TrialState.RUNNING]
    assert 1<=len(before)<=2 and 1<=len(claimed)<=2 and len(sweep.plan())==6
    mtimes = {p:p.stat().st_mtime_ns for p in outputs.rglob('run.json')}
    assert len(mtimes)==len(before)
    p = worker(0, 'second')
    while not list(outputs.glob('ready-second-*')) and p.poll() is None: time.sleep(.05)
    (outputs/'ready-second-here').touch()
    sweep.run(wait=.2)
    said = p.communicate()
    assert p.returncode==0, said[1]
    trials = Sweep(plan, **tiny).trials()
    done = Counter(t.user_attrs['key'] for t in trials if t.state==TrialState.COMPLETE)
    for t in trials: print(f"trial {t.number}", t.state.name, t.user_attrs['method'], t.user_attrs['params'], t.user_attrs['seed'], 'by process', t.user_attrs['worker'].rpartition('-')[2])
    assert set(done)=={r.key for r in Sweep(plan, **tiny).plan()} and set(done.values())=={1}
    assert {t.state for t in trials}=={TrialState.COMPLETE, TrialState.FAIL} and all('error' not in t.user_attrs for t in trials)
    records = runs.find(kind='trials')
    assert len(records)==6 and all(p.stat().st_mtime_ns==m for p,m in mtimes.items())
    printed = {p.stem:p.read_text() for p in outputs.rglob('sweeps/*/runs/*.txt')}
    assert set(printed)==set(done) and all(o.count('record: ')==1 for o in printed.values())
    assert sum('Resuming from' in o for o in printed.values())>=1, 'what was killed goes on from its checkpoint'
    assert len({t.user_attrs['worker'] for t in trials if t.state==TrialState.COMPLETE and t.user_attrs['key'] not in before})==2, 'both had a share'

def test_what_was_wrong_is_said_before_any_work(outputs):
    for wrong,words in [(dict(preset='papre'), "unknown preset 'papre'; did you mean 'paper'?"), (dict(preset='cpu', tasks='wnil'), "unknown task 'wnil'; did you mean 'wnli'?"),
                        (dict(preset='cpu', methods=['vdk']), "unknown method 'vdk'; did you mean 'vkd'?"), (dict(preset='cpu', lrr=1), "unknown parameter 'lrr'; did you mean 'lr'?"),
                        (dict(preset='cpu', choose='test'), "unknown choose 'test'"), (dict(preset='cpu', temperature=0), 'temperature=0.0 must be above 0'),
                        (dict(preset='cpu', storage='sqlite:///a.db'), 'two processes may claim the same run'), (dict(preset='cpu', seeds=0), 'seeds=0 must be at least 1'),
                        (dict(preset='cpu', seeds=2.5), 'seeds=2.5 is not a whole number'), (dict(preset='cpu', seed=3), 'seed=3: a sweep takes seeds'),
                        (dict(preset='cpu', holdout=.2), "holdout=0.2 is for choose='holdout'"), (dict(preset='settings', holdout=0), 'holdout=0.0 must be above 0')]:
        with pytest.raises(ValueError) as e: Sweep(**wrong)
        assert words in str(e.value)
    with pytest.raises(ValueError, match="unknown method 'fds'"): Sweep(Preset('', ('rte',), (Stage('a', 'fds'),)))
    assert not outputs.exists()

def test_a_missing_model_or_folder_of_data_ends_it_before_any_run(outputs, tiny):
    with pytest.raises(FileNotFoundError): Sweep(plan, **tiny|dict(model='nowhere/nothing')).run()
    with pytest.raises(FileNotFoundError): Sweep(plan, **tiny|dict(data='nowhere')).run()
    assert not outputs.exists()

# ---------------------------------------------------------------- plans

def test_settings_of_a_planned_run_are_resolved_once(outputs, monkeypatch):
    import fsd.planned
    asked = []
    monkeypatch.setattr(fsd.planned, 'resolve', lambda *args, **params: asked.append(args) or resolve(*args, **params))
    sweep = Sweep('demo')
    assert len(asked)==len(sweep.plan())==6
    sweep.headline(), sweep.table(), sweep.results(), costs(sweep, sweep.paces())
    assert len(asked)==6

def test_the_cpu_preset(outputs):
    seeds = Counter(r.method for r in Sweep('cpu').plan())
    assert {m:seeds[m] for m in ('nods','vkd','pkd','rkd','minilm','fsd')}==dict.fromkeys(('nods','vkd','pkd','rkd','minilm','fsd'), 15)
    assert {m:seeds.pop(m) for m in ('fsd_i','fsd_l','fsd_g','fsd_il')}==dict.fromkeys(('fsd_i','fsd_l','fsd_g','fsd_il'), 9)
    assert {n for m,n in seeds.items() if n!=15}=={6}
    assert all(r.settings.padding=='masked' for r in Sweep('cpu').plan())

def test_the_gpu_preset_varies_padding_where_it_is_read(outputs):
    found = Counter(r.method for r in Sweep('gpu').plan())
    assert found['vkd']==5*5 and found['fsd']==2*5*5 and all((n==50)==('padding' in reads(m)) for m,n in found.items())

def test_the_numbers_of_the_paper_plan(outputs):
    paper = Sweep('paper', seconds_per_step=.1)
    f,rows = costs(paper, paper.paces()),[t.sizes['train'] for t in tasks.values()]
    epoch = sum(-(-n//32) for n in rows)
    assert f.trainings[['vkd grid','fsd_g coarse','fsd weights','fsd lr','fsd seeds','teachers']].tolist()==[9*27, 9*73, 9*32, 9*4, 9*5, 9]
    assert f.steps['fsd_g coarse']==73*3*epoch and f.steps['teachers']==3*epoch
    assert f.seconds['all']==pytest.approx(.1*f.steps['all']) and len(paper.plan())==f.trainings['all']-9
    assert costs_of('paper', tasks='mnli').seconds.isna().all(), 'nothing to go by, no estimate'
    assert costs_of('paper', tasks='mnli', methods='fsd_i').index.tolist()==['vkd grid', 'fsd_i grid', 'fsd_i seeds', 'teachers', 'all']
    assert not outputs.exists()

def test_a_teacher_is_counted_once_for_each_setting_that_makes_another(outputs):
    def n(**grid): return costs_of(Preset('', ('mrpc',), (Stage('a', 'vkd', grid),))).loc['teachers',['trainings','steps']].tolist()
    def steps_of(**o):
        s = resolve('mrpc', 'vkd', **o)
        return steps(s, shared_out(s, tasks['mrpc'].sizes['train'])[0], 3)
    assert n(lr=(1e-5,2e-5), alpha=(.2,.5))==[1, steps_of()]
    for k,v in dict(accumulate=(1,2), weight_decay=(0.,.1), warmup=(0.,.1), max_grad_norm=(.5,1.), train_examples=(64,96), max_steps=(4,10**6), adam_epsilon=(1e-8,1e-6)).items():
        assert n(**{k:v})==[2, sum(steps_of(**{k:o}) for o in v)], k
    assert steps_of(max_steps=10**6)==steps_of()
    assert costs_of('batch').trainings['teachers']==len(teachers(Sweep('batch').plan()))==4

def test_seeds_replace_only_repetitions(outputs):
    found = Counter(r.stage for r in Sweep('paper', tasks='rte', methods='vkd', seeds=2).plan())
    assert found=={'vkd grid':27, 'vkd seeds':2}

def test_steps_are_the_trainers(outputs, tiny):
    s = Sweep(replace(plan, stages=plan.stages[2:]), **tiny|dict(batch_size=7), seeds=1)
    s.run(show=str)
    run, = runs.find(kind='trials')
    r, = s.plan()
    assert run.record['history'][-1]['step']==student_steps(r)==14
    assert measured(s.model, 'fp32')==[('wnli', 'nods', run.record['seconds']['student']/14)]
    assert s.results().score[0]==pytest.approx(100*run.scores['validation']['accuracy'])

def test_a_record_made_by_hand_counts(outputs, tiny):
    from fsd import distill
    one = replace(plan, stages=plan.stages[2:])
    by_hand = distill('wnli', 'nods', **tiny)
    before = (by_hand.folder/'run.json').stat().st_mtime_ns
    s = Sweep(one, **tiny, seeds=1)
    s.run(show=str)
    assert (by_hand.folder/'run.json').stat().st_mtime_ns==before and s.table().loc['seeds','wnli']=='1/1'

@pytest.mark.skipif('holdout' not in Settings.__dataclass_fields__, reason='there is no setting that holds a part of the training set out')
def test_a_holdout_chooses_and_the_winner_learns_from_all(outputs, tiny):
    two = replace(plan, stages=(plan.stages[0], Stage('winner', 'vkd', start={'vkd':()})))
    s = Sweep(two, **tiny, choose='holdout', holdout=.25)
    s.run(show=str)
    by_stage = {t.user_attrs['stage']:t for t in s.trials()}
    records = {k:runs.load(outputs/t.user_attrs['record']) for k,t in by_stage.items()}
    assert by_stage['vkd'].value==records['vkd'].scores['holdout']['accuracy'] and records['vkd'].record['data']['rows']['train']==36
    assert list(records['winner'].scores)==['validation'] and records['winner'].record['data']['rows']['train']==48
    assert s.winners()['wnli','winner']['alpha'] in (.2,.8) and set(s.chosen()['chosen by'])=={'0.25 of the training set'}
    assert [student_steps(r) for r in s.plan()]==[10, 10, 12]

# ---------------------------------------------------------------- the records that come with the project

@pytest.fixture(scope='module')
def glue(tmp_path_factory):
    "A folder with made-up sentences in the place of GLUE."
    from datasets import DatasetDict
    folder = tmp_path_factory.mktemp('glue')
    for task in ('wnli','rte','mrpc','cola','sst2'): DatasetDict(load(task, 'demo').splits).save_to_disk(folder/task)
    return folder

@pytest.fixture
def kept(glue, outputs, monkeypatch):
    "The kept records alone, without students and teachers, as on a machine that has their data."
    for kind in ('runs','trials'): shutil.copytree(root/'outputs'/kind, outputs/kind, ignore=shutil.ignore_patterns('*.npz'))
    found = runs.find(kind='trials')+runs.find(kind='runs')
    data = {o.task:o.record['data']['fingerprint'] for o in found} # results last: notebooks that were tested leave trials of demo data
    monkeypatch.setenv('FSD_GLUE', str(glue))
    monkeypatch.setattr(GlueData, 'fingerprint', property(lambda self: data.get(self.task.name)))
    monkeypatch.setattr(GlueData, 'complete', True)
    monkeypatch.setattr(Experiment, 'check', lambda self: SimpleNamespace(needs_t=frozenset())) # of data that are not there
    return found

@pytest.mark.skipif(not packaged(), reason='the encoder of these records is not installed')
def test_the_cpu_preset_and_the_estimator_preset_ask_for_the_kept_records(kept):
    sweeps = Sweep('cpu'), Sweep('cpu', tasks='cola'), Sweep('estimator', padding='masked')
    own = {(o.task, o.method, o.seed):o for o in kept if o.kind=='runs' and belongs(o, sweeps[0].model, 'masked')}
    assert Counter(task for task,*_ in own)==dict(wnli=42, rte=30, mrpc=63, cola=13)
    for sweep,r in [(s,r) for s in sweeps for r in s.plan() if not r.settings.debiased]:
        if run := own.pop((r.task, r.method, r.seed), None):
            found = Experiment(r.task, r.method, **sweep.params|r.params, seed=r.seed).done()
            assert found and found.folder==run.folder, run.folder
    assert not own

@pytest.mark.skipif(not packaged(), reason='the encoder of these records is not installed')
def test_the_estimator_preset_asks_for_the_kept_records_of_either_estimator_and_teacher(kept):
    def theirs(o): return {k:o.record['settings'][k] for k in ('teacher_seed','precision')}
    own = [o for o in kept if o.kind=='runs' and o.model=='all-minilm-l6-v2' and o.method in forms and o.task=='mrpc'
           and belongs(o, o.model, o.record['settings']['padding'], o.record['settings']['precision'], ('debiased','teacher_seed'))]
    asked = set()
    for chosen in {tuple(theirs(o).items()) for o in own}:
        sweep = Sweep('estimator', **dict(chosen))
        asked |= {found.folder for r in sweep.plan() if (found := Experiment(r.task, r.method, **sweep.params|r.params, seed=r.seed).done())}
    assert len(own)>=25 and {o.folder for o in own}==asked

@pytest.mark.skipif(not packaged(), reason='the encoder of these records is not installed')
def test_the_settings_preset_asks_for_the_kept_trials_though_winners_stand_in_settings_ini_since(kept):
    sweep = Sweep('settings', methods='nods vkd pkd rkd minilm fsd')
    found = [Experiment(r.task, r.method, **sweep.params|r.params, seed=r.seed).done() for r in sweep.plan()]
    of = {o.folder for o in kept if o.kind=='trials' and o.record['settings']['holdout'] and o.model=='all-minilm-l6-v2'}
    assert len({o.folder for o in found})==24 and {o.folder for o in found}==of

def test_the_trials_of_the_twelve_block_encoder_are_those_of_the_weights_preset(kept):
    asked = {(s.method, *s.settings({})[i].items()) for s in presets['weights'].stages for i in (0,1)}
    of = [o for o in kept if o.kind=='trials' and o.record['settings']['holdout'] and o.model=='bge-small-en-v1.5']
    assert len(of)==10==len(asked) and all(any(m==o.method and o.record['settings'][k]==v for m,(k,v) in asked) for o in of)

@pytest.mark.skipif(not packaged(), reason='the encoder of these records is not installed')
def test_a_sweep_over_the_kept_records_makes_none_again(kept, outputs, monkeypatch):
    import fsd.trainer
    def never(*args, **kwargs): raise AssertionError('a model is trained')
    monkeypatch.setattr(fsd.trainer.DistillationTrainer, 'train', never)
    before = {f:f.stat().st_mtime_ns for f in outputs.rglob('run.json')}
    said = []
    Sweep('cpu', methods='nods vkd fsd', seeds=2).run(show=said.append)
    Sweep('batch', methods='fsd_l', seeds=1).run(show=said.append) # size 32 is there, three others are not
    assert '18 of 18 runs done' in said and said[-1]=='1 of 4 runs done, 3 failed'
    assert {f:f.stat().st_mtime_ns for f in outputs.rglob('run.json')}==before

# ---------------------------------------------------------------- the database of several machines

def test_a_database_releases_claims_without_a_sign_of_life(outputs, tiny, tmp_path, monkeypatch):
    import optuna, fsd.journal
    monkeypatch.setattr(fsd.journal, 'RDBStorage', lambda url, **kw: optuna.storages.RDBStorage(f'sqlite:///{tmp_path}/a.db', heartbeat_interval=1, grace_period=1))
    s = Sweep(replace(plan, stages=plan.stages[2:]), **tiny, seeds=1, storage='postgresql://stands.in')
    s.study
    s.enqueue()
    dead = s.study.ask()
    s.study._storage.record_heartbeat(dead._trial_id)
    assert s.table().loc['seeds','wnli']=='0/1, 1 running'
    time.sleep(2.1)
    s.run(show=str, wait=.2)
    assert s.table().loc['seeds','wnli']=='1/1' and [t.state for t in s.trials()]==[TrialState.FAIL, TrialState.COMPLETE]
    s.study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=s.trials()[0].user_attrs)) # queued by another machine too
    s.take()
    assert s.trials()[-1].state==TrialState.PRUNED and len(runs.find(kind='trials'))==1

def test_two_models_that_are_called_alike_are_two_sweeps(outputs, tiny, tmp_path):
    from transformers import AutoModel
    other = tmp_path/'other'/'tiny-bert'
    shutil.copytree(tiny['model'], other)
    same = Sweep(plan, **tiny | dict(model=str(other))).study_name
    AutoModel.from_config(AutoModel.from_pretrained(other).config).save_pretrained(other)
    assert same==Sweep(plan, **tiny).study_name!=Sweep(plan, **tiny | dict(model=str(other))).study_name
