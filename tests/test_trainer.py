"`DistillationTrainer` with what people hand to it: pairs, rows, arguments, checkpoints, each trained as meant or refused by name."
import copy
from contextlib import nullcontext
from pathlib import Path
import pytest, torch
from datasets import Dataset, Value
from safetensors.torch import load_file
from torch.utils.data import IterableDataset, Subset
from transformers import BertForMaskedLM, BertForQuestionAnswering, BertModel, Trainer, TrainerCallback, TrainingArguments
from conftest import little as tiny, sentences
from fsd.features import LiveTeacher, keep_features
from fsd.rows import collate
from fsd.kept import seal, verify
from fsd.losses import smoothed_ce
from fsd.terms import Method, Term, terms
from fsd.passes import forward
from fsd.job import NonFinite
from fsd.given import DistillationConfig
from fsd.trainer import DistillationTrainer

rows,memory = sentences(24),torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(0))
several = rows.remove_columns('labels').add_column('labels', [[float(i%2), float(i%3==0), 1.] for i in range(24)])

@pytest.fixture(scope='module')
def teacher(): return tiny(3)

@pytest.fixture
def make(tmp_path, teacher):
    "`make(method, …)`: a trainer in a folder of the test's own; what is not given is usual, settings go by `conf`."
    def make(method='vkd', student=None, teacher=teacher, memory=memory, rows=rows, conf={}, **kw):
        usual = dict(output_dir=str(tmp_path/'out'), max_length=16, per_device_train_batch_size=8, num_train_epochs=1, logging_steps=1, save_steps=2, learning_rate=1e-3,
                     disable_tqdm=True, use_cpu=True, report_to='none')
        return DistillationTrainer(student or tiny(2, seed=1), teacher, DistillationConfig(**usual | conf), method, memory, rows, **kw)
    return make

def weights(t): return [p.detach().clone() for m in (t.model, t.objective) for p in m.parameters()]
def same(a, b): return all(torch.equal(x, y) for x,y in zip(a, b, strict=True))

# ---------------------------------------------------------------- pairs

def named(*names): return dict(id2label=dict(enumerate(names)), label2id={n:i for i,n in enumerate(names)})

@pytest.mark.parametrize('ours, theirs, words', [
    (named('no','yes'), named('yes','no'), r"\['no', 'yes'\], the teacher's \['yes', 'no'\]: in another order"),
    (named('no','yes'), named('false','true'), 'under other names'),
    (dict(problem_type='multi_label_classification'), dict(problem_type='single_label_classification'), "the teacher's 'single_label_classification'"),
    (dict(num_labels=3), {}, 'the student has 3 labels, the teacher 2'),
    (dict(vocab_size=61), {}, "vocabulary has 61 words, the teacher's 60")])
def test_a_teacher_of_something_else_is_refused_naming_both(make, ours, theirs, words):
    with pytest.raises(ValueError, match=words): make(student=tiny(2, **ours), teacher=tiny(3, **theirs))
    with pytest.raises(ValueError, match=words): make(student=tiny(2, **ours), teacher=LiveTeacher(tiny(3, **theirs), frozenset(), 'paper'))

def test_names_that_say_nothing_or_the_same_pass(make):
    make(student=tiny(2, **named('not-equivalent','equivalent')), teacher=tiny(3, **named('not_equivalent','Equivalent')))
    make(student=tiny(2, **named('no','yes')))

def test_structures_alone_can_be_learned_from_a_teacher_with_other_labels(make):
    make('fsd_il', teacher=tiny(3, num_labels=5), conf=dict(alpha=1)).train()
    with pytest.raises(ValueError, match='the student has 2 labels, the teacher 5'): make('fsd_il', teacher=tiny(3, num_labels=5))

@pytest.mark.parametrize('kind, words', [(BertModel, 'a BertModel, gives no logits'), (BertForQuestionAnswering, 'gives no logits'), (BertForMaskedLM, r'logits of shape \(1, 2, 60\) for one row')])
def test_a_model_without_a_classifier_of_rows_is_no_teacher_and_no_student(make, kind, words):
    with pytest.raises(ValueError, match=f'the teacher, .*{words.split(", ")[-1]}'): make(teacher=tiny(3, kind=kind))
    with pytest.raises(ValueError, match='the student, .*classifier of whole rows'): make(student=tiny(2, kind=kind))

