"""Figures from made-up records: what is measured is drawn, what is not stays an empty place with a word, and the same records give the same bytes."""
import re

import numpy as np, pandas as pd, pytest

from fsd import methods, plots, runs
from fsd.analysis import run_map
from fsd.paper import method_order, paper_methods
from fsd.figures.between import between, diagonals, published
from fsd.figures.coverage import coverage_figure
from fsd.figures.heatmaps import heat_maps
from fsd.figures.relations import batches, probes, quantities, relation_curves
from fsd.figures.restoration import constant, restoration_figure, restored
from fsd.tasks import tasks
from fsd.report import made_up
from fsd.tables import cost

rates = dict(precision=.81, recall=.92, f1=.86, agreement=.8)

def parts(split, value):
    "The parts of a record that figures read; its own padding is 'paper', the other one's numbers are lower by a tenth."
    means = lambda v: {k: dict(diagonal=v - .3*(k == 'debiased'), rest=.1) for k in ('biased', 'debiased')}
    probe = [dict(step=10*i, **{on: {p: dict.fromkeys(quantities, value/i + (p == 'paper') + 5*(on == 'training')) for p in ('paper', 'masked')} for on in batches}) for i in range(1, 8)]
    return dict(probe=probe, analysis=dict(restoration={split: {k: v*value for k, v in rates.items()}}, cka={split: dict(batch_size=32, **means(value), masked=means(value - .1))}))

def run(root, task='mrpc', method='vkd', seed=0, value=.7, maps=True, **kw):
    split = tasks[task].dev[0]
    r = made_up(task, method, seed, **(parts(split, value) | kw))
    one = lambda v: np.full((5, 5), .2, 'float32') + v*np.eye(5, dtype='float32')
    arrays = {f'{k}_{p}{split}': one(value - .2 - .3*(k == 'debiased')) for k in ('biased', 'debiased') for p in ('', 'masked_')} if maps else {}
    return runs.save(runs.Run(root/r.folder, r.record), **(dict(analysis=arrays) if arrays else {}))

@pytest.fixture(scope='module')
def found(tmp_path_factory):
    "Half of the methods and one more, three seeds of one, and an old record that lacks nearly everything."
    root = tmp_path_factory.mktemp('figures')
    some = [run(root, method=m, value=.6 + .015*i) for i, m in enumerate(dict.fromkeys([*method_order[1::2], 'vkd', 'wid', 'fsd', 'mine', 'pkt']))]
    some += [run(root, method='fsd', seed=s, value=.9 + .01*s) for s in (1, 2)]
    old = [run(root, task='rte', method='vkd', maps=False, analysis={}, probe=[])]
    return some + old

def pictures(found):
    return {'restoration': restoration_figure(found), 'maps': heat_maps(found, 'mrpc'), 'between': between(found), 'relations': relation_curves(found, 'mrpc'),
            'old maps': heat_maps(found, 'rte'),
            'published': published(), 'coverage': coverage_figure()}

@pytest.fixture(scope='module')
def drawn(found): return pictures(found)

names = 'restoration', 'maps', 'between', 'relations', 'old maps', 'published', 'coverage'

def shown(fig):
    "All texts that a reader sees."
    texts = [*fig.texts, *(t for l in fig.legends for t in l.get_texts())]
    for ax in fig.axes:
        texts += [*ax.texts, ax.title, ax._left_title, *(ax.get_legend().get_texts() if ax.get_legend() else ())]
        for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            texts += [axis.label, *(t for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high for t in (tick.label1, tick.label2))]
    return [t for t in texts if t.get_visible() and t.get_text().strip()]

def words(fig): return [t.get_text() for t in shown(fig)]

def collisions(fig):
    "Pairs of texts that lie over one another, and texts that leave the picture."
    with plots.style(): fig.draw_without_rendering()
    renderer = fig._get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in shown(fig) if t.get_rotation() % 90 == 0]
    over = lambda a, b: min(a.x1, b.x1) - max(a.x0, b.x0) > 1.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1.5
    out = [w for w, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > fig.bbox.x1 + 1 or b.y1 > fig.bbox.y1 + 1]
    return [(v, w) for i, (v, a) in enumerate(boxes) for w, b in boxes[:i] if over(a, b)], out

@pytest.mark.parametrize('name', names)
def test_no_text_lies_over_another_or_leaves_the_picture(drawn, name): assert collisions(drawn[name]) == ([], [])

def test_the_check_for_collisions_can_fail():
    fig, axs = plots.figure('a title')
    for _ in range(2): axs[0, 0].text(.5, .5, 'twice')
    axs[0, 0].text(2, .5, 'outside').set_in_layout(False)
    assert collisions(fig) == ([('twice', 'twice')], ['outside'])

