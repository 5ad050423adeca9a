"Runs go to a cluster, what they need is made before, and a node that dies costs nothing."
import threading, time
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
import pytest
from optuna.trial import TrialState
from fsd import engine, runs
from fsd.costs import teachers
from fsd.engine import RaySweep, asked_of_teacher, pieces, sweep_on
from fsd.planned import Plan
from fsd.plans import Preset, Stage, presets
from fsd.sweep import Sweep

plan = Preset('six runs', ('wnli',), (
    Stage('vkd', 'vkd', seeds=(0,1)), Stage('fsd', 'fsd', start={'vkd':()}, seeds=(0,1)), Stage('nods', 'nods', seeds=(0,1))))

@pytest.mark.parametrize('name', presets)
def test_every_run_waits_for_what_it_needs(name):
    rs = Plan(name, tasks=None if name=='demo' else 'mrpc').runs()
    ps = pieces(rs)
    by_key = {p.key:p for p in ps}
    assert len(by_key)==len(ps) and sum(p.kind=='run' for p in ps)==len(rs)
    assert sum(p.kind=='teacher' for p in ps)==len(teachers(rs))
    for i,p in enumerate(ps):
        assert set(p.waits)<={o.key for o in ps[:i]}
        assert p.kind!='run' or p.waits and p.runs[0] in by_key[p.waits[0]].runs
        assert [by_key[w].kind for w in p.waits]=={'teacher':[], 'features':['teacher'],
                                                  'run':['features' if asked_of_teacher(p.runs[0]) else 'teacher']}[p.kind]

def asked(method, **params):
    r, = Plan(Preset('', ('mrpc',), (Stage('a', method),)), **params).runs()
    return asked_of_teacher(r)

def test_runs_share_features_where_they_read_the_same():
    assert asked('fsd')==asked('fsd_g')==asked('fsd', lr=1e-4, gamma_l=.5) and asked('sp')==asked('fsd_l')==asked('fsd', gamma_g=0)
    for other in (dict(padding='masked'), dict(layer=3), dict(memory_size=50), dict(precision='bf16'), dict(max_length=64), dict(student_layers=2)):
        assert asked('fsd')!=asked('fsd', **other), other
    assert asked('vkd')!={} and asked('vkd')==asked('vkd', student_layers=2), 'logits are the same for any student'
    assert asked('nods')==asked('wid')==asked('minilm')==asked('pkd', teacher_features='live')=={}
    assert asked('fsd', teacher_features='live')!={}, 'the memory is kept all the same'

def test_a_teacher_of_ones_own_is_not_waited_for():
    rs = [replace(r, settings=replace(r.settings, teacher='mine')) for r in Plan('cpu', tasks='mrpc', methods='vkd nods', seeds=1).runs()]
    assert [p.kind for p in pieces(rs)]==['run', 'features', 'run'] and pieces(rs)[0].waits==pieces(rs)[1].waits==()

def test_without_ray_one_error_names_the_extra(outputs, monkeypatch):
    monkeypatch.setattr(engine, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"engine='ray' needs Ray, an extra of fsd: pip install -e '\.\[ray\]'"): sweep_on('ray')
    assert type(sweep_on())==type(sweep_on('processes', preset='cpu', seeds=1))==Sweep and not outputs.exists()

def test_what_is_wrong_is_said_before_ray_is_looked_for(outputs):
    for wrong,words in [(dict(engine='slurm'), "unknown engine 'slurm'"), (dict(engine='ray', gpu_share=0), 'gpu_share=0.0 must be above 0'),
                        (dict(engine='ray', cpus=0), 'cpus=0 must be at least 1'), (dict(cpus=2), "cpus=2 is for engine='ray'"),
                        (dict(engine='ray', storage='mysql://x'), "engine='ray' needs one")]:
        with pytest.raises(ValueError) as e: sweep_on(**wrong)
        assert words in str(e.value)

