"""Data of one's own as they are met in practice: every form they come in, every way a file can be broken."""
import codecs, gzip, json, random, re, subprocess, sys, warnings
from pathlib import Path
import datasets as hfd
import numpy as np, pandas as pd
import pyarrow as pa, pyarrow.parquet as pq
import nbformat, papermill, pytest
import torch
from conftest import root
from papermill.parameterize import parameterize_notebook
import fsd
from fsd import own, runs
from fsd.experiment import Experiment
from fsd.files import read_table
from fsd.glue import scores
from fsd.models import check_folder
from fsd.own import example, made_up_reviews, own_data
from fsd.report import beside_siblings, outdated, results
from fsd.rows import collate, tokenise
from fsd.tasks import tasks

hfd.disable_progress_bars()
TEXTS = ['A film, warm and witty.', 'He said "no" twice.', 'Two\nlines.', 'caf\u00e9 \u2028 na\u00efve \U0001f600', 'null', 'NA', ' ends in a space ', '0', "it 's", 'x']
LABELS = ['pos','neg']*5

def frame(**columns): return pd.DataFrame(dict(text=TEXTS, label=LABELS) | columns)
def reference(): return own_data(frame())

# ---------------------------------------------------------------- forms

def as_file(write, name):
    def made(df, folder):
        write(df, folder/name)
        return folder/name
    return made

def gz(df, path): path.write_bytes(gzip.compress(df.to_csv(index=False).encode()))
def bom(df, path): path.write_bytes(codecs.BOM_UTF8+df.to_csv(index=False).encode())
def crlf(df, path): path.write_bytes(df.to_csv(index=False, lineterminator='\r\n').encode())
def index(df, path): df.to_csv(path)
typed = hfd.Features(text=hfd.Value('string'), label=hfd.ClassLabel(names=['neg','pos']))

FORMS = dict(
    csv=as_file(lambda df, p: df.to_csv(p, index=False), 'mine.csv'),
    semicolons=as_file(lambda df, p: df.to_csv(p, index=False, sep=';'), 'mine.csv'),
    tsv=as_file(lambda df, p: df.to_csv(p, index=False, sep='\t'), 'mine.tsv'),
    gzipped=as_file(gz, 'mine.csv.gz'), marked=as_file(bom, 'mine.csv'), crlf=as_file(crlf, 'mine.csv'), with_an_index=as_file(index, 'mine.csv'),
    capitals=as_file(lambda df, p: df.rename(columns=str.upper).to_csv(p, index=False), 'MINE.CSV'),
    jsonl=as_file(lambda df, p: df.to_json(p, orient='records', lines=True), 'mine.jsonl'),
    json=as_file(lambda df, p: df.to_json(p, orient='records', indent=2), 'mine.json'),
    parquet=as_file(lambda df, p: df.to_parquet(p), 'mine.parquet'),
    categories=as_file(lambda df, p: df.astype({'label':'category'}).to_parquet(p), 'mine.parquet'),
    parquet_of_datasets=as_file(lambda df, p: hfd.Dataset.from_dict(df.replace(dict(label=dict(neg=0, pos=1))).to_dict('list'), features=typed).to_parquet(p), 'mine.parquet'),
    dataframe=lambda df, folder: df,
    dataset=lambda df, folder: hfd.Dataset.from_pandas(df).with_format('numpy'))

@pytest.mark.parametrize('form', FORMS)
def test_the_same_rows_are_the_same_data_in_every_form(form, tmp_path):
    data = own_data(FORMS[form](frame(), tmp_path))
    assert data.fingerprint==reference().fingerprint and data.task.labels==('neg','pos')
    rows = {t:l for ds in data.splits.values() for t,l in zip(ds['text'][:], ds['label'][:])}
    assert rows==dict(zip(TEXTS, [1,0]*5))
    assert str(tmp_path) not in data.where+data.read

def splits(): return dict(train=frame()[:8], validation=frame()[8:])

def saved(folder):
    hfd.DatasetDict({s:hfd.Dataset.from_pandas(df, preserve_index=False) for s,df in splits().items()}).save_to_disk(folder/'saved')
    return folder/'saved'

def in_files(folder, names=('train.csv','dev.csv','test.csv')):
    for name,df in zip(names, (*splits().values(), frame(label='not looked at'))): df.to_csv(folder/name, index=False, sep='\t' if 'tsv' in name else ',')
    return folder

WHOLES = dict(
    files=in_files,
    other_names=lambda folder: in_files(folder, ('reviews_training.tsv','Reviews-Valid.csv','notes.csv')),
    shards=lambda folder: [frame()[:3].to_csv(folder/'train-00000-of-00002.csv', index=False), frame()[3:8].to_csv(folder/'train-00001-of-00002.csv', index=False),
                           frame()[8:].to_csv(folder/'val.csv', index=False), folder][-1],
    saved=saved,
    dataset_dict=lambda folder: hfd.load_from_disk(str(saved(folder))),
    dict_of_frames=lambda folder: splits())

@pytest.mark.parametrize('whole', WHOLES)
def test_the_same_splits_are_the_same_data_from_every_place(whole, tmp_path):
    data = own_data(WHOLES[whole](tmp_path))
    assert data.fingerprint==own_data(splits()).fingerprint and data.task.sizes==dict(train=8, validation=2)
    assert ('without its test split' in data.where)==(whole=='files')
    assert (data.source, data.complete, data.partial, data.task.dev)==('own', True, False, ('validation',))