@pytest.mark.parametrize('draw', [lambda o: restoration_figure(o), lambda o: heat_maps(o, 'mrpc', methods=['vkd', 'fsd']), lambda o: relation_curves(o, 'mrpc', methods=['vkd', 'fsd'])])
def test_the_same_records_are_the_same_bytes(found, tmp_path, draw):
    some = [o for o in found if o.method in ('vkd', 'fsd')]
    a, b = ([p.read_bytes() for p in plots.save(draw(some), tmp_path/name)] for name in 'ab')
    assert a == b

@pytest.mark.parametrize('name', names)
def test_made_up_records_make_a_demo_picture(drawn, name):
    demo = name not in ('old maps', 'published', 'coverage')
    assert ('demo data: no result' in words(drawn[name])) == demo or not demo

def test_no_runs_at_all_leave_labelled_places():
    for fig in (restoration_figure([]), heat_maps([], 'mrpc'), relation_curves([], 'mrpc'), between([])):
        assert any(w.endswith('not run') for w in words(fig)) and any(w.endswith('\nno runs') for w in words(fig))
    assert len(probes([])) == len(restored([])) == len(diagonals([])) == 0

# ---------------------------------------------------------------- one look and one order

def test_every_method_has_its_place_and_its_look():
    assert set(method_order) <= {'teacher', *methods.methods}
    assert [m for m in method_order if m in paper_methods] == list(paper_methods)
    everyone = {*method_order, *methods.methods}
    for key in ('label', 'color', 'marker'): assert len({plots.look(m)[key] for m in everyone}) == len(everyone), key

def test_a_method_without_a_place_comes_last_in_every_picture_with_its_own_look(drawn, found):
    assert plots.students(found)[-3:] == ['fsd', 'mine', 'pkt'] and 'pkt' not in method_order
    assert any([t.get_text() for t in ax.get_yticklabels()][-2:] == ['mine (1)', 'PKT (1)'] for ax in drawn['between'].axes)
    assert [t.get_text() for t in drawn['relations'].legends[0].get_texts()][-2:] == ['mine (1)', 'PKT (1)']
    assert [ax.get_title().split('\n')[0] for ax in drawn['maps'].axes if '(1)' in ax.get_title()][-2:] == ['mine (1)', 'PKT (1)']
    its = {(l.get_color(), l.get_marker()) for ax in drawn['relations'].axes for l in ax.lines}
    assert (plots.look('pkt')['color'], plots.look('pkt')['marker']) in its and plots.look('pkt')['label'] == methods.methods['pkt'].look[0]

def test_a_method_looks_the_same_in_every_picture(drawn):
    stars = {l.get_color() for name in ('relations', 'between') for ax in drawn[name].axes for l in ax.lines if l.get_marker() == '*'}
    assert stars == {plots.look('fsd')['color']}

# ---------------------------------------------------------------- each figure

def test_restoration_says_spread_number_and_holes(drawn, found):
    frame = restored(found)
    assert frame.loc[('MRPC', 'fsd')].shape == (3, 4) and ('RTE', 'vkd') not in frame.index
    labels = [t.get_text() for ax in drawn['restoration'].axes for t in ax.get_yticklabels()]
    assert 'FSD (3)' in labels and 'VKD (1)' in labels and 'WNLI' in labels and 'STS-B' not in labels
    assert sum('±' in w for w in words(drawn['restoration'])) == 4
    rows, = ([t.get_text() for t in ax.get_yticklabels()] for ax in drawn['restoration'].axes if ax.get_ylabel() == 'MRPC')
    assert rows[:3] == ['FSD (3)', 'PKT (1)', 'mine (1)'] and not rows[-1].endswith(')'), 'the best on top, several seeds above one, what was not run below'
    assert [t.get_text() for t in drawn['restoration'].legends[0].get_texts()] == ['a seed', 'mean of several', 'below: one seed']