def test_a_student_that_would_move_its_teacher_is_refused(make, teacher):
    def borrowing():
        s = tiny(2)
        s.bert.encoder.layer[1] = teacher.bert.encoder.layer[1]
        return s
    tied = tiny(2)
    tied.bert.embeddings.word_embeddings.weight.data = teacher.bert.embeddings.word_embeddings.weight.data
    for s in (teacher, borrowing(), tied):
        with pytest.raises(ValueError, match="the teacher's own, such as .*training would move the teacher"): make(student=s)
    tied.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    before = [p.clone() for p in teacher.parameters()]
    make(student=tied).train()
    assert same(before, teacher.parameters())

def test_looking_at_a_pair_leaves_it_as_it_was(make, teacher):
    s = tiny(2).train()
    s.dropout.eval()
    modes = [m.training for m in (*s.modules(), *teacher.modules())]
    make(student=s)
    assert [m.training for m in (*s.modules(), *teacher.modules())]==modes

def test_a_teacher_folder_is_read_in_float32_and_needs_its_classifier(make, teacher, tmp_path):
    copy.deepcopy(teacher).half().save_pretrained(tmp_path/'half')
    t = make(teacher=tmp_path/'half')
    assert {p.dtype for p in t.teacher.model.parameters()}=={torch.float32}
    tiny(3, kind=BertModel).save_pretrained(tmp_path/'bare')
    with pytest.raises(ValueError, match='lacks classifier.bias, classifier.weight'): make(teacher=str(tmp_path/'bare'))
    with pytest.warns(UserWarning, match='the teacher runs in torch.float16, as it was given'): make(teacher=copy.deepcopy(teacher).half())

def test_kept_features_of_other_labels_or_another_padding_are_refused(make, teacher, tmp_path):
    kept = keep_features(teacher, rows, {('hidden',-2)}, tmp_path/'kept', 'masked', 16, 0)
    with pytest.raises(ValueError, match='the student has 3 labels, the teacher 2'): make(student=tiny(2, num_labels=3), teacher=kept)
    with pytest.raises(ValueError, match="the teacher's features are 'masked', the training's padding is 'paper'"): make('fsd_il', teacher=kept)
    make('fsd_il', teacher=kept, conf=dict(padding='masked')).train()

# ---------------------------------------------------------------- arguments

@pytest.mark.parametrize('given, words', [
    (dict(model_init=lambda: tiny(2)), 'make a DistillationTrainer for each student'),
    (dict(compute_loss_func=lambda *a, **k: 0), 'add a term of your own to a Method'),
    (dict(rows=sentences(24).select([])), 'train_dataset has no rows'),
    (dict(memory=torch.full((5,16,16), float('nan'))), 'memory must be a tensor'),
    (dict(memory=memory.numpy()), 'not a ndarray'),
    (dict(conf=dict(max_grad_norm=None)), 'max_grad_norm=None is not a number; 0 clips nothing'),
    (dict(conf=dict(max_length=17), method='fsd_il'), 'max_length=17 is more than the 16 positions'),
    (dict(method='fsd_il', teacher=lambda batch: None), 'set teacher.depth to its number of blocks'),
    (dict(method='fsd', memory=memory[...,:8]), "'global' cannot compare .*: features must be 8 wide"),
    (dict(conf=dict(label_names=['label'])), "label_names=.'label'. lacks 'labels'"),
    (dict(student=tiny(2).half()), 'weights of the student are half precision'),
    (dict(conf=dict(learning_rate=1e-300)), 'learning_rate=1e-300 must be at least 1e-08')])
def test_what_a_trainer_cannot_do_with_is_said_at_construction(make, given, words):
    with pytest.raises(ValueError, match=words): make(**given)