def test_a_name_on_the_hub_is_loaded_or_refused_in_a_sentence(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(hfd, 'load_dataset', lambda *a: asked.append(a) or hfd.load_from_disk(str(saved(tmp_path))))
    assert own_data('nobody/reviews:small').fingerprint==own_data(splits()).fingerprint
    assert asked==[('nobody/reviews','small')]
    monkeypatch.undo()
    with pytest.raises(ConnectionError, match="^'nobody/reviews' is no file or folder here, and no data set of this name can be had from the Hugging Face hub"):
        own_data('nobody/reviews')

# ---------------------------------------------------------------- what is read as what

def test_two_texts_are_found_by_their_names_or_named():
    nli = dict(premise=TEXTS, hypothesis=TEXTS[::-1], gold_label=['yes','no']*5)
    data = own_data(pd.DataFrame(nli))
    assert data.task.sentences==('text','text_pair') and data.task.official==('premise','hypothesis','gold_label')
    other = pd.DataFrame(dict(zip('abc', nli.values())))
    assert own_data(other, text='a', text_pair='b', label='c').fingerprint==data.fingerprint
    with pytest.raises(ValueError, match="could be 'a' or 'b'; name it with text=, and text_pair= where two texts are compared. The columns are\n  a: texts such as"): own_data(other)

LABELS_OF = {
    'words':(['neg','pos']*5, {}, ('neg','pos'), ('accuracy','f1')),
    'capitals and spaces kept':(['Very good','not good']*5, {}, ('Very good','not good'), ('accuracy','f1')),
    'numbers':([0,1]*5, {}, ('0','1'), ('accuracy','f1')),
    'numbers in text':(['0','1.0']*5, {}, ('0','1'), ('accuracy','f1')),
    'stars':([5,4,3,2,1]*2, {}, ('1','2','3','4','5'), ('accuracy','macro_f1')),
    'stars as scores':([5,4,3,2,1]*2, dict(kind='scores'), (), ('pearson','spearman')),
    'booleans':([True,False]*5, {}, ('false','true'), ('accuracy','f1')),
    'booleans in text':(['TRUE','False']*5, {}, ('false','true'), ('accuracy','f1')),
    'fractions':(np.linspace(-3, 97, 10).tolist(), {}, (), ('pearson','spearman')),
    'fractions as classes':([.5,1]*5, dict(kind='classes'), ('0.5','1'), ('accuracy','f1')),
    'a choice':(LABELS, dict(metric='matthews'), ('neg','pos'), ('matthews',)),
    'several':(LABELS, dict(metric=('macro_f1','accuracy')), ('neg','pos'), ('macro_f1','accuracy'))}

@pytest.mark.parametrize('case', LABELS_OF)
@pytest.mark.parametrize('form', ['csv','jsonl','parquet'])
def test_labels_of_every_kind(case, form, tmp_path):
    labels,how,names,metrics = LABELS_OF[case]
    data = own_data(FORMS[form](frame(label=labels), tmp_path), **how)
    assert (data.task.labels, data.task.metrics, data.task.regression, data.task.num_labels)==(names, metrics, not names, len(names) or 1)
    assert data.fingerprint==own_data(frame(label=labels), **how).fingerprint
    kind = data.splits['train'].features['label']
    assert kind==(hfd.ClassLabel(names=list(names)) if names else hfd.Value('float32'))

def test_names_that_a_data_set_brings_along_keep_their_order():
    kind = hfd.Features(text=hfd.Value('string'), label=hfd.ClassLabel(names=['pos','neg','mixed']))
    ds = hfd.Dataset.from_dict(dict(text=TEXTS, label=[0,1]*4+[-1,2]), features=kind)
    with pytest.raises(ValueError, match="row 10: no other row has the label 'mixed'"): own_data(ds)
    data = own_data(ds.select(range(9)))
    assert data.task.labels==('pos','neg','mixed') and len(data.unlabelled)==1

def test_rows_without_a_label_are_kept_apart(tmp_path):
    df = frame(label=['pos','neg']*4+['',None])
    data = own_data(FORMS['csv'](df, tmp_path))
    assert data.unlabelled['text'][:]==TEXTS[8:] and sum(map(len, data.splits.values()))==8
    (tmp_path/'more.jsonl').write_text('{"text": "One more."}\n{"text": "And one."}')
    more = own_data(df, unlabelled=tmp_path/'more.jsonl')
    assert more.unlabelled['text'][:]==[*TEXTS[8:], 'One more.', 'And one.'] and more.unlabelled['idx'][:]==[0,1,2,3]
    assert len(own_data(df, unlabelled=splits()).unlabelled)==12
    assert more.fingerprint==data.fingerprint, 'no teacher learns from them'
    assert own_data(frame()).unlabelled is None
    assert len(own_data(splits() | dict(unsupervised=frame(label=-1))).unlabelled)==10

def test_what_is_held_out_depends_on_what_rows_say_alone():
    many = made_up_reviews(400)
    def held(df, **how): return set(own_data(df, **how).splits['validation']['text'][:])
    assert held(many)==held(many.sample(frac=1, random_state=0))!=held(many, seed=1)
    counts = own_data(many, share=.25).counts
    assert (counts['validation']/counts.sum(axis=1)).round(2).tolist()==[.25,.25]
    twice = pd.concat([many, many])
    with warnings.catch_warnings():
        warnings.simplefilter('error') # no row stands on both sides
        assert held(twice)==held(many)

def test_the_example_is_made_by_its_function_and_small():
    assert example.read_bytes()==made_up_reviews().to_csv(index=False, lineterminator='\n').encode()
    assert example.stat().st_size<60_000 and len(set(made_up_reviews()['review']))==360

# ---------------------------------------------------------------- scores

@pytest.mark.parametrize('like', ['mrpc','cola','stsb'])
def test_metrics_are_glues(like):
    t,rng = tasks[like],np.random.default_rng(0)
    labels = rng.uniform(0, 5, 40) if t.regression else rng.integers(0, 2, 40)
    data = own_data(frame(label=np.linspace(0, 1, 10)) if t.regression else frame(label=[0,1]*5), metric=t.metrics)
    logits = rng.normal(size=(40, t.num_labels))
    assert data.task.scores(logits, labels)==scores(like, logits, labels)
    assert data.task.scores(torch.from_numpy(logits), torch.from_numpy(labels))==data.task.scores(logits.tolist(), labels.tolist())

def test_macro_and_rarer_f1_are_those_of_sklearn():
    from sklearn.metrics import f1_score
    rng = np.random.default_rng(0)
    for names in (('a','b'), ('a','b','c')):
        task = own.OwnTask('mine', 'mine', ('text',), names, own.measures['two'][1+(len(names)>2):3], {}, (), positive=0)
        pred,labels = rng.integers(0, len(names), (2,50))
        s = task.scores(np.eye(len(names))[pred], labels)
        assert s['macro_f1']==pytest.approx(f1_score(labels, pred, average='macro'))
    rare = own_data(frame(label=['bad']*3+['fine']*7))
    assert rare.task.labels[rare.task.positive]=='bad'
    assert rare.task.scores([[1,0],[0,1],[0,1]], [0,0,1])['f1']==pytest.approx(2/3)

def test_what_is_no_prediction_is_refused():
    t = reference().task
    for logits,labels,why in ([], [], 'no predictions'), ([[0,1]], [0,1], 'for 2 labels'), ([[0,np.nan]], [0], 'NaN'), ([0,1], [0,1], 'shape'):
        with pytest.raises(ValueError, match=why): t.scores(logits, labels)

# ---------------------------------------------------------------- what is wrong

GOOD = 'text,label\nFine.,pos\nDull.,neg\n"Good, really.",pos\nBad.,neg\n'
def in_json(*rows): return '\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows)
ROWS = [dict(text=f'Text {i}.', label=['pos','neg'][i%2]) for i in range(4)]
BROKEN = { # name of the file, its text, what is said
    'empty':('a.csv', '', 'a.csv: the file is empty'),
    'blank':('a.jsonl', ' \n\n', 'a.jsonl: the file is empty'),
    'only a header':('a.csv', 'text,label\n', 'a.csv: a first line and no rows'),
    'no header':('a.csv', GOOD.split('\n', 1)[1], "a.csv:1: 'Fine., pos' looks like a row and not like names of columns"),
    'no header before scores':('a.csv', 'Fine.,0.5\nDull.,-1.5\n', "a.csv:1: 'Fine., 0.5' looks like a row"),
    'one name twice':('a.csv', 'text,text,label\na,b,c\n', "a.csv:1: 2 columns are called 'text'"),
    'a header twice':('a.csv', GOOD+GOOD, 'a.csv:6: the names of the columns stand here again; two files in one'),
    'names that differ in capitals only':('a.csv', GOOD.replace('text,', 'Text,text,').replace('.,', '.,Other.,').replace('y.",','y.",Other.,'), "a.csv: the text could be 'Text' or 'text'"),
    'one name twice in JSON':('a.jsonl', in_json(ROWS[0], '{"text": "a", "text": "b"}'), r"a.jsonl:2: no row in JSON \('text' stands twice"),
    'a comma too many':('a.csv', GOOD.replace('Dull.', 'Dull, so dull.'), 'a.csv:3: 3 fields where the first line has 2, text, label; put a text with commas in quotes'),
    'a field too few':('a.csv', GOOD.replace('Dull.,neg', 'Dull.'), 'a.csv:3: 1 field where the first line has 2'),
    'a quote that never closes':('a.csv', GOOD.replace('really."', 'really.'), 'a.csv:4: a quote is opened here that never closes'),
    'a quote within a quoted text':('a.csv', GOOD.replace('Good', 'So "good"'), 'a.csv:4: a quote within a quoted text; a text with quotes in it is written "like ""this"""'),
    'a quote of a TSV file':('a.tsv', 'text\tlabel\n"Fine.\tpos\nDull.\tneg\n', 'a.tsv:2: .* never closes.*quotes=False reads quotes as they stand'),
    'a quote that swallows a megabyte':('a.csv', GOOD+'"'+'Fine.,pos\n'*20_000, 'a.csv:6: a quote is opened here that never closes'),
    'a NUL byte':('a.csv', GOOD.replace('Dull', 'Du\0ll'), 'a.csv:3: a NUL byte'),
    'no text':('a.csv', GOOD.replace('Dull.', ' '), "a.csv:3: no text in column 'text'"),
    'no text after a text of two lines':('a.csv', GOOD.replace('Fine.', '"Fi\nne."').replace('Dull.', ''), "a.csv:4: no text in column 'text'"),
    'no text in JSON':('a.jsonl', in_json(*ROWS, dict(label='pos')), "a.jsonl:5: no text in column 'text'"),
    'a number for a text':('a.jsonl', in_json(*ROWS, dict(text=5, label='pos')), "a.jsonl:5: column 'text' has 5 and not a text"),
    'half a character':('a.jsonl', in_json(*ROWS, '{"text": "\\ud83d", "label": "pos"}'), "a.jsonl:5: half a character in column 'text'"),
    'half a line of JSON':('a.jsonl', in_json(ROWS[0], '{"text": "Du', ROWS[1]), r'a.jsonl:2: no row in JSON \('),
    'half a list of JSON':('a.json', json.dumps(ROWS, indent=1)[:-20], r'a.json:16: no row in JSON \('),
    'no comma in a list':('a.json', '[\n{"text": "a"}\n{"text": "b"}]', r"a.json:3: no row in JSON \(Expecting ','"),
    'a row that is no object':('a.jsonl', in_json(ROWS[0], '["Fine.", "pos"]'), 'a.jsonl:2: a list, where a row is an object such as'),
    'an empty list':('a.json', '[]', 'a.json: no rows'),
    'far too deep':('a.json', '['*100_000, 'a.json:1: lists within lists'),
    'a word among numbers':('a.csv', 'text,label\na,1\nb,0\nc,good\n', "a.csv:4: label 'good' is a word, and .*a.csv:2 has the number 1"),
    'a word that was nan':('a.csv', GOOD+'Flat.,nan\n', 'a.csv:6: label nan; leave it empty where there is none'),
    'a score that is NaN':('a.csv', 'text,score\na,0.5\nb,NaN\n', 'a.csv:3: label nan'),
    'a score without end':('a.jsonl', in_json(dict(text='a', score=.5), '{"text": "b", "score": -Infinity}'), 'a.jsonl:2: label -inf'),
    'a list for a label':('a.jsonl', in_json(*ROWS, dict(text='a', label=['pos','neg'])), r"a.jsonl:5: label \['pos', 'neg'\] is neither a word nor a number"),
    'one class':('a.csv', GOOD.replace('neg', 'pos'), "a.csv:2: this and the 3 other labelled rows all have the label 'pos'; there is nothing to learn"),
    'one score':('a.csv', 'text,score\na,0.5\nb,0.5\n', "a.csv:2: this and the 1 other labelled rows all have the label '0.5'"),
    'a class of one':('a.csv', GOOD+'Hm.,mixed\n', "a.csv:6: no other row has the label 'mixed'; a class needs two rows"),
    'many classes of one':('a.csv', 'text,label\n'+''.join(f'Text {i}.,word{i}\n' for i in range(30)), "no other row has the label 'word0', and 29 labels more are as rare"),
    'capitals':('a.csv', GOOD.replace('Bad.,neg', 'Bad.,Neg'), "a.csv:3: labels 'neg' and 'Neg' differ in capitals only"),
    'decimals with a comma':('a.csv', 'text;score\na;0,5\nb;1,5\nc;0,5\n', "column 'score' has words such as '0,5': write decimals with a point"),
    'no label':('a.csv', 'text,label\na,\nb,\n', "a.csv:2 and all rows after it have no label in column 'label'"),
    'no label column':('a.csv', 'text\na\nb\n', 'a.csv: no column is known to be the label; name it with label='),
    'two labels':('a.csv', 'text,stars,score\nFine one.,5,0.5\nDull one.,1,0.1\n', "a.csv: the label could be 'stars' or 'score'; name it with label=(?s:.*)\n  stars: numbers such as 5 and 1"),
    'many whole numbers':('a.csv', 'text,score\n'+''.join(f'Text {i}.,{i}\n' for i in range(30)), "column 'score': 30 whole numbers from 0 to 29: say kind='scores' or kind='classes', or name the label with label="),
    'an empty label beside row numbers':('a.csv', 'Nr.,review,sentiment\n'+''.join(f'{i},Text {i}.,\n' for i in range(30)), "a.csv:2 and all rows after it have no label in column 'sentiment'"),
    'an empty column beside row numbers':('a.csv', 'Nr.,review,mood\n'+''.join(f'{i},Text {i}.,\n' for i in range(30)), "a.csv: the label could be 'Nr.' or 'mood'; name it with label=(?s:.*)\n  mood: nothing"),
    'a spreadsheet':('a.xlsx', 'PK', 'a.xlsx: a file ends in .csv, .*save a sheet as CSV')}

@pytest.mark.parametrize('fault', BROKEN)
def test_a_broken_file_is_named_with_its_line(fault, tmp_path):
    name,text,message = BROKEN[fault]
    (tmp_path/name).write_bytes(text.encode())
    with pytest.raises(ValueError, match=message): own_data(tmp_path/name)
    assert [p.name for p in tmp_path.iterdir()]==[name], 'nothing is written'

@pytest.mark.parametrize('encoding, message', [
    ('cp1252', "a.csv:3: not UTF-8; in Windows-1252 there stands 'Caf\u00e9.,neg'. If so, save it as UTF-8, e.g. with: iconv -f WINDOWS-1252 -t UTF-8 a.csv"),
    ('utf-16', 'a.csv: UTF-16 and not UTF-8; save it as UTF-8, e.g. with: iconv -f UTF-16'),
    ('utf-32', 'a.csv: UTF-32 and not UTF-8'), ('utf-16-le', 'a.csv:1: a NUL byte')])
def test_an_encoding_that_is_not_utf8_is_named(encoding, message, tmp_path):
    (tmp_path/'a.csv').write_bytes(GOOD.replace('Dull', 'Caf\u00e9').encode(encoding))
    with pytest.raises(ValueError) as e: own_data(tmp_path/'a.csv')
    assert message in str(e.value)

def test_binary_files_that_are_cut_short_are_refused(tmp_path):
    for name,whole in (('a.csv.gz', gzip.compress(GOOD.encode())), ('a.parquet', None)):
        path = tmp_path/name
        if whole is None: frame().to_parquet(path)
        else: path.write_bytes(whole)
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match=f'{name}: no'): own_data(path)
    pq.write_table(pa.table([TEXTS, TEXTS], names=['text','text']), tmp_path/'a.parquet')
    with pytest.raises(ValueError, match="a.parquet: 2 columns are called 'text'"): own_data(tmp_path/'a.parquet')
    arrow = next((saved(tmp_path)/'train').glob('*.arrow'))
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(ValueError, match='saved: datasets cannot read what was saved there'): own_data(tmp_path/'saved')

