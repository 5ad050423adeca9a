"""GLUE files as they are met in practice: every task in every layout, every way a file can be broken."""
import gzip, random, warnings
import datasets as hfd
import numpy as np
import pytest
import torch
from fsd import glue
from fsd.glue import load, read_tsv, scores
from fsd.rows import collate, tokenise, tokens
from fsd.tasks import tasks

HEADERS = dict(sst2=['sentence','label'], mrpc=['Quality','#1 ID','#2 ID','#1 String','#2 String'],
    stsb='index genre filename year old_index source1 source2 sentence1 sentence2 score'.split(),
    qqp='id qid1 qid2 question1 question2 is_duplicate'.split(),
    qnli='index question sentence label'.split(), rte='index sentence1 sentence2 label'.split(), wnli='index sentence1 sentence2 label'.split())
MNLI = 'index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2 label1'.split()
TEXTS = ['"An open quotation mark', 'null', 'ends in a space ', 'NA', 'caf\u00e9 \u2028 na\u00efve \U0001f600', "it 's #1 , 100 %", 'x', '""doubled""']

def header(task, split):
    if task=='cola': return ['source','label','mark','sentence']
    if task=='mnli': return MNLI + ([] if split=='train' else ['label2','label3','label4','label5']) + ['gold_label']
    return HEADERS[task]

def rows(task, split):
    t,n = tasks[task],8
    r = random.Random(task+split)
    texts = {c:r.sample(TEXTS, n) for c in t.sentences}
    label = [r.choice([0.,0.25,3.8,5.]) for _ in range(n)] if t.regression else [i%t.num_labels for i in range(n)]
    return {**texts, 'label':label}

def tsv(task, split, eol='\n', final=True):
    t,names,data = tasks[task],header(task, split),rows(task, split)
    lines = [] if task=='cola' else ['\t'.join(names)]
    for i in range(8):
        label = data['label'][i]
        row = dict.fromkeys(names, 'n/a') | dict(zip(t.official, [data[c][i] for c in t.sentences] + [t.labels[label] if t.spelled else str(label)]))
        lines.append('\t'.join(row[c] for c in names))
    return eol.join(lines) + (eol if final else '')

def write(root, task, folder=None, pack=lambda b: (b,''), **kwargs):
    d = root/(folder or tasks[task].folder)
    d.mkdir(parents=True)
    for split in tasks[task].sizes:
        body,ext = pack(tsv(task, split, **kwargs).encode())
        (d/f"{split.replace('validation','dev')}.tsv{ext}").write_bytes(body)
    return root

def saved(root, task):
    t = tasks[task]
    label = hfd.Value('float32') if t.regression else hfd.ClassLabel(names=list(t.labels))
    features = hfd.Features({**{c:hfd.Value('string') for c in t.sentences}, 'label':label, 'idx':hfd.Value('int32')})
    splits = {s:hfd.Dataset.from_dict({**rows(task, s), 'idx':range(100,108)}, features=features) for s in t.sizes}
    hfd.DatasetDict(splits | {'test':splits['train']}).save_to_disk(root/task)
    return root

LAYOUTS = dict(
    official=lambda p,t: write(p, t),
    lower=lambda p,t: write(p, t, folder=t),
    upper=lambda p,t: write(p, t, folder=tasks[t].folder.upper()),
    gz=lambda p,t: write(p, t, pack=lambda b: (gzip.compress(b), '.gz')),
    bom=lambda p,t: write(p, t, pack=lambda b: (b'\xef\xbb\xbf'+b, '')),
    crlf=lambda p,t: write(p, t, eol='\r\n'),
    no_final_newline=lambda p,t: write(p, t, final=False),
    empty_last_lines=lambda p,t: write(p, t, pack=lambda b: (b+b'\n\r\n', '')),
    saved=saved)

