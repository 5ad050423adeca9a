"""Weight inheritance inside the trainer: ends at zero whatever the length, resumes bit for bit, and gives a model like any other."""
import ast, json, shutil, subprocess, sys
from dataclasses import fields
import nbformat, papermill, pytest, torch
from conftest import root
from datasets import Dataset
from transformers import (AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM,
                          BertForSequenceClassification, Trainer, TrainingArguments, pipeline)
from fsd import distill
from fsd.kept import read_json
from fsd.models import load_teacher, load_tokenizer
from fsd.passes import forward
from fsd.job import NonFinite, OneDevice
from fsd.given import DistillationConfig
from fsd.trainer import DistillationTrainer
from fsd.compress import Compression, Masking, read_corpus
from fsd.settings import CompressionSettings
from fsd.anatomy import anatomies, widths
from fsd.compactors import compact, merge, strategies, tied_sets, wid_config
from fsd.wid import Inheritance

def teacher(kind=BertForSequenceClassification, seed=0):
    torch.manual_seed(seed)
    return kind(BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, max_position_embeddings=12, num_labels=2))

def rows(words=False, n=24):
    ids = torch.randint(5, 40, (n,8), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict(dict(input_ids=ids.tolist(), attention_mask=[[1]*8]*n, labels=ids.tolist() if words else (ids[:,0]%2).tolist(), idx=list(range(n))))

def trainer(wid, folder, steps=12, words=False, kind=Trainer, args=TrainingArguments, lr=1e-2, more={}, **kw):
    args = args(output_dir=str(folder), max_steps=steps, learning_rate=lr, per_device_train_batch_size=4, save_steps=4, logging_steps=1, disable_tqdm=True, use_cpu=True, report_to='none', **kw)
    adam = torch.optim.AdamW(wid.parameter_groups(lr), lr=lr)
    return kind(wid.model, args=args, train_dataset=rows(words), optimizers=(adam, None), callbacks=[wid], **more)

def check_end(wid, **batch):
    "Everything cut is 0, and merging changes nothing."
    for t in tied_sets(wid.model).values():
        assert set(t.share.tolist())<={0,1}
        for p,axis in t.members: assert not (p if p.ndim==1 or axis==0 else p.T)[t.share==0].any()
    exact = wid.model.double().eval()
    torch.testing.assert_close(merge(exact)(**batch).logits, exact(**batch).logits, atol=1e-10, rtol=1e-10)

batch = dict(input_ids=torch.randint(5, 40, (3,8), generator=torch.Generator().manual_seed(1)))

# ---------------------------------------------------------------- in the trainer

@pytest.mark.parametrize('kind', [BertForSequenceClassification, BertForMaskedLM])
@pytest.mark.parametrize('strategy,penalty', [('dim','group'), ('head','l2')])
def test_the_end_is_exact(kind, strategy, penalty, tmp_path):
    wid = Inheritance(teacher(kind), 8, strategy, penalty)
    trainer(wid, tmp_path, words=kind is BertForMaskedLM).train()
    check_end(wid, **batch)
    small = wid.finish()
    assert (small.config.hidden_size, small.config.num_attention_heads, small.config.intermediate_size)==(8, 4 if strategy=='dim' else 2, 16)

@pytest.mark.parametrize('steps', [2, 3, 7])
def test_the_end_is_exact_after_few_steps(steps, tmp_path):
    wid = Inheritance(teacher(), 4)
    trainer(wid, tmp_path, steps, gradient_accumulation_steps=2).train()
    check_end(wid, **batch)
    assert wid.units()=={'inner.0':4, 'ffn.0':8, 'inner.1':4, 'ffn.1':8, 'stream':4, 'head':4}

def test_one_step_is_too_few_and_finish_ends_it(tmp_path):
    wid = Inheritance(teacher(), 8)
    trainer(wid, tmp_path, 1).train()
    assert wid.units()['stream']==16 and wid.finish().config.hidden_size==8
    check_end(wid, **batch)

def test_the_width_of_the_teacher_cuts_nothing(tmp_path):
    wid = Inheritance(teacher(), 16)
    trainer(wid, tmp_path, 3).train()
    assert wid.units()['stream']==16
    check_end(wid, **batch)

@pytest.mark.parametrize('kind,penalty', [(BertForSequenceClassification,'l2'), (BertForMaskedLM,'group')])
def test_resumes_bit_for_bit(kind, penalty, tmp_path):
    words = kind is BertForMaskedLM
    def wid(): return Inheritance(teacher(kind), 8, penalty=penalty, ramp=.5, fade=.3)
    whole,again = wid(),wid()
    trainer(whole, tmp_path/'a', words=words).train()
    for at in (4, 8):
        again = wid()
        trainer(again, tmp_path/'a', words=words).train(resume_from_checkpoint=str(tmp_path/'a'/f'checkpoint-{at}'))
        for (n,v),w in zip(whole.model.state_dict().items(), again.model.state_dict().values()): assert torch.equal(v, w), (at, n)
    mid = wid()
    mid_trainer = trainer(mid, tmp_path/'a', words=words)
    mid_trainer._load_from_checkpoint(str(tmp_path/'a'/'checkpoint-4'))
    share = mid.model.selection.stream
    assert ((share>0)&(share<1)).any() and (share==1).sum()>8, 'the checkpoint lies in the middle of it'

def test_with_a_method_of_distillation(tmp_path):
    wid = Inheritance(teacher(), 8)
    t = trainer(wid, tmp_path, kind=DistillationTrainer, args=DistillationConfig, more=dict(teacher=teacher(seed=1).eval(), method='fsd_il'), max_length=8)
    t.train()
    assert all({'ce','kd','intra','local'} <= l.keys() for l in t.state.log_history if 'loss' in l)
    check_end(wid, **batch)

def test_same_seed_same_model(tmp_path):
    models = []
    for i in range(2):
        wid = Inheritance(teacher(), 8)
        trainer(wid, tmp_path/str(i)).train()
        models.append(wid.finish().state_dict())
    assert all(torch.equal(v, models[1][n]) for n,v in models[0].items())

# ---------------------------------------------------------------- the model

def test_compacting_leaves_the_teacher_alone():
    t = teacher(BertForMaskedLM)
    before = {n:v.clone() for n,v in t.state_dict().items()}
    c = compact(t)
    for p in c.parameters(): p.data += 1
    assert t.config.tie_word_embeddings and all(torch.equal(v, before[n]) for n,v in t.state_dict().items())
    assert not {p.data_ptr() for p in t.parameters()} & {p.data_ptr() for p in c.parameters()}

def test_a_compacted_model_trains_in_bf16():
    c = compact(teacher()).eval()
    c.selection.stream[:4] = 0
    with torch.autocast('cpu', torch.bfloat16): found = c(**batch, labels=torch.tensor([0,1,0]))
    torch.testing.assert_close(found.logits.float(), c(**batch).logits, atol=.05, rtol=.05)
    found.loss.backward()
    assert all(p.grad.isfinite().all() for p in c.parameters())

def test_the_merged_model_is_a_model_like_any_other(tmp_path):
    small = Inheritance(teacher(BertForMaskedLM), 8).finish()
    small.save_pretrained(tmp_path)
    again,plain = AutoModelForMaskedLM.from_pretrained(tmp_path).eval(),load_teacher(tmp_path, 'mrpc')
    torch.testing.assert_close(again(**batch).logits, small(**batch).logits)
    h = plain.bert(**batch).last_hidden_state
    torch.testing.assert_close(h, small.bert(**batch).last_hidden_state)
    assert forward(plain, batch, {('queries',2)}).queries[2].shape==(3,4,8,2)

@pytest.mark.parametrize('strategy', strategies)
def test_without_training_the_first_units_go(strategy):
    wid = Inheritance(teacher(), 8, strategy)
    wid.finish()
    kept = wid.model.selection.stream.view(4,4)
    assert kept.sum()==8 and (kept.sum(1).tolist()==([2]*4 if strategy=='dim' else [0,0,4,4]))

# ---------------------------------------------------------------- the notebook

notebook = root/'nbs'/'wid.ipynb'

def choices(**given):
    "The notebook's own values, which leave all to settings.ini, and what a test gives."
    own = {k:ast.literal_eval(p['default']) for k,p in papermill.inspect_notebook(str(notebook)).items()}
    assert not any(own.values())
    return own | given

@pytest.fixture
def small(tiny_bert, tmp_path):
    "What makes a run take seconds; the corpus is a folder."
    (tmp_path/'texts').mkdir()
    (tmp_path/'texts'/'a.txt').write_text('\n'.join(f'the {w} of a {v} is in it.' for w in 'abcdefgh' for v in 'ijklmnop'))
    return dict(model=str(tiny_bert), corpus=str(tmp_path/'texts'), held_out=8, width=8, steps=12, batch_size=4, max_length=16, lr=1e-2, checkpoint_every=4, log_every=2)

def test_parameters_are_fields_with_a_line_of_help():
    found = papermill.inspect_notebook(str(notebook))
    assert {*found}=={f.name for f in fields(CompressionSettings)} and all(p['help'] for p in found.values())

def test_the_notebook_as_a_command(tmp_path, outputs, small):
    options = [str(o) for k,v in small.items() for o in ('-p', k, v)]
    done = subprocess.run([sys.executable, '-m', 'papermill', str(notebook), str(tmp_path/'out.ipynb'), *options], capture_output=True, text=True, cwd=root)
    assert done.returncode==0, done.stderr
    folder, = (outputs/'students').glob('wid-tiny-bert-w8-*/')
    record = read_json(folder/'wid.json')
    assert record['losses'].keys()=={'frequencies','teacher','at_once','inherited'} and record['fresh_head'] and [l['width'] for l in record['history']][-1]==8
    assert load_teacher(folder, 'mrpc').config.hidden_size==8 and load_tokenizer(folder).mask_token=='[MASK]'
    outs = [o for c in nbformat.read(tmp_path/'out.ipynb', 4).cells if c.cell_type=='code' for o in c.outputs]
    assert sum('image/png' in o.get('data', {}) for o in outs)==1 and not [o for o in outs if o.output_type=='error']
    assert not list((outputs/'checkpoints').iterdir())

def test_a_killed_run_goes_on_to_the_same_model(outputs, small, monkeypatch):
    whole = Compression(**choices(**small))
    losses = whole.run()['losses']
    want = (whole.folder/'model.safetensors').read_bytes()
    shutil.rmtree(whole.folder)
    seen = Inheritance.on_step_begin
    def killed(self, args, state, control, **kw):
        if state.global_step==6: raise KeyboardInterrupt
        seen(self, args, state, control, **kw)
    monkeypatch.setattr(Inheritance, 'on_step_begin', killed)
    with pytest.raises(KeyboardInterrupt): Compression(**choices(**small)).run()
    assert not whole.folder.exists() and (whole.checkpoints('students')/'checkpoint-4'/'manifest.json').exists()
    monkeypatch.undo()
    monkeypatch.setenv('FSD_OUTPUTS', str(outputs))
    again = Compression(**choices(**small))
    record = again.run()
    assert record['losses']==losses and [l['step'] for l in record['history']]==[2,4,6,8,10,12]
    assert (again.folder/'model.safetensors').read_bytes()==want

wrong = {
    "unknown parameter 'widht'; did you mean 'width'?": dict(widht=8),
    "width=9 cannot be shared by 2 heads": dict(width=9),
    "width=12 is no whole number of heads": dict(width=12, strategy='head'),
    "unknown strategy 'dims'; did you mean 'dim'?": dict(strategy='dims'),
    "steps=0 must be at least 1": dict(steps=0),
    "lr='fast' is not a number": dict(lr='fast'),
    "max_length=65 is longer than the model's 64 positions": dict(max_length=65),
    "ramp=0.9 and fade=0.2 must be shares": dict(ramp=.9, fade=.2),
    "held_out=64 is not below the 64 lines": dict(held_out=64),
    "corpus='/nowhere/text' is no text file": dict(corpus='/nowhere/text'),
    "'/nowhere/bert' is no folder": dict(model='/nowhere/bert')}

@pytest.mark.parametrize('message', wrong)
def test_what_cannot_be_meant_ends_before_anything_is_computed(outputs, small, message):
    with pytest.raises((ValueError, FileNotFoundError)) as e: Compression(**choices(**small | wrong[message]))
    assert message in str(e.value) and not outputs.exists()

special,few = dict(bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),dict(num_key_value_heads=1, head_dim=8)
others = {'albert':{}, 'camembert':{}, 'deberta-v2':dict(type_vocab_size=2), 'fnet':dict(type_vocab_size=2), 'modernbert':special, 'qwen3':few}

def check_refused(folder, small, outputs, message):
    with pytest.raises(ValueError, match=message): distill('rte', 'wid', model=folder, data='demo', max_length=32)
    with pytest.raises(ValueError, match=message): Compression(**choices(**small | dict(model=folder)))
    assert not outputs.exists()

@pytest.mark.parametrize('kind', others)
def test_another_family_is_refused_before_a_teacher_is_trained_and_hears_what_works(outputs, small, family, kind):
    check_refused(family(kind, **others[kind]), small, outputs, f"ELECTRA or MPNet, and this model is of the kind '{kind}'; methods that work with this model: nods, vkd, ")

@pytest.mark.parametrize('kind', ['bert', 'electra'])
def test_a_model_that_reads_from_left_to_right_is_refused(outputs, small, family, kind):
    check_refused(family(kind, is_decoder=True), small, outputs, 'reads from left to right: its config.json says is_decoder')

# ---------------------------------------------------------------- families

@pytest.fixture
def family(tiny_bert, tmp_path):
    "`family(kind, **changes)`: a folder with the tiny BERT's tokenizer and a small random model of a family, of the class `auto`."
    def make(kind, auto=AutoModel, **changes):
        folder = tmp_path/kind
        shutil.copytree(tiny_bert, folder)
        (folder/'model.safetensors').unlink()
        random(kind, auto, vocab_size=80, **changes).save_pretrained(folder)
        return str(folder)
    return make

kinds = [(k,{}) for k in anatomies if k!='electra'] + [('electra',dict(embedding_size=e)) for e in (16,8)]
each = pytest.mark.parametrize('kind, more', kinds, ids=[k + str(m.get('embedding_size', '')) for k,m in kinds])

def random(kind, auto=AutoModelForSequenceClassification, **more):
    torch.manual_seed(0)
    size = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, max_position_embeddings=64, pad_token_id=0)
    if kind in anatomies: size |= {anatomies[kind].inner:32}
    return auto.from_config(AutoConfig.for_model(kind, **size | more)).eval()

