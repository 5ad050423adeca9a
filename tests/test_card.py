"The card of a student: its scores as they are, and nothing in it of the machine that it was made on."
import shutil
from pathlib import Path
import pandas as pd
import pytest, torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
from fsd import DistillationConfig, DistillationTrainer, lower_half
from fsd.card import again
from fsd.experiment import Experiment
from fsd.own import example

@pytest.fixture
def away(tmp_path, tiny_bert)->Path:
    "A folder of nobody's business: a classifier of reviews, an encoder, and the reviews."
    folder = tmp_path/'secret_dir'
    shutil.copytree(tiny_bert, folder/'small')
    BertTokenizerFast.from_pretrained(tiny_bert).save_pretrained(folder/'rob')
    names,words = dict(enumerate(('negative','positive'))),len((tiny_bert/'vocab.txt').read_text().split('\n'))
    torch.manual_seed(1)
    BertForSequenceClassification(BertConfig(vocab_size=words, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, id2label=names)).save_pretrained(folder/'rob')
    shutil.copy(example, folder/'mine.csv')
    return folder

short = dict(max_length=32, memory_size=8, batch_size=64, epochs=1, lr=1e-3, max_steps=2)

def test_where_models_and_data_lie_stays_here(outputs, away):
    exp = Experiment('mine', 'vkd', away/'mine.csv', teacher=str(away/'rob'), student_model=str(away/'small'), **short)
    exp.run()
    text = (exp.student_folder/'README.md').read_text()
    assert 'secret_dir' not in text and str(away.parent) not in text
    row = next(l for l in text.split('\n') if l.startswith('| all that matter |'))
    assert all(w in row for w in (' student_model=small,', ' teacher=rob,'))
    assert "fsd.distill('mine', 'vkd', data='mine.csv', teacher='rob', student_model='small', seed=0, " in text

def test_a_model_and_a_folder_of_data_go_by_their_names(outputs, away):
    (away/'reviews').mkdir()
    rows = pd.read_csv(example)
    for name,part in dict(train=rows[:200], validation=rows[200:]).items(): part.to_csv(away/f'reviews/{name}.csv', index=False)
    line = again(Experiment('mine', 'vkd', away/'reviews', model=str(away/'small'), **short))
    assert "data='reviews', model='small', seed=0, " in line and 'secret_dir' not in line

@pytest.mark.parametrize('method, more, seeded', [('vkd', {}, False), ('vkd', dict(holdout=.2), True), ('fsd', {}, True)])
def test_a_training_that_never_took_place_is_not_told_of(outputs, away, method, more, seeded):
    exp = Experiment('mine', method, away/'mine.csv', teacher=str(away/'rob'), model=str(away/'small'), **short, **more)
    exp.run()
    text = (exp.student_folder/'README.md').read_text()
    assert ' student_init=pretrained,' in text and 'teacher_epochs' not in text and 'teacher_lr' not in text
    assert ('teacher_seed=42' in text)==seeded, 'it draws held-out rows and centroids'

def test_the_line_says_what_it_asks_for(outputs, away):
    def line(data, **more): return again(Experiment('mine', 'vkd', data, **short, **more))
    small = str(away/'small')
    assert line(away/'mine.csv', model=small).endswith(')  # mine.csv and small: in the folder where this is called')
    assert ', data=frame, ' in (found := line(pd.read_csv(example), model=small))
    assert found.endswith("  # frame: the data as they were in memory, with the columns 'review', 'sentiment'; small: in the folder where this is called")
    assert '#' not in again(Experiment('wnli', 'vkd', 'demo', **short))

def test_a_trainers_scores_stand_beside_its_teachers_and_the_majoritys(tmp_path):
    tiny = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16)
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(tiny).eval()
    rows = [dict(input_ids=[2, 5+i, 6+i%3, 3], labels=int(i%4==0)) for i in range(16)]
    sure = lambda p: dict(accuracy=float((p.predictions.argmax(-1)==p.label_ids).mean()))
    args = DistillationConfig(tmp_path/'out', num_train_epochs=1, per_device_train_batch_size=4, max_length=8, use_cpu=True, disable_tqdm=True, eval_strategy='epoch', report_to='none')
    trainer = DistillationTrainer(lower_half(teacher), teacher, args, 'vkd', train_dataset=rows, eval_dataset=rows[:12], compute_metrics=sure)
    trainer.train()
    with pytest.warns(UserWarning, match='out without a tokenizer, so it reads no text'): trainer.save_model()
    text = (tmp_path/'out'/'README.md').read_text()
    assert '**It was saved without a tokenizer**' in text
    with torch.no_grad(): right = [int(teacher(torch.tensor([r['input_ids']])).logits.argmax())==r['labels'] for r in rows[:12]]
    row = next(l for l in text.split('\n') if l.startswith('| eval_accuracy |')).split(' | ')
    assert '| measure | student | teacher | majority |' in text and row[2:]==[f'{sum(right)/12:.4g}', '0.75 |']
    assert next(l for l in text.split('\n') if l.startswith('| eval_loss |')).endswith('| – | – |'), 'no measure of answers'

