"""The demo keeps its promises for any seed and size."""
import pytest
from fsd.demo import demo_rows, grammars
from fsd.glue import load
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
    assert {len(load('wnli', 'demo').splits[s]) for s in ('train','validation')}=={635,71}
    assert load('rte', 'demo').fingerprint==load('rte', 'demo').fingerprint

def test_more_rows_than_the_templates_make():
    with pytest.raises(ValueError, match='make only .* different rows'): demo_rows('wnli', 'validation', 20_000)

@pytest.mark.parametrize('n', [0, -1, 2.5, '3'])
def test_a_number_of_rows_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match='give a whole number from 1'): demo_rows('rte', 'train', n)