SPLITS = {
    'no train':(dict(dev=frame(), test=frame()), {}, 'nothing is called train; there is dev, test'),
    'no validation':(dict(train=frame(), test=frame()), {}, r'train, row 1: there are rows to learn from and none for validation; give a file for it, or share=.2'),
    'two of them':(splits() | dict(dev=frame()), {}, 'dev and validation are both validation; keep one'),
    'nothing to hold out':(splits(), dict(share=.1), 'share=0.1: nothing is held out, as there are rows for validation already'),
    'a label to judge by only':(dict(train=frame(), dev=pd.DataFrame(dict(text=['a','b'], label=['pos','mixed']))), {}, "dev, row 2: no row to learn from has the label 'mixed'"),
    'nothing to judge by':(dict(train=frame(), dev=pd.DataFrame(dict(text=['a'], label=[None]))), {}, "dev, row 1 and all rows after it have no label in column 'label'"),
    'another column':(dict(train=frame(), dev=frame().rename(columns=dict(label='class'))), {}, "dev: no column 'label', the columns are text, class"),
    'other types':(dict(train=frame(), dev=frame(label=1)), {}, "train, row 1: label 'pos' is a word, and dev, row 1 has the number 1"),
    'no rows':(dict(train=frame(), dev=frame()[:0]), {}, 'dev: no rows'),
    'no rows at all':(frame()[:0], {}, 'data: no rows'),
    'no data':(dict(train=['Fine.'], dev=frame()), {}, 'train is a list; data are a file'),
    'a share above one':(frame(), dict(share=20), 'share=20 of the rows'),
    'one name twice':(pd.DataFrame([['a','b','c']]*2, columns=['text','text','label']), {}, "data: two columns are called 'text'"),
    'scores out of label names':(hfd.Dataset.from_dict(dict(text=TEXTS, label=[0,1]*5), features=typed), dict(kind='scores'), "but labels are words such as 'neg'"),
    'another kind':(frame(), dict(kind='class'), "unknown kind 'class'; did you mean 'classes'"),
    'several labels':(hfd.Dataset.from_dict(dict(text=TEXTS, labels=[[0,1]]*10)), {}, r'data, row 1: label \[0, 1\] is neither a word nor a number'),
    'a name that is not there':(frame(), dict(label='lable'), "unknown column label= 'lable'; did you mean 'label'"),
    'one column for both':(frame(), dict(text='label', label='label'), "the same column, 'label'"),
    'a metric of another kind':(frame(), dict(metric='pearson'), "unknown metric 'pearson'. Known: accuracy, f1"),
    'scores out of words':(frame(), dict(kind='scores'), "kind='scores', but labels are words such as 'neg'"),
    "a name of GLUE's":(frame(), dict(name='rte'), "'rte' is a task of GLUE"),
    'a name for no folder':(frame(), dict(name='../x'), 'give a name of small letters')}

