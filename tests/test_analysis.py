import math

import numpy as np, pytest, torch
from torch import nn
from types import SimpleNamespace

from fsd import compare, plots
from fsd.analysis import map_means, restoration
from fsd.compare import cka_map, collect, relation_difference
from fsd.paper import beside_paper, paper_cka, paper_methods, paper_rows
from fsd.tasks import task_names


@pytest.mark.parametrize('task', task_names)
def test_every_task_has_a_whole_grid(task):
    rows = paper_rows(task)
    assert not rows.duplicated(['method', 'metric']).any()
    assert len(rows) == 12 * rows.metric.nunique()
    for method in ('teacher', 'vkd', 'pkd', 'rkd', 'minilm', 'fsd_i', 'fsd_l', 'fsd_g', 'fsd_il', 'fsd'):
        assert rows[rows.method == method]['mean'].between(0, 100).all(), method
    assert rows[rows.method == 'nods'][['mean', 'std']].isna().all(axis=None)
    assert set(paper_cka(task)) == {'teacher', 'nods', 'vkd', 'pkd', 'fsd'}


def test_metrics_are_those_of_the_tasks():
    from fsd.tasks import tasks
    for name, task in tasks.items():
        ours = [f'accuracy_{s}' for s in ('m', 'mm')] if name == 'mnli' else list(task.metrics)
        assert paper_rows(name).query("method == 'fsd'").metric.tolist() == ours, name


def test_only_misprints_carry_what_was_printed():
    printed = {(t, r.metric): (r.printed, r['mean']) for t in task_names for _, r in paper_rows(t).dropna(subset='printed').iterrows()}
    assert printed == {('stsb', 'pearson'): (93.95, 83.95), ('qqp', 'f1'): (88.31, 84.31), ('mnli', 'accuracy_m'): (90.61, 80.61)}


@pytest.mark.parametrize('call', [lambda: paper_rows('WNLI'), lambda: paper_cka('sts-b'),
                                  lambda: beside_paper('mnli', {'fsd': {'accuracy': .8}})])
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match='unknown'): call()


def test_methods_that_the_paper_does_not_have_follow_by_name():
    frame = beside_paper('wnli', {m: {'accuracy': .5} for m in ('pkt', 'mine', 'sp', 'fsd')})
    assert list(frame.index)[-3:] == ['fsd', 'mine', 'pkt'] and list(frame.index).index('sp') < list(frame.index).index('fsd')

def test_beside_paper_without_scores_is_the_paper():
    frame = beside_paper('cola', {})
    assert frame['matthews', 'ours'].isna().all() and list(frame.index) == [m for m in paper_methods if m != 'nods']


@pytest.mark.parametrize('s,t,n,words', [([0, 1], [0], 2, 'equal rows'), ([], [], 2, 'equal rows'), ([[0, 1]], [[0, 1]], 2, 'equal rows'),
                                         ([0, 2], [0, 1], 2, '0 to 1'), ([.2, .8], [0, 1], 2, 'logits'), ([0.], [0.], 1, 'regression')])
def test_restoration_refuses(s, t, n, words):
    with pytest.raises(ValueError, match=words): restoration(s, t, n)


def test_restoration_of_a_class_the_teacher_never_says():
    r = restoration(torch.tensor([1, 0]), torch.tensor([0, 0]), 2)
    assert r['precision'] == 0 and math.isnan(r['recall']) and r['agreement'] == .5


@pytest.mark.parametrize('n_t,n_m,size,mask,words', [(8, 9, 4, None, '8 and of 9'), (8, 8, 3, None, 'at least 4'), (7, 7, 4, None, 'at least 2'),
                                                     (8, 8, 4, torch.ones(8, 4), 'does not fit')])
def test_cka_map_refuses(n_t, n_m, size, mask, words):
    with pytest.raises(ValueError, match=words): cka_map(torch.randn(n_t, 3, 2), torch.randn(n_m, 3, 2), size, mask)