def half(config): return {k:n//2 for k,n in widths(config).items()}

@each
@pytest.mark.parametrize('auto, strategy', [(AutoModelForSequenceClassification, 'dim'), (AutoModelForSequenceClassification, 'head'), (AutoModelForMaskedLM, 'head')])
def test_the_end_is_exact_in_every_family(kind, more, auto, strategy, tmp_path):
    wid = Inheritance(random(kind, auto, **more), 8, strategy)
    trainer(wid, tmp_path, 3, words=auto is AutoModelForMaskedLM).train()
    check_end(wid, **batch)
    small,config = wid.finish(),wid.model.config
    assert (widths(small.config), small.config.num_attention_heads)==(half(config), 4 if strategy=='dim' else 2)
    small.save_pretrained(tmp_path/'small')
    assert torch.equal(auto.from_pretrained(tmp_path/'small').eval()(**batch).logits, small(**batch).logits)

def check_student(folder, config):
    "The folder is a model of half the widths for whoever reads it."
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model).__name__.endswith('ForSequenceClassification') and widths(model.config)==half(config)
    say = pipeline('text-classification', model=str(folder), tokenizer=load_tokenizer(folder), device='cpu')
    ids = load_tokenizer(folder)('it was of the a', return_tensors='pt')
    assert say('it was of the a')[0]['score']==pytest.approx(model.eval()(**{k:v for k,v in ids.items() if k!='token_type_ids'}).logits.softmax(1).max().item(), abs=1e-6)

