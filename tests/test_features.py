"Kept teacher features under damage, change and bad input."
import shutil
import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForSequenceClassification, BertConfig
from fsd.features import KeptTeacher, LiveTeacher, in_words, keep_features
from fsd.rows import collate, row_hashes, tokens
from fsd.kept import Damaged

def bert(seed=0, **kw):
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(BertConfig(**(dict(vocab_size=50, hidden_size=16, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=32) | kw))).eval()

def rows(lengths=(5, 9, 3, 7), idx=None, seed=0):
    torch.manual_seed(seed)
    return Dataset.from_dict(dict(input_ids=[torch.randint(1, 50, (l,)).tolist() for l in lengths], attention_mask=[[1]*l for l in lengths],
                                  labels=[0]*len(lengths), idx=idx or list(range(len(lengths)))))

def keep(folder, model=None, data=None, needs=frozenset({('hidden', -2)}), padding='masked', max_length=12, **kw):
    return keep_features(model or bert(), rows() if data is None else data, needs, folder, padding, max_length, 0, **kw)

def damage(path, how):
    b = bytearray(path.read_bytes())
    if how == 'truncate': b = b[:-7]
    if how == 'flip': b[-5] ^= 1
    path.unlink()
    if how != 'remove': path.write_bytes(b)

@pytest.mark.parametrize('how', ['truncate', 'flip', 'remove'])
@pytest.mark.parametrize('name', ['hidden-2.npy', 'logits.npy', 'idx.npy', 'hashes.npy', 'lengths.npy', 'manifest.json'])
def test_damage_is_noticed_and_repaired(tmp_path, capsys, name, how):
    t = keep(tmp_path)
    before = {f.name: f.read_bytes() for f in t.folder.iterdir()}
    damage(t.folder/name, how)
    with pytest.raises(Damaged, match=name): KeptTeacher(t.folder)
    capsys.readouterr()
    again = keep(tmp_path)
    said = capsys.readouterr().out
    assert name in said and 'Making it again' in said
    assert again.folder == t.folder and {f.name: f.read_bytes() for f in again.folder.iterdir()} == before

def test_kept_is_not_computed_again(tmp_path, monkeypatch):
    keep(tmp_path)
    monkeypatch.setattr('fsd.features._compute', lambda *a, **k: pytest.fail('computed again'))
    keep(tmp_path)

@pytest.mark.parametrize('change', [dict(model=bert(1)), dict(model=bert(layer_norm_eps=1e-3)), dict(data=rows(seed=1)), dict(data=rows(idx=[4, 3, 2, 1])),
                                    dict(padding='paper'), dict(needs=frozenset({('hidden', 1)})), dict(precision='bf16')])
def test_what_changes_the_numbers_changes_the_folder(tmp_path, change):
    assert keep(tmp_path).folder != keep(tmp_path, **change).folder

def test_one_changed_weight_changes_the_folder(tmp_path):
    m = bert()
    a = keep(tmp_path, m).folder
    with torch.no_grad(): m.bert.encoder.layer[0].output.dense.weight[3,5] += 1e-6
    assert keep(tmp_path, m).folder != a

def test_paper_folder_depends_on_max_length_and_masked_does_not(tmp_path):
    assert keep(tmp_path, padding='paper').folder != keep(tmp_path, padding='paper', max_length=13).folder
    assert keep(tmp_path).folder == keep(tmp_path, max_length=13).folder

def test_not_finite_or_too_large_is_refused_and_nothing_stays(tmp_path):
    m = bert()
    with torch.no_grad(): m.bert.embeddings.word_embeddings.weight[rows()[1]['input_ids'][0]] = float('nan')
    with pytest.raises(ValueError, match='row idx=1 reaches nan'): keep(tmp_path, m, rows([5, 9]))
    m = bert()
    with torch.no_grad(): m.bert.encoder.layer[1].output.LayerNorm.weight[0] = 1e6
    with pytest.raises(ValueError, match='layer 2 of row idx='): keep(tmp_path, m)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]

def test_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: type('Usage', (), dict(free=100))())
    monkeypatch.setattr('fsd.features._compute', lambda *a, **k: pytest.fail('computed'))
    with pytest.raises(OSError, match='are free'): keep(tmp_path)

