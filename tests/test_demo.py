"""The demo keeps its promises for any seed and size."""
import pytest
from fsd.demo import demo_rows, demo_squad, grammars
from fsd.glue import load
from fsd.squad import load_squad
from fsd.tasks import tasks

@pytest.mark.parametrize('task', tasks)
def test_no_first_sentence_is_in_train_and_dev_whatever_the_seed(task):
    first,t = tasks[task].sentences[0],tasks[task]
    firsts = lambda split: {r[first] for seed in range(4) for r in demo_rows(task, split, 60, seed)}
    assert not any(firsts('train')&firsts(split) for split in t.dev)

@pytest.mark.parametrize('task', tasks)
def test_rows_are_distinct_sentences_without_slots(task):
    for split in tasks[task].sizes:
        rows = [tuple(r[c] for c in tasks[task].sentences) for r in demo_rows(task, split)]
        assert len(set(rows))==len(rows)
        assert not any(c in text for row in rows for text in row for c in '{}|_\t\n')

def test_every_task_has_a_grammar_and_loads():
    assert list(grammars) and set(grammars)==set(tasks)
    assert {len(load('wnli', 'demo').splits[s]) for s in ('train','validation')}=={635,200}
    assert load('rte', 'demo').fingerprint==load('rte', 'demo').fingerprint

def test_more_rows_than_the_templates_make():
    with pytest.raises(ValueError, match='make only .* different rows'): demo_rows('wnli', 'validation', 20_000)

@pytest.mark.parametrize('n', [0, -1, 2.5, '3'])
def test_a_number_of_rows_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match='give a whole number from 1'): demo_rows('rte', 'train', n)

# What is kept of the demo is found by what its rows say, so they stay as they are.
of_rows = dict(cola='304bf7fa204fa818',
               sst2='3584a562b15c0f95',
               mrpc='c996f5ab332b2078',
               stsb='d9ee543260213305',
               qqp='d75e9fc6b16907c8',
               mnli='f567dbb89409702a',
               qnli='ef2c7d03a34564ff',
               rte='140a13c9866df700',
               wnli='90c80ac83fc6bc24')
of_questions = {'1.1': '6c274cefa86235f5', '2.0': '95796591fe5d7d8c'}

@pytest.mark.parametrize('task', tasks)
def test_the_rows_of_a_task_are_those_they_always_were(task): assert load(task, 'demo').fingerprint==of_rows[task]

@pytest.mark.parametrize('version', of_questions)
def test_the_questions_are_those_they_always_were(version): assert load_squad(version, 'demo').fingerprint==of_questions[version]

def test_squad_of_a_version_or_split_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="unknown version '2'"): demo_squad('2', 'train')
    with pytest.raises(ValueError, match="no split 'dev'"): demo_squad('2.0', 'dev')