@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('task', tasks)
def test_every_task_in_every_layout(task, layout, tmp_path):
    data = load(task, LAYOUTS[layout](tmp_path, task))
    reference = load(task, write(tmp_path/'reference', task))
    assert data.fingerprint==reference.fingerprint
    assert (data.source, data.partial, data.complete)==('folder', False, False)
    assert list(data.splits)==list(tasks[task].sizes)
    for split,ds in data.splits.items():
        expected = rows(task, split)
        assert {c:ds[c][:] for c in tasks[task].sentences}=={c:expected[c] for c in tasks[task].sentences}
        assert np.allclose(ds['label'][:], expected['label'])
        assert ds['idx'][:]==list(range(8))

BROKEN = {
    'short row': (lambda b: b.replace(b'\tnull', b' null', 1), r':\d+: 3 fields where 4'),
    'long row': (lambda b: b.replace(b'null', b'nu\tll', 1), r':\d+: 5 fields where 4'),
    'blank line inside': (lambda b: b.replace(b'\n', b'\n\n', 1), ':2: 1 fields where 4'),
    'unknown label': (lambda b: b.replace(b'\tentailment', b'\tyes', 1), ":2: label 'yes' is none of entailment, not_entailment"),
    'number for a name': (lambda b: b.replace(b'\tentailment', b'\t1', 1), ":2: label '1' is none of"),
    'missing label': (lambda b: b.replace(b'\tentailment', b'\t', 1), ":2: label '' is none of"),
    'test split': (lambda b: b.replace(b'sentence2\tlabel', b'sentence2\tid', 1), "no column 'label', the columns are index, sentence1"),
    'NUL byte': (lambda b: b.replace(b'null', b'n\0ll', 1), r':\d+: NUL byte'),
    'not UTF-8': (lambda b: b.replace(b'null', b'n\xffll', 1), r':\d+: not UTF-8'),
    'empty': (lambda b: b'', 'the file is empty'),
    'a column twice': (lambda b: b.replace(b'index\tsentence1', b'sentence2\tsentence1', 1), "the column 'sentence2' is there 2 times"),
    'only a header': (lambda b: b.split(b'\n')[0]+b'\n', 'a header and no rows'),
    'no header': (lambda b: b.split(b'\n', 1)[1], "no column 'sentence1'")}

@pytest.mark.parametrize('fault', BROKEN)
def test_a_broken_file_is_named(fault, tmp_path):
    spoil,message = BROKEN[fault]
    file = write(tmp_path, 'rte')/'RTE'/'dev.tsv'
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match=message) as e: load('rte', tmp_path)
    assert str(e.value).startswith(str(file))

@pytest.mark.parametrize('score', ['high','','nan','-1','5.1','inf','0_1'])
def test_scores_of_stsb_are_numbers_from_0_to_5(score, tmp_path):
    file = write(tmp_path, 'stsb')/'STS-B'/'train.tsv'
    head,first,*rest = file.read_text().split('\n')
    file.write_text('\n'.join([head, '\t'.join(first.split('\t')[:-1]+[score]), *rest]))
    with pytest.raises(ValueError, match='train.tsv:2: score .* from 0 to 5'): load('stsb', tmp_path)

def test_truncated_gzip(tmp_path):
    file = write(tmp_path, 'rte', pack=lambda b: (gzip.compress(b), '.gz'))/'RTE'/'train.tsv.gz'
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match='not a whole gzip file'): load('rte', tmp_path)
    file.write_bytes(b'plain text')
    with pytest.raises(ValueError, match='not a whole gzip file'): load('rte', tmp_path)

@pytest.mark.parametrize('seed', range(60))
def test_a_damaged_file_never_gives_other_rows_silently(seed, tmp_path):
    "Cutting or doubling tabs and line ends is noticed, or changes no field but a text it cut into."
    rng = random.Random(seed)
    file = write(tmp_path, 'mrpc')/'MRPC'/'train.tsv'
    body = bytearray(file.read_bytes())
    at = rng.choice([i for i,b in enumerate(body) if b in b'\t\n'][:-1])
    if rng.random()<.5: del body[at]
    else: body.insert(at, body[at])
    file.write_bytes(body)
    with pytest.raises(ValueError, match=r'train\.tsv:\d+: '): load('mrpc', tmp_path)