@each
def test_a_family_from_task_to_student(outputs, family, kind, more):
    folder = family(kind, **more)
    run = distill('rte', 'wid', model=folder, data='demo', max_length=32, train_examples=16, batch_size=8, teacher_epochs=1, epochs=1, device='cpu',
                  wid_strategy='head' if kind in ('mpnet','distilbert') else 'dim')
    check_student(next((outputs/'students').glob('*/')), AutoConfig.from_pretrained(folder))
    assert 0<=run.scores['validation']['accuracy']<=1

@each
def test_a_family_in_a_trainer_of_distillation(tmp_path, kind, more):
    wid = Inheritance(random(kind, **more), 8)
    t = trainer(wid, tmp_path, 4, kind=DistillationTrainer, args=DistillationConfig, more=dict(teacher=random(kind, **more), method='wid'), max_length=8, alpha=.5)
    t.train()
    assert all({'ce','kd'} <= l.keys() for l in t.state.log_history if 'loss' in l)
    check_end(wid, **batch)

def test_heads_that_share_a_table_resume_bit_for_bit(tmp_path):
    whole,again = (Inheritance(random('mpnet'), 8, 'head', ramp=.5, fade=.3) for _ in range(2))
    trainer(whole, tmp_path).train()
    trainer(again, tmp_path).train(resume_from_checkpoint=str(tmp_path/'checkpoint-4'))
    assert all(torch.equal(v, w) for v,w in zip(whole.model.state_dict().values(), again.model.state_dict().values()))