def test_cka_map_refuses_a_mask_on_flat_features():
    with pytest.raises(ValueError, match='does not fit'): cka_map(torch.randn(8, 6), torch.randn(8, 6), 4, torch.ones(8, 3))


def test_cka_map_reads_half_precision_arrays_batch_by_batch():
    torch.manual_seed(0)
    x = torch.randn(12, 3, 5)
    class Rows:
        "Slices as a file of features would."
        def __init__(self): self.longest = 0
        def __len__(self): return 12
        def __getitem__(self, rows): self.longest = max(self.longest, rows.stop - rows.start); return x[rows].half().numpy()
    kept = Rows()
    for kind, m in cka_map(kept, x, 4).items(): np.testing.assert_allclose(m, cka_map(x, x, 4)[kind], atol=2e-3)
    assert kept.longest == 4


def test_map_means_leaves_the_diagonal_out_of_the_floor():
    assert map_means(np.eye(4) * .75 + .25) == (1, .25)


@pytest.mark.parametrize('kwargs,words', [(dict(kind='outer'), 'kind'), (dict(distance='euclidean'), "did you mean 'euclid'"),
                                          (dict(mask=torch.ones(1, 3)), 'mask must be')])
def test_relation_difference_refuses(kwargs, words):
    h = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match=words): relation_difference(h, h, **kwargs)


@pytest.mark.parametrize('s,t', [((2, 3, 4), (2, 5, 4)), ((2, 12), (2, 12))])
def test_relation_difference_needs_equal_rows_and_positions(s, t):
    with pytest.raises(ValueError, match='equal N and L'): relation_difference(torch.randn(s), torch.randn(t))


class Echo(nn.Module):
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(()))

@pytest.fixture
def batches(monkeypatch):
    "Batches of 3 rows, and a forward pass that returns the row number as feature."
    def forward(model, batch, needs=frozenset()):
        assert not model.training
        ids = batch['input_ids']
        return SimpleNamespace(logits=ids[:, :1].float(), mask=torch.ones_like(ids).bool(), hidden={1: ids[..., None].half()} if needs else {})
    monkeypatch.setattr(compare, 'forward', forward)
    monkeypatch.setattr(compare, 'depth', lambda model: 2)
    return [dict(input_ids=torch.full((3, 2), i), labels=torch.arange(3)) for i in range(4)]


@pytest.mark.parametrize('n', [0, 1, 3, 7, 99])
def test_collect_keeps_features_of_the_first_rows_and_every_logit(batches, n):
    model = Echo().train()
    c = collect(model, batches, n_features=n)
    assert model.training and len(c.logits) == 12 and c.preds.tolist() == [i for i in range(4) for _ in range(3)]
    if n == 0: assert c.features is None and c.mask is None
    else: assert c.features.shape == (min(n, 12), 2, 1) and c.features.dtype == torch.float32 and len(c.mask) == min(n, 12)


def test_collect_refuses_nothing_and_unknown_padding(batches):
    with pytest.raises(ValueError, match='no batches'): collect(Echo(), [])
    with pytest.raises(ValueError, match='padding'): collect(Echo(), batches, padding='mask')


@pytest.mark.parametrize('history', [[], [{'ce': 1.}], [{'step': 1}]])
def test_loss_curves_need_steps_and_terms(history):
    with pytest.raises(ValueError, match="'step'"): plots.loss_curves(history)


def test_loss_axes_are_logarithmic_only_when_needed():
    history = [{'step': i, 'wide': 10.**-i, 'narrow': 1. + i, 'signed': (-1.)**i, 'late': None if i < 3 else 1.} for i in range(5)]
    fig = plots.loss_curves(history)
    assert [ax.get_yscale() for ax in fig.axes] == ['log', 'linear', 'linear', 'linear']


def test_demo_pictures_say_so_and_others_do_not(tmp_path):
    maps = {'biased': np.eye(3), 'debiased': np.eye(3)}
    for demo in (True, False):
        svg = plots.save(plots.heat_map(maps, 'a title', demo=demo), tmp_path / f'new/{demo}.png')[1].read_text()
        assert ('demo data' in svg) == demo and 'a title' in svg
