"""Every argument of transformers' Trainer: it works as there, is refused by name, or has no effect there either."""
import inspect
from dataclasses import fields
import nbformat, pytest
from conftest import root
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from fsd.features import keep_features
from fsd.kept import newest_valid, verify

def chapter():
    "What the trainer's chapter defines to try arguments with."
    names = {}
    exec('from fsd.given import *\nfrom fsd.trainer import *\nfrom fsd.given import _refused, collate\nfrom fsd.trainer import Path, load_file, nn, torch\n'
         'from transformers import Trainer, TrainerCallback, TrainingArguments\nfrom datasets import Dataset\nimport io, math, re, warnings', names)
    for c in nbformat.read(root/'nbs/10_trainer.ipynb', 4).cells:
        if c.cell_type=='code' and c.id in ('22d42cc0', '1be95f30', '6c84d7a2', 'e3f0719b'): exec(c.source, names)
    return names

here = chapter()
made,cases,verdict = here['made'],here['cases'],here['verdict']

# what an argument is known to do, where it is cheap to see; the chapter tries all of them
quick = ['gradient_accumulation_steps', 'optim', 'lr_scheduler_type', 'max_grad_norm', 'neftune_noise_alpha', 'remove_unused_columns', 'train_sampling_strategy',
         'bf16', 'save_only_model', 'load_best_model_at_end', 'enable_jit_checkpoint', 'auto_find_batch_size', 'include_for_metrics', 'hub_strategy', 'label_names']

@pytest.mark.parametrize('name', [f.name for f in fields(TrainingArguments) if f.name!='output_dir'])
def test_every_argument_is_tried_in_the_chapter(name): assert name in cases, f'{name} is new: add it to the cases of nbs/10_trainer.ipynb'

elsewhere = {'self', 'model', 'args', 'data_collator', 'model_init', 'compute_loss_func', 'optimizers', 'optimizer_cls_and_kwargs'} # tried beside losses and optimizers

@pytest.mark.parametrize('name', sorted(set(inspect.signature(Trainer.__init__).parameters) - elsewhere))
def test_every_parameter_is_tried_in_the_chapter(name): assert name in cases, f'{name} is new: add it to the cases of nbs/10_trainer.ipynb'

@pytest.mark.parametrize('name', quick)
def test_an_argument_works_as_under_transformers(name):
    found,why = verdict(name)
    assert found=='works', why

@pytest.mark.parametrize('name', here['_refused'])
def test_an_argument_without_a_meaning_here_is_refused_by_name(name, tmp_path):
    with pytest.raises(ValueError, match=f'^{name}='): made('nods', str(tmp_path), {name: 'some'})

# ---------------------------------------------------------------- what used to be ignored

def losses(trainer): return [(l['loss'], l['ce']) for l in trainer.state.log_history if 'loss' in l]

def test_terms_of_an_earlier_training_are_not_in_the_next_ones_log(tmp_path):
    t = made('nods', str(tmp_path), dict(logging_steps=3))
    t.train(); t.train()
    assert len(losses(t))==1 and losses(t)[0][0]==pytest.approx(losses(t)[0][1])

@pytest.mark.parametrize('settings', [dict(save_strategy='epoch'), dict(save_strategy='best', eval_strategy='epoch', metric_for_best_model='loss')])
def test_every_kind_of_checkpoint_has_its_terms_logged(tmp_path, settings):
    t = made('nods', str(tmp_path), dict(logging_steps=3, num_train_epochs=2)|settings)
    t.train()
    logged = {l['step'] for l in t.state.log_history if 'ce' in l}
    assert {int(p.name.split('-')[1]) for p in tmp_path.glob('checkpoint-*')} <= logged

def test_no_logging_means_none(tmp_path):
    t = made('nods', str(tmp_path), dict(logging_strategy='no', save_strategy='steps', save_steps=2))
    t.train()
    assert losses(t)==[] and newest_valid(tmp_path)

def test_a_checkpoint_goes_to_the_hub_whole(tmp_path, monkeypatch):
    whole = []
    class Hub(here['Hub']):
        def upload_folder(self, folder_path, **kw):
            if 'checkpoint-' in str(folder_path): whole.append(verify(folder_path))
            return here['mock'].Mock(done=lambda: True)
    monkeypatch.setattr('transformers.trainer.hf_api', lambda *a: Hub())
    made('fsd', str(tmp_path), dict(push_to_hub=True, hub_strategy='all_checkpoints', hub_always_push=True, save_strategy='steps', save_steps=2)).train()
    assert len(whole)==2

def test_the_best_student_comes_with_its_memory(tmp_path):
    t = made('fsd', str(tmp_path), dict(eval_strategy='steps', eval_steps=1, save_strategy='steps', save_steps=1, load_best_model_at_end=True,
                                        metric_for_best_model='loss', greater_is_better=True))
    t.train()
    assert t.state.best_global_step<t.state.global_step
    kept = load_file(f'{t.state.best_model_checkpoint}/objective.safetensors')
    assert kept and all((kept[n]==p.cpu()).all() for n,p in t.objective.state_dict().items())

def test_kept_features_are_found_though_unused_columns_are_removed(tmp_path):
    teacher = keep_features(here['the_teacher'], here['the_rows'], frozenset({('hidden', 2)}), tmp_path, 'paper', 16, 0)
    t = made('fsd', str(tmp_path/'out'), dict(remove_unused_columns=True))
    t.teacher = teacher
    assert t.train().global_step==4

def test_several_processes_learn_the_memory_too(tmp_path):
    with pytest.raises(ValueError, match='ddp_find_unused_parameters=True'): made('fsd', str(tmp_path), dict(ddp_find_unused_parameters=True))

def test_a_compiled_student_of_one_method_does_not_disturb_another(tmp_path):
    compiled = dict(torch_compile_backend='eager', max_steps=1)
    made('nods', str(tmp_path), compiled).train()
    t = made('fsd', str(tmp_path), compiled)
    assert t.train().global_step==1