def test_heads_that_share_a_table_go_in_all_blocks_and_take_their_columns_along():
    model = random('mpnet')
    wid = Inheritance(model, 8, 'head')
    left = [b.attention.attn.o.left for b in wid.model.mpnet.encoder.layer]
    for p,heads in zip(left, ([3,1,2,9], [2,9,3,1])): p.data *= torch.tensor(heads).repeat_interleave(4)[:,None].float() # 5, 10, 5, 10 together
    small = wid.finish()
    kept = wid.model.selection.inner.view(1, 4, 4)[0,:,0].bool()
    assert kept.tolist()==[False,True,False,True]
    assert torch.equal(small.mpnet.encoder.relative_attention_bias.weight, model.mpnet.encoder.relative_attention_bias.weight[:,kept])

def test_waves_for_positions_are_inherited_like_what_was_learned(tmp_path):
    wid = Inheritance(random('distilbert', sinusoidal_pos_embds=True), 8)
    trainer(wid, tmp_path, 6).train()
    check_end(wid, **batch)
    wid.finish().save_pretrained(tmp_path/'small')
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(tmp_path/'small').eval()(**batch).logits, wid.finish()(**batch).logits)

def test_what_a_family_has_not_is_named():
    model = random('roberta')
    model.roberta.encoder.layer[1].output.adapter = torch.nn.Linear(16, 16)
    with pytest.raises(ValueError, match='holds roberta.encoder.layer.1.output.adapter.weight, which no RoBERTa has'): Inheritance(model, 8)