@pytest.mark.parametrize('fault', SPLITS)
def test_what_does_not_fit_is_said(fault):
    data,how,message = SPLITS[fault]
    with pytest.raises(ValueError, match=message): own_data(data, **how)

def test_a_bar_in_a_name_stays_in_its_cell(): assert '\n|a\\|b|' in own_data(frame(label=['a|b','c']*5))._repr_markdown_()

def test_files_that_are_not_there_are_said(tmp_path):
    for data,why in (tmp_path/'a.csv', 'a.csv is not there'), (tmp_path/'nowhere', f"^'{tmp_path}/nowhere' is no file and no folder here"), ('~nobody-of-this-name/a', 'is no file and no folder here'):
        with pytest.raises(FileNotFoundError, match=why): own_data(data)
    with pytest.raises(ValueError, match='nothing is called train; there is nothing'): own_data(tmp_path)

def test_what_is_odd_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r'2 of 2 validation rows are in train too, dev, row 1 as train, row 9; on them scores measure memory'):
        own_data(dict(train=frame(), dev=frame()[8:]))
    with pytest.warns(UserWarning, match="train, row 9: no validation row has the label 'mixed', so scores leave it out"):
        own_data(dict(train=frame(label=['pos','neg']*4+['mixed']*2), dev=pd.DataFrame(dict(text=['a','b'], label=['pos','neg']))))
    with pytest.warns(UserWarning, match='1 text in train with more than one label'):
        own_data(dict(train=pd.concat([frame()[:8], pd.DataFrame(dict(text=TEXTS[:1], label=['neg']))]), dev=frame()[8:]))

