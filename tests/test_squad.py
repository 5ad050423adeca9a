"""SQuAD: scores, windows and answers where they are awkward, malformed files, resuming, and the command as a whole."""
import json, math, shutil, subprocess, sys
import nbformat, papermill, pytest, torch
from conftest import build_for_cuda, root
from papermill.parameterize import parameterize_notebook
from safetensors.torch import load_file, save_file
from transformers import (AutoModel, AutoModelForQuestionAnswering, AutoTokenizer, BartConfig, BertConfig, BertForMaskedLM, GPT2Config,
                          RobertaTokenizerFast, XLNetConfig)
from fsd import reading, runs, squad, windows as cut
from fsd.demo import demo_squad
from fsd.job import NonFinite, SoundTrainer
from fsd.reading import Reading, beside_gold
from fsd.settings import SquadSettings
from fsd.squad import load_squad, read_squad, squad_rows, squad_scores
from fsd.windows import answers, best_spans, windows

def file_of(context, *qas, **more):
    "A SQuAD file of one paragraph; `qas` are (question, gold texts), found where they stand first."
    def one(i, question, golds): return dict(id=f'q{i}', question=question, answers=[dict(text=t, answer_start=context.index(t)) for t in golds], is_impossible=not golds)
    return dict(version='2.0', data=[dict(title='T', paragraphs=[dict(context=context, qas=[one(i, *o) for i,o in enumerate(qas)])])]) | more

def rows_of(context, *qas): return squad_rows(file_of(context, *qas), '2.0')

@pytest.fixture(scope='module')
def tokenizer(tiny_bert): return AutoTokenizer.from_pretrained(tiny_bert)

@pytest.fixture
def tiny(tiny_bert): return dict(model=str(tiny_bert), data='demo', max_length=64, stride=2, max_question=20, epochs=1, batch_size=16, train_examples=48, lr=1e-3, checkpoint_every=4, log_every=3)

# ---------------------------------------------------------------- scores

scored = [ # prediction, golds, exact match, F1
    ('Lyon', ['Lyon'], 1, 1), ('lyon.', ['Lyon'], 1, 1), ('the Lyon', ['Lyon'], 1, 1), ('in Lyon', ['Lyon'], 0, 2/3),
    ('Lyon', ['Graz', 'in Lyon', 'Lyon'], 1, 1), ('Lyon', ['Graz', 'in Lyon'], 0, 2/3), ('Graz', ['Lyon'], 0, 0),
    ('', ['Lyon'], 0, 0), ('Lyon', [], 0, 0), ('', [], 1, 1), ('the', [], 1, 1), ('...', [], 1, 1),
    ('  a  violin\n', ['violin'], 1, 1), ('U.S.', ['US'], 1, 1), ('1,560', ['1560'], 1, 1), ('well-known', ['well known'], 0, 0),
    ('café', ['Café'], 1, 1), ('café', ['cafe'], 0, 0), ('Straße', ['strasse'], 0, 0), ('ΩMEGA', ['ωmega'], 1, 1), ('“Lyon”', ['Lyon'], 0, 0),
    ('東京', ['東京'], 1, 1), ('Lyon\u00a0Graz', ['Lyon Graz'], 1, 1), ('a a b b', ['b b c'], 0, 2*2/(2+3)), ('', ['the', 'Lyon'], 0, 0), ('', ['the'], 1, 1)]

@pytest.mark.parametrize('text, golds, em, f1', scored)
def test_scores(text, golds, em, f1):
    got = squad_scores({'q':text}, dict(id=['q'], answers=[dict(text=golds)]))
    assert set(got)=={'validation'} and got['validation']['em']==em and math.isclose(got['validation']['f1'], f1, abs_tol=1e-12)

def test_scores_of_groups_add_up():
    rows = rows_of('Anna came to Graz.', ('Who?', ['Anna']), ('Where?', ['Graz', 'to Graz']), ('When?', []))
    s = squad_scores({'q0':'Anna', 'q1':'', 'q2':''}, rows)
    assert s['has_answer']==dict(em=.5, f1=.5) and s['no_answer']==dict(em=1, f1=1)
    for m in ('em','f1'): assert math.isclose(s['validation'][m], (2*s['has_answer'][m]+s['no_answer'][m])/3)
    with pytest.raises(ValueError, match='no questions'): squad_scores({}, dict(id=[], answers=[]))
    assert squad_scores({'q0':'Anna', 'q1':'', 'q2':'', 'other':'x'}, rows)==s, 'predictions for other questions do not count'