@pytest.mark.parametrize('term, words', [
    (lambda s,t,labels: (s.logits-t.logits).square().mean(1), r"gives torch.Size\(\[4\]\) for a batch, where a loss is one number"), (lambda s,t,labels: 0., 'gives 0.0'),
    (lambda s,t: s.logits.sum(), 'takes 2 positional arguments'), (lambda s,t,labels: s.hidden[1].sum(), 'it reads block 1, of which its needs ask for nothing')])
def test_a_term_of_ones_own_that_gives_no_number_is_named_at_construction(make, monkeypatch, term, words):
    monkeypatch.setitem(terms, 'mine', Term('a test', lambda pair: term))
    with pytest.raises(ValueError, match=f"'mine' .*{words}"): make(Method('a test', '', {'ce':'1', 'mine':'1'}))

def test_looking_at_a_term_of_ones_own_leaves_it_as_it_was(make, monkeypatch):
    class Normed(torch.nn.BatchNorm1d):
        def forward(self, s, t, labels): return (super().forward(s.logits)-t.logits).square().mean()
    monkeypatch.setitem(terms, 'mine', Term('a test', lambda pair: Normed(2)))
    t = make(Method('a test', '', {'ce':'1', 'mine':'1'}))
    assert t.objective.terms['mine'].num_batches_tracked==0
    t.train()
    assert t.objective.terms['mine'].num_batches_tracked==3

def test_plain_training_arguments_are_told_of_the_right_ones(tmp_path, teacher):
    with pytest.raises(TypeError, match='TrainingArguments, which has no temperature.*fsd.DistillationConfig'):
        DistillationTrainer(tiny(2), teacher, TrainingArguments(str(tmp_path), report_to='none'), 'vkd', None, rows)

def test_a_search_for_settings_is_refused_with_the_way_that_works(make):
    with pytest.raises(ValueError, match='make a DistillationTrainer in each trial: optuna'): make().hyperparameter_search(n_trials=1)

def test_an_optimizer_holds_what_the_objective_learns_or_is_refused(make):
    s = tiny(2)
    with pytest.raises(ValueError, match='lacks learned.global.structure.memory_s'): make('fsd', s, optimizers=(torch.optim.AdamW(s.parameters()), None))
    own = list(s.parameters())
    with pytest.raises(ValueError, match='lacks learned.global.structure.memory_s'): make('fsd', s, parameter_groups=lambda lr,wd: [dict(params=own)]).train()
    with pytest.raises(ValueError, match="none of the student's weights"): make(optimizers=(torch.optim.AdamW(tiny(2).parameters()), None))
    with pytest.raises(ValueError, match='both optimizers and parameter_groups'): make('vkd', s, optimizers=(torch.optim.AdamW(own), None), parameter_groups=lambda lr,wd: [])
    before = copy.deepcopy(own)
    make('vkd', s, optimizers=(torch.optim.AdamW(own), None)).train()
    assert not same(before, own)

def test_an_optimizer_given_as_a_class_moves_student_and_memory(make):
    for groups in (None, lambda lr,wd: [dict(params=[*t.model.parameters()])]): # while it trains, the model's parameters hold the memory
        t = make('fsd', optimizer_cls_and_kwargs=(torch.optim.SGD, dict(lr=.1)), parameter_groups=groups)
        before = weights(t)
        t.train()
        assert type(t.optimizer.optimizer) is torch.optim.SGD and not any(torch.equal(a, b) for a,b in ((before[0], weights(t)[0]), (before[-1], weights(t)[-1])))

def test_several_processes_do_not_look_for_a_memory_in_the_students_forward_pass(make):
    "With such a look DistributedDataParallel ends at the first step: the memory has its gradient from the loss alone."
    with pytest.raises(ValueError, match='ddp_find_unused_parameters=True'): make('fsd', conf=dict(ddp_find_unused_parameters=True))

def test_a_collator_of_ones_own_is_used_everywhere_and_the_usual_one_pads_evaluation_to_the_longest(make):
    text = Dataset.from_list([dict(text='ab'*(2+i%3), labels=i%2) for i in range(16)])
    def read(rows): return collate(0)([dict(input_ids=[ord(c)%60 for c in r['text']], attention_mask=[1]*len(r['text']), labels=r['labels']) for r in rows])
    t = make(rows=text, data_collator=read, eval_dataset=dict(a=text, b=text))
    t.train()
    assert t.evaluate()['eval_a_loss']==t.evaluate('b')['eval_loss']==t.predict(text).metrics['test_loss']
    usual = make('fsd_il', eval_dataset=rows)
    assert next(iter(usual.get_train_dataloader()))['input_ids'].shape[1]==16
    assert next(iter(usual.get_eval_dataloader()))['input_ids'].shape[1]==next(iter(usual.get_test_dataloader(rows)))['input_ids'].shape[1]==11

