"Families of encoders through the trainer: what they learn from, and what is refused before it starts."
import copy
import pytest, torch
from datasets import Dataset
from transformers import (AlbertConfig, AutoModelForSequenceClassification, BertConfig, BigBirdConfig, BloomConfig, CanineConfig, DebertaV2Config, EsmConfig, FNetConfig,
                          LlamaConfig, ModernBertConfig, MPNetConfig, NystromformerConfig, OpenAIGPTConfig, ReformerConfig, SqueezeBertConfig, XLMRobertaConfig, XLNetConfig)
import fsd
from fsd.baselines.minilm import minilm
from fsd.blocks import cut, lower_half
from fsd.methods import check_shows, methods
from fsd.models import sketch
from fsd.passes import both_see, forward
from fsd.given import DistillationConfig
from fsd.trainer import DistillationTrainer

relative = dict(relative_attention=True, pos_att_type=['c2p','p2c'], position_biased_input=False, position_buckets=8, share_att_key=True)
special = dict(bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=4)

def tiny(config=BertConfig, layers=4, **kw):
    torch.manual_seed(0)
    usual = dict(vocab_size=60, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32, pad_token_id=0)
    return AutoModelForSequenceClassification.from_config(config(**usual | kw)).eval()

def xlnet(): return AutoModelForSequenceClassification.from_config(XLNetConfig(vocab_size=60, d_model=16, n_layer=4, n_head=2, d_inner=32))

rows = Dataset.from_dict(dict(input_ids=[[5+(i*j)%50 for j in range(1, 8+i%4)] for i in range(8)], attention_mask=[[1]*(7+i%4) for i in range(8)],
                              labels=[i%2 for i in range(8)], idx=list(range(8))))

def trainer(tmp_path, student, teacher, method, **kw):
    args = DistillationConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=8, use_cpu=True, report_to='none', save_strategy='no', disable_tqdm=True, max_length=16,
                              **dict(relation_heads=2) | kw)
    return DistillationTrainer(student, teacher, args, method, train_dataset=rows)

@pytest.mark.parametrize('config, more', [(XLMRobertaConfig, {}), (AlbertConfig, dict(embedding_size=8)), (MPNetConfig, {}), (DebertaV2Config, relative), (ModernBertConfig, special), (LlamaConfig, {})],
                         ids=['xlm-r', 'albert', 'mpnet', 'deberta-v3', 'modernbert', 'llama'])
@pytest.mark.filterwarnings('ignore:the 4 blocks of this Albert')
def test_a_family_learns_by_attention_and_its_student_is_read_back(tmp_path, config, more):
    teacher = tiny(config, **more)
    student = cut(teacher, (1, 3))
    before = copy.deepcopy(student.state_dict())
    assert trainer(tmp_path, student, teacher, 'minilm').train().training_loss>0
    assert any(not torch.equal(v, before[k]) for k,v in student.state_dict().items())
    student.eval().save_pretrained(tmp_path/'s')
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path/'s').eval()
    ids = torch.randint(5, 60, (2, 6))
    assert torch.equal(back(ids).logits, student(ids).logits)

@pytest.mark.parametrize('method, student, teacher, why', [
    ('minilm', lambda: tiny(FNetConfig, 2), lambda: tiny(FNetConfig), 'attention of FNetForSequenceClassification cannot be read.*methods that work with this model: nods'),
    ('minilm', lambda: tiny(layers=2), lambda: tiny(num_attention_heads=4), "'minilm' cannot compare this student with its teacher: .*heads"),
    ('fsd_il', lambda: tiny(layers=1), tiny, r"would compare the student's embeddings \(it has 1 block\)"),
    ('vkd', xlnet, xlnet, 'reads padding'),
    ('vkd', lambda: tiny(LlamaConfig, 2), lambda: tiny(LlamaConfig, pad_token_id=3), 'the teacher finds the last token by pad_token_id=3')])
def test_what_a_trainer_cannot_do_is_said_when_it_is_made(tmp_path, method, student, teacher, why):
    with pytest.raises(ValueError, match=why): trainer(tmp_path, student(), teacher(), method)

def test_relation_heads_that_nobody_chose_divide_any_width(tmp_path):
    teacher = tiny(hidden_size=20)
    assert trainer(tmp_path, lower_half(teacher), teacher, 'minilm_v2', relation_heads=48).train().training_loss>0
    with pytest.raises(ValueError, match='relation_heads=16 does not divide'): trainer(tmp_path, lower_half(teacher), teacher, 'minilm_v2', relation_heads=16)