# ---------------------------------------------------------------- windows

def marked(rows, w):
    "What the labels of each window mark; None at [CLS]."
    return [rows[r['row']]['context'][r['offsets'][r['start_positions']][0]:r['offsets'][r['end_positions']][1]] if r['start_positions'] else None for r in w]

def test_an_answer_cut_by_a_window_is_not_marked_in_it(tokenizer):
    context = 'the '*10+'anna of graz'+' the'*10
    w = windows(rows_of(context, ('who ?', ['anna of graz'])), tokenizer, 20, 4, 6)
    found = marked(rows_of(context, ('who ?', ['anna of graz'])), w)
    assert len(w)>2 and set(found)=={None, 'anna of graz'}
    assert all(r['start_positions']==r['end_positions']==0 for r,m in zip(w, found) if m is None)

@pytest.mark.parametrize('context, answer, text', [
    ('Graz, in 1560', 'Graz', 'Graz'), ('  Graz', 'Graz', 'Graz'), ('in Graz.', 'Graz.', 'Graz.'), ('in  Graz ', ' Graz ', 'Graz'),
    ('Anna', 'nn', 'nn'), ('caf\u00e9 in Graz', 'caf\u00e9', 'caf\u00e9'), ('cafe\u0301 in Graz', 'cafe\u0301', 'cafe'), ('in cafe\u0301', 'cafe\u0301', 'cafe'), ('in \U0001f600 Graz', 'Graz', 'Graz')])
def test_labels_mark_what_tokens_hold_of_the_answer(tokenizer, context, answer, text):
    rows = rows_of(context, ('in ?', [answer]))
    assert marked(rows, windows(rows, tokenizer, 40, 4, 8))==[text]

def test_an_answer_of_half_a_token_is_marked_by_the_whole(tokenizer):
    rows = rows_of('she is in', ('?', ['sh']))
    assert marked(rows, windows(rows, tokenizer, 40, 4, 8))==['she']

def test_long_questions_are_cut_and_blank_ones_read(tokenizer):
    rows = rows_of('anna of graz', ('  '+'who is she '*50, ['anna']), ('   ', ['graz']))
    w = windows(rows, tokenizer, 40, 4, 16)
    assert [len(i)-sum(y>x>=0 for x,y in o) for i,o in zip(w['input_ids'], w['offsets'])]==[16+3, 3] and marked(rows, w)==['anna', 'graz']

def test_rows_are_counted_across_parts_and_windows_fit(tokenizer):
    rows = squad_rows(demo_squad('1.1', 'validation', 130), '1.1')
    w = windows(rows, tokenizer, 64, 8, 32)
    assert sorted(set(w['row']))==list(range(520)) and max(map(len, w['input_ids']))<=64