def test_metrics_see_what_the_users_functions_make_of_logits(make):
    t = make(eval_dataset=rows, preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1), compute_metrics=lambda p: dict(right=(p.predictions==p.label_ids).mean()))
    assert 0<=t.evaluate()['eval_right']<=1 and t.predict(rows).predictions.shape==(24,)

def test_smoothed_labels_are_those_of_transformers(make, tmp_path):
    t = make('nods', teacher=None, conf=dict(label_smoothing_factor=.3), eval_dataset=rows)
    theirs = Trainer(copy.deepcopy(t.model), TrainingArguments(str(tmp_path), label_smoothing_factor=.3, use_cpu=True, report_to='none', disable_tqdm=True), collate(0), eval_dataset=rows)
    assert t.evaluate()['eval_loss']==pytest.approx(theirs.evaluate()['eval_loss'], abs=1e-6)
    batch = collate(0)([rows[i] for i in range(8)])
    s = forward(t.model, batch)
    assert torch.equal(t.objective(s, None, batch['labels'])[0], smoothed_ce(s.logits, batch['labels'], .3))
    with pytest.raises(ValueError, match='label_smoothing_factor=0.3 is for one class a row'):
        make('nods', tiny(2, num_labels=1), None, conf=dict(label_smoothing_factor=.3))

# ---------------------------------------------------------------- rows

@pytest.mark.parametrize('method', ['vkd', 'fsd'])
def test_rows_without_labels_teach_as_those_with_where_no_term_reads_them(make, method):
    def taught(rows):
        t = make(method, conf=dict(alpha=0), rows=rows)
        t.train()
        return weights(t)
    assert same(taught(rows), taught(rows.remove_columns('labels')))

def test_missing_labels_are_named_before_the_first_step(make):
    t = make(rows=rows.remove_columns('labels'), eval_dataset=rows.remove_columns('labels'))
    before = weights(t)
    with pytest.raises(ValueError, match="no column 'labels', only input_ids, attention_mask, idx, and ce needs it.*alpha=0"): t.train()
    assert same(before, weights(t)) and t.state.global_step==0
    assert 'eval_loss' not in t.evaluate() and t.predict(rows.remove_columns('labels')).predictions.shape==(24, 2)

@pytest.mark.parametrize('other, words', [(dict(labels=None), 'row idx=9 has no label, and others have one'), (dict(labels=2), 'row idx=9 has the label 2'),
                                          (dict(input_ids=[7]*17, attention_mask=[1]*17), 'row idx=9 has 17 tokens, and 16 fit')])
def test_rows_that_could_not_be_evaluated_are_named_before_any_is(make, other, words):
    wrong,t = [r | (other if r['idx']>8 else {}) for r in rows],make(conf=dict(per_device_eval_batch_size=9))
    with pytest.raises(ValueError, match=f'eval_dataset: {words}'): make(eval_dataset=wrong)
    with pytest.raises(ValueError, match=f'eval_dataset: {words}'): t.evaluate(wrong)
    with pytest.raises(ValueError, match=f'test_dataset: {words}'): t.predict(wrong)

def test_whole_numbers_below_0_are_no_scores_in_silence(make):
    scores = [r | dict(labels=r['idx']%5-2) for r in rows]
    with pytest.raises(ValueError, match='row idx=0 has the label -2, a whole number below 0'): make('nods', tiny(2, num_labels=1), None, rows=scores, conf=dict(alpha=1))
    make('nods', tiny(2, num_labels=1), None, rows=[r | dict(labels=float(r['labels'])) for r in scores]).train()

