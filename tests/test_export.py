"""A student elsewhere: what `to_onnx` hands to torch's exporter, and what it says where the packages for it are not."""
import ast, json, logging, shutil
import pytest, torch
from conftest import root
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification
from fsd.export import to_onnx

def test_what_is_not_installed_is_said_first(monkeypatch, tiny_bert):
    monkeypatch.setattr('fsd.export.find_spec', lambda name: None)
    with pytest.raises(ImportError, match='onnx and onnxscript not found: pip install onnx onnxscript'): to_onnx(tiny_bert)

def test_the_exporter_is_told_that_rows_and_length_are_open(monkeypatch, tiny_bert, tmp_path):
    told = {}
    monkeypatch.setattr('fsd.export.find_spec', lambda name: name)
    monkeypatch.setattr(torch.onnx, 'export', lambda model, args, file, **kw: told.update(kw, written=file.write_bytes(b'it'), training=model.training))
    assert to_onnx(tiny_bert, tmp_path/'new'/'it.onnx')==tmp_path/'new'/'it.onnx' and (tmp_path/'new'/'it.onnx').read_bytes()==b'it' and not told['training']
    assert told['input_names']==[*told['kwargs']] and {'input_ids','attention_mask'}<={*told['input_names']} and told['output_names']==['logits']
    axes = told['dynamic_shapes']['input_ids']
    assert [axes[0].__name__, axes[1].max]==['rows', 64], 'as many tokens as the model has positions'
    assert logging.root.manager.disable==logging.NOTSET, 'logging is as it was'

def test_the_exporter_is_given_what_the_model_reads(monkeypatch, tiny_bert, tmp_path):
    told = {}
    monkeypatch.setattr('fsd.export.find_spec', lambda name: name)
    monkeypatch.setattr(torch.onnx, 'export', lambda model, args, file, **kw: told.update(kw, ends=torch.export.export(model, args, kw['kwargs'], dynamic_shapes=kw['dynamic_shapes']), written=file.write_bytes(b'it')))
    shutil.copytree(tiny_bert, tmp_path/'it')
    DistilBertForSequenceClassification(DistilBertConfig(vocab_size=72, dim=8, n_layers=1, n_heads=2, hidden_dim=8, max_position_embeddings=64)).save_pretrained(tmp_path/'it')
    assert 'token_type_ids' in AutoTokenizer.from_pretrained(tmp_path/'it')('a') and to_onnx(tmp_path/'it')==tmp_path/'it'/'model.onnx'
    assert told['input_names']==['input_ids','attention_mask']==[*told['kwargs']]==[*told['dynamic_shapes']]

def test_an_export_that_fails_leaves_what_was_there(monkeypatch, tiny_bert, tmp_path):
    def export(text, fails=False):
        def write(model, args, file, **kw):
            file.with_name(file.name+'.data').write_text(text)
            if fails: file.write_text(text[:2]); raise RuntimeError('no more space')
            file.write_text(text)
        monkeypatch.setattr(torch.onnx, 'export', write)
        return to_onnx(tiny_bert, tmp_path/'it.onnx')
    def there(): return {p.name:p.read_text() for p in tmp_path.iterdir()}
    monkeypatch.setattr('fsd.export.find_spec', lambda name: name)
    export('first')
    assert there()=={'it.onnx':'first', 'it.onnx.data':'first'}
    with pytest.raises(RuntimeError, match='no more space'): export('second', True)
    assert there()=={'it.onnx':'first', 'it.onnx.data':'first'}
    export('third')
    assert there()=={'it.onnx':'third', 'it.onnx.data':'third'}

def test_the_chapter_uses_onnxruntime_only_where_it_is_installed():
    cells = [''.join(c['source']) for c in json.loads((root/'nbs/15_export.ipynb').read_text(encoding='utf8'))['cells'] if c['cell_type']=='code']
    def uses(tree): return any('onnxruntime' in (getattr(n, 'id', ''), getattr(n, 'name', '')) for n in ast.walk(tree))
    found = [o for s in cells for o in ast.parse(s).body if uses(o)]
    assert len(found)==2 and all(isinstance(o, ast.If) and ast.unparse(o.test)=='there' for o in found)