def test_roberta_like_tokenizers(tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(['Anna came to Graz in 1560. Who came to Graz?']*3, vocab_size=300, min_frequency=1, special_tokens=['<s>','<pad>','</s>','<unk>','<mask>'])
    bpe.save_model(str(tmp_path))
    t = RobertaTokenizerFast(str(tmp_path/'vocab.json'), str(tmp_path/'merges.txt'))
    rows = rows_of('Anna came to Graz in 1560.', ('Where?', ['Graz']), ('When?', ['in 1560']), ('Why?', []))
    w = windows(rows, t, 40, 4, 12)
    assert marked(rows, w)==['Graz', 'in 1560', None] and 'token_type_ids' not in w.column_names

def test_long_contexts_are_tokenised_in_small_portions(tokenizer):
    rows = squad_rows(dict(data=[dict(paragraphs=[dict(context='anna of graz '*n, qas=[dict(id=f'{n}-{i}', question='who ?', answers=[], is_impossible=True) for i in range(2)]) for n in (1, 400, 3, 900, 2)])]), '2.0')
    portions = [(first, part['id']) for first,part in cut._portions(rows, most=6000)]
    assert [i for _,ids in portions for i in ids]==rows['id'][:] and [f for f,_ in portions]==[sum(len(ids) for _,ids in portions[:k]) for k in range(len(portions))]
    assert [len(ids) for _,ids in portions]==[3, 3, 1, 1, 2], 'a context that is too long by itself is alone'
    assert sorted(set(windows(rows, tokenizer, 64, 8, 8)['row']))==list(range(10))

# ---------------------------------------------------------------- answers

def test_the_best_window_wins_and_null_is_the_lowest(tokenizer):
    context = 'the '*12+'anna'+' of'*12
    rows = rows_of(context, ('?', ['anna']))
    w = windows(rows, tokenizer, 16, 4, 4)
    logits = [(torch.zeros(len(r['input_ids'])), torch.zeros(len(r['input_ids']))) for r in w]
    for i,(s,e) in enumerate(logits):
        s[0],e[0] = 1.,.5*i
        if w[i]['start_positions']: s[w[i]['start_positions']],e[w[i]['end_positions']] = 3.,4.
    got = answers(rows, w, logits, tokenizer.cls_token_id, threshold=0.)['q0']
    assert got.text=='anna' and got.best[0]==('anna', 7.) and got.null==1-7.
    assert answers(rows, w, logits, tokenizer.cls_token_id, threshold=-6.)['q0'].text=='anna', 'only what is above the threshold is no answer'
    assert answers(rows, w, logits, tokenizer.cls_token_id, threshold=-6.5)['q0'].text==''
    assert len({t for t,_ in got.best})>1 and [v for _,v in got.best]==sorted((v for _,v in got.best), reverse=True)
    with pytest.raises(ValueError): answers(rows, w, logits[1:], tokenizer.cls_token_id)

def test_no_answer_reaches_into_the_question_or_is_too_long(tokenizer):
    rows = rows_of('anna of graz', ('who is she ?', ['anna']))
    w = windows(rows, tokenizer, 40, 4, 12)
    n = len(w[0]['input_ids'])
    peak = [torch.zeros(n), torch.zeros(n)]
    peak[0][1],peak[1][n-1],peak[0][-4] = 9.,9.,1.
    got = answers(rows, w, [peak], tokenizer.cls_token_id, longest=2)['q0']
    assert all(t in 'anna of graz' for t,_ in got.best) and got.best[0][1]==1
    inside = torch.tensor([y>x>=0 for x,y in w[0]['offsets']])
    assert max(j-i for _,i,j in best_spans(*peak, inside, longest=2, n=99))==1

def test_a_context_without_words_has_no_answer(tokenizer):
    rows = rows_of('  ', ('?', []))
    w = windows(rows, tokenizer, 16, 4, 4)
    z = [(torch.zeros(len(r['input_ids'])),)*2 for r in w]
    assert answers(rows, w, z, tokenizer.cls_token_id)['q0']==cut.Answer('', math.inf, [])

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_answer_nothing_and_end_it(tokenizer, bad):
    rows = rows_of('anna of graz', ('who ?', ['anna']), ('when ?', []))
    w = windows(rows, tokenizer, 40, 4, 12)
    logits = [(torch.zeros(len(r['input_ids'])), torch.zeros(len(r['input_ids']))) for r in w]
    logits[1][1][2] = bad
    with pytest.raises(NonFinite, match="question q1: the model's scores are not all finite"): answers(rows, w, logits, tokenizer.cls_token_id, threshold=0.)

# ---------------------------------------------------------------- files

def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path/'x.json'
    path.write_text(json.dumps(file_of(' Ωmega in Graz. ', ('Wo?', ['Ωmega', 'in Graz.']), ('Wann?', [])), ensure_ascii=False), encoding='utf-8')
    rows = read_squad(path, '2.0')
    assert rows[0]==dict(id='q0', title='T', context=' Ωmega in Graz. ', question='Wo?', answers=dict(text=['Ωmega', 'in Graz.'], answer_start=[1, 7]))
    assert rows[1]['answers']==dict(text=[], answer_start=[])

@pytest.mark.parametrize('content, message', [
    ('{"data": [', 'line 1: '), ('[]', 'a list where a dict is expected'), ('{}', "no 'data'"), ('{"data": {}}', "'data' is a dict, expected a list"), ('{"data": []}', 'no questions'),
    ('{"data": [3]}', 'article 1: a int where a dict'), ('{"data": [{"paragraphs": [{"qas": []}]}]}', "article 1, paragraph 1: no 'context'"),
    ('{"data": [{"title": "A", "paragraphs": [{"context": "x", "qas": [{"id": 3}]}]}]}', "article 1 (A), paragraph 1, question 1: 'id' is a int"),
    (json.dumps(file_of('x', ('?', ['x']), version='1.1')), 'holds version 1.1, not 2.0')])
def test_malformed_files(tmp_path, content, message):
    (tmp_path/'bad.json').write_text(content)
    with pytest.raises(ValueError) as e: read_squad(tmp_path/'bad.json', '2.0')
    assert str(e.value).startswith(str(tmp_path/'bad.json')) and message in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('start, text', [(-1, 'Graz'), (99, 'Graz'), (1, 'Graz'), (0, 'graz'), (0, ' '), (0, '')])
def test_misplaced_answers(start, text):
    file = file_of('Graz', ('?', ['Graz']))
    file['data'][0]['paragraphs'][0]['qas'][0]['answers'][0] = dict(text=text, answer_start=start)
    with pytest.raises(ValueError, match=r'article 1 \(T\), paragraph 1, question q0: '): squad_rows(file, '2.0')

def test_a_question_without_answer_is_none_of_version_1():
    file = file_of('Graz', ('?', []))
    del file['version']
    with pytest.raises(ValueError, match='exist in version 2.0 only'): squad_rows(file, '1.1')

def write(folder, version='1.1', train=12, dev=6):
    folder.mkdir(exist_ok=True)
    for name,split,n in (('train','train',train), ('dev','validation',dev)): (folder/f'{name}-v{version}.json').write_text(json.dumps(demo_squad(version, split, n) | {'version':version}))
    return folder

def test_a_folder_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv('FSD_SQUAD', str(write(tmp_path/'squad')))
    data = load_squad('1.1')
    assert data.source=='folder' and not data.complete and 'train has 48 questions, the official one 87,599' in data.where
    with pytest.raises(FileNotFoundError, match='lacks the train questions of version 2.0'): load_squad('2.0')
    assert load_squad('1.1', 'demo').source=='demo'
    with pytest.raises(FileNotFoundError, match="'/nowhere' is not a folder"): load_squad('1.1', '/nowhere')

def test_all_official_questions_are_a_result(monkeypatch, tmp_path):
    monkeypatch.setitem(squad.sizes, '1.1', dict(train=48, validation=24))
    assert load_squad('1.1', write(tmp_path/'squad')).complete and not load_squad('1.1', 'demo').complete

def test_without_the_hub(monkeypatch):
    monkeypatch.delenv('FSD_SQUAD', raising=False)
    monkeypatch.setattr(squad, '_from_hub', lambda version: None)
    assert load_squad('2.0').source=='demo' and 'out of reach' in load_squad('2.0').where
    with pytest.raises(ConnectionError, match='rajpurkar/squad_v2 is not cached'): load_squad('2.0', 'hub')

def test_with_the_hub(monkeypatch):
    monkeypatch.setattr(squad, 'hub_answers', lambda: True)
    asked = {s:squad_rows(demo_squad('2.0', s, 3), '2.0') for s in ('train','validation')}
    monkeypatch.setattr(squad.hfd, 'load_dataset', lambda name: asked if name=='rajpurkar/squad_v2' else None)
    data = load_squad('2.0', 'hub')
    assert data.source=='hub' and data.splits['validation'][:]==asked['validation'][:]

@pytest.mark.parametrize('version', ['1.1', '2.0'])
def test_the_demo_answers_its_own_questions(version):
    rows = {s:squad_rows(demo_squad(version, s), version) for s in ('train','validation')}
    assert {s:len(o) for s,o in rows.items()}==dict(train=800, validation=160) and not set(rows['train']['context'])&set(rows['validation']['context'])
    assert demo_squad(version, 'train', 5)['data']==demo_squad(version, 'train', 7)['data'][:5]!=demo_squad(version, 'train', 5, seed=1)['data']
    none = [not o['text'] for o in rows['validation']['answers']]
    assert sum(none)==(40 if version=='2.0' else 0) and max(len(o['text']) for o in rows['validation']['answers'])==3
    assert not any(c in q for q in rows['train']['question'] for c in '{}')

# ---------------------------------------------------------------- models

def test_any_encoder_is_read_and_half_of_one_is_not(tmp_path, tiny_bert):
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=72, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=18, max_position_embeddings=64)).save_pretrained(tmp_path/'lm')
    a,b = (reading.load_reader(tmp_path/'lm', seed) for seed in (0, 1))
    assert not torch.equal(a.qa_outputs.weight, b.qa_outputs.weight) and torch.equal(a.base_model.embeddings.word_embeddings.weight, b.base_model.embeddings.word_embeddings.weight)
    assert not a.training and torch.equal(reading.load_reader(tmp_path/'lm', 1).qa_outputs.weight, b.qa_outputs.weight)
    weights = load_file(tmp_path/'lm'/'model.safetensors')
    save_file({k:v for k,v in weights.items() if 'layer.1.' not in k}, tmp_path/'lm'/'model.safetensors', {'format':'pt'})
    with pytest.raises(ValueError, match='lacks 16 weights of a bert encoder'): reading.load_reader(tmp_path/'lm')
    with pytest.raises(ValueError, match='is not a model folder'): reading.load_reader(tmp_path)

