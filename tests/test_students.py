"Students of other widths than their teacher's, of other blocks than its lower half, and teachers that are kept in half precision."
import copy
import pytest, torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertTokenizerFast, LlamaConfig
from fsd.blocks import cut
from fsd.experiment import Experiment, distill
from fsd.given import DistillationConfig
from fsd.models import load_teacher
from fsd.report import outdated
from fsd.trainer import DistillationTrainer

coordinates = 'pkd', 'pkd_sequence', 'internal', 'internal_progressive', 'internal_stacked'

def bert(width=16, layers=4, seed=0):
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(vocab_size=60, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
                                                    max_position_embeddings=32)).eval()

rows = Dataset.from_dict(dict(input_ids=[[5+(i*j)%50 for j in range(1, 8+i%4)] for i in range(16)], attention_mask=[[1]*(7+i%4) for i in range(16)],
                              labels=[i%2 for i in range(16)], idx=list(range(16))))

def trainer(folder, method, student=None, teacher=None, **kw):
    usual = dict(max_steps=6, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True, report_to='none', save_strategy='no', disable_tqdm=True, max_length=16, logging_steps=1)
    return DistillationTrainer(student or bert(8, 2), teacher or bert(), DistillationConfig(str(folder), **usual | kw), method, train_dataset=rows)

@pytest.fixture
def folder_of(tiny_bert, tmp_path):
    "`folder_of(**changes)`: a folder with the tiny BERT's tokenizer and a random model."
    def make(dtype=torch.float32, **changes):
        folder = tmp_path/f'model-{len(list(tmp_path.iterdir()))}'
        tokenizer = BertTokenizerFast.from_pretrained(tiny_bert)
        size = dict(vocab_size=1+max(tokenizer.get_vocab().values()), hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
        torch.manual_seed(1)
        AutoModel.from_config(BertConfig(**size | changes)).to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)
    return make

# ---------------------------------------------------------------- narrower, or wider

@pytest.mark.parametrize('width', [8, 24])
@pytest.mark.parametrize('method', coordinates)
def test_a_student_of_another_width_is_refused_or_projected(tmp_path, method, width):
    with pytest.raises(ValueError, match=f"the student is {width} wide, the teacher 16; projection='linear'"): trainer(tmp_path, method, bert(width, 2))
    t = trainer(tmp_path, method, bert(width, 2), projection='linear')
    before = copy.deepcopy(t.objective.state_dict())
    t.train()
    maps = {k:v for k,v in t.objective.state_dict().items() if '.maps.' in k}
    assert {tuple(v.shape) for v in maps.values()}=={(16, width)} and len(maps)==(1 if 'pkd' in method else 2)
    moved = {k for k,v in maps.items() if not torch.equal(v, before[k])}
    assert moved==set(maps), 'each of them was learned'
    t.save_model(tmp_path/'s')
    assert load_file(tmp_path/'s'/'model.safetensors').keys()==bert(width, 2).state_dict().keys(), 'the student is saved alone'

def test_a_projection_changes_nothing_where_no_coordinates_are_compared_and_starts_as_the_identity(tmp_path):
    def first(method, **kw):
        t = trainer(tmp_path, method, cut(bert(), (1, 2)), max_steps=2, **kw)
        t.train()
        return [l['loss'] for l in t.state.log_history if 'loss' in l],t.origin()
    assert first('fsd_il')==first('fsd_il', projection='linear')
    (a,told),(b,more) = first('pkd'),first('pkd', projection='linear')
    assert a[0]==b[0] and more|told==more and {k for k in more if k not in told}=={'projection'}

@pytest.mark.parametrize('method', ['pkd', 'internal_progressive'])
def test_a_projected_training_resumes_in_the_same_numbers(tmp_path, method):
    def run(where, **kw): return trainer(tmp_path/where, method, projection='linear', save_strategy='steps', save_steps=3, **kw)
    whole = run('a')
    whole.train()
    run('b').train()
    for f in (tmp_path/'b').glob('checkpoint-6/*'): f.unlink() # as if it had been killed before
    again = run('b')
    again.train(resume_from_checkpoint=str(tmp_path/'b'/'checkpoint-3'))
    for a,b in ((whole.model, again.model), (whole.objective, again.objective)):
        for k,v in a.state_dict().items(): assert torch.equal(v, b.state_dict()[k]), k
    with pytest.raises(ValueError, match='projection was linear, is None'):
        trainer(tmp_path/'b', method, student=bert(16, 2), save_strategy='no').check_origin(tmp_path/'b'/'checkpoint-3')

def test_an_optimizer_without_the_matrices_is_refused(tmp_path):
    student = bert(8, 2)
    with pytest.raises(ValueError, match='the optimizer lacks learned.pkd.maps.0'):
        DistillationTrainer(student, bert(), DistillationConfig(str(tmp_path), use_cpu=True, report_to='none', projection='linear'), 'pkd', train_dataset=rows,
                            optimizers=(torch.optim.SGD(student.parameters(), 1e-3), None))

def test_a_narrower_student_from_a_name_to_a_record(outputs, tiny, folder_of):
    given = tiny | dict(student_model=folder_of(hidden_size=8), student_layers=2, epochs=1)
    with pytest.raises(ValueError, match="the student is 8 wide, the teacher 16; projection='linear'"): Experiment('wnli', 'pkd', **given)
    e = Experiment('wnli', 'pkd', **given, projection='linear')
    run = e.run()
    assert run.record['overrides']['projection']=='linear' and run.record['terms']['pkd']==100 and not outdated(run)
    assert load_file(e.student_folder/'model.safetensors').keys()==bert().state_dict().keys()-{k for k in bert().state_dict() if '.2.' in k or '.3.' in k}
    usual = Experiment('wnli', 'pkd', **tiny)
    assert 'projection' not in usual._about_students()['settings'] and Experiment('wnli', 'pkd', **tiny, projection='none').folder==usual.folder
    assert 'projection' not in Experiment('wnli', 'fsd', **tiny, projection='linear').overrides, 'which compares no coordinates'