@pytest.mark.parametrize('how', ['rows without a label','classes at once','inputs too'])
def test_a_column_that_cannot_be_computed_is_left_out(tmp_path, how):
    tiny = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16)
    rows = [dict(input_ids=[2, 5+i, 6+i%3, 3], labels=-100 if how=='rows without a label' and i%4==1 else i%2) for i in range(16)]
    def sure(p): return dict(accuracy=float(((p.predictions if p.predictions.ndim==1 else p.predictions.argmax(-1))==p.label_ids).mean()), n=len(p.inputs) if how=='inputs too' else 0)
    more = dict(include_for_metrics=['inputs']) if how=='inputs too' else {}
    args = DistillationConfig(tmp_path/'out', num_train_epochs=1, per_device_train_batch_size=4, max_length=8, use_cpu=True, disable_tqdm=True, eval_strategy='epoch', report_to='none', **more)
    kwargs = dict(preprocess_logits_for_metrics=lambda l,y: l.argmax(-1)) if how=='classes at once' else {}
    teacher = BertForSequenceClassification(tiny).eval()
    trainer = DistillationTrainer(lower_half(teacher), teacher, args, 'vkd', train_dataset=rows, eval_dataset=[r for r in rows if r['labels']>=0][:8], compute_metrics=sure, **kwargs)
    trainer.train(); trainer.save_model()
    assert ('majority' in (tmp_path/'out'/'README.md').read_text())==(how=='rows without a label')

def test_the_scores_are_those_of_the_student_that_is_saved_on_all_its_sets(tmp_path):
    tiny = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16)
    rows,calls = [dict(input_ids=[2, 5+i, 3], labels=i%2) for i in range(16)],iter(range(100, 0, -1))
    def measures(p): return dict(left=next(calls), table=[[1, 2], [3, 4]], report='a text')
    args = DistillationConfig(tmp_path/'out', num_train_epochs=2, per_device_train_batch_size=8, max_length=8, use_cpu=True, disable_tqdm=True, report_to='none',
                              eval_strategy='epoch', save_strategy='epoch', load_best_model_at_end=True, metric_for_best_model='eval_a_left', greater_is_better=True)
    teacher = BertForSequenceClassification(tiny).eval()
    trainer = DistillationTrainer(lower_half(teacher), teacher, args, 'vkd', train_dataset=rows, eval_dataset=dict(a=rows[:8], b=rows[8:]), compute_metrics=measures)
    def scores():
        trainer.save_model()
        lines = [l.split(' | ') for l in (tmp_path/'out'/'README.md').read_text().split('\n') if l.startswith('| eval_')]
        assert not [l for l in lines if 'table' in l[0] or 'report' in l[0]], 'no numbers'
        return {l[0][2:]:l[1] for l in lines if 'left' in l[0]}
    trainer.train()
    assert trainer.state.best_global_step==2 and scores()==dict(eval_a_left='100', eval_b_left='99')
    at = next(calls)
    trainer.evaluate()
    assert scores()==dict(eval_a_left=str(at-1), eval_b_left=str(at-2)), 'evaluated again'

def test_a_student_of_scores_is_read_by_pipelines_as_one(tmp_path):
    tiny = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16, num_labels=1)
    teacher = BertForSequenceClassification(tiny).eval()
    rows = [dict(input_ids=[2, 5+i, 3], labels=float(i)) for i in range(8)]
    args = DistillationConfig(tmp_path/'out', num_train_epochs=1, max_length=8, use_cpu=True, disable_tqdm=True, report_to='none')
    trainer = DistillationTrainer(lower_half(teacher), teacher, args, 'vkd', train_dataset=rows)
    assert trainer.model.config.problem_type=='regression'

def test_the_line_of_data_that_were_read_before_says_so(outputs, away):
    from fsd.own import own_data
    assert 'frame: what `own_data` made of the data, with the columns' in again(Experiment('mine', 'vkd', own_data(example), model=str(away/'small'), **short))