def test_embeddings_keep_their_ratio_or_are_refused():
    config = random('electra', embedding_size=4).config
    assert wid_config(config, 8).embedding_size==2
    with pytest.raises(ValueError, match='width=8 of 16 would give an embedding width of 1.5'): wid_config(random('electra', embedding_size=3).config, 8)

@each
def test_a_corpus_narrows_a_family(outputs, small, family, kind, more):
    run = Compression(**choices(**small | dict(model=family(kind, AutoModelForMaskedLM, **more), steps=4, checkpoint_every=99)))
    record = run.run()
    assert not record['fresh_head'] and widths(AutoModelForMaskedLM.from_pretrained(run.folder).config)==half(run.config)
    assert load_teacher(run.folder, 'mrpc').config.hidden_size==8

def test_the_half_of_electra_that_guesses_no_words_gets_a_fresh_head(outputs, small, family):
    run = Compression(**choices(**small | dict(model=family('electra', AutoModelForPreTraining, embedding_size=8), steps=4, checkpoint_every=99)))
    assert run.run()['fresh_head'] and run.fresh==('generator_lm_head.', 'generator_predictions.')

def test_a_tokenizer_with_more_words_than_the_model_is_refused(outputs, small, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path/'more')
    t = AutoTokenizer.from_pretrained(tmp_path/'more')
    t.add_tokens([f'[{i}]' for i in range(9)])
    t.save_pretrained(tmp_path/'more')
    with pytest.raises(ValueError, match='gives ids up to .., more has 73 embeddings'): Compression(**choices(**small | dict(model=str(tmp_path/'more'))))
    assert not outputs.exists()

