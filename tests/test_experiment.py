"""What an experiment refuses before anything is computed, and where it computes."""
from types import SimpleNamespace
import pytest, torch
from conftest import build_for_cuda
from datasets import Dataset
from transformers import (AlbertConfig, AutoModel, AutoModelForSequenceClassification, BertConfig, BertTokenizerFast, DebertaV2Config, DistilBertConfig,
                          FNetConfig, MPNetConfig, RobertaConfig, XLMConfig)
from fsd.experiment import Experiment, distill
from fsd.kept import read_json
from fsd.methods import methods, terms
from fsd.terms import Method, Term

# ---------------------------------------------------------------- devices

def test_the_main_job_with_torch_built_for_cuda_and_no_gpu(outputs, tiny, monkeypatch):
    build_for_cuda(monkeypatch, gpu=False)
    teacher = Experiment('wnli', 'nods', **tiny)
    assert teacher.summary()['device'].startswith('cpu') and len(teacher.teacher_scores())==2
    run = distill('wnli', 'fsd', **tiny)
    assert run.record['environment']['device'].startswith('cpu') and run.record['probe']

def test_a_device_that_is_not_there_is_refused_first(outputs, tiny):
    with pytest.raises(ValueError, match="device='cuda' is not here: there is cpu"): Experiment('wnli', 'fsd', **tiny, device='cuda')
    with pytest.raises(ValueError, match="unknown device 'gpu'"): Experiment('wnli', 'fsd', **tiny, device='gpu')
    assert not outputs.exists()

def test_the_device_names_no_run(outputs, tiny):
    a,b = Experiment('wnli', 'fsd', **tiny),Experiment('wnli', 'fsd', **tiny, device='cpu')
    assert a.folder==b.folder and all(a.determined_by(k)==b.determined_by(k) for k in ('teachers', 'memories', 'students'))

# ---------------------------------------------------------------- refusals