@pytest.mark.parametrize('config', [GPT2Config(vocab_size=72, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2), XLNetConfig(vocab_size=72, d_model=8, n_layer=1, n_head=2, d_inner=8),
    BartConfig(vocab_size=72, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8),
    BertConfig(vocab_size=72, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, is_decoder=True)], ids=lambda c: c.model_type)
def test_models_that_are_no_encoders_like_bert_are_refused(tmp_path, config):
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is of the kind '{config.model_type}'; questions are answered by encoders that are built like BERT"): reading.load_reader(tmp_path)

# ---------------------------------------------------------------- runs

def steps(params):
    "Run the cells of the notebook with `params`, one by one; yields the names defined so far."
    nb = parameterize_notebook(papermill.iorw.load_notebook_node(str(root/'nbs'/'squad.ipynb')), params)
    names = {}
    for c in nb.cells:
        if c.cell_type=='code':
            exec(''.join(l for l in c.source.splitlines(True) if not l.startswith('%')), names)
            yield names

@pytest.mark.parametrize('params, message', [
    (dict(verison='2.0'), "unknown parameter 'verison'; did you mean 'version'?"), (dict(version=3), "unknown version '3'"), (dict(lr='fast'), "lr='fast' is not a number"),
    (dict(epochs=0), 'epochs=0 must be at least 1'), (dict(lr='nan'), 'lr=nan must be finite'), (dict(seed=2**33), 'seed=8589934592 must be at most 4294967295'), (dict(max_length=65), 'more than the 64 positions'), (dict(stride=41), 'stride=41 must be fewer'),
    (dict(model='/nowhere/bert'), "'/nowhere/bert' is no folder"), (dict(data='/nowhere/squad'), "'/nowhere/squad' is not a folder")])