@pytest.mark.parametrize('method, refused', [('fsd', True), ('fsd_il', False)])
def test_rows_padded_at_their_front_are_not_compared_with_centroids(make, method, refused):
    def flipped(rs): return {k:v.flip(1) if v.ndim==2 else v for k,v in collate(0)(rs).items()}
    t = make(method, data_collator=flipped, conf=dict(padding='masked'))
    refuses = pytest.raises(ValueError, match="padded before its first token, where centroids have theirs.*padding_side='right'")
    with refuses if refused else nullcontext(): t.train()

def test_a_step_at_which_no_term_weighs_anything_moves_nothing(make):
    def late(step, total): return float(step>0)
    t = make(Method('a test', '', {'ce':late, 'kd':late}), conf=dict(max_steps=1, shares=1))
    before = weights(t)
    t.train()
    assert same(before, weights(t)) and t.state.log_history[1]['loss']==0

@pytest.mark.parametrize('problem', ['multi_label_classification', None])
def test_several_labels_are_learned_by_binary_losses(make, problem, tmp_path):
    s,t = tiny(2, num_labels=3, problem_type=problem),tiny(3, num_labels=3, seed=5)
    trainer = make('fsd', s, t, rows=several, eval_dataset=several, conf=dict(alpha=.5, beta=0, temperature=2))
    batch = collate(0)([several[i] for i in range(8)])
    o = forward(s, batch)
    loss,values = trainer.objective(o, forward(t, batch), batch['labels'])
    p,q = (o.logits/2).sigmoid(),(forward(t, batch).logits/2).sigmoid()
    assert values['ce'].item()==pytest.approx(s(input_ids=batch['input_ids'], attention_mask=batch['attention_mask'], labels=batch['labels']).loss.item(), abs=1e-6)
    assert values['kd'].item()==pytest.approx(4*(q*(q/p).log()+(1-q)*((1-q)/(1-p)).log()).mean().item(), abs=1e-6)
    theirs = Trainer(copy.deepcopy(s), TrainingArguments(str(tmp_path), use_cpu=True, report_to='none', disable_tqdm=True), collate(0), eval_dataset=several)
    assert trainer.evaluate()['eval_loss']==pytest.approx(theirs.evaluate()['eval_loss'], abs=1e-6)
    trainer.train()
    assert s.config.problem_type=='multi_label_classification'

@pytest.mark.parametrize('student, rows, words', [
    (dict(num_labels=3, problem_type='single_label_classification'), several, r'labels of shape \(8, 3\), and one for each is needed'),
    (dict(num_labels=2, problem_type='multi_label_classification'), rows, r'one for each logit: .* not \(8, 2\), \(8,\)'),
    (dict(num_labels=3, problem_type='regression'), several, "problem_type='regression' with num_labels=3"),
    (dict(), rows.cast_column('labels', Value('float32')), 'a class has a whole number')])
def test_labels_of_another_kind_than_the_students_are_refused(make, student, rows, words):
    with pytest.raises(ValueError, match=words): make('nods', tiny(2, **student), None, rows=rows).train()

def labelled(i, label): return [r | dict(labels=label if r['idx']==i else r['labels']) for r in rows]

@pytest.mark.parametrize('label', [2, -1])
@pytest.mark.parametrize('form', [Dataset.from_list, list, lambda rs: Dataset.from_list(rs).with_format('torch'), lambda rs: Dataset.from_list(rs).rename_column('labels', 'label')])
def test_a_label_that_is_no_class_is_named_with_its_row_before_training(make, label, form):
    with pytest.raises(ValueError, match=f"row idx=17 has the label {label}, and the student's classes are 0 to 1"): make(rows=form(labelled(17, label)))
    make(rows=form(labelled(17, label)), conf=dict(alpha=0)) # no term reads it

@pytest.mark.parametrize('label', [2, -1])
def test_where_rows_cannot_be_looked_at_the_step_names_the_label(make, label):
    def read(batch): return {k: v if k!='labels' else v.where(v!=9, label) for k,v in collate(0)(batch).items()}
    t = make(rows=labelled(3, 9), data_collator=read)
    before = weights(t)
    with pytest.raises(ValueError, match=rf'row \d of a batch has the label {label}, and classes are 0 to 1'): t.train()
    class Few(Stream):
        def __iter__(self): yield from labelled(0, 7)
    with pytest.raises(ValueError, match='row 0 of a batch has the label 7, and classes are 0 to 1'): make(rows=Few(), conf=dict(max_steps=1)).train()
    assert t.state.global_step<3 and same(before, weights(t))==(t.state.global_step==0)

