"A teacher of one's own, and a teacher that reads other words than its student: what they teach, and what is refused before any work."
from pathlib import Path
import pytest, torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast, MPNetConfig
from fsd.blocks import lower_half
from fsd.experiment import Experiment, distill
from fsd.features import LiveTeacher, keep_features
from fsd.given import DistillationConfig
from fsd.methods import methods
from fsd.own import example
from fsd.trainer import DistillationTrainer
from fsd.words import OtherWords

size = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
REVIEWS = ('negative','positive')

@pytest.fixture
def made(tmp_path, tiny_bert):
    "`made(name, *labels, ...)`: a folder with a random model and a tokenizer, the tiny BERT's or one that has `extra` words."
    def make(name, *labels, kind=BertForSequenceClassification, config=BertConfig, extra=(), tokenizer=True, dtype=torch.float32, seed=1, **changes):
        folder = tmp_path/name
        folder.mkdir(exist_ok=True)
        words = [*(tiny_bert/'vocab.txt').read_text().split('\n'), *extra]
        if tokenizer:
            (folder/'vocab.txt').write_text('\n'.join(words))
            BertTokenizerFast(str(folder/'vocab.txt')).save_pretrained(folder)
        named = dict(num_labels=len(labels), id2label=dict(enumerate(labels))) if labels else {}
        torch.manual_seed(seed)
        kind(config(**size | dict(vocab_size=len(words), pad_token_id=0) | named | changes)).to(dtype).save_pretrained(folder)
        return str(folder)
    return make

@pytest.fixture
def own(tiny)->dict:
    "Parameters of a run on the example of one's own data, two steps long."
    left_out = ('data','teacher_epochs','teacher_lr','train_examples')
    return {k:v for k,v in tiny.items() if k not in left_out} | dict(data=example, batch_size=64, epochs=1, max_steps=2)

# ---------------------------------------------------------------- a teacher of one's own

@pytest.mark.parametrize('method', ['fsd','minilm','rkd'])
def test_a_fine_tuned_folder_teaches_and_none_is_trained(outputs, own, made, method):
    folder = made('my-teacher', *REVIEWS)
    exp = Experiment('mine', method, **own, teacher=folder)
    run = exp.run()
    assert run.folder.name.endswith('teacher=my-teacher') or run.record['overrides']['teacher']=='my-teacher'
    assert not (outputs/'teachers').exists() and exp.place('teachers')==Path(folder)
    assert run.teacher==exp.scores(exp.evaluate(BertForSequenceClassification.from_pretrained(folder)))
    assert run.record['model']['teacher']['name']=='my-teacher' and 'teacher' not in run.record['settings']
    assert distill('mine', method, **own, teacher=folder).record==run.record

def test_labels_in_another_order_are_put_in_that_of_the_data(outputs, own, made):
    straight,turned = made('straight', *REVIEWS),made('turned', *REVIEWS)
    model = BertForSequenceClassification.from_pretrained(straight)
    for p in model.classifier.parameters(): p.data = p.data.flip(0)
    model.config.id2label = {0:'Positive', 1:'Negative'}
    model.save_pretrained(turned)
    a,b = (Experiment('mine', 'vkd', **own, teacher=t) for t in (straight, turned))
    assert a.scores(a.on_teacher)==b.scores(b.on_teacher)
    torch.testing.assert_close(torch.tensor(a.features.logits), torch.tensor(b.features.logits))
    assert a.fingerprint!=b.fingerprint

def test_labels_that_are_only_numbered_are_said_to_be_taken_in_order(outputs, own, made):
    exp = Experiment('mine', 'vkd', **own, teacher=made('numbered'))
    assert 'its labels have no names and are taken in this order: negative, positive' in exp.guessed()['teacher']==exp.summary()['teacher']

@pytest.mark.parametrize('method', ['fsd_g','nods'])
def test_another_teacher_in_the_same_folder_is_another_one(outputs, own, made, method):
    folder = made('again', *REVIEWS)
    a = Experiment('mine', method, **own, teacher=folder)
    made('again', *REVIEWS, seed=2)
    b = Experiment('mine', method, **own, teacher=folder)
    assert a.folder==b.folder and all(a.place(k)!=b.place(k) for k in ('memories','students'))
    run = b.run()
    made('again', *REVIEWS)
    c = Experiment('mine', method, **own, teacher=folder)
    assert c.fingerprint==a.fingerprint and c.done() is None and c.scores(c.on_teacher)==c.scores(c.evaluate(c.teacher))
    assert run.record['model']['teacher']['fingerprint']==b.teacher_files!=c.teacher_files

def test_half_precision_is_read_in_full(outputs, own, made):
    assert Experiment('mine', 'vkd', **own, teacher=made('half', *REVIEWS, dtype=torch.float16)).given.dtype is torch.float32

