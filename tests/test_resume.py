"""Killed at any moment and started again, a run ends in the same numbers and the same weights, bit for bit."""
import signal
from pathlib import Path
import pytest
from safetensors.torch import load_file
from fsd import distill
from fsd.kept import sha256, verify
from fsd.runs import load
from fsd.job import NonFinite
from fsd.trainer import DistillationTrainer

variants = {'with memory': dict(), 'accumulating': dict(accumulate=2, batch_size=4)}
only = ('kind', 'fingerprint', 'settings', 'terms', 'data', 'model', 'parameters', 'scores', 'best', 'epochs', 'analysis', 'history')

def result(folder:Path):
    "What must not depend on how often a run was killed: its record without times, and the weights of student and teacher."
    record, = folder.rglob('run.json')
    weights = {f'{p.parents[1].name}/{p.parent.name}': sha256(p) for p in folder.glob('[st]*/*/model.safetensors')}
    assert len(weights)==2 and not list((folder/'checkpoints').glob('*/checkpoint-*')), 'teacher and student are kept, checkpoints are not'
    return {k:v for k,v in load(record.parent).record.items() if k in only}, weights

@pytest.fixture(scope='module')
def undisturbed(tiny, tmp_path_factory):
    "What each variant comes to when nobody kills it."
    found = {}
    for name,o in variants.items():
        folder = tmp_path_factory.mktemp('undisturbed')
        with pytest.MonkeyPatch.context() as m:
            m.setenv('FSD_OUTPUTS', str(folder))
            distill('wnli', 'fsd', **tiny | o)
        found[name] = result(folder)
    return found

hangs = '''
import time, fsd.trainer as t
note = t.DistillationTrainer.note
def hang(self, *args):
    if "{who}-" in self.args.output_dir and self.state.global_step==3:
        print("\\nHANGS", flush=True)
        time.sleep(100)
    note(self, *args)
t.DistillationTrainer.note = hang
'''

@pytest.mark.parametrize('variant, phases', [('with memory', ['teachers', 'students']), ('accumulating', ['students'])])
def test_killed_between_checkpoints(outputs, start, tiny, undisturbed, capsys, variant, phases):
    params = tiny | variants[variant]
    for who in phases:
        p = start(outputs, 'wnli', 'fsd', params, hangs.format(who=who))
        assert any(line=='HANGS\n' for line in p.stdout), 'it never came that far'
        p.send_signal(signal.SIGKILL)
        assert p.wait()==-signal.SIGKILL
        assert [c.name for c in (outputs/'checkpoints').glob(f'{who}-*/*')]==['checkpoint-2'] and not list((outputs/who).glob('*/manifest.json'))
    distill('wnli', 'fsd', **params)
    said = capsys.readouterr().out
    assert 'teachers: found' in said and 'Resuming from' in said
    assert result(outputs)==undisturbed[variant]

dies_sealing = '''
import os, fsd.trainer as t
seal = t.seal
def die(folder, **about):
    if "students-" in str(folder) and about["step"]==4: os._exit(9)
    seal(folder, **about)
t.seal = die
'''

def test_killed_inside_a_checkpoint(outputs, start, tiny, undisturbed, capsys):
    p = start(outputs, 'wnli', 'fsd', tiny, dies_sealing)
    assert p.communicate()[0] and p.returncode==9
    assert not next((outputs/'checkpoints').glob('students-*/checkpoint-4')).joinpath('manifest.json').exists()
    distill('wnli', 'fsd', **tiny)
    said = capsys.readouterr().out
    assert 'Skipped checkpoint-4: manifest.json: missing' in said and said.count('Resuming from')==1 and 'checkpoint-2\n' in said
    assert result(outputs)==undisturbed['with memory']

@pytest.mark.parametrize('step', [6, 12])
def test_killed_while_an_epoch_is_evaluated(outputs, tiny, undisturbed, monkeypatch, step):
    evaluate = DistillationTrainer.evaluate
    def dies(self, *args, **kwargs):
        if 'students-' in self.args.output_dir and self.state.global_step==step: raise KeyboardInterrupt
        return evaluate(self, *args, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(DistillationTrainer, 'evaluate', dies)
        with pytest.raises(KeyboardInterrupt): distill('wnli', 'fsd', **tiny)
    run = distill('wnli', 'fsd', **tiny)
    assert [e['epoch'] for e in run.record['epochs']]==[1,2]
    assert result(outputs)==undisturbed['with memory']

def test_killed_before_the_finished_student_is_sealed(outputs, tiny, undisturbed, monkeypatch):
    import fsd.job
    class Dies(fsd.job.Clock):
        def seconds(self):
            if self.over: raise KeyboardInterrupt
            return super().seconds()
        over = False
        def on_train_end(self, args, state, control, **kwargs): self.over = 'students-' in args.output_dir
    with monkeypatch.context() as m:
        m.setattr(fsd.job, 'Clock', Dies)
        with pytest.raises(KeyboardInterrupt): distill('wnli', 'fsd', **tiny)
    run = distill('wnli', 'fsd', **tiny)
    assert [e['epoch'] for e in run.record['epochs']]==[1,2] and run.record['seconds']['student']>.01
    assert result(outputs)==undisturbed['with memory']

# ---------------------------------------------------------------- numbers that are none

def whole_checkpoints(outputs):
    "The student's checkpoints that verify and hold finite weights, by name."
    found = [p for p in (outputs/'checkpoints').glob('students-*/checkpoint-*') if verify(p)]
    return {p.name for p in found if all(v.isfinite().all() for v in load_file(p/'model.safetensors').values())}

def test_a_learning_rate_that_blows_up_ends_the_run(outputs, tiny):
    with pytest.raises(NonFinite, match=r"step \d+: the loss is .* because of '(ce|kd|intra|local|global)'"): distill('wnli', 'fsd', **tiny | dict(lr=1e30))
    assert whole_checkpoints(outputs) and not list(outputs.rglob('run.json')) and not list((outputs/'students').glob('*/'))

@pytest.mark.parametrize('term', ['kd', 'local'])
def test_a_term_that_becomes_nan_is_named_and_the_run_goes_on_from_before(outputs, tiny, monkeypatch, capsys, term):
    note = DistillationTrainer.note
    def poisoned(self, loss, values):
        bad = term in values and self.state.global_step==4
        note(self, loss*float('nan') if bad else loss, {k: v*float('nan') if bad and k==term else v for k,v in values.items()})
    monkeypatch.setattr(DistillationTrainer, 'note', poisoned)
    with pytest.raises(NonFinite, match=f"step 5: the loss is nan because of '{term}'.*checkpoint-4"): distill('wnli', 'fsd', **tiny)
    assert not list(outputs.rglob('run.json'))
    assert 'checkpoint-4' in whole_checkpoints(outputs)
    monkeypatch.setattr(DistillationTrainer, 'note', note)
    assert distill('wnli', 'fsd', **tiny).record['history'][-1]['step']==12
    assert 'checkpoint-4' in capsys.readouterr().out