@pytest.mark.parametrize('seed', range(40))
def test_a_damaged_file_never_gives_other_rows_silently(seed, tmp_path):
    "Cutting or doubling commas, quotes and line ends is noticed, or changes no label and no number of rows."
    rng,body = random.Random(seed),bytearray(example.read_bytes())
    at = rng.choice([i for i,b in enumerate(body) if b in b',\n"' and i>body.index(b'\n')][:-1])
    if rng.random()<.5: del body[at]
    else: body.insert(at, body[at])
    path = tmp_path/'a.csv'
    path.write_bytes(body)
    try: table = read_table(path)
    except ValueError as e: assert f'{path}:' in str(e)
    else: assert table.columns['sentiment']==read_table(example).columns['sentiment']

@pytest.mark.parametrize('seed', range(20))
def test_random_bytes_are_rows_or_a_clear_error(seed, tmp_path):
    rng = random.Random(seed)
    for suffix,head,some in ('csv', b'text,label\n', b',\n\r"ab\xc3\xa9\0'), ('jsonl', b'{"text": "a"}\n', b'{}[]",:\nab0'):
        path = tmp_path/f'a.{suffix}'
        path.write_bytes(head+bytes(rng.choices(some, k=30)))
        try: assert len(read_table(path))
        except ValueError as e: assert str(path) in str(e)

# ---------------------------------------------------------------- as what comes after uses it

def test_rows_are_tokenised_and_batched_like_glues(tiny_bert):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    for data,kind in (own_data(example), torch.int64), (own_data(frame(label=np.linspace(0, 1, 10))), torch.float32):
        rows = tokenise(data, tokenizer, 16)
        batch = collate(tokenizer.pad_token_id, 16)([rows['train'][i] for i in range(4)])
        assert batch['labels'].dtype==kind and batch['input_ids'].shape==(4,16) and batch['idx'].tolist()==[0,1,2,3]

# ---------------------------------------------------------------- runs

@pytest.fixture
def tiny_own(tiny): return {k:v for k,v in tiny.items() if k not in ('data','train_examples')} | dict(batch_size=64, epochs=1)