def test_restoration_has_the_line_of_a_constant_answer(tmp_path):
    def of(task, answers):
        r = made_up(task, 'vkd', **parts(tasks[task].dev[0], .7))
        return runs.save(runs.Run(tmp_path/r.folder, r.record), predictions={f'teacher_{s}': np.eye(tasks[task].num_labels, dtype='float32')[answers] for s in tasks[task].dev})
    yes, no = of('mrpc', [1, 1, 1, 0]), of('wnli', [0, 0, 0, 0])
    rates_of = constant([yes, no])
    assert rates_of.loc['MRPC'].tolist() == pytest.approx([.75, 6/7, .75, 1])
    assert rates_of.loc['WNLI'].isna().tolist() == [False, True, True, True] # no class 1, so nothing to restore of it
    assert constant([of('stsb', [0])]).empty and constant([of('mnli', [2, 2, 0])]).index.tolist() == ['MNLI-m', 'MNLI-mm']
    fig = restoration_figure([yes, no])
    dashed = [[l.get_xdata()[0] for l in ax.lines if l.get_linestyle() == '--'] for ax in fig.axes]
    assert [x for d in dashed for x in d] == pytest.approx([100, 75, 600/7, 75, 100]) and [t.get_text() for t in fig.legends[0].get_texts()] == ['always the most frequent answer']
    f1 = next(ax for ax, d in zip(fig.axes, dashed) if d == pytest.approx([600/7]))
    assert f1.get_xlim()[0] > 40, 'starts where differences can be seen'

def test_maps_are_means_over_seeds_on_one_scale(found):
    fig = heat_maps(found, 'mrpc', methods=['fsd', 'pkd'])
    images = [ax.images[0] for ax in fig.axes if ax.images]
    assert len(images) == 4 and {i.get_clim() for i in images} == {(-.4, 1)} # whatever the maps hold
    bar = fig.axes[-1]
    assert bar.get_ylabel() == 'CKA' and any(set(l.get_ydata()) == {0} for l in bar.lines), '0 is marked'
    seeds = [run_map(o, 'biased', 'validation', 'masked') for o in found if o.method == 'fsd']
    np.testing.assert_allclose(images[0].get_array(), np.mean(seeds, 0), rtol=1e-6)
    assert fig.axes[0].get_title().startswith('FSD (3)\n') and '±' in fig.axes[0].get_title()
    assert 'mini-batches of 32 examples' in words(fig)[0]

def test_captions_count_only_what_is_drawn(found):
    some = [*(o for o in found if o.method == 'fsd'), made_up('mrpc', 'fsd', 7), made_up('mrpc', 'vkd', 7)]
    for fig in (heat_maps(some, 'mrpc'), between(some), relation_curves(some, 'mrpc')): assert words(fig)[0].endswith(', 3 seeds')
    assert words(restoration_figure([*some[:3], made_up('rte', 'fsd')], only=['MRPC']))[0].endswith(', 3 seeds')

def test_a_map_of_the_other_padding_is_never_taken(tmp_path):
    own = {k: np.eye(3, dtype='float32') for k in ('biased_validation', 'debiased_validation')}
    r = made_up('mrpc', 'nods')
    old = runs.save(runs.Run(tmp_path/r.folder, r.record), analysis=own)
    assert run_map(old, 'biased', 'validation', 'paper') is not None and run_map(old, 'biased', 'validation', 'masked') is None
    fig = heat_maps([old], 'mrpc', methods=['nods', 'vkd'])
    assert [t.get_text() for ax in fig.axes for t in ax.texts if t.get_rotation() == 0] == ['no map with\npadding left out\nrecorded', 'not run']*2 and not any(ax.images for ax in fig.axes)

def test_between_takes_the_padding_asked_for_and_the_paper_where_there_is_one(found):
    assert diagonals(found, 'masked').loc[('mrpc', 'nods'), 'biased'].item() == pytest.approx(.5)
    assert diagonals(found, 'paper').loc[('mrpc', 'nods'), 'debiased'].item() == pytest.approx(.3)
    said = words(between(found, only=('mrpc',)))
    assert '43 to 51 %' in said and '47 %' not in said, 'what the three digits of the paper leave open'
    wnli = words(between(found, only=('wnli',)))
    assert wnli.count('short way') == 3 and not any(w.endswith('0 %') for w in wnli) and not any('−0 ' in w for w in said), 'no share of nothing'
    assert any(re.fullmatch(r'\d+ ± \d+ %', w) for w in words(between([*found, *(o for o in found if o.method == 'nods')], only=('mrpc',)))), 'a spread once both have seeds'
    assert {ax.get_ylabel() for ax in between(found).axes} == {'', 'RTE', 'MRPC\nbatches of 32'}, 'only tasks that were run, with the size of their batches'
    assert 'not recorded' in words(between(found, only=('rte',)))