@pytest.mark.parametrize('seed', range(20))
def test_random_bytes_are_rows_or_a_clear_error(seed, tmp_path):
    file = tmp_path/'x.tsv'
    rng = random.Random(seed)
    file.write_bytes(b'sentence\tlabel\n'+bytes(rng.choices(b'\t\n\r"ab\xc3\xa9\0', [6,6,1,1,6,6,1,1,.2], k=40)))
    try:
        for where,fields in read_tsv(file, ('sentence','label')): assert len(fields)==2 and where.startswith(str(file))
    except ValueError as e: assert str(file) in str(e)

def test_partial_files_only_on_request(tmp_path):
    folder = write(tmp_path, 'mnli')/'MNLI'
    (folder/'train.tsv').rename(folder/'train_partial.tsv')
    with pytest.raises(FileNotFoundError, match=r'train_partial.tsv; use it with partial=True'): load('mnli', tmp_path)
    data = load('mnli', tmp_path, partial=True)
    assert data.partial and not data.complete and '8 of 392,702' in data.where
    (folder/'train.tsv').write_bytes((folder/'train_partial.tsv').read_bytes())
    assert not load('mnli', tmp_path, partial=True).partial

def test_what_was_looked_for(tmp_path, monkeypatch):
    write(tmp_path, 'rte')
    with pytest.raises(FileNotFoundError, match='lacks sst2: looked for a folder SST-2 or sst2'): load('sst2', tmp_path)
    (tmp_path/'RTE'/'dev.tsv').unlink()
    with pytest.raises(FileNotFoundError, match='lacks dev.tsv: looked for dev.tsv, dev.tsv.gz'): load('rte', tmp_path)
    write(tmp_path, 'sst2'); write(tmp_path, 'sst2', folder='sst2_')
    with pytest.raises(ValueError, match='more than once: SST-2, sst2_'): load('sst2', tmp_path)
    monkeypatch.setenv('FSD_GLUE', str(tmp_path/'nowhere'))
    with pytest.raises(FileNotFoundError, match='is not a folder'): load('rte')

def test_saved_data_is_checked(tmp_path):
    t = tasks['rte']
    def save(**change):
        features = hfd.Features(dict(sentence1=hfd.Value('string'), sentence2=hfd.Value('string'), label=hfd.ClassLabel(names=change.pop('names', list(t.labels)))))
        ds = hfd.Dataset.from_dict(dict(sentence1=['a','b'], sentence2=['c','d'], label=[0,1]) | change, features=features)
        hfd.DatasetDict(train=ds, validation=ds).save_to_disk(tmp_path/'rte')
    save(); assert len(load('rte', tmp_path).splits['train'])==2
    save(names=['not_entailment','entailment'])
    with pytest.raises(ValueError, match='labels are'): load('rte', tmp_path)
    save(label=[0,-1])
    with pytest.raises(ValueError, match='row 1 has label -1'): load('rte', tmp_path)
    save(sentence2=['c',None])
    with pytest.raises(ValueError, match='row 1 has sentence2 None'): load('rte', tmp_path)
    arrow = next((tmp_path/'rte'/'train').glob('*.arrow'))
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(ValueError, match='datasets cannot read'): load('rte', tmp_path)

def test_auto_without_folder_and_hub_is_the_demo_and_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv('FSD_GLUE', raising=False)
    monkeypatch.setattr(hfd.config, 'HF_DATASETS_CACHE', tmp_path)
    monkeypatch.setattr(glue, 'hub_answers', lambda: False)
    data = load('wnli')
    assert data.source=='demo' and not data.complete and 'out of reach' in data.where
    with pytest.raises(ConnectionError, match='out of reach'): load('wnli', 'hub')