def test_what_cannot_be_meant_ends_before_anything_is_computed(outputs, tiny, params, message):
    with pytest.raises((ValueError, FileNotFoundError)) as e: next(n for n in steps(tiny | params) if 'exp' in n)
    assert message in str(e.value) and '\n' not in str(e.value) and not outputs.exists()

def test_the_notebook_has_every_setting_as_a_parameter():
    found = papermill.inspect_notebook(str(root/'nbs'/'squad.ipynb'))
    assert set(found)==set(SquadSettings.__dataclass_fields__) and all(p['help'] for p in found.values())
    assert {k:p['default'] for k,p in found.items() if p['default']!='None'}=={'version':'"1.1"'}

def test_as_a_command(tmp_path, outputs, tiny):
    params = {k:v for k,v in tiny.items() if k!='train_examples'} | dict(version='2.0', batch_size=128)
    done = subprocess.run([sys.executable, '-m', 'papermill', str(root/'nbs'/'squad.ipynb'), str(tmp_path/'out.ipynb'), *(str(a) for k,v in params.items() for a in ('-p', k, v))],
                          capture_output=True, text=True, cwd=root)
    assert done.returncode==0, done.stderr
    record, = outputs.rglob('run.json')
    assert record.parent.parent==outputs/'demo'/'squad_v2'/'finetune'
    run = runs.load(record.parent)
    assert run.kind=='demo' and set(run.scores)=={'validation','has_answer','no_answer'} and run.record['data']['source']=='demo'
    reader, = (outputs/'readers').glob('squad_v2-*/')
    assert AutoModelForQuestionAnswering.from_pretrained(reader).config.num_hidden_layers==4 and not list(outputs.glob('checkpoints/*'))
    dev = load_squad('2.0', 'demo').splits['validation']
    assert squad_scores(json.loads((record.parent/'predictions.json').read_text()), dev)==run.scores
    outs = [o for c in nbformat.read(tmp_path/'out.ipynb', 4).cells if c.cell_type=='code' for o in c.outputs]
    text = ' '.join(''.join(o.data.get('text/markdown', '')) for o in outs if 'data' in o)
    assert text.count('Demonstration on made-up paragraphs: no result')==2 and sum('image/png' in o.get('data', {}) for o in outs)==1
    assert any('<u>' in o.data.get('text/html', '') for o in outs if 'data' in o)
    assert str(root) not in record.read_text() and sum(map(len, run.scores.values()))==6