def test_curves_are_means_with_bands_and_say_who_is_missing(found):
    fig = relation_curves(found, 'mrpc', methods=['vkd', 'fsd', 'wid', 'unheard'])
    ax = fig.axes[0]
    assert len(ax.collections) == 1 # the band of the one method with several seeds
    np.testing.assert_allclose(ax.lines[2].get_ydata()[0], np.mean([o.record['probe'][0]['probe']['masked']['inter_euclid'] for o in found if o.method == 'fsd']))
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ['VKD (1)', 'FSD (3)', 'WID (1)', 'unheard: not run']
    assert '32 dev examples' in words(fig)[0] and 'bands: lowest to highest seed' in words(fig)[0]
    assert probes(found, 'paper').inter_euclid.min() > 1 > probes(found).inter_euclid.min()
    assert probes(found, on='training').inter_euclid.min() > 5 and any('with dropout' in w for w in words(relation_curves(found, 'mrpc', methods=['vkd'], on='training')))

def test_the_best_is_on_top_with_its_seeds_and_one_seed_is_below_several():
    scores = pd.Series([50., 60, 70, 62, 62, 40], pd.MultiIndex.from_tuples([('a', 'vkd'), ('a', 'vkd'), ('a', 'sp'), ('a', 'fsd'), ('a', 'fsd'), ('b', 'fsd')]))
    fig = plots.score_dots(scores, dict(a=dict(teacher=80, majority=45), b=dict(teacher=56.3, majority=56.3)), spans={('a', 'fsd'): (58, 66)})
    assert [[t.get_text() for t in ax.get_yticklabels()] for ax in fig.axes] == [['FSD (2)', 'VKD (2)', 'SP (1)'], ['FSD (1)']]
    upright = lambda ax: [l.get_label() for l in ax.lines if list(l.get_ydata()) == [0, 1]]
    assert [upright(ax) for ax in fig.axes] == [['majority', 'teacher'], ['teacher = majority']]
    assert [list(l.get_xdata()) for l in fig.axes[0].lines if l.get_color() == '0.35'] == [[58, 66]]
    dots, = (l for l in fig.axes[0].lines if list(l.get_xdata()) == [62, 62] and l.get_ls() == 'None')
    assert len(set(dots.get_ydata())) == 2, 'equal scores are two dots'
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ['a seed', 'mean of several', '95 % over dev sentences', 'majority', 'teacher', 'below: one seed', 'teacher = majority']
    assert collisions(fig) == ([], [])

def test_a_peak_of_one_method_does_not_squeeze_the_others(tmp_path):
    some = [run(tmp_path, method=m) for m in ('vkd', 'pkd', 'fsd')]
    usual = relation_curves(some, 'mrpc').axes[0].get_ylim()[1]
    for q in quantities: some[0].record['probe'][2]['probe']['masked'][q] *= 50
    fig = relation_curves(some, 'mrpc')
    ax, = (a for a in fig.axes if a.get_title() == quantities['inter_euclid'])
    assert ax.get_ylim()[1] < 1.3*usual and [t.get_text() for t in ax.texts] == [f'↑ VKD: peak {50*.7/3:.2g}, end {.7/7:.2g}']
    assert collisions(fig) == ([], [])

def test_bars_of_ratios_start_at_0_and_name_what_was_timed_alone(tmp_path):
    speed = dict(vkd=dict(kept=[9, 10, 11]), fsd=dict(kept=[10, 12, 13]), minilm=dict(live=[5, 5, 5]))
    forms = {'local': dict(direct=[30, 40, 50], fsd=[9, 10, 11]), 'k-means': {'scikit-learn, k-means++': [50]*3, 'fsd, streaming in 200 MB': [10]*3}}
    a, b = plots.ratio_bars({'kept': cost.longer(speed)}, 'a step', 'times VKD'), plots.ratio_bars({'': cost.faster(forms)}, 'forms', 'times as fast', '#0072b2')
    assert [[t.get_text() for t in f.axes[0].get_yticklabels()] for f in (a, b)] == [['VKD', 'FSD'], ['k-means, streaming in 200 MB', 'local']]
    assert [[t.get_text() for t in f.axes[0].texts] for f in (a, b)] == [['1.00', '1.20'], ['5.00', '4.00']] and a.axes[0].get_xlim()[0] == 0
    assert collisions(a) == collisions(b) == ([], [])
    first, again = ([p.read_bytes() for p in plots.save(a, tmp_path/name)] for name in 'ab')
    assert first == again

def test_a_headline_says_nothing_of_what_was_not_timed(tmp_path):
    (tmp_path/'speed.json').write_text('{"forms": {"intra": {"direct": [4, 4, 4], "fsd": [1, 1, 1]}}}')
    assert cost.headline(tmp_path/'none.json') == '' and cost.headline(tmp_path/'speed.json') == "FSD's losses are 4.0 to 4.0 times as fast as the direct forms, at BERT-base's shapes on one thread of a CPU."