def test_a_file_is_distilled_and_the_same_rows_in_memory_find_the_run(tiny_own, outputs, capsys):
    run = fsd.distill('mine', 'fsd', data=example, **tiny_own)
    assert capsys.readouterr().out.startswith("read as: text: 'review'; label: 'sentiment', negative or positive; measured:"), 'what was guessed is said'
    assert (run.student_folder.parent, run.student_folder.name.startswith('mine-'))==(outputs/'students', True)
    with pytest.raises(ValueError, match=f'is the folder of a run, and its student is in {run.student_folder}'): check_folder(run.folder)
    assert run.folder.parent==outputs/'own'/'mine'/'fsd' and (run.kind, run.source)==('own','own')
    for scores in (run.scores, run.teacher, run.best, run.record['scores']['majority']):
        assert {split:tuple(o) for split,o in scores.items()}==dict(validation=('accuracy','f1'))
    assert not {'runs','demo','trials'} & {p.name for p in outputs.iterdir()}
    student, = (outputs/'students').glob('mine-*/')
    assert json.loads((student/'config.json').read_text())['id2label']=={'0':'negative','1':'positive'}
    assert str(example.parent) not in (run.folder/'run.json').read_text(), 'where the file lies is nobody\'s business'
    df = pd.read_csv(example, keep_default_na=False)
    capsys.readouterr()
    for same in (df, df.rename(columns=dict(review='text', sentiment='label')), hfd.Dataset.from_pandas(df), own_data(example), str(example)):
        assert fsd.distill('mine', 'fsd', same, **tiny_own).record==run.record
    assert 'making' not in capsys.readouterr().out
    assert Experiment('mine', 'fsd', df.assign(sentiment=df['sentiment'].replace('positive', 'good')), **tiny_own).done() is None
    with pytest.raises(ValueError, match='no result, so not for a table'): results([run])

def test_beside_a_run_of_own_data_stand_majority_and_agreement_and_no_paper(tiny_own, outputs):
    run,_ = (fsd.distill('mine', m, data=example, **tiny_own) for m in ('vkd','nods'))
    table = beside_siblings(run)
    assert list(table.index)==['majority','teacher','nods','vkd'] and list(table.columns)==['accuracy','f1','agreement with teacher']
    assert table.loc['vkd','accuracy']==round(100*run.scores['validation']['accuracy'], 2)
    assert table.loc['vkd','agreement with teacher']==round(100*run.record['analysis']['restoration']['validation']['agreement'], 2)
    assert outdated(run)=={}
    old = runs.Run(run.folder, run.record | dict(settings=run.record['settings'] | dict(warmup=.5)))
    assert outdated(old)=={'warmup':(.5, 0.)}

def test_scores_of_two_texts_are_distilled(tiny_own, outputs):
    rows = pd.DataFrame(dict(one=[f'a {i}' for i in range(60)], two=[f'the {i*7%60}' for i in range(60)], score=[i*7%60/10+.05 for i in range(60)]))
    how = dict(text='one', text_pair='two', label='score', metric='spearman')
    run = fsd.distill('likeness', 'fsd', rows, **tiny_own, **how)
    assert run.scores.keys()=={'validation'} and tuple(run.scores['validation'])==('spearman',) and run.record['analysis']['restoration']=={}
    assert run.record['overrides'].items()>=how.items(), 'what was said names the folder'
    assert list(beside_siblings(run).columns)==['spearman']

def test_another_metric_is_another_run(tiny_own, outputs):
    both = [Experiment('mine', 'vkd', example, **tiny_own, metric=m) for m in (None,'macro_f1')]
    assert len({e.folder for e in both})==len({e.place('students') for e in both})==2

def test_what_is_said_of_the_data_goes_from_a_run_to_them_and_names_it(tiny_own, outputs, tmp_path):
    usual = Experiment('mine', 'vkd', example, **tiny_own)
    assert Experiment('mine', 'vkd', example, **tiny_own, quotes=True, share=None).folder==usual.folder, 'what is said by itself is not named'
    half = Experiment('mine', 'vkd', example, **tiny_own, share=.5)
    assert half.data.counts.sum().tolist()==[160,160] and half.overrides=={**usual.overrides, 'share':.5} and half.fingerprint!=usual.fingerprint
    stars = frame(label=[5,4,3,2,1]*2)
    assert [Experiment('mine', 'vkd', stars, **tiny_own, kind=k).task.regression for k in (None,'scores')]==[False,True]
    (tmp_path/'a.tsv').write_text('text\tlabel\n'+''.join(f'He said "no" {i}.\tpos\n"So {i}\tneg\n' for i in range(4)))
    with pytest.raises(ValueError, match='quotes=False reads quotes as they stand'): Experiment('mine', 'vkd', tmp_path/'a.tsv', **tiny_own)
    assert Experiment('mine', 'vkd', tmp_path/'a.tsv', **tiny_own, quotes='no').data.task.labels==('neg','pos')
    for how,why in ((dict(share=1), 'share=1.0 must be below 1'), (dict(kind='class'), "did you mean 'classes'"), (dict(quotes='maybe'), 'is not yes or no'), (dict(kind='scores'), "kind='scores', but labels are words")):
        with pytest.raises(ValueError, match=why): Experiment('mine', 'vkd', example, **tiny_own, **how)
    with pytest.raises(ValueError, match='nothing is held out, as there are rows for validation already'): Experiment('mine', 'vkd', splits(), **tiny_own, share=.5)