def test_lines_without_a_known_word_are_left_out_and_counted(outputs, small, tmp_path, capsys):
    (tmp_path/'odd.txt').write_text(''.join(f'the {w} of a {v}\n' for w in 'abcd' for v in 'ijkl') + '\U0001f600\n\U0001f600 \U0001f601\n')
    odd = Compression(**choices(**small | dict(corpus=str(tmp_path/'odd.txt'), held_out=4)))
    assert '2 lines without a word that the tokenizer knows are left out' in capsys.readouterr().out and len(odd.rows)+len(odd.dev)==16
    record = odd.run()
    assert record['data']['left_out']==2
    (tmp_path/'odder.txt').write_text(''.join(f'{chr(0x1f600+i)}\n' for i in range(9)))
    with pytest.raises(ValueError, match='the tokenizer of tiny-bert knows no word of the 5 lines to learn from'):
        Compression(**choices(**small | dict(corpus=str(tmp_path/'odder.txt'), held_out=4)))

def test_masking_comes_to_an_end(tiny_bert):
    t = load_tokenizer(tiny_bert)
    word,emoji = ([dict(input_ids=ids, draw=0)] for ids in t(['a', '\U0001f600'])['input_ids'])
    assert (Masking(t, seed=0)(word+emoji)['labels']!=-100).sum()==1
    with pytest.raises(ValueError, match='a batch without a word that can be masked'): Masking(t, seed=0)(emoji)
    with pytest.raises(ValueError, match='masked no word in 1,000 draws'): Masking(t, seed=0, mlm_probability=0.)(word)

@pytest.mark.parametrize('steps, message', [(12, 'step 2: the loss is nan'), (1, "after the last step the held-out loss 'inherited' is nan")])
def test_a_number_that_is_none_ends_it_and_leaves_no_model(outputs, small, steps, message):
    run = Compression(**choices(**small | dict(lr=1e20, steps=steps, warmup=0)))
    with pytest.raises(NonFinite, match=message): run.run()
    assert not run.folder.exists()

def test_two_gpus_are_not_shared_out(outputs, small, monkeypatch):
    monkeypatch.setattr(TrainingArguments, 'n_gpu', property(lambda self: 2))
    assert OneDevice(str(outputs), use_cpu=True).n_gpu==1
    assert Compression(**choices(**small)).run()['width']==8