@pytest.mark.parametrize('bad, why', [
    (dict(max_length=8), 'row idx=1 has 9 tokens'),
    (dict(max_length=33), 'more than the 32 positions'),
    (dict(needs={('attentions', -1)}), 'attentions are too large to keep'),
    (dict(needs={('hidden', 4)}), 'layer 4 does not exist'),
    (dict(padding='mask'), "padding='mask'"),
    (dict(precision='fp16'), "precision='fp16'"),
    (dict(data=rows([])), 'no rows'),
    (dict(data=rows().map(lambda r: dict(attention_mask=[0]+r['attention_mask'][1:]))), 'row idx=0 has a masked first token'),
    (dict(data=rows().map(lambda r: dict(attention_mask=[1,0]+r['attention_mask'][2:]))), 'row idx=0 has masked tokens before its end')])
def test_bad_input_is_one_clear_error(tmp_path, bad, why):
    with pytest.raises(ValueError, match=why): keep(tmp_path, **bad)

@pytest.mark.parametrize('padding', ['paper', 'masked'])
@pytest.mark.parametrize('model', [bert(), bert().train()])
def test_kept_equals_live(tmp_path, padding, model):
    data = rows([3, 12, 1, 8, 8, 5])
    needs = {('hidden', 0), ('hidden', -1)}
    k, l = keep(tmp_path, model, data, needs, padding, batch_size=4), LiveTeacher(model, needs, padding)
    assert k.needs == l.needs and (k.depth, k.width) == (l.depth, l.width)
    b = collate(0, 12)([data[i] for i in (5, 1, 1, 0)])
    a, b = k(b), l(b)
    torch.testing.assert_close(a.logits, b.logits)
    for i in (0, 3): torch.testing.assert_close(a.hidden[i], b.hidden[i], rtol=2**-11, atol=1e-4)
    assert not a.hidden[3].requires_grad and not b.hidden[3].requires_grad
    assert (a.hidden[3][3,3:] == 0).all() == (padding == 'masked') == (b.hidden[3][3,3:] == 0).all()

def test_batch_size_and_order_of_rows_only_round(tmp_path):
    a, b = keep(tmp_path/'a', batch_size=1), keep(tmp_path/'b', batch_size=4)
    torch.testing.assert_close(a.flat(-2)[:], b.flat(-2)[:], rtol=2**-10, atol=1e-4)

def test_flat_is_the_order_of_the_data(tmp_path):
    data = rows(idx=[9, 2, 7, 4])
    k = keep(tmp_path, data=data)
    for i,r in enumerate(data): assert torch.equal(k.flat(2)[i:i+1], torch.nn.functional.pad(k(collate(0)([r])).hidden[2].flatten(1), (0, (9-len(r['input_ids']))*16)))
    with pytest.raises(KeyError, match='layer 1 is not kept'): k.flat(1)

def test_kept_array_is_not_read_whole(tmp_path):
    assert isinstance(keep(tmp_path)._hidden[2], np.memmap)

class Own(torch.utils.data.Dataset):
    "Somebody's own class of tensors."
    def __init__(self, rows): self.rows = rows
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return {k: torch.tensor(v) for k,v in self.rows[i].items()}

def pad(row): return {**row, 'input_ids': row['input_ids']+[0]*(12-len(row['input_ids'])), 'attention_mask': row['attention_mask']+[0]*(12-len(row['input_ids']))}

as_people_have_them = dict(lists=list, torch=lambda d: d.with_format('torch'), numpy=lambda d: d.with_format('numpy'), pandas=lambda d: d.with_format('pandas'),
    own=Own, tuples=lambda d: [{k: tuple(v) if isinstance(v, list) else v for k,v in r.items()} for r in d], no_mask=lambda d: d.remove_columns('attention_mask'),
    padded=lambda d: d.map(pad), padded_tensors=lambda d: Own([pad(r) for r in d]), no_idx=lambda d: d.remove_columns('idx'),
    selected=lambda d: concatenate_datasets([d, d]).select(range(len(d))))

@pytest.mark.parametrize('form', as_people_have_them)
@pytest.mark.parametrize('padding', ['paper', 'masked'])
def test_rows_in_any_form_are_the_same_rows(tmp_path, monkeypatch, padding, form):
    k = keep(tmp_path, padding=padding)
    monkeypatch.setattr('fsd.features._compute', lambda *a, **k: pytest.fail('computed again'))
    data = as_people_have_them[form](rows())
    assert keep(tmp_path, data=data, padding=padding).folder == k.folder
    b, plain = (collate(0, 12)([d[i] for i in range(4)]) for d in (data if form != 'pandas' else list(data.with_format(None)), rows()))
    assert all(torch.equal(v, plain[key]) for key,v in b.items())
    assert torch.equal(k(b).hidden[2], k(plain).hidden[2])