def test_which_student_to_take_is_said_with_an_interval(tiny_own, outputs):
    from fsd.choice import Choice, brought, same_answers, without_them
    choice = Choice(example, methods='nods fsd', seeds=2, **tiny_own)
    choice.run(lambda line: None)
    table,said = choice.chosen(),choice.advice()
    assert set(table.index)=={'nods','fsd'} and (table.least<=table.behind).all() and (table.behind<=table.most).all()
    assert table.accuracy.iloc[0]==pytest.approx(choice.results().groupby('method').score.mean().max(), abs=.05)
    assert said.startswith('**None is to be taken yet**') or '64 held-out rows' in said and str(choice.runs()[table.index[0]][0].student_folder.name) in said
    run = fsd.distill('mine', 'fsd', example, seed=0, **tiny_own)
    assert run.record==choice.runs()['fsd'][0].record, 'a run of the sweep is a run like any other'
    assert "shows beside the same run with `unlabelled='no'`" in brought(run)
    fsd.distill('mine', 'fsd', example, seed=0, **tiny_own, unlabelled='no')
    took = r'40 rows without a label took part beside 256 with one: accuracy [\d.]+, '
    points = r'[\d.]+ points (more|less) than without them \(95 % over 64 rows'
    assert re.search(took + (r'as without them; none of the 64 answers changed\.' if same_answers(run, without_them(run), 'validation') else points), brought(run))

def test_a_trial_of_own_data_is_a_trial(tiny_own, outputs):
    assert Experiment('mine', 'vkd', example, **tiny_own, max_steps=2).kind=='trials'
    assert Experiment('mine', 'vkd', example, **tiny_own, holdout=.2).dev==('validation','holdout')

WRONG = {
    "unknown task 'ssst2'; did you mean 'sst2'?":dict(task='ssst2'),
    "; for data of your own give its data as well":dict(task='mine'),
    "give its data as well":dict(task='mine', data='demo'),
    "unknown column label= 'sentimnt'; did you mean 'sentiment'":dict(task='mine', data=str(example), label='sentimnt'),
    "unknown metric 'acuracy'; did you mean 'accuracy'?":dict(task='mine', data=str(example), metric='acuracy'),
    "x.csv is not there":dict(task='mine', data='x.csv'),
    "'rte' is a task of GLUE; give your own another name":dict(task='rte', data=str(example)),
    "task='fsd' is a method; give your own task another name, such as 'my_task'":dict(task='fsd', data=str(example)),
    "task='squad' is a name in settings.ini that is no task's":dict(task='squad', data=str(example)),
    "a task called '../x'":dict(task='../x', data=str(example)),
    "text='sentence' is for data of your own, and rte is a task of GLUE":dict(task='rte', data='demo', text='sentence')}

@pytest.mark.parametrize('message', WRONG)
def test_what_cannot_be_meant_ends_before_anything_is_computed(message, tiny_own, outputs):
    with pytest.raises((ValueError,FileNotFoundError)) as e: Experiment(method='fsd', **tiny_own | WRONG[message])
    assert message in str(e.value) and not outputs.exists()

@pytest.mark.parametrize('given, message', [(dict(task='wnli'), "'wnli' is a task of GLUE"), (dict(task='yours'), "task='yours', but the data are those of 'mine'"),
    (dict(task='mine', label='stars'), "label='stars': the data were read already")])
def test_what_was_read_already_is_taken_as_it_is(given, message, tiny_own, outputs):
    with pytest.raises(ValueError, match=re.escape(message)): Experiment(method='vkd', data=reference(), **tiny_own, **given)

def test_what_is_no_data_is_refused(tiny_own, outputs):
    with pytest.raises(ValueError, match='data is a list; data are a file'): fsd.distill('mine', 'vkd', [1,2], **tiny_own)
    with pytest.raises(ValueError, match='nothing is called train'): fsd.distill('mine', 'vkd', dict(dev=frame()), **tiny_own)

def test_distill_as_a_command_on_own_data(tiny_own, outputs, tmp_path):
    params = tiny_own | dict(task='mine', method='fsd', data=example)
    for name in ('distill','teacher'):
        given = {k:v for k,v in params.items() if k in papermill.inspect_notebook(str(root/'nbs'/f'{name}.ipynb'))}
        done = subprocess.run([sys.executable, '-m', 'papermill', root/'nbs'/f'{name}.ipynb', tmp_path/f'{name}.ipynb', *(str(a) for k,v in given.items() for a in ('-p', k, v))], capture_output=True, text=True)
        assert done.returncode==0, done.stderr
    outs = [o for c in nbformat.read(tmp_path/'distill.ipynb', 4).cells if c.cell_type=='code' for o in c.outputs]
    shown = [o.data for o in outs if 'data' in o]
    assert sum('image/png' in d for d in shown)>=3, 'losses, restoration and CKA'
    text = ' '.join(d.get('text/markdown', '')+d.get('text/html', '') for d in shown)
    assert "text: 'review'; label: 'sentiment', negative or positive" in text and 'agreement with teacher' in text
    assert 'no result' not in text and 'paper</th>' not in text
    assert len(list((outputs/'own').rglob('run.json')))==1

def test_a_small_dev_set_has_no_maps_and_the_page_says_so(tiny_own, outputs, tmp_path):
    pd.concat([frame(text=[f'{t} {i}' for t in TEXTS]) for i in range(4)]).to_csv(tmp_path/'few.csv', index=False)
    given = tiny_own | dict(task='few', method='vkd', data=str(tmp_path/'few.csv'))
    nb,names = parameterize_notebook(papermill.iorw.load_notebook_node(str(root/'nbs'/'distill.ipynb')), given),{}
    for c in nb.cells:
        if c.cell_type=='code': exec(''.join(l for l in c.source.splitlines(True) if not l.startswith('%')), names)
    assert names['cka'] is None and names['run'].kind=='own' and len(names['exp'].rows['validation'])==8

def on_its_page(names, **given):
    "Run the page of one's own data cell by cell on what is `given`; `names` are those defined so far."
    nb = parameterize_notebook(papermill.iorw.load_notebook_node(str(root/'nbs'/'own_data.ipynb')), given)
    for c in nb.cells:
        if c.cell_type=='code': exec(''.join(l for l in c.source.splitlines(True) if not l.startswith('%')), names)