def test_room(monkeypatch):
    class Cluster:
        def __init__(self, *nodes): self.found = [dict(Alive=True, Resources=n) for n in nodes]
        def nodes(self): return self.found + [dict(Alive=False, Resources=dict(GPU=8., CPU=99.))]
    def room(*nodes, **params):
        monkeypatch.setattr(engine, 'find_ray', lambda: Cluster(*nodes))
        return {k:v for k,v in RaySweep(**params).room().items() if k!='max_retries'}
    assert room(dict(CPU=4.))==dict(num_cpus=1, num_gpus=0, max_calls=0)
    assert room(dict(CPU=4.), dict(CPU=9., GPU=1.), gpu_share=.2, cpus=3)==dict(num_cpus=3, num_gpus=.2, max_calls=0)
    assert room(dict(CPU=9., GPU=8.))==dict(num_cpus=1, num_gpus=1, max_calls=1), 'processes stay with their first GPU'
    assert room(dict(CPU=9., GPU=8.), device='cpu')['num_gpus']==0
    with pytest.raises(ValueError, match='gpu_share=0.2: the cluster has no GPU'): room(dict(CPU=4.), gpu_share=.2)
    with pytest.raises(ValueError, match='cpus=5: no node of the cluster has more than 4'): room(dict(CPU=4.), cpus=5)

# ---------------------------------------------------------------- what is asked of Ray, with something that stands in for it

class Stub:
    "As much of Ray as a sweep asks for, with one node; `answer(f, *args)` is what a piece comes to."
    class exceptions:
        class RayError(Exception): pass
        class RayTaskError(RayError): cause = None
    util = SimpleNamespace(scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node))
    def __init__(self, answer): self.answer,self.refs,self.log,self.asked = answer,{},[],[]
    def is_initialized(self): return False
    def init(self, **kw): self.log.append('init')
    def shutdown(self): self.log.append('shutdown')
    def cancel(self, ref, force): self.log.append('cancel')
    def nodes(self): return [dict(Alive=True, NodeID='n', NodeManagerHostname='one', NodeManagerAddress='10.0.0.1', Resources=dict(CPU=2.))]
    def remote(self, **kw):
        self.asked.append(kw)
        def later(f, *args):
            self.refs[n := len(self.refs)] = f,args
            return n
        def given(f):
            found = SimpleNamespace(remote=partial(later, f))
            found.options = lambda **kw: found
            return found
        return given
    def wait(self, refs, timeout): return refs[:1],refs[1:]
    def get(self, ref):
        f,args = self.refs.pop(ref)
        return self.answer(f, *args)

@pytest.fixture
def stub(outputs, tiny, monkeypatch):
    "`stub(answer)`: a stand-in for Ray, and a sweep that runs on it."
    def stub(answer):
        ray = Stub(answer)
        monkeypatch.setattr(engine, 'find_ray', lambda: ray)
        return ray,sweep_on('ray', preset=plan, **tiny)
    return stub

def on_work(what):
    "An answer that does what is asked of a node, and `what` for every piece."
    return lambda f, *args: what() if f is engine.work else f(*args)

def raises(e):
    def what(): raise e
    return what

def test_a_node_that_does_not_share_is_named_before_anything_begins(stub):
    ray,sweep = stub(lambda f, *args: 'does not see the folder')
    with pytest.raises(RuntimeError, match=r'one \(10.0.0.1\) does not see the folder'): sweep.run(show=str)
    assert ray.log==['init', 'shutdown']