def test_rows_that_say_something_else_are_never_given_what_is_kept(tmp_path):
    a, b = rows(), rows(seed=1)
    k = keep(tmp_path, data=a)
    pad = collate(0)
    for other in (b, b.remove_columns('idx'), a.map(lambda r: dict(token_type_ids=[0]*(len(r['input_ids'])-1)+[1]))):
        with pytest.raises(ValueError, match='is not among the 4 rows kept'): k(pad(list(other)))
        with pytest.raises(ValueError, match='is not among the 4 rows kept'): k.check_rows(other)
    with pytest.raises(ValueError, match='row 4 of 5 tokens is not among'): k.check_rows(concatenate_datasets([a, b]).remove_columns('idx'))
    with pytest.raises(ValueError, match='row idx=0 of 4 tokens is not among'): k(pad([{**r, 'input_ids': r['input_ids'][:4], 'attention_mask': [1]*4} for r in a.select([0])]))
    with pytest.raises(ValueError, match='row 0 of the batch is padded before its end'): k({n: v.flip(-1) for n,v in pad(list(a)).items() if v.ndim == 2})

def test_rows_are_found_whatever_their_number(tmp_path):
    k, pad, a = keep(tmp_path), collate(0), rows()
    right = k(pad(list(a))).hidden[2]
    for idx in ([3, 2, 1, 0], [7, 7, 7, 7], [-1, 10**12, 0, 2]): assert torch.equal(k(pad([{**r, 'idx': i} for r,i in zip(a, idx)])).hidden[2], right)
    b = rows((2, 8), seed=1)
    both = keep(tmp_path, data=concatenate_datasets([a, b])) # idx 0 and 1 twice
    assert torch.equal(both(pad([b[1]])).hidden[2], LiveTeacher(bert(), both.needs, 'masked')(pad([b[1]])).hidden[2].half().float())

def test_of_equal_rows_idx_chooses(tmp_path):
    data = rows((5, 9)).select([0, 1, 0]).remove_columns('idx').add_column('idx', [4, 5, 6])
    k = keep(tmp_path, data=data)
    k.logits[:] = np.arange(3)[:,None]
    assert k(collate(0)(list(data.select([2, 1, 0])))).logits[:,0].tolist() == [2, 1, 0]

def test_features_kept_before_there_were_hashes_are_found_and_checked(tmp_path, monkeypatch):
    from fsd.kept import read_json, seal
    k = keep(tmp_path)
    assert k.folder.name == 'f3f631a9bf71a8ed', 'the name that they got'
    (k.folder/'hashes.npy').unlink()
    seal(k.folder, **read_json(k.folder/'manifest.json')['about'])
    monkeypatch.setattr('fsd.features._compute', lambda *a, **k: pytest.fail('computed again'))
    old = keep(tmp_path)
    assert (old.hashes == k.hashes).all() and (KeptTeacher(k.folder, rows=rows()).hashes == k.hashes).all()
    with pytest.raises(ValueError, match='is not among'): old(collate(0)(list(rows(seed=1))))
    with pytest.raises(ValueError, match='kept without hashes'): KeptTeacher(k.folder)
    with pytest.raises(ValueError, match='made of other rows'): KeptTeacher(k.folder, rows=rows(seed=1))

def test_hashes_tell_near_rows_apart_and_stay_what_they_are():
    base = torch.randint(1, 30000, (40,)).tolist()
    near = [base] + [base[:i]+[t]+base[i+1:] for i in range(40) for t in (0, 1, 2**14, 30001)] + [base[:i]+base[j:j+1]+base[i+1:j]+base[i:i+1]+base[j+1:] for i in range(40) for j in range(i+1, 40)]
    near = list({tuple(r) for r in near} | {tuple(base[:i]) for i in range(1, 40)} | {(*base, *[0]*i) for i in range(1, 9)})
    assert len(set(row_hashes(*tokens([dict(input_ids=r) for r in near])))) == len(near)
    assert row_hashes(*tokens([dict(input_ids=[101, 7592, 102], token_type_ids=[0, 0, 1])])).tolist() == [15219344047479090911], 'kept folders hold them'

def test_sizes_in_words_have_three_digits_at_most():
    assert [in_words(n) for n in (0, 999, 999_999, 10**9, 3.5e12)] == ['0 bytes', '999 bytes', '1 MB', '1 GB', '3.5 TB']

def test_streams_and_splits_are_no_rows(tmp_path):
    with pytest.raises(ValueError, match='has no length'): keep(tmp_path, data=rows().to_iterable_dataset())
    with pytest.raises(ValueError, match='splits or columns, train'): keep(tmp_path, data=dict(train=rows()))
