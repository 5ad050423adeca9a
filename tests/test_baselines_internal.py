"Internal representations where nothing is as usual: half precision, batches of one, collapsed states, odd schedules"
import pytest, torch
from fsd.baselines.internal import Blocks, active, attention_kl, cls_cosine, matched_block, stage_at

kinds = 'all', 'progressive', 'stacked'


def attention(n=3, heads=2, length=5, mask=None):
    scores = torch.randn(n, heads, length, length)
    return (scores if mask is None else scores.masked_fill(~mask[:, None, None], -torch.inf)).softmax(-1)


def grads(f, s, *args):
    s = s.detach().requires_grad_()
    loss = f(s, *args)
    return loss.detach(), torch.autograd.grad(loss, s)[0]


@pytest.mark.parametrize('depth_s', range(1, 8))
@pytest.mark.parametrize('depth_t', range(7, 13))
def test_matched(depth_s, depth_t):
    got = [matched_block(k, depth_s, depth_t) for k in range(1, depth_s+1)]
    assert got == sorted(set(got)) and got[0] >= 1 and got[-1] == depth_t


@pytest.mark.parametrize('n', [1, 4])
@pytest.mark.parametrize('length', [1, 6])
@pytest.mark.parametrize('as_mask', [lambda m: None, lambda m: m, torch.Tensor.long, torch.Tensor.float])
def test_finite_attention(n, length, as_mask):
    mask = torch.arange(length) < torch.randint(1, length+1, (n, 1))
    loss, grad = grads(attention_kl, attention(n, 2, length, mask), attention(n, 2, length, mask), as_mask(mask))
    assert loss.shape == () and loss >= -1e-6 and loss.isfinite() and grad.isfinite().all()


def test_no_token_at_all():
    a = attention(2)
    loss, grad = grads(attention_kl, a, a.flip(0), torch.tensor([[1]*5, [0]*5]))
    assert loss.isfinite() and grad.isfinite().all() and not grad[1].any()


@pytest.mark.parametrize('dtype, want', [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_dtypes(dtype, want):
    a, b, c, d = attention().to(dtype), attention().to(dtype), torch.randn(4, 6).to(dtype), torch.randn(4, 6).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16): loss = attention_kl(a, b), cls_cosine(c, d)
    assert {o.dtype for o in loss} == {want}
    assert torch.equal(loss[0], attention_kl(a.to(want), b.to(want))) and torch.equal(loss[1], cls_cosine(c.to(want), d.to(want)))


def test_collapsed_state():
    for s, t in ((torch.zeros(2, 4), torch.randn(2, 4)), (torch.randn(2, 4), torch.zeros(2, 4)), (torch.zeros(1, 4), torch.zeros(1, 4))):
        loss, grad = grads(cls_cosine, s, t)
        assert loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize('shapes', [((3, 2, 5, 5), (3, 2, 6, 6)), ((3, 5, 5), (3, 5, 5)), ((3, 2, 5, 5), (2, 2, 5, 5))])
def test_attention_shapes(shapes):
    with pytest.raises(ValueError, match=r'\(N, H, L, L\)'): attention_kl(*(torch.ones(s) for s in shapes))


def test_cls_shapes():
    with pytest.raises(ValueError, match=r'not \(2, 3, 4\)'): cls_cosine(torch.ones(2, 3, 4), torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r'\(3, 4\)'): cls_cosine(torch.ones(2, 4), torch.ones(3, 4))


@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('n', [1, 3, 6])
@pytest.mark.parametrize('total', [1, 2, 7, 100, 1001])
def test_stages_only_rise(kind, n, total):
    schedule, seen = Blocks(n, kind), []
    for step in range(total):
        shares = schedule(step, total)
        assert list(shares) == [f'attention_{k}' for k in range(1, n+1)] + [f'cls_{k}' for k in range(1, n+1)] + ['ce', 'kd']
        assert set(shares.values()) <= {0, 1} and any(shares.values())
        assert all(shares[f'attention_{k}'] == shares[f'cls_{k}'] for k in range(1, n+1)) and shares['ce'] == shares['kd']
        seen.append(stage_at(step, schedule.cap*total, [0]*n))
        assert [k for k in range(1, n+1) if shares[f'cls_{k}']] == list(active(kind, seen[-1], n))
    assert seen == sorted(seen)
    if total > n: assert set(seen) == set(range(1, n+2)) and abs(seen.count(1) - total/(n+1)) <= 1


def test_equal_stages():
    for n in range(1, 13): assert [stage_at(step, Blocks(n, 'stacked').cap*10*(n+1), [0]*n) for step in range(0, 10*(n+1), 10)] == list(range(1, n+2))


def follow(schedule, total, values, parts=1):
    for step in range(total):
        now = {n: 0. for n, share in schedule(step, total).items() if share}
        for _ in range(parts): schedule.note(step, {n: torch.tensor(values(n, step)) for n in now})
    return schedule


def test_all_takes_no_notice():
    schedule = follow(Blocks(3, 'all', threshold=1.), 50, lambda n, step: 0.)
    assert not schedule.left.any() and not schedule.watched.any() and all(schedule(49, 50).values())


@pytest.mark.parametrize('kind', kinds[1:])
def test_threshold_zero_never_ends(kind):
    schedule = follow(Blocks(3, kind), 80, lambda n, step: 0.)
    assert not schedule.left.any()


@pytest.mark.parametrize('kind', kinds[1:])
def test_each_block_is_judged_by_itself(kind):
    schedule = follow(Blocks(3, kind, threshold=.1), 400, lambda n, step: 0. if n == 'cls_2' else .5, parts=3)
    assert schedule.left.tolist() == [0, 110, 0]


def test_nan_does_not_end_a_block():
    assert not follow(Blocks(2, 'stacked', threshold=.1), 90, lambda n, step: float('nan') if step == 0 else 0.).left[0]


def test_plain_numbers_and_other_terms():
    schedule = Blocks(2, 'progressive', threshold=.1)
    for step in range(20): schedule.note(step, {'kd': 0., 'ce': 0., 'attention_1': 3.})
    assert not schedule.watched.any()
    for step in range(10): schedule.note(step, {'kd': 0., 'cls_1': .01})
    assert schedule.left.tolist() == [10, 0]


@pytest.mark.parametrize('stop', range(1, 60, 7))
def test_resume(stop, tmp_path):
    loss = torch.rand(60, generator=torch.Generator().manual_seed(1)).mul(.2).tolist()
    def go(schedule, steps):
        for step in steps: schedule.note(step, {n: torch.tensor(loss[step]) for n, share in schedule(step, 60).items() if share and n.startswith('cls')})
        return schedule
    new = lambda: Blocks(3, 'stacked', threshold=.1)
    torch.save(go(new(), range(stop)).state_dict(), tmp_path/'state')
    resumed = new()
    resumed.load_state_dict(torch.load(tmp_path/'state'))
    torch.testing.assert_close(go(resumed, range(stop, 60)).state_dict(), go(new(), range(60)).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('cap', [0, -.1, .34, 1, float(1/3)])
def test_caps(cap):
    with pytest.raises(ValueError, match='cap must be above 0'): Blocks(3, 'stacked', cap=cap)