def test_ctrl_c_ends_what_is_at_work(stub):
    ray,sweep = stub(on_work(raises(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt): sweep.run(show=str)
    assert ray.log==['init', *['cancel']*5, 'shutdown'], 'a teacher, features and four runs were handed over, and one was interrupted'

def test_pieces_run_under_the_variables_of_this_process(stub, monkeypatch, outputs):
    monkeypatch.setenv('FSD_GLUE', 'here')
    ray,sweep = stub(on_work(raises(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt): sweep.run(show=str)
    asked = ray.asked[-1]
    assert asked.pop('runtime_env')['env_vars'].items()>=dict(FSD_GLUE='here', FSD_OUTPUTS=str(outputs)).items()
    assert asked==dict(num_cpus=1, num_gpus=0, max_calls=0, max_retries=5)

def test_what_dies_again_and_again_is_told_at_the_end(stub):
    ray,sweep = stub(on_work(raises(Stub.exceptions.RayError('died'))))
    with pytest.raises(RuntimeError, match='6 pieces lost again and again'): sweep.run(show=str)
    assert ray.log==['init', 'shutdown'] and not sweep.busy

def test_an_error_of_the_engine_itself_ends_the_sweep(stub):
    ray,sweep = stub(on_work(raises(Stub.exceptions.RayTaskError('two does not see the journal'))))
    with pytest.raises(Stub.exceptions.RayTaskError, match='does not see'): sweep.run(show=str)
    assert ray.log==['init', *['cancel']*5, 'shutdown']

# ---------------------------------------------------------------- a real cluster, of two nodes on this machine

@pytest.fixture
def cluster(monkeypatch):
    "Two nodes with a CPU each; the second is `cluster.second`."
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    monkeypatch.setenv('RAY_raylet_start_wait_time_s', '200')
    ray = pytest.importorskip('ray')
    from ray.cluster_utils import Cluster
    quick = dict(health_check_period_ms=2000, health_check_failure_threshold=5)
    c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, _system_config=quick))
    c.second = c.add_node(num_cpus=1)
    ray.init(address=c.address, log_to_driver=False)
    yield c
    ray.shutdown()
    c.shutdown()

def runs_on(node, pid):
    "Whether the process `pid` was started by `node`."
    import psutil
    above,own = psutil.Process(pid).parents(),node.all_processes['raylet'][0].process.pid
    return own in [p.pid for p in above]

def kill_at_work(cluster, sweep, outputs):
    "Kill the second node once a run of it has left a checkpoint; the run's key."
    while True:
        time.sleep(.05)
        at_work = [t.user_attrs for t in sweep.trials() if t.state==TrialState.RUNNING and 'worker' in t.user_attrs]
        for a in at_work:
            there = (outputs/'checkpoints').glob(f"students-*-{a['method']}-s{a['seed']}-*/*/manifest.json")
            if any(there) and runs_on(cluster.second, int(a['worker'].rpartition('-')[2])):
                cluster.remove_node(cluster.second, allow_graceful=False)
                return sweep.killed.append(a['key'])

def test_a_node_dies_and_all_runs_are_done_once(outputs, tiny, cluster):
    sweep = sweep_on('ray', preset=plan, **tiny|dict(epochs=10))
    sweep.killed = []
    threading.Thread(target=kill_at_work, args=(cluster, sweep, outputs), daemon=True).start()
    said = []
    sweep.run(show=said.append, wait=.5)
    print('\n'.join(said))
    trials = sweep.trials()
    done = Counter(t.user_attrs['key'] for t in trials if t.state==TrialState.COMPLETE)
    assert len(sweep.killed)==1 and set(done)=={r.key for r in sweep.plan()} and set(done.values())=={1}
    assert [t.user_attrs['key'] for t in trials if t.state==TrialState.FAIL]==sweep.killed and len(runs.find(kind='trials'))==6
    printed = {p.stem:p.read_text() for p in outputs.rglob('sweeps/*/runs/*.txt')}
    assert 'Resuming from' in printed[sweep.killed[0]], 'it goes on from its checkpoint'
    assert all(printed[k].count('record: ')==1 for k in done)
    assert not any('Another process is making' in o for o in printed.values()), 'nobody waited for a lock'
    assert Counter(k.partition('-')[0] for k in set(printed)-set(done))==dict(teacher=1, features=2)