def test_a_run_killed_while_a_checkpoint_is_sealed_goes_on_from_the_one_before(outputs, tiny, monkeypatch, capsys):
    class Killed(Exception): pass
    usual,real = Reading.arguments,SoundTrainer._finish_checkpoint
    monkeypatch.setattr(Reading, 'arguments', lambda self, *a, **kw: usual(self, *a, **kw, save_total_limit=1))
    def kill(self, folder):
        if self.state.global_step==8: raise Killed
        real(self, folder)
    with monkeypatch.context() as m:
        m.setattr(SoundTrainer, '_finish_checkpoint', kill)
        with pytest.raises(Killed): Reading(**tiny | dict(seed=3, epochs=3)).run()
    run = Reading(**tiny | dict(seed=3, epochs=3))
    assert sorted(p.name for p in run.checkpoints('readers').iterdir())==['checkpoint-4', 'checkpoint-8']
    run.run()
    assert 'Resuming from' in (said := capsys.readouterr().out) and 'checkpoint-4\n' in said and 'Skipped checkpoint-8' in said

def test_a_killed_run_goes_on_and_ends_the_same(outputs, tiny, monkeypatch, capsys):
    whole = Reading(**tiny, seed=3)
    want = whole.run()
    weights = load_file(whole.place('readers')/'model.safetensors')
    for folder in (whole.place('readers'), whole.folder): shutil.rmtree(folder)
    class Killed(Exception): pass
    real = SoundTrainer._save_checkpoint
    def kill(self, model, trial):
        real(self, model, trial)
        if self.state.global_step==4: raise Killed
    monkeypatch.setattr(SoundTrainer, '_save_checkpoint', kill)
    with pytest.raises(Killed): Reading(**tiny, seed=3).run()
    monkeypatch.undo()
    monkeypatch.setenv('FSD_OUTPUTS', str(outputs))
    capsys.readouterr()
    again = Reading(**tiny, seed=3)
    got = again.run()
    assert 'Resuming from' in capsys.readouterr().out
    now = load_file(again.place('readers')/'model.safetensors')
    assert now.keys()==weights.keys() and all(torch.equal(v, weights[k]) for k,v in now.items())
    assert got.scores==want.scores and got.record['history'][-1]['step']==want.record['history'][-1]['step']
    assert [l['loss'] for l in got.record['history'] if l['step']>4]==[l['loss'] for l in want.record['history'] if l['step']>4]

def test_what_is_read_off_the_model_does_not_train_it_again(outputs, tiny, capsys):
    Reading(version='2.0', **tiny).run()
    capsys.readouterr()
    other = Reading(version='2.0', null_threshold=99, **tiny)
    run = other.run()
    assert 'readers: found' in capsys.readouterr().out and run.record['overrides']['null_threshold']==99
    assert all(json.loads((run.folder/'predictions.json').read_text()).values())
    assert run.kind=='trials', 'the first questions only'
    assert Reading(version='2.0', null_threshold=99, **tiny).done().record==run.record

def of_settings(folder, tiny_bert, **changed):
    "A copy of the model with other settings of its tokenizer."
    shutil.copytree(tiny_bert, folder)
    file = folder/'tokenizer_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return str(folder)

def test_what_changes_the_tokens_is_another_run_and_what_does_not_is_the_same(outputs, tiny, tiny_bert, tmp_path):
    usual,cased,left = Reading(**tiny),*(Reading(**tiny | dict(model=of_settings(tmp_path/name/tiny_bert.name, tiny_bert, **changed)))
        for name,changed in (('a',dict(do_lower_case=False)), ('b',dict(padding_side='left', truncation_side='left'))))
    assert cased.folder==usual.folder and cased.fingerprint!=usual.fingerprint and cased.place('readers')!=usual.place('readers')
    assert left.fingerprint==usual.fingerprint and left.in_windows('validation')[:]==usual.in_windows('validation')[:]!=cased.in_windows('validation')[:]
    usual.run()
    assert cased.done() is None and left.done() is not None
    model = reading.load_reader(usual.reader_folder)
    w,sided = usual.in_windows('validation').select(range(9)),AutoTokenizer.from_pretrained(left.source)
    assert sided.padding_side=='left' and len({len(i) for i in w['input_ids']})>1
    for a,b in zip(reading.window_logits(model, w, sided, 9), reading.window_logits(model, w, usual.tokenizer, 1)): torch.testing.assert_close(torch.stack(a), torch.stack(b), atol=1e-5, rtol=1e-4)

