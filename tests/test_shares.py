"""Shares of the gradient: measured without a trace, and as weights wherever a weight is given."""
import json
import pytest
from conftest import root
from fsd import distill, plots
from fsd.experiment import Experiment
from fsd.plans import Preset, Stage
from fsd.planned import Plan
from fsd.settings import resolve
from fsd.shares import settling, shares
from fsd.values import Share

def test_a_run_that_is_measured_is_the_same_run(tiny, outputs, tmp_path, monkeypatch):
    plain = distill('wnli', 'fsd', **tiny)
    monkeypatch.setenv('FSD_OUTPUTS', str(tmp_path/'again'))
    watched = distill('wnli', 'fsd', **tiny, shares=4)
    same = 'fingerprint','scores','epochs','probe','history','terms','overrides'
    assert all(plain.record[k]==watched.record[k] for k in same)
    assert plain.folder.relative_to(outputs)==watched.folder.relative_to(tmp_path/'again')
    assert plain.record['shares']==[] and [l['step'] for l in watched.record['shares']]==[0, 3, 6, 9]
    for l in watched.record['shares']:
        assert set(l['shares'])=={'ce','kd','intra','local','global'}
        assert sum(p['pull'] for p in l['shares'].values())==pytest.approx(1, abs=1e-4)

def test_a_weight_that_is_a_share_is_found_recorded_and_names_the_run(tiny, outputs):
    run = distill('wnli', 'fsd', **tiny, gamma_g='share .3', shares=12)
    assert run.record['overrides']['gamma_g']=='share0.3'
    assert run.record['terms']['global']=='share0.3 of gamma_g' and run.record['settings']['gamma_g']=='share0.3'
    found = run.record['weights']
    assert [l['step'] for l in found]==[*settling(12)] and found[-1]['weights']['global']>0
    first = run.record['shares'][0]
    assert shares(first['shares'])['global']==pytest.approx(.3, abs=1e-3), 'measured on the batch that it was found on'
    assert json.loads((run.folder/'run.json').read_text())['overrides']['gamma_g']=='share0.3'
    assert distill('wnli', 'fsd', **tiny, gamma_g='share 0.30').record==run.record, 'found again, however it is written'
    page = json.loads((root/'nbs/distill.ipynb').read_text(encoding='utf8'))
    cell, = (c for c in (''.join(o['source']) for o in page['cells'] if o['cell_type']=='code') if 'loss_curves' in c)
    exec(cell.replace('plots.loss_curves', 'fig = plots.loss_curves'), here := dict(run=run, plots=plots))
    assert f"global, weight {found[-1]['weights']['global']:g}" in [ax.get_title() for ax in here['fig'].axes]

def test_the_number_that_was_found_makes_the_same_student(tiny, outputs):
    params = tiny | dict(max_steps=8) # a tenth is the first step, before which the weight is found
    given = distill('wnli', 'fsd_i', **params, gamma_i='share .4')
    number = given.record['weights'][-1]['weights']['intra']
    again = distill('wnli', 'fsd_i', **params, gamma_i=number)
    assert again.record['history']==given.record['history'] and again.scores==given.scores
    assert again.record['fingerprint']!=given.record['fingerprint']

def test_absolute_weights_are_what_they_were():
    s = resolve('mrpc', 'fsd', gamma_g='.3')
    assert type(s.gamma_g) is float and s.gamma_g==.3
    assert isinstance(resolve('mrpc', 'fsd', gamma_g='share .3').gamma_g, Share)

def test_shares_that_cannot_be_had_are_refused_before_anything_is_computed(tiny, outputs):
    with pytest.raises(ValueError, match='gamma_i=share 0.6, gamma_l=share 0.5 are 1.1 together'):
        Experiment('wnli', 'fsd', **tiny, gamma_i='share .6', gamma_l='share .5')
    with pytest.raises(ValueError, match='beta=0.5 and gamma_i=0.2 are both shares'):
        Experiment('wnli', 'fsd_i', **tiny, beta='share .5', gamma_i='share .2')
    with pytest.raises(ValueError, match='take turns'): Experiment('wnli', 'internal_stacked', **tiny, beta='share .5')
    with pytest.raises(ValueError, match='a share is above 0 and below 1'): resolve('wnli', 'fsd', beta='share 30')
    assert not outputs.exists() or not any(outputs.rglob('*.safetensors'))

@pytest.mark.parametrize('method', ['pkd','rkd','minilm','ckd'])
def test_what_a_baseline_adds_may_have_a_share(method, tiny, outputs):
    e = Experiment('wnli', method, **tiny, beta='share .5')
    own = [w for w in e.weights.values() if isinstance(w, Share)]
    assert own and all(w.share==.5 and w.setting=='beta' for w in own)

def test_the_command_and_a_sweep_take_shares(tiny, outputs):
    from fsd.__main__ import experiment
    words = [f'--{k}={v}' for k,v in tiny.items()]
    e = experiment(['--task','wnli','--method','fsd','--gamma_g','share .3', *words])
    assert e.settings.gamma_g=='share0.3'
    def keys(*values):
        grid = Preset('of shares', ('wnli',), (Stage('grid', 'fsd', dict(gamma_g=values)),), tiny)
        return [r.key for r in Plan(grid).of_stage(grid.stages[0], 'wnli', {})]
    a,b,c = keys('share .3', 'share .4', .3)
    assert len({a,b,c})==3 and keys('share 0.30')==[a]
