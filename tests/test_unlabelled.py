"""Rows without a label: which terms see them, that nothing moves without them, and that no batch of them is a number that is none."""
import math
import pandas as pd, pytest, torch
import fsd
from conftest import little, sentences
from fsd import DistillationConfig, DistillationTrainer, lower_half
from fsd.experiment import Experiment
from fsd.methods import find_method
from fsd.own import made_up_reviews, own_data

@pytest.fixture
def tiny_own(tiny):
    return {k:v for k,v in tiny.items() if k not in ('data','train_examples')} | dict(batch_size=16, epochs=1, max_length=16, memory_size=4)

def reviews(n=40): return made_up_reviews(n+40)[:n][['review','sentiment']]
def texts(n): return made_up_reviews(n, seed=1)[['review']]

def test_without_such_rows_nothing_moves(tiny_own, outputs):
    df = reviews()
    some = pd.concat([df, texts(30).assign(sentiment='')])
    none,left_out = (Experiment('mine', 'fsd', d, **tiny_own, **how) for d,how in ((df, {}), (some, dict(unlabelled='no'))))
    assert none.fingerprint==left_out.fingerprint and none.place('memories')==left_out.place('memories')
    assert set(none.determined_by('students'))==set(Experiment('wnli', 'fsd', **tiny_own | dict(data='demo')).determined_by('students'))
    with_them = Experiment('mine', 'fsd', some, **tiny_own)
    assert with_them.place('teachers')==none.place('teachers'), 'no teacher learns from them'
    assert with_them.fingerprint!=none.fingerprint and with_them.place('memories')!=none.place('memories')
    assert Experiment('mine', 'fsd', df, **tiny_own, unlabelled=texts(30)).fingerprint==with_them.fingerprint, 'it is the same where they stand'
    assert Experiment('mine', 'fsd', df, **tiny_own, unlabelled=texts(29)).fingerprint!=with_them.fingerprint

@pytest.mark.parametrize('method', ['fsd', 'minilm', 'rkd', 'pkd', 'internal_progressive'])
def test_every_kind_of_method_learns_from_them(method, tiny_own, outputs, capsys):
    e = Experiment('mine', method, reviews(), **tiny_own, unlabelled=texts(50))
    run = e.run()
    said = capsys.readouterr().out
    assert 'without a label: 50 rows, in every term but that of the labels' in said and '50 of 82 training rows have no label' in said
    assert run.record['data']['rows']==dict(train=32, validation=8, unlabelled=50)
    assert run.record['history'][-1]['step']==math.ceil(82/16) and all(math.isfinite(v) for l in run.record['history'] for v in l.values())
    assert 'unlabelled' not in run.record['settings'] and run.record['overrides'].get('unlabelled')=='memory'
    if not e.runs_live: assert len(e.features)==82
    if method=='fsd': assert sum(fsd.kept.read_json(e.place('memories')/'clusters.json')['counts'])==82

def test_the_card_says_how_many_there_were_and_asks_for_them(tiny_own, outputs, tmp_path):
    texts(20).to_csv(tmp_path/'more.csv', index=False)
    for seed,(given,call) in enumerate(((texts(20), "unlabelled=texts"), (str(tmp_path/'more.csv'), "unlabelled='more.csv'"))):
        run = fsd.distill('mine', 'vkd', reviews(), **tiny_own, seed=seed, unlabelled=given)
        card = (run.student_folder/'README.md').read_text()
        assert '20 rows without a label' in card and call in card and str(tmp_path) not in card
    assert 'more.csv and tiny-bert: in the folder where this is called' in card

def test_what_reads_labels_alone_leaves_them_out_and_says_so(tiny_own, outputs, capsys):
    run = fsd.distill('mine', 'nods', reviews(), **tiny_own, unlabelled=texts(50))
    assert 'without a label: 50 rows, left out: nods learns from labels alone' in capsys.readouterr().out
    assert 'unlabelled' not in run.record['data']['rows'] and run.record['overrides'].get('unlabelled') is None
    assert fsd.distill('mine', 'nods', reviews(), **tiny_own).record==run.record

def test_scores_too(tiny_own, outputs):
    rows = pd.DataFrame(dict(text=[f'the {i} of {i*7%40}' for i in range(40)], score=[i*7%40/10+.05 for i in range(30)]+[None]*10))
    run = fsd.distill('grades', 'fsd', rows, **tiny_own)
    assert run.record['data']['rows']==dict(train=24, validation=6, unlabelled=10)
    assert all(math.isfinite(v) for l in run.record['history'] for v in l.values())