def test_cached_hub_data_is_found_without_the_hub(monkeypatch, tmp_path):
    monkeypatch.delenv('FSD_GLUE', raising=False)
    monkeypatch.setattr(hfd.config, 'HF_DATASETS_CACHE', tmp_path)
    monkeypatch.setattr(glue, 'hub_answers', lambda: pytest.fail('asked the hub'))
    saved(tmp_path/'s', 'rte')
    builder = tmp_path/'nyu-mll___glue'/'rte'/'0.0.0'/'abc'
    builder.mkdir(parents=True)
    splits = hfd.load_from_disk(str(tmp_path/'s'/'rte'))
    info = hfd.DatasetInfo(features=splits['train'].features, builder_name='parquet', dataset_name='glue', config_name='rte', version='0.0.0',
        splits={s:dict(name=s, num_examples=8, dataset_name='glue') for s in splits})
    info.write_to_directory(str(builder))
    for s,ds in splits.items():
        writer = hfd.arrow_writer.ArrowWriter(path=str(builder/f'glue-{s}.arrow'), features=ds.features)
        for row in ds: writer.write(row)
        writer.finalize()
    data = load('rte')
    assert data.source=='hub' and data.fingerprint==load('rte', write(tmp_path/'t', 'rte')).fingerprint

def test_a_silent_hub_costs_two_seconds_at_most(monkeypatch):
    import threading
    waits = []
    monkeypatch.setattr(hfd.config, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(glue.urllib.request, 'urlopen', lambda *a, **k: threading.Event().wait(3600))
    monkeypatch.setattr(glue.threading.Thread, 'join', lambda self, t=None: waits.append(t))
    assert glue.hub_answers.__wrapped__() is False
    assert waits==[2.]

@pytest.mark.parametrize('task', tasks)
def test_constant_predictions_score_without_warnings(task):
    t = tasks[task]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for labels in (np.zeros(6), np.arange(6)%t.num_labels if not t.regression else np.arange(6)/2):
            for column in range(t.num_labels):
                logits = np.zeros((6, t.num_labels)); logits[:,column] = 1
                got = scores(task, logits, labels)
                assert tuple(got)==t.metrics and all(np.isfinite(list(got.values())))

def test_scores_reject_what_they_cannot_score():
    with pytest.raises(ValueError, match='NaN'): scores('rte', [[0,np.nan]], [1])
    with pytest.raises(ValueError, match='no predictions'): scores('rte', np.zeros((0,2)), [])
    with pytest.raises(ValueError, match='unknown task'): scores('snli', [[0,1]], [1])
    for logits,labels,why in (([[0,1]], [-1], 'row 0 has label -1'), ([[0,1]]*2, [1,2], 'row 1 has label 2'), ([[0,1]], [.5], 'label 0.5'), ([[0,1]], [None], 'label nan'),
        ([[0,1]], 1, r'labels of shape \(\)'), ([[0,1]]*2, [[0,1],[1,0]], r'labels of shape \(2, 2\)'), ([[0,1],[1]], [0,1], 'logits are no array of numbers'),
        ([[0,1]], ['yes'], 'labels are no array of numbers'), ([[0,1,2]], [1], r'expected \(1, 2\)'), ([], [], 'no predictions')):
        with pytest.raises(ValueError, match=why): scores('rte', logits, labels)
    with pytest.raises(ValueError, match='row 1 has label -1, expected a score from 0 to 5'): scores('stsb', [1.,2.], [1.,-1.])
    with pytest.raises(ValueError, match='NaN'): scores('stsb', [1.,np.nan], [1.,2.])

@pytest.mark.parametrize('task', tasks)
def test_scores_are_the_same_of_lists_arrays_and_tensors_and_of_a_column(task):
    t,rng = tasks[task],np.random.default_rng(0)
    logits = rng.normal(size=(40, t.num_labels)).astype('float32')
    labels = rng.uniform(0, 5, 40).astype('float32') if t.regression else rng.integers(0, t.num_labels, 40)
    right = scores(task, logits, labels)
    for kind in (torch.from_numpy, np.ndarray.tolist, lambda a: torch.from_numpy(a)+torch.zeros(1, requires_grad=a.dtype.kind=='f')):
        assert scores(task, kind(logits), kind(labels))==right==scores(task, kind(logits), kind(labels[:,None]))
    assert scores(task, [torch.tensor(x) for x in logits], [np.float32(y) for y in labels])==right

def test_batches_do_not_depend_on_the_neighbours(tmp_path):
    class Words:
        def __call__(self, *texts, truncation, max_length):
            ids = [[len(w)+1 for t in pair for w in t.split()][:max_length] for pair in zip(*texts)]
            return dict(input_ids=ids, attention_mask=[[1]*len(i) for i in ids], token_type_ids=[[0]*len(i) for i in ids])
    data = load('stsb', write(tmp_path, 'stsb'))
    rows = tokenise(data, Words(), 4)['validation']
    assert rows['idx'][:]==list(range(8)) and max(map(len, rows['input_ids'][:]))<=4
    both = collate(9, 6)([rows[0], rows[1]])
    assert both['input_ids'].shape==(2,6) and both['labels'].dtype.is_floating_point
    alone = collate(9, 6)([rows[1]])
    assert all((both[k][1]==alone[k][0]).all() for k in both)
    assert (both['input_ids'][both['attention_mask']==0]==9).all()

@pytest.mark.parametrize('row, why', [
    (dict(), 'row 1 has input_ids None, expected a list of whole numbers'),
    (dict(input_ids=[]), 'row 1 has no tokens'),
    (dict(input_ids='a text'), "row 1 has input_ids 'a text', expected a list"),
    (dict(input_ids=['a', 'text']), r"row 1 has input_ids \['a', 'text'\], expected a list"),
    (dict(input_ids=[5, None]), 'row 1 has input_ids'),
    (dict(input_ids=[5., 6.5]), 'row 1 has input_ids'),
    (dict(input_ids=[[5, 6]]), 'row 1 has input_ids'),
    (dict(input_ids=[[5], [6, 7]]), 'row 1 has input_ids'),
    (dict(input_ids=torch.tensor([[5, 6]])), 'row 1 has input_ids'),
    (dict(input_ids=7), 'row 1 has input_ids 7'),
    (dict(input_ids=[5, -6], idx=None), 'row 1 has -6 in input_ids'),
    (dict(input_ids=[5, 6], token_type_ids=[0, 0]), 'row 0 has token_type_ids None'),
    (dict(input_ids=[5, 6], attention_mask=[1, 1]), 'row 0 has attention_mask None')])
def test_a_row_of_nonsense_is_named_by_collate_and_before_it_is_kept(row, why):
    from fsd.features import row_lengths
    with pytest.raises(ValueError, match=why): collate(0)([dict(input_ids=[5, 6]), row])
    with pytest.raises(ValueError, match=why): row_lengths([dict(input_ids=[5, 6]), row], 12)

@pytest.mark.parametrize('row, why', [
    (dict(attention_mask=[1]), 'row idx=9 has 1 values in attention_mask for 3 in input_ids'),
    (dict(attention_mask=[1, 1, 2]), 'row idx=9 has 2 in attention_mask, expected 0 or 1'),
    (dict(attention_mask=[0, 0, 0]), 'row idx=9 has a masked first token'),
    (dict(attention_mask=[0, 1, 1]), 'row idx=9 has a masked first token; padding belongs at the end'),
    (dict(token_type_ids=[0, 1]), 'row idx=9 has 2 values in token_type_ids for 3 in input_ids'),
    (dict(token_type_ids=[0, 0, -1]), 'row idx=9 has -1 in token_type_ids'),
    (dict(idx='first'), "row 0 has idx 'first', expected a whole number"),
    (dict(labels='yes'), "row idx=9 has labels 'yes', expected a number"),
    (dict(labels=[[0, 1]]), 'row idx=9 has labels'),
    (dict(labels=[]), 'row idx=9 has labels'),
    (dict(labels=float('inf')), 'row idx=9 has labels inf')])
def test_columns_that_do_not_fit_are_named(row, why):
    with pytest.raises(ValueError, match=why): collate(0)([dict(input_ids=[5, 6, 7], idx=9) | row])

def test_a_dataset_is_checked_as_its_rows_are():
    for column, why in (([[5, 6], None], 'row 1 has input_ids None'), ([[5], [6, None]], 'row 1 has input_ids'), ([[5], [-1]], 'row 1 has -1'), ([[5], []], 'row 1 has no tokens')):
        with pytest.raises(ValueError, match=why): tokens(hfd.Dataset.from_dict(dict(input_ids=column)))
    with pytest.raises(ValueError, match='no input_ids, only text; tokenise them first'): tokens(hfd.Dataset.from_dict(dict(text=['a'])))
    with pytest.raises(ValueError, match='splits or columns, train'): tokens(hfd.DatasetDict(train=hfd.Dataset.from_dict(dict(input_ids=[[5]]))))

@pytest.mark.parametrize('name', ['labels', 'label', 'label_ids'])
def test_labels_have_the_type_that_a_loss_expects_under_any_name(name):
    def labels(*values): return collate(0)([{'input_ids':[5,6], name:v} for v in values]).get('labels')
    for values in ([1,0], [True,False], [np.int8(1),np.bool_(False)], [torch.tensor(1),torch.tensor([0])], [[1],(0,)]): assert torch.equal(labels(*values), torch.tensor([1,0]))
    for values in ([1.5,0.], [np.float64(1.5),0], [torch.tensor(1.5, dtype=torch.bfloat16),np.array([0.])]): assert torch.equal(labels(*values), torch.tensor([1.5,0.]))
    for values in ([[1,0],[1,1]], [(True,False),np.array([1.,1.])], [torch.tensor([1,0]),torch.tensor([1.,1.])]): assert torch.equal(labels(*values), torch.tensor([[1.,0.],[1.,1.]]))
    for values in ([None,None], [-1,-1], [-100,np.nan], [torch.tensor(-1),None]): assert labels(*values) is None
    assert torch.equal(labels(-1.), torch.tensor([-1.])), 'a score may be below 0'
    for values in ([1,None], [1,-1], [.5,float('nan')], [[1,0],None]):
        with pytest.raises(ValueError, match='row 1 has .* which is none, beside rows that have one'): labels(*values)
    with pytest.raises(ValueError, match='of another length'): labels([1,0], [1,0,0])

def test_rows_padded_to_any_length_make_the_same_batch():
    rows = [dict(input_ids=[5,6,7], token_type_ids=[0,0,1], attention_mask=[1,0,1], labels=1, idx=4), dict(input_ids=[8,9], token_type_ids=[0,1], attention_mask=[1,1], labels=0, idx=5)]
    pad = lambda r, n: r | {k:r[k]+[v]*(n-len(r[k])) for k,v in dict(input_ids=1, token_type_ids=0, attention_mask=0).items()}
    for length in (None, 3, 8):
        a,b = collate(0, length)(rows),collate(0, length)([pad(r, 20) for r in rows])
        assert a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def test_a_length_that_cannot_be_cut_to_is_said(tmp_path, tiny_bert):
    from transformers import AutoTokenizer
    data = load('rte', write(tmp_path, 'rte'))
    with pytest.raises(ValueError, match='max_length=2 is too short for rte'): tokenise(data, AutoTokenizer.from_pretrained(tiny_bert), 2)

def test_a_home_is_found_and_an_empty_source_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write(tmp_path/'glue', 'rte')
    monkeypatch.setenv('FSD_GLUE', '~/glue')
    assert load('rte', '~/glue').fingerprint==load('rte').fingerprint and load('rte').source=='folder'
    with pytest.raises(FileNotFoundError, match='is not a folder'): load('rte', '~nobody-of-this-name/glue')
    for source in ('', ' ', None):
        with pytest.raises(ValueError, match="a source is 'auto'"): load('rte', source)
