"""Tables of the paper from made-up records: what is missing is a hole, what is no result is refused by name, what is saved twice is the same."""
import json, random, re, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from fsd import runs
from fsd.kept import Damaged
from fsd.report import comparable, made_up, markdown, marked, reproduction, save_table, scores, teachers
from fsd.runs import Run
from fsd.settings import resolve
from fsd.significance import bootstrap, bootstrap_runs, holm, lead, recomputed, spread, welch
from fsd.tables import ablation, batch, chosen, cka, claims, cost, estimator, glue, memory, one_rate, ranks, sizes

tables = dict(glue=glue.make, tests=glue.tests, ablation=ablation.make, batch=batch.make, cka=cka.make, ranks=ranks.make, differences=ranks.differences, cost=cost.make, claims=claims.make)
of_paper = ('nods','vkd','pkd','rkd','minilm','fsd_i','fsd_l','fsd_g','fsd_il','fsd')

def full(task='mrpc', method='vkd', seed=0, **kw):
    "A made-up run with everything a table reads from the record."
    v = .5+.02*(of_paper.index(method) if method in of_paper else 0)+.01*seed
    means = dict(diagonal=v, rest=.3)
    probe = [dict(step=5, probe={p:dict.fromkeys(ranks.quantities, 1-v) for p in ('paper','masked')})]
    return made_up(task, method, seed, v, probe=probe, parameters=dict(student=10),
                   analysis=dict(cka={s:dict(biased=means, debiased=means, masked=dict(biased=means, debiased=means)) for s in ('validation','validation_matched')}), **kw)

def saved(run, logits, labels=None):
    "`run` in the outputs folder, with predictions for every split."
    from fsd.tasks import tasks
    labels = np.arange(len(logits))%2 if labels is None else labels
    arrays = {f'{k}_{s}':v for s in tasks[run.task].dev for k,v in (('student',logits), ('teacher',logits), ('labels',labels))}
    return runs.save(Run(runs.outputs()/run.folder, run.record), predictions=arrays)

def ours(table):
    "The cells of a table that come from runs."
    if 'whose' in table.index.names: return table.xs('ours', level='whose')
    if 'CKA' in table.index.names: return table.drop('paper', level='CKA')
    if table.columns.nlevels==2: return table.xs('ours', level=1, axis=1)
    return table[[c for c in table if 'paper' not in str(c) and c not in ('seeds','millions, printed')]]

# ---------------------------------------------------------------- holes and refusals

@pytest.mark.parametrize('name', tables)
def test_without_runs_everything_is_a_hole(name):
    table = tables[name]([])
    assert ours(table).isna().all(axis=None)
    if name not in ('differences','claims'): assert len(table) and '–' in markdown(table)

@pytest.mark.parametrize('name', tables)
def test_records_without_what_a_table_needs_are_holes(name):
    table = tables[name]([made_up('rte', m, probe=None, analysis={}, scores=dict(teacher={}, student=dict(validation=dict(accuracy=None)))) for m in of_paper])
    assert ours(table).isna().all(axis=None)

@pytest.mark.parametrize('name', tables)
@pytest.mark.parametrize('wrong', [dict(source='demo'), dict(overrides=dict(max_steps=3)), dict(overrides=dict(train_examples=3))])
def test_what_is_no_result_is_refused_by_name(name, wrong):
    bad = [full(seed=i, **wrong) for i in (7,8)]
    with pytest.raises(ValueError) as e: tables[name]([full(), *bad])
    assert all(f'{b.folder} ({b.kind})' in str(e.value) for b in bad) and '-s0' not in str(e.value)

@pytest.mark.parametrize('name', tables)
def test_a_table_of_runs_has_numbers_and_does_not_depend_on_their_order(name):
    found = [full(m, method, s) for m in ('mrpc','rte') for method in of_paper for s in (0,1)]
    table = tables[name](found)
    assert ours(table).notna().any(axis=None)
    random.Random(0).shuffle(found)
    assert markdown(tables[name](found), 6)==markdown(table, 6)