def test_numbers_that_are_none_are_never_recorded(outputs, tiny):
    exp = Reading(**tiny | dict(version='2.0', lr=1e38, max_steps=1, warmup=0.))
    with pytest.raises(NonFinite, match='a lower lr may help'): exp.run()
    assert not list(outputs.rglob('run.json')) and not list(outputs.rglob('predictions.json'))

def test_more_steps_than_the_epochs_have_are_not_taken(outputs, tiny):
    assert Reading(**tiny | dict(max_steps=99)).run().record['history'][-1]['step']==Reading(**tiny).run().record['history'][-1]['step']

@pytest.mark.parametrize('gpu', [False, True])
def test_where_it_computes(outputs, tiny, monkeypatch, gpu):
    build_for_cuda(monkeypatch, gpu)
    exp = Reading(**tiny)
    assert exp.device.type==('cuda' if gpu else 'cpu') and exp.summary()['device'].startswith('H100' if gpu else 'cpu')
    asked = Reading(**tiny, device='cpu')
    assert asked.device.type=='cpu' and asked.place('readers')==exp.place('readers') and asked.folder==exp.folder
    if not gpu:
        with pytest.raises(ValueError, match="device='cuda' is not here: there is cpu"): Reading(**tiny, device='cuda')

def test_a_tokenizer_of_another_model_is_refused(outputs, tiny, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path/'more')
    t = AutoTokenizer.from_pretrained(tmp_path/'more')
    t.add_tokens([f'[{i}]' for i in range(9)])
    t.save_pretrained(tmp_path/'more')
    with pytest.raises(ValueError, match='gives ids up to'): Reading(**tiny | dict(model=str(tmp_path/'more')))
    for f in (tmp_path/'more').iterdir():
        if f.name not in ('config.json','model.safetensors'): f.unlink()
    with pytest.raises(ValueError, match='has no tokenizer'): Reading(**tiny | dict(model=str(tmp_path/'more')))

def test_made_up_files_are_no_result(tmp_path, outputs, tiny):
    exp = Reading(**{k:v for k,v in tiny.items() if k not in ('train_examples','data')}, data=str(write(tmp_path/'squad')))
    run = exp.run()
    assert run.kind=='trials' and run.record['data']['partial'] and str(tmp_path) not in (run.folder/'run.json').read_text()
    assert 'no result' in reading.score_table(run) and 'no result' in exp.summary()['task']

def test_a_loss_that_is_not_a_number_ends_the_run(outputs, tiny, monkeypatch):
    monkeypatch.setattr(SoundTrainer, 'compute_loss', lambda self, model, inputs, **kw: sum(p.sum() for p in model.parameters())*float('nan'))
    with pytest.raises(NonFinite, match='the loss is nan'): Reading(**tiny).run()
    assert not list(outputs.glob('readers/*/model.safetensors'))

def test_predictions_are_shown_as_text():
    rows = rows_of('x <b>anna</b> & graz', ('<i>who</i>?', ['anna']), ('when?', []))
    shown = beside_gold({'q0':'<b>anna', 'q1':''}, rows)
    assert '&lt;i&gt;who' in shown and '<u>anna</u>' in shown.replace('<b>', '').replace('</b>', '') and '(no answer)' in shown and '& graz' not in shown
    with pytest.raises(ValueError, match='no prediction for q1'): beside_gold({'q0':''}, rows)

def test_a_reader_that_lacks_blocks_is_refused_whatever_they_are_called(tmp_path):
    import json
    from fsd.reading import load_reader
    from transformers import ModernBertConfig, ModernBertModel
    ModernBertModel(ModernBertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)).save_pretrained(tmp_path)
    load_reader(tmp_path)
    c = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps({k:v for k,v in c.items() if k!='layer_types'} | dict(num_hidden_layers=4)))
    with pytest.raises(ValueError, match='lacks .* weights of a modernbert encoder'): load_reader(tmp_path)
