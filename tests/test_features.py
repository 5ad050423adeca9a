"Kept teacher features under damage, change and bad input."
import shutil
import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig
from fsd.features import KeptTeacher, LiveTeacher, keep_features
from fsd.glue import collate
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
@pytest.mark.parametrize('name', ['hidden-2.npy', 'logits.npy', 'idx.npy', 'lengths.npy', 'manifest.json'])
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
    (dict(data=rows(idx=[0, 1, 1, 2])), 'idx=1 occurs 2 times'),
    (dict(max_length=8), 'row idx=1 has 9 tokens'),
    (dict(max_length=33), 'more than the 32 positions'),
    (dict(needs={('attentions', -1)}), 'attentions are too large to keep'),
    (dict(needs={('hidden', 4)}), 'layer 4 does not exist'),
    (dict(padding='mask'), "padding='mask'"),
    (dict(precision='fp16'), "precision='fp16'"),
    (dict(data=rows([])), 'no rows'),
    (dict(data=rows().map(lambda r: dict(attention_mask=[0]+r['attention_mask'][1:]))), 'some rows are padded')])
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