def test_a_teacher_of_other_words_says_what_it_thinks_of_them_too(tiny_own, outputs, tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizerFast
    foreign = tmp_path/'foreign'
    foreign.mkdir()
    letters = [chr(c) for c in range(97, 123)]
    (foreign/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *letters, *('##'+c for c in letters)]))
    BertTokenizerFast(str(foreign/'vocab.txt')).save_pretrained(foreign)
    BertModel(BertConfig(vocab_size=57, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)).save_pretrained(foreign)
    e = Experiment('mine', 'rkd', reviews(), **tiny_own, unlabelled=texts(20), student_model=str(foreign))
    assert e.apart and e.run().record['data']['rows']['unlabelled']==20

def test_an_unlabelled_file_that_does_not_fit_is_named(tiny_own, tmp_path):
    (tmp_path/'more.csv').write_text('text\nA film.\n')
    for how,why in ((dict(unlabelled=str(tmp_path/'more.csv')), "more.csv: no column 'review', the columns are text"),
                    (dict(unlabelled=str(tmp_path/'none.csv')), 'unlabelled: .*none.csv is not there'),
                    (dict(unlabelled=['A film.']), 'unlabelled: data is a list')):
        with pytest.raises((ValueError,OSError), match=why): Experiment('mine', 'fsd', reviews(), **tiny_own, **how)
    with pytest.raises(ValueError, match="unlabelled='more.csv' is for data of your own"): Experiment('wnli', 'fsd', **tiny_own, data='demo', unlabelled='more.csv')
    with pytest.raises(ValueError, match='the data were read already; tell own_data'): Experiment('mine', 'fsd', own_data(reviews()), **tiny_own, unlabelled=texts(3))
    with pytest.warns(UserWarning, match='8 of 40 rows without a label are validation rows too'): own_data(reviews(), unlabelled=reviews())

# ---------------------------------------------------------------- the trainer alone

def half(rows, value): return [r | dict(labels=r['labels'] if i%2 else value) for i,r in enumerate(rows)]

def trained(tmp_path, rows, method='fsd', **kw):
    teacher = little(4, **kw)
    args = DistillationConfig(str(tmp_path), max_length=16, memory_size=4, per_device_train_batch_size=4, num_train_epochs=1, disable_tqdm=True, logging_steps=1, seed=3)
    t = DistillationTrainer(lower_half(teacher), teacher, args, method, train_dataset=rows)
    t.train()
    assert all(p.isfinite().all() for p in t.model.parameters())
    return t

@pytest.mark.parametrize('value', [None, -100, -1])
@pytest.mark.parametrize('method', ['fsd','minilm','rkd'])
def test_a_trainer_takes_rows_of_both_kinds(value, method, tmp_path, capsys):
    if value==-1:
        with pytest.raises(ValueError, match='has the label -1'): trained(tmp_path, half(sentences(12), value), method)
        return
    trained(tmp_path, half(sentences(12), value), method)
    assert '6 of 12 training rows have no label: they take part in every term but that of the labels' in capsys.readouterr().out

def test_scores_and_several_labels_may_be_missing(tmp_path):
    rows = [r | dict(labels=float(i)) for i,r in enumerate(sentences(12))]
    trained(tmp_path/'a', half(rows, None), num_labels=1)
    trained(tmp_path/'b', half(rows, float('nan')), num_labels=1)
    several = [r | dict(labels=[1.,0.,float(i%2)]) for i,r in enumerate(sentences(12))]
    trained(tmp_path/'c', half(several, None), num_labels=3, problem_type='multi_label_classification')

def test_batches_without_any_label_give_numbers_and_teach_nothing_of_labels(tmp_path):
    rows = [r | dict(labels=r['labels'] if i<1 else None) for i,r in enumerate(sentences(12))]
    log = [l for l in trained(tmp_path, rows, 'vkd').state.log_history if 'ce' in l]
    assert sorted(l['ce']>0 for l in log)==[False,False,True]

def test_the_labels_term_has_no_gradient_on_them_and_that_of_the_others_is_as_if_they_were_alone():
    from fsd.methods import Objective
    from fsd.passes import forward
    from fsd.terms import Pair
    from fsd.rows import collate
    from fsd.settings import Knobs
    model,rows = little(2),half(sentences(6), None)
    def gradient(rows, missing):
        o = Objective(find_method('vkd'), Pair(Knobs(alpha=1-1e-9), 2, 2, 16, missing=missing))
        batch = collate(0, 16, missing)(rows)
        f = forward(model, batch)
        f.logits.retain_grad()
        o.terms['ce'](f, None, batch['labels']).backward()
        return f.logits.grad
    with_them,alone = gradient(rows, -100),gradient(rows[1::2], None)
    assert not with_them[::2].any() and torch.equal(with_them[1::2], alone)

def test_without_a_term_for_them_a_trainer_refuses(tmp_path):
    with pytest.raises(ValueError, match='there are rows without a label, and the method has no term but ce'):
        DistillationTrainer(little(2), None, DistillationConfig(str(tmp_path)), 'nods', train_dataset=half(sentences(4), None))
