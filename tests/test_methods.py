"Every method from its name to a student that transformers loads, and settings that a method cannot have."
import pytest, torch
from transformers import AutoModelForSequenceClassification, TrainerCallback
from fsd.experiment import Experiment
from fsd.methods import find_term, methods
from fsd.models import load_teacher
from fsd.rows import collate
from fsd.settings import resolve

@pytest.fixture(scope='module')
def shared(tmp_path_factory): return tmp_path_factory.mktemp('shared')

@pytest.fixture
def short(tiny, shared, monkeypatch):
    "A run of four steps; all of them share one teacher."
    monkeypatch.setenv('FSD_OUTPUTS', str(shared/'outputs'))
    return tiny | dict(epochs=1, train_examples=32, relation_heads=4, gamma_g=1e-3)

@pytest.mark.parametrize('method', methods)
def test_a_method_from_its_name_to_a_student(method, short):
    e = Experiment('mrpc', method, padding='masked', **short)
    run = e.run()
    student = AutoModelForSequenceClassification.from_pretrained(e.student_folder)
    inherited = methods[method].student=='inherited'
    assert (student.config.num_hidden_layers, student.config.hidden_size)==((4, 8) if inherited else (2, 16))
    logged = {k for l in run.record['history'] for k in l} - {'step','epoch','loss','learning_rate'}
    assert logged==set(run.record['terms'])==set(e.weights), 'every term took part at some time'
    assert [set(l) for l in run.record['probe']]==4*[{'step','probe','training'}] and 0<=run.scores['validation']['accuracy']<=1

def test_looking_at_a_student_changes_nothing_in_it(short, monkeypatch, tmp_path):
    def weights(folder):
        monkeypatch.setenv('FSD_OUTPUTS', str(folder))
        return (Experiment('mrpc', 'vkd', seed=7, **short).student_folder/'model.safetensors').read_bytes()
    watched = weights(tmp_path/'watched')
    monkeypatch.setattr(Experiment, 'probe', lambda self: TrainerCallback())
    assert weights(tmp_path/'alone')==watched

def test_schedules_make_different_students(short):
    places = {Experiment('mrpc', m, **short).place('students').name.rpartition('-')[2] for m in ('internal', 'internal_progressive', 'internal_stacked')}
    assert len(places)==3

@pytest.mark.parametrize('method, params, message', [
    ('minilm_v2', dict(relation_heads=3), "relation_heads=3 does not divide the student's width 16"),
    ('pkd', dict(student_layers=3), "skip needs a teacher whose blocks are a multiple of the student's 3"),
    ('pkd', dict(student_layers=1), 'patience needs a student of 2'),
    ('pkd', dict(patience='lsat'), "unknown patience 'lsat'; did you mean 'last'?"),
    ('internal_stacked', dict(stage_cap=.5), '2 blocks with 0.5 of all steps each'),
    ('wid', dict(student_layers=2), 'student_layers=2: a student that inherits'),
    ('wid', dict(student_width=7), 'width=7 cannot be shared by 2 heads'),
    ('wid', dict(wid_ramp=.9, wid_fade=.2), 'ramp=0.9 and fade=0.2'),
    ('vkd', dict(student_width=8), 'student_width=8 is for methods whose student inherits')])
def test_what_a_method_cannot_have_is_said_before_any_work(method, params, message, short, shared):
    with pytest.raises(ValueError, match=message): Experiment('mrpc', method, **short | params)

def test_a_value_for_a_method_on_a_task_is_the_last_word():
    assert resolve('sst2', 'ckd').angle==1000 and resolve('mrpc', 'ckd').angle==1 and resolve('sst2', 'rkd').angle==2
    assert resolve('sst2', 'ckd', angle=3).angle==3

def test_every_term_says_where_it_is_from(): assert all(find_term(n).source for m in methods.values() for n in m.spelled(2))

# ---------------------------------------------------------------- the layer that structures compare

def student_weights(e): return (e.student_folder/'model.safetensors').read_bytes()

def test_the_usual_layer_by_its_number_makes_the_usual_student_and_memory(short):
    usual,same = (Experiment('mrpc', 'fsd', **short, **o) for o in ({}, dict(layer=3)))
    assert usual.place('memories')==same.place('memories') and usual.features.folder==same.features.folder
    assert student_weights(usual)==student_weights(same)
    assert 'layer' not in usual._about_students()['settings'] and usual.overrides.keys()==same.overrides.keys()-{'layer'}

@pytest.mark.parametrize('layer, student', [(4, 2), (2, 1)])
def test_another_layer_is_compared_kept_and_clustered(short, layer, student):
    e,usual = (Experiment('mrpc', 'fsd', **short, **o) for o in (dict(layer=layer), {}))
    objective = e._rehearse(*(load_teacher(e.source, 'mrpc').eval(),)*2)
    assert (objective.needs_s, objective.needs_t)==({('hidden',student)}, {('hidden',layer)})==(objective.needs_s, e.features.needs)
    for kind in ('memories','students'): assert e.place(kind)!=usual.place(kind)
    assert e.memory.shape==usual.memory.shape and not e.memory.equal(usual.memory)

def test_a_layer_that_goes_with_the_students_embeddings_is_refused(short):
    with pytest.raises(ValueError, match=r"compare the student's embeddings \(it has 2 blocks\) with block 1 of the teacher's 4"):
        Experiment('mrpc', 'fsd', **short, layer=1)

def test_a_live_teacher_shows_the_layer_that_was_kept(short):
    kept,live = (Experiment('mrpc', 'fsd_il', **short, layer=2, teacher_features=how) for how in ('kept','live'))
    pad = collate(kept.tokenizer.pad_token_id, 32)
    batch = pad([kept.rows['train'][i] for i in range(4)])
    a,b = kept.features(batch),live.features(batch)
    assert a.hidden.keys()==b.hidden.keys()=={2}
    torch.testing.assert_close(a.hidden[2], b.hidden[2], rtol=2**-10, atol=1e-3)

def test_a_layer_that_the_teacher_lacks_is_refused_before_it_is_trained(short, shared):
    with pytest.raises(ValueError, match='layer=5 is no block of the teacher, which has 1 to 4'): Experiment('mrpc', 'fsd', **short, layer=5)
    with pytest.raises(ValueError, match='layer=0 must be at least 1'): Experiment('mrpc', 'fsd', **short, layer=0)
    assert 'layer' not in Experiment('mrpc', 'vkd', **short, layer=2).overrides, 'which compares no layers'