def test_half_a_model_is_refused(outputs, small, tiny_bert, tmp_path):
    from safetensors.torch import load_file, save_file
    shutil.copytree(tiny_bert, tmp_path/'half')
    weights = load_file(tmp_path/'half'/'model.safetensors')
    save_file({k:v for k,v in weights.items() if 'layer.1.' not in k}, tmp_path/'half'/'model.safetensors', {'format':'pt'})
    with pytest.raises(ValueError, match='lacks 16 weights of a bert encoder, the first bert.encoder.layer.1'): Compression(**choices(**small | dict(model=str(tmp_path/'half'))))

corpora = {'a.jsonl':'{"text": "the a"}\n{"text": "of b", "n": 1}\n\n{"text": null}\n{"text": "in c"}', 'b.json':json.dumps([dict(text=t) for t in ('the a','of b','in c')]),
           'c.csv':'text\nthe a\nof b\nin c\n', 'd.tsv':'n\ttext\n1\tthe a\n2\tof b\n3\tin c\n', 'e.txt':'the a\r\n\r\nof b\r\nin c', 'f.txt.gz':'the a\nof b\n\nin c\n', 'g.jsonl.gz':'{"text": "the a"}\n{"text": "of b"}\n{"text": "in c"}',
           'H.CSV':'text\nthe a\nof b\nin c\n', 'I.TXT.GZ':'the a\nof b\nin c\n', 'j.txt':'\ufeffthe a\nof b\nin c\n'}

@pytest.mark.parametrize('name', corpora)
def test_a_corpus_in_many_forms(tmp_path, name):
    import gzip
    text = corpora[name].encode()
    (tmp_path/name).write_bytes(gzip.compress(text) if name.lower().endswith('.gz') else text)
    c = read_corpus(str(tmp_path/name), 1)
    assert sorted(c.train+c.held_out)==['in c','of b','the a'] and c.where==f'1 file of {name}'

@pytest.mark.parametrize('name, text, message', [
    ('a.txt', '{"text": "the a"}\n{"text": "of b"}', 'holds JSON, not lines of text; name it .jsonl'), ('corpus', '[\n {"text": "the a"}\n]', 'holds JSON, not lines of text'),
    ('b.jsonl', '{"sentence": "the a"}', "has no field 'text'; its fields are sentence"), ('c.json', '{"data": [{"text": "the a"}]}', "has no field 'text'; its fields are data"),
    ('d.jsonl', '{"text": ["the", "a"]}', "row 1: 'text' is a list, not a text"), ('e.jsonl', '{"text": "the a"}\n{"text": "of', '`datasets` cannot read it as json'),
    ('f.txt', b'M\xfcller', 'not UTF-8 text'), ('g.csv', b'text\nM\xfcller', '`datasets` cannot read it as csv'), ('h.jsonl', '', 'not below the 0 lines')])
def test_a_corpus_that_cannot_be_meant_is_named(tmp_path, name, text, message):
    (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as e: read_corpus(str(tmp_path/name), 1)
    assert message in str(e.value) and name in str(e.value)

def test_a_student_with_its_compactors_is_not_saved_as_another(tmp_path):
    from fsd import DistillationConfig, DistillationTrainer, Inheritance
    from conftest import little, sentences
    teacher = little(4)
    w = Inheritance(teacher)
    args = DistillationConfig(tmp_path/'out', max_steps=2, per_device_train_batch_size=4, max_length=16, use_cpu=True, disable_tqdm=True, report_to='none')
    trainer = DistillationTrainer(w.model, teacher, args, 'wid', train_dataset=sentences(8), callbacks=[w], parameter_groups=w.parameter_groups)
    trainer.train()
    with pytest.raises(ValueError, match=r'still has its compactors.*w.finish\(\).save_pretrained'): trainer.save_model(tmp_path/'student')
    assert not (tmp_path/'student').exists()