def test_a_student_may_be_cut_from_a_teacher_of_ones_own(outputs, own, made):
    cut = {k:v for k,v in own.items() if k!='model'}
    exp = Experiment('mine', 'vkd', **cut, teacher=made('whole', *REVIEWS), student_init='teacher')
    assert torch.equal(exp.new_student().bert.encoder.layer[0].output.dense.weight, exp.given.bert.encoder.layer[0].output.dense.weight)
    assert exp.name=='whole'

def test_a_task_of_glue_takes_one_too(outputs, tiny, made):
    params = {k:v for k,v in tiny.items() if not k.startswith('teacher')} | dict(max_steps=2)
    run = distill('stsb', 'vkd', **params, teacher=made('score', num_labels=1))
    assert set(run.teacher['validation'])=={'pearson','spearman'} and not (outputs/'teachers').exists()
    with pytest.raises(ValueError, match='the teacher gives a score, wnli asks for one of not_entailment, entailment'):
        Experiment('wnli', 'vkd', **params, teacher=made('score', num_labels=1))

unfit = {
    'other names': (lambda m: m('t', 'no', 'yes'), {}, r"the teacher's labels are \['no', 'yes'\], those of the data \['negative', 'positive'\]"),
    'another number': (lambda m: m('t', 'negative', 'neutral', 'positive'), {}, r"labels are \['negative', 'neutral', 'positive'\], those of the data \['negative', 'positive'\]"),
    'several at once': (lambda m: m('t', *REVIEWS, problem_type='multi_label_classification'), {}, 'the teacher gives any of 2 labels, mine asks for one of negative, positive'),
    'a regression': (lambda m: m('t', num_labels=1), {}, 'the teacher gives a score, mine asks for one of negative, positive'),
    'no head': (lambda m: m('t', *REVIEWS, kind=BertModel), {}, 'lacks classifier.bias, classifier.weight: it would teach random answers'),
    'one block': (lambda m: m('t', *REVIEWS, num_hidden_layers=1), {}, "student_layers=2 must be below the teacher's 1 block"),
    'nothing there': (lambda m: '/nowhere/teacher', {}, "'/nowhere/teacher' is no folder and is not in the local cache"),
    'a file': (lambda m: m('t', *REVIEWS)+'/config.json', {}, 'config.json.* is a file; a teacher is the folder'),
    'no tokenizer': (lambda m: m('t', *REVIEWS, tokenizer=False), {}, 'has no tokenizer: none of tokenizer.json'),
    'no model': (lambda m: str(Path(m('t')).parent), {}, 'is not a model folder: it has no config.json'),
    'auto': (lambda m: 'auto', {}, "teacher='auto' is no classifier"),
    'trained here, too': (lambda m: m('t', *REVIEWS), dict(teacher_epochs=5), 'teacher_epochs=5 is for a teacher that is fine-tuned here'),
    'too many words': (lambda m: m('t', *REVIEWS, vocab_size=50), {}, 'the tokenizer gives ids up to .*, t has 50 embeddings'),
    'two to cut from': (lambda m: m('t', *REVIEWS), dict(student_model='model'), 'the student is cut from student_model='),
    'other words, compared': (lambda m: m('t', *REVIEWS, extra=['film']), {}, "'intra' of this method compares theirs one by one; methods that need no common tokens: nods, vkd")}