def test_reading_results_loads_no_models_no_statistics_and_pictures_only_for_figures():
    code = """
import importlib, pkgutil, sys
import fsd.report, fsd.significance, fsd.tables, fsd.figures
def load(package):
    for m in pkgutil.iter_modules(package.__path__): importlib.import_module(f'{package.__name__}.{m.name}')
    return {'torch','transformers','datasets','accelerate','sklearn','scipy'} & set(sys.modules)
assert not (bad := load(fsd.tables)), bad
assert 'matplotlib' not in sys.modules
assert not (bad := load(fsd.figures)), bad
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode==0, done.stderr

# ---------------------------------------------------------------- a method that the paper's order does not have

def test_a_method_without_a_place_comes_last_in_every_table_that_has_it():
    found = [full('mrpc', m) for m in ('sp','pkt','mine','fsd','vkd')]
    assert [o.method for o in comparable(found)]==['vkd','sp','fsd','mine','pkt']
    for table in (glue.make(found).loc[('mrpc','f1','ours')], cka.make(found, 'masked').loc[('mrpc','biased')], cost.make(found)['millions, ours']):
        assert list(table.index)[-3:]==['fsd','mine','pkt'] and table[['mine','pkt']].notna().all()
    looked = ranks.looks(found).index.get_level_values('method')
    assert {'pkt','mine'}<=set(looked) and ours(glue.make(found)).columns.tolist()[-1]=='pkt'

def test_trials_of_a_method_without_a_place_are_a_grid_too():
    def trial(method, lr): return made_up('mrpc', method, overrides=dict(holdout=.2, lr=lr), scores=dict(teacher={}, student=dict(holdout=dict(f1=.7, accuracy=.6))))
    table = chosen.grids([trial(m, lr) for m in ('pkt','fsd') for lr in (1e-4,5e-5)])
    assert table.index.get_level_values('method').tolist()==['fsd']*2+['pkt']*2 and table.chosen.tolist()==['yes','']*2

def test_a_floor_is_not_lost_by_a_trial_that_lacks_it():
    def trial(method, **more): return made_up('mrpc', method, overrides=dict(holdout=.2), scores=dict(teacher={}, student=dict(holdout=dict(f1=.7, accuracy=.6)), **more))
    assert chosen.grids([trial('vkd', majority=dict(holdout=dict(f1=.5, accuracy=.5))), trial('fsd')]).index[0]==('majority','mrpc')

# ---------------------------------------------------------------- the reproduction

def test_a_reproduction_names_everything_that_is_no_result(outputs):
    for kw in ({}, dict(source='demo'), dict(overrides=dict(max_steps=3))): saved(full(**kw), np.eye(2))
    assert [o.kind for o in reproduction()]==['runs'], 'demonstrations and trials have folders of their own'
    with pytest.raises(ValueError) as e: reproduction(root=outputs)
    assert '(demo)' in str(e.value) and '(trials)' in str(e.value)

def test_a_reproduction_takes_one_model_one_padding_and_nothing_else_changed(outputs):
    for method,o in (('vkd',{}), ('fsd',dict(padding='masked', precision='bf16')), ('fsd',{}), ('rkd',dict(beta=2.)), ('pkd',dict(precision='bf16'))):
        saved(full(method=method, overrides=o), np.eye(2))
    saved(full(model='other'), np.eye(2))
    assert [(o.method, o.record['overrides'].get('padding')) for o in reproduction()]==[('vkd',None), ('pkd',None), ('fsd','masked')]
    assert [(o.method, o.record['overrides'].get('padding')) for o in reproduction(padding='paper')]==[('vkd',None), ('pkd',None), ('fsd',None)]
    assert [o.method for o in reproduction('other')]==['vkd']
    assert reproduction(root=outputs/'nowhere')==[]

def test_more_seeds_ask_for_no_more_settings(monkeypatch):
    asked = []
    monkeypatch.setattr('fsd.report.resolve', lambda *a, **kw: asked.append(a) or resolve(*a, **kw))
    def times(seeds):
        asked.clear()
        found = reproduction(padding='paper', among=[made_up('mrpc', m, s) for m in ('vkd','fsd') for s in range(seeds)])
        assert len(found)==2*seeds
        return len(asked)
    assert times(1)==times(7)==2

def test_two_runs_for_one_place_are_both_named(outputs):
    for o in ({}, dict(padding='masked')): saved(full(overrides=o), np.eye(2))
    with pytest.raises(ValueError, match='two runs of mrpc, vkd, seed 0: .*-s0 and .*-s0,padding=masked'): reproduction()

def test_batch_sizes_are_kept_apart(outputs):
    for b in (8,32): saved(full(method='fsd_l', overrides=dict(batch_size=b, padding='masked')), np.eye(2))
    assert len(reproduction())==0 and len(found := reproduction(also=('batch_size',)))==2
    assert batch.make(found).loc[('fsd_l','mrpc','f1'), [8,32]].notna().all()
    with pytest.raises(ValueError, match='two runs'): comparable(found)

def test_data_and_teachers_must_be_the_same():
    other = full(method='fsd')
    other.record['data'] = other.record['data'] | dict(fingerprint='other')
    with pytest.raises(ValueError, match='different data'): comparable([full(), other])
    with pytest.raises(ValueError, match='different teachers'): teachers([full(), full(method='fsd', teacher=.1)])

# ---------------------------------------------------------------- saving

def test_the_same_table_is_the_same_bytes(outputs):
    found = [full(method=m) for m in of_paper]
    first = [p.read_bytes() for p in save_table(glue.make(found), 'table')]
    again = save_table(glue.make(found[::-1]), 'table')
    assert [p.read_bytes() for p in again]==first
    assert [p.relative_to(outputs).as_posix() for p in again]==['tables/table.csv','tables/table.md']
    assert all(b'\r' not in b and b.endswith(b'\n') for b in first)
    assert sorted(p.name for p in (outputs/'tables').iterdir())==['table.csv','table.md'], 'nothing unfinished stays'

def test_a_hole_is_empty_in_csv_and_a_dash_in_markdown(outputs):
    for p in save_table(pd.DataFrame({'a':[None,np.nan,pd.NA,''], 'b':pd.array([1,None,3,4], 'Int64'), 'c':[.1+.2,1e-9,-1e-9,np.nan]}), 'holes', 3): text = p.read_text()
    assert text.splitlines()[2:]==['| – | 1 | 0.300 |', '| – | – | <0.001 |', '| – | 3 | 0.000 |', '| – | 4 | – |']
    back = pd.read_csv(outputs/'tables'/'holes.csv')
    assert back.a.isna().all() and back.b.tolist()[2:]==[3,4] and back.c[0]==.3

def test_the_best_student_is_bold_at_the_digits_shown_and_the_csv_is_as_it_was(outputs):
    f = pd.DataFrame({('a','x'):[99.,.804,.801,np.nan], ('a','y'):['3 ×1','–','2.00 (1.00) ×2','10.00 ×1'], 'b':[1.,.5,.5,.5]}, ['teacher','vkd','fsd','sp'])
    shown = marked(f)
    assert shown['a','y'].tolist()[2:]==['**2.00 (1.00) ×2**','10.00 ×1'] and '**' not in str(shown['a','x'].tolist()) and '**' not in str(shown['b'].tolist())
    assert marked(f, decimals=3)['a','x'].tolist()[1]=='**0.804**' and marked(f, [('a','x')], ['fsd','sp'])['a','x'].tolist()[2]=='**0.80**'
    csv,md = save_table(f, 'bold', shown=shown)
    assert '**' not in csv.read_text() and md.read_text().count('**')==2

def test_an_ablation_to_read_has_ours_before_the_papers():
    some = [made_up('rte', m, s, v) for m,s,v in (('fsd',0,.6), ('fsd',1,.9), ('fsd_i',0,.5), ('fsd_i',1,.9), ('fsd_l',1,.8))]
    t = ablation.readable(ablation.make(some))
    assert t.loc[('rte','accuracy'),'ours'].dropna().to_dict()==dict(fsd_i='**-5.00 (5.00) ×2**', fsd_l='-10.00 ×1')
    assert t.columns.tolist()==[(k,v) for k in ('ours','paper') for v in ablation.variants]

@pytest.mark.parametrize('name', ['', '../x', 'a/b', 'a b', '.x'])
def test_a_table_stays_in_its_folder(name, outputs):
    with pytest.raises(ValueError, match='cannot name a file'): save_table(pd.DataFrame({'a':[1]}), name)

# ---------------------------------------------------------------- scores and tests

def test_undefined_scores_are_no_seeds():
    some = [made_up('rte', 'vkd', i, v) for i,v in enumerate((.5,.6,None))]
    assert spread(scores(some)).loc[('rte','accuracy','vkd')].tolist()==pytest.approx([55, 50**.5, 2])
    assert glue.make(some).loc[('rte','accuracy','ours'),'vkd']=='55.00 (7.07) ×2'

def test_the_best_baseline_is_one_of_the_papers():
    some = [made_up('rte', m, i, v+.01*i) for m,v in dict(sp=.9, nods=.8, vkd=.6, rkd=.5, fsd=.7).items() for i in (0,1)]
    assert lead(spread(scores(some))).baseline.item()=='vkd'
    assert lead(spread(scores(some)), 'sp').difference.item()==pytest.approx(30)

@pytest.mark.parametrize('task,metric,printed,p', [('stsb','pearson',.004,.003), ('stsb','spearman',.013,.013), ('qnli','accuracy',.995,.996), ('mnli','accuracy_m',.386,.390),
    ('mnli','accuracy_mm',.242,.239), ('mrpc','accuracy',.060,.066), ('wnli','accuracy',.115,.106), ('cola','matthews',.521,.517), ('qqp','f1',.402,.424),
    ('rte','accuracy',.002,.095), ('sst2','accuracy',.348,.449), ('qqp','accuracy',.982,.708), ('mrpc','f1',.115,.184)])
def test_p_values_of_the_paper(task, metric, printed, p):
    r = recomputed().loc[(task,metric)]
    assert (r.printed, round(r.p, 3))==(printed, p) and r.least<=r.p<=r.most

@pytest.mark.parametrize('n', [5, 6, 10, 12])
def test_some_p_values_of_the_paper_come_out_at_no_number_of_runs(n):
    r = recomputed(n).loc[[('rte','accuracy'), ('sst2','accuracy'), ('qqp','accuracy')]]
    assert not r.printed.between(r.least-.01, r.most+.01).any()

def test_welch_answers_at_the_rate_it_promises():
    rng = np.random.default_rng(0)
    a,b = rng.normal(size=(1000,5)),3*rng.normal(size=(1000,4))
    p = np.array([welch(x.mean(), x.std(ddof=1), 5, y.mean(), y.std(ddof=1), 4) for x,y in zip(a,b)])
    assert .03<(p<.05).mean()<.075 and .45<(p<.5).mean()<.55

def test_bootstrap_answers_at_about_the_rate_it_promises():
    rng = np.random.default_rng(0)
    p = [bootstrap('rte', *rng.normal(size=(2,2,150,2)), rng.integers(2, size=150), 200).p.item() for _ in range(150)]
    assert .03<np.mean(np.array(p)<.1)<.2

def test_bootstrap_in_parts_is_as_wide_as_it_should_be():
    rng = np.random.default_rng(0)
    labels,logits = rng.integers(2, size=5000),rng.normal(size=(2,1,5000,2)) # 400 draws at a time
    right = (logits.argmax(-1)==labels)[:,0]
    b = bootstrap('rte', *logits, labels, 900).loc['accuracy']
    se = 100*(right[0].astype(float)-right[1]).std()/5000**.5
    assert (b.high-b.low)/3.92==pytest.approx(se, rel=.12) and b.low<b.difference<b.high

def test_bootstrap_of_runs_reads_both_dev_sets_and_refuses_other_labels(outputs):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=60)
    good,bad = np.eye(3)[labels],rng.normal(size=(60,3))
    a,b = saved(full('mnli','fsd'), good, labels),saved(full('mnli','rkd'), bad, labels)
    table = bootstrap_runs([a], [b], 100)
    assert table.index.tolist()==['accuracy_m','accuracy_mm'] and (table.p<.02).all() and (table.low>0).all()
    tested = glue.tests([a,b], draws=100)
    assert tested.loc['mnli', ['lead low','lead high']].to_numpy().tolist()==table[['low','high']].to_numpy().tolist()
    assert [c for c in tested if c.endswith((' p','Holm'))]==['paper p'], 'a lead of ours is tested in the claims alone'
    c = saved(full('mnli','vkd'), bad, labels[::-1])
    with pytest.raises(ValueError, match='different labels'): bootstrap_runs([a], [c])
    (b.folder/'predictions.npz').write_bytes(b'')
    with pytest.raises(Damaged): bootstrap_runs([a], [b])

def test_holm_lies_between_the_p_and_bonferroni():
    p = pd.Series(np.random.default_rng(0).random(9)**3, ['a']*9)
    h = holm(p)
    assert (h>=p).all() and (h<=np.minimum(1, 9*p)).all() and h.min()==pytest.approx(9*p.min())
    assert holm(p[::-1]).tolist()==h[::-1].tolist() and (h.to_numpy()[np.argsort(p)]==np.sort(h)).all()
    assert holm(pd.Series([np.nan, .02, np.nan])).tolist()[1]==.02

# ---------------------------------------------------------------- single tables

def test_ablation_compares_within_seeds():
    some = [made_up('rte', m, s, v) for m,s,v in (('fsd',0,.6), ('fsd',1,.9), ('fsd_i',1,.8), ('fsd_i',2,.1), ('fsd_l',3,.5))]
    t = ablation.make(some).loc[('rte','accuracy')]
    assert t['fsd_i','ours']==pytest.approx(-10) and t['fsd_i','seeds']==1 and pd.isna(t['fsd_l','ours']) and pd.isna(t['fsd_i','se'])
    one = ablation.make([*some, made_up('rte', 'fsd', 2, .1), made_up('rte', 'fsd_i', 0, .5)]).loc[('rte','accuracy')]
    assert one['fsd_i','se']==pytest.approx(np.std([-10,0,-10], ddof=1)/3**.5)

def test_an_average_leaves_out_tasks_that_tell_nothing(monkeypatch):
    monkeypatch.setattr(ablation, 'informative', lambda found: pd.DataFrame(dict(informative={'rte':True, 'wnli':False})))
    t = ablation.make([made_up(task, m, 0, v) for task,gain in dict(rte=.1, wnli=.3).items() for m,v in dict(fsd=.5, fsd_i=.5+gain).items()])
    assert t.loc[('average','where all ran'),('fsd_i','ours')]==pytest.approx(10)

def test_the_memory_is_measured_at_equal_seeds(outputs):
    some = [saved(made_up('rte', m, s), np.eye(2)+v) for m,s,v in (('fsd',0,0), ('fsd',1,1), ('fsd_il',0,.5), ('fsd_il',3,9))]
    row = memory.make(some).loc[('rte','fsd')].iloc[0]
    assert row[['moves','seeds','seed','gain']].tolist()==pytest.approx([.5,1,1,0]) and memory.of_seed(row)==pytest.approx(50)
    assert '50 % of what another seed does: less than a seed' in memory.seen(memory.make(some))
    assert len(memory.make([o for o in some if o.method=='fsd']))==0

def test_the_memory_reads_each_student_once(outputs, monkeypatch):
    some,read,usual = [saved(made_up('rte', m, s), np.eye(2)+s) for m in ('fsd','fsd_il') for s in range(5)],[],Run.arrays
    monkeypatch.setattr(Run, 'arrays', lambda self, *a: read.append(self.folder) or usual(self, *a))
    assert memory.make(some).seed.item()==pytest.approx(2)
    assert sorted(read)==sorted(o.folder for o in some)

def test_baselines_at_the_rate_of_fsd_stand_beside_their_own():
    def run(method, seed, score, lr, by_hand=False):
        o = made_up('rte', method, seed, score, overrides=dict(lr=lr))
        if not by_hand: o.record['overrides'] = {}
        return o
    some = [run('fsd', 0, .7, 2e-5), run('vkd', 0, .6, 1e-5), run('vkd', 1, .6, 1e-5), run('vkd', 0, .8, 2e-5, True)]
    row = one_rate.make(some).loc[('rte','vkd')]
    assert row['chosen','lead']==pytest.approx(10) and row['one','lead']==pytest.approx(-10)
    assert row['chosen','score'].endswith('(2)') and row['one','score']=='80.0 (1)'
    assert len(one_rate.make(some[:3]))==0

def test_ranks_need_all_four_and_come_from_the_last_look():
    four = [full('rte', m) for m in ranks.ranked]
    t = ranks.make(four).xs('ours', level=1, axis=1)
    assert t.loc['rte'].tolist()==[4,3,2,1] and t.drop('rte').isna().all(axis=None)
    assert ranks.make(four[:3]).xs('ours', level=1, axis=1).isna().all(axis=None)
    four[0].record['probe'] = [dict(step=9, probe=dict(masked=dict.fromkeys(ranks.quantities, 0.))), *four[0].record['probe']]
    assert ranks.make(four).loc['rte', ('vkd','ours')]==1

def test_ranks_are_of_seeds_that_have_all_four():
    t = ranks.make([full('rte', m, s) for s in (0,1) for m in ranks.ranked]+[full('rte', 'vkd', 2)])
    assert t.loc['rte','seeds'].item()==2 and t.xs('range', level=1, axis=1).isna().all(axis=None) # both seeds agree

def test_cka_of_the_other_padding_is_never_taken_for_it():
    run = made_up(analysis=dict(cka=dict(validation=dict(biased=dict(diagonal=.9, rest=0), debiased=dict(diagonal=.8, rest=0)))))
    assert cka.make([run], 'paper').loc[('mrpc','biased'),'vkd']==.9 and np.isnan(cka.make([run], 'masked').loc[('mrpc','biased'),'vkd'])

def test_speeds_are_relative_to_vkd_or_holes(tmp_path):
    t = cost.make([], dict(fsd=dict(kept=[9,10,12], inference=[3,3,3]), vkd=dict(kept=[7,8,9], live=[9,9,9]), sp=dict(kept=[16,16,16], live=[18,18,18])))
    assert t['training as it runs, ours'].dropna().to_dict()==dict(vkd=1, sp=.5, fsd=.8) and t['training live, ours'].dropna().to_dict()==dict(vkd=1, sp=.5)
    assert t.loc['fsd', ['training as it runs, ours, least','training as it runs, ours, most']].tolist()==[7/12,1.] and t['inference, ours'].isna().all(), 'nothing stands for a speed that was not measured'
    for wrong in ('{"kept": null}', '{"training": [1,2,3]}', '{"kept": [3,2,1]}'):
        (tmp_path/'speed.json').write_text(f'{{"steps": {{"vkd": {wrong}}}}}')
        with pytest.raises(ValueError, match='vkd (kept|training) .* are not three quartiles'): cost.speeds(tmp_path/'speed.json')

def test_batch_sizes_say_how_many_seeds_a_score_has():
    some = [full(method='fsd_l', seed=i, overrides=dict(batch_size=b)) for b,n in ((8,3),(32,2)) for i in range(n)]
    t = batch.make(some).loc[('fsd_l','mrpc','f1')]
    assert t.seeds==2 and t[[8,32]].notna().all() and t[[16,64,'std','by luck']].isna().all()
    assert batch.make([]).seeds.tolist()==[0]*6

def test_claims_to_read_have_percents_to_one_decimal_and_no_false():
    table = claims.make([full(m, method, s) for m in ('mrpc','rte') for method in of_paper for s in range(3)])
    read = claims.readable(table)
    assert len(read)==len(table) and list(read)==list(table) and 'False' not in markdown(read) and set(read.claimed)=={'yes',''}
    percents = read.what.isin(('score','restored'))
    assert read.fsd[percents].str.fullmatch(r'\d+\.\d').all() and read.fsd[~percents].str.fullmatch(r'\d+\.\d{3}').all()

def test_a_table_may_be_read_otherwise_than_it_is_kept(outputs):
    frame = pd.DataFrame({'a':[.125,None], 'b':[None,None]})
    csv,md = save_table(frame, 'both', says='# Both', shown=frame.assign(a=['an eighth','']))
    assert csv.read_text()=='a,b\n0.125,\n,\n' and md.read_text()=='# Both\n\n| a |\n| --- |\n| an eighth |\n'

def test_the_estimator_speaks_of_tasks_and_seeds_that_have_both():
    def one(task, seed, score, debiased): return made_up(task, 'fsd_l', seed, score, overrides=dict(padding='masked', debiased=debiased))
    some = [one('rte', 0, .5, False), one('mrpc', 0, .5, False), one('mrpc', 1, .9, False), one('mrpc', 0, .6, True)]
    assert set(estimator.make(some).index.get_level_values('task'))=={'mrpc'}
    assert estimator.seen(some).endswith('instead of biased: +10.0 (1 comparison of 1 seed); too few seeds to decide.')

def test_the_estimator_compares_students_of_one_teacher_and_counts_each_seed_once():
    def one(teacher, seed, debiased, score, precision='bf16'):
        chosen = dict(padding='masked', debiased=debiased, teacher_seed=teacher, precision=precision)
        return made_up('mrpc', 'fsd_i', seed, score, overrides=chosen, teacher=.8+teacher/1000-.05*(precision=='fp32'))
    some = [one(t, s, d, .4+t/500+.01*s+d*(.01+.001*s)) for t,seeds in ((42,(0,1)),(43,(2,3))) for s in seeds for d in (False,True)]
    alone = [one(43, 0, True, .9), one(42, 2, False, .1), one(42, 2, True, .9, 'fp32')] # no counterpart by the same teacher
    for found in (some, some+alone):
        a = estimator.answers(estimator.sides(found, 'mrpc')).query('seeds>0')
        assert len(a)==1 and a.seeds.item()==4 and a.lead.item()==pytest.approx(1.15) and 0<a.p.item()<.05
    theirs = estimator.make(some+alone)["teacher's"].groupby(level='teacher').first().round(1)
    assert theirs.to_dict()=={'42':84.2, '42 fp32':79.2, '43':84.3}

def every_table_kept(): return sorted((Path(__file__).parents[1]/'outputs'/'tables').glob('*.md'))

@pytest.mark.parametrize('path', every_table_kept(), ids=lambda p: p.stem)
def test_a_table_that_is_kept_says_what_it_is(path):
    head = path.read_text().split('\n|')[0]
    assert head.startswith('# ') and '](../../nbs/' in head, 'a heading, and the page that made it'
    assert '| False |' not in path.read_text()

def test_links_of_the_results_lead_somewhere():
    root = Path(__file__).parents[1]
    page = json.loads((root/'nbs'/'results.ipynb').read_text())['cells'][-1]['outputs'][-1]['data']['text/markdown']
    block = (root/'README.md').read_text().split('written by nbs/results.ipynb -->')[1].split('<!-- end of results')[0]
    for where,text in ((root/'nbs', ''.join(page)), (root, block)):
        links = re.findall(r'\]\(([^)]+)\)', text)
        assert links and [l for l in links if not (where/l).exists()]==[]
    kept = pd.read_csv(root/'outputs/tables/claims.csv')
    open_ = (kept[kept.paper=='Tables 2, 3'].verdict=='undecided').any()
    assert ('which is not clear' in block)==open_, 'a lead is called clear by the claims'

def test_sizes_are_counted_from_files_and_holes_without(tmp_path, monkeypatch):
    (tmp_path/'RTE').mkdir()
    for split,n in (('train',3),('dev',277)): (tmp_path/'RTE'/f'{split}.tsv').write_text('index\tsentence1\tsentence2\tlabel\n'+''.join(f'{i}\ta\tb\tentailment\n' for i in range(n)))
    monkeypatch.setenv('FSD_GLUE', str(tmp_path))
    t = sizes.make(sizes.present()).set_index('task')
    assert t.loc['RTE', ['train, counted','dev, counted']].tolist()==['3 (a part)','277'] and t.drop('RTE')['dev, counted'].isna().all()
    monkeypatch.delenv('FSD_GLUE')
    assert sizes.present(['wnli'])=={} or sizes.present(['wnli'])['wnli'].source=='hub'

def test_trials_may_differ_in_a_setting_that_older_records_do_not_have():
    def trial(**kw): return made_up('mrpc', 'fsd', overrides=dict(holdout=.2, **kw), scores=dict(teacher={}, student=dict(holdout=dict(f1=.7, accuracy=.6))))
    older,newer = trial(lr=1e-4),trial(lr=1e-4, layer=3)
    assert chosen.grids([newer, older]).setting.tolist()==['layer None','layer 3']