@pytest.fixture
def model(tiny_bert, tmp_path):
    "`model(kind, **changes)`: a folder with the tiny BERT's tokenizer and a random model that differs from it as told."
    def make(kind=BertConfig, task=None, **changes):
        folder = tmp_path/f'model-{len(list(tmp_path.iterdir()))}'
        tokenizer = BertTokenizerFast.from_pretrained(tiny_bert)
        size = dict(vocab_size=1+max(tokenizer.get_vocab().values()), hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
        load = AutoModelForSequenceClassification if task else AutoModel
        load.from_config(kind(**size | dict(pad_token_id=0) | changes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)
    return make

refused = {
    'fewer positions': ('fsd', dict(student_model=dict(max_position_embeddings=24)), 'max_length=32 is longer than the 24 positions of model-'),
    'RoBERTa has two fewer': ('nods', dict(model=(RobertaConfig, dict(pad_token_id=1, type_vocab_size=2)), max_length=64), "max_length=64 is longer than the model's 62 positions"),
    'RoBERTa as the student': ('fsd', dict(student_model=(RobertaConfig, dict(pad_token_id=1, type_vocab_size=2)), max_length=63), 'max_length=63 is longer than the 62 positions of model-'),
    'other heads': ('minilm', dict(student_model=dict(num_attention_heads=4)), r"'minilm' cannot compare this student with its teacher: .* heads .*minilm_v2"),
    'other heads of every block': ('internal', dict(student_model=dict(num_attention_heads=4)), r"'attention_1' cannot compare this student with its teacher: "),
    'narrower for minilm_v2': ('minilm_v2', dict(student_model=dict(hidden_size=24, num_attention_heads=2), relation_heads=16), "relation_heads=16 does not divide the student's width 24"),
    'narrower for pkd': ('pkd', dict(student_model=dict(hidden_size=8)), 'the student is 8 wide, the teacher 16'),
    'narrower for internal': ('internal', dict(student_model=dict(hidden_size=8)), 'the student is 8 wide, the teacher 16'),
    'FNet for minilm': ('minilm', dict(model=(FNetConfig, dict(type_vocab_size=2))), 'attention of FNetForSequenceClassification cannot be read.*; methods that work with this model: nods, vkd,'),
    'FNet as the student': ('minilm_v2', dict(student_model=(FNetConfig, dict(type_vocab_size=2)), relation_heads=2), 'attention of FNetForSequenceClassification cannot be read'),
    'one block below which there is none': ('fsd', dict(student_layers=1), r"would compare the student's embeddings \(it has 1 block\)"),
    'XLM': ('nods', dict(model=(XLMConfig, dict(emb_dim=16, n_heads=2, n_layers=4))), 'XLMForSequenceClassification has no one list of its 4 blocks'),
    'FNet for wid': ('wid', dict(model=(FNetConfig, dict(type_vocab_size=2))), "weight inheritance needs a BERT, .* of the kind 'fnet'; methods that work with this model: nods, vkd,"),
    'decoder for wid': ('wid', dict(model=dict(is_decoder=True)), 'weight inheritance needs'),
    'width for wid': ('wid', dict(student_width=7), 'width=7'),
    'blocks for wid': ('wid', dict(student_layers=2), 'student_layers=2: a student that inherits'),
    'shares for wid': ('wid', dict(wid_ramp=.9, wid_fade=.5), 'ramp=0.9 and fade=0.5'),
    'width without wid': ('fsd', dict(student_width=8), 'student_width=8 is for methods'),
    'too few centroids': ('fsd', dict(memory_size=3, debiased=True), '4'),
    'a budget that holds no memory': ('fsd', dict(memory_budget=1, max_length=64, model=dict(hidden_size=512)), 'memory_budget=1 MB: a budget of'),
    'nothing but special tokens': ('fsd', dict(max_length=3), 'max_length=3 leaves no room for words: 3 tokens of a row of wnli are special'),
    'shorter than the special tokens': ('nods', dict(max_length=2), 'max_length=2 (leaves no room for words|must be at least 3)'),
    'more words than embeddings': ('nods', dict(model=dict(vocab_size=50)), 'the tokenizer gives ids up to .*, model-0 has 50 embeddings'),
    'more words than the student has': ('fsd', dict(student_model=dict(vocab_size=50)), 'the tokenizer gives ids up to .*, model-0 has 50 embeddings'),
    'one kind of sentence': ('nods', dict(model=dict(type_vocab_size=1)), 'model-0 cannot tell two sentences apart'),
    'one kind of sentence for the student': ('vkd', dict(student_model=dict(type_vocab_size=1)), 'model-0 cannot tell two sentences apart'),
    'two places to cut from': ('vkd', dict(student_model={}, student_init='teacher'), "student_init='teacher' cuts the student from the teacher"),
    'a student for other labels': ('vkd', dict(student_model=dict(num_labels=3, task='mnli')), 'the model has 3 labels, wnli has 2'),
    'a teacher for other labels': ('vkd', dict(model=dict(num_labels=3, task='mnli')), 'the model has 3 labels, wnli has 2'),
    'nothing to learn from': ('nods', dict(train_examples=1, holdout=.5), 'holdout=0.5 leaves no'),
    'a term without a number': ('own', {}, r"'own' gives torch.Size\(\[4\]\) for a batch, where a loss is one number"),
    'a term that fails': ('fails', {}, r"'fails' cannot compare this student with its teacher: it reads block 9, of which its needs ask for nothing")}

@pytest.mark.parametrize('case', refused)
def test_what_cannot_end_well_is_refused_before_the_teacher_is_trained(outputs, tiny, model, monkeypatch, case):
    method,changes,why = refused[case]
    own = dict(own=lambda pair: lambda s,t,labels: s.logits.sum(1), fails=lambda pair: lambda s,t,labels: s.hidden[9])
    for name,term in own.items():
        monkeypatch.setitem(terms, name, Term('a test', term))
        monkeypatch.setitem(methods, name, Method('a test', 'one term', {name:'1'}))
    def made(o): return model(*o[:1], **o[1]) if isinstance(o, tuple) else model(**o) if isinstance(o, dict) else o
    with pytest.raises(ValueError, match=why) as e: Experiment('wnli', method, **tiny | {k:made(v) for k,v in changes.items()})
    assert '\n' not in str(e.value) and not outputs.exists()

@pytest.mark.parametrize('method, changes', [
    ('fsd', dict(student_model=dict(num_attention_heads=4))), ('minilm_v2', dict(student_model=dict(num_attention_heads=4), relation_heads=2)),
    ('fsd', dict(student_model=dict(hidden_size=8))), ('fsd', dict(model=(MPNetConfig, dict(pad_token_id=1)))), ('vkd', dict(model=dict(is_decoder=True))), ('minilm', dict(model=dict(is_decoder=True))),
    ('minilm_v2', dict(student_model=(MPNetConfig, dict(pad_token_id=1)), relation_heads=2)), ('internal', dict(model=(AlbertConfig, dict(embedding_size=8)))),
    ('fsd', dict(model=(RobertaConfig, dict(pad_token_id=1, type_vocab_size=2)), max_length=62)), ('fsd', dict(max_length=4, memory_size=4, debiased=True)),
    ('vkd', dict(model=(DebertaV2Config, dict(type_vocab_size=0)))), # which looks at no kinds of tokens
    ('fsd', dict(model=(DistilBertConfig, dict(dim=16, n_layers=4, n_heads=2, hidden_dim=32)))), ('nods', dict(batch_size=64))])
def test_what_can_end_well_is_not_refused(outputs, tiny, model, method, changes):
    def made(o): return model(*o[:1], **o[1]) if isinstance(o, tuple) else model(**o) if isinstance(o, dict) else o
    params = tiny | {k:made(v) for k,v in changes.items()} | dict(teacher_epochs=1, epochs=1, max_steps=2)
    assert Experiment('wnli', method, **params).run().kind=='trials'

@pytest.mark.parametrize('name', methods)
def test_every_method_passes_its_rehearsal(outputs, tiny, name):
    state = torch.get_rng_state()
    for task in ('wnli', 'stsb'): assert Experiment(task, name, **tiny | dict(memory_size=2, batch_size=1, relation_heads=2)).settings.method==name
    assert torch.equal(torch.get_rng_state(), state) and not outputs.exists()

def test_a_row_that_the_tokenizer_does_not_cut_ends_before_training(outputs, tiny, monkeypatch):
    exp = Experiment('wnli', 'nods', **tiny)
    long = lambda data,tokenizer,n: {k:Dataset.from_dict(dict(input_ids=[[2]*(n+1)], attention_mask=[[1]*(n+1)], labels=[0], idx=[0])) for k in data.splits}
    monkeypatch.setattr('fsd.lessons.tokenise', long)
    with pytest.raises(ValueError, match='33 tokens'): exp.teacher_folder
    assert not list(outputs.rglob('*.safetensors'))

# ---------------------------------------------------------------- steps

@pytest.mark.parametrize('asked, student, teacher', [(None, 12, 6), (4, 4, 4), (6, 6, 6), (7, 7, 6), (12, 12, 6), (40, 12, 6)])
def test_max_steps_stops_early_and_never_prolongs(outputs, tiny, asked, student, teacher):
    exp = Experiment('wnli', 'vkd', **tiny, max_steps=asked)
    def steps(folder): return [l['step'] for l in read_json(folder/'training.json')['history']][-1]
    assert (steps(exp.teacher_folder), steps(exp.student_folder)) == (teacher, student)

# ---------------------------------------------------------------- room

@pytest.mark.parametrize('method, fits', [('fsd', False), ('fsd_il', False), ('nods', True), ('vkd', True)])
def test_a_disk_too_small_for_the_features_is_noticed_before_the_teacher_is_trained(outputs, tiny, monkeypatch, method, fits):
    exp = Experiment('wnli', method, **tiny | dict(train_examples=192))
    monkeypatch.setattr('fsd.kept.shutil.disk_usage', lambda p: SimpleNamespace(free=160_000)) # a checkpoint takes 138 kB, 192 rows of 32 positions 196
    if fits: assert exp.teacher_folder.exists()
    else:
        with pytest.raises(OSError, match='make room'): exp.teacher_folder
        assert not list(outputs.rglob('*.safetensors'))

# ---------------------------------------------------------------- outputs

def test_an_experiment_stays_in_the_outputs_that_it_began_with(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv('FSD_OUTPUTS', str(tmp_path/'a'))
    a = Experiment('wnli', 'vkd', **tiny, max_steps=1)
    monkeypatch.setenv('FSD_OUTPUTS', str(tmp_path/'b'))
    b = Experiment('wnli', 'vkd', **tiny, max_steps=1)
    run = a.run()
    assert run.folder.is_relative_to(tmp_path/'a') and a.student_folder.is_relative_to(tmp_path/'a') and not (tmp_path/'b').exists()
    assert b.done() is None and b.run().scores==run.scores and b.teacher_folder.is_relative_to(tmp_path/'b')

# ---------------------------------------------------------------- what is the same run

def test_a_record_with_another_teachers_scores_is_not_found_again(outputs, tiny):
    first = distill('wnli', 'nods', **tiny)
    other = distill('wnli', 'nods', **tiny | dict(teacher_lr=3e-3))
    assert other.folder!=first.folder and other.record['settings']['teacher_lr']==3e-3 and other.record['fingerprint']==first.record['fingerprint']
    assert other.record['seconds']['students'] is None, 'the student is the same and was found'
    assert distill('wnli', 'nods', **tiny).record==first.record and distill('wnli', 'nods', **tiny | dict(teacher_lr=3e-3)).record==other.record

def test_a_given_teacher_is_asked_about_the_rows_that_are_held_out(outputs, tiny):
    given = {k:v for k,v in tiny.items() if k not in ('teacher_epochs','teacher_lr')} | dict(teacher=str(Experiment('wnli', 'nods', **tiny).teacher_folder))
    for more in (dict(holdout=.5), dict(holdout=.5, teacher_seed=7), dict(holdout=.25)):
        exp = Experiment('wnli', 'vkd', **given, **more)
        assert exp.on_teacher['holdout'].labels.tolist()==exp.rows['holdout']['labels'][:]

def test_a_term_of_ones_own_is_known_by_all_that_it_is_made_of(outputs, tiny, monkeypatch):
    from fsd.terms import between_states
    def of(loss):
        monkeypatch.setitem(terms, 'apart', Term('how far apart', **between_states(loss)))
        monkeypatch.setitem(methods, 'own', Method('a test', 'two terms', {'ce':'1', 'apart':'1'}))
        exp = Experiment('wnli', 'own', **tiny)
        return exp._own_code, exp.determined_by('students')
    def far(h_s, h_t, mask): return (h_s.mean()-h_t.mean()).abs()
    def near(h_s, h_t, mask): return (h_s.var()-h_t.var()).abs()
    assert of(far)==of(far) and of(far)!=of(near) and of(far)[0]
    assert not any(Experiment('wnli', m, **tiny)._own_code for m in methods if m!='own')

def test_a_folder_whose_weights_changed_meanwhile_is_read_again(outputs, model):
    from fsd.models import weights_of
    folder = model()
    before = weights_of(folder)
    torch.manual_seed(5)
    AutoModel.from_config(AutoModel.from_pretrained(folder).config).save_pretrained(folder)
    assert weights_of(folder)!=before==before