@pytest.mark.parametrize('case', unfit)
def test_a_teacher_that_does_not_fit_is_refused_before_any_work(outputs, own, made, case):
    folder,more,message = unfit[case]
    more = {k:made(v, kind=BertModel) if k=='student_model' else v for k,v in more.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as e: Experiment('mine', 'fsd', **own, teacher=folder(made), **more)
    assert '\n' not in str(e.value) and not outputs.exists()

# ---------------------------------------------------------------- other words, through fsd.distill

def test_which_methods_need_common_tokens(outputs, tiny, made):
    other = made('other', extra=['film','cat'])
    runs,refused = [],{}
    for m in methods:
        if methods[m].student!='lower': continue
        try: Experiment('wnli', m, **tiny, student_model=other, student_layers=2)
        except ValueError as e: refused[m] = str(e)
        else: runs.append(m)
    assert set(runs)=={'nods','vkd','pkd','rkd','sp','cckd','rcka','procrustes','gram','pkt','fsd_l','fsd_g'}
    assert all(f"methods that need no common tokens: {', '.join(runs)}" in words for words in refused.values())
    assert not outputs.exists()

@pytest.mark.parametrize('method, padding, reads', [('vkd','paper',32), ('fsd_l','paper',24), ('fsd_g','masked',32)])
def test_a_student_with_words_of_its_own_learns(outputs, tiny, made, method, padding, reads):
    teacher = dict(tiny, max_steps=3, model=made('long', config=MPNetConfig, kind=AutoModelForSequenceClassification.from_config, max_position_embeddings=2+reads, extra=['zz']))
    exp = Experiment('wnli', method, **teacher, padding=padding, student_model=made('narrow', kind=BertModel, hidden_size=8, extra=['cat','film']))
    assert exp.apart and exp.teacher_length==reads and exp.summary()['words'].endswith(f'the teacher up to {reads}')
    run = exp.run()
    assert len(run.record['history'])==3 and run.record['probe']==[]
    for who,word in (('students','film'), ('teachers','zz')): assert f'"{word}"' in (exp.place(who)/'tokenizer.json').read_text()
    if reads<32: return
    alone = Experiment('wnli', 'nods', **teacher)
    assert alone.place('teachers')==exp.place('teachers') and alone.scores(alone.on_teacher)==run.teacher

def test_live_and_kept_teach_the_same(outputs, tiny, made):
    unlike = dict(tiny, epochs=1, max_steps=3, student_model=made('narrow', kind=BertModel, extra=['cat','film']))
    kept,live = (Experiment('wnli', 'fsd_l', **unlike, teacher_features=how) for how in ('kept','live'))
    batch = {k:torch.tensor([v]) for k,v in kept.rows['train'][3].items()}
    a,b = kept.features(batch),live.features(batch)
    torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(a.hidden[3], b.hidden[3], rtol=2**-10, atol=1e-3)

def test_both_at_once(outputs, own, made):
    teacher = made('mine', *REVIEWS, extra=['film'])
    params = {k:v for k,v in own.items() if k!='model'} | dict(student_model=own['model'], teacher=teacher)
    run = distill('mine', 'fsd_l', **params)
    assert run.model=='tiny-bert' and run.record['model']['teacher']['name']=='mine'

# ---------------------------------------------------------------- other words, through the trainer

def rows_of(times:int)->Dataset:
    ids = [[5+(i*j)%(50//times) for j in range(1, times*(4+i%4))] for i in range(12)]
    return Dataset.from_dict(dict(input_ids=ids, attention_mask=[[1]*len(o) for o in ids], labels=[i%2 for i in range(12)], idx=list(range(30, 42))))

def tiny_model(**kw):
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**size | dict(vocab_size=60) | kw)).eval()

def trained(folder, teacher, rows, method, **kw):
    args = DistillationConfig(str(folder), max_steps=3, per_device_train_batch_size=6, use_cpu=True, report_to='none', save_strategy='no', disable_tqdm=True,
                              **dict(max_length=32, learning_rate=1e-3) | kw.pop('args', {}))
    return DistillationTrainer(lower_half(tiny_model()), teacher, args, method, train_dataset=rows, **kw)

@pytest.mark.parametrize('padding', ['paper','masked'])
@pytest.mark.parametrize('method', ['vkd','fsd_l','rkd','fsd_g'])
def test_of_the_same_words_it_makes_no_difference_which_way_a_teacher_is_asked(tmp_path, method, padding):
    rows = rows_of(1)
    kept = keep_features(tiny_model(), rows, set() if method=='vkd' else {('hidden',3)}, tmp_path/'f', padding, 32, 0)
    memory = torch.randn(4, 32 if padding=='paper' else 6, 16) if method=='fsd_g' else None
    losses = [trained(tmp_path/'o', t, rows, method, memory=memory, args=dict(padding=padding)).train().training_loss for t in (kept, OtherWords(kept, rows, rows))]
    assert losses[0]==pytest.approx(losses[1], rel=1e-4)

def test_a_trainer_learns_from_other_words(tmp_path):
    rows,theirs,teacher = rows_of(1),rows_of(3),tiny_model(vocab_size=50, hidden_size=32)
    kept = keep_features(teacher, theirs, {('hidden',3)}, tmp_path/'f', 'paper', 40, 0)
    for t in (kept, LiveTeacher(teacher, kept.needs, 'paper')):
        assert trained(tmp_path/'o', OtherWords(t, theirs, rows, 40), rows, 'fsd_l').train().training_loss>0
    other = OtherWords(kept, theirs, rows)
    with pytest.raises(ValueError, match="'minilm' of this method compares theirs one by one"): trained(tmp_path, other, rows, 'minilm')
    with pytest.raises(ValueError, match="has other tokens than the student's row of that idx"): trained(tmp_path, other, rows_of(2), 'vkd')
    with pytest.raises(ValueError, match="the teacher's features are 'paper', the training's padding is 'masked'"): trained(tmp_path, other, rows, 'fsd_l', args=dict(padding='masked'))

def test_a_live_teacher_is_not_fed_the_students_words(tmp_path, tiny_bert, made):
    with pytest.raises(ValueError, match="vocabulary has 60 words, the teacher's 50, .*let the teacher read its own: keep what it says.*OtherWords"):
        trained(tmp_path, tiny_model(vocab_size=50), rows_of(1), 'vkd')
    folder,tokenizer = made('other', extra=['film']),BertTokenizerFast.from_pretrained(tiny_bert)
    with pytest.raises(ValueError, match='other has another vocabulary than processing_class, .*OtherWords'):
        trained(tmp_path, folder, rows_of(1), 'vkd', processing_class=tokenizer)