def test_a_group_of_weights_that_would_not_move_is_refused(make):
    s = tiny(2)
    with pytest.raises(ValueError, match='lr of a group of weights=1e-12 must be at least 1e-08'):
        make('vkd', s, parameter_groups=lambda lr,wd: [dict(params=[*s.parameters()], lr=1e-12)]).train()

def test_scores_may_stand_alone_or_in_a_list(make):
    def trained(f):
        t = make('vkd', tiny(2, num_labels=1), tiny(3, num_labels=1), rows=rows.remove_columns('labels').add_column('labels', [f(float(i)) for i in range(24)]))
        t.train()
        return weights(t)
    assert same(trained(lambda x: x), trained(lambda x: [x]))

class Stream(IterableDataset):
    def __iter__(self): yield from rows

@pytest.mark.parametrize('rows, steps', [([*rows], 3), (Subset(rows, range(10)), 2), (Stream(), 5), (rows.to_iterable_dataset(), 5)])
def test_other_datasets_than_those_of_datasets(make, rows, steps):
    t = make(rows=rows, conf=dict(max_steps=steps) if steps==5 else {})
    assert t.train().global_step==steps

def test_training_twice_and_evaluating_first(make):
    t = make('fsd', eval_dataset=rows.remove_columns('idx'))
    assert t.evaluate()['eval_loss']>0
    assert [t.train().global_step for _ in range(2)]==[3, 3]
    assert all(l.keys()>={'ce','kd','intra','local','global'} for l in t.state.log_history if 'loss' in l) and not hasattr(t.model, 'distillation')

class Saving(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs): model.save_pretrained(f'{args.output_dir}/mine')

def test_a_student_saved_by_a_callback_is_an_ordinary_one(make):
    t = make('fsd', callbacks=[Saving()])
    t.train()
    assert load_file(f'{t.args.output_dir}/mine/model.safetensors').keys()==tiny(2).state_dict().keys()

def test_the_best_student_comes_with_its_memory(make, recwarn):
    t = make('fsd', eval_dataset=rows, conf=dict(load_best_model_at_end=True, eval_strategy='steps', eval_steps=1, save_steps=1, metric_for_best_model='eval_loss', greater_is_better=True, save_total_limit=None))
    t.train()
    best = t.state.best_model_checkpoint
    assert torch.equal(t.objective.state_dict()['learned.global.structure.memory_s'], load_file(f'{best}/objective.safetensors')['learned.global.structure.memory_s'])
    assert not [w for w in recwarn if 'missing keys' in str(w.message)]

# ---------------------------------------------------------------- checkpoints

class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step==3: raise KeyboardInterrupt

@pytest.fixture
def stopped(make):
    with pytest.raises(KeyboardInterrupt): make('fsd', callbacks=[Stop()], conf=dict(num_train_epochs=2)).train()
    return make

@pytest.mark.parametrize('other, words', [
    (dict(method='fsd_il'), 'weight of global was 0.1, is None'), (dict(method='vkd'), 'weight of intra'), (dict(memory=memory+1), 'memory was'), (dict(teacher=tiny(3, seed=9)), 'teacher was'),
    (dict(student=tiny(3)), 'student was'), (dict(rows=sentences(25)), 'train_dataset was 24 rows'), (dict(rows=rows.select(range(23, -1, -1))), 'train_dataset was 24 rows'),
    (dict(conf=dict(temperature=2.)), 'temperature was 5.0, is 2.0'), (dict(conf=dict(alpha=.3)), 'weight of ce was 0.5, is 0.3'), (dict(conf=dict(seed=7)), 'seed was 42, is 7'),
    (dict(conf=dict(learning_rate=1e-4)), 'learning_rate was 0.001, is 0.0001'), (dict(conf=dict(per_device_train_batch_size=4)), 'rows in a step was 8, is 4'),
    (dict(conf=dict(label_smoothing_factor=.1)), 'label_smoothing_factor was 0.0, is 0.1')])