def test_a_local_block_is_compared_over_its_window_and_has_a_gradient():
    m = tiny(ModernBertConfig, **special).train()
    batch = dict(input_ids=torch.randint(5, 60, (2, 12)))
    f = forward(m, batch, {('attentions', 2), ('attentions', 4)})
    a,b = both_see(f, 2, f, 4)
    assert torch.equal(a>0, b>0) and not torch.equal(f.attentions[2]>0, f.attentions[4]>0)
    torch.testing.assert_close(b.sum(-1), torch.ones(2, 2, 12))

@pytest.mark.parametrize('config, more', [(BloomConfig, {}), (OpenAIGPTConfig, {}), (EsmConfig, dict(mask_token_id=3)),
                                          (NystromformerConfig, dict(num_landmarks=8, segment_means_seq_len=8))], ids=['bloom', 'gpt', 'esm', 'nystromformer'])
@pytest.mark.filterwarnings('ignore:drawn anew, as their shapes depend on the number of blocks')
def test_an_encoder_that_is_tried_works_with_every_method_but_wid(config, more):
    tried = fsd.try_encoder(tiny(config, **more))
    assert set(methods)-set(tried.works)<={'wid'}, tried

@pytest.mark.parametrize('model, why', [
    (lambda: tiny(SqueezeBertConfig, embedding_size=16), 'are not called as modules, or pass on more than one state'),
    (lambda: tiny(CanineConfig, num_hash_functions=2, num_hash_buckets=8), 'CanineForSequenceClassification'),
    (lambda: tiny(ReformerConfig, axial_pos_embds=False, attn_layers=['local']*4, is_decoder=False), 'ReformerForSequenceClassification'),
    (xlnet, 'reads padding')], ids=['squeezebert', 'canine', 'reformer', 'xlnet'])
def test_an_encoder_that_works_with_nothing_says_why(model, why):
    tried = fsd.try_encoder(model())
    assert tried.works==[] and all(why in v and not v.startswith('fails') for v in tried.found.values()), tried

def test_what_is_tried_is_left_as_it_was():
    m = tiny(BigBirdConfig, block_size=2, num_random_blocks=1)
    state,random = copy.deepcopy(m.state_dict()),torch.get_rng_state()
    tried = fsd.try_encoder(m.train(), names=['vkd', 'minilm'])
    assert tried.works==['vkd'] and 'cannot be read' in tried.found['minilm']
    assert m.training and m.bert.attention_type=='block_sparse' and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k,v in m.state_dict().items())

def test_attention_is_looked_for_in_rows_as_long_as_those_that_come(tmp_path):
    teacher = tiny(BigBirdConfig, block_size=2, num_random_blocks=1)
    with pytest.raises(ValueError, match='attention of BigBirdForSequenceClassification cannot be read.*methods that work with this model: nods(?!.*minilm)'):
        trainer(tmp_path, lower_half(teacher), teacher, 'minilm')

def test_an_encoder_without_weights_is_refused_by_its_reason():
    whole = sketch(XLNetConfig(vocab_size=60, d_model=16, n_layer=4, n_head=2, d_inner=32), 'rte')
    with torch.device('meta'): student = lower_half(whole)
    with pytest.raises(ValueError, match='reads padding'): check_shows(student)

def loss_of(model, batch):
    f = forward(model, batch, {('attentions', 2), ('values', 2)})
    return minilm(f.attentions[2], f.attentions[2].detach().roll(1, 0), f.values[2], f.values[2].detach().roll(1, 0), f.mask)

@pytest.mark.parametrize('how, config, more', [('checkpointed', DebertaV2Config, relative), ('half', MPNetConfig, {}), ('half', ModernBertConfig, special), ('compiled', MPNetConfig, {})])
@pytest.mark.filterwarnings('ignore:`gradient_checkpointing_enable` is deprecated')
def test_attention_is_read_however_the_model_runs(how, config, more):
    still = {} if config is ModernBertConfig else dict(hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    m,batch = tiny(config, 2, **more, **still).train(),dict(input_ids=torch.randint(5, 60, (4, 12)))
    plain = loss_of(m, batch)
    if how=='checkpointed':
        m.gradient_checkpointing_enable({'use_reentrant':False})
        assert torch.equal(loss_of(m, batch), plain)
    if how=='half':
        with torch.autocast('cpu', torch.bfloat16): torch.testing.assert_close(loss_of(m, batch), plain, rtol=2e-2, atol=1e-3)
    if how=='compiled':
        torch.compiler.reset()
        torch.testing.assert_close(loss_of(torch.compile(m, backend='eager'), batch), plain)