@pytest.mark.parametrize('given, message', [(dict(lable='mood'), "unknown parameter 'lable'; did you mean 'label'?"), (dict(seed=3), "seed=3: several are compared here; give seeds, such as '3'"),
    (dict(share=20), 'share=20.0 must be below 1'), (dict(quotes='maybe'), "quotes='maybe' is not yes or no"), (dict(epochs=0), 'epochs=0 must be at least 1')])
def test_the_page_of_own_data_ends_in_its_first_cell_at_what_cannot_be_meant(given, message, outputs):
    with pytest.raises(ValueError, match=re.escape(message)): on_its_page(names := {}, **given)
    assert 'found' not in names

def test_the_page_of_own_data_reads_what_it_is_told_and_ends_with_long_pairs(tiny_own, outputs, tmp_path):
    rows = [dict(nr=i, one=f'"the a of {i} '+'he she they '*40, two=f'is was {i*7%60} '+'not it '*40, mood=i%3 if i<60 else '', taste=i%2) for i in range(66)]
    (tmp_path/'pairs.tsv').write_text('\n'.join('\t'.join(map(str, r)) for r in ([*rows[0]], *(r.values() for r in rows))))
    told = dict(text='one', text_pair='two', label='mood', metric='macro_f1', share=.4, quotes='no')
    on_its_page(names := {}, data=str(tmp_path/'pairs.tsv'), task='moods', methods='nods vkd', method='vkd', **told, **tiny_own)
    found,first,choice = (names[k] for k in ('found','first','choice'))
    assert (found.task.official, found.task.labels, found.task.metrics)==(('one','two','mood'), ('0','1','2'), ('macro_f1',))
    assert found.counts.sum().tolist()==[36,24] and first.settings.lr==tiny_own['lr'] and first.settings.model==tiny_own['model']
    assert {e.data.fingerprint for e in (first, *choice.planned)}=={found.fingerprint}
    assert (first.more, {e.settings.method:e.more for e in choice.planned})==(0, dict(nods=0, vkd=6)), 'rows whose label is empty'
    assert names['rows'].columns.tolist()==['text','text_pair'] and {len(r) for r in names['rows']['text'].str.split()}=={124}
    both,alone = (names['classify'](names['rows'].head(2)[c].to_dict('records'))[0]['score'] for c in (['text','text_pair'], ['text']))
    assert both!=alone, 'the second text is read, too'

def test_a_command_takes_own_data(tiny_own, outputs, capsys):
    from fsd.__main__ import experiment
    exp = experiment(['--task','mine','--method','vkd','--data',str(example), *(str(a) for k,v in tiny_own.items() for a in (f'--{k}', v))])
    assert (exp.kind, exp.task.labels)==('own', ('negative','positive'))
    with pytest.raises(SystemExit): experiment(['--task','mine','--method','vkd'])
    assert 'for data of your own give its data as well' in capsys.readouterr().err

def test_one_text_of_a_class_stays_to_be_learned_and_one_text_alone_is_refused():
    many = pd.concat([frame(), pd.DataFrame(dict(text=['Thanks.']*2, label='rare'))])
    with pytest.warns(UserWarning, match="no validation row has the label 'rare'"): data = own_data(many)
    assert data.counts.loc['rare'].tolist()==[2,0]
    with pytest.raises(ValueError, match='no class has two different texts'): own_data(pd.DataFrame(dict(text=['a','a','a'], label=[.5,.6,.7])))

def test_a_class_that_no_row_judges_is_left_out_of_macro_f1():
    from fsd.significance import drawn_scores
    task = own.OwnTask('mine', 'mine', ('text',), ('a','b','c'), ('macro_f1',), {}, ())
    logits,labels = np.eye(3)[[0,0,1]],np.array([0,0,1])
    assert task.scores(logits, labels)['macro_f1']==1
    rng,some = np.random.default_rng(0),np.array([0]*20+[1]*19+[2])
    said = rng.normal(size=(40,3))+2*np.eye(3)[some]
    draws = [rng.integers(40, size=40) for _ in range(20)]
    counts = np.stack([np.bincount(d, minlength=40) for d in draws])
    assert (counts[:,-1]==0).any(), 'some draws miss the rare class'
    drawn = drawn_scores(task, said[None], some, counts)['macro_f1'][:,0]
    assert drawn==pytest.approx([task.scores(said[d], some[d])['macro_f1'] for d in draws])

def test_equal_texts_are_held_out_together(tiny_own, outputs):
    rows = pd.DataFrame([dict(text=f'{w} film', label='pos' if i%2 else 'neg') for i,w in enumerate('abcdefghijklmnopqrst') for _ in range(5)])
    exp = Experiment('mine', 'nods', rows, **tiny_own, holdout=.25)
    learned,out = ({tuple(r) for r in exp.rows[s]['input_ids'][:]} for s in ('train','holdout'))
    assert len(exp.rows['holdout'])==20 and not learned&out

def test_the_test_split_of_rows_without_a_label_is_left_alone(tmp_path):
    more = dict(train=pd.DataFrame(dict(text=['u1'])), test=pd.DataFrame(dict(text=['t1','t2'])))
    assert own_data(frame(), unlabelled=more).unlabelled['text'][:]==['u1']

def test_a_choice_compares_methods_each_with_one_setting(tiny_own, outputs):
    from fsd.choice import Choice
    for how,why in ((dict(preset='settings'), "the stage 'nods' chooses settings of nods, which is for `Sweep`"), (dict(seeds='0 0'), 'seeds 0, 0: one of them stands twice')):
        with pytest.raises(ValueError, match=why): Choice(example, **tiny_own, **how)
    with pytest.raises(ValueError, match='no run of this choice is done yet'): Choice(example, methods='nods', **tiny_own).chosen()