# ---------------------------------------------------------------- of other blocks

@pytest.mark.parametrize('said, kept', [('every_other', [2, 4]), ('1 4', [1, 4]), ([1, 2, 4], [1, 2, 4]), (3, [3])])
def test_a_student_keeps_the_blocks_that_are_asked_for(outputs, tiny, said, kept):
    e = Experiment('wnli', 'nods', **tiny, student_blocks=said)
    student,whole = e.new_student(),load_teacher(e.source, 'wnli', e.settings.seed)
    ours,theirs = student.bert.encoder.layer,whole.bert.encoder.layer
    assert len(ours)==len(kept)
    for block,k in zip(ours, kept):
        for n,v in block.state_dict().items(): assert torch.equal(v, theirs[k-1].state_dict()[n])
    assert e.summary()['student'].startswith(f"blocks {', '.join(map(str, kept))} of tiny-bert")

def test_blocks_name_the_run_and_the_lower_half_goes_unsaid(outputs, tiny):
    run = distill('wnli', 'pkd', **tiny | dict(epochs=1), student_blocks='every_other')
    assert run.record['settings']['student_blocks']=='every_other'==run.record['overrides']['student_blocks'] and not outdated(run)
    usual,lower,every = (Experiment('wnli', 'pkd', **tiny | dict(epochs=1), **o) for o in ({}, dict(student_blocks='lower'), dict(student_blocks='every_other')))
    assert usual.folder==lower.folder!=every.folder==run.folder and usual.place('students')==lower.place('students')!=every.place('students')
    assert usual.place('teachers')==every.place('teachers') and 'student_blocks' not in usual._about_students()['settings']

@pytest.mark.parametrize('given, why', [
    (dict(student_blocks='2 9'), 'student_blocks=2 9 are not all of a model whose blocks are 1 to 4'),
    (dict(student_blocks='1 2 3 4'), "are 4; the teacher's 4 allow 1 to 3"),
    (dict(student_blocks='3 1'), "neither lower nor every_other nor numbers of blocks from 1, each once and lowest first, such as '1 3 5'"),
    (dict(student_blocks='evry_other'), 'neither lower nor every_other'),
    (dict(student_blocks='every_other', student_layers=3), "student_layers=3, but student_blocks='every_other' are 2 of 4 blocks"),
    (dict(student_blocks='1 4', student_layers=1), "student_layers=1, but student_blocks='1 4' are 2 of 4 blocks"),
    (dict(student_blocks='1 4', method='wid'), "student_blocks='1 4': a student that inherits")])
def test_blocks_that_cannot_be_kept_are_refused_before_any_work(outputs, tiny, given, why):
    with pytest.raises(ValueError, match=why): Experiment('wnli', given.pop('method', 'nods'), **tiny | given)
    assert not outputs.exists()

# ---------------------------------------------------------------- teachers in half precision

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_folder_in_half_precision_is_read_and_learned_from_in_full(outputs, tiny, folder_of, dtype):
    folder = folder_of(dtype)
    assert {v.dtype for v in load_file(f'{folder}/model.safetensors').values()}=={dtype}
    e = Experiment('wnli', 'fsd_il', **tiny | dict(model=folder, epochs=1))
    student = e.new_student()
    assert {p.dtype for m in (e.teacher, student) for p in m.parameters()}=={torch.float32}
    e.run()
    assert all(v.dtype==torch.float32 and v.isfinite().all() for v in load_file(e.student_folder/'model.safetensors').values())
    assert AutoModelForSequenceClassification.from_pretrained(e.student_folder).dtype==torch.float32

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('method', ['fsd_il', 'minilm', 'pkd'])
def test_a_teacher_in_half_precision_gives_a_folder_in_full_and_a_model_as_it_is(tmp_path, method, dtype):
    teacher = bert().to(dtype)
    teacher.save_pretrained(tmp_path/'t')
    by_folder = trainer(tmp_path, method, bert(16, 2), str(tmp_path/'t'))
    assert by_folder.teacher.model.dtype==torch.float32
    with pytest.warns(UserWarning, match=f'the teacher runs in {dtype}, as it was given'): as_is = trainer(tmp_path, method, bert(16, 2), teacher)
    student = cut(teacher, (1, 3))
    assert {p.dtype for p in student.parameters()}=={torch.float32}
    losses = {}
    for how,t in (('full', by_folder), ('half', as_is)):
        t.train()
        losses[how] = torch.tensor([l['loss'] for l in t.state.log_history if 'loss' in l])
        assert losses[how].isfinite().all() and {p.dtype for p in t.model.parameters()}=={torch.float32}
    torch.testing.assert_close(losses['half'], losses['full'], rtol=.05, atol=.05)

# ---------------------------------------------------------------- tokens to pad with

def test_a_tokenizer_without_a_padding_token_is_refused_when_the_trainer_is_made(tmp_path, tiny_bert):
    tokenizer = BertTokenizerFast.from_pretrained(tiny_bert)
    tokenizer.pad_token = None
    for model in (bert, lambda *a: AutoModelForSequenceClassification.from_config(LlamaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                                                                            intermediate_size=32, pad_token_id=0))):
        with pytest.raises(ValueError, match='this tokenizer has no padding token, give it one'):
            DistillationTrainer(model(16, 2), model(), DistillationConfig(str(tmp_path), use_cpu=True, report_to='none'), 'vkd', train_dataset=rows, processing_class=tokenizer)