def test_a_training_does_not_go_on_from_anothers_checkpoint(stopped, other, words):
    t = stopped(**dict(method='fsd') | other)
    for where in (True, f'{t.args.output_dir}/checkpoint-2'):
        with pytest.raises(ValueError, match=f'checkpoint-2 is of another training: .*{words}.*another output_dir'): t.train(where)

def test_the_only_checkpoint_goes_when_the_next_is_sealed_not_before(make, monkeypatch):
    def die(folder, step, **about):
        if step==4: raise KeyboardInterrupt
        seal(folder, step=step, **about)
    monkeypatch.setattr('fsd.trainer.seal', die)
    conf = dict(save_total_limit=1, num_train_epochs=2)
    t = make('fsd', conf=conf)
    with pytest.raises(KeyboardInterrupt): t.train()
    assert verify(f'{t.args.output_dir}/checkpoint-2')['step']==2
    monkeypatch.setattr('fsd.trainer.seal', seal)
    whole,resumed = make('fsd', conf=conf | dict(output_dir=t.args.output_dir+'-whole')),make('fsd', conf=conf)
    whole.train(); resumed.train(True)
    assert same(weights(whole), weights(resumed))
    assert [p.name for p in Path(t.args.output_dir).glob('checkpoint-*')]==['checkpoint-6'] and resumed.args.save_total_limit==1

def test_weights_over_time_are_compared_by_their_values(make):
    def ramp(end): return Method('a test', 'a ramp', {'ce':'alpha', 'kd':lambda step,total: end*step/total})
    with pytest.raises(KeyboardInterrupt): make(ramp(1.), callbacks=[Stop()], conf=dict(num_train_epochs=2)).train()
    with pytest.raises(ValueError, match='weight of kd'): make(ramp(2.)).train(True)
    assert make(ramp(1.), conf=dict(num_train_epochs=2)).train(True).global_step==6

def test_what_is_not_read_may_change_and_training_may_be_longer(stopped):
    assert stopped('fsd', conf=dict(distance=3., num_train_epochs=3, per_device_train_batch_size=4, gradient_accumulation_steps=2)).train(True).global_step==9

def test_a_checkpoint_from_before_they_said_what_made_them_still_resumes(stopped):
    whole = stopped('fsd', conf=dict(output_dir=stopped().args.output_dir+'-whole', num_train_epochs=2))
    whole.train()
    t = stopped('fsd', conf=dict(num_train_epochs=2))
    folder = f'{t.args.output_dir}/checkpoint-2'
    assert verify(folder)['origin']['temperature']==5.
    seal(folder, step=2)
    t.train(True)
    assert same(weights(whole), weights(t))

def test_a_live_teacher_and_its_kept_features_are_one_teacher(make, teacher, tmp_path):
    with pytest.raises(KeyboardInterrupt): make('fsd_il', callbacks=[Stop()], conf=dict(num_train_epochs=2)).train()
    kept = keep_features(teacher, rows, {('hidden',-2)}, tmp_path/'kept', 'paper', 16, 0)
    assert make('fsd_il', teacher=kept, conf=dict(num_train_epochs=2)).train(True).global_step==6

# ---------------------------------------------------------------- numbers that are none

@pytest.mark.parametrize('conf', [dict(max_grad_norm=0), dict(gradient_accumulation_steps=3, per_device_train_batch_size=2)])
def test_a_gradient_that_is_none_ends_the_run_however_it_is_clipped_or_added_up(make, conf):
    class Broken(DistillationTrainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            if self.state.global_step==1: next(model.parameters()).grad.fill_(float('inf'))
            return loss
    usual = make(conf=conf)
    t = Broken(usual.model, usual.teacher, usual.args, 'vkd', None, rows)
    with pytest.raises(NonFinite, match='step 2: the gradient is (inf|nan) though the loss is finite'): t.train()
    assert all(p.isfinite().all() for p in t.model.parameters()) and verify(f'{t.args.output_dir}/checkpoint-1')['step']==1
